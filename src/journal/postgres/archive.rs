//! What operators ask for, and housekeeping.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;
use tokio_postgres::Row;

use super::Shared;
use super::claim::{Judge, push_lapsed};
use super::failure::Failure;
use super::finish;
use super::rows::{self, get};
use super::statement::{Statement, text};
use crate::journal::entry::{Attempt, AttemptOutcome, Entry, LEASE_LOST, State};
use crate::journal::key::DeliveryKey;
use crate::journal::machine;
use crate::journal::store::{Counts, Filter, Pruned, Record, Retention, Unavailable, Which};

/// Rows that are looked through in one go.
const PAGE: i64 = 500;
/// Nothing is as old as this, and the server can hold a time that is.
const OLDEST: SignedDuration = SignedDuration::from_hours(1_000 * 366 * 24);
/// The hexadecimal digits of a key's first half, which is the `Idempotency-Key`.
const ID_DIGITS: usize = 32;

/// An entry as it stands: a running attempt whose process has lost its lease is lost.
fn as_it_stands(mut entry: Entry, lapsed: bool, now: Timestamp) -> Entry {
    if lapsed {
        machine::lose(&mut entry, LEASE_LOST, now);
    }
    entry
}

/// Reads an entry, for those who wait in this gateway.
pub(super) async fn look(shared: &Arc<Shared>, key: &DeliveryKey) -> Result<Option<Entry>, Unavailable> {
    let mut sql = Statement::new("SELECT clock_timestamp() AS now, ");
    push_lapsed(&mut sql, shared, Judge::Gateway);
    sql.push(&format!(", {} FROM spigate_deliveries AS d WHERE d.key = ", rows::ENTRY));
    sql.bind(key.as_bytes().to_vec());
    let rows = shared.database.read(sql, shared.database.deadline()).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let (now, lapsed) = (get(row, "now")?, get(row, "lapsed")?);
    Ok(rows::stored(row)?.map(|stored| as_it_stands(stored.entry, lapsed, now)))
}

/// Lists what fits. The conditions of the statement leave out what cannot fit; what does is
/// decided by [`Filter::fits`].
pub(super) async fn list(
    shared: &Arc<Shared>,
    filter: &Filter,
    cursor: Option<i64>,
    limit: usize,
) -> Result<Vec<Record>, Unavailable> {
    let mut found = Vec::new();
    let mut before = cursor.unwrap_or(i64::MAX);
    let Ok(keys) = filter.id.as_deref().map(keys_of).transpose() else { return Ok(found) };
    while found.len() < limit {
        let deadline = shared.database.deadline();
        let mut sql = Statement::new("SELECT clock_timestamp() AS now, ");
        push_lapsed(&mut sql, shared, Judge::Visitor);
        sql.push(&format!(", {} FROM spigate_deliveries AS d WHERE d.id < ", rows::ENTRY)).bind(before);
        push_conditions(&mut sql, filter, keys.clone());
        sql.push(" ORDER BY d.id DESC LIMIT ").bind(PAGE);
        let page = shared.database.read(sql, deadline).await?;
        for record in records(shared, &page, deadline).await? {
            before = record.cursor;
            if found.len() < limit && filter.fits(&record) {
                found.push(record);
            }
        }
        if (page.len() as u64) < PAGE.unsigned_abs() {
            break;
        }
    }
    Ok(found)
}

/// The records of rows with `now`, `lapsed` and [`rows::ENTRY`].
pub(super) async fn records(shared: &Arc<Shared>, page: &[Row], deadline: Instant) -> Result<Vec<Record>, Failure> {
    let mut entries = Vec::with_capacity(page.len());
    for row in page {
        if let Some(stored) = rows::stored(row)? {
            entries.push((stored.id, as_it_stands(stored.entry, get(row, "lapsed")?, get(row, "now")?)));
        }
    }
    let mut histories = histories(shared, &entries, deadline).await?;
    let record = |(id, entry): (i64, Entry)| {
        let mut history = histories.remove(&id).unwrap_or_default();
        // The latest may have become one of the history between the two statements.
        history.retain(|attempt| attempt.number != entry.latest.number);
        Record { cursor: id, entry, history }
    };
    Ok(entries.into_iter().map(record).collect())
}

/// The first and the last key that an id may be the beginning of.
pub(super) fn keys_of(id: &str) -> Result<(Vec<u8>, Vec<u8>), ()> {
    if id.len() > ID_DIGITS || !id.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(());
    }
    let filled = |filling: char| {
        let digits: String = id.chars().chain(std::iter::repeat(filling)).take(2 * ID_DIGITS).collect();
        (0..ID_DIGITS)
            .map(|at| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).map_err(|_| ()))
            .collect::<Result<Vec<u8>, ()>>()
    };
    Ok((filled('0')?, filled('f')?))
}

