//! Text from elsewhere, as it may be shown: on a terminal, on a page.

use crate::json;

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
