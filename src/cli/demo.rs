//! `spigate demo`: a sample backend, the gateway and the platform on loopback, and a table of
//! what each of them saw.

mod backend;

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use comfy_table::{ColumnConstraint, ContentArrangement, Table, Width, presets};
use jiff::{SignedDuration, Timestamp};
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use self::backend::{BROKEN, SLOW, SampleBackend};
use super::signing::{DialectArgs, curl_of};
use super::{Failure, terminal};
use crate::clock;
use crate::config::source::Sources;
use crate::config::{self, Config};
use crate::dialect::mac::SigningKey;
use crate::dialect::reply::Judgement;
use crate::dialect::{ActionKind, Dialect, Presence};
use crate::platform::{self, Order, PATIENCE, Placement, Reply, Signed, Verdict};
use crate::run::Instance;
use crate::server::inherited::Inherited;

/// Arguments of `spigate demo`.
#[derive(Args)]
pub struct Demo {
    /// End after the table; the exit code is 0 only if every step went as it must
    #[arg(long)]
    once: bool,
    /// The gateway's address
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: String,
    #[command(flatten)]
    dialect: DialectArgs,
}

/// Table width that reads well in most terminals and in print, and what each column has of it:
/// four columns with a space on both sides and five lines between and around them.
const WIDTH: u16 = 100;
const PADDING: u16 = 2;
const STEP: u16 = 14;
const SENT: u16 = 22;
const RECEIVED: u16 = 25;
const GOT: u16 = 26;

/// A request of the demo, and what has to come of it.
struct Step {
    title: String,
    path: &'static str,
    action: usize,
    time: Timestamp,
    content: Content,
    /// Status and code that the platform must get.
    expected: (u16, Option<&'static str>),
    /// Whether the backend must hear of it.
    delivered: bool,
}

/// What a step sends.
enum Content {
    /// A query that was signed long ago.
    Published(String),
    /// The dialect's samples, signed now.
    Samples,
    /// The same without a field.
    Without(String),
    /// The same with another signature.
    Flipped,
}

impl Demo {
    /// Runs the command until Ctrl-C, or to the end of the table with `--once`.
    ///
    /// # Errors
    /// A step that did not go as it must.
    pub fn run(&self) -> Result<(), Failure> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Failure::unusable(format!("no runtime: {error}")))?;
        runtime.block_on(self.play())
    }

    async fn play(&self) -> Result<(), Failure> {
        let dialect = Arc::new(self.dialect.load()?);
        let started = SampleBackend::start(Arc::clone(&dialect)).await;
        let (backend, backend_address) =
            started.map_err(|error| Failure::unusable(format!("sample backend: {error}")))?;
        let secret = random_key()?;
        let key = dialect.signing_key(&secret).map_err(|error| Failure::unusable(error.to_string()))?;
        let config = configuration(&dialect, &self.listen, &format!("http://{backend_address}"), &secret)?;
        let gateway = Instance::start(config, Inherited::default(), None).await.map_err(Failure::unusable)?;
        let base = format!("http://{}", gateway.listen);

        let mut script = Script { dialect: &dialect, key: &key, base: &base, now: clock::now(), instance: None };
        let mut table = table();
        let mut wrong = Vec::new();
        for (number, step) in script.steps()?.iter().enumerate() {
            let url = script.url(step)?;
            let reply = platform::call(&url, None, PATIENCE).await;
            let reply = reply.map_err(|error| Failure::negative(format!("{}: {error}", step.title)))?;
            if step.path == SLOW {
                // The platform waits no more: now the backend may answer.
                backend.go_on();
            }
            let received = backend.take_received();
            let problems = step.problems(&dialect, &reply, &received);
            let mark = if problems.is_empty() { "ok" } else { "WRONG" };
            let nothing = || "nothing".to_owned();
            table.add_row([
                format!("{}. {}\n{mark}", number + 1, step.title),
                lines(&sent(&url), SENT),
                received.first().map_or_else(nothing, |request| lines(request, RECEIVED)),
                lines(&got(&reply), GOT),
            ]);
            wrong.extend(problems.into_iter().map(|problem| format!("{}: {problem}", step.title)));
            script.learn(step, &reply);
        }
        terminal::say(&table.to_string());
        if !wrong.is_empty() {
            return Err(Failure::negative(wrong.join("\n")));
        }
        terminal::say("Every step went as it must.");
        if self.once {
            return Ok(());
        }
        let again = Step { time: clock::now(), ..script.step("", ActionKind::Create)? };
        let again = script.sign(&again)?;
        terminal::say(&format!(
            "\nnotify URL   {base}/spi\nadmin        http://{0}/metrics  http://{0}/readyz\nbackend      http://{backend_address}",
            gateway.admin
        ));
        terminal::say(&format!(
            "\nWhat became of each order, and what waits for a decision: the journal page\nhttp://{}/",
            gateway.admin
        ));
        terminal::say(&format!(
            "\nThe purchase once more, signed anew and good for five minutes; the journal answers it:\n{}",
            curl_of(&again, Placement::Query)
        ));
        terminal::say("\nCtrl-C ends.");
        let _ = tokio::signal::ctrl_c().await;
        Ok(())
    }
}

