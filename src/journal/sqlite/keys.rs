//! Where a delivery is found by its key.
//!
//! Keys are hashes and come in no order: an index that held each of them at once would change a page
//! of its own for nearly every order, which was more than half of what an order wrote. So the serving
//! process remembers where the latest ones are, and puts them into the index (the table `keys`) many
//! at a time. What it forgets when it ends stands in the rows beyond the mark (the table `indexed`):
//! others look there, and the next start puts it in.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, OptionalExtension as _, params};

use super::session::Session;
use crate::journal::key::DeliveryKey;

/// So many are put into the index together: most of its pages then change for several of them, up to
/// a million deliveries. It takes some 40 ms, as a checkpoint of the log does, and those that wait for it
/// 1.3 MB of memory.
const MANY: usize = 16_384;

/// Most rows that go into the index in one transaction: bounds the memory that sorting them takes. Only
/// a file that comes from elsewhere has more.
const AT_ONCE: i64 = 65_536;

/// The rows of the deliveries that are not in the index yet. May name some that were undone or removed
/// since.
#[derive(Clone, Default)]
pub(super) struct Rows(Arc<Mutex<HashMap<DeliveryKey, i64>>>);

impl Rows {
    fn lock(&self) -> MutexGuard<'_, HashMap<DeliveryKey, i64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, key: &DeliveryKey) -> Option<i64> {
        self.lock().get(key).copied()
    }
}

/// What a connection knows of the deliveries that are not in the index yet.
#[derive(Default)]
pub(super) enum Latest {
    /// All, for only it makes any.
    All(Maker),
    /// What the maker, in the same process, lets it see.
    Seen(Rows),
    /// Nothing: another process makes them.
    #[default]
    Nothing,
}

/// See [`Latest::All`].
pub(super) struct Maker {
    rows: Rows,
    /// The number of the next row. Counts up for good: a number that was given away again, on the wrong
    /// side of the mark, would not be found.
    next: Cell<i64>,
}

impl Maker {
    /// Puts all that is not in the index into it, and begins after that.
    pub(super) fn after_the_indexed(connection: &Connection) -> rusqlite::Result<Self> {
        index_all(connection)?;
        Ok(Self { rows: Rows::default(), next: Cell::new(next_row(connection)?) })
    }

    /// For other connections of this process.
    pub(super) fn rows(&self) -> Rows {
        self.rows.clone()
    }
}

/// A number for the row of a new delivery; `None` if there is one with this key.
pub(super) fn row_for(session: &Session<'_>, key: &DeliveryKey) -> rusqlite::Result<Option<i64>> {
    if row_of(session, key)?.is_some() {
        return Ok(None);
    }
    match &session.latest {
        Latest::All(maker) => Ok(Some(maker.next.replace(maker.next.get() + 1))),
        Latest::Seen(_) | Latest::Nothing => next_row(session).map(Some),
    }
}

/// A delivery was written into the row that it had got.
pub(super) fn wrote(session: &Session<'_>, key: DeliveryKey, row: i64) {
    if let Latest::All(maker) = &session.latest {
        maker.rows.lock().insert(key, row);
    }
}

/// The row of a delivery, if there is one. What is remembered may be wrong: whoever does not find the
/// delivery there asks again if the keys [`were_wrong`].
pub(super) fn row_of(session: &Session<'_>, key: &DeliveryKey) -> rusqlite::Result<Option<i64>> {
    let indexed = "SELECT delivery FROM keys WHERE key = ?1";
    // In one statement, so that none slips from one side of the mark to the other.
    let anywhere = "SELECT delivery FROM keys WHERE key = ?1
                    UNION ALL SELECT id FROM deliveries WHERE id > (SELECT through FROM indexed) AND key = ?1 LIMIT 1";
    let sql = match &session.latest {
        Latest::All(maker) => match maker.rows.of(key) {
            Some(row) => return Ok(Some(row)),
            None => indexed,
        },
        Latest::Seen(rows) => match rows.of(key) {
            Some(row) if is_at(session, row, key)? => return Ok(Some(row)),
            _ => anywhere,
        },
        Latest::Nothing => anywhere,
    };
    let found = |row: &rusqlite::Row<'_>| row.get(0);
    session.with(&session.row_of, sql, |statement| statement.query_row([key.as_bytes()], found).optional())
}

