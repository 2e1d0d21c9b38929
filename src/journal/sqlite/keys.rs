//! Where a delivery is found by its key.
//!
//! Keys are hashes and come in no order: an index that held each of them at once would change a page
//! of its own for nearly every order, which was more than half of what an order wrote. So the serving
//! process remembers where the latest ones are, and puts them into the index (the table `keys`) many
//! at a time, in the order of the index, some between any two batches. Until all of them are in it they
//! are beyond the mark (the table `indexed`): others look for them in the rows there, and so does the
//! next start.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OptionalExtension as _, params};

use super::session::{Session, in_transaction};
use crate::journal::key::DeliveryKey;

/// So many are put into the index together: its pages then change for several of them, up to a million
/// deliveries. Those that wait for it take 2 MB of memory.
const MANY: usize = 16_384;

/// How long deliveries wait while some are put into the index: a page of a large one may have to be read
/// from the disk for each.
const PAUSE: Duration = Duration::from_millis(5);

/// So many are put into it before the time is looked at.
const FEW: usize = 32;

/// Most rows that a start remembers, or puts into the index in one transaction. Only a file that comes
/// from elsewhere has more beyond the mark.
const AT_ONCE: i64 = 65_536;

/// The rows of the deliveries that are not in the index yet. May name some that were removed
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

    fn set(&self, key: DeliveryKey, row: Option<i64>) -> Option<i64> {
        match row {
            Some(row) => self.lock().insert(key, row),
            None => self.lock().remove(&key),
        }
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

impl Latest {
    /// For other connections of this process.
    pub(super) fn for_readers(&self) -> Self {
        match self {
            Self::All(maker) => Self::Seen(maker.rows()),
            Self::Seen(rows) => Self::Seen(rows.clone()),
            Self::Nothing => Self::Nothing,
        }
    }
}

/// See [`Latest::All`].
pub(super) struct Maker {
    rows: Rows,
    /// The number of the next row. Counts up for good: a number that was given away again, on the wrong
    /// side of the mark, would not be found.
    next: Cell<i64>,
    /// What this transaction has changed of the rows, in order, and what stood there before.
    changed: RefCell<Vec<(DeliveryKey, Option<i64>)>>,
    /// Those that are on their way into the index.
    moving: RefCell<Option<Moving>>,
}

/// Deliveries on their way into the index.
struct Moving {
    /// In the order of the index.
    keys: Vec<(DeliveryKey, i64)>,
    /// How many of them are in it.
    done: usize,
    /// The mark when all are.
    through: i64,
}

impl Maker {
    /// Begins where the process before it has ended.
    pub(super) fn begin(connection: &Connection) -> rusqlite::Result<Self> {
        while behind(connection)? > AT_ONCE && index(connection)? {}
        let sql = "SELECT key, id FROM deliveries WHERE id > (SELECT through FROM indexed)";
        let mut statement = connection.prepare(sql)?;
        let rows = statement.query_map([], |row| Ok((row.get::<_, Vec<u8>>(0)?, row.get(1)?)))?;
        let rows = rows.filter_map(|row| row.map(|(key, id)| Some((DeliveryKey::from_slice(&key)?, id))).transpose());
        Ok(Self {
            rows: Rows(Arc::new(Mutex::new(rows.collect::<rusqlite::Result<_>>()?))),
            next: Cell::new(next_row(connection)?),
            changed: RefCell::default(),
            moving: RefCell::default(),
        })
    }

    /// For other connections of this process.
    pub(super) fn rows(&self) -> Rows {
        self.rows.clone()
    }

    /// How many deliveries are not in the index yet.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.rows.lock().len()
    }

    /// The latest row that was given away.
    pub(super) fn latest(&self) -> i64 {
        self.next.get() - 1
    }

    /// Changes what is remembered of a key, until the transaction is undone. Says what was.
    fn change(&self, key: DeliveryKey, row: Option<i64>) -> Option<i64> {
        let before = self.rows.set(key, row);
        self.changed.borrow_mut().push((key, before));
        before
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
        maker.change(key, Some(row));
    }
}

/// Does something of which nothing stays: the numbers of the rows that it takes are free again.
pub(super) fn undone<T>(session: &Session<'_>, work: impl FnOnce() -> T) -> T {
    let Latest::All(maker) = &session.latest else { return work() };
    let next = maker.next.get();
    let done = work();
    transaction_ended(session, true);
    maker.next.set(next);
    done
}

