//! What an operator decides about a delivery: asked on a page of its own, recorded with the
//! delivery, and logged with who and why.

use std::net::SocketAddr;
use std::sync::Arc;

use askama::Template;
use axum::Extension;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use super::Desk;
use super::access::Pass;
use super::api::{self, Refusal};
use super::deliveries::{Row, find};
use super::form::Fields;
use super::look::{self, Look};
use super::words::Words;
use crate::clock;
use crate::journal::entry::{Entry, State as Standing};
use crate::journal::machine::Unresolvable;
use crate::journal::resolve::{Author, MESSAGE, Refused, Verdict};
use crate::journal::view::Reply;
use crate::plain::plain;

/// Most characters of a name, and of a reason or message.
const NAME: usize = 100;
const TEXT: usize = 500;

/// A decision that can be offered.
pub(super) struct Action {
    pub(super) name: &'static str,
    pub(super) label: &'static str,
    pub(super) confirm: &'static str,
    pub(super) explanation: &'static str,
}

impl Action {
    fn named(words: &'static Words, name: &str) -> Option<Self> {
        let (name, label, confirm, explanation) = match name {
            "retry" => ("retry", words.retry, words.retry_confirm, words.retry_means),
            "done" => ("done", words.mark_done, words.done_confirm, words.mark_done_means),
            "failed" => ("failed", words.mark_failed, words.failed_confirm, words.mark_failed_means),
            "settled" => ("settled", words.settle, words.settle_confirm, words.settle_means),
            _ => return None,
        };
        Some(Self { name, label, confirm, explanation })
    }
}

/// A decision's name in the journal, in words.
pub(super) fn label(words: &'static Words, what: &str) -> &'static str {
    Action::named(words, what).map_or("", |action| action.label)
}

/// What can be decided about a delivery as it stands.
pub(super) fn actions(words: &'static Words, entry: &Entry, reply: &Reply) -> Vec<Action> {
    let names: &[&str] = match entry.state {
        Standing::Running => &[],
        Standing::Open => &["done", "failed"],
        Standing::Unconfirmed => &["retry", "done", "failed"],
        Standing::Closed => &["retry", "done"],
        Standing::Done => match (entry.answered_at, reply) {
            (None, Reply::Lost) => &["settled", "done"],
            (None, _) => &["settled"],
            (Some(_), Reply::Lost) => &["done"],
            (Some(_), _) => &[],
        },
    };
    names.iter().filter_map(|name| Action::named(words, name)).collect()
}

#[derive(Template)]
#[template(path = "admin/decide.html")]
struct DecidePage<'a> {
    look: &'a Look,
    action: Action,
    row: Row,
    problem: String,
    reply: &'a str,
    message: &'a str,
    by: &'a str,
    why: &'a str,
}

/// `GET /deliveries/{id}/{decision}`: asks for confirmation.
pub(super) async fn confirm(
    State(desk): State<Desk>,
    look: Look,
    Path((id, name)): Path<(String, String)>,
) -> Response {
    ask(&desk, &look, &id, &name, &Fields::default(), None).await
}

/// The page that asks, once more with what was wrong if something was.
async fn ask(
    desk: &Desk,
    look: &Look,
    id: &str,
    name: &str,
    fields: &Fields,
    problem: Option<(StatusCode, String)>,
) -> Response {
    let Some(action) = Action::named(look.words, name) else { return not_found(look) };
    if look.read_only {
        return look.refuse(&Refusal::read_only(), "/deliveries");
    }
    let record = match find(desk, id).await {
        Ok((record, _)) => record,
        Err(refusal) => return look.refuse(&refusal, "/deliveries"),
    };
    let (status, problem) = problem.unwrap_or((StatusCode::OK, String::new()));
    let mut response = look::page(&DecidePage {
        look,
        action,
        row: Row::new(desk, look.words, &record.entry, clock::now()),
        problem,
        reply: fields.raw("reply").unwrap_or_default(),
        message: fields.get("message").unwrap_or(MESSAGE),
        by: fields.get("by").unwrap_or_default(),
        why: fields.get("why").unwrap_or_default(),
    });
    *response.status_mut() = status;
    response
}

fn not_found(look: &Look) -> Response {
    look.refuse(&Refusal::new(StatusCode::NOT_FOUND, "not_found", ""), "/deliveries")
}

/// `POST /deliveries/{id}/{decision}`.
pub(super) async fn decide(
    State(desk): State<Desk>,
    look: Look,
    Path((id, name)): Path<(String, String)>,
    Extension(pass): Extension<Pass>,
    peer: Option<Extension<ConnectInfo<SocketAddr>>>,
    body: Bytes,
) -> Response {
    let fields = Fields::parse(&body);
    let words = look.words;
    let decision = Decision {
        decision: name.clone(),
        by: fields.text("by").unwrap_or_default(),
        why: fields.text("why").unwrap_or_default(),
        message: fields.text("message"),
        reply: None,
    };
    if Action::named(words, &name).is_none() {
        return not_found(&look);
    }
    if decision.by.is_empty() || decision.why.is_empty() {
        let problem = (StatusCode::UNPROCESSABLE_ENTITY, words.name_needed.to_owned());
        return ask(&desk, &look, &id, &name, &fields, Some(problem)).await;
    }
    let reply = fields.raw("reply").map(|reply| reply.trim().as_bytes().to_vec());
    match take(&desk, &id, decision, reply, (pass, peer)).await {
        Ok((entry, _)) => {
            Redirect::to(&format!("/deliveries/{}?decided=1", entry.key.idempotency_key())).into_response()
        }
        Err(Untaken::Refusal(refusal)) => look.refuse(&refusal, &format!("/deliveries/{}", plain(&id))),
        Err(Untaken::Refused(refused)) => {
            let said = in_words(words, &refused);
            let refusal = Refusal::from(refused);
            if refusal.status == StatusCode::NOT_FOUND || refusal.status == StatusCode::SERVICE_UNAVAILABLE {
                return look.refuse(&refusal, "/deliveries");
            }
            ask(&desk, &look, &id, &name, &fields, Some((refusal.status, said))).await
        }
    }
}

