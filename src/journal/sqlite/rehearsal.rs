//! Whether an order could be recorded: one is, and undone.
//!
//! That a row can be written somewhere says little of a file of which parts are damaged or gone. So
//! this does what every order does, a claim and its end, with the statements that orders use, under a
//! key that no order has. Nothing of it stays, and nothing is written to the disk; whether that can be
//! written is for others to find out.
//!
//! Some pages are met by every order: where the rows and the indexes grow, and the roots. Others are
//! those of a few orders alone, and when one of these is damaged, all other orders must go on. So a take
//! that fails is repeated in another place, and what fails in all takes is told.

use std::sync::Arc;

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use super::session::{self, Session};
use super::{tables, worker};
use crate::journal::entry::{Ask, Claimant, End, Ending, Lifecycle, Sealed, Subject};

/// Instances for the takes: before, among and after those that there are.
const INSTANCES: [&str; 3] = ["", "i", "\u{10FFFF}"];

/// Rehearses an order. Begins and ends transactions of its own.
pub(super) fn rehearse(session: &Session<'_>, now: Timestamp) -> rusqlite::Result<()> {
    let mut rehearsed = Ok(());
    for instance in INSTANCES {
        let ask = ask(now, instance);
        rehearsed = session::undone(session, || order(session, &ask, instance));
        match &rehearsed {
            Ok(()) => break,
            Err(error) if worker::is_about_the_disk(error) => break,
            // What was read of a file that is mended meanwhile must not be believed the next time.
            Err(_) => session.execute_batch("PRAGMA shrink_memory")?,
        }
    }
    rehearsed
}

fn order(session: &Session<'_>, ask: &Arc<Ask>, instance: &str) -> rusqlite::Result<()> {
    let entry = tables::claim(session, ask)?.entry;
    let reply = Sealed { data_key: 0, bytes: Vec::new() };
    let end = End {
        ask: Arc::clone(ask),
        key: entry.key,
        cycle: entry.cycle,
        attempt: entry.latest.number,
        began_at: entry.latest.began_at,
        ending: Ending::Confirmed { instance_id: Some(instance.into()), reply },
        now: ask.now,
    };
    tables::finish(session, &end).map(drop)
}

