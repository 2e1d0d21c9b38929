//! The journal in a file: SQLite, built in, one serving process for each file.
//!
//! WAL with `synchronous = FULL`: what is answered survives a crash of the machine. One thread
//! writes and shares each flush among all that wait (`worker.rs`); another one reads, and a third
//! one reads what operators ask for (`browse.rs`). Whoever looks from outside (`spigate journal`) opens the same file beside the serving process.

mod browse;
mod keys;
mod names;
mod queue;
mod recent;
mod rehearsal;
mod room;
mod rows;
mod schema;
mod session;
mod tables;
mod worker;

use std::fs::{self, File, OpenOptions};
use std::future::Future;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use rustix::fs::{AtFlags, CWD, FlockOperation, StatxFlags, flock, statx};

use self::keys::{Latest, Maker};
use self::room::Room;
use self::schema::MigrationError;
use self::session::Session;
use self::worker::Worker;
use super::entry::{Ask, End, Entry, State};
use super::key::DeliveryKey;
use super::machine::{Claimed, Finished, Ruling};
use super::store::{
    Answer, Archive, Brief, Browsed, Counts, DataKey, Deliveries, Filter, Keys, Pruned, Record, Resolved, Retention,
    Store, Unavailable, Wrap,
};
use crate::clock;

/// How long a copy waits before it looks whether the attempt that it joined has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// How long the lock of another process (`spigate journal resolve`, a backup) is waited for.
const BUSY: Duration = Duration::from_secs(2);
/// Files up to this size are checked whole at start; it takes a fraction of a second.
const SMALL: u64 = 16 * 1024 * 1024;

/// See the module.
pub struct SqliteStore {
    writer: Worker,
    reader: Worker,
    /// Reads for operators, whose questions may take longer than a delivery should wait.
    browser: Worker,
    path: PathBuf,
    taken_over: usize,
    /// Held for as long as this process serves from the file.
    _lock: Option<File>,
}

impl SqliteStore {
    /// Opens a file to serve from it, and makes it if there is none. `on_batch` is told how many
    /// operations shared each transaction.
    ///
    /// # Errors
    /// What is wrong with the file and what to do about it.
    pub fn serve(path: &Path, on_batch: impl Fn(usize) + Send + Sync + 'static) -> Result<Self, String> {
        create(path)?;
        // Whatever links lead to the file, it has one lock.
        let path = path.canonicalize().map_err(|error| format!("{}: {error}", path.display()))?;
        let lock = lock(&path)?;
        Self::open(&path, Arc::new(on_batch), Some(lock))
    }

    /// Opens a file beside the process that serves from it.
    ///
    /// # Errors
    /// What is wrong with the file and what to do about it.
    pub fn visit(path: &Path) -> Result<Self, String> {
        if !path.exists() {
            return Err(format!("{}: there is no such journal", path.display()));
        }
        Self::open(path, Arc::new(|_| {}), None)
    }

    /// How many attempts a process that is no more had running; they are unconfirmed now.
    pub fn taken_over(&self) -> usize {
        self.taken_over
    }

    fn open(path: &Path, on_batch: worker::OnBatch, lock: Option<File>) -> Result<Self, String> {
        let explain = |error| explain(path, error);
        let connection = connect(path).map_err(explain)?;
        if fs::metadata(path).is_ok_and(|file| file.len() <= SMALL) {
            check(&connection).map_err(|error| explain(error.into()))?;
        }
        let current = if lock.is_some() { schema::migrate(&connection) } else { schema::check(&connection) };
        current.map_err(explain)?;
        let now = clock::now();
        let (taken_over, latest) = if lock.is_some() {
            let begin = || {
                // Whoever writes needs the index of keys at hand.
                connection.execute_batch("PRAGMA cache_size = -8192")?;
                let maker = Maker::begin(&connection)?;
                names::begin(&connection)?;
                let serving = Session::new(&connection, Latest::All(maker));
                rehearsal::rehearse(&serving, now)?;
                connection.execute_batch("BEGIN IMMEDIATE")?;
                // Also shows whether the file can be written at all.
                tables::probe(&connection, now)?;
                let taken_over = tables::take_over(&Session::new(&connection, Latest::Nothing), now)?;
                connection.execute_batch("COMMIT")?;
                Ok((taken_over, serving.into_latest()))
            };
            begin().map_err(|error: rusqlite::Error| explain(error.into()))?
        } else {
            (0, Latest::Nothing)
        };
        let seen = latest.for_readers();
        let (reading, browsing) = (connect(path).map_err(explain)?, connect(path).map_err(explain)?);
        let (files, room) = (Files::of(path), lock.is_some().then(|| Room::of(&beside(path, "-wal"))));
        Ok(Self {
            writer: Worker::writer(connection, latest, room, on_batch, Box::new(move || files.check()))?,
            reader: Worker::reader("journal-read", reading, seen)?,
            browser: Worker::reader("journal-browse", browsing, Latest::Nothing)?,
            path: path.to_owned(),
            taken_over,
            _lock: lock,
        })
    }

