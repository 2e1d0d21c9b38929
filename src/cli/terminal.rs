//! The only place that prints: text from elsewhere reaches the terminal without control
//! characters.

use std::io::{self, Write as _};

use crate::json;

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

/// Text from elsewhere, with everything that could move a cursor or hide text escaped.
pub fn plain(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, char| {
        if json::is_unseen(char) {
            out.extend(char.escape_default());
        } else {
            out.push(char);
        }
        out
    })
}

/// The same for text of several lines of our own.
pub fn plain_lines(text: &str) -> String {
    text.lines().map(plain).collect::<Vec<_>>().join("\n")
}
