//! `/deliveries` and `/deliveries/{id}`, and what programs get of the same.

use askama::Template;
use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use jiff::Timestamp;
use serde_json::json;

use super::api::{self, Refusal};
use super::form::Fields;
use super::look::{self, Look};
use super::words::Words;
use super::{Desk, decide};
use crate::clock;
use crate::journal::entry::{Attempt, AttemptOutcome, Entry, State as Standing};
use crate::journal::select::{self, Moment, NotFound};
use crate::journal::store::{Browsed, Filter, Record, Unavailable, Which};
use crate::journal::view::{Reply, View, milliseconds};
use crate::json;
use crate::plain::plain;

/// Deliveries on a page, and most that a program gets at once.
const PAGE: usize = 50;
const MOST: usize = 500;
/// What a listing can be asked for.
const KNOWN: [&str; 11] =
    ["order_id", "instance_id", "user_id", "app", "action", "outcome", "since", "until", "id", "cursor", "limit"];

/// What a query asks for.
struct Asked {
    filter: Filter,
    cursor: Option<i64>,
    limit: usize,
}

impl Asked {
    fn read(fields: &Fields, now: Timestamp) -> Result<Self, String> {
        let moment = |name: &str| {
            let moment = fields.get(name).map(|text| Moment::parse(text).map_err(|error| format!("{name} {error}")));
            moment.transpose().map(|moment| moment.map(|moment| moment.at(now)))
        };
        let which = fields.get("outcome").map(|name| {
            let names = || Which::names().collect::<Vec<_>>().join(", ");
            Which::named(name).ok_or_else(|| format!("outcome must be one of {}", names()))
        });
        let id = fields.get("id").map(|id| select::id(id).map_err(|error| format!("id {error}")));
        let cursor = fields.get("cursor").map(|text| text.parse().map_err(|_| "cursor is none of ours".to_owned()));
        let limit = fields.get("limit").map(|text| {
            let limit = text.parse().ok().filter(|limit| (1..=MOST).contains(limit));
            limit.ok_or_else(|| format!("limit must be from 1 to {MOST}"))
        });
        let filter = Filter {
            id: id.transpose()?,
            app: fields.text("app"),
            action: fields.text("action"),
            order_id: fields.text("order_id"),
            instance_id: fields.text("instance_id"),
            user_id: fields.text("user_id"),
            which: which.transpose()?,
            since: moment("since")?,
            until: moment("until")?,
        };
        Ok(Self { filter, cursor: cursor.transpose()?, limit: limit.transpose()?.unwrap_or(PAGE) })
    }

    async fn browse(self, desk: &Desk) -> Result<Browsed, Unavailable> {
        let journal = std::sync::Arc::clone(&desk.admin.journal);
        desk.ask(async move { journal.browse(self.filter, self.cursor, self.limit).await }).await
    }
}

/// `/api/v1/deliveries`.
pub(super) async fn list_json(State(desk): State<Desk>, RawQuery(query): RawQuery) -> Result<Response, Refusal> {
    let fields = Fields::of_query(query.as_deref());
    if let Some(name) = fields.unknown(&KNOWN) {
        let known = KNOWN.join(", ");
        return Err(Refusal::bad_request(format!("there is no parameter {name}; known are {known}")));
    }
    let asked = Asked::read(&fields, clock::now()).map_err(Refusal::bad_request)?;
    let browsed = asked.browse(&desk).await?;
    Ok(api::answer(&json!({
        "deliveries": browsed.records.iter().map(View::new).collect::<Vec<_>>(),
        "next": browsed.next.map(|next| next.to_string()),
        "stopped_at": browsed.stopped_at.map(|at| format!("{at:.3}")),
    })))
}

/// `/api/v1/deliveries/{id}`.
pub(super) async fn show_json(State(desk): State<Desk>, Path(id): Path<String>) -> Result<Response, Refusal> {
    let (record, reply) = find(&desk, &id).await?;
    Ok(api::answer(&View::new(&record).with_reply(&reply)))
}

/// The delivery whose id begins so, and its reply.
pub(super) async fn find(desk: &Desk, id: &str) -> Result<(Record, Reply), Refusal> {
    let Ok(id) = select::id(id) else { return Err(NotFound::None { id: plain(id) }.into()) };
    let journal = std::sync::Arc::clone(&desk.admin.journal);
    let found = desk.ask::<_, NotFound>(async move { journal.find(&id).await }).await;
    Ok(found?)
}

