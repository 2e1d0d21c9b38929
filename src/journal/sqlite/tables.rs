//! What the store does with its tables, each within a transaction of the writer.

use std::sync::Arc;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Row};

use super::rows::{self, Numbered, Place};
use super::session::Session;
use super::{keys, names};
use crate::journal::entry::{Ask, End, Ending, Entry, Lifecycle, PROCESS_ENDED, State, Subject};
use crate::journal::key::{DeliveryKey, Origin};
use crate::journal::machine::{self, Change, Claimed, CycleChange, Decision, Finished, Resolution, Ruling, Step};
use crate::journal::store::{Counts, DataKey, Pruned, Resolved, Retention, Wrap};

pub(super) fn claim(session: &Session<'_>, ask: &Ask) -> rusqlite::Result<Claimed> {
    // Nearly always nobody has asked before, and writing it finds out whether somebody has.
    let mut is_to_look = ask.subject.lookalike.is_some();
    loop {
        let cycle = match (ask.lifecycle, &ask.subject.instance_id) {
            (Lifecycle::Ends { .. }, Some(instance)) => cycle(session, &ask.subject.app, instance)?,
            _ => 0,
        };
        let key = ask.base.in_cycle(cycle);
        let known = if is_to_look { find(session, ask, &key)? } else { None };
        if let Some(claimed) = claim_at(session, known, ask, key, cycle)? {
            return Ok(claimed);
        }
        is_to_look = true;
    }
}

/// The entry that a claim is about.
fn find(session: &Session<'_>, ask: &Ask, key: &DeliveryKey) -> rusqlite::Result<Option<Numbered>> {
    let known = rows::entry_at(session, key)?;
    let (None, Some(lookalike)) = (&known, &ask.subject.lookalike) else { return Ok(known) };
    let alias = rows::entry_of_alias(session, key)?;
    if alias.is_some() { Ok(alias) } else { rows::unanswered_lookalike(session, lookalike) }
}

/// Claims, given what is known. `None`: more is known by now, or the next cycle has begun.
fn claim_at(
    session: &Session<'_>,
    known: Option<Numbered>,
    ask: &Ask,
    key: DeliveryKey,
    cycle: u32,
) -> rusqlite::Result<Option<Claimed>> {
    let (row, entry) = known.unzip();
    // One process, whose lease cannot be lost while it asks.
    let (claimed, change) = match machine::claim(entry, false, ask, key, cycle) {
        Step::Decided(claimed, change) => (claimed, change),
        Step::NextCycle => {
            raise(session, &ask.subject, 1, ask.now)?;
            return Ok(None);
        }
    };
    let Some(row) = write(session, row.map_or(Place::New, Place::Row), &claimed.entry, &change)? else {
        return Ok(None);
    };
    if claimed.decision == Decision::Forward {
        session.recent.claimed(row, &claimed.entry);
    }
    Ok(Some(claimed))
}

pub(super) fn finish(session: &Session<'_>, end: &End) -> rusqlite::Result<(Finished, Arc<Entry>)> {
    // Nearly always the entry is as it was claimed a moment ago. If it is not, nothing is written.
    if let Some((row, entry)) = session.recent.claim_of(end) {
        let taken = names_taken(session, end, &entry.subject)?;
        let (finished, entry, change) = machine::finish(Some(entry), None, taken, end);
        if write(session, Place::Running(row), &entry, &change)?.is_some() {
            return Ok((finished, entry));
        }
    }
    let (row, entry) = rows::entry_at(session, &end.key)?.unzip();
    let earlier = match (row, &entry) {
        (Some(row), Some(entry)) if entry.latest.number != end.attempt => rows::attempt(session, row, end.attempt)?,
        _ => None,
    };
    // Copies without an order number have origins of their own; the delivery has its first's.
    let subject = entry.as_ref().map_or(&end.ask.subject, |entry| &entry.subject);
    let taken = names_taken(session, end, subject)?;
    let (finished, mut entry, change) = machine::finish(entry.map(Arc::new), earlier, taken, end);
    give_way(session, row, Arc::make_mut(&mut entry), &change)?;
    write(session, row.map_or(Place::New, Place::Row), &entry, &change)?;
    Ok((finished, entry))
}

/// Whether a confirmation names an instance of another order.
fn names_taken(session: &Session<'_>, end: &End, subject: &Subject) -> rusqlite::Result<bool> {
    match &end.ending {
        Ending::Confirmed { instance_id: Some(id), .. } => is_taken(session, &subject.app, id, &subject.origin),
        _ => Ok(false),
    }
}

