//! Where deliveries are found by what people know of them: order, instance, customer and app.
//!
//! Nobody asks for that but people, and rarely. An index of each that held every delivery at once would
//! change a page of its own for nearly every order, and an order waits until all of them are on the disk.
//! So the serving process puts deliveries into one table of all names, `names`, many at a time and
//! between two batches, and notes in `named` up to which row it has. Those after that mark are few, and
//! looked through one by one.

use rusqlite::Connection;

use super::session::{Session, in_transaction};

/// So many are put into the table together, in its order.
const TOGETHER: i64 = 512;

/// So many are looked through one by one before some are put into the table.
const MANY: i64 = 1_024;

/// So many at a time when a start finds a file with more than that; it is from an older version, or was
/// saved by `.recover`.
const AT_START: i64 = 65_536;

/// What a name is of. The numbers are in the files.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// The platform's order.
    Order = 1,
    /// The instance that an action is about.
    Instance = 2,
    /// The platform's customer.
    User = 3,
    /// The app.
    App = 4,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Order, Self::Instance, Self::User, Self::App];

    fn column(self) -> &'static str {
        match self {
            Self::Order => "order_id",
            Self::Instance => "instance_id",
            Self::User => "user_id",
            Self::App => "app",
        }
    }

    /// Selects the rows from `?1` to before `?2` that have the name `?3`.
    pub(super) fn deliveries(self) -> String {
        let (kind, column) = (self as u8, self.column());
        format!(
            "SELECT id FROM deliveries WHERE id > (SELECT through FROM named) AND id >= ?1 AND id < ?2 AND {column} = ?3
             UNION SELECT delivery FROM names WHERE kind = {kind} AND name = ?3 AND delivery >= ?1 AND delivery < ?2"
        )
    }

    /// Selects this name of the rows after `?1`, to `?2`, as the table has it.
    fn of_rows(self) -> String {
        let (kind, column) = (self as u8, self.column());
        format!("SELECT {kind}, {column}, id FROM deliveries WHERE id > ?1 AND id <= ?2 AND {column} IS NOT NULL")
    }

    /// Removes this name of the row `?1`.
    fn removal(self) -> String {
        let (kind, column) = (self as u8, self.column());
        format!(
            "DELETE FROM names WHERE kind = {kind} AND delivery = ?1
                 AND name = (SELECT {column} FROM deliveries WHERE id = ?1)"
        )
    }
}

/// Puts all but the latest into the table: what a start finds.
pub(super) fn begin(connection: &Connection) -> rusqlite::Result<()> {
    while index(connection, MANY, AT_START)? {}
    Ok(())
}

/// Puts some of the latest, of which the last has the row `latest`, into the table if there are many. If
/// that fails, nothing is lost, and the next time is after the next batch.
///
/// Whoever was answered just now may wait for this thread's core, so the file is asked only when there may
/// be many.
pub(super) fn index_some(session: &Session<'_>, latest: i64) -> rusqlite::Result<()> {
    if latest < session.names_due.get() {
        return Ok(());
    }
    index(session, MANY, TOGETHER)?;
    let (through, last) = ends(session)?;
    session.names_due.set(latest + (MANY - (last - through)).max(0));
    Ok(())
}

/// Up to which row the table has the names, and the last row; that one is not before the other, also where
/// all that the table has was removed.
fn ends(connection: &Connection) -> rusqlite::Result<(i64, i64)> {
    let sql = "SELECT through, max(through, coalesce((SELECT max(id) FROM deliveries), 0)) FROM named";
    connection.prepare_cached(sql)?.query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
}

