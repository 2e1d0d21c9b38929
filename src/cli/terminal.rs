//! The only place that prints: text from elsewhere reaches the terminal without control
//! characters.

use std::io::{self, Write as _};

pub use crate::plain::{plain, plain_lines};

/// Prints a line to standard output.
pub fn say(line: &str) {
    // A closed pipe is the reader's choice, not a failure.
    let _ = write(line);
}

/// Prints a line to standard output, for who has to know whether that went well.
///
/// # Errors
/// A pipe that was closed, a disk that is full.
pub fn write(line: &str) -> io::Result<()> {
    writeln!(anstream::stdout(), "{line}")
}

/// Prints a message to standard error.
pub fn complain(message: &str) {
    let _ = writeln!(anstream::stderr(), "{message}");
}
