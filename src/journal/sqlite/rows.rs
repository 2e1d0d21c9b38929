//! Entries and attempts as rows.

use std::borrow::Cow;
use std::iter;
use std::sync::{Arc, LazyLock};

use jiff::Timestamp;
use rusqlite::types::{FromSqlError, Type, Value};
use rusqlite::{Connection, OptionalExtension as _, Params, Row, ToSql, params, params_from_iter};

use super::browse::Sql;
use super::keys;
use super::session::Session;
use crate::journal::entry::{
    Attempt, AttemptOutcome, Claimant, Confirmation, Ended, Entry, OperatorDecision, Sealed, State, Subject,
};
use crate::journal::key::{DeliveryKey, Extras, Fingerprint, Lookalike, Origin};

/// The columns of an entry, in the order of [`entry_of`].
macro_rules! entry_columns {
    () => {
        "id, number, gateway, claim, request_id, began_at, ended_at, outcome, code, rule, detail, named_instance, \
         key, origin, lookalike, fingerprint, app, action, debug, cycle, order_id, instance_id, user_id, received_at, \
         changed_at, state, doubt, confirmed_at, made_instance, data_key, reply, answered_at, decision, decided_at, \
         message, extras, decided_by, reason"
    };
}

/// The columns of an attempt, in the order of [`attempt_of`]; the first is the delivery.
const ATTEMPT_COLUMNS: &str =
    "delivery, number, gateway, claim, request_id, began_at, ended_at, outcome, code, rule, detail, named_instance";

/// The columns that the end of the latest attempt changes, in the order in which [`put_entry`] gives
/// them.
const ENDING: [&str; 13] = [
    "ended_at",
    "outcome",
    "code",
    "rule",
    "detail",
    "named_instance",
    "changed_at",
    "state",
    "doubt",
    "confirmed_at",
    "made_instance",
    "data_key",
    "reply",
];
/// The others that change, in its order, too.
const CHANGING: [&str; 12] = [
    "number",
    "gateway",
    "claim",
    "request_id",
    "began_at",
    "answered_at",
    "decision",
    "decided_at",
    "message",
    "decided_by",
    "reason",
    "waiting",
];
/// Those that stay, in its order, too.
const FIXED: [&str; 13] = [
    "key",
    "origin",
    "lookalike",
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
];

/// Bytes of a sealed reply of the usual size, and of what else an end adds.
const ROOM: usize = 400;

// By position: SQLite looks names up one by one.
static INSERT: LazyLock<String> = LazyLock::new(|| {
    let columns = [&ENDING[..], &CHANGING[..], &FIXED[..], &["owns", "id"]].concat();
    let places = (1..=columns.len()).map(|place| format!("?{place}")).collect::<Vec<_>>();
    format!("INSERT INTO deliveries ({}) VALUES ({})", columns.join(", "), places.join(", "))
});
/// The same for the first claim of an entry, of which little is known yet. It takes the room that an
/// end mostly needs, so that rows which have filled a page need not be moved when they grow.
static CLAIM: LazyLock<String> = LazyLock::new(|| {
    let places = (1..=FIXED.len()).map(|place| format!("?{place}")).collect::<Vec<_>>();
    let (columns, places) = (FIXED.join(", "), places.join(", "));
    format!(
        "INSERT INTO deliveries ({columns}, began_at, changed_at, number, doubt, state, waiting, room, gateway, claim, \
         request_id, id) VALUES ({places}, ?13, ?13, 1, 0, 'running', 1, zeroblob({ROOM}), ?14, ?15, ?16, ?17)"
    )
});
// What it owns, it owns for good.
static UPDATE: LazyLock<String> = LazyLock::new(|| {
    let columns = [&ENDING[..], &CHANGING[..]].concat();
    let (row, owns) = (columns.len() + 1, columns.len() + 2);
    format!("UPDATE deliveries SET {}, room = NULL, owns = coalesce(owns, ?{owns}) WHERE id = ?{row}", places(&columns))
});
// An attempt's claimant is written as it is, so it can be asked for as well; no other attempt has it.
// Indexes of columns that are not set are left alone, and so that of those that wait.
static END: LazyLock<String> = LazyLock::new(|| {
    format!(
        "UPDATE deliveries SET {}, room = NULL, owns = ?14 WHERE id = ?15 AND state = 'running' AND gateway = ?16 AND claim = ?17",
        places(&ENDING)
    )
});

/// For an end after which nobody has to wait for it.
static UPDATE_RUNNING: LazyLock<String> =
    LazyLock::new(|| format!("{} AND state = 'running' AND gateway = ?15 AND claim = ?16", *UPDATE));

