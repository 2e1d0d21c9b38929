//! The threads that use SQLite: it blocks, so it is kept away from the runtime.
//!
//! The writer takes everything that has queued up while it was busy into one transaction, and
//! answers after the commit: one flush of the disk for many deliveries. What somebody waits for never
//! lingers for a fuller batch: the flush itself is the time in which the next one gathers. What
//! nobody waits for is put off until there is a large batch anyway, or nothing else to do.

use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::keys::{self, Latest};
use super::names;
use super::queue::{self, Receiver, Sender, Turn};
use super::room::Room;
use super::session::Session;
use crate::journal::store::{Answer, Unavailable};
use crate::throttle::Throttle;

/// Between two lines that say that new deliveries cannot be indexed.
const COMPLAIN_AGAIN: Duration = Duration::from_secs(60);

/// Told the size of each batch that was written.
pub(super) type OnBatch = Arc<dyn Fn(usize) + Send + Sync>;

/// Says whether what is written now will be found again.
pub(super) type Check = Box<dyn Fn() -> Result<(), Unavailable> + Send>;

/// A thread with a connection. It ends when this is gone, and everything asked and told is done.
pub(super) struct Worker {
    jobs: Sender<Box<dyn Job>>,
}

/// Something to do with the connection. It may be done twice if the first try was undone.
trait Job: Send {
    fn run(&mut self, session: &Session<'_>) -> rusqlite::Result<()>;
    fn conclude(self: Box<Self>, result: Result<(), Unavailable>);
    /// Whether somebody waited for it, and does so no more.
    fn is_given_up(&self) -> bool;
    /// Whether it sees to its transactions itself.
    fn is_apart(&self) -> bool;
}

struct Work<F, T> {
    work: F,
    result: Option<T>,
    reply: Option<oneshot::Sender<Result<T, Unavailable>>>,
    is_apart: bool,
}

impl<F, T> Job for Work<F, T>
where
    F: FnMut(&Session<'_>) -> rusqlite::Result<T> + Send,
    T: Send,
{
    fn run(&mut self, session: &Session<'_>) -> rusqlite::Result<()> {
        self.result = Some((self.work)(session)?);
        Ok(())
    }

    fn conclude(self: Box<Self>, result: Result<(), Unavailable>) {
        let Self { result: value, reply, .. } = *self;
        if let Some(reply) = reply {
            // Whoever asked may have gone; what is written stays written.
            let _ = reply.send(result.and_then(|()| value.ok_or_else(|| Unavailable::new("nothing was done"))));
        }
    }

    fn is_given_up(&self) -> bool {
        self.reply.as_ref().is_some_and(oneshot::Sender::is_closed)
    }

    fn is_apart(&self) -> bool {
        self.is_apart
    }
}

impl Worker {
    /// A thread whose jobs share transactions. `check` is asked before each of them, and `room` is taken
    /// while there are none. Answers are given by the runtime that this is called in.
    pub(super) fn writer(
        connection: Connection,
        latest: Latest,
        mut room: Option<Room>,
        on_batch: OnBatch,
        check: Check,
    ) -> Result<Self, String> {
        let answers = Answers(Handle::try_current().ok());
        Self::spawn("journal-write", move |queue| {
            let session = Session::new(&connection, latest);
            let (mut batch, complaints) = (Vec::new(), Throttle::new(COMPLAIN_AGAIN));
            while queue.gather(&mut batch) {
                let checked = check();
                if checked.is_ok() {
                    apart(&session, &mut batch);
                    if batch.is_empty() {
                        continue;
                    }
                }
                on_batch(batch.len());
                match checked {
                    Ok(()) => {
                        write(&session, &mut batch, &answers);
                        index(&session, &complaints);
                        if let Some(room) = &mut room {
                            while queue.is_idle() && room.take_some(&session, &check) {}
                        }
                    }
                    lost => {
                        // What only a removed -wal holds goes into the main file while there is
                        // somebody who has both open. If that fails, the loss is told anyway.
                        let _ = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
                        answers.give(&mut batch, lost);
                    }
                }
            }
        })
    }

    /// A thread whose jobs only read. One that was given up while it waited for its turn is left out:
    /// impatient readers must not keep the others waiting.
    pub(super) fn reader(name: &str, connection: Connection, latest: Latest) -> Result<Self, String> {
        Self::spawn(name, move |queue| {
            let session = Session::new(&connection, latest);
            while let Some(mut job) = queue.next() {
                if job.is_given_up() {
                    continue;
                }
                let result = run(&mut job, &session).map_err(unavailable);
                job.conclude(result);
            }
        })
    }

    fn spawn(name: &str, run: impl FnOnce(Receiver<Box<dyn Job>>) + Send + 'static) -> Result<Self, String> {
        let (jobs, queue) = queue::queue();
        let spawned = thread::Builder::new().name(name.to_owned()).spawn(move || run(queue));
        spawned.map_err(|error| format!("no thread for the journal: {error}"))?;
        Ok(Self { jobs })
    }

    /// Does something, after all that was asked and told before, and answers once it is durable.
    pub(super) fn ask<T: Send + 'static>(
        &self,
        work: impl FnMut(&Session<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> Answer<'static, T> {
        self.send(work, Turn::InOrder, false)
    }

    /// The same, but what was told before may still come after it.
    pub(super) fn ask_ahead<T: Send + 'static>(
        &self,
        work: impl FnMut(&Session<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> Answer<'static, T> {
        self.send(work, Turn::Ahead, false)
    }

    /// Does something outside of the transaction that others share: what it does must not stay.
    pub(super) fn ask_apart<T: Send + 'static>(
        &self,
        work: impl FnMut(&Session<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> Answer<'static, T> {
        self.send(work, Turn::Ahead, true)
    }

    /// Does something soon; nobody waits for it.
    pub(super) fn tell(&self, work: impl FnMut(&Session<'_>) -> rusqlite::Result<()> + Send + 'static) {
        // Without its thread the journal answers nobody any more, and says so to those who ask.
        let _ = self.jobs.send(Turn::Lazy, Box::new(Work { work, result: None, reply: None, is_apart: false }));
    }

    fn send<T: Send + 'static>(
        &self,
        work: impl FnMut(&Session<'_>) -> rusqlite::Result<T> + Send + 'static,
        turn: Turn,
        is_apart: bool,
    ) -> Answer<'static, T> {
        let (reply, answer) = oneshot::channel();
        // Without its thread nobody has the other end of the answer any more.
        let _ = self.jobs.send(turn, Box::new(Work { work, result: None, reply: Some(reply), is_apart }));
        Answer::thread(answer)
    }
}

/// Takes those out of the batch that see to their transactions themselves, and does them.
fn apart(session: &Session<'_>, batch: &mut Vec<Box<dyn Job>>) {
    for mut job in batch.extract_if(.., |job| job.is_apart()) {
        let result = undo_the_last(session).and_then(|()| run(&mut job, session));
        job.conclude(result.map_err(unavailable));
    }
}

/// Does all jobs in one transaction. If one of them is to blame for a failure, the others do not
/// suffer: then each gets its own.
fn write(session: &Session<'_>, batch: &mut Vec<Box<dyn Job>>, answers: &Answers) {
    match together(session, batch) {
        Err(error) if batch.len() > 1 && !is_about_the_disk(&error) => {
            for job in batch.drain(..) {
                let mut alone = vec![job];
                let result = together(session, &mut alone).map_err(unavailable);
                answers.give(&mut alone, result);
            }
        }
        result => answers.give(batch, result.map_err(unavailable)),
    }
}

/// Puts some of the latest deliveries into the indexes that need not hold them at once, if it is this
/// process that makes deliveries.
fn index(session: &Session<'_>, complaints: &Throttle) {
    // After a transaction that could not be undone, the next batch tries that first.
    let Latest::All(maker) = &session.latest else { return };
    if !session.is_autocommit() {
        return;
    }
    if let Err(error) = keys::index_some(session).and_then(|()| names::index_some(session, maker.latest()))
        && complaints.passes()
    {
        tracing::warn!(%error, "new deliveries cannot be indexed: until they can, memory and searches grow with them");
    }
}

/// Gives the answers.
struct Answers(Option<Handle>);

impl Answers {
    fn give(&self, batch: &mut Vec<Box<dyn Job>>, result: Result<(), Unavailable>) {
        match &self.0 {
            // From here each of them would wake the runtime by a system call of its own.
            Some(runtime) if batch.len() > 1 => {
                let batch = mem::take(batch);
                drop(runtime.spawn(async move { conclude(batch, &result) }));
            }
            _ => conclude(mem::take(batch), &result),
        }
    }
}

fn conclude(batch: Vec<Box<dyn Job>>, result: &Result<(), Unavailable>) {
    for job in batch {
        job.conclude(result.clone());
    }
}

/// A bug in a job fails that job: without its thread the journal would answer nobody any more.
fn run(job: &mut Box<dyn Job>, session: &Session<'_>) -> rusqlite::Result<()> {
    let result = catch_unwind(AssertUnwindSafe(|| job.run(session)));
    result.unwrap_or_else(|_| Err(rusqlite::Error::ToSqlConversionFailure("a bug in the journal".into())))
}

fn together(session: &Session<'_>, batch: &mut [Box<dyn Job>]) -> rusqlite::Result<()> {
    undo_the_last(session)?;
    // Immediate: a transaction that read first could be refused the right to write.
    session.with(&session.begin, "BEGIN IMMEDIATE", |statement| statement.execute([]))?;
    let done = batch.iter_mut().try_for_each(|job| run(job, session));
    let done = done.and_then(|()| session.with(&session.commit, "COMMIT", |statement| statement.execute([])));
    if done.is_err() && !session.is_autocommit() {
        // SQLite has undone the transaction itself after some failures, not after others. What
        // is told is why it failed.
        let _ = session.execute_batch("ROLLBACK");
    }
    keys::transaction_ended(session, done.is_err());
    done.map(drop)
}

/// Undoes the transaction before, if that could not be done then.
fn undo_the_last(session: &Session<'_>) -> rusqlite::Result<()> {
    if session.is_autocommit() { Ok(()) } else { session.execute_batch("ROLLBACK") }
}

fn unavailable(error: rusqlite::Error) -> Unavailable {
    if is_about_the_disk(&error) { Unavailable::new(error) } else { Unavailable::local(error) }
}

/// Whether every other job would fail the same way. What is damaged may be one page, and others
/// be whole.
pub(super) fn is_about_the_disk(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(
            ErrorCode::DiskFull
                | ErrorCode::SystemIoFailure
                | ErrorCode::ReadOnly
                | ErrorCode::CannotOpen
                | ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::NotADatabase
                | ErrorCode::OutOfMemory
                | ErrorCode::PermissionDenied
        )
    )
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::journal::sqlite::keys::Maker;
    use crate::journal::sqlite::schema;

    fn writer() -> Worker {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch("CREATE TABLE notes (number INTEGER) STRICT").unwrap();
        Worker::writer(connection, Latest::Nothing, None, Arc::new(|_| {}), Box::new(|| Ok(()))).unwrap()
    }

    fn note(writer: &Worker, number: i64) -> Answer<'static, usize> {
        writer.ask(move |connection| connection.execute("INSERT INTO notes VALUES (?1)", [number]))
    }

