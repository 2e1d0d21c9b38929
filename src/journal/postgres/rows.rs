//! Entries and attempts as rows.

use std::borrow::Cow;
use std::sync::Arc;

use tokio_postgres::Row;
use tokio_postgres::types::FromSqlOwned;

use super::failure::Failure;
use super::statement::{Statement, text};
use crate::journal::entry::{
    Attempt, AttemptOutcome, Claimant, Confirmation, Ended, Entry, OperatorDecision, Sealed, State, Subject,
};
use crate::journal::key::{DeliveryKey, Extras, Fingerprint, Lookalike, Origin};

/// The columns of an attempt. A delivery has them too, for its latest.
macro_rules! attempt_columns {
    ($prefix:literal) => {
        concat!(
            $prefix,
            "number, ",
            $prefix,
            "gateway, ",
            $prefix,
            "claim, ",
            $prefix,
            "request_id, ",
            $prefix,
            "began_at, ",
            $prefix,
            "ended_at, ",
            $prefix,
            "outcome, ",
            $prefix,
            "code, ",
            $prefix,
            "rule, ",
            $prefix,
            "detail, ",
            $prefix,
            "named_instance"
        )
    };
}

/// The columns of an attempt.
pub(super) const ATTEMPT: &str = attempt_columns!("");

/// The columns of a delivery called `d`.
pub(super) const ENTRY: &str = concat!(
    "d.id, d.version, d.awaited, d.key, d.origin, d.lookalike, d.fingerprint, d.extras, d.app, d.action, d.debug, d.cycle, \
     d.order_id, d.instance_id, d.user_id, d.received_at, d.changed_at, d.state, d.doubt, d.confirmed_at, \
     d.made_instance, d.data_key, d.reply, d.answered_at, d.decision, d.decided_at, d.message, d.decided_by, \
     d.reason, ",
    attempt_columns!("d.")
);

/// The columns that are written when an entry is made; those that are written again whenever it
/// changes come after the first [`FIXED`]. `answered_at` and `awaited` are neither: they are
/// written on their own, so that they need no place in the order of changes. But a change after which
/// an entry is unanswered again says so, and whether it still has its lookalike.
pub(super) const WRITTEN: [&str; 37] = [
    "key",
    "origin",
    "fingerprint",
    "extras",
    "app",
    "action",
    "debug",
    "cycle",
    "order_id",
    "instance_id",
    "user_id",
    "received_at",
    "lookalike",
    "version",
    "changed_at",
    "state",
    "doubt",
    "number",
    "gateway",
    "claim",
    "request_id",
    "began_at",
    "ended_at",
    "outcome",
    "code",
    "rule",
    "detail",
    "named_instance",
    "confirmed_at",
    "made_instance",
    "data_key",
    "reply",
    "decision",
    "decided_at",
    "message",
    "decided_by",
    "reason",
];

/// How many of [`WRITTEN`] do not change as a rule.
pub(super) const FIXED: usize = 13;

/// An entry and what belongs to its row.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) id: i64,
    /// Counts its changes.
    pub(super) version: i64,
    /// Whether a copy waited for its end, in this process or another.
    pub(super) awaited: bool,
    pub(super) entry: Entry,
}

/// The values of [`WRITTEN`].
pub(super) fn bind_entry(statement: &mut Statement, entry: &Entry, version: i64) {
    let subject = &*entry.subject;
    let optional = |value: &Option<Arc<str>>| value.as_deref().map(text);
    statement.bind(entry.key.as_bytes().to_vec()).push(", ");
    statement.bind(subject.origin.as_bytes().to_vec()).push(", ");
    statement.bind(subject.fingerprint.as_bytes().to_vec()).push(", ");
    statement.bind(subject.extras.as_bytes().to_vec()).push(", ");
    statement.bind(text(&subject.app)).push(", ").bind(text(&subject.action)).push(", ");
    statement.bind(subject.debug).push(", ").bind(i64::from(entry.cycle)).push(", ");
    statement.bind(optional(&subject.order_id)).push(", ").bind(optional(&subject.instance_id)).push(", ");
    statement.bind(optional(&subject.user_id)).push(", ").bind(entry.received_at).push(", ");
    statement.bind(subject.lookalike.map(|lookalike| lookalike.as_bytes().to_vec())).push(", ");
    statement.bind(version).push(", ").bind(entry.changed_at).push(", ");
    statement.bind(entry.state.as_str().to_owned()).push(", ").bind(entry.doubt).push(", ");
    bind_attempt(statement, &entry.latest);
    statement.push(", ").bind(entry.confirmation.as_ref().map(|confirmation| confirmation.at));
    let made = entry.confirmation.as_ref().and_then(|confirmation| confirmation.instance_id.as_deref());
    statement.push(", ").bind(made.map(text));
    statement.push(", ").bind(entry.reply.as_ref().map(|reply| reply.data_key));
    statement.push(", ").bind(entry.reply.as_ref().map(|reply| reply.bytes.clone()));
    let decision = entry.decision.as_ref();
    statement.push(", ").bind(decision.map(|decision| text(&decision.what)));
    statement.push(", ").bind(decision.map(|decision| decision.at));
    statement.push(", ").bind(decision.and_then(|decision| decision.message.as_deref()).map(text));
    statement.push(", ").bind(decision.and_then(|decision| decision.by.as_deref()).map(text));
    statement.push(", ").bind(decision.and_then(|decision| decision.why.as_deref()).map(text));
}

