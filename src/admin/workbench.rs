//! `/workbench`: what `spigate explain` says of a URL, with the keys of the apps. What is pasted is
//! posted, so that no log of anybody has it, and is kept nowhere.

use askama::Template;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;

use super::Desk;
use super::api::{self, Refusal};
use super::deliveries::Chosen;
use super::form::Fields;
use super::look::{self, Look};
use super::words::Words;
use crate::clock;
use crate::dialect::builtin;
use crate::explain::{self, Context, Report, Topic, Unusable};

/// What is asked.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Question {
    url: String,
    app: Option<String>,
    signature_header: Option<String>,
}

struct Line {
    topic: &'static str,
    label: &'static str,
    text: String,
}

struct Shown {
    message: String,
    mistakes: Vec<&'static str>,
    lines: Vec<Line>,
}

#[derive(Template)]
#[template(path = "admin/workbench.html")]
struct WorkbenchPage<'a> {
    look: &'a Look,
    apps: Vec<Chosen>,
    url: &'a str,
    signature_header: &'a str,
    problem: String,
    report: Option<Shown>,
}

/// `GET /workbench`.
pub(super) async fn show(State(desk): State<Desk>, look: Look) -> Response {
    render(&desk, &look, &Question::default(), String::new(), None)
}

/// `POST /workbench`.
pub(super) async fn ask(State(desk): State<Desk>, look: Look, body: Bytes) -> Response {
    let fields = Fields::parse(&body);
    let question = Question {
        url: fields.raw("url").unwrap_or_default().to_owned(),
        app: fields.text("app"),
        signature_header: fields.text("signature_header"),
    };
    match explain(&desk, &question).await {
        Ok(report) => render(&desk, &look, &question, String::new(), Some(report)),
        Err(trouble) => {
            let refusal = trouble.refusal();
            let mut response = render(&desk, &look, &question, trouble.words(look.words).to_owned(), None);
            *response.status_mut() = refusal.status;
            response
        }
    }
}

fn render(desk: &Desk, look: &Look, question: &Question, problem: String, report: Option<Report>) -> Response {
    let words = look.words;
    let line = |(topic, text)| {
        let label = match topic {
            Topic::App => words.topic_app,
            Topic::Dialect => words.topic_dialect,
            Topic::Parameter => words.topic_parameter,
            Topic::Signed => words.topic_signed,
            Topic::Time => words.topic_time,
            Topic::Signature => words.topic_signature,
            Topic::Contract => words.topic_contract,
        };
        Line { topic: topic.as_str(), label, text }
    };
    let shown = report.map(|report| {
        let (message, mistakes) = report.problem.map(|problem| (problem.message, problem.mistakes)).unwrap_or_default();
        Shown { message, mistakes, lines: report.lines.into_iter().map(line).collect() }
    });
    let chosen = question.app.as_deref();
    let option = |app: String| Chosen { chosen: chosen == Some(app.as_str()), value: app.clone(), label: app };
    look::page(&WorkbenchPage {
        look,
        apps: desk.app_names().into_iter().map(option).collect(),
        url: &question.url,
        signature_header: question.signature_header.as_deref().unwrap_or_default(),
        problem,
        report: shown,
    })
}

/// `POST /api/v1/workbench`.
pub(super) async fn ask_json(State(desk): State<Desk>, body: Bytes) -> Result<Response, Refusal> {
    // Never a part of the body: a fresh signature opens a recorded reply.
    let question: Question = serde_json::from_slice(&body)
        .map_err(|_| Refusal::bad_request("the body must be JSON with url, and may have app and signature_header"))?;
    let report = explain(&desk, &question).await.map_err(Trouble::refusal)?;
    let lines = report.lines.iter().map(|(topic, text)| json!({ "topic": topic.as_str(), "text": text }));
    let problem = report.problem.as_ref();
    Ok(api::answer(&json!({
        "accepted": problem.is_none(),
        "lines": lines.collect::<Vec<_>>(),
        "problem": problem.map(|problem| json!({ "message": problem.message, "mistakes": problem.mistakes })),
    })))
}

/// Why nothing is said.
#[derive(Clone, Copy)]
enum Trouble {
    NoQuery,
    NoApp,
    Busy,
}

impl Trouble {
    fn refusal(self) -> Refusal {
        match self {
            Self::NoQuery => Refusal::bad_request("there is no query in url: a URL or a log line with one is needed"),
            Self::NoApp => Refusal::bad_request("there is no such app"),
            Self::Busy => {
                let message = "another question is still being worked on";
                Refusal::new(StatusCode::TOO_MANY_REQUESTS, "busy", message)
            }
        }
    }

    fn words(self, words: &'static Words) -> &'static str {
        match self {
            Self::NoQuery | Self::NoApp => words.no_query,
            Self::Busy => words.too_busy,
        }
    }
}

impl IntoResponse for Trouble {
    fn into_response(self) -> Response {
        self.refusal().into_response()
    }
}

/// Tries keys and mistakes, which takes its time: one question at once, on a thread of its own.
async fn explain(desk: &Desk, question: &Question) -> Result<Report, Trouble> {
    let Ok(turn) = std::sync::Arc::clone(&desk.bench).try_acquire_owned() else { return Err(Trouble::Busy) };
    let served = std::sync::Arc::clone(&desk.admin.served.borrow());
    let now = clock::now();
    let mut apps: Vec<_> = served.apps.values().map(|app| &app.config).collect();
    apps.sort_by(|one, other| one.name.cmp(&other.name));
    apps.retain(|app| question.app.as_ref().is_none_or(|name| *name == app.name));
    if apps.is_empty() {
        return Err(Trouble::NoApp);
    }
    let contexts: Vec<_> = apps.into_iter().map(|app| Context::of(app, now)).collect();
    let (url, header) = (question.url.clone(), question.signature_header.clone());
    let explained = desk.admin.requests.spawn_blocking(move || {
        let _turn = turn;
        // Those that are built in can be read.
        let builtin = builtin::load().unwrap_or_default();
        explain::explain(&url, &contexts, &builtin, header.as_deref(), now)
    });
    match explained.await {
        Ok(Ok(report)) => Ok(report),
        Ok(Err(Unusable::NoQuery)) => Err(Trouble::NoQuery),
        Ok(Err(Unusable::NoKey)) => Err(Trouble::NoApp),
        Err(_) => Err(Trouble::Busy),
    }
}
