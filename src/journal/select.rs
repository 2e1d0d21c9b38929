//! Which deliveries, as people write it: times, outcomes, and ids that may be abbreviated.

use std::fmt;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::entry::{AttemptOutcome, State};
use super::store::{Archive, Filter, Record, Unavailable, Which};
use crate::config::units;

/// Fewest digits of an id that may stand for it, and all of them.
const DIGITS: std::ops::RangeInclusive<usize> = 6..=32;

/// A time as it is typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// This one.
    At(Timestamp),
    /// So long ago.
    Ago(Duration),
}

impl Moment {
    /// Reads RFC 3339, or a duration for so long ago.
    ///
    /// # Errors
    /// What it has to be.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Ok(age) = units::duration(text) {
            return Ok(Self::Ago(age));
        }
        text.parse().map(Self::At).map_err(|_| {
            "is neither a time like 2026-11-22T18:00:00Z or 2026-11-23T02:00:00+08:00 nor a duration like 30m, 2h or 7d"
                .to_owned()
        })
    }

    /// The time that it is, seen from `now`.
    pub fn at(self, now: Timestamp) -> Timestamp {
        match self {
            Self::At(time) => time,
            Self::Ago(age) => {
                SignedDuration::try_from(age).ok().and_then(|age| now.checked_sub(age).ok()).unwrap_or(Timestamp::MIN)
            }
        }
    }
}

impl Which {
    /// All names that [`named`](Self::named) knows.
    pub fn names() -> impl Iterator<Item = &'static str> {
        let attempts = AttemptOutcome::ALL.map(AttemptOutcome::as_str);
        let names = State::ALL.map(State::as_str).into_iter().chain([UNANSWERED]);
        // An attempt's "unconfirmed" is the delivery's, until somebody decides.
        names.chain(attempts.into_iter().filter(|name| State::named(name).is_none()))
    }

    /// What became of deliveries, by its name.
    pub fn named(name: &str) -> Option<Self> {
        State::named(name)
            .map(Self::State)
            .or_else(|| AttemptOutcome::named(name).map(Self::Attempt))
            .or_else(|| (name == UNANSWERED).then_some(Self::Unanswered))
    }
}

const UNANSWERED: &str = "unanswered";

/// Reads an id, whole or abbreviated.
///
/// # Errors
/// What it has to be.
pub fn id(text: &str) -> Result<String, String> {
    if DIGITS.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(text.to_ascii_lowercase());
    }
    Err("must be an Idempotency-Key, or at least its first 6 digits (0-9, a-f); `spigate journal list` shows them"
        .to_owned())
}

/// Why there is not just one delivery.
#[derive(Debug)]
pub enum NotFound {
    /// None has an id that begins so.
    None {
        /// The id.
        id: String,
    },
    /// Several do.
    Several {
        /// The id.
        id: String,
        /// Theirs, or some of them.
        ids: Vec<String>,
    },
    /// The journal cannot be read.
    Unavailable(Unavailable),
}

impl fmt::Display for NotFound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None { id } => write!(f, "{id}: no delivery has an id that begins so"),
            Self::Several { id, ids } => {
                write!(f, "{id}: more than one delivery has an id that begins so:\n{}", ids.join("\n"))
            }
            Self::Unavailable(unavailable) => write!(f, "journal: {unavailable}"),
        }
    }
}

impl std::error::Error for NotFound {}

impl From<Unavailable> for NotFound {
    fn from(unavailable: Unavailable) -> Self {
        Self::Unavailable(unavailable)
    }
}

/// The one delivery whose id begins so.
///
/// # Errors
/// There is none, or more than one.
pub async fn find(store: &(impl Archive + ?Sized), id: &str) -> Result<Record, NotFound> {
    let filter = Filter { id: Some(id.to_owned()), ..Filter::default() };
    let mut found = store.list(filter, None, 5).await.map_err(NotFound::Unavailable)?;
    if found.len() > 1 {
        let ids = found.iter().map(|record| record.entry.key.idempotency_key()).collect();
        return Err(NotFound::Several { id: id.to_owned(), ids });
    }
    found.pop().ok_or_else(|| NotFound::None { id: id.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let at = |text: &str| Moment::parse(text).map(|moment| moment.at(now).to_string());
        assert_eq!(at("2026-11-22T18:00:00Z").unwrap(), "2026-11-22T18:00:00Z");
        assert_eq!(at("2026-11-23T02:00:00+08:00").unwrap(), "2026-11-22T18:00:00Z");
        assert_eq!(at("2h").unwrap(), (now - SignedDuration::from_hours(2)).to_string());
        assert_eq!(Moment::parse("213503982334d").unwrap().at(now), Timestamp::MIN);
        for wrong in ["", "yesterday", "2026-11-22", "-2h", "2 h"] {
            assert!(Moment::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn ids_are_read_whole_or_abbreviated() {
        assert_eq!(id("ABCDEF").unwrap(), "abcdef");
        assert!(id(&"0".repeat(32)).is_ok());
        for wrong in ["", "abcde", "abcdeg", "%abcdef", &"0".repeat(33)] {
            assert!(id(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_name_of_an_outcome_is_known() {
        for name in Which::names() {
            assert!(Which::named(name).is_some(), "{name}");
        }
        assert_eq!(Which::named("unconfirmed"), Some(Which::State(State::Unconfirmed)));
        assert_eq!(Which::named("lost"), None);
    }
}