/// One delivery in a listing.
pub(super) struct Row {
    pub(super) id: String,
    /// What people call it: the order, or else the instance, or else its id.
    pub(super) name: String,
    pub(super) received: String,
    pub(super) received_short: String,
    pub(super) ago: String,
    pub(super) app: String,
    pub(super) action: String,
    pub(super) instance: String,
    pub(super) debug: bool,
    pub(super) state: &'static str,
    pub(super) tone: &'static str,
    pub(super) attempts: u32,
}

impl Row {
    pub(super) fn new(desk: &Desk, words: &'static Words, entry: &Entry, now: Timestamp) -> Self {
        let id = entry.key.idempotency_key();
        let made = entry.confirmation.as_ref().and_then(|confirmation| confirmation.instance_id.as_deref());
        let subject = &*entry.subject;
        let instance = made.or(subject.instance_id.as_deref());
        let standing = Means::of(desk, words, entry);
        Self {
            name: subject.order_id.as_deref().or(instance).map_or_else(|| id.clone(), plain),
            id,
            received: format!("{:.3}", entry.received_at),
            received_short: short(entry.received_at),
            ago: words.ago(now.as_second() - entry.received_at.as_second()),
            app: plain(&subject.app),
            action: plain(&subject.action),
            instance: instance.map(plain).unwrap_or_default(),
            debug: subject.debug,
            state: standing.state,
            tone: standing.tone,
            attempts: entry.latest.number,
        }
    }
}

/// To the second, as one reads it.
pub(super) fn short(time: Timestamp) -> String {
    format!("{time:.0}").replace('T', " ").replace('Z', "")
}

/// What a delivery's standing means.
pub(super) struct Means {
    state: &'static str,
    tone: &'static str,
    meaning: &'static str,
}

impl Means {
    fn of(desk: &Desk, words: &'static Words, entry: &Entry) -> Self {
        let refused = entry.latest.ended.as_ref().is_some_and(|ended| ended.outcome == AttemptOutcome::Refused);
        let retried = entry.decision.as_ref().is_some_and(|decision| decision.what == "retry");
        let is_held = || desk.app(&entry.subject.app).is_some_and(|app| app.hold_unconfirmed);
        let (state, tone, meaning) = match entry.state {
            Standing::Running => (words.running, "plain", words.running_means),
            Standing::Open if retried => (words.open_decided, "plain", words.open_means),
            Standing::Open if refused => (words.open_refused, "plain", words.refused_means),
            Standing::Open => (words.open_failed, "warn", words.failed_means),
            Standing::Unconfirmed if is_held() => (words.held, "bad", words.held_means),
            Standing::Unconfirmed => (words.unconfirmed, "bad", words.unconfirmed_means),
            Standing::Done if entry.answered_at.is_none() => (words.unanswered, "bad", words.unanswered_means),
            Standing::Done => (words.done, "good", words.done_means),
            Standing::Closed => (words.closed, "plain", words.closed_means),
        };
        Self { state, tone, meaning }
    }
}

/// A text field of the filter.
struct Field {
    name: &'static str,
    label: &'static str,
    value: String,
    hint: &'static str,
}

/// A list of the filter.
struct Choice {
    name: &'static str,
    label: &'static str,
    options: Vec<Chosen>,
}

/// What can be chosen of a list.
pub(super) struct Chosen {
    pub(super) value: String,
    pub(super) label: String,
    pub(super) chosen: bool,
}

#[derive(Template)]
#[template(path = "admin/deliveries.html")]
struct ListPage<'a> {
    look: &'a Look,
    missed: String,
    problem: String,
    fields: Vec<Field>,
    choices: Vec<Choice>,
    rows: Vec<Row>,
    stopped: String,
    first: String,
    next: String,
    json: String,
}

/// `/deliveries`.
pub(super) async fn list(State(desk): State<Desk>, look: Look, RawQuery(query): RawQuery) -> Response {
    let fields = Fields::of_query(query.as_deref());
    let mut missed = String::new();
    if let Some(named) = fields.get("q") {
        match locate(&desk, named).await {
            Ok(Some(place)) => return Redirect::to(&place).into_response(),
            Ok(None) => missed = plain(named),
            Err(refusal) => return look.refuse(&refusal, "/"),
        }
    }
    let now = clock::now();
    let (browsed, problem) = match Asked::read(&fields, now) {
        Ok(asked) => match asked.browse(&desk).await {
            Ok(browsed) => (browsed, String::new()),
            Err(unavailable) => return look.refuse(&unavailable.into(), "/"),
        },
        Err(problem) => (Browsed { records: Vec::new(), next: None, stopped_at: None }, plain(&problem)),
    };
    let link = |cursor: &str| format!("/deliveries?{}", fields.query_with(&[("cursor", cursor), ("q", "")]));
    let status = if problem.is_empty() { StatusCode::OK } else { StatusCode::BAD_REQUEST };
    let mut response = look::page(&ListPage {
        missed,
        problem,
        fields: text_fields(&look, &fields),
        choices: choices(&desk, &look, &fields),
        rows: browsed.records.iter().map(|record| Row::new(&desk, look.words, &record.entry, now)).collect(),
        stopped: browsed.stopped_at.map(short).unwrap_or_default(),
        first: fields.get("cursor").map(|_| link("")).unwrap_or_default(),
        next: browsed.next.map(|next| link(&next.to_string())).unwrap_or_default(),
        json: format!("/api/v1/deliveries?{}", fields.query_with(&[("q", "")])),
        look: &look,
    });
    *response.status_mut() = status;
    response
}