/// The values of [`ATTEMPT`].
pub(super) fn bind_attempt(statement: &mut Statement, attempt: &Attempt) {
    let ended = attempt.ended.as_ref();
    let of = |part: fn(&Ended) -> Option<&str>| ended.and_then(part).map(text);
    statement.bind(i64::from(attempt.number)).push(", ");
    statement.bind(text(&attempt.claimant.gateway)).push(", ").bind(attempt.claimant.number).push(", ");
    statement.bind(text(&attempt.request_id)).push(", ").bind(attempt.began_at).push(", ");
    statement.bind(attempt.ended_at).push(", ");
    statement.bind(ended.map(|ended| ended.outcome.as_str().to_owned())).push(", ");
    statement.bind(of(|ended| ended.code.as_deref())).push(", ").bind(of(|ended| ended.rule.as_deref())).push(", ");
    statement.bind(of(|ended| ended.detail.as_deref())).push(", ").bind(of(|ended| ended.instance_id.as_deref()));
}

/// The entry of a row with [`ENTRY`]; `None` if an outer join found none.
pub(super) fn stored(row: &Row) -> Result<Option<Stored>, Failure> {
    let Some(id) = get::<Option<i64>>(row, "id")? else { return Ok(None) };
    let confirmation = get::<Option<_>>(row, "confirmed_at")?
        .map(|at| Ok(Confirmation { at, instance_id: maybe(row, "made_instance")? }))
        .transpose()?;
    let reply = match (get(row, "data_key")?, get(row, "reply")?) {
        (Some(data_key), Some(bytes)) => Some(Sealed { data_key, bytes }),
        _ => None,
    };
    let decision = match (get(row, "decision")?, get(row, "decided_at")?) {
        (Some(what), Some(at)) => {
            let (message, by, why) = (get(row, "message")?, get(row, "decided_by")?, get(row, "reason")?);
            Some(OperatorDecision { what, at, message, by, why })
        }
        _ => None,
    };
    let hash = |name| get::<Vec<u8>>(row, name);
    let lookalike = get::<Option<Vec<u8>>>(row, "lookalike")?;
    let subject = Subject {
        origin: Origin::from_slice(&hash("origin")?).ok_or_else(|| unknown("origin"))?,
        lookalike: lookalike.and_then(|bytes| Lookalike::from_slice(&bytes)),
        fingerprint: Fingerprint::from_slice(&hash("fingerprint")?).ok_or_else(|| unknown("fingerprint"))?,
        extras: Extras::from_slice(&hash("extras")?).ok_or_else(|| unknown("extras"))?,
        app: shared(row, "app")?,
        action: shared(row, "action")?,
        debug: get(row, "debug")?,
        order_id: maybe(row, "order_id")?,
        instance_id: maybe(row, "instance_id")?,
        user_id: maybe(row, "user_id")?,
    };
    let entry = Entry {
        key: DeliveryKey::from_slice(&hash("key")?).ok_or_else(|| unknown("key"))?,
        cycle: count(row, "cycle")?,
        subject: Arc::new(subject),
        received_at: get(row, "received_at")?,
        changed_at: get(row, "changed_at")?,
        state: State::named(&get::<String>(row, "state")?).ok_or_else(|| unknown("state"))?,
        doubt: get(row, "doubt")?,
        latest: attempt(row)?,
        confirmation,
        reply,
        answered_at: get(row, "answered_at")?,
        decision,
    };
    Ok(Some(Stored { id, version: get(row, "version")?, awaited: get(row, "awaited")?, entry }))
}

/// The attempt of a row with [`ATTEMPT`].
pub(super) fn attempt(row: &Row) -> Result<Attempt, Failure> {
    let ended = match get::<Option<String>>(row, "outcome")? {
        None => None,
        Some(outcome) => Some(Ended {
            outcome: AttemptOutcome::named(&outcome).ok_or_else(|| unknown("outcome"))?,
            code: get::<Option<String>>(row, "code")?.map(Cow::Owned),
            rule: get(row, "rule")?,
            detail: get(row, "detail")?,
            instance_id: maybe(row, "named_instance")?,
        }),
    };
    Ok(Attempt {
        number: count(row, "number")?,
        claimant: Claimant { gateway: shared(row, "gateway")?, number: get(row, "claim")? },
        request_id: shared(row, "request_id")?,
        began_at: get(row, "began_at")?,
        ended_at: get(row, "ended_at")?,
        ended,
    })
}

/// A value of a row.
pub(super) fn get<T: FromSqlOwned>(row: &Row, name: &'static str) -> Result<T, Failure> {
    row.try_get(name).map_err(|_| unknown(name))
}

fn shared(row: &Row, name: &'static str) -> Result<Arc<str>, Failure> {
    get::<String>(row, name).map(Arc::from)
}

fn maybe(row: &Row, name: &'static str) -> Result<Option<Arc<str>>, Failure> {
    Ok(get::<Option<String>>(row, name)?.map(Arc::from))
}

pub(super) fn count(row: &Row, name: &'static str) -> Result<u32, Failure> {
    u32::try_from(get::<i64>(row, name)?).map_err(|_| unknown(name))
}

/// A value that this version does not write: the table was changed by hand.
fn unknown(name: &str) -> Failure {
    Failure::Unreadable(format!("the column {name} of a table of the journal holds a value that is not known"))
}
