//! Ends of attempts, and what operators decide: read, ask the machine, compare and swap.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::time::Instant;

use super::Shared;
use super::claim::{Judge, push_lapsed};
use super::failure::Failure;
use super::rows::{self, Stored, get};
use super::statement::Statement;
use super::write::{self, Base};
use crate::journal::entry::{Attempt, End, Ending, Entry, Subject};
use crate::journal::key::DeliveryKey;
use crate::journal::machine::{self, Change, Finished, Resolution, Ruling};
use crate::journal::store::{Resolved, Unavailable};

/// An entry, with what has to be known to change it.
struct Seen {
    now: Timestamp,
    lapsed: bool,
    taken: bool,
    known: Option<Stored>,
}

/// Records the end of an attempt. Telling it again changes nothing, so that a connection that
/// breaks is a reason to look again.
pub(super) async fn finish(shared: &Arc<Shared>, end: &End) -> Result<(Finished, Arc<Entry>), Unavailable> {
    let began = Instant::now();
    let mut deadline = began + shared.database.patience().statement;
    let mut raced = false;
    while Instant::now() < deadline {
        let claimed = match &end.ending {
            Ending::Confirmed { instance_id: Some(id), .. } => Some((&**id, &*end.ask.subject)),
            _ => None,
        };
        let seen = see(shared, &end.key, claimed, Judge::Gateway, deadline).await?;
        let earlier = match &seen.known {
            Some(stored) if stored.entry.latest.number != end.attempt => {
                earlier(shared, stored.id, end.attempt, deadline).await?
            }
            _ => None,
        };
        let end = End { now: seen.now, ..end.clone() };
        let version = seen.known.as_ref().map_or(0, |stored| stored.version);
        let entry = seen.known.map(|stored| Arc::new(stored.entry));
        let anew = entry.is_none();
        let (finished, mut entry, change) = machine::finish(entry, earlier, seen.taken, &end);
        if anew && raced {
            // Another request took this one's place as the one that lookalikes join.
            Arc::make_mut(&mut entry).give_way();
        }
        if !change.entry {
            return Ok((finished, entry));
        }
        give_way(shared, Arc::make_mut(&mut entry), &change, deadline).await?;
        match put(shared, &entry, version, &change, deadline).await {
            Ok(true) => return Ok((finished, entry)),
            Ok(false) => {}
            Err(Failure::Race(_)) => raced = true,
            Err(Failure::Unknown(_)) => deadline = began + shared.database.patience().settle,
            Err(failure) => return Err(failure.into()),
        }
    }
    Err(Unavailable::new("not recorded in time"))
}

/// Records what an operator decided.
pub(super) async fn resolve(
    shared: &Arc<Shared>,
    key: &DeliveryKey,
    ruling: &Ruling,
) -> Result<Option<Resolved>, Unavailable> {
    let began = Instant::now();
    let mut deadline = began + shared.database.patience().statement;
    let mut in_doubt: Option<Entry> = None;
    while Instant::now() < deadline {
        let Some(known) = shared.stored_at(key, deadline).await? else { return Ok(None) };
        let entry = known.entry;
        let claimed = match &ruling.resolution {
            Resolution::Done { instance_id: Some(id), .. } => Some((&**id, &*entry.subject)),
            _ => None,
        };
        let seen = see(shared, key, claimed, Judge::Visitor, deadline).await?;
        let Some(stored) = seen.known else { return Ok(None) };
        if in_doubt.as_ref() == Some(&stored.entry) {
            return Ok(Some(Ok(stored.entry)));
        }
        let (mut entry, change) = match machine::resolve(stored.entry, seen.lapsed, seen.taken, ruling, seen.now) {
            Ok(resolved) => resolved,
            Err(unresolvable) => return Ok(Some(Err(unresolvable))),
        };
        give_way(shared, &mut entry, &change, deadline).await?;
        match put(shared, &entry, stored.version, &change, deadline).await {
            Ok(true) => return Ok(Some(Ok(entry))),
            Ok(false) | Err(Failure::Race(_)) => {}
            Err(Failure::Unknown(_)) => {
                in_doubt = Some(entry);
                deadline = began + shared.database.patience().settle;
            }
            Err(failure) => return Err(failure.into()),
        }
    }
    Err(Unavailable::new("not recorded in time"))
}

