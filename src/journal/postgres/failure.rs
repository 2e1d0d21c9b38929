//! What can go wrong between this process and the server, and what it means for a statement.
//!
//! The one question that matters for a statement that failed is whether it may have been
//! executed. Every statement is a transaction of its own: an error that the server tells has
//! rolled it back, unless the server said it on its way out.

use std::error::Error as _;
use std::fmt;
use std::io;

use tokio_postgres::Error;
use tokio_postgres::error::{DbError, Severity, SqlState};

use crate::backend;
use crate::journal::store::Unavailable;

/// Why a statement has no result.
#[derive(Debug)]
pub(super) enum Failure {
    /// Another one was faster: nothing was written, and looking again helps.
    Race(String),
    /// Nothing was written.
    Unwritten(String),
    /// Nothing was written, because of what one entry holds.
    Unreadable(String),
    /// The connection broke or the time was up: it may have been written.
    Unknown(String),
}

impl From<Failure> for Unavailable {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Race(cause) | Failure::Unwritten(cause) | Failure::Unknown(cause) => Self::new(cause),
            Failure::Unreadable(cause) => Self::local(cause),
        }
    }
}

/// Why the journal cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// It says no, and will until somebody changes something: what is wrong and what to do.
    Refused(String),
    /// It does not answer now.
    Unreachable(String),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Refused(cause) | Self::Unreachable(cause)) = self;
        f.write_str(cause)
    }
}

impl std::error::Error for OpenError {}

impl From<Error> for OpenError {
    fn from(error: Error) -> Self {
        explain(&error)
    }
}

/// What an error of a statement means.
pub(super) fn of_statement(error: &Error) -> Failure {
    let cause = describe(error);
    match error.as_db_error() {
        // Also an error on this side, such as a broken connection.
        None => Failure::Unknown(cause),
        Some(error) if is_parting(error) => Failure::Unknown(cause),
        Some(error) if is_race(error.code()) => Failure::Race(cause),
        Some(_) => Failure::Unwritten(cause),
    }
}

/// Whether the connection is of no use after this error.
pub(super) fn ends_connection(error: &Error) -> bool {
    // A read-only server was the primary once; whoever is it now is found by connecting again.
    error.as_db_error().is_none_or(|error| is_parting(error) || is(error, &SqlState::READ_ONLY_SQL_TRANSACTION))
}

/// Whether the tables are not there: somebody removed them, or put an empty database in place.
pub(super) fn is_missing_table(error: &Error) -> bool {
    error.code() == Some(&SqlState::UNDEFINED_TABLE)
}

fn is(error: &DbError, state: &SqlState) -> bool {
    error.code() == state
}

/// Whether the server said this while it ended the session: what it was executing may be done.
fn is_parting(error: &DbError) -> bool {
    !matches!(error.parsed_severity(), None | Some(Severity::Error))
        || error.code().code().starts_with("08")
        || error.code().code().starts_with("57P")
        || is(error, &SqlState::T_R_STATEMENT_COMPLETION_UNKNOWN)
}

/// Whether another transaction was in the way.
fn is_race(state: &SqlState) -> bool {
    // What a row of ours refers to is removed by nobody but another gateway's retention.
    [SqlState::UNIQUE_VIOLATION, SqlState::FOREIGN_KEY_VIOLATION].contains(state) || state.code().starts_with("40")
}

/// An error and its causes in one line, without the values that a server's details may hold.
pub(super) fn describe(error: &Error) -> String {
    if let Some(error) = error.as_db_error() {
        return format!("{} ({})", error.message(), error.code().code());
    }
    backend::describe(error)
}

/// An error of a connection, as somebody has to read it who sets one up.
pub(super) fn explain(error: &Error) -> OpenError {
    let cause = describe(error);
    let Some(code) = error.code() else {
        return if is_network(error) {
            OpenError::Unreachable(cause)
        } else {
            OpenError::Refused(format!("{cause}; correct journal.url{}", hint(&cause)))
        };
    };
    let advice = match code {
        &SqlState::INVALID_PASSWORD | &SqlState::INVALID_AUTHORIZATION_SPECIFICATION => {
            "correct the user and the password in journal.url, or what the server's pg_hba.conf says of them"
        }
        &SqlState::INVALID_CATALOG_NAME => "create the database, or correct journal.url",
        &SqlState::INSUFFICIENT_PRIVILEGE => {
            "let the user of journal.url create tables in the schema (GRANT CREATE ON SCHEMA public TO …), and own \
             those that begin with spigate_"
        }
        &SqlState::INVALID_SCHEMA_NAME => "create a schema that is in the user's search_path",
        &SqlState::READ_ONLY_SQL_TRANSACTION => {
            "the server is a standby or read-only: let journal.url name the primary, or all of them \
             (postgres://USER@HOST1,HOST2/DATABASE)"
        }
        // Insufficient resources, shutting down, starting up: it says so itself that it will pass.
        code if ["53", "57", "08"].iter().any(|class| code.code().starts_with(class)) => {
            return OpenError::Unreachable(cause);
        }
        _ => "see the server's log",
    };
    OpenError::Refused(format!("{cause}; {advice}"))
}

/// What helps with mistakes that the server knows nothing of.
fn hint(cause: &str) -> &'static str {
    if cause.contains("certificate") {
        ": name the authority that signed the server's certificate with ?sslrootcert=FILE, or switch TLS off with \
         ?sslmode=disable where the network is trusted"
    } else {
        ""
    }
}

/// Whether an error came from the way to the server. A certificate that is not trusted comes
/// the same way, and will not pass.
fn is_network(error: &Error) -> bool {
    if error.is_closed() {
        return true;
    }
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            let inner = error.get_ref();
            return !inner
                .is_some_and(|inner| matches!(inner.downcast_ref(), Some(rustls::Error::InvalidCertificate(_))));
        }
        source = error.source();
    }
    false
}