/// What the platform plays.
struct Script<'a> {
    dialect: &'a Dialect,
    key: &'a SigningKey,
    base: &'a str,
    now: Timestamp,
    /// The instance that the purchase made; later steps are about it.
    instance: Option<String>,
}

impl Script<'_> {
    fn steps(&self) -> Result<Vec<Step>, Failure> {
        let mut steps = Vec::new();
        if let Some(published) = self.dialect.published.first() {
            let title = format!("The {}, byte for byte", published.title);
            let content = Content::Published(published.query.clone());
            steps.push(Step { path: "/published", content, ..self.step(&title, ActionKind::Create)? });
        }
        for (kind, title) in [
            (ActionKind::Test, "Connection test"),
            (ActionKind::Create, "Purchase"),
            (ActionKind::Renew, "Renewal"),
            (ActionKind::Upgrade, "Upgrade"),
            (ActionKind::Expire, "Expiry"),
            (ActionKind::Delete, "Deletion"),
        ] {
            // A user's dialect need not have them all.
            if self.dialect.action_of(kind).is_some() {
                steps.push(self.step(title, kind)?);
            }
            if kind == ActionKind::Create {
                let title = "The same purchase again: the recorded answer";
                steps.push(Step { delivered: false, ..self.step(title, kind)? });
            }
        }
        let slow = Step { path: SLOW, ..self.step("Purchase at a slow backend: it runs on", ActionKind::Create)? };
        steps.push(Step { expected: (504, Some("backend_timeout")), ..slow });
        let title = "Its retry: the late answer, no second call";
        steps.push(Step { path: SLOW, delivered: false, ..self.step(title, ActionKind::Create)? });
        steps.push(Step {
            content: Content::Flipped,
            ..self.refused("the signature was changed", (401, "signature_invalid"))?
        });
        if self.dialect.time.is_some() {
            let time = self.now - SignedDuration::from_hours(24);
            steps.push(Step { time, ..self.refused("signed a day ago", (401, "timestamp_expired"))? });
        }
        let create = &self.dialect.actions[self.action(ActionKind::Create)?];
        let mut fields = self.dialect.fields.iter().zip(&create.presence);
        if let Some((field, _)) = fields.find(|(_, presence)| **presence == Presence::Required) {
            let title = format!("signed, but {} is missing", field.name);
            let content = Content::Without(field.name.clone());
            steps.push(Step { content, ..self.refused(&title, (400, "field_missing"))? });
        }
        steps.push(Step {
            path: BROKEN,
            delivered: true,
            ..self.refused("the backend's reply breaks the contract", (502, "backend_contract"))?
        });
        Ok(steps)
    }

    fn step(&self, title: &str, kind: ActionKind) -> Result<Step, Failure> {
        Ok(Step {
            title: title.to_owned(),
            path: "/spi",
            action: self.action(kind)?,
            time: self.now,
            content: Content::Samples,
            expected: (200, None),
            delivered: true,
        })
    }

    fn refused(&self, title: &str, (status, code): (u16, &'static str)) -> Result<Step, Failure> {
        let step = self.step(&format!("Refused: {title}"), ActionKind::Create)?;
        Ok(Step { expected: (status, Some(code)), delivered: false, ..step })
    }

    fn action(&self, kind: ActionKind) -> Result<usize, Failure> {
        let position = self.dialect.actions.iter().position(|action| action.kind == kind);
        position.ok_or_else(|| Failure::unusable("the demo needs a dialect with an action of kind create"))
    }

    fn url(&self, step: &Step) -> Result<String, Failure> {
        match &step.content {
            Content::Published(query) => Ok(format!("{}{}?{query}", self.base, step.path)),
            Content::Flipped => Ok(self.sign(step)?.with_flipped_signature().url(Placement::Query)),
            Content::Samples | Content::Without(_) => Ok(self.sign(step)?.url(Placement::Query)),
        }
    }

    fn sign(&self, step: &Step) -> Result<Signed, Failure> {
        let action = &self.dialect.actions[step.action];
        let mut fields = platform::samples(self.dialect, action, &[]);
        if let Content::Without(field) = &step.content {
            fields.retain(|(name, _)| name != field);
        }
        if let (Some(field), Some(instance)) = (self.dialect.instance, &self.instance) {
            let name = &self.dialect.fields[field].name;
            fields.iter_mut().filter(|(known, _)| known == name).for_each(|(_, value)| value.clone_from(instance));
        }
        let url = format!("{}{}", self.base, step.path);
        let order = Order { dialect: self.dialect, url: &url, action, fields: &fields, time: step.time };
        order.sign(self.key).map_err(|error| Failure::unusable(error.to_string()))
    }

    /// What a purchase made is what the next steps renew, upgrade and delete.
    fn learn(&mut self, step: &Step, reply: &Reply) {
        let contract = &self.dialect.actions[step.action].reply;
        if let Ok(Judgement::Success { instance_id: Some(id) }) = contract.judge(&reply.raw.body) {
            self.instance = Some(id);
        }
    }
}

