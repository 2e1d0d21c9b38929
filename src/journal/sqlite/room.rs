//! Room in the write-ahead log, taken before it is needed.
//!
//! With the flush of a file that has grown, its file system writes a journal of its own as well; it does
//! not where bytes took the place of others. SQLite's log grows with every commit until it has 32 MiB and
//! a checkpoint begins it anew; the file stays as long as that. Until then, which is fifteen hundred orders
//! one by one, or half a day of nothing but probes, each order would wait for two such flushes. So while
//! nobody waits, the serving process writes zeros behind the end of the log: few at first, and twice as
//! many whenever half of it is used.
//!
//! Zeros are no frames: a log ends where the next bytes do not continue it, and anything may follow
//! (sqlite.org's "WAL-mode File Format", 4.1). They are written under the lock of those who write, so that
//! nobody else lets the log grow, or cuts it, in the meantime.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use rustix::fs::fstatvfs;

use super::BUSY;
use super::session::{self, Session};
use super::worker::Check;

/// So many bytes are taken at once: a millisecond or two of a disk's time.
const STEP: u64 = 256 * 1024;

/// As long as logs get: `wal_autocheckpoint` pages, and somewhat more for the batch that goes beyond.
const MOST: u64 = 33 * 1024 * 1024;

/// While the disk has less left than this, it is for what is needed now.
const SPARE: u64 = 16 * MOST;

/// Longer than a frame of the log, of which not all is zero.
const FRAME: usize = 8 * 1024;

/// See the module.
pub(super) struct Room {
    /// Nothing once that has failed.
    log: Option<File>,
    /// The length that the log is to have for now.
    goal: u64,
    spare: u64,
}

impl Room {
    /// In the log that lies there. If it cannot be opened there is none to take; who needs it tells why.
    pub(super) fn of(log: &Path) -> Self {
        Self { log: OpenOptions::new().read(true).write(true).open(log).ok(), goal: STEP, spare: SPARE }
    }

    /// Takes some, if it may be needed and `check` says that what is written will be found again. Says
    /// whether it did.
    pub(super) fn take_some(&mut self, session: &Session<'_>, check: &Check) -> bool {
        let taken = self.try_to_take(session, check);
        if taken.is_err() {
            // Whoever needs the disk will tell. The next start tries again.
            self.log = None;
        }
        taken.unwrap_or(false)
    }

    fn try_to_take(&mut self, session: &Session<'_>, check: &Check) -> io::Result<bool> {
        let Some(log) = &self.log else { return Ok(false) };
        let length = length(log)?;
        if length >= self.goal {
            if length >= MOST || !is_used(log, length / 2)? {
                return Ok(false);
            }
            self.goal = (2 * length).min(MOST);
        }
        let disk = fstatvfs(log)?;
        if disk.f_bavail.saturating_mul(disk.f_frsize) < self.spare || check().is_err() {
            return Ok(false);
        }
        let mut grown = Ok(());
        let locked = at_once(session, || {
            grown = grow(log, self.goal);
            Ok(())
        });
        // If somebody else writes, there is time for it later.
        grown.map(|()| locked.is_ok())
    }
}

/// The bytes of a file. Its other properties are not asked for (see `identity`).
fn length(mut file: &File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}