/// A transaction is over. If it was undone, what is remembered is again what was before it: a delivery
/// whose removal is undone must be found.
pub(super) fn transaction_ended(session: &Session<'_>, is_undone: bool) {
    let Latest::All(maker) = &session.latest else { return };
    for (key, before) in maker.changed.borrow_mut().drain(..).rev() {
        if is_undone {
            maker.rows.set(key, before);
        }
    }
}

/// The row of a delivery, if there is one. What is remembered may be wrong: whoever does not find the
/// delivery there asks again if the keys [`were_wrong`].
pub(super) fn row_of(session: &Session<'_>, key: &DeliveryKey) -> rusqlite::Result<Option<i64>> {
    let indexed = "SELECT delivery FROM keys WHERE key = ?1";
    // In one statement, so that none slips from one side of the mark to the other.
    let anywhere =
        "SELECT d.id FROM keys AS k JOIN deliveries AS d ON d.id = k.delivery AND d.key = k.key WHERE k.key = ?1
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
    if maker.change(*key, None).is_none() {
        // Removed when it was on its way into the index, or with SQLite's own shell.
        removed(session, key.as_bytes(), row)?;
    }
    Ok(true)
}

fn is_at(connection: &Connection, row: i64, key: &DeliveryKey) -> rusqlite::Result<bool> {
    let sql = "SELECT 1 FROM deliveries WHERE id = ?1 AND key = ?2";
    connection.prepare_cached(sql)?.exists(params![row, key.as_bytes()])
}

/// Puts some of the latest into the index if there are many, or if it has begun to. If that fails,
/// nothing is lost: they stay in memory, and the next time is after the next batch.
pub(super) fn index_some(session: &Session<'_>) -> rusqlite::Result<()> {
    match &session.latest {
        Latest::All(maker) => move_some(session, maker, MANY, PAUSE, FEW),
        Latest::Seen(_) | Latest::Nothing => Ok(()),
    }
}

fn move_some(session: &Session<'_>, maker: &Maker, many: usize, pause: Duration, few: usize) -> rusqlite::Result<()> {
    let mut place = maker.moving.borrow_mut();
    if place.is_none() && maker.rows.lock().len() < many {
        return Ok(());
    }
    let moving = place.get_or_insert_with(|| {
        let mut keys = maker.rows.lock().iter().map(|(key, row)| (*key, *row)).collect::<Vec<_>>();
        keys.sort_unstable_by(|one, other| one.0.as_bytes().cmp(other.0.as_bytes()));
        Moving { keys, done: 0, through: maker.latest() }
    });
    let begun = Instant::now();
    let mut done = moving.done;
    in_transaction(session, || {
        // A key that leads to a delivery which is no more must lead to the one that is. One that was removed
        // meanwhile, perhaps by another process, has none: nobody would remove its key any more.
        let sql =
            "INSERT OR REPLACE INTO keys (key, delivery) SELECT key, id FROM deliveries WHERE id = ?2 AND key = ?1";
        while done < moving.keys.len() && (done == moving.done || begun.elapsed() < pause) {
            let next = moving.keys[done..].iter().take(few);
            for (key, row) in next.filter(|(key, row)| maker.rows.of(key) == Some(*row)) {
                session.with(&session.index, sql, |statement| statement.execute(params![key.as_bytes(), row]))?;
            }
            done = (done + few).min(moving.keys.len());
        }
        if done == moving.keys.len() {
            session.prepare_cached("UPDATE indexed SET through = ?1")?.execute([moving.through])?;
        }
        Ok(())
    })?;
    moving.done = done;
    if done == moving.keys.len() {
        let mut rows = maker.rows.lock();
        for (key, row) in &moving.keys {
            if rows.get(key) == Some(row) {
                rows.remove(key);
            }
        }
        drop(rows);
        *place = None;
    }
    Ok(())
}

/// How many rows are beyond the mark, at most.
fn behind(connection: &Connection) -> rusqlite::Result<i64> {
    let sql = "SELECT coalesce((SELECT max(id) FROM deliveries), 0) - (SELECT through FROM indexed)";
    connection.query_row(sql, [], |row| row.get(0))
}

