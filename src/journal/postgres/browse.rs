//! What the journal page asks for: listings in bounded time, and what became of the latest
//! deliveries.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use super::Shared;
use super::archive::{keys_of, push_conditions, push_equal, records, storable};
use super::claim::{Judge, push_lapsed};
use super::rows::{self, get};
use super::statement::{Statement, text};
use crate::journal::entry::{AttemptOutcome, State};
use crate::journal::store::{Brief, Browsed, Filter, Unavailable, Which};

/// How many entries a bounded search looks at, of those that its index leads to.
const LOOK: i64 = 20_000;
/// Rows that are read in one go, for which the limit is a hint: not all of them need fit.
const PAGE: i64 = 500;
/// How far apart two gateways may record what they received at the same time.
const DISORDER: SignedDuration = SignedDuration::from_mins(5);

/// Lists what fits of so many entries, latest first.
pub(super) async fn browse(
    shared: &Arc<Shared>,
    filter: &Filter,
    cursor: Option<i64>,
    limit: usize,
) -> Result<Browsed, Unavailable> {
    let nothing = Browsed { records: Vec::new(), next: None, stopped_at: None };
    let deadline = shared.database.deadline();
    let Ok(keys) = filter.id.as_deref().map(keys_of).transpose() else { return Ok(nothing) };
    let mut before = cursor.unwrap_or(i64::MAX);
    if let Some(until) = filter.until.and_then(|until| until.checked_add(DISORDER).ok()) {
        before = before.min(first_since(shared, until, deadline).await?.unwrap_or(i64::MAX));
    }
    let lowest = match filter.since.and_then(|since| since.checked_sub(DISORDER).ok()) {
        Some(since) => first_since(shared, since, deadline).await?.unwrap_or(i64::MAX),
        None => i64::MIN,
    };
    let stop = stop(shared, filter, before, deadline).await?.filter(|(id, _)| *id > lowest);
    let floor = stop.map_or(lowest, |(id, _)| id);
    let mut found = Vec::new();
    while found.len() <= limit {
        let mut sql = Statement::new("SELECT clock_timestamp() AS now, ");
        push_lapsed(&mut sql, shared, Judge::Visitor);
        sql.push(&format!(", {} FROM spigate_deliveries AS d WHERE d.id < ", rows::ENTRY)).bind(before);
        sql.push(" AND d.id >= ").bind(floor);
        push_access(&mut sql, filter);
        push_conditions(&mut sql, filter, keys.clone());
        let size = PAGE.min(i64::try_from(limit.saturating_add(1)).unwrap_or(PAGE));
        sql.push(" ORDER BY d.id DESC LIMIT ").bind(size);
        let page = shared.database.read(sql, deadline).await?;
        for record in records(shared, &page, deadline).await? {
            before = record.cursor;
            if filter.fits(&record) {
                found.push(record);
            }
        }
        if (page.len() as u64) < size.unsigned_abs() {
            break;
        }
    }
    let mut browsed = Browsed::full(found, limit);
    if let (None, Some((id, received_at))) = (browsed.next, stop) {
        (browsed.next, browsed.stopped_at) = (Some(id), Some(received_at));
    }
    Ok(browsed)
}

/// Where a search from `before` stops, if it does not reach the end.
async fn stop(
    shared: &Arc<Shared>,
    filter: &Filter,
    before: i64,
    deadline: Instant,
) -> Result<Option<(i64, Timestamp)>, Unavailable> {
    if filter.id.is_some() {
        return Ok(None);
    }
    let mut sql = Statement::new(
        "SELECT id, received_at FROM spigate_deliveries WHERE id = (SELECT d.id FROM spigate_deliveries AS d WHERE d.id < ",
    );
    sql.bind(before);
    push_access(&mut sql, filter);
    sql.push(&format!(" ORDER BY d.id DESC LIMIT 1 OFFSET {LOOK})"));
    let rows = shared.database.read(sql, deadline).await?;
    let row = rows.first().map(|row| Ok::<_, super::Failure>((get(row, "id")?, get(row, "received_at")?))).transpose();
    Ok(row?)
}

/// The part of a filter's conditions that one index decides.
fn push_access(sql: &mut Statement, filter: &Filter) {
    sql.push(" AND ");
    if let Some(order) = &filter.order_id {
        push_equal(sql, "d.order_id", order);
    } else if let Some(instance) = &filter.instance_id {
        sql.push("(");
        push_equal(sql, "d.instance_id", instance);
        sql.push(" OR ");
        push_equal(sql, "d.made_instance", instance);
        sql.push(")");
    } else if let Some(user) = &filter.user_id {
        push_equal(sql, "d.user_id", user);
    } else {
        match filter.which {
            Some(Which::Unanswered) => {
                sql.push("d.state = 'done' AND d.answered_at IS NULL");
            }
            // What is stored as running may be lost by now.
            Some(Which::State(State::Unconfirmed)) => {
                sql.push("d.state IN ('running', 'unconfirmed')");
            }
            Some(Which::State(State::Running)) => {
                sql.push("d.state = 'running'");
            }
            Some(Which::State(State::Open | State::Closed)) => {
                sql.push("(d.number > 1 OR d.outcome <> 'confirmed')");
            }
            Some(Which::Attempt(AttemptOutcome::Unconfirmed)) => {
                sql.push("(d.number > 1 OR d.outcome <> 'confirmed' OR d.state = 'running')");
            }
            Some(Which::Attempt(outcome)) if outcome != AttemptOutcome::Confirmed => {
                sql.push("(d.number > 1 OR d.outcome <> 'confirmed')");
            }
            Some(Which::State(State::Done) | Which::Attempt(_)) | None => match &filter.app {
                Some(app) => {
                    sql.push("d.app = ").bind(text(app));
                }
                None => {
                    sql.push("true");
                }
            },
        }
    }
}

/// The number of the first entry that was received at this time or later.
async fn first_since(shared: &Arc<Shared>, time: Timestamp, deadline: Instant) -> Result<Option<i64>, Unavailable> {
    let mut sql = Statement::new("SELECT id FROM spigate_deliveries WHERE received_at >= ");
    sql.bind(storable(time)).push(" ORDER BY received_at LIMIT 1");
    let rows = shared.database.read(sql, deadline).await?;
    Ok(rows.first().map(|row| get(row, "id")).transpose()?)
}

/// What became of the latest deliveries since a time, latest first.
pub(super) async fn recent(shared: &Arc<Shared>, since: Timestamp, most: usize) -> Result<Vec<Brief>, Unavailable> {
    let mut sql = Statement::new(
        "SELECT app, received_at, state, outcome, began_at, ended_at FROM spigate_deliveries WHERE received_at >= ",
    );
    sql.bind(storable(since)).push(" ORDER BY received_at DESC LIMIT ").bind(i64::try_from(most).unwrap_or(i64::MAX));
    let rows = shared.database.read(sql, shared.database.deadline()).await?;
    let mut found = Vec::with_capacity(rows.len());
    for row in &rows {
        // What another version has written is left out here, and complained of where it is shown.
        let Some(state) = State::named(&get::<String>(row, "state")?) else { continue };
        let outcome = get::<Option<String>>(row, "outcome")?.as_deref().and_then(AttemptOutcome::named);
        let (began, ended): (Timestamp, Option<Timestamp>) = (get(row, "began_at")?, get(row, "ended_at")?);
        found.push(Brief {
            app: get(row, "app")?,
            received_at: get(row, "received_at")?,
            state,
            outcome,
            took_ms: ended.and_then(|ended| i64::try_from(ended.duration_since(began).as_millis()).ok()),
        });
    }
    Ok(found)
}
