//! The wall clock. Everything else takes the time as an argument.

use jiff::Timestamp;

/// The current time. Freshness and logs use it; nothing that must not go backwards does.
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub fn now() -> Timestamp {
    Timestamp::now()
}