/// Records that an attempt was lost, if it still is the latest. Says whether it did.
pub(super) async fn lose(
    shared: &Arc<Shared>,
    key: &DeliveryKey,
    code: &'static str,
    deadline: Instant,
) -> Result<bool, Failure> {
    let seen = see(shared, key, None, Judge::Gateway, deadline).await?;
    let Some(Stored { mut entry, version, .. }) = seen.known.filter(|_| seen.lapsed) else { return Ok(false) };
    machine::lose(&mut entry, code, seen.now);
    put(shared, &entry, version, &Change { entry: true, ..Change::default() }, deadline).await
}

/// What is unanswered again leaves lookalikes to another one that is: the index has room for one. If
/// that one comes in between, the index refuses the change, and it is looked at again.
async fn give_way(shared: &Shared, entry: &mut Entry, change: &Change, deadline: Instant) -> Result<(), Failure> {
    let (true, Some(lookalike)) = (change.unanswered, &entry.subject.lookalike) else { return Ok(()) };
    let mut sql = Statement::new("SELECT 1 FROM spigate_deliveries WHERE lookalike = ");
    sql.bind(lookalike.as_bytes().to_vec()).push(" AND answered_at IS NULL AND key <> ");
    sql.bind(entry.key.as_bytes().to_vec());
    if !shared.database.read(sql, deadline).await?.is_empty() {
        entry.give_way();
    }
    Ok(())
}

/// Writes a change, and tells those who wait for it.
async fn put(
    shared: &Arc<Shared>,
    entry: &Entry,
    version: i64,
    change: &Change,
    deadline: Instant,
) -> Result<bool, Failure> {
    let statement = write::write(entry, &Base { version, cycle: entry.cycle, leased: None }, change);
    let rows = shared.database.run(statement, deadline).await?;
    let Some(row) = rows.first() else { return Ok(false) };
    shared.waiting.wake(&entry.key);
    if get(row, "awaited")? {
        shared.notify(entry.key);
    }
    Ok(true)
}

/// The entry at a key; `claimed` is an instance id and what claims it.
async fn see(
    shared: &Arc<Shared>,
    key: &DeliveryKey,
    claimed: Option<(&str, &Subject)>,
    judge: Judge,
    deadline: Instant,
) -> Result<Seen, Failure> {
    let mut sql = Statement::new("SELECT clock_timestamp() AS now, ");
    match claimed {
        Some((instance, subject)) => write::push_taken(&mut sql, instance, subject),
        None => {
            sql.push("false");
        }
    }
    sql.push(" AS taken, ");
    push_lapsed(&mut sql, shared, judge);
    sql.push(&format!(", {} FROM (SELECT 1) AS one LEFT JOIN spigate_deliveries AS d ON d.key = ", rows::ENTRY));
    sql.bind(key.as_bytes().to_vec());
    let rows = shared.database.read(sql, deadline).await?;
    let row = rows.first().ok_or_else(|| Failure::Unwritten("the server answered without a row".into()))?;
    Ok(Seen {
        now: get(row, "now")?,
        lapsed: get::<Option<bool>>(row, "lapsed")?.unwrap_or(false),
        taken: get(row, "taken")?,
        known: rows::stored(row)?,
    })
}

/// An attempt before the latest.
async fn earlier(
    shared: &Arc<Shared>,
    delivery: i64,
    number: u32,
    deadline: Instant,
) -> Result<Option<Attempt>, Failure> {
    let mut sql = Statement::new(format!("SELECT {} FROM spigate_attempts WHERE delivery = ", rows::ATTEMPT));
    sql.bind(delivery).push(" AND number = ").bind(i64::from(number));
    let rows = shared.database.read(sql, deadline).await?;
    rows.first().map(rows::attempt).transpose()
}
