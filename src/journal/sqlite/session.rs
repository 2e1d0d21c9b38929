//! A connection and what its thread keeps for it: statements that every delivery needs, which are
//! then not looked up by their text each time, and what was written a moment ago (`recent.rs`).

use std::cell::{Cell, RefCell};
use std::ops::Deref;

use rusqlite::{Connection, Statement};

use super::keys::{self, Latest};
use super::recent::Recent;

/// See the module. Used as the connection itself for everything that is rare.
pub(super) struct Session<'c> {
    connection: &'c Connection,
    pub(super) latest: Latest,
    pub(super) recent: Recent,
    /// The row from which on it is worth to look whether names can be put into their table (`names.rs`).
    pub(super) names_due: Cell<i64>,
    pub(super) begin: Kept<'c>,
    pub(super) commit: Kept<'c>,
    pub(super) row_of: Kept<'c>,
    pub(super) index: Kept<'c>,
    pub(super) entry_at: Kept<'c>,
    pub(super) claim: Kept<'c>,
    pub(super) end: Kept<'c>,
    pub(super) taken: Kept<'c>,
    pub(super) answered: Kept<'c>,
}

impl<'c> Session<'c> {
    pub(super) fn new(connection: &'c Connection, latest: Latest) -> Self {
        Self {
            connection,
            latest,
            recent: Recent::default(),
            names_due: Cell::default(),
            begin: Kept::default(),
            commit: Kept::default(),
            row_of: Kept::default(),
            index: Kept::default(),
            entry_at: Kept::default(),
            claim: Kept::default(),
            end: Kept::default(),
            taken: Kept::default(),
            answered: Kept::default(),
        }
    }

    /// What it knew of the deliveries that are not in the index yet.
    pub(super) fn into_latest(self) -> Latest {
        self.latest
    }

    /// Uses a statement, which always has the same text. It is prepared the first time.
    pub(super) fn with<T>(
        &self,
        kept: &Kept<'c>,
        sql: &str,
        work: impl FnOnce(&mut Statement<'c>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        let mut kept = kept.0.borrow_mut();
        let statement = match &mut *kept {
            Some(statement) => statement,
            None => kept.insert(self.connection.prepare(sql)?),
        };
        let result = work(statement);
        // What values leave behind would take up the memory that SQLite has at hand for others.
        statement.clear_bindings();
        result
    }
}

impl Deref for Session<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.connection
    }
}

/// Does something in a transaction of its own, whole or not at all.
pub(super) fn in_transaction(
    connection: &Connection,
    work: impl FnOnce() -> rusqlite::Result<()>,
) -> rusqlite::Result<()> {
    connection.execute_batch("BEGIN IMMEDIATE")?;
    let done = work().and_then(|()| connection.execute_batch("COMMIT"));
    if done.is_err() && !connection.is_autocommit() {
        // What is told is why it failed; a rollback that fails too adds nothing.
        let _ = connection.execute_batch("ROLLBACK");
    }
    done
}

/// Does something in a transaction of its own of which nothing stays, whatever comes of it. Nothing is
/// written to the disk for it.
pub(super) fn undone(session: &Session<'_>, work: impl FnOnce() -> rusqlite::Result<()>) -> rusqlite::Result<()> {
    session.execute_batch("BEGIN IMMEDIATE")?;
    keys::undone(session, || {
        let done = work();
        // After some failures SQLite has undone it by itself.
        let undone = if session.is_autocommit() { Ok(()) } else { session.execute_batch("ROLLBACK") };
        done.and(undone)
    })
}

/// A statement that stays prepared.
#[derive(Default)]
pub(super) struct Kept<'c>(RefCell<Option<Statement<'c>>>);