    /// Whether an order could be recorded now. If not, that is nobody's fault alone.
    async fn rehearse(&self, now: Timestamp) -> Result<(), Unavailable> {
        // Told in the words of a start, which would meet the same.
        let rehearsed = self.writer.ask_apart(move |session| Ok(rehearsal::rehearse(session, now))).await?;
        rehearsed.map_err(|error| Unavailable::new(explain(&self.path, error.into())))
    }
}

/// The files that this process has open. What is written into one that was removed or replaced
/// is not found by anybody any more, and SQLite does not notice.
struct Files(Vec<(PathBuf, (u32, u32, u64))>);

impl Files {
    fn of(path: &Path) -> Self {
        let files = ["", "-wal", "-shm"].map(|ending| beside(path, ending));
        Self(files.into_iter().filter_map(|file| Some((identity(&file)?, file))).map(|(id, file)| (file, id)).collect())
    }

    fn check(&self) -> Result<(), Unavailable> {
        match self.0.iter().find(|(file, id)| identity(file) != Some(*id)) {
            None => Ok(()),
            Some((file, _)) => Err(Unavailable::new(format_args!(
                "{} was removed or replaced while it was in use; put it back, or restart spigate to begin with what is \
                 there now",
                file.display()
            ))),
        }
    }
}

/// Device and inode. Nothing else is asked for: whoever asks for the time of a change makes the
/// next one of a later time, and so has every flush write the inode as well.
fn identity(file: &Path) -> Option<(u32, u32, u64)> {
    let file = statx(CWD, file, AtFlags::empty(), StatxFlags::INO).ok()?;
    Some((file.stx_dev_major, file.stx_dev_minor, file.stx_ino))
}

/// A file of SQLite's or ours that goes with the journal.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

/// Makes the file for the owner only: it holds orders, and sealed passwords.
fn create(path: &Path) -> Result<(), String> {
    let made = OpenOptions::new().create(true).append(true).mode(0o600).open(path);
    made.map(drop).map_err(|error| {
        let advice = match error.kind() {
            io::ErrorKind::IsADirectory => "journal.url must name a file, which may lie in that directory",
            _ => "the directory must exist, and it and the file must be writable for this user",
        };
        format!("{}: cannot be opened for writing: {error}; {advice}", path.display())
    })
}

/// Takes the file for this process.
fn lock(path: &Path) -> Result<File, String> {
    let name = beside(path, "-lock");
    let opened = OpenOptions::new().create(true).read(true).write(true).truncate(false).mode(0o600).open(&name);
    let mut file = opened.map_err(|error| {
        format!(
            "{}: cannot be opened for writing: {error}; the directory must exist and be writable for this user",
            name.display()
        )
    })?;
    if let Err(error) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
        if error != rustix::io::Errno::WOULDBLOCK {
            return Err(format!(
                "{}: cannot be locked: {error}; journals need a file system with locks, best a local one",
                name.display()
            ));
        }
        let mut owner = String::new();
        // Who holds it is a help, not a condition.
        let _ = file.read_to_string(&mut owner);
        let owner = owner.trim();
        let owner = if owner.is_empty() { String::new() } else { format!(" (process {owner})") };
        return Err(format!(
            "{}: another spigate{owner} serves from this journal; give each its own file, or use postgres:// for \
             several gateways",
            path.display()
        ));
    }
    let _ = file.set_len(0).and_then(|()| file.write_all(format!("{}\n", std::process::id()).as_bytes()));
    Ok(file)
}

fn connect(path: &Path) -> Result<Connection, MigrationError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY)?;
    connection.set_prepared_statement_cache_capacity(64);
    // Another application's file must be left as it is, and the next step would change it.
    schema::recognize(&connection)?;
    let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    if mode != "wal" {
        return Err(MigrationError::NoLog);
    }
    // Keys are random: a longer log (32 MiB) writes a page to the file once for many orders, not for a
    // few. Longer ones were measured and save nothing more.
    connection.execute_batch(
        "PRAGMA synchronous = FULL; PRAGMA temp_store = MEMORY; PRAGMA cache_size = -4096; \
         PRAGMA wal_autocheckpoint = 8000; PRAGMA journal_size_limit = 67108864; PRAGMA trusted_schema = OFF;",
    )?;
    Ok(connection)
}

fn check(connection: &Connection) -> rusqlite::Result<()> {
    let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if verdict == "ok" {
        return Ok(());
    }
    let corrupt = rusqlite::ffi::Error { code: ErrorCode::DatabaseCorrupt, extended_code: 11 };
    Err(rusqlite::Error::SqliteFailure(corrupt, Some(verdict.replace('\n', " "))))
}