/// Whether a key leads to a row where its delivery is not. If so, it does no more.
pub(super) fn were_wrong(session: &Session<'_>, key: &DeliveryKey) -> rusqlite::Result<bool> {
    let (Latest::All(maker), Some(row)) = (&session.latest, row_of(session, key)?) else { return Ok(false) };
    if is_at(session, row, key)? {
        return Ok(false);
    }
    if maker.rows.lock().remove(key).is_none() {
        // Not spigate's doing: it removes both at once.
        removed(session, key.as_bytes(), row)?;
    }
    Ok(true)
}

fn is_at(connection: &Connection, row: i64, key: &DeliveryKey) -> rusqlite::Result<bool> {
    let sql = "SELECT 1 FROM deliveries WHERE id = ?1 AND key = ?2";
    connection.prepare_cached(sql)?.exists(params![row, key.as_bytes()])
}

/// Puts the latest into the index if there are many. If that fails nothing is lost, and the next time
/// is after the next batch.
pub(super) fn index_if_many(session: &Session<'_>) {
    if let Latest::All(maker) = &session.latest
        && maker.rows.lock().len() >= MANY
    {
        index_latest(session);
    }
}

fn index_latest(session: &Session<'_>) {
    if let Latest::All(maker) = &session.latest
        && session.is_autocommit()
        && index_all(session).is_ok()
    {
        maker.rows.lock().clear();
    }
}

fn index_all(connection: &Connection) -> rusqlite::Result<()> {
    loop {
        connection.execute_batch("BEGIN IMMEDIATE")?;
        let indexed = index(connection).and_then(|any| connection.execute_batch("COMMIT").map(|()| any));
        if indexed.is_err() && !connection.is_autocommit() {
            // Why it failed is told; a rollback that fails too adds nothing.
            let _ = connection.execute_batch("ROLLBACK");
        }
        if !indexed? {
            return Ok(());
        }
    }
}

/// Puts the next rows into the index, within a transaction; says whether there were any.
pub(super) fn index(connection: &Connection) -> rusqlite::Result<bool> {
    let through: i64 = connection.prepare_cached("SELECT through FROM indexed")?.query_row([], |row| row.get(0))?;
    let last = "SELECT max(id) FROM (SELECT id FROM deliveries WHERE id > ?1 ORDER BY id LIMIT ?2)";
    let last: Option<i64> = connection.prepare_cached(last)?.query_row([through, AT_ONCE], |row| row.get(0))?;
    let Some(last) = last else { return Ok(false) };
    // In the order of the index: each of its pages is looked for once. A key that leads to a delivery
    // which is no more must lead to the one that is.
    let sql = "INSERT OR REPLACE INTO keys (key, delivery)
               SELECT key, id FROM deliveries WHERE id > ?1 AND id <= ?2 ORDER BY key";
    connection.prepare_cached(sql)?.execute([through, last])?;
    connection.prepare_cached("UPDATE indexed SET through = ?1")?.execute([last])?;
    Ok(true)
}

/// Takes the key of a delivery that is removed out of the index.
pub(super) fn removed(connection: &Connection, key: &[u8], row: i64) -> rusqlite::Result<()> {
    let sql = "DELETE FROM keys WHERE key = ?1 AND delivery = ?2";
    connection.prepare_cached(sql)?.execute(params![key, row]).map(drop)
}

