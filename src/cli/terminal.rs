//! The only place that prints: text from elsewhere reaches the terminal without control
//! characters.

use std::io::Write as _;

/// Prints a line to standard output.
pub fn say(line: &str) {
    // A closed pipe is the reader's choice, not a failure.
    let _ = writeln!(anstream::stdout(), "{line}");
}

/// Prints a message to standard error.
pub fn complain(message: &str) {
    let _ = writeln!(anstream::stderr(), "{message}");
}

/// Text from elsewhere, with everything that could move a cursor or hide text escaped.
pub fn plain(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, char| {
        let is_bidi = matches!(char, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if char.is_control() || is_bidi {
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
