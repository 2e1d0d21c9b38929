//! A delivery as it is shown and exported: JSON with the same members for each, replies without
//! their credentials.

use std::fmt;

use jiff::Timestamp;
use serde::{Serialize, Serializer};
use serde_json::Value;

use super::entry::{Attempt, AttemptOutcome, Entry};
use super::redact::redact;
use super::store::{Keys, Record, Unavailable};
use super::vault::{Opened, Vault};

/// A delivery. Every member is always there; `reply` and `reply_missing` only with replies.
#[derive(Serialize)]
pub struct View<'r> {
    id: String,
    app: &'r str,
    action: &'r str,
    debug: bool,
    cycle: u32,
    order_id: Option<&'r str>,
    instance_id: Option<&'r str>,
    user_id: Option<&'r str>,
    received_at: Time,
    changed_at: Time,
    state: &'static str,
    attempts: Vec<AttemptView<'r>>,
    confirmation: Option<ConfirmationView<'r>>,
    answered_at: Option<Time>,
    decision: Option<DecisionView<'r>>,
    #[serde(flatten)]
    reply: Option<ReplyView>,
}

#[derive(Serialize)]
struct AttemptView<'r> {
    number: u32,
    began_at: Time,
    ended_at: Option<Time>,
    duration_ms: Option<i64>,
    outcome: Option<&'static str>,
    code: Option<&'r str>,
    rule: Option<&'r str>,
    detail: Option<&'r str>,
    instance_id: Option<&'r str>,
    request_id: &'r str,
    gateway: &'r str,
}

#[derive(Serialize)]
struct ConfirmationView<'r> {
    at: Time,
    instance_id: Option<&'r str>,
}

#[derive(Serialize)]
struct DecisionView<'r> {
    what: &'r str,
    at: Time,
    message: Option<&'r str>,
    by: Option<&'r str>,
    why: Option<&'r str>,
}

#[derive(Serialize)]
struct ReplyView {
    reply: Option<Value>,
    reply_missing: Option<&'static str>,
}

impl<'r> View<'r> {
    /// A delivery without its reply.
    pub fn new(record: &'r Record) -> Self {
        let (entry, subject) = (&record.entry, &*record.entry.subject);
        let confirmation = entry.confirmation.as_ref();
        Self {
            id: entry.key.idempotency_key(),
            app: &subject.app,
            action: &subject.action,
            debug: subject.debug,
            cycle: entry.cycle,
            order_id: subject.order_id.as_deref(),
            instance_id: subject.instance_id.as_deref(),
            user_id: subject.user_id.as_deref(),
            received_at: Time(entry.received_at),
            changed_at: Time(entry.changed_at),
            state: entry.state.as_str(),
            attempts: record.attempts().map(AttemptView::new).collect(),
            confirmation: confirmation
                .map(|known| ConfirmationView { at: Time(known.at), instance_id: known.instance_id.as_deref() }),
            answered_at: entry.answered_at.map(Time),
            decision: entry.decision.as_ref().map(|decision| DecisionView {
                what: &decision.what,
                at: Time(decision.at),
                message: decision.message.as_deref(),
                by: decision.by.as_deref(),
                why: decision.why.as_deref(),
            }),
            reply: None,
        }
    }

    /// The same with its reply.
    #[must_use]
    pub fn with_reply(self, reply: &Reply) -> Self {
        let (reply, reply_missing) = match reply {
            Reply::None => (None, None),
            Reply::Kept(reply) => (Some(reply.clone()), None),
            Reply::Removed | Reply::Lost => (None, reply.missing()),
        };
        Self { reply: Some(ReplyView { reply, reply_missing }), ..self }
    }
}

impl<'r> AttemptView<'r> {
    fn new(attempt: &'r Attempt) -> Self {
        let ended = attempt.ended.as_ref();
        Self {
            number: attempt.number,
            began_at: Time(attempt.began_at),
            ended_at: attempt.ended_at.map(Time),
            duration_ms: milliseconds(attempt),
            outcome: ended.map(|ended| ended.outcome.as_str()),
            code: ended.and_then(|ended| ended.code.as_deref()),
            rule: ended.and_then(|ended| ended.rule.as_deref()),
            detail: ended.and_then(|ended| ended.detail.as_deref()),
            instance_id: ended.and_then(|ended| ended.instance_id.as_deref()),
            request_id: &attempt.request_id,
            gateway: &attempt.claimant.gateway,
        }
    }
}

/// How long an attempt took, once it has ended.
pub fn milliseconds(attempt: &Attempt) -> Option<i64> {
    let took = attempt.ended_at?.duration_since(attempt.began_at);
    i64::try_from(took.as_millis()).ok()
}

/// A recorded reply, as far as it can be shown.
#[derive(Clone, PartialEq)]
pub enum Reply {
    /// There is none: the backend gave no valid answer yet.
    None,
    /// This.
    Kept(Value),
    /// It was too old.
    Removed,
    /// No configured key opens it, or it is damaged.
    Lost,
}

impl Reply {
    /// Opens the reply of a delivery; without `reveal`, what looks like a credential is hidden.
    ///
    /// # Errors
    /// A journal that cannot be read.
    pub async fn of(store: &dyn Keys, vault: &Vault, entry: &Entry, reveal: bool) -> Result<Self, Unavailable> {
        let Some(sealed) = &entry.reply else {
            let refused = entry.latest.ended.as_ref().is_some_and(|ended| ended.outcome == AttemptOutcome::Refused);
            return Ok(if refused || entry.confirmation.is_some() { Self::Removed } else { Self::None });
        };
        Ok(match vault.open(store, &entry.subject.app, &entry.key, sealed).await? {
            Opened::Lost => Self::Lost,
            Opened::Reply(reply) => match serde_json::from_slice(&reply) {
                Ok(mut value) => {
                    if !reveal {
                        redact(&mut value);
                    }
                    Self::Kept(value)
                }
                // It was judged before it was recorded.
                Err(_) => Self::Lost,
            },
        })
    }

    /// Why there is none to show although there was one.
    pub fn missing(&self) -> Option<&'static str> {
        match self {
            Self::None | Self::Kept(_) => None,
            Self::Removed => Some("removed by retention"),
            Self::Lost => Some("cannot be opened by any configured key"),
        }
    }
}

/// Says whether there is one, and nothing of it.
impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Kept(_) => "Kept(…)",
            Self::Removed => "Removed",
            Self::Lost => "Lost",
        })
    }
}

/// RFC 3339 with milliseconds, in UTC.
struct Time(Timestamp);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:.3}", self.0))
    }
}