/// Why a decision is not taken, for a reader of a page.
fn in_words(words: &'static Words, refused: &Refused) -> String {
    match refused {
        Refused::Unresolvable { why, .. } => match why {
            Unresolvable::Running => words.run_first,
            Unresolvable::Done => words.is_done,
            Unresolvable::NotDone => words.is_not_done,
            Unresolvable::InstanceReused => words.instance_reused,
        }
        .to_owned(),
        Refused::SaysNo => words.says_no.to_owned(),
        Refused::Broken { violation, .. } => format!("{} {}", words.broken_reply, plain(violation)),
        refused => format!("{}: {}", words.not_decided, plain(&refused.to_string())),
    }
}

/// A decision as programs send it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Decision {
    decision: String,
    by: String,
    why: String,
    message: Option<String>,
    reply: Option<Box<RawValue>>,
}

/// `POST /api/v1/deliveries/{id}`.
pub(super) async fn decide_json(
    State(desk): State<Desk>,
    Path(id): Path<String>,
    Extension(pass): Extension<Pass>,
    peer: Option<Extension<ConnectInfo<SocketAddr>>>,
    body: Bytes,
) -> Result<Response, Refusal> {
    // Never a part of the body: it may hold a password.
    let mut decision: Decision = serde_json::from_slice(&body).map_err(|error| {
        let what = match error.classify() {
            serde_json::error::Category::Data => "must have decision, by and why, and may have message and reply",
            _ => "must be JSON",
        };
        Refusal::bad_request(format!("the body {what}"))
    })?;
    let reply = decision.reply.take().map(|reply| reply.get().as_bytes().to_vec());
    match take(&desk, &id, decision, reply, (pass, peer)).await {
        Ok((entry, next)) => Ok(api::answer(&json!({
            "id": entry.key.idempotency_key(),
            "state": entry.state.as_str(),
            "next": next,
        }))),
        Err(Untaken::Refusal(refusal)) => Err(refusal),
        Err(Untaken::Refused(refused)) => Err(refused.into()),
    }
}

enum Untaken {
    Refusal(Refusal),
    Refused(Refused),
}

impl From<Refusal> for Untaken {
    fn from(refusal: Refusal) -> Self {
        Self::Refusal(refusal)
    }
}

/// Who sent it, and how they were let in.
type Sender = (Pass, Option<Extension<ConnectInfo<SocketAddr>>>);

/// Takes a decision, and logs it.
async fn take(
    desk: &Desk,
    id: &str,
    decision: Decision,
    reply: Option<Vec<u8>>,
    (pass, peer): Sender,
) -> Result<(Entry, String), Untaken> {
    if desk.admin.served.borrow().admin.read_only {
        return Err(Refusal::read_only().into());
    }
    let Decision { decision: name, by, why, message, .. } = decision;
    let fits = |text: &str, most: usize| !text.trim().is_empty() && text.chars().count() <= most;
    if !fits(&by, NAME) || !fits(&why, TEXT) {
        let message = format!("by must have 1 to {NAME} characters, and why 1 to {TEXT}");
        return Err(Refusal::bad_request(message).into());
    }
    if message.as_ref().is_some_and(|message| !fits(message, TEXT)) {
        return Err(Refusal::bad_request(format!("message must have 1 to {TEXT} characters")).into());
    }
    let verdict = match (name.as_str(), reply) {
        ("retry", _) => Verdict::Retry,
        ("settled", _) => Verdict::Settled,
        ("failed", _) => Verdict::Failed(message.unwrap_or_else(|| MESSAGE.to_owned())),
        ("done", Some(reply)) => {
            let most = desk.admin.served.borrow().limits.reply_bytes;
            if reply.len() > most {
                let message = format!("the reply is longer than limits.reply_bytes, {most} bytes");
                return Err(Refusal::bad_request(message).into());
            }
            Verdict::Done(reply)
        }
        ("done", None) => return Err(Refusal::bad_request("done needs a reply").into()),
        _ => return Err(Refusal::bad_request("decision must be retry, done, failed or settled").into()),
    };
    let Ok(whole) = crate::journal::select::id(id) else {
        return Err(Untaken::Refused(Refused::NotFound(crate::journal::select::NotFound::None { id: plain(id) })));
    };
    let author = Author { by: Some(by.trim().to_owned()), why: Some(why.trim().to_owned()) };
    let (journal, served) = (Arc::clone(&desk.admin.journal), desk.admin.served.clone());
    let client = peer.map_or("unknown".to_owned(), |Extension(ConnectInfo(peer))| peer.ip().to_canonical().to_string());
    let taken = desk.act::<_, Refused>(async move {
        let app = move |name: &str| served.borrow().apps.get(name).map(|app| app.config.clone());
        let (entry, next) = journal.resolve(&app, &whole, verdict, author.clone()).await?;
        // Here, where it is recorded: nobody decides without a trace by hanging up.
        tracing::warn!(
            app = &*entry.subject.app,
            action = &*entry.subject.action,
            order_id = entry.subject.order_id.as_deref(),
            delivery = entry.key.idempotency_key(),
            decision = name,
            by = author.by,
            why = author.why,
            client,
            via = pass.as_str(),
            "an operator decided about a delivery"
        );
        Ok((entry, next))
    });
    taken.await.map_err(Untaken::Refused)
}