/// Notes an answer: in the state that it told of, nobody waits for anything any more.
const ANSWER: &str = "UPDATE deliveries SET answered_at = ?1, waiting = NULL
                      WHERE id = ?3 AND key = ?2 AND state = ?4 AND answered_at IS NULL";

pub(super) fn answered(session: &Session<'_>, key: &DeliveryKey, told: State, at: Timestamp) -> rusqlite::Result<()> {
    loop {
        let Some(row) = keys::row_of(session, key)? else { return Ok(()) };
        let values = (at.as_millisecond(), key.as_bytes(), row, told.as_str());
        let written = session.with(&session.answered, ANSWER, |statement| statement.execute(values))?;
        // It was answered before, or has gone on, or the row is not its.
        if written == 1 || !keys::were_wrong(session, key)? {
            return Ok(());
        }
    }
}

pub(super) fn look(session: &Session<'_>, key: &DeliveryKey) -> rusqlite::Result<Option<Entry>> {
    Ok(rows::entry_at(session, key)?.map(|(_, entry)| entry))
}

pub(super) fn probe(connection: &Connection, now: Timestamp) -> rusqlite::Result<()> {
    let sql = "INSERT INTO probes (id, at) VALUES (1, ?1) ON CONFLICT (id) DO UPDATE SET at = excluded.at";
    connection.prepare_cached(sql)?.execute([now.as_millisecond()])?;
    Ok(())
}

/// What a process that is no more had running may have been executed. Says how many there were.
pub(super) fn take_over(session: &Session<'_>, now: Timestamp) -> rusqlite::Result<usize> {
    let running = rows::running(session)?;
    for (row, mut entry) in running.iter().cloned() {
        machine::lose(&mut entry, PROCESS_ENDED, now);
        rows::put_entry(session, Place::Row(row), &entry, false)?;
    }
    Ok(running.len())
}

pub(super) fn resolve(
    session: &Session<'_>,
    key: &DeliveryKey,
    ruling: &Ruling,
    now: Timestamp,
) -> rusqlite::Result<Option<Resolved>> {
    let Some((row, entry)) = rows::entry_at(session, key)? else { return Ok(None) };
    let taken = match &ruling.resolution {
        Resolution::Done { instance_id: Some(id), .. } => {
            is_taken(session, &entry.subject.app, id, &entry.subject.origin)?
        }
        _ => false,
    };
    Ok(Some(match machine::resolve(entry, false, taken, ruling, now) {
        Ok((mut entry, change)) => {
            give_way(session, Some(row), &mut entry, &change)?;
            write(session, Place::Row(row), &entry, &change)?;
            Ok(entry)
        }
        Err(unresolvable) => Err(unresolvable),
    }))
}

/// What is unanswered again leaves lookalikes to another one that is.
fn give_way(session: &Session<'_>, row: Option<i64>, entry: &mut Entry, change: &Change) -> rusqlite::Result<()> {
    let (true, Some(row), Some(lookalike)) = (change.unanswered, row, &entry.subject.lookalike) else { return Ok(()) };
    let sql = "UPDATE deliveries SET lookalike = NULL WHERE id = ?1 AND EXISTS (
                   SELECT 1 FROM deliveries AS other
                   WHERE other.lookalike = ?2 AND other.answered_at IS NULL AND other.id <> ?1)";
    if session.prepare_cached(sql)?.execute((row, lookalike.as_bytes()))? == 1 {
        entry.give_way();
    }
    Ok(())
}

pub(super) fn counts(connection: &Connection) -> rusqlite::Result<Vec<Counts>> {
    let sql = "SELECT app, sum(state = 'unconfirmed') AS unconfirmed, sum(state = 'done') AS unanswered
               FROM deliveries INDEXED BY deliveries_waiting WHERE waiting IS NOT NULL
               GROUP BY app HAVING unconfirmed + unanswered > 0 ORDER BY app";
    let mut statement = connection.prepare_cached(sql)?;
    let counts = statement
        .query_map([], |row| Ok(Counts { app: row.get(0)?, unconfirmed: row.get(1)?, unanswered: row.get(2)? }))?;
    counts.collect()
}