fn text_fields(look: &Look, fields: &Fields) -> Vec<Field> {
    let words = look.words;
    [
        ("order_id", words.order, ""),
        ("instance_id", words.instance, ""),
        ("user_id", words.customer, ""),
        ("action", words.action, ""),
        ("since", words.since, words.time_hint),
        ("until", words.until, words.time_hint),
    ]
    .into_iter()
    .map(|(name, label, hint)| Field { name, label, value: fields.text(name).unwrap_or_default(), hint })
    .collect()
}

fn choices(desk: &Desk, look: &Look, fields: &Fields) -> Vec<Choice> {
    let words = look.words;
    let option = |name: &str, value: &str, label: &str| Chosen {
        value: value.to_owned(),
        label: label.to_owned(),
        chosen: fields.get(name) == Some(value),
    };
    let mut apps = desk.app_names();
    // The journal knows apps of the past.
    apps.extend(fields.text("app").filter(|app| !apps.contains(app)));
    let outcomes = [
        ("unanswered", words.unanswered),
        ("unconfirmed", words.unconfirmed),
        ("running", words.running),
        ("done", words.done),
        ("refused", words.refused),
        ("failed", words.open_failed),
        ("open", words.open_decided),
        ("closed", words.closed),
        ("confirmed", words.confirmed),
        ("duplicate_confirmed", words.duplicate),
    ];
    vec![
        Choice { name: "app", label: words.app, options: apps.iter().map(|app| option("app", app, app)).collect() },
        Choice {
            name: "outcome",
            label: words.outcome,
            options: outcomes.map(|(value, label)| option("outcome", value, label)).into(),
        },
    ]
}

/// Where something is found that may be an order, an instance, a customer or an id.
async fn locate(desk: &Desk, named: &str) -> Result<Option<String>, Refusal> {
    let text = || Some(named.to_owned());
    let tries = [
        ("order_id", Filter { order_id: text(), ..Filter::default() }),
        ("instance_id", Filter { instance_id: text(), ..Filter::default() }),
        ("user_id", Filter { user_id: text(), ..Filter::default() }),
    ];
    let ids = select::id(named).ok().map(|id| ("id", Filter { id: Some(id), ..Filter::default() }));
    for (name, filter) in tries.into_iter().chain(ids) {
        let found = Asked { filter, cursor: None, limit: 1 }.browse(desk).await?;
        let Some(record) = found.records.first() else { continue };
        // The only one is what was looked for.
        return Ok(Some(match found.next {
            None => format!("/deliveries/{}", record.entry.key.idempotency_key()),
            Some(_) => format!("/deliveries?{}", Fields::default().query_with(&[(name, named)])),
        }));
    }
    Ok(None)
}

/// A named value, with where it leads.
struct Fact {
    name: &'static str,
    value: String,
    href: String,
}

/// An attempt in the timeline.
struct Turn {
    number: u32,
    tone: &'static str,
    outcome: &'static str,
    began: String,
    began_short: String,
    took: String,
    code: String,
    rule: String,
    detail: String,
    instance: String,
    request: String,
    gateway: String,
}

impl Turn {
    fn new(words: &'static Words, attempt: &Attempt) -> Self {
        let ended = attempt.ended.as_ref();
        let (tone, outcome) = match ended.map(|ended| ended.outcome) {
            None => ("plain", words.attempt_running),
            Some(AttemptOutcome::Confirmed) => ("good", words.attempt_confirmed),
            Some(AttemptOutcome::Refused) => ("plain", words.attempt_refused),
            Some(AttemptOutcome::Failed) => ("warn", words.attempt_failed),
            Some(AttemptOutcome::Unconfirmed) => ("bad", words.attempt_unconfirmed),
            Some(AttemptOutcome::Duplicate) => ("bad", words.duplicate),
        };
        let text = |text: Option<&str>| text.map(plain).unwrap_or_default();
        Self {
            number: attempt.number,
            tone,
            outcome,
            began: format!("{:.3}", attempt.began_at),
            began_short: format!("{:.3}", attempt.began_at).replace('T', " ").replace('Z', ""),
            took: milliseconds(attempt)
                .map(|took| format!("{}.{:03} s", took / 1000, (took % 1000).abs()))
                .unwrap_or_default(),
            code: text(ended.and_then(|ended| ended.code.as_deref())),
            rule: text(ended.and_then(|ended| ended.rule.as_deref())),
            detail: text(ended.and_then(|ended| ended.detail.as_deref())),
            instance: text(ended.and_then(|ended| ended.instance_id.as_deref())),
            request: plain(&attempt.request_id),
            gateway: plain(&attempt.claimant.gateway),
        }
    }
}

