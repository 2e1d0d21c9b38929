//! The tables of a journal file, and how an older file becomes a current one.
//!
//! Each version is one step, never changed once it is released. All steps that a file lacks run
//! in one transaction, so that a file is of one version or of the next.

use rusqlite::Connection;

/// Marks a file as ours: "SPIG".
const APPLICATION_ID: i32 = 0x5350_4947;

/// The steps; the version of a file is how many of them it has taken.
const STEPS: &[&str] = &[
    "
    CREATE TABLE deliveries (
        id INTEGER PRIMARY KEY,
        key BLOB NOT NULL UNIQUE,
        origin BLOB NOT NULL,
        lookalike BLOB,
        fingerprint BLOB NOT NULL,
        extras BLOB NOT NULL,
        app TEXT NOT NULL,
        action TEXT NOT NULL,
        debug INTEGER NOT NULL,
        cycle INTEGER NOT NULL,
        order_id TEXT,
        instance_id TEXT,
        user_id TEXT,
        received_at INTEGER NOT NULL,
        changed_at INTEGER NOT NULL,
        state TEXT NOT NULL,
        doubt INTEGER NOT NULL,
        number INTEGER NOT NULL,
        gateway TEXT NOT NULL,
        claim INTEGER NOT NULL,
        request_id TEXT NOT NULL,
        began_at INTEGER NOT NULL,
        ended_at INTEGER,
        outcome TEXT,
        code TEXT,
        rule TEXT,
        detail TEXT,
        named_instance TEXT,
        confirmed_at INTEGER,
        made_instance TEXT,
        data_key INTEGER,
        reply BLOB,
        answered_at INTEGER,
        decision TEXT,
        decided_at INTEGER,
        message TEXT
    ) STRICT;
    CREATE INDEX deliveries_by_order ON deliveries (order_id) WHERE order_id IS NOT NULL;
    CREATE INDEX deliveries_lookalike ON deliveries (lookalike) WHERE lookalike IS NOT NULL;
    CREATE INDEX deliveries_running ON deliveries (id) WHERE state = 'running';
    CREATE INDEX deliveries_unconfirmed ON deliveries (app) WHERE state = 'unconfirmed';
    CREATE INDEX deliveries_unanswered ON deliveries (app) WHERE state = 'done' AND answered_at IS NULL;
    CREATE INDEX deliveries_with_reply ON deliveries (changed_at) WHERE reply IS NOT NULL;

    CREATE TABLE attempts (
        delivery INTEGER NOT NULL,
        number INTEGER NOT NULL,
        gateway TEXT NOT NULL,
        claim INTEGER NOT NULL,
        request_id TEXT NOT NULL,
        began_at INTEGER NOT NULL,
        ended_at INTEGER,
        outcome TEXT,
        code TEXT,
        rule TEXT,
        detail TEXT,
        named_instance TEXT,
        PRIMARY KEY (delivery, number)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE aliases (
        key BLOB NOT NULL PRIMARY KEY,
        delivery INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX aliases_by_delivery ON aliases (delivery);

    CREATE TABLE instances (
        app TEXT NOT NULL,
        instance_id TEXT NOT NULL,
        origin BLOB NOT NULL,
        touched_at INTEGER NOT NULL,
        PRIMARY KEY (app, instance_id)
    ) STRICT, WITHOUT ROWID;

    CREATE INDEX instances_touched ON instances (touched_at);

    CREATE TABLE cycles (
        app TEXT NOT NULL,
        instance_id TEXT NOT NULL,
        cycle INTEGER NOT NULL,
        touched_at INTEGER NOT NULL,
        PRIMARY KEY (app, instance_id)
    ) STRICT, WITHOUT ROWID;

    CREATE INDEX cycles_touched ON cycles (touched_at);

    CREATE TABLE data_keys (
        id INTEGER PRIMARY KEY,
        app TEXT NOT NULL
    ) STRICT;

    CREATE TABLE wraps (
        data_key INTEGER NOT NULL,
        wrapper BLOB NOT NULL,
        bytes BLOB NOT NULL,
        touched_at INTEGER NOT NULL,
        PRIMARY KEY (data_key, wrapper)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE probes (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        at INTEGER NOT NULL
    ) STRICT;
",
    "
    ALTER TABLE deliveries ADD COLUMN decided_by TEXT;
    ALTER TABLE deliveries ADD COLUMN reason TEXT;
    CREATE INDEX deliveries_by_instance ON deliveries (instance_id) WHERE instance_id IS NOT NULL;
    CREATE INDEX deliveries_by_made ON deliveries (made_instance) WHERE made_instance IS NOT NULL;
    CREATE INDEX deliveries_by_user ON deliveries (user_id) WHERE user_id IS NOT NULL;
    CREATE INDEX deliveries_by_app ON deliveries (app);
    CREATE INDEX deliveries_eventful ON deliveries (id) WHERE number > 1 OR outcome <> 'confirmed';
",
    // One index of what waits for somebody, which an end leaves as it is, instead of three; and an
    // instance is known by the delivery that made it, which has an index anyway.
    "
    ALTER TABLE deliveries ADD COLUMN waiting INTEGER;
    ALTER TABLE deliveries ADD COLUMN owns INTEGER;
    ALTER TABLE deliveries ADD COLUMN room BLOB;
    UPDATE deliveries SET waiting = 1 WHERE state = 'running';
    UPDATE deliveries SET waiting = 1 WHERE state = 'unconfirmed';
    UPDATE deliveries SET waiting = 1 WHERE state = 'done' AND answered_at IS NULL;
    DROP INDEX deliveries_running;
    DROP INDEX deliveries_unconfirmed;
    DROP INDEX deliveries_unanswered;
    CREATE INDEX deliveries_waiting ON deliveries (id) WHERE waiting IS NOT NULL;
",
    // Keys are indexed in a table of their own, many at a time, up to a mark (`keys.rs`); so the
    // deliveries are written anew without the index that each of them had to be in at once.
    "
    CREATE TABLE keys (
        key BLOB NOT NULL PRIMARY KEY,
        delivery INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE indexed (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        through INTEGER NOT NULL
    ) STRICT;
    INSERT INTO indexed (id, through) VALUES (1, 0);

    ALTER TABLE deliveries RENAME TO former;
    CREATE TABLE deliveries (
        id INTEGER PRIMARY KEY,
        key BLOB NOT NULL,
        origin BLOB NOT NULL,
        lookalike BLOB,
        fingerprint BLOB NOT NULL,
        extras BLOB NOT NULL,
        app TEXT NOT NULL,
        action TEXT NOT NULL,
        debug INTEGER NOT NULL,
        cycle INTEGER NOT NULL,
        order_id TEXT,
        instance_id TEXT,
        user_id TEXT,
        received_at INTEGER NOT NULL,
        changed_at INTEGER NOT NULL,
        state TEXT NOT NULL,
        doubt INTEGER NOT NULL,
        number INTEGER NOT NULL,
        gateway TEXT NOT NULL,
        claim INTEGER NOT NULL,
        request_id TEXT NOT NULL,
        began_at INTEGER NOT NULL,
        ended_at INTEGER,
        outcome TEXT,
        code TEXT,
        rule TEXT,
        detail TEXT,
        named_instance TEXT,
        confirmed_at INTEGER,
        made_instance TEXT,
        data_key INTEGER,
        reply BLOB,
        answered_at INTEGER,
        decision TEXT,
        decided_at INTEGER,
        message TEXT,
        decided_by TEXT,
        reason TEXT,
        waiting INTEGER,
        owns INTEGER,
        room BLOB
    ) STRICT;
    -- The columns are the same, in the same order.
    INSERT INTO deliveries SELECT * FROM former ORDER BY id;
    DROP TABLE former;
    CREATE INDEX deliveries_by_order ON deliveries (order_id) WHERE order_id IS NOT NULL;
    CREATE INDEX deliveries_lookalike ON deliveries (lookalike) WHERE lookalike IS NOT NULL;
    CREATE INDEX deliveries_with_reply ON deliveries (changed_at) WHERE reply IS NOT NULL;
    CREATE INDEX deliveries_by_instance ON deliveries (instance_id) WHERE instance_id IS NOT NULL;
    CREATE INDEX deliveries_by_made ON deliveries (made_instance) WHERE made_instance IS NOT NULL;
    CREATE INDEX deliveries_by_user ON deliveries (user_id) WHERE user_id IS NOT NULL;
    CREATE INDEX deliveries_by_app ON deliveries (app);
    CREATE INDEX deliveries_eventful ON deliveries (id) WHERE number > 1 OR outcome <> 'confirmed';
    CREATE INDEX deliveries_waiting ON deliveries (id) WHERE waiting IS NOT NULL;
",
    // What else deliveries are looked for by is in a table, too, and put there many at a time (`names.rs`).
    "
    CREATE TABLE names (
        kind INTEGER NOT NULL,
        name TEXT NOT NULL,
        delivery INTEGER NOT NULL,
        PRIMARY KEY (kind, name, delivery)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE named (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        through INTEGER NOT NULL
    ) STRICT;
    INSERT INTO named (id, through) VALUES (1, 0);
    DROP INDEX deliveries_by_order;
    DROP INDEX deliveries_by_instance;
    DROP INDEX deliveries_by_user;
    DROP INDEX deliveries_by_app;
",
];

/// Why a file cannot be brought up to date.
pub(super) enum MigrationError {
    /// SQLite says no.
    Sqlite(rusqlite::Error),
    /// The file belongs to something else.
    Foreign,
    /// There can be no write-ahead log where it lies.
    NoLog,
    /// An older spigate wrote it, and it is not ours to change.
    Older,
    /// A newer spigate wrote it.
    Newer {
        /// Its version.
        found: i64,
        /// The newest that this one knows.
        known: usize,
    },
}

impl From<rusqlite::Error> for MigrationError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

/// The steps that a file lacks.
fn missing(connection: &Connection) -> Result<&'static [&'static str], MigrationError> {
    let pragma = |name: &str| connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, i64>(0));
    let version = pragma("user_version")?;
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if tables > 0 && pragma("application_id")? != i64::from(APPLICATION_ID) {
        return Err(MigrationError::Foreign);
    }
    let done = usize::try_from(version).unwrap_or(usize::MAX);
    STEPS.get(done..).ok_or(MigrationError::Newer { found: version, known: STEPS.len() })
}

/// Whether a file is ours, or empty and can become it. Changes nothing.
pub(super) fn recognize(connection: &Connection) -> Result<(), MigrationError> {
    missing(connection).map(drop)
}

/// Whether a file is of this version. The process that serves from it may be of another one.
pub(super) fn check(connection: &Connection) -> Result<(), MigrationError> {
    if missing(connection)?.is_empty() { Ok(()) } else { Err(MigrationError::Older) }
}

/// Makes the tables, or brings them up to date.
pub(super) fn migrate(connection: &Connection) -> Result<(), MigrationError> {
    connection.execute_batch("BEGIN IMMEDIATE")?;
    let steps = (|| {
        let missing = missing(connection)?;
        for step in missing {
            connection.execute_batch(step)?;
        }
        if !missing.is_empty() {
            connection.pragma_update(None, "application_id", APPLICATION_ID)?;
            connection.pragma_update(None, "user_version", i64::try_from(STEPS.len()).unwrap_or(i64::MAX))?;
        }
        Ok(())
    })();
    match steps {
        Ok(()) => Ok(connection.execute_batch("COMMIT")?),
        Err(error) => {
            // Whatever went wrong is told; a rollback that fails too adds nothing.
            let _ = connection.execute_batch("ROLLBACK");
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::entry::State;
    use crate::journal::key::{DeliveryKey, Origin};
    use crate::journal::sqlite::keys::{Latest, Maker};
    use crate::journal::sqlite::session::Session;
    use crate::journal::sqlite::{browse, rows, tables};
    use crate::journal::store::{Counts, Filter, Which};
    use jiff::Timestamp;

    /// A file that the first version has written.
    fn first() -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(STEPS[0]).unwrap();
        connection.pragma_update(None, "application_id", APPLICATION_ID).unwrap();
        connection.pragma_update(None, "user_version", 1).unwrap();
        let rows = "
            INSERT INTO deliveries (key, origin, fingerprint, extras, app, action, debug, cycle, order_id, instance_id,
                user_id, received_at, changed_at, state, doubt, number, gateway, claim, request_id, began_at, ended_at,
                outcome, confirmed_at, made_instance, data_key, reply, answered_at, decision, decided_at, message)
            VALUES
                (zeroblob(32), zeroblob(32), zeroblob(32), zeroblob(32), 'crm', 'Create', 0, 0, 'o-1', NULL, 'u-1', 1, 2,
                    'done', 0, 2, 'g', 1, 'r', 1, 2, 'confirmed', 2, 'i-1', 1, x'0102', NULL, 'retry', 1, NULL),
                (x'0100000000000000000000000000000000000000000000000000000000000000', zeroblob(32), zeroblob(32),
                    zeroblob(32), 'crm', 'Delete', 0, 0, NULL, 'i-1', NULL, 3, 3,
                    'closed', 0, 1, 'g', 2, 'r', 3, 3, 'unconfirmed', NULL, NULL, NULL, NULL, NULL, 'failed', 4, 'no');
            INSERT INTO attempts (delivery, number, gateway, claim, request_id, began_at, ended_at, outcome)
            VALUES (1, 1, 'g', 0, 'r', 1, 1, 'unconfirmed');";
        connection.execute_batch(rows).unwrap();
        connection
    }

    #[test]
    fn a_file_of_the_first_version_keeps_what_it_holds_and_is_found_by_what_is_new() {
        let connection = first();
        assert!(matches!(check(&connection), Err(MigrationError::Older)));
        // Twice, as at two starts.
        assert!(migrate(&connection).is_ok() && migrate(&connection).is_ok() && check(&connection).is_ok());
        let find = |filter: Filter| browse::browse(&connection, &filter, None, 10).unwrap().records;
        let all = find(Filter::default());
        assert_eq!(all.len(), 2);
        let (closed, done) = (&all[0].entry, &all[1]);
        let decision = closed.decision.as_ref().unwrap();
        assert_eq!((&*decision.what, decision.message.as_deref(), &decision.by), ("failed", Some("no"), &None));
        assert_eq!((done.history.len(), done.entry.latest.number), (1, 2));
        assert_eq!(done.entry.reply.as_ref().unwrap().bytes, [1, 2]);
        assert_eq!(done.entry.decision.as_ref().unwrap().why, None);
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(find(Filter { instance_id: text("i-1"), ..Filter::default() }).len(), 2);
        assert_eq!(find(Filter { user_id: text("u-1"), ..Filter::default() }).len(), 1);
        // And what is new can be written.
        let mut changed = done.entry.clone();
        changed.decision.as_mut().unwrap().by = text("me");
        rows::put_entry(&Session::new(&connection, Latest::Nothing), rows::Place::Row(done.cursor), &changed, false)
            .unwrap();
        assert_eq!(find(Filter { order_id: text("o-1"), ..Filter::default() })[0].entry, changed);
    }

    /// What waited before there was a column for it waits still, and instances have their owners.
    #[test]
    fn a_file_of_the_second_version_still_knows_what_waits_and_whose_an_instance_is() {
        let connection = first();
        connection.execute_batch(STEPS[1]).unwrap();
        connection.pragma_update(None, "user_version", 2).unwrap();
        let more = "
            INSERT INTO instances (app, instance_id, origin, touched_at) VALUES ('crm', 'i-1', zeroblob(32), 2);
            INSERT INTO deliveries (key, origin, fingerprint, extras, app, action, debug, cycle, received_at, changed_at,
                state, doubt, number, gateway, claim, request_id, began_at, outcome, answered_at)
            VALUES
                (randomblob(32), zeroblob(32), zeroblob(32), zeroblob(32), 'crm', 'Create', 0, 0, 5, 5,
                    'running', 0, 1, 'g', 3, 'r', 5, NULL, NULL),
                (randomblob(32), zeroblob(32), zeroblob(32), zeroblob(32), 'crm', 'Create', 0, 0, 6, 6,
                    'unconfirmed', 0, 1, 'g', 4, 'r', 6, 'unconfirmed', NULL),
                (randomblob(32), zeroblob(32), zeroblob(32), zeroblob(32), 'erp', 'Create', 0, 0, 7, 7,
                    'done', 0, 1, 'g', 5, 'r', 7, 'confirmed', 8);";
        connection.execute_batch(more).unwrap();
        assert!(matches!(check(&connection), Err(MigrationError::Older)));
        assert!(migrate(&connection).is_ok() && check(&connection).is_ok());
        let counts = tables::counts(&connection).unwrap();
        assert_eq!(counts, [Counts { app: "crm".into(), unconfirmed: 1, unanswered: 1 }]);
        let count = |which| {
            let filter = Filter { which: Some(which), ..Filter::default() };
            browse::browse(&connection, &filter, None, 10).unwrap().records.len()
        };
        assert_eq!([State::Running, State::Unconfirmed].map(|state| count(Which::State(state))), [1, 1]);
        assert_eq!((count(Which::Unanswered), count(Which::State(State::Done))), (1, 2));
        assert_eq!(tables::take_over(&Session::new(&connection, Latest::Nothing), Timestamp::UNIX_EPOCH).unwrap(), 1);
        assert_eq!([State::Running, State::Unconfirmed].map(|state| count(Which::State(state))), [0, 2]);
        let session = Session::new(&connection, Latest::Nothing);
        let origin = |byte| Origin::from_slice(&[byte; 32]).unwrap();
        assert!(tables::is_taken(&session, "crm", "i-1", &origin(1)).unwrap());
        assert!(!tables::is_taken(&session, "crm", "i-1", &origin(0)).unwrap());
    }

    /// The fourth step writes the deliveries anew: with the same columns, in the same order, and the same
    /// indexes, but that of keys. The fifth drops those of names.
    #[test]
    fn a_file_of_the_third_version_loses_nothing_but_the_indexes_of_keys_and_names() {
        let connection = first();
        connection.execute_batch(&STEPS[1..3].concat()).unwrap();
        connection.pragma_update(None, "user_version", 3).unwrap();
        let texts = |sql: &str| {
            let mut statement = connection.prepare(sql).unwrap();
            let texts = statement.query_map([], |row| row.get::<_, String>(0)).unwrap();
            texts.collect::<rusqlite::Result<Vec<_>>>().unwrap()
        };
        let columns = "SELECT format('%s %s %d', name, type, \"notnull\") FROM pragma_table_info('deliveries')";
        let indexes = "SELECT sql FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL AND name NOT IN
                           ('deliveries_by_order', 'deliveries_by_instance', 'deliveries_by_user', 'deliveries_by_app')
                       ORDER BY sql";
        let rows = "SELECT format('%d %s %s', id, hex(key), coalesce(order_id, '-')) FROM deliveries ORDER BY id";
        let before = [columns, indexes, rows].map(texts);
        assert!(migrate(&connection).is_ok() && check(&connection).is_ok());
        assert_eq!([columns, indexes, rows].map(texts), before);
        assert_eq!(before.map(|texts| texts.len()), [41, 8, 2]);

        let key = DeliveryKey::from_slice(&[0; 32]).unwrap();
        let order = |session: &Session<'_>| rows::entry_at(session, &key).unwrap().unwrap().1.subject.order_id.clone();
        assert_eq!(order(&Session::new(&connection, Latest::Nothing)).as_deref(), Some("o-1"));
        let serving = Session::new(&connection, Latest::All(Maker::begin(&connection).unwrap()));
        assert_eq!(order(&serving).as_deref(), Some("o-1"));
    }

    #[test]
    fn a_file_whose_steps_fail_stays_of_the_version_that_it_was() {
        let connection = first();
        // The name of an index that the second step makes, after it has added columns.
        connection.execute_batch("CREATE TABLE deliveries_eventful (id INTEGER)").unwrap();
        assert!(matches!(migrate(&connection), Err(MigrationError::Sqlite(_))));
        assert!(connection.is_autocommit());
        assert!(matches!(check(&connection), Err(MigrationError::Older)));
        assert!(connection.prepare("SELECT decided_by FROM deliveries").is_err());
        assert!(connection.prepare("SELECT waiting FROM deliveries").is_err());
        connection.execute_batch("DROP TABLE deliveries_eventful").unwrap();
        assert!(migrate(&connection).is_ok());
    }
}