pub(super) fn prune(connection: &Connection, retention: &Retention) -> rusqlite::Result<Pruned> {
    let batch = i64::try_from(retention.batch).unwrap_or(i64::MAX);
    let history = retention.history_before.as_millisecond();
    let replies = connection
        .prepare_cached(
            "UPDATE deliveries SET reply = NULL, data_key = NULL WHERE id IN (
                 SELECT id FROM deliveries WHERE reply IS NOT NULL AND changed_at < ?1 AND state <> 'running' LIMIT ?2)",
        )?
        .execute((retention.replies_before.as_millisecond(), batch))?;
    let old = too_old(connection, retention)?;
    let mut instances = 0;
    for id in &old {
        connection.prepare_cached("DELETE FROM attempts WHERE delivery = ?1")?.execute([id])?;
        connection.prepare_cached("DELETE FROM aliases WHERE delivery = ?1")?.execute([id])?;
        names::remove(connection, *id)?;
        // Whose an instance is goes with the delivery that made it.
        let sql = "DELETE FROM deliveries WHERE id = ?1 RETURNING owns IS NOT NULL, key";
        let removed = |row: &Row<'_>| Ok((row.get::<_, bool>(0)?, row.get::<_, Vec<u8>>(1)?));
        let (owned, key) = connection.prepare_cached(sql)?.query_row([id], removed)?;
        keys::removed(connection, &key, *id)?;
        instances += usize::from(owned);
    }
    for table in ["instances", "cycles"] {
        instances += connection.prepare_cached(&untouched(table))?.execute((history, batch))?;
    }
    let wraps = retention.wraps_before.as_millisecond();
    connection
        .prepare_cached(
            "DELETE FROM wraps WHERE touched_at < ?1 AND EXISTS (
                 SELECT 1 FROM wraps AS later WHERE later.data_key = wraps.data_key AND later.touched_at >= ?1)",
        )?
        .execute([wraps])?;
    Ok(Pruned { replies, deliveries: old.len(), instances })
}

/// Removes a batch of a table about instances.
fn untouched(table: &str) -> String {
    format!(
        "DELETE FROM {table} WHERE (app, instance_id) IN (
             SELECT app, instance_id FROM {table} WHERE touched_at < ?1 LIMIT ?2)"
    )
}

/// Rows are numbered as they are received, so the old ones come first: this looks at them and at
/// one more.
fn too_old(connection: &Connection, retention: &Retention) -> rusqlite::Result<Vec<i64>> {
    let before = retention.history_before.as_millisecond();
    let mut statement = connection
        .prepare_cached("SELECT id, received_at, changed_at, state = 'running' FROM deliveries ORDER BY id")?;
    let mut rows = statement.query([])?;
    let mut old = Vec::new();
    while let Some(row) = rows.next()? {
        if row.get::<_, i64>(1)? >= before || old.len() >= retention.batch {
            break;
        }
        if row.get::<_, i64>(2)? < before && !row.get::<_, bool>(3)? {
            old.push(row.get(0)?);
        }
    }
    Ok(old)
}

pub(super) fn data_keys(connection: &Connection) -> rusqlite::Result<Vec<DataKey>> {
    let mut statement = connection.prepare_cached("SELECT id, app FROM data_keys ORDER BY id")?;
    let keys = statement.query_map([], |row| Ok(DataKey { id: row.get(0)?, app: row.get(1)?, wraps: Vec::new() }))?;
    let mut keys = keys.collect::<rusqlite::Result<Vec<_>>>()?;
    let mut wraps = connection.prepare_cached("SELECT wrapper, bytes FROM wraps WHERE data_key = ?1")?;
    for key in &mut keys {
        let found = wraps.query_map([key.id], |row| Ok(Wrap { wrapper: row.get(0)?, bytes: row.get(1)? }))?;
        key.wraps = found.collect::<rusqlite::Result<_>>()?;
    }
    Ok(keys)
}

pub(super) fn add_data_key(
    connection: &Connection,
    app: &str,
    wraps: &[Wrap],
    now: Timestamp,
) -> rusqlite::Result<i64> {
    connection.prepare_cached("INSERT INTO data_keys (app) VALUES (?1)")?.execute([app])?;
    let id = connection.last_insert_rowid();
    put_wraps(connection, id, wraps, now)?;
    Ok(id)
}

pub(super) fn put_wraps(
    connection: &Connection,
    data_key: i64,
    wraps: &[Wrap],
    now: Timestamp,
) -> rusqlite::Result<()> {
    let sql = "INSERT OR REPLACE INTO wraps (data_key, wrapper, bytes, touched_at) VALUES (?1, ?2, ?3, ?4)";
    for wrap in wraps {
        connection.prepare_cached(sql)?.execute((data_key, &wrap.wrapper, &wrap.bytes, now.as_millisecond()))?;
    }
    Ok(())
}

fn cycle(connection: &Connection, app: &str, instance: &str) -> rusqlite::Result<u32> {
    let sql = "SELECT cycle FROM cycles WHERE app = ?1 AND instance_id = ?2";
    let cycle = connection.prepare_cached(sql)?.query_row((app, instance), |row| row.get(0)).optional()?;
    Ok(cycle.unwrap_or(0))
}