impl Step {
    fn problems(&self, dialect: &Dialect, reply: &Reply, received: &[String]) -> Vec<String> {
        let mut problems = Vec::new();
        let (status, code) = self.expected;
        let body: serde_json::Value = serde_json::from_slice(&reply.raw.body).unwrap_or_default();
        if reply.raw.status.as_u16() != status {
            problems.push(format!("status {} instead of {status}", reply.raw.status.as_u16()));
        }
        if body.get("code").and_then(serde_json::Value::as_str) != code {
            problems.push(format!("the code is not {}", code.unwrap_or("absent")));
        }
        if received.len() != usize::from(self.delivered) {
            problems.push(format!("the backend was called {} times", received.len()));
        }
        if code.is_none() {
            let (verdict, checks) = platform::judge(&dialect.actions[self.action].reply, reply, PATIENCE);
            if verdict != Verdict::Success {
                let failed = checks.iter().filter(|check| !check.passed);
                problems.extend(failed.map(|check| format!("{}: {}", check.what, check.detail)));
            }
        }
        problems
    }
}

fn random_key() -> Result<String, Failure> {
    let mut bytes = [0; 48];
    getrandom::fill(&mut bytes).map_err(|error| Failure::unusable(format!("no random numbers: {error}")))?;
    Ok(STANDARD.encode(bytes))
}

/// The demo's configuration: one app for the published request, whose age is years, one for
/// fresh requests, one with a backend that breaks the contract, one with a backend that is slower
/// than the platform is patient.
fn configuration(dialect: &Dialect, listen: &str, backend: &str, secret: &str) -> Result<Config, Failure> {
    let quote = |text: &str| serde_json::Value::from(text).to_string();
    let mut text =
        format!("listen.address = {}\nadmin.address = \"127.0.0.1:0\"\njournal.url = \"memory:\"\n", quote(listen));
    let mut app = |name: &str, path: &str, target: &str, key: &str, max_age: &str| {
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "[[apps]]\nname = \"{name}\"\npath = \"{path}\"\ndialect = {}\nkeys = [{{ id = \"{name}\", value = {} }}]\n\
             on_unconfirmed = \"hold\"\n[apps.freshness]\nmax_age = \"{max_age}\"\n[apps.backend]\nurl = \"{backend}{target}\"\n\
             answer_within = \"{}\"\nconnect_timeout = \"1s\"\n",
            quote(&dialect.name),
            quote(key),
            if target == SLOW { "1s" } else { "13s" },
        );
    };
    app("demo", "/spi", "/internal/spi", secret, "5m");
    app("broken", BROKEN, BROKEN, secret, "5m");
    app("slow", SLOW, SLOW, secret, "5m");
    if let Some(published) = dialect.published.first() {
        app("published", "/published", "/internal/spi", &published.key, "36500d");
    }
    let sources = Sources { file: "demo".into(), text, ..Sources::default() };
    let config = config::load(&sources, Path::new("."));
    config.map_err(|problems| {
        Failure::unusable(problems.iter().map(|problem| format!("{problem}\n")).collect::<String>())
    })
}

fn table() -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_FULL)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(WIDTH)
        .set_header(["Step", "The platform sent", "The backend received", "The platform got"]);
    let widths = [STEP, SENT, RECEIVED, GOT].map(|width| ColumnConstraint::Absolute(Width::Fixed(width + PADDING)));
    table.set_constraints(widths);
    table
}

/// The request's target, a parameter a line.
fn sent(url: &str) -> String {
    let (base, query) = url.split_once('?').unwrap_or((url, ""));
    let path = base.splitn(4, '/').nth(3).unwrap_or_default();
    format!("GET /{path}\n{}", query.replace('&', "\n"))
}

/// The reply's status and body.
fn got(reply: &Reply) -> String {
    format!("{}\n{}", reply.raw.status, members(&String::from_utf8_lossy(&reply.raw.body)))
}

/// A JSON object, a member a line; anything else as it is.
fn members(body: &str) -> String {
    match serde_json::from_str::<serde_json::Value>(body) {
        Ok(serde_json::Value::Object(object)) => {
            object.iter().map(|(name, value)| format!("{name}: {value}\n")).collect::<String>().trim_end().to_owned()
        }
        _ => body.to_owned(),
    }
}

/// Text with each line cut to a column's width, so that one parameter is one line.
fn lines(text: &str, width: u16) -> String {
    let cut = |line: &str| {
        let line = terminal::plain(line);
        if line.width() <= usize::from(width) {
            return line;
        }
        let mut used = 1;
        let kept = line.chars().take_while(|char| {
            used += char.width().unwrap_or(0);
            used <= usize::from(width)
        });
        kept.chain(['…']).collect()
    };
    text.lines().map(cut).collect::<Vec<_>>().join("\n")
}