/// Whether the log has ever been written to this place.
fn is_used(log: &File, at: u64) -> io::Result<bool> {
    let mut frame = [0; FRAME];
    match log.read_exact_at(&mut frame, at) {
        Ok(()) => Ok(frame.iter().any(|&byte| byte != 0)),
        // Somebody has cut it just now.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Does something as the only one who writes, if nobody else does.
fn at_once(session: &Session<'_>, work: impl FnOnce() -> rusqlite::Result<()>) -> rusqlite::Result<()> {
    session.busy_timeout(Duration::ZERO)?;
    let done = session::undone(session, work);
    session.busy_timeout(BUSY)?;
    done
}

/// Adds zeros, towards this length, or nothing at all.
fn grow(log: &File, goal: u64) -> io::Result<()> {
    let length = length(log)?;
    let zeros = goal.saturating_sub(length).min(STEP);
    let zeros = vec![0; usize::try_from(zeros).unwrap_or_default()];
    let grown = log.write_all_at(&zeros, length).and_then(|()| log.sync_data());
    if grown.is_err() {
        // Of a full disk, what it took before it said so. What matters is told by whoever needs it.
        let _ = log.set_len(length);
    }
    grown
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use rusqlite::Connection;

    use super::*;
    use crate::journal::sqlite::keys::Latest;
    use crate::journal::sqlite::{beside, connect, schema};
    use crate::journal::store::Unavailable;

    /// A file with a log, and both are gone with this.
    struct Journal {
        folder: PathBuf,
        path: PathBuf,
        log: PathBuf,
        connection: Connection,
    }

    impl Journal {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("spigate-room-{name}-{}", std::process::id()));
            fs::create_dir_all(&folder).unwrap();
            let path = folder.join("spigate.db");
            let connection = connection(&path);
            assert!(schema::migrate(&connection).is_ok());
            connection.execute_batch("CREATE TABLE notes (bytes BLOB)").unwrap();
            Self { log: beside(&path, "-wal"), folder, path, connection }
        }

        /// A log that may be taken room in, whatever the disk has left.
        fn room(&self) -> Room {
            Room { spare: 0, ..Room::of(&self.log) }
        }

        /// Whatever is to be taken now.
        fn take(&self, room: &mut Room) -> u64 {
            let session = Session::new(&self.connection, Latest::Nothing);
            while room.take_some(&session, &whole()) {}
            self.length()
        }

        fn length(&self) -> u64 {
            fs::metadata(&self.log).unwrap().len()
        }

        /// Writes more than so many bytes to the log, and says how many notes there are.
        fn write(&self, bytes: u64) -> u32 {
            let insert = "INSERT INTO notes VALUES (randomblob(?1))";
            self.connection.execute(insert, [i64::try_from(bytes).unwrap()]).unwrap();
            notes(&self.connection)
        }

        /// How many notes are in the files as they lie there, which are whole.
        fn notes_after_crash(&self) -> u32 {
            let crashed = self.folder.join("crashed.db");
            // To close the copied file ends SQLite's locks on it in this process; here nobody needs them.
            for ending in ["", "-wal"] {
                fs::copy(beside(&self.path, ending), beside(&crashed, ending)).unwrap();
            }
            let crashed = connection(&crashed);
            let verdict: String = crashed.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
            assert_eq!(verdict, "ok");
            notes(&crashed)
        }
    }

    impl Drop for Journal {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }

    fn whole() -> Check {
        Box::new(|| Ok(()))
    }

    fn connection(path: &Path) -> Connection {
        fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
        connect(path).unwrap_or_else(|_| panic!("{}", path.display()))
    }

    fn notes(connection: &Connection) -> u32 {
        connection.query_row("SELECT count(*) FROM notes", [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn it_doubles_whenever_half_is_used_and_has_an_end() {
        let journal = Journal::new("doubles");
        let mut room = journal.room();
        assert!(journal.length() < STEP / 2);
        let (mut written, mut lengths) = (0, vec![journal.take(&mut room)]);
        while lengths.last() < Some(&MOST) {
            assert_eq!(Some(&journal.take(&mut room)), lengths.last(), "nothing is needed");
            written += 1;
            assert_eq!(journal.write(STEP / 4), written);
            let length = journal.take(&mut room);
            let all = u64::from(written) * STEP / 4;
            assert!(all <= length / 2 + FRAME as u64 || length == MOST, "{all} of {length}");
            lengths.push(length);
        }
        lengths.dedup();
        assert_eq!(lengths, [1, 2, 4, 8, 16, 32, 64, 128, MOST / STEP].map(|steps| steps * STEP));
        // No more, though more is used.
        journal.write(20 * STEP);
        assert_eq!(journal.take(&mut room), MOST);
        assert_eq!(journal.notes_after_crash(), written + 1);
    }

    #[test]
    fn a_log_that_grew_by_itself_is_followed() {
        let journal = Journal::new("follows");
        let mut room = journal.room();
        journal.write(3 * STEP);
        let length = journal.length();
        assert!(length > 3 * STEP);
        assert_eq!(journal.take(&mut room), 2 * length);
        // And one that was cut is given the same again.
        let cut = "PRAGMA wal_checkpoint(TRUNCATE)";
        journal.connection.query_row(cut, [], |_| Ok(())).unwrap();
        assert_eq!(journal.length(), 0);
        assert_eq!(journal.take(&mut room), 2 * length);
        assert_eq!(journal.notes_after_crash(), 1);
        journal.write(1);
        assert_eq!(journal.notes_after_crash(), 2);
    }

    #[test]
    fn nothing_is_taken_while_another_writes_or_the_disk_has_little_left() {
        let journal = Journal::new("leaves");
        let mut room = journal.room();
        let before = journal.length();
        let another = connection(&journal.path);
        another.execute_batch("BEGIN IMMEDIATE").unwrap();
        let begun = std::time::Instant::now();
        assert_eq!(journal.take(&mut room), before);
        assert!(begun.elapsed() < BUSY, "it waited");
        another.execute_batch("ROLLBACK").unwrap();
        room.spare = u64::MAX;
        assert_eq!(journal.take(&mut room), before);
        room.spare = 0;
        // What would be written into a file that is gone.
        let session = Session::new(&journal.connection, Latest::Nothing);
        assert!(!room.take_some(&session, &(Box::new(|| Err(Unavailable::new("removed"))) as Check)));
        drop(session);
        assert_eq!(journal.length(), before);
        assert_eq!(journal.take(&mut room), STEP);
        // An order waits for another's lock as before.
        let timeout: u32 = journal.connection.query_row("PRAGMA busy_timeout", [], |row| row.get(0)).unwrap();
        assert_eq!(Duration::from_millis(timeout.into()), BUSY);
    }

    #[test]
    fn a_disk_that_fails_ends_it() {
        let journal = Journal::new("fails");
        // Says that it has no space.
        let full = OpenOptions::new().read(true).write(true).open("/dev/full").unwrap();
        let mut room = Room { log: Some(full), ..journal.room() };
        let session = Session::new(&journal.connection, Latest::Nothing);
        assert!(!room.take_some(&session, &whole()));
        assert!(room.log.is_none());
        assert_eq!(journal.write(1), 1);
    }

    #[test]
    fn what_is_taken_in_part_is_given_back() {
        let folder = std::env::temp_dir();
        let path = folder.join(format!("spigate-room-part-{}", std::process::id()));
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
        fs::remove_file(&path).unwrap();
        // The end of the longest file that there may be here: of some file systems, and of ext4.
        let longest = [i64::MAX.unsigned_abs(), (1 << 44) - 4096];
        let length = longest.map(|longest| longest - STEP / 2).into_iter().find(|&length| file.set_len(length).is_ok());
        let Some(length) = length else { return println!("skipped: the longest file here is of no known length") };
        file.write_all_at(&[1; 10], length).unwrap();
        file.set_len(length).unwrap();
        grow(&file, u64::MAX).unwrap_err();
        assert_eq!(super::length(&file).unwrap(), length);
    }
}
