//! Lets something happen now and then: for log lines that others can cause as often as they like.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Passes once in a while.
pub struct Throttle {
    born: Instant,
    pause: u64,
    /// Milliseconds from `born`.
    next: AtomicU64,
}

impl Throttle {
    /// Passes at most once in `pause`.
    pub fn new(pause: Duration) -> Self {
        Self { born: Instant::now(), pause: millis(pause), next: AtomicU64::new(0) }
    }

    /// Whether it may happen now; if so, not again for a while.
    pub fn passes(&self) -> bool {
        passes(&self.next, millis(self.born.elapsed()), self.pause)
    }
}

/// The same for a counter of somebody else's: `next` and `now` on the same clock, in the unit of
/// `pause`.
pub fn passes(next: &AtomicU64, now: u64, pause: u64) -> bool {
    let due = next.load(Ordering::Relaxed);
    // Of several at once, one wins.
    now >= due && next.compare_exchange(due, now + pause, Ordering::Relaxed, Ordering::Relaxed).is_ok()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_once_in_a_pause() {
        let next = AtomicU64::new(0);
        let times = [0, 1, 9, 10, 11, 35, 36, 44, 45];
        assert_eq!(
            times.map(|now| passes(&next, now, 10)),
            [true, false, false, true, false, true, false, false, true]
        );
    }
}