/// Puts the next rows into the index, in the order of the index; says whether there were any.
fn index(connection: &Connection) -> rusqlite::Result<bool> {
    let through: i64 = connection.query_row("SELECT through FROM indexed", [], |row| row.get(0))?;
    let last = "SELECT max(id) FROM (SELECT id FROM deliveries WHERE id > ?1 ORDER BY id LIMIT ?2)";
    let last: Option<i64> = connection.query_row(last, [through, AT_ONCE], |row| row.get(0))?;
    let Some(last) = last else { return Ok(false) };
    in_transaction(connection, || {
        let sql = "INSERT OR REPLACE INTO keys (key, delivery)
                   SELECT key, id FROM deliveries WHERE id > ?1 AND id <= ?2 ORDER BY key";
        connection.execute(sql, [through, last])?;
        connection.execute("UPDATE indexed SET through = ?1", [last]).map(drop)
    })?;
    Ok(true)
}

/// Takes the key of a delivery that is removed out of the index.
pub(super) fn removed(connection: &Connection, key: &[u8], row: i64) -> rusqlite::Result<()> {
    let sql = "DELETE FROM keys WHERE key = ?1 AND delivery = ?2";
    connection.prepare_cached(sql)?.execute(params![key, row]).map(drop)
}

/// Beyond all marks: a row on the wrong side of one would not be found.
fn next_row(connection: &Connection) -> rusqlite::Result<i64> {
    let sql = "SELECT max(coalesce((SELECT max(id) FROM deliveries), 0), (SELECT through FROM indexed),
                   (SELECT through FROM named)) + 1";
    connection.prepare_cached(sql)?.query_row([], |row| row.get(0))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::journal::entry::{Ask, Claimant};
    use crate::journal::machine::Decision;
    use crate::journal::sqlite::{browse, names, rows, schema, tables};
    use crate::journal::store::{Filter, Retention};

    fn journal() -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        assert!(schema::migrate(&connection).is_ok());
        connection
    }

    fn serving(connection: &Connection) -> Session<'_> {
        Session::new(connection, Latest::All(Maker::begin(connection).unwrap()))
    }

    fn key(number: u16) -> DeliveryKey {
        // In no order.
        let [high, low] = number.wrapping_mul(40_503).to_be_bytes();
        let mut bytes = [0; 32];
        (bytes[0], bytes[1]) = (high, low);
        DeliveryKey::from_slice(&bytes).unwrap()
    }

    fn order(number: u16) -> String {
        format!("o-{number}")
    }

    fn claim(session: &Session<'_>, number: u16, claimant: i64) -> Decision {
        let claimant = Claimant { gateway: "g".into(), number: claimant };
        let ask = Ask { base: key(number), claimant, ..(*tables::tests::ask(&order(number))).clone() };
        tables::claim(session, &ask).unwrap().decision
    }

    fn remove(connection: &Connection, number: u16) {
        let (sql, key) = ("SELECT id FROM deliveries WHERE key = ?1", key(number));
        let row = connection.query_row(sql, [key.as_bytes()], |row| row.get(0)).unwrap();
        names::remove(connection, row).unwrap();
        connection.execute("DELETE FROM deliveries WHERE id = ?1", [row]).unwrap();
        removed(connection, key.as_bytes(), row).unwrap();
    }

    fn maker<'s>(session: &'s Session<'_>) -> &'s Maker {
        let Latest::All(maker) = &session.latest else { panic!("makes no deliveries") };
        maker
    }

    /// Two at a time.
    fn index_some_of(session: &Session<'_>) -> rusqlite::Result<()> {
        move_some(session, maker(session), 1, Duration::ZERO, 2)
    }

    fn index_latest(session: &Session<'_>) {
        while waiting(session) > 0 {
            index_some_of(session).unwrap();
        }
    }

    fn waiting(session: &Session<'_>) -> usize {
        maker(session).waiting()
    }

    #[derive(Clone, Debug)]
    enum Event {
        Claim(u16),
        /// Removed if it is there, and claimed, in a transaction that is undone.
        Undone(u16),
        Remove(u16),
        IndexSome,
        Index,
        /// Two names at most are put into their table.
        Name,
        Restart,
    }

    fn event() -> impl Strategy<Value = Event> {
        let number = 0..12_u16;
        prop_oneof![
            4 => number.clone().prop_map(Event::Claim),
            2 => number.clone().prop_map(Event::Undone),
            2 => number.prop_map(Event::Remove),
            3 => Just(Event::IndexSome),
            1 => Just(Event::Index),
            2 => Just(Event::Name),
            1 => Just(Event::Restart),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// Whatever happens: a delivery is found as long as it is there, by those who serve and by those who
        /// look from outside, also by its order, and there is never a second one.
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
                        if there.contains(number) {
                            remove(&connection, *number);
                        }
                        claim(&session, *number, claimant);
                        connection.execute_batch("ROLLBACK").unwrap();
                        transaction_ended(&session, true);
                    }
                    Event::Remove(number) => {
                        // By another process: this one does not hear of it.
                        if there.remove(number) {
                            remove(&connection, *number);
                        }
                    }
                    Event::IndexSome => index_some_of(&session).unwrap(),
                    Event::Index => index_latest(&session),
                    Event::Name => {
                        names::index(&connection, 1, 2).unwrap();
                    }
                    Event::Restart => session = serving(&connection),
                }
                transaction_ended(&session, false);
                let stranger = Session::new(&connection, Latest::Nothing);
                let reader = Session::new(&connection, Latest::Seen(maker(&session).rows()));
                for number in 0..12 {
                    let is_there = there.contains(&number);
                    for session in [&session, &reader, &stranger] {
                        let found = rows::entry_at(session, &key(number)).unwrap();
                        prop_assert_eq!(found.is_some(), is_there, "{} after {:?}", number, event);
                    }
                    let by_key = Filter { id: Some(key(number).idempotency_key()), ..Filter::default() };
                    let by_order = Filter { order_id: Some(order(number)), ..Filter::default() };
                    for filter in [by_key, by_order] {
                        let listed = browse::browse(&connection, &filter, None, 10).unwrap().records;
                        prop_assert_eq!(listed.len(), usize::from(is_there), "{:?} after {:?}", filter, event);
                    }
                }
            }
            let all: i64 = connection.query_row("SELECT count(*) FROM deliveries", [], |row| row.get(0)).unwrap();
            prop_assert_eq!(usize::try_from(all), Ok(there.len()));
        }
    }

    #[test]
    fn many_are_indexed_together_and_fewer_are_remembered_by_the_next_start() {
        let connection = journal();
        let session = serving(&connection);
        let indexed = || connection.query_row("SELECT count(*) FROM keys", [], |row| row.get::<_, i64>(0)).unwrap();
        for number in 0..16_384 {
            index_some(&session).unwrap();
            claim(&session, number, 0);
        }
        assert_eq!((waiting(&session), indexed()), (16_384, 0));
        index_some(&session).unwrap();
        // Those that come meanwhile are the next time's.
        claim(&session, 16_384, 0);
        for _ in 0..16_384 / 32 {
            index_some(&session).unwrap();
        }
        assert_eq!((waiting(&session), indexed()), (1, 16_384));
        let session = serving(&connection);
        assert_eq!((waiting(&session), indexed()), (1, 16_384));
        assert_eq!([0, 16_383, 16_384].map(|number| claim(&session, number, 1)), [Decision::Join; 3]);
        assert_eq!(claim(&session, 16_385, 1), Decision::Forward);
    }

    #[test]
    fn what_was_removed_before_it_was_indexed_leaves_no_key() {
        let connection = journal();
        let session = serving(&connection);
        (0..3).for_each(|number| assert_eq!(claim(&session, number, 0), Decision::Forward));
        // By another process: this one does not hear of it.
        remove(&connection, 1);
        index_latest(&session);
        let keys: i64 = connection.query_row("SELECT count(*) FROM keys", [], |row| row.get(0)).unwrap();
        assert_eq!(keys, 2);
    }

    /// A file that comes from elsewhere, or was saved by `.recover`.
    #[test]
    fn a_start_that_finds_too_many_to_remember_indexes_them() {
        let connection = journal();
        claim(&serving(&connection), 0, 0);
        names::tests::copies(&connection, 100_000);
        let session = serving(&connection);
        assert_eq!(waiting(&session), 100_001 - 65_536);
        assert_eq!((claim(&session, 0, 1), claim(&session, 1, 1)), (Decision::Join, Decision::Forward));
    }

    #[test]
    fn what_cannot_be_indexed_is_found_all_the_same_and_indexed_later() {
        let connection = journal();
        let session = serving(&connection);
        let full = "CREATE TRIGGER full BEFORE UPDATE ON indexed BEGIN SELECT raise(ABORT, 'full'); END";
        connection.execute_batch(full).unwrap();
        (0..3).for_each(|number| assert_eq!(claim(&session, number, 0), Decision::Forward));
        assert!(index_some_of(&session).is_ok() && index_some_of(&session).is_err());
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