fn places(columns: &[&str]) -> String {
    let places = columns.iter().zip(1..).map(|(column, place)| format!("{column} = ?{place}"));
    places.collect::<Vec<_>>().join(", ")
}

/// An entry and its row's number.
pub(super) type Numbered = (i64, Entry);

/// The entry at a key.
pub(super) fn entry_at(session: &Session<'_>, key: &DeliveryKey) -> rusqlite::Result<Option<Numbered>> {
    let sql = concat!("SELECT ", entry_columns!(), " FROM deliveries WHERE id = ?1 AND key = ?2");
    loop {
        let Some(row) = keys::row_of(session, key)? else { return Ok(None) };
        let values = params![row, key.as_bytes()];
        let found =
            session.with(&session.entry_at, sql, |statement| statement.query_row(values, entry_of).optional())?;
        if found.is_some() || !keys::were_wrong(session, key)? {
            return Ok(found);
        }
    }
}

/// The entry that a key is an alias of.
pub(super) fn entry_of_alias(connection: &Connection, key: &DeliveryKey) -> rusqlite::Result<Option<Numbered>> {
    let sql = concat!(
        "SELECT ",
        entry_columns!(),
        " FROM deliveries WHERE id = (SELECT a.delivery FROM aliases AS a WHERE a.key = ?1)"
    );
    one(connection, sql, [key.as_bytes()])
}

/// The latest entry of this lookalike that the platform was never told of.
pub(super) fn unanswered_lookalike(
    connection: &Connection,
    lookalike: &Lookalike,
) -> rusqlite::Result<Option<Numbered>> {
    let sql = concat!(
        "SELECT ",
        entry_columns!(),
        " FROM deliveries WHERE lookalike = ?1 AND answered_at IS NULL ORDER BY id DESC LIMIT 1"
    );
    one(connection, sql, [lookalike.as_bytes()])
}

fn one(connection: &Connection, sql: &str, parameters: impl Params) -> rusqlite::Result<Option<Numbered>> {
    connection.prepare_cached(sql)?.query_row(parameters, entry_of).optional()
}

/// Entries that the condition lets pass, of the rows that `leads` selects, in its order, until `each`
/// wants no more.
pub(super) fn entries(
    connection: &Connection,
    (leads, which): Sql,
    (condition, values): Sql,
    mut each: impl FnMut(Numbered) -> rusqlite::Result<bool>,
) -> rusqlite::Result<()> {
    // Not one statement with a join, in which SQLite need not keep an order, or would sort them all.
    let mut leads = connection.prepare_cached(&leads)?;
    let sql = format!(concat!("SELECT ", entry_columns!(), " FROM deliveries WHERE id = ? AND {}"), condition);
    let mut entry = connection.prepare_cached(&sql)?;
    let mut rows = leads.query(params_from_iter(which))?;
    while let Some(row) = rows.next()? {
        let row = Value::Integer(row.get(0)?);
        let found = entry.query_row(params_from_iter(iter::once(&row).chain(&values)), entry_of).optional()?;
        if let Some(found) = found
            && !each(found)?
        {
            break;
        }
    }
    Ok(())
}

/// All entries whose latest attempt runs.
pub(super) fn running(connection: &Connection) -> rusqlite::Result<Vec<Numbered>> {
    let sql = concat!("SELECT ", entry_columns!(), " FROM deliveries WHERE waiting IS NOT NULL AND state = 'running'");
    connection.prepare(sql)?.query_map([], entry_of)?.collect()
}

/// Where an entry is to be written.
#[derive(Clone, Copy)]
pub(super) enum Place {
    /// Nowhere yet.
    New,
    /// The row of this number.
    Row(i64),
    /// The same, if the entry's latest attempt still runs there.
    Running(i64),
}