pub(super) fn push_conditions(sql: &mut Statement, filter: &Filter, keys: Option<(Vec<u8>, Vec<u8>)>) {
    if let Some((first, last)) = keys {
        sql.push(" AND d.key BETWEEN ").bind(first).push(" AND ").bind(last);
    }
    for (column, value) in [("d.app", &filter.app), ("d.action", &filter.action)] {
        if let Some(value) = value {
            sql.push(&format!(" AND {column} = ")).bind(text(value));
        }
    }
    if let Some(user) = &filter.user_id {
        sql.push(" AND ");
        push_equal(sql, "d.user_id", user);
    }
    if let Some(order) = &filter.order_id {
        sql.push(" AND ");
        push_equal(sql, "d.order_id", order);
    }
    if let Some(instance) = &filter.instance_id {
        sql.push(" AND (");
        push_equal(sql, "d.instance_id", instance);
        sql.push(" OR ");
        push_equal(sql, "d.made_instance", instance);
        sql.push(")");
    }
    if let Some(since) = filter.since {
        sql.push(" AND d.received_at >= ").bind(storable(since));
    }
    if let Some(until) = filter.until {
        sql.push(" AND d.received_at < ").bind(storable(until));
    }
    match filter.which {
        Some(Which::Unanswered) => {
            sql.push(" AND d.state = 'done' AND d.answered_at IS NULL");
        }
        // What is stored as running may be lost by now.
        Some(Which::State(State::Unconfirmed)) => {
            sql.push(" AND d.state IN ('running', 'unconfirmed')");
        }
        Some(Which::State(state)) => {
            sql.push(" AND d.state = ").bind(state.as_str().to_owned());
        }
        Some(Which::Attempt(outcome)) => {
            sql.push(" AND (d.outcome = ").bind(outcome.as_str().to_owned());
            sql.push(" OR EXISTS (SELECT 1 FROM spigate_attempts AS a WHERE a.delivery = d.id AND a.outcome = ");
            sql.bind(outcome.as_str().to_owned()).push(")");
            if outcome == AttemptOutcome::Unconfirmed {
                sql.push(" OR d.state = 'running'");
            }
            sql.push(")");
        }
        None => {}
    }
}

/// A text that is indexed by its beginning.
pub(super) fn push_equal(sql: &mut Statement, column: &str, value: &str) {
    let value = text(value);
    sql.push(&format!("(substr({column}, 1, 100) = ")).bind(value.chars().take(100).collect::<String>());
    sql.push(&format!(" AND {column} = ")).bind(value).push(")");
}

async fn histories(
    shared: &Arc<Shared>,
    entries: &[(i64, Entry)],
    deadline: Instant,
) -> Result<HashMap<i64, Vec<Attempt>>, Failure> {
    // Only an attempt after the first has left others in the history.
    let ids: Vec<i64> = entries.iter().filter(|(_, entry)| entry.latest.number > 1).map(|(id, _)| *id).collect();
    let mut histories = HashMap::<i64, Vec<Attempt>>::new();
    if !ids.is_empty() {
        let mut sql = Statement::new(format!("SELECT delivery, {} FROM spigate_attempts", rows::ATTEMPT));
        sql.push(" WHERE delivery = ANY(").bind(ids).push(") ORDER BY delivery, number");
        for row in &shared.database.read(sql, deadline).await? {
            histories.entry(get(row, "delivery")?).or_default().push(rows::attempt(row)?);
        }
    }
    Ok(histories)
}

/// What waits for something. What a gateway that is gone had running may have been executed,
/// whether that is recorded yet or not.
pub(super) async fn counts(shared: &Arc<Shared>) -> Result<Vec<Counts>, Unavailable> {
    // Each part has an index of its own that holds just these rows.
    let mut sql = Statement::new(
        "SELECT app, sum(unconfirmed)::bigint AS unconfirmed, sum(unanswered)::bigint AS unanswered FROM (
             SELECT app, count(*) AS unconfirmed, 0 AS unanswered FROM spigate_deliveries
             WHERE state = 'unconfirmed' GROUP BY app
             UNION ALL
             SELECT app, 0, count(*) FROM spigate_deliveries
             WHERE state = 'done' AND answered_at IS NULL GROUP BY app
             UNION ALL
             SELECT app, 1, 0 FROM (SELECT d.app, ",
    );
    push_lapsed(&mut sql, shared, Judge::Gateway);
    sql.push(
        " FROM spigate_deliveries AS d WHERE d.state = 'running') AS running WHERE lapsed
         ) AS parts GROUP BY app ORDER BY app",
    );
    let rows = shared.database.read(sql, shared.database.deadline()).await?;
    let counts = rows.iter().map(|row| {
        Ok(Counts { app: get(row, "app")?, unconfirmed: get(row, "unconfirmed")?, unanswered: get(row, "unanswered")? })
    });
    Ok(counts.collect::<Result<_, Failure>>()?)
}