/// An error at start, as somebody has to read it who has never heard of SQLite's.
fn explain(path: &Path, error: MigrationError) -> String {
    let path = path.display();
    let error = match error {
        MigrationError::Foreign => {
            return format!(
                "{path}: is a database, but not a journal of spigate; set journal.url to another file, and leave this \
                 one to its owner"
            );
        }
        MigrationError::NoLog => {
            return format!(
                "{path}: lies on a file system that cannot share memory, as SQLite's write-ahead log needs; use a \
                 local disk"
            );
        }
        MigrationError::Older => {
            return format!("{path}: is of an older schema; start the gateway once with this version of spigate");
        }
        MigrationError::Newer { found, known } => {
            return format!(
                "{path}: was written by a newer spigate (schema {found}, this one knows {known}); run that version, \
                 or set journal.url to another file"
            );
        }
        MigrationError::Sqlite(error) => error,
    };
    let advice = match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => {
            "is not a journal of spigate: it is no database, or its beginning is damaged; set journal.url to another \
             file, or restore a backup"
        }
        Some(ErrorCode::DatabaseCorrupt) => {
            "is damaged; stop everything that uses it, keep a copy, and restore a backup, or save what can be read \
             with the sqlite3 program's .recover"
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            "is locked by another process; end the backup or the sqlite3 session that holds it"
        }
        Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
            "cannot be written; the file, its directory and its -wal and -shm files must be writable for this user"
        }
        Some(ErrorCode::DiskFull) => "cannot be written: the disk is full; make room",
        Some(ErrorCode::SystemIoFailure) => "cannot be read or written: the disk reports errors",
        Some(ErrorCode::Unknown) => {
            "is not as spigate made it; stop everything that uses it, keep a copy, and restore a backup"
        }
        _ => "cannot be used",
    };
    format!("{path}: {advice} (SQLite: {error})")
}

impl Deliveries for SqliteStore {
    fn claim(&self, ask: Arc<Ask>) -> Answer<'_, Claimed> {
        if ask.subject.lookalike.is_some() {
            // Whether the one like it was answered decides.
            return self.writer.ask(move |session| tables::claim(session, &ask));
        }
        self.writer.ask_ahead(move |session| tables::claim(session, &ask))
    }

    fn finish(&self, end: End) -> Answer<'_, (Finished, Arc<Entry>)> {
        self.writer.ask_ahead(move |session| tables::finish(session, &end))
    }

    fn answered(&self, key: DeliveryKey, told: State, at: Timestamp) -> Answer<'static, ()> {
        self.writer.tell(move |session| tables::answered(session, &key, told, at));
        Answer::known(Ok(()))
    }

    fn look(&self, key: DeliveryKey) -> Answer<'_, Option<Entry>> {
        self.reader.ask(move |session| tables::look(session, &key))
    }

    fn changed(&self, _: DeliveryKey) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(tokio::time::sleep(LOOK_AGAIN))
    }

    fn probe(&self) -> Answer<'_, ()> {
        Answer::work(async {
            let now = clock::now();
            self.rehearse(now).await?;
            self.writer.ask(move |session| tables::probe(session, now)).await
        })
    }

    fn close(&self) -> Answer<'_, ()> {
        // The lock goes with the process. What was told and not waited for is written by now.
        self.writer.ask(|_| Ok(()))
    }
}

impl Archive for SqliteStore {
    fn list(&self, filter: Filter, cursor: Option<i64>, limit: usize) -> Answer<'_, Vec<Record>> {
        self.browser.ask(move |session| browse::list(session, &filter, cursor, limit))
    }

    fn browse(&self, filter: Filter, cursor: Option<i64>, limit: usize) -> Answer<'_, Browsed> {
        self.browser.ask(move |session| browse::browse(session, &filter, cursor, limit))
    }

    fn recent(&self, since: Timestamp, most: usize) -> Answer<'_, Vec<Brief>> {
        self.browser.ask(move |session| browse::recent(session, since, most))
    }

    fn resolve(&self, key: DeliveryKey, ruling: Ruling, now: Timestamp) -> Answer<'_, Option<Resolved>> {
        self.writer.ask(move |session| tables::resolve(session, &key, &ruling, now))
    }

    fn counts(&self) -> Answer<'_, Vec<Counts>> {
        self.browser.ask(|session| tables::counts(session))
    }

    fn prune(&self, retention: Retention) -> Answer<'_, Pruned> {
        self.writer.ask(move |session| tables::prune(session, &retention))
    }
}

impl Keys for SqliteStore {
    fn data_keys(&self) -> Answer<'_, Vec<DataKey>> {
        self.reader.ask(|session| tables::data_keys(session))
    }

    fn add_data_key(&self, app: String, wraps: Vec<Wrap>, now: Timestamp) -> Answer<'_, i64> {
        self.writer.ask(move |session| tables::add_data_key(session, &app, &wraps, now))
    }

    fn put_wraps(&self, data_key: i64, wraps: Vec<Wrap>, now: Timestamp) -> Answer<'_, ()> {
        self.writer.ask(move |session| tables::put_wraps(session, data_key, &wraps, now))
    }
}

impl Store for SqliteStore {
    fn lease(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_one_lock_whatever_links_lead_to_it() {
        let folder = std::env::temp_dir().join(format!("spigate-lock-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (file, link) = (folder.join("a.db"), folder.join("b.db"));
        let serving = SqliteStore::serve(&file, |_| {}).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let refused = SqliteStore::serve(&link, |_| {}).err().unwrap();
        assert!(refused.contains("another spigate"), "{refused}");
        drop(serving);
        assert!(SqliteStore::serve(&link, |_| {}).is_ok());
        fs::remove_dir_all(folder).unwrap();
    }
}