    #[tokio::test]
    async fn what_nobody_waits_for_any_more_is_not_read() {
        let reader = Worker::reader("test", Connection::open_in_memory().unwrap(), Latest::Nothing).unwrap();
        let (begun, begin) = mpsc::channel::<()>();
        // Holds the thread until the others have queued up.
        let first = reader.ask(move |_| {
            let _ = begin.recv();
            Ok(())
        });
        let (told, tells) = mpsc::channel();
        let also_told = told.clone();
        drop(reader.ask(move |_| Ok(told.send("given up").is_ok())));
        let last = reader.ask(move |_| Ok(also_told.send("waited for").is_ok()));
        drop(begun);
        first.await.unwrap();
        last.await.unwrap();
        drop(reader);
        assert_eq!(tells.iter().collect::<Vec<_>>(), ["waited for"]);
    }

    /// Whoever asks in order finds what was told before, and what was told is done although nobody asks
    /// any more.
    #[tokio::test]
    async fn what_nobody_waits_for_is_put_off_and_not_forgotten() {
        let writer = writer();
        let tell = |number: i64| {
            writer.tell(move |connection| connection.execute("INSERT INTO notes VALUES (?1)", [number]).map(drop));
        };
        let sum = |connection: &Session<'_>| {
            connection.query_row("SELECT coalesce(sum(number), 0) FROM notes", [], |row| row.get::<_, i64>(0))
        };
        tell(1);
        assert_eq!(writer.ask(sum).await, Ok(1));
        tell(2);
        let ahead = writer.ask_ahead(sum).await.unwrap();
        assert!([1, 3].contains(&ahead), "{ahead}");
        tell(4);
        tell(8);
        assert_eq!(writer.ask(sum).await, Ok(15));
        let (told, tells) = mpsc::channel();
        writer.tell(move |_| {
            told.send(()).unwrap();
            Ok(())
        });
        drop(writer);
        assert_eq!(tells.recv(), Ok(()));
    }

    #[tokio::test]
    async fn a_bug_in_one_job_undoes_that_one_and_no_other() {
        let writer = writer();
        let (begun, begin) = mpsc::channel::<()>();
        // Holds the thread until the others have queued up to share a transaction.
        let first = writer.ask(move |_| {
            let _ = begin.recv();
            Ok(())
        });
        let before = note(&writer, 1);
        let bug = writer.ask(|connection| -> rusqlite::Result<()> {
            connection.execute("INSERT INTO notes VALUES (2)", [])?;
            panic!("a bug")
        });
        let after = note(&writer, 3);
        drop(begun);
        first.await.unwrap();
        assert_eq!(before.await, Ok(1));
        assert!(bug.await.is_err());
        assert_eq!(after.await, Ok(1));
        let sum = writer.ask(|connection| connection.query_row("SELECT sum(number) FROM notes", [], |row| row.get(0)));
        assert_eq!(sum.await, Ok(4_i64));
    }

    #[tokio::test]
    async fn some_of_many_deliveries_are_indexed_between_two_batches() {
        let connection = Connection::open_in_memory().unwrap();
        assert!(schema::migrate(&connection).is_ok());
        names::tests::copies(&connection, 20_000);
        let maker = Maker::begin(&connection).unwrap();
        let writer =
            Worker::writer(connection, Latest::All(maker), None, Arc::new(|_| {}), Box::new(|| Ok(()))).unwrap();
        let indexed = |session: &Session<'_>| {
            let sql = "SELECT (SELECT count(*) FROM keys) > 0, (SELECT count(*) FROM names) > 0";
            session.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?)))
        };
        assert_eq!(writer.ask(indexed).await, Ok((false, false)));
        assert_eq!(writer.ask(indexed).await, Ok((true, true)));
    }
}