fn raise(connection: &Connection, subject: &Subject, by: u32, now: Timestamp) -> rusqlite::Result<()> {
    let Some(instance) = &subject.instance_id else { return Ok(()) };
    let sql = "INSERT INTO cycles (app, instance_id, cycle, touched_at) VALUES (?1, ?2, ?3, ?4)
               ON CONFLICT (app, instance_id) DO UPDATE
               SET cycle = cycle + excluded.cycle, touched_at = excluded.touched_at";
    connection.prepare_cached(sql)?.execute((&subject.app, instance, by, now.as_millisecond()))?;
    Ok(())
}

pub(super) fn is_taken(
    session: &Session<'_>,
    app: &str,
    instance: &str,
    by_another_than: &Origin,
) -> rusqlite::Result<bool> {
    let who = (app, instance, by_another_than.as_bytes());
    session.with(&session.taken, TAKEN, |statement| statement.exists(who))
}

/// An instance belongs to the delivery that made it, or to one that the store knows it of otherwise.
const TAKEN: &str = "SELECT 1 FROM deliveries INDEXED BY deliveries_by_made
                     WHERE made_instance = ?2 AND app = ?1 AND owns IS NOT NULL AND origin <> ?3
                     UNION ALL SELECT 1 FROM instances WHERE app = ?1 AND instance_id = ?2 AND origin <> ?3";