/// Writes an entry. Says in which row, or that the row is not as it should be, or that there is one
/// already. `owns` says that the instance that it names is its own from now on.
pub(super) fn put_entry(
    session: &Session<'_>,
    place: Place,
    entry: &Entry,
    owns: bool,
) -> rusqlite::Result<Option<i64>> {
    let Subject { origin, lookalike, fingerprint, extras, app, action, debug, order_id, instance_id, user_id } =
        &*entry.subject;
    let Attempt { number, claimant, request_id, began_at, ended_at, ended } = &entry.latest;
    let fixed = params![
        entry.key.as_bytes(),
        origin.as_bytes(),
        lookalike.as_ref().map(Lookalike::as_bytes),
        fingerprint.as_bytes(),
        extras.as_bytes(),
        app,
        action,
        debug,
        entry.cycle,
        order_id,
        instance_id,
        user_id,
        entry.received_at.as_millisecond(),
    ];
    let claimant_of = params![claimant.gateway, claimant.number, request_id];
    if matches!(place, Place::New) && is_first_claim(entry) {
        let Some(row) = keys::row_for(session, &entry.key)? else { return Ok(None) };
        let claim: [&[_]; 3] = [fixed, claimant_of, params![row]];
        session.with(&session.claim, &CLAIM, |statement| statement.execute(all(claim)))?;
        keys::wrote(session, entry.key, row);
        return Ok(Some(row));
    }
    let owns = owns.then_some(true);
    let ending = params![
        ended_at.map(Timestamp::as_millisecond),
        ended.as_ref().map(|ended| ended.outcome.as_str()),
        ended.as_ref().and_then(|ended| ended.code.as_deref()),
        ended.as_ref().and_then(|ended| ended.rule.as_deref()),
        ended.as_ref().and_then(|ended| ended.detail.as_deref()),
        ended.as_ref().and_then(|ended| ended.instance_id.as_deref()),
        entry.changed_at.as_millisecond(),
        entry.state.as_str(),
        entry.doubt,
        entry.confirmation.as_ref().map(|confirmation| confirmation.at.as_millisecond()),
        entry.confirmation.as_ref().and_then(|confirmation| confirmation.instance_id.as_deref()),
        entry.reply.as_ref().map(|reply| reply.data_key),
        entry.reply.as_ref().map(|reply| reply.bytes.as_slice()),
    ];
    let is_waiting = waits(entry);
    if let (Place::Running(row), true) = (place, is_waiting) {
        let whose = params![owns, row, claimant.gateway, claimant.number];
        let written = session.with(&session.end, &END, |statement| statement.execute(all([ending, whose])))?;
        return Ok((written == 1).then_some(row));
    }
    let changing = params![
        number,
        claimant.gateway,
        claimant.number,
        request_id,
        began_at.as_millisecond(),
        entry.answered_at.map(Timestamp::as_millisecond),
        entry.decision.as_ref().map(|decision| decision.what.as_str()),
        entry.decision.as_ref().map(|decision| decision.at.as_millisecond()),
        entry.decision.as_ref().and_then(|decision| decision.message.as_deref()),
        entry.decision.as_ref().and_then(|decision| decision.by.as_deref()),
        entry.decision.as_ref().and_then(|decision| decision.why.as_deref()),
        is_waiting.then_some(true),
    ];
    match place {
        Place::New => {
            let Some(row) = keys::row_for(session, &entry.key)? else { return Ok(None) };
            session.prepare_cached(&INSERT)?.execute(all([ending, changing, fixed, params![owns, row]]))?;
            keys::wrote(session, entry.key, row);
            Ok(Some(row))
        }
        Place::Row(row) | Place::Running(row) => {
            let sql = match place {
                Place::Running(_) => &*UPDATE_RUNNING,
                _ => &*UPDATE,
            };
            let written = session.prepare_cached(sql)?.execute(all([ending, changing, params![row, owns]]))?;
            Ok((written == 1).then_some(row))
        }
    }
}