/// What an operator decided.
struct Decided {
    what: &'static str,
    at: String,
    at_short: String,
    by: String,
    why: String,
    message: String,
}

#[derive(Template)]
#[template(path = "admin/delivery.html")]
struct DeliveryPage<'a> {
    look: &'a Look,
    row: Row,
    done: &'static str,
    meaning: &'static str,
    actions: Vec<decide::Action>,
    decision: Option<Decided>,
    facts: Vec<Fact>,
    reply: String,
    reply_missing: &'static str,
    attempts: Vec<Turn>,
}

/// `/deliveries/{id}`.
pub(super) async fn show(
    State(desk): State<Desk>,
    look: Look,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Response {
    let (record, reply) = match find(&desk, &id).await {
        Ok(found) => found,
        Err(refusal) => return look.refuse(&refusal, "/deliveries"),
    };
    let (entry, words) = (&record.entry, look.words);
    let fields = Fields::of_query(query.as_deref());
    let mut attempts: Vec<_> = record.attempts().map(|attempt| Turn::new(words, attempt)).collect();
    attempts.reverse();
    let reply_missing = match &reply {
        Reply::None | Reply::Kept(_) => words.no_reply,
        Reply::Removed => words.reply_removed,
        Reply::Lost => words.reply_lost,
    };
    let decision = entry.decision.as_ref().map(|decision| Decided {
        what: decide::label(words, &decision.what),
        at: format!("{:.3}", decision.at),
        at_short: short(decision.at),
        by: decision.by.as_deref().map(plain).unwrap_or_default(),
        why: decision.why.as_deref().map(plain).unwrap_or_default(),
        message: decision.message.as_deref().map(plain).unwrap_or_default(),
    });
    look::page(&DeliveryPage {
        row: Row::new(&desk, words, entry, clock::now()),
        done: if fields.get("decided").is_some() && decision.is_some() { words.decided } else { "" },
        meaning: Means::of(&desk, words, entry).meaning,
        actions: if look.read_only { Vec::new() } else { decide::actions(words, entry, &reply) },
        decision,
        facts: facts(words, entry),
        reply: if let Reply::Kept(reply) = &reply { json::to_lines(reply) } else { String::new() },
        reply_missing,
        attempts,
        look: &look,
    })
}

fn facts(words: &'static Words, entry: &Entry) -> Vec<Fact> {
    let link = |name: &str, value: &str| format!("/deliveries?{}", Fields::default().query_with(&[(name, value)]));
    let made = entry.confirmation.as_ref().and_then(|confirmation| confirmation.instance_id.as_deref());
    let subject = &*entry.subject;
    let mut facts = Vec::new();
    let mut put = |name, value: Option<String>, href: Option<String>| {
        if let Some(value) = value {
            facts.push(Fact { name, value, href: href.unwrap_or_default() });
        }
    };
    for (label, name, value) in [
        (words.app, "app", Some(&*subject.app)),
        (words.action, "action", Some(&*subject.action)),
        (words.order, "order_id", subject.order_id.as_deref()),
        (words.instance, "instance_id", subject.instance_id.as_deref()),
        (words.customer, "user_id", subject.user_id.as_deref()),
    ] {
        put(label, value.map(plain), value.map(|value| link(name, value)));
    }
    put(words.kind, Some(if subject.debug { words.trial } else { words.real }.to_owned()), None);
    put(words.cycle, (entry.cycle > 0).then(|| entry.cycle.to_string()), None);
    put(words.received, Some(short(entry.received_at)), None);
    put(words.confirmed_at, entry.confirmation.as_ref().map(|confirmation| short(confirmation.at)), None);
    put(words.made_instance, made.map(plain), made.map(|made| link("instance_id", made)));
    let answered = entry.answered_at.map(short);
    let answered = answered.or((entry.state == Standing::Done).then(|| words.never.to_owned()));
    put(words.answered_at, answered, None);
    put(words.changed, Some(short(entry.changed_at)), None);
    put(words.identifier, Some(entry.key.idempotency_key()), None);
    facts
}
