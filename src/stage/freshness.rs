//! Fifth stop: was it signed just now? A genuine request that was logged or stolen must not be
//! of use later. Two-sided, because clocks differ both ways.

use jiff::Timestamp;

use crate::app::App;
use crate::config::Freshness;
use crate::query::Lookup;
use crate::rejection::Rejection;
use crate::stage::verify::Verified;

/// A genuine request of our time.
pub struct Fresh {
    verified: Verified,
    time: Option<Timestamp>,
}

impl Fresh {
    /// Position of its action, if the dialect has it.
    pub fn action(&self, app: &App) -> Option<usize> {
        let dialect = &*app.config.dialect;
        match self.verified.params().get(&dialect.action_parameter) {
            Lookup::Once(name) => dialect.action_index(name),
            Lookup::Absent | Lookup::Repeated => None,
        }
    }

    pub(super) fn into_parts(self) -> (Verified, Option<Timestamp>) {
        (self.verified, self.time)
    }
}

/// Checks the signed time against `now`.
///
/// # Errors
/// `timestamp_missing`, `timestamp_invalid`, `timestamp_expired`, `timestamp_in_future`.
pub fn check(app: &App, verified: Verified, now: Timestamp) -> Result<Fresh, Rejection> {
    let Some(rule) = &app.config.dialect.time else { return Ok(Fresh { verified, time: None }) };
    let text = match verified.params().get(&rule.parameter) {
        Lookup::Once(text) => text,
        Lookup::Absent | Lookup::Repeated => return Err(Rejection::TimestampMissing),
    };
    let time = rule.format.parse(text).ok_or(Rejection::TimestampInvalid)?;
    app.metrics.skew.observe(seconds_between(time, now));
    within(&app.config.freshness, time, now)?;
    Ok(Fresh { verified, time: Some(time) })
}

/// Whether `time` lies within the window around `now`; both edges belong to it.
///
/// # Errors
/// `timestamp_expired`, `timestamp_in_future`.
pub fn within(window: &Freshness, time: Timestamp, now: Timestamp) -> Result<(), Rejection> {
    let age = now.as_millisecond() - time.as_millisecond();
    let limit = |duration: std::time::Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    if age > limit(window.max_age) {
        Err(Rejection::TimestampExpired { age: age / 1000 })
    } else if -age > limit(window.max_future) {
        Err(Rejection::TimestampInFuture { ahead: -age / 1000 })
    } else {
        Ok(())
    }
}

#[expect(clippy::cast_precision_loss, reason = "a histogram does not need the last bit of a century")]
fn seconds_between(time: Timestamp, now: Timestamp) -> f64 {
    (now.as_millisecond() - time.as_millisecond()) as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_window_has_two_sides_and_includes_its_edges() {
        let window = Freshness { max_age: Duration::from_secs(300), max_future: Duration::from_secs(60) };
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let at = |offset: i64| within(&window, Timestamp::from_second(1_700_000_000 + offset).unwrap(), now);
        assert_eq!(at(0), Ok(()));
        assert_eq!(at(-299), Ok(()));
        assert_eq!(at(-300), Ok(()));
        assert_eq!(at(-301), Err(Rejection::TimestampExpired { age: 301 }));
        assert_eq!(at(59), Ok(()));
        assert_eq!(at(60), Ok(()));
        assert_eq!(at(61), Err(Rejection::TimestampInFuture { ahead: 61 }));
        assert!(at(40_000_000_000).is_err());
    }
}