/// Parameters, one list after the other.
fn all<'p, const N: usize>(lists: [&'p [&'p dyn ToSql]; N]) -> impl Params + 'p {
    params_from_iter(lists.into_iter().flatten())
}

/// Whether somebody has to do something about it: the backend, the platform or the operator.
fn waits(entry: &Entry) -> bool {
    match entry.state {
        State::Running | State::Unconfirmed => true,
        State::Done => entry.answered_at.is_none(),
        State::Open | State::Closed => false,
    }
}

/// Whether nothing is known of it but what was asked for.
fn is_first_claim(entry: &Entry) -> bool {
    let latest = &entry.latest;
    entry.state == State::Running
        && (latest.number == 1 && latest.ended.is_none() && latest.ended_at.is_none())
        && (latest.began_at == entry.received_at && entry.changed_at == entry.received_at)
        && !(entry.doubt || entry.confirmation.is_some() || entry.reply.is_some())
        && !(entry.answered_at.is_some() || entry.decision.is_some())
}

/// Writes an attempt into the history of a delivery.
pub(super) fn put_attempt(connection: &Connection, delivery: i64, attempt: &Attempt) -> rusqlite::Result<()> {
    let sql = format!(
        "INSERT OR REPLACE INTO attempts ({ATTEMPT_COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)"
    );
    let ended = attempt.ended.as_ref();
    connection.prepare_cached(&sql)?.execute((
        delivery,
        attempt.number,
        &attempt.claimant.gateway,
        attempt.claimant.number,
        &attempt.request_id,
        attempt.began_at.as_millisecond(),
        attempt.ended_at.map(Timestamp::as_millisecond),
        ended.map(|ended| ended.outcome.as_str()),
        ended.and_then(|ended| ended.code.as_deref()),
        ended.and_then(|ended| ended.rule.as_deref()),
        ended.and_then(|ended| ended.detail.as_deref()),
        ended.and_then(|ended| ended.instance_id.as_deref()),
    ))?;
    Ok(())
}

/// One attempt of a delivery's history.
pub(super) fn attempt(connection: &Connection, delivery: i64, number: u32) -> rusqlite::Result<Option<Attempt>> {
    let sql = format!("SELECT {ATTEMPT_COLUMNS} FROM attempts WHERE delivery = ?1 AND number = ?2");
    connection.prepare_cached(&sql)?.query_row((delivery, number), attempt_of).optional()
}

/// A delivery's history, in order.
pub(super) fn history(connection: &Connection, delivery: i64) -> rusqlite::Result<Vec<Attempt>> {
    let sql = format!("SELECT {ATTEMPT_COLUMNS} FROM attempts WHERE delivery = ?1 ORDER BY number");
    connection.prepare_cached(&sql)?.query_map([delivery], attempt_of)?.collect()
}

/// Reads columns 1 to 11, which entries and attempts have in common.
fn attempt_of(row: &Row<'_>) -> rusqlite::Result<Attempt> {
    let outcome: Option<String> = row.get(7)?;
    let ended = match outcome {
        Some(name) => Some(Ended {
            outcome: AttemptOutcome::named(&name).ok_or_else(|| unknown(7))?,
            code: row.get::<_, Option<String>>(8)?.map(Cow::Owned),
            rule: row.get(9)?,
            detail: row.get(10)?,
            instance_id: row.get(11)?,
        }),
        None => None,
    };
    Ok(Attempt {
        number: row.get(1)?,
        claimant: Claimant { gateway: row.get(2)?, number: row.get(3)? },
        request_id: row.get(4)?,
        began_at: time(row, 5)?,
        ended_at: maybe_time(row, 6)?,
        ended,
    })
}

fn entry_of(row: &Row<'_>) -> rusqlite::Result<Numbered> {
    let hash = |at: usize| row.get::<_, Option<Vec<u8>>>(at);
    let confirmation = match maybe_time(row, 27)? {
        Some(at) => Some(Confirmation { at, instance_id: row.get(28)? }),
        None => None,
    };
    let reply = match (row.get(29)?, row.get(30)?) {
        (Some(data_key), Some(bytes)) => Some(Sealed { data_key, bytes }),
        _ => None,
    };
    let decision = match (row.get(32)?, maybe_time(row, 33)?) {
        (Some(what), Some(at)) => {
            Some(OperatorDecision { what, at, message: row.get(34)?, by: row.get(36)?, why: row.get(37)? })
        }
        _ => None,
    };
    let subject = Subject {
        origin: hash(13)?.and_then(|bytes| Origin::from_slice(&bytes)).ok_or_else(|| unknown(13))?,
        lookalike: hash(14)?.and_then(|bytes| Lookalike::from_slice(&bytes)),
        fingerprint: hash(15)?.and_then(|bytes| Fingerprint::from_slice(&bytes)).ok_or_else(|| unknown(15))?,
        extras: hash(35)?.and_then(|bytes| Extras::from_slice(&bytes)).ok_or_else(|| unknown(35))?,
        app: row.get(16)?,
        action: row.get(17)?,
        debug: row.get(18)?,
        order_id: row.get(20)?,
        instance_id: row.get(21)?,
        user_id: row.get(22)?,
    };
    let entry = Entry {
        key: hash(12)?.and_then(|bytes| DeliveryKey::from_slice(&bytes)).ok_or_else(|| unknown(12))?,
        cycle: row.get(19)?,
        subject: Arc::new(subject),
        received_at: time(row, 23)?,
        changed_at: time(row, 24)?,
        state: State::named(&row.get::<_, String>(25)?).ok_or_else(|| unknown(25))?,
        doubt: row.get(26)?,
        latest: attempt_of(row)?,
        confirmation,
        reply,
        answered_at: maybe_time(row, 31)?,
        decision,
    };
    Ok((row.get(0)?, entry))
}

fn time(row: &Row<'_>, at: usize) -> rusqlite::Result<Timestamp> {
    maybe_time(row, at)?.ok_or_else(|| unknown(at))
}

fn maybe_time(row: &Row<'_>, at: usize) -> rusqlite::Result<Option<Timestamp>> {
    let millis: Option<i64> = row.get(at)?;
    millis.map(|millis| Timestamp::from_millisecond(millis).map_err(|_| unknown(at))).transpose()
}

/// A value that this version does not write: the file was damaged or changed by hand.
fn unknown(column: usize) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Null, Box::new(FromSqlError::InvalidType))
}