/// Writes a change. Says in which row the entry is, or that it is not at its place any more: then
/// nothing was written.
fn write(session: &Session<'_>, place: Place, entry: &Entry, change: &Change) -> rusqlite::Result<Option<i64>> {
    let made = entry.confirmation.as_ref().and_then(|confirmation| confirmation.instance_id.as_ref());
    let owns = change.instance.is_some() && change.instance.as_ref() == made;
    let row = match place {
        _ if change.entry => {
            let Some(row) = rows::put_entry(session, place, entry, owns)? else { return Ok(None) };
            Some(row)
        }
        Place::Row(row) | Place::Running(row) => Some(row),
        Place::New => None,
    };
    let now = entry.changed_at;
    match change.cycle {
        CycleChange::None => {}
        CycleChange::Touch => raise(session, &entry.subject, 0, now)?,
        CycleChange::Raise => raise(session, &entry.subject, 1, now)?,
    }
    // One that the entry does not name belongs to its order all the same.
    if let Some(instance) = change.instance.as_ref().filter(|_| !owns) {
        let sql = "INSERT INTO instances (app, instance_id, origin, touched_at) VALUES (?1, ?2, ?3, ?4)
                   ON CONFLICT (app, instance_id) DO NOTHING";
        let Subject { app, origin, .. } = &*entry.subject;
        session.prepare_cached(sql)?.execute((app, instance, origin.as_bytes(), now.as_millisecond()))?;
    }
    if let (Some(alias), Some(row)) = (&change.alias, row) {
        let sql = "INSERT INTO aliases (key, delivery) VALUES (?1, ?2) ON CONFLICT (key) DO NOTHING";
        session.prepare_cached(sql)?.execute((alias.as_bytes(), row))?;
    }
    if let (Some(attempt), Some(row)) = (&change.history, row)
        && change.entry
    {
        rows::put_attempt(session, row, attempt)?;
    }
    Ok(row)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::journal::entry::{Claimant, Reason, Sealed};
    use crate::journal::key::{Extras, Fingerprint};
    use crate::journal::sqlite::keys::Latest;
    use crate::journal::sqlite::{browse, schema};
    use crate::journal::store::Filter;

    pub(in crate::journal::sqlite) fn at(millisecond: i64) -> Timestamp {
        Timestamp::from_millisecond(millisecond).unwrap()
    }

    /// Deliveries that differ in everything a filter asks for.
    pub(in crate::journal::sqlite) fn filled() -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        assert!(schema::migrate(&connection).is_ok());
        let session = Session::new(&connection, Latest::Nothing);
        for number in 0..48_u8 {
            let choose = |of: &[&str], every: u8| Arc::from(of[usize::from(number / every) % of.len()]);
            let key = [number.wrapping_mul(37); 32];
            let ask = Arc::new(Ask {
                base: DeliveryKey::from_slice(&key).unwrap(),
                subject: Arc::new(Subject {
                    origin: Origin::from_slice(&key).unwrap(),
                    lookalike: None,
                    fingerprint: Fingerprint::from_slice(&[0; 32]).unwrap(),
                    extras: Extras::from_slice(&[0; 32]).unwrap(),
                    app: choose(&["crm", "erp"], 1),
                    action: choose(&["Create", "Renew", "Delete"], 1),
                    debug: false,
                    order_id: (number % 5 > 0).then(|| choose(&["o-1", "o-2"], 3)),
                    instance_id: (number % 7 > 0).then(|| choose(&["i-1", "i-2"], 2)),
                    user_id: (number % 3 > 0).then(|| choose(&["u-1", "u-2"], 5)),
                }),
                lifecycle: Lifecycle::None,
                hold: false,
                instance_must_be_new: false,
                claimant: Claimant { gateway: "gw".into(), number: 1 },
                request_id: "r".into(),
                now: at(i64::from(number)),
            });
            let entry = claim(&session, &ask).unwrap().entry;
            let reason = || Reason { code: "code".into(), ..Reason::default() };
            let reply = || Sealed { data_key: 1, bytes: Vec::new() };
            let made = || Some(choose(&["i-1", "i-3"], 1));
            let ending = match number % 6 {
                0 => continue,
                1 => Ending::Failed(reason()),
                2 => Ending::Unconfirmed(reason()),
                3 => Ending::Refused { reply: reply() },
                _ => Ending::Confirmed { instance_id: made(), reply: reply() },
            };
            let end = End { key: entry.key, cycle: 0, attempt: 1, began_at: at(0), ending, now: ask.now, ask };
            finish(&session, &end).unwrap();
            if number % 6 == 5 {
                answered(&session, &entry.key, State::Done, end.now).unwrap();
            }
            if number % 12 == 1 {
                // Failed, then running again: the first attempt is in the history.
                claim(&session, &end.ask).unwrap();
            }
        }
        drop(session);
        connection
    }

    pub(in crate::journal::sqlite) fn ask(order: &str) -> Arc<Ask> {
        let hash = [7; 32];
        Arc::new(Ask {
            base: DeliveryKey::from_slice(&hash).unwrap(),
            subject: Arc::new(Subject {
                origin: Origin::from_slice(&hash).unwrap(),
                lookalike: None,
                fingerprint: Fingerprint::from_slice(&hash).unwrap(),
                extras: Extras::from_slice(&hash).unwrap(),
                app: "crm".into(),
                action: "Create".into(),
                debug: false,
                order_id: Some(order.into()),
                instance_id: None,
                user_id: None,
            }),
            lifecycle: Lifecycle::None,
            hold: false,
            instance_must_be_new: true,
            claimant: Claimant { gateway: "g".into(), number: 1 },
            request_id: "r".into(),
            now: at(1),
        })
    }

    fn confirmed(ask: Arc<Ask>) -> End {
        let reply = Sealed { data_key: 1, bytes: vec![1] };
        let ending = Ending::Confirmed { instance_id: Some("i".into()), reply };
        End { key: ask.base, cycle: 0, attempt: 1, began_at: at(1), ending, now: at(2), ask }
    }

    #[test]
    fn what_is_remembered_and_was_undone_or_changed_is_not_believed() {
        for undo in ["ROLLBACK", "COMMIT; UPDATE deliveries SET state = 'unconfirmed', request_id = 'another'"] {
            let connection = Connection::open_in_memory().unwrap();
            assert!(schema::migrate(&connection).is_ok());
            let session = Session::new(&connection, Latest::Nothing);
            let ask = ask("o-1");
            connection.execute_batch("BEGIN").unwrap();
            claim(&session, &ask).unwrap();
            connection.execute_batch(undo).unwrap();
            // What the backend confirmed is recorded all the same, on what there really is.
            let (finished, entry) = finish(&session, &confirmed(ask)).unwrap();
            assert_eq!((finished, entry.state), (Finished::Recorded, State::Done), "{undo}");
            answered(&session, &entry.key, State::Done, at(3)).unwrap();
            let stored = look(&session, &entry.key).unwrap().unwrap();
            assert_eq!((stored.state, stored.answered_at), (State::Done, Some(at(3))), "{undo}");
            assert_eq!(&*stored.latest.request_id, if undo.contains("another") { "another" } else { "r" });
            assert_eq!(browse::list(&connection, &Filter::default(), None, usize::MAX).unwrap().len(), 1, "{undo}");
        }
    }

    #[test]
    fn what_is_old_is_found_without_reading_all() {
        let connection = filled();
        for table in ["instances", "cycles"] {
            let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {}", untouched(table))).unwrap();
            let plan = statement.query_map([0, 0], |row| row.get::<_, String>(3)).unwrap();
            let plan = plan.map(|line| line.unwrap()).collect::<Vec<_>>().join("\n");
            assert!(plan.contains(&format!("{table}_touched")) && !plan.contains("SCAN instances"), "{plan}");
        }
    }
}