/// Somewhere among the keys, and each time elsewhere.
fn ask(now: Timestamp, instance: &str) -> Arc<Ask> {
    let digest: [u8; 32] = Sha256::digest(format!("spigate rehearsal\0{now}\0{instance}")).into();
    let subject = Subject {
        origin: digest.into(),
        lookalike: None,
        fingerprint: digest.into(),
        extras: digest.into(),
        // No app is called that.
        app: "".into(),
        action: "rehearsal".into(),
        debug: false,
        order_id: None,
        instance_id: None,
        user_id: None,
    };
    Arc::new(Ask {
        base: digest.into(),
        subject: Arc::new(subject),
        lifecycle: Lifecycle::None,
        hold: false,
        instance_must_be_new: true,
        claimant: Claimant { gateway: "".into(), number: 0 },
        request_id: "".into(),
        now,
    })
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};
    use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
    use std::path::{Path, PathBuf};

    use rusqlite::Connection;

    use super::*;
    use crate::journal::sqlite::keys::{self, Latest, Maker};
    use crate::journal::sqlite::{SqliteStore, names, schema};
    use crate::journal::store::Deliveries as _;

    const PAGE: u32 = 4096;

    fn place(page: u32) -> SeekFrom {
        SeekFrom::Start(u64::from(page - 1) * u64::from(PAGE))
    }

    /// A directory that is gone with this.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("spigate-rehearsal-{name}-{}", std::process::id()));
            fs::create_dir_all(&folder).unwrap();
            Self(folder)
        }

        /// With a file of many deliveries, half of which are in the index of keys.
        fn with_journal(name: &str) -> (Self, PathBuf) {
            let folder = Self::new(name);
            let path = folder.0.join("spigate.db");
            let connection = Connection::open(&path).unwrap();
            assert!(schema::migrate(&connection).is_ok());
            names::tests::copies(&connection, 20_000);
            let indexed = "INSERT INTO keys SELECT key, id FROM deliveries WHERE id <= 10000 ORDER BY key;
                           UPDATE indexed SET through = 10000";
            connection.execute_batch(indexed).unwrap();
            (folder, path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// The leaves of a table or an index, in order (sqlite.org's "Database File Format", 1.6).
    fn leaves(path: &Path, of: &str) -> Vec<u32> {
        let connection = Connection::open(path).unwrap();
        // From here on they are read from the file.
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        let sql = "SELECT rootpage FROM sqlite_schema WHERE name = ?1";
        let root = connection.query_row(sql, [of], |row| row.get(0)).unwrap();
        let (file, mut leaves) = (fs::read(path).unwrap(), Vec::new());
        collect(&file, root, &mut leaves);
        leaves
    }

    fn collect(file: &[u8], number: u32, leaves: &mut Vec<u32>) {
        let page = &file[(number - 1) as usize * PAGE as usize..][..PAGE as usize];
        let short = |at: usize| usize::from(u16::from_be_bytes([page[at], page[at + 1]]));
        let child = |at: usize| u32::from_be_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]);
        match page[0] {
            2 | 5 => {
                (0..short(3)).for_each(|cell| collect(file, child(short(12 + 2 * cell)), leaves));
                collect(file, child(8), leaves);
            }
            10 | 13 => leaves.push(number),
            kind => panic!("page {number} is of the kind {kind}"),
        }
    }

    /// Overwrites pages. Says what stood there.
    fn damage(path: &Path, pages: &[u32]) -> Vec<(u32, Vec<u8>)> {
        let mut file = OpenOptions::new().read(true).write(true).open(path).unwrap();
        let mut exchange = |page: u32| {
            let mut before = vec![0; PAGE as usize];
            file.seek(place(page)).unwrap();
            file.read_exact(&mut before).unwrap();
            file.seek(place(page)).unwrap();
            file.write_all(&[0xA5; PAGE as usize]).unwrap();
            (page, before)
        };
        pages.iter().map(|page| exchange(*page)).collect()
    }

    fn mend(path: &Path, pages: &[(u32, Vec<u8>)]) {
        let mut file = OpenOptions::new().write(true).open(path).unwrap();
        for (page, before) in pages {
            file.seek(place(*page)).unwrap();
            file.write_all(before).unwrap();
        }
    }

    #[track_caller]
    fn assert_damaged(probed: Result<(), crate::journal::store::Unavailable>) {
        let unavailable = probed.unwrap_err();
        assert!(!unavailable.is_local);
        for word in ["spigate.db: is damaged; ", "restore a backup", "database disk image is malformed"] {
            assert!(unavailable.cause.contains(word), "{unavailable}");
        }
    }

    #[tokio::test]
    async fn damage_that_every_order_meets_is_told_until_it_is_mended() {
        let (_folder, path) = Folder::with_journal("last");
        let store = SqliteStore::serve(&path, |_| {}).unwrap();
        for growing in ["deliveries", "deliveries_waiting", "deliveries_with_reply", "deliveries_by_made"] {
            assert_eq!(store.probe().await, Ok(()), "{growing}");
            let before = damage(&path, &[*leaves(&path, growing).last().unwrap()]);
            assert_damaged(store.probe().await);
            mend(&path, &before);
        }
        assert_eq!(store.probe().await, Ok(()));
    }

    #[tokio::test]
    async fn damage_that_few_orders_meet_is_told_to_them_alone() {
        let (_folder, path) = Folder::with_journal("few");
        let made = "UPDATE deliveries SET made_instance = 'i-' || id";
        Connection::open(&path).unwrap().execute_batch(made).unwrap();
        let store = SqliteStore::serve(&path, |_| {}).unwrap();
        let [rows, keys, made] = ["deliveries", "keys", "deliveries_by_made"].map(|of| leaves(&path, of));
        assert!(rows.len() > 500 && keys.len() > 50 && made.len() > 50);
        // The first of the instances that were made is where the first take would write.
        for few in [&rows[..500], &keys[..1], &made[..1]] {
            let before = damage(&path, few);
            for _ in 0..20 {
                assert_eq!(store.probe().await, Ok(()));
            }
            mend(&path, &before);
        }
        // And if it is all of them, to everybody.
        let before = damage(&path, &keys);
        assert_damaged(store.probe().await);
        mend(&path, &before);
        assert_eq!(store.probe().await, Ok(()));
    }

    #[tokio::test]
    async fn a_table_or_an_index_that_is_gone_is_told_until_it_is_there() {
        let folder = Folder::new("gone");
        let path = folder.0.join("spigate.db");
        let store = SqliteStore::serve(&path, |_| {}).unwrap();
        let other = Connection::open(&path).unwrap();
        let by_made = "CREATE INDEX deliveries_by_made ON deliveries (made_instance) WHERE made_instance IS NOT NULL";
        for (take, give, says) in [
            ("ALTER TABLE keys RENAME TO away", "ALTER TABLE away RENAME TO keys", "no such table: keys"),
            ("ALTER TABLE deliveries RENAME TO away", "ALTER TABLE away RENAME TO deliveries", "no such table: "),
            ("DROP INDEX deliveries_by_made", by_made, "no such index: deliveries_by_made"),
        ] {
            assert_eq!(store.probe().await, Ok(()), "{take}");
            other.execute_batch(take).unwrap();
            let unavailable = store.probe().await.unwrap_err();
            assert!(!unavailable.is_local);
            for word in ["spigate.db: is not as spigate made it; ", "restore a backup", says] {
                assert!(unavailable.cause.contains(word), "{unavailable}");
            }
            other.execute_batch(give).unwrap();
        }
        assert_eq!(store.probe().await, Ok(()));
    }

    /// Larger files are not read whole at the start.
    #[test]
    fn a_start_tells_damage_that_every_order_would_meet() {
        let (_folder, path) = Folder::with_journal("start");
        let large = "CREATE TABLE large (bytes BLOB); INSERT INTO large VALUES (zeroblob(20000000)); DROP TABLE large";
        Connection::open(&path).unwrap().execute_batch(large).unwrap();
        drop(SqliteStore::serve(&path, |_| {}).unwrap());
        let last = |of| *leaves(&path, of).last().unwrap();
        for page in [last("deliveries_with_reply"), last("deliveries_by_made")] {
            let before = damage(&path, &[page]);
            let refused = SqliteStore::serve(&path, |_| {}).err().unwrap();
            assert!(refused.contains("is damaged") && refused.contains("restore a backup"), "{refused}");
            mend(&path, &before);
        }
        drop(SqliteStore::serve(&path, |_| {}).unwrap());
    }

    #[test]
    fn nothing_stays_of_it() {
        let (_folder, path) = Folder::with_journal("stays");
        let connection = Connection::open(&path).unwrap();
        connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(())).unwrap();
        let log = path.with_extension("db-wal");
        connection.execute_batch("UPDATE probes SET at = at; UPDATE indexed SET through = through").unwrap();
        let session = Session::new(&connection, Latest::All(Maker::begin(&connection).unwrap()));
        let state = || {
            let sql = "SELECT (SELECT count(*) FROM deliveries), (SELECT count(*) FROM attempts),
                           (SELECT count(*) FROM cycles), (SELECT count(*) FROM instances)";
            let rows =
                connection.query_row(sql, [], |row| Ok([row.get::<_, i64>(0)?, row.get(1)?, row.get(2)?, row.get(3)?]));
            let Latest::All(maker) = &session.latest else { panic!("makes no deliveries") };
            (rows.unwrap(), maker.latest(), maker.waiting(), fs::metadata(&log).unwrap().len())
        };
        let before = state();
        for second in 0..3 {
            rehearse(&session, Timestamp::from_second(second).unwrap()).unwrap();
            assert!(session.is_autocommit());
            assert_eq!(state(), before);
        }
        // The next order has the next row, and is found.
        let order = tables::tests::ask("o-1");
        let claimed = tables::claim(&session, &order).unwrap();
        keys::transaction_ended(&session, false);
        let row = connection.query_row("SELECT max(id) FROM deliveries", [], |row| row.get::<_, i64>(0));
        assert_eq!(row.unwrap(), 20_001);
        assert_eq!(tables::look(&session, &claimed.entry.key).unwrap().as_ref(), Some(&*claimed.entry));
        // Where it cannot be, nothing stays of the try either.
        let before = state();
        let full = "CREATE TEMP TRIGGER full BEFORE UPDATE ON deliveries BEGIN SELECT raise(ABORT, 'full'); END";
        connection.execute_batch(full).unwrap();
        let now = Timestamp::from_second(9).unwrap();
        assert!(rehearse(&session, now).is_err() && session.is_autocommit());
        assert_eq!(state(), before);
    }
}