fn next_row(connection: &Connection) -> rusqlite::Result<i64> {
    let sql = "SELECT max(coalesce((SELECT max(id) FROM deliveries), 0), (SELECT through FROM indexed)) + 1";
    connection.prepare_cached(sql)?.query_row([], |row| row.get(0))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::journal::entry::{Ask, Claimant};
    use crate::journal::machine::Decision;
    use crate::journal::sqlite::{browse, rows, schema, tables};
    use crate::journal::store::{Filter, Retention};

    fn journal() -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        assert!(schema::migrate(&connection).is_ok());
        connection
    }

    fn serving(connection: &Connection) -> Session<'_> {
        Session::new(connection, Latest::All(Maker::after_the_indexed(connection).unwrap()))
    }

    fn key(number: u16) -> DeliveryKey {
        // In no order.
        let [high, low] = number.wrapping_mul(40_503).to_be_bytes();
        let mut bytes = [0; 32];
        (bytes[0], bytes[1]) = (high, low);
        DeliveryKey::from_slice(&bytes).unwrap()
    }

    fn claim(session: &Session<'_>, number: u16, claimant: i64) -> Decision {
        let claimant = Claimant { gateway: "g".into(), number: claimant };
        let ask = Ask { base: key(number), claimant, ..(*tables::tests::ask("o")).clone() };
        tables::claim(session, &ask).unwrap().decision
    }

    fn maker<'s>(session: &'s Session<'_>) -> &'s Maker {
        let Latest::All(maker) = &session.latest else { panic!("makes no deliveries") };
        maker
    }

    fn waiting(session: &Session<'_>) -> usize {
        maker(session).rows.lock().len()
    }

    #[derive(Clone, Debug)]
    enum Event {
        Claim(u16),
        /// Claimed in a transaction that is undone.
        Undone(u16),
        Remove(u16),
        Index,
        Restart,
    }

    fn event() -> impl Strategy<Value = Event> {
        let number = 0..12_u16;
        prop_oneof![
            4 => number.clone().prop_map(Event::Claim),
            2 => number.clone().prop_map(Event::Undone),
            2 => number.prop_map(Event::Remove),
            1 => Just(Event::Index),
            1 => Just(Event::Restart),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// Whatever happens: a delivery is found as long as it is there, by those who serve and by those who
        /// look from outside, and there is never a second one.
        #[test]
        fn every_delivery_is_found_by_its_key(events in prop::collection::vec(event(), 1..60)) {
            let connection = journal();
            let (mut session, mut there) = (serving(&connection), BTreeSet::new());
            for (claimant, event) in (0..).zip(&events) {
                match event {
                    Event::Claim(number) => {
                        let expected = if there.insert(*number) { Decision::Forward } else { Decision::Join };
                        prop_assert_eq!(claim(&session, *number, claimant), expected);
                    }
                    Event::Undone(number) => {
                        connection.execute_batch("BEGIN").unwrap();
                        claim(&session, *number, claimant);
                        connection.execute_batch("ROLLBACK").unwrap();
                    }
                    Event::Remove(number) => {
                        // By another process: this one does not hear of it.
                        if there.remove(number) {
                            let sql = "DELETE FROM deliveries WHERE key = ?1 RETURNING id";
                            let key = key(*number);
                            let row = connection.query_row(sql, [key.as_bytes()], |row| row.get(0)).unwrap();
                            removed(&connection, key.as_bytes(), row).unwrap();
                        }
                    }
                    Event::Index => index_latest(&session),
                    Event::Restart => session = serving(&connection),
                }
                let stranger = Session::new(&connection, Latest::Nothing);
                let reader = Session::new(&connection, Latest::Seen(maker(&session).rows()));
                for number in 0..12 {
                    let is_there = there.contains(&number);
                    for session in [&session, &reader, &stranger] {
                        let found = rows::entry_at(session, &key(number)).unwrap();
                        prop_assert_eq!(found.is_some(), is_there, "{} after {:?}", number, event);
                    }
                    let filter = Filter { id: Some(key(number).idempotency_key()), ..Filter::default() };
                    let listed = browse::browse(&connection, &filter, None, 10).unwrap().records;
                    prop_assert_eq!(listed.len(), usize::from(is_there), "{} after {:?}", number, event);
                }
            }
            let all: i64 = connection.query_row("SELECT count(*) FROM deliveries", [], |row| row.get(0)).unwrap();
            prop_assert_eq!(usize::try_from(all), Ok(there.len()));
        }
    }

    #[test]
    fn many_are_indexed_together_and_fewer_by_the_next_start() {
        let connection = journal();
        let session = serving(&connection);
        let indexed = || connection.query_row("SELECT count(*) FROM keys", [], |row| row.get::<_, i64>(0)).unwrap();
        connection.execute_batch("BEGIN").unwrap();
        for number in 0..16_384 {
            index_if_many(&session);
            claim(&session, number, 0);
        }
        // Not within somebody else's transaction.
        index_if_many(&session);
        assert_eq!((waiting(&session), indexed()), (16_384, 0));
        connection.execute_batch("COMMIT").unwrap();
        index_if_many(&session);
        assert_eq!((waiting(&session), indexed()), (0, 16_384));
        claim(&session, 16_384, 0);
        index_if_many(&session);
        assert_eq!((waiting(&session), indexed()), (1, 16_384));
        let session = serving(&connection);
        assert_eq!((waiting(&session), indexed()), (0, 16_385));
        assert_eq!([0, 16_383, 16_384].map(|number| claim(&session, number, 1)), [Decision::Join; 3]);
        assert_eq!(claim(&session, 16_385, 1), Decision::Forward);
    }

    #[test]
    fn what_cannot_be_indexed_is_found_all_the_same_and_indexed_later() {
        let connection = journal();
        let session = serving(&connection);
        let full = "CREATE TRIGGER full BEFORE UPDATE ON indexed BEGIN SELECT raise(ABORT, 'full'); END";
        connection.execute_batch(full).unwrap();
        (0..3).for_each(|number| assert_eq!(claim(&session, number, 0), Decision::Forward));
        index_latest(&session);
        assert!(connection.is_autocommit());
        assert_eq!(waiting(&session), 3);
        (0..3).for_each(|number| assert_eq!(claim(&session, number, 1), Decision::Join));
        connection.execute_batch("DROP TRIGGER full").unwrap();
        index_latest(&session);
        assert_eq!(waiting(&session), 0);
        (0..3).for_each(|number| assert_eq!(claim(&session, number, 1), Decision::Join));
    }

    /// A row's number is not given away again on the wrong side of the mark, and what is removed leaves
    /// nothing in the index.
    #[test]
    fn what_comes_after_all_was_removed_is_found() {
        let connection = journal();
        let session = serving(&connection);
        (0..5).for_each(|number| assert_eq!(claim(&session, number, 0), Decision::Forward));
        index_latest(&session);
        connection.execute_batch("UPDATE deliveries SET state = 'open'").unwrap();
        let all = tables::tests::at(1_000_000);
        let retention = Retention { now: all, replies_before: all, history_before: all, wraps_before: all, batch: 100 };
        assert_eq!(tables::prune(&connection, &retention).unwrap().deliveries, 5);
        let left: i64 = connection.query_row("SELECT count(*) FROM keys", [], |row| row.get(0)).unwrap();
        assert_eq!(left, 0);
        let stranger = Session::new(&connection, Latest::Nothing);
        assert_eq!((claim(&session, 1, 0), claim(&stranger, 1, 1)), (Decision::Forward, Decision::Join));
        let session = serving(&connection);
        assert_eq!((claim(&session, 2, 0), claim(&stranger, 2, 1)), (Decision::Forward, Decision::Join));
    }

    /// Whoever removes rows with SQLite's own shell leaves the index as it was.
    #[test]
    fn a_key_that_leads_nowhere_stops_no_delivery() {
        let connection = journal();
        let session = serving(&connection);
        claim(&session, 1, 0);
        index_latest(&session);
        connection.execute_batch("DELETE FROM deliveries").unwrap();
        assert_eq!(claim(&session, 1, 1), Decision::Forward);
        assert_eq!(claim(&session, 1, 2), Decision::Join);
        index_latest(&session);
        assert_eq!(claim(&session, 1, 2), Decision::Join);
    }
}