/// Puts the next `together` into the table if there are `many` or more. Says whether there were.
pub(super) fn index(connection: &Connection, many: i64, together: i64) -> rusqlite::Result<bool> {
    let (through, last) = ends(connection)?;
    if last - through < many {
        return Ok(false);
    }
    let next = last.min(through + together);
    in_transaction(connection, || {
        let names = Kind::ALL.map(Kind::of_rows).join(" UNION ALL ");
        let sql = format!("INSERT OR REPLACE INTO names (kind, name, delivery) {names} ORDER BY 1, 2, 3");
        connection.prepare_cached(&sql)?.execute([through, next])?;
        connection.prepare_cached("UPDATE named SET through = ?1")?.execute([next]).map(drop)
    })?;
    Ok(true)
}

/// Takes the names of a delivery, which is there still, out of the table.
pub(super) fn remove(connection: &Connection, row: i64) -> rusqlite::Result<()> {
    for kind in Kind::ALL {
        connection.prepare_cached(&kind.removal())?.execute([row])?;
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::journal::entry::Ask;
    use crate::journal::key::DeliveryKey;
    use crate::journal::sqlite::keys::{Latest, Maker};
    use crate::journal::sqlite::{browse, schema, tables};
    use crate::journal::store::{Filter, Retention};

    fn journal() -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        assert!(schema::migrate(&connection).is_ok());
        connection
    }

    /// What a start does, and then so many orders, each of the customer `user`.
    fn serve(connection: &Connection, orders: &[&str], user: &str) {
        begin(connection).unwrap();
        let session = Session::new(connection, Latest::All(Maker::begin(connection).unwrap()));
        for order in orders {
            let mut hash = [0; 32];
            hash[..order.len()].copy_from_slice(order.as_bytes());
            let mut ask = Ask::clone(&tables::tests::ask(order));
            ask.base = DeliveryKey::from_slice(&hash).unwrap();
            Arc::make_mut(&mut ask.subject).user_id = Some(user.into());
            tables::claim(&session, &ask).unwrap();
        }
    }

    pub(in crate::journal::sqlite) fn copies(connection: &Connection, of: i64) {
        let sql = "INSERT INTO deliveries (key, origin, fingerprint, extras, app, action, debug, cycle, order_id,
                       received_at, changed_at, state, doubt, number, gateway, claim, request_id, began_at)
                   WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
                   SELECT randomblob(32), zeroblob(32), zeroblob(32), zeroblob(32), 'app', 'Create', 0, 0, 'copy-' || i,
                       1, 1, 'open', 0, 1, 'g', 1, 'r', 1 FROM n";
        connection.execute(sql, [of]).unwrap();
    }

    fn number(connection: &Connection, sql: &str) -> i64 {
        connection.query_row(sql, [], |row| row.get(0)).unwrap()
    }

    fn found(connection: &Connection, order: &str) -> usize {
        let filter = Filter { order_id: Some(order.to_owned()), ..Filter::default() };
        browse::browse(connection, &filter, None, 10).unwrap().records.len()
    }

    #[test]
    fn many_are_put_into_the_table_together_and_a_start_leaves_few() {
        let connection = journal();
        let session = Session::new(&connection, Latest::Nothing);
        copies(&connection, MANY - 1);
        index_some(&session, MANY - 1).unwrap();
        assert_eq!(number(&connection, "SELECT through FROM named"), 0);
        copies(&connection, 1);
        index_some(&session, MANY).unwrap();
        index_some(&session, MANY).unwrap();
        assert_eq!(number(&connection, "SELECT through FROM named"), TOGETHER);
        // An order and an app for each.
        assert_eq!(number(&connection, "SELECT count(*) FROM names"), 2 * TOGETHER);
        copies(&connection, 100_000);
        begin(&connection).unwrap();
        let last = MANY + 100_000;
        assert!((last - MANY..=last).contains(&number(&connection, "SELECT through FROM named")));
        assert_eq!(
            (found(&connection, "copy-1"), found(&connection, "copy-1024"), found(&connection, "copy-99999")),
            (3, 1, 1)
        );
    }

    #[test]
    fn the_file_is_not_asked_until_there_may_be_many() {
        let connection = journal();
        let session = Session::new(&connection, Latest::Nothing);
        copies(&connection, 10);
        index_some(&session, 10).unwrap();
        connection.execute_batch("ALTER TABLE named RENAME TO away").unwrap();
        index_some(&session, MANY - 1).unwrap();
        assert!(index_some(&session, MANY).is_err());
        connection.execute_batch("ALTER TABLE away RENAME TO named").unwrap();
        // What failed is due still.
        copies(&connection, MANY - 10);
        index_some(&session, MANY).unwrap();
        assert_eq!(number(&connection, "SELECT through FROM named"), TOGETHER);
        copies(&connection, TOGETHER);
        index_some(&session, MANY + TOGETHER - 1).unwrap();
        assert_eq!(number(&connection, "SELECT through FROM named"), TOGETHER);
        index_some(&session, MANY + TOGETHER).unwrap();
        assert_eq!(number(&connection, "SELECT through FROM named"), 2 * TOGETHER);
    }

    #[test]
    fn what_comes_after_all_was_removed_is_put_into_the_table_as_soon() {
        let connection = journal();
        copies(&connection, 5 * MANY);
        while index(&connection, 1, MANY).unwrap() {}
        connection.execute_batch("DELETE FROM names; DELETE FROM deliveries").unwrap();
        let session = Session::new(&connection, Latest::Nothing);
        index_some(&session, 5 * MANY).unwrap();
        assert!(session.names_due.get() <= 6 * MANY, "{}", session.names_due.get());
    }

    #[test]
    fn what_is_removed_leaves_no_name_and_what_comes_then_is_found() {
        let connection = journal();
        serve(&connection, &["o-1", "o-2", "o-3"], "u-1");
        index(&connection, 1, 2).unwrap();
        assert_eq!(number(&connection, "SELECT count(*) FROM names"), 6);
        connection.execute_batch("UPDATE deliveries SET state = 'open'").unwrap();
        let all = tables::tests::at(1_000_000);
        let retention = Retention { now: all, replies_before: all, history_before: all, wraps_before: all, batch: 100 };
        assert_eq!(tables::prune(&connection, &retention).unwrap().deliveries, 3);
        assert_eq!(number(&connection, "SELECT count(*) FROM names"), 0);
        serve(&connection, &["o-2"], "u-2");
        assert_eq!((found(&connection, "o-1"), found(&connection, "o-2")), (0, 1));
        index(&connection, 1, 100).unwrap();
        assert_eq!((found(&connection, "o-2"), number(&connection, "SELECT count(*) FROM names")), (1, 3));
    }

    #[test]
    fn what_cannot_be_put_into_the_table_is_found_all_the_same() {
        let connection = journal();
        serve(&connection, &["o-1", "o-2"], "u-1");
        let full = "CREATE TRIGGER full BEFORE UPDATE ON named BEGIN SELECT raise(ABORT, 'full'); END";
        connection.execute_batch(full).unwrap();
        assert!(index(&connection, 1, 1).is_err() && connection.is_autocommit());
        assert_eq!(number(&connection, "SELECT count(*) FROM names"), 0);
        assert_eq!((found(&connection, "o-1"), found(&connection, "o-2")), (1, 1));
        connection.execute_batch("DROP TRIGGER full").unwrap();
        assert!(index(&connection, 1, 1).unwrap());
        assert_eq!((found(&connection, "o-1"), found(&connection, "o-2")), (1, 1));
    }

    #[test]
    fn a_removal_reads_no_more_than_its_row() {
        let connection = journal();
        for kind in Kind::ALL {
            let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {}", kind.removal())).unwrap();
            let plan = statement.query_map([1], |row| row.get::<_, String>(3)).unwrap();
            let plan = plan.map(|line| line.unwrap()).collect::<Vec<_>>().join("\n");
            assert!(plan.contains("names USING PRIMARY KEY (kind=? AND name=? AND delivery=?)"), "{plan}");
            assert!(!plan.contains("SCAN"), "{plan}");
        }
    }
}