/// Removes a batch of what is too old by the server's clock, and records what gateways that are gone have lost.
pub(super) async fn prune(shared: &Arc<Shared>, retention: &Retention) -> Result<Pruned, Unavailable> {
    let batch = i64::try_from(retention.batch).unwrap_or(i64::MAX);
    let before = |sql: &mut Statement, limit: Timestamp| push_before(sql, retention.now, limit);
    lose_lapsed(shared, batch).await?;
    // Whatever another one does to a row while it is waited for is judged again by the outer
    // conditions. Nothing changes before it is received, which is what the index is of.
    let mut sql = Statement::new(
        "UPDATE spigate_deliveries SET reply = NULL, data_key = NULL, version = version + 1
         WHERE reply IS NOT NULL AND state <> 'running' AND changed_at < ",
    );
    before(&mut sql, retention.replies_before);
    sql.push(
        " AND id IN (SELECT id FROM spigate_deliveries WHERE reply IS NOT NULL AND state <> 'running' AND received_at < ",
    );
    before(&mut sql, retention.replies_before);
    sql.push(" AND changed_at < ");
    before(&mut sql, retention.replies_before);
    sql.push(" ORDER BY received_at LIMIT ").bind(batch).push(") RETURNING id");
    let replies = remove(shared, sql).await?;

    let mut sql = Statement::new("DELETE FROM spigate_deliveries WHERE state <> 'running' AND changed_at < ");
    before(&mut sql, retention.history_before);
    sql.push(" AND id IN (SELECT id FROM spigate_deliveries WHERE state <> 'running' AND received_at < ");
    before(&mut sql, retention.history_before);
    sql.push(" AND changed_at < ");
    before(&mut sql, retention.history_before);
    sql.push(" ORDER BY received_at LIMIT ").bind(batch).push(") RETURNING id");
    let deliveries = remove(shared, sql).await?;

    let mut instances = 0;
    for table in ["spigate_instances", "spigate_cycles"] {
        let mut sql = Statement::new(format!("DELETE FROM {table} WHERE touched_at < "));
        before(&mut sql, retention.history_before);
        sql.push(&format!(" AND hash IN (SELECT hash FROM {table} WHERE touched_at < "));
        before(&mut sql, retention.history_before);
        sql.push(" ORDER BY touched_at LIMIT ").bind(batch).push(") RETURNING hash");
        instances += remove(shared, sql).await?;
    }

    let mut sql = Statement::new("DELETE FROM spigate_wraps AS w WHERE w.touched_at < ");
    before(&mut sql, retention.wraps_before);
    sql.push(
        " AND EXISTS (SELECT 1 FROM spigate_wraps AS later WHERE later.data_key = w.data_key AND later.touched_at >= ",
    );
    before(&mut sql, retention.wraps_before);
    sql.push(") RETURNING data_key");
    remove(shared, sql).await?;
    // Long after its end a lease says no more than none does.
    let gateways =
        "DELETE FROM spigate_gateways WHERE lease_until < clock_timestamp() - interval '1 hour' RETURNING id";
    remove(shared, Statement::new(gateways)).await?;
    Ok(Pruned { replies, deliveries, instances })
}

/// A limit of somebody whose clock says `now`, by the server's clock: one gateway whose clock is
/// wrong must not remove what belongs to all. The time of the statement, because that of the moment
/// is no condition that an index could help with.
fn push_before(sql: &mut Statement, now: Timestamp, limit: Timestamp) {
    let age = now.duration_since(limit).min(OLDEST);
    sql.push("now() - interval '1 second' * ").bind(age.as_secs_f64());
}

async fn remove(shared: &Arc<Shared>, statement: Statement) -> Result<usize, Failure> {
    match shared.database.run(statement, shared.database.deadline()).await {
        Ok(rows) => Ok(rows.len()),
        // Another gateway does the same.
        Err(Failure::Race(_)) => Ok(0),
        Err(failure) => Err(failure),
    }
}

/// Records as lost what gateways that are gone had running. A copy of the order would do so too;
/// the operator has to hear of it even if none comes.
async fn lose_lapsed(shared: &Arc<Shared>, batch: i64) -> Result<(), Failure> {
    let deadline = shared.database.deadline();
    let mut sql = Statement::new("SELECT key FROM (SELECT d.id, d.key, ");
    push_lapsed(&mut sql, shared, Judge::Gateway);
    sql.push(" FROM spigate_deliveries AS d WHERE d.state = 'running') AS running WHERE lapsed ORDER BY id LIMIT ");
    sql.bind(batch);
    for row in &shared.database.read(sql, deadline).await? {
        if let Some(key) = DeliveryKey::from_slice(&get::<Vec<u8>>(row, "key")?) {
            match finish::lose(shared, &key, LEASE_LOST, shared.database.deadline()).await {
                Ok(_) | Err(Failure::Race(_)) => {}
                Err(failure) => return Err(failure),
            }
        }
    }
    Ok(())
}

/// A time that the server can hold: its first year is not ours.
pub(super) fn storable(time: Timestamp) -> Timestamp {
    time.max(Timestamp::UNIX_EPOCH)
}
