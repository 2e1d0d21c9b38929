//! When a URL is left alone for a while: a circuit breaker. Atomics only, since every call
//! passes it; a circuit that is closed and well costs two reads. Time and chance are arguments.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// Closed until `failures` calls in a row have failed, then open for a pause; after that, one
/// call for each further pause is let through to try.
pub(super) struct Circuit {
    /// 0: never opens.
    failures: u32,
    open_for: Duration,
    in_a_row: AtomicU32,
    /// Milliseconds at which the next trial is let through; 0 while the circuit is closed.
    next_trial: AtomicU64,
}

/// The right to make a call, and what its end means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    /// The circuit was closed.
    Usual,
    /// It was open: this call tries whether it can be closed.
    Trial,
}

/// The time of this process, and a number by chance for the pause.
pub(super) struct Moment {
    /// Milliseconds since some time before the circuit was made.
    pub(super) millis: u64,
    /// Anything.
    pub(super) chance: u32,
}

impl Circuit {
    pub(super) fn new(failures: u32, open_for: Duration) -> Self {
        Self { failures, open_for, in_a_row: AtomicU32::new(0), next_trial: AtomicU64::new(0) }
    }

    pub(super) fn is_open(&self) -> bool {
        self.next_trial.load(Ordering::Relaxed) != 0
    }

    /// Whether a call may be made. `now` is asked for only where the circuit is open.
    ///
    /// A trial moves the time of the next one, so it needs nobody to say that it has ended.
    pub(super) fn admit(&self, now: impl FnOnce() -> Moment) -> Option<Pass> {
        let next = self.next_trial.load(Ordering::Relaxed);
        if next == 0 {
            return Some(Pass::Usual);
        }
        let now = now();
        if now.millis < next {
            return None;
        }
        let later = self.after_pause(&now);
        // Whoever comes second is no trial: it waits, or finds the circuit closed next time.
        self.next_trial.compare_exchange(next, later, Ordering::Relaxed, Ordering::Relaxed).ok().map(|_| Pass::Trial)
    }

    /// A call succeeded. Whether that closed the circuit.
    pub(super) fn succeeded(&self, pass: Pass) -> bool {
        // A call from before the circuit opened says nothing about what has been since.
        if pass == Pass::Usual && self.is_open() {
            return false;
        }
        // Reading first: a line that all calls write to is passed from core to core.
        if self.in_a_row.load(Ordering::Relaxed) != 0 {
            self.in_a_row.store(0, Ordering::Relaxed);
        }
        pass == Pass::Trial && self.next_trial.swap(0, Ordering::Relaxed) != 0
    }

    /// Something short of a success speaks for it, like a connection: closed, but the next
    /// failure opens it again. Whether that closed the circuit.
    pub(super) fn hopeful(&self) -> bool {
        if !self.is_open() {
            return false;
        }
        self.in_a_row.store(self.failures.saturating_sub(1), Ordering::Relaxed);
        self.next_trial.swap(0, Ordering::Relaxed) != 0
    }

    /// A call failed. Whether that opened the circuit.
    pub(super) fn failed(&self, pass: Pass, now: impl FnOnce() -> Moment) -> bool {
        if self.failures == 0 {
            return false;
        }
        let next = self.next_trial.load(Ordering::Relaxed);
        if next != 0 {
            if pass == Pass::Trial {
                let later = self.after_pause(&now());
                // Lost to another one that knows better, or as well.
                let _ = self.next_trial.compare_exchange(next, later, Ordering::Relaxed, Ordering::Relaxed);
            }
            return false;
        }
        let in_a_row = self.in_a_row.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if in_a_row < self.failures {
            return false;
        }
        let later = self.after_pause(&now());
        self.next_trial.compare_exchange(0, later, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Up to a quarter longer than the pause, by chance: several gateways must not try at once.
    fn after_pause(&self, now: &Moment) -> u64 {
        let pause = u64::try_from(self.open_for.as_millis()).unwrap_or(u64::MAX / 2);
        let jitter = u128::from(pause) * u128::from(now.chance) / (4 * u128::from(u32::MAX));
        // Never 0, which means closed.
        now.millis.saturating_add(pause).saturating_add(u64::try_from(jitter).unwrap_or(0)).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> impl Fn() -> Moment {
        move || Moment { millis, chance: 0 }
    }

    fn circuit() -> Circuit {
        Circuit::new(3, Duration::from_millis(100))
    }

    fn open_at(millis: u64) -> Circuit {
        let circuit = circuit();
        let opened = [(); 3].map(|()| circuit.failed(Pass::Usual, at(millis)));
        assert_eq!(opened, [false, false, true]);
        circuit
    }

    #[test]
    fn it_opens_after_so_many_failures_in_a_row_and_tells_once() {
        let circuit = circuit();
        circuit.failed(Pass::Usual, at(0));
        circuit.failed(Pass::Usual, at(0));
        assert!(!circuit.succeeded(Pass::Usual));
        assert_eq!([(); 5].map(|()| circuit.failed(Pass::Usual, at(0))), [false, false, true, false, false]);
        assert!(circuit.is_open());
    }

    #[test]
    fn it_never_opens_with_0_failures() {
        let circuit = Circuit::new(0, Duration::from_secs(1));
        assert!((0..1_000).all(|_| !circuit.failed(Pass::Usual, at(0))));
        assert_eq!(circuit.admit(at(0)), Some(Pass::Usual));
    }

    #[test]
    fn after_the_pause_one_call_is_a_trial_and_one_for_each_further_pause() {
        let circuit = open_at(1_000);
        let admitted = [1_000, 1_099, 1_100, 1_100, 1_199, 1_200, 1_201].map(|millis| circuit.admit(at(millis)));
        assert_eq!(admitted, [None, None, Some(Pass::Trial), None, None, Some(Pass::Trial), None]);
    }

    #[test]
    fn a_trial_closes_it_or_lets_the_pause_begin_anew() {
        let circuit = open_at(0);
        assert_eq!(circuit.admit(at(100)), Some(Pass::Trial));
        assert!(!circuit.failed(Pass::Trial, at(150)));
        assert_eq!([circuit.admit(at(249)), circuit.admit(at(250))], [None, Some(Pass::Trial)]);
        assert!(circuit.succeeded(Pass::Trial));
        assert!(!circuit.succeeded(Pass::Trial));
        assert_eq!(circuit.admit(at(250)), Some(Pass::Usual));
        // And it takes all failures again to open it.
        assert_eq!([(); 3].map(|()| circuit.failed(Pass::Usual, at(300))), [false, false, true]);
    }

    #[test]
    fn what_began_before_it_opened_neither_closes_it_nor_prolongs_the_pause() {
        let circuit = open_at(0);
        assert!(!circuit.succeeded(Pass::Usual));
        assert!(!circuit.failed(Pass::Usual, at(99)));
        assert_eq!(circuit.admit(at(100)), Some(Pass::Trial));
    }

    #[test]
    fn hope_closes_it_until_the_next_failure() {
        let circuit = open_at(0);
        assert_eq!(circuit.admit(at(100)), Some(Pass::Trial));
        assert!(circuit.hopeful());
        assert!(!circuit.hopeful());
        assert_eq!(circuit.admit(at(100)), Some(Pass::Usual));
        assert!(circuit.failed(Pass::Trial, at(110)));
        assert!(circuit.hopeful());
        assert!(!circuit.succeeded(Pass::Usual));
        assert!(!circuit.failed(Pass::Usual, at(120)));
    }

    #[test]
    fn chance_makes_the_pause_up_to_a_quarter_longer() {
        for (chance, pause) in [(0, 100), (u32::MAX / 2, 112), (u32::MAX, 125)] {
            let circuit = Circuit::new(1, Duration::from_millis(100));
            assert!(circuit.failed(Pass::Usual, || Moment { millis: 0, chance }));
            assert_eq!(circuit.admit(at(pause - 1)), None);
            assert_eq!(circuit.admit(at(pause)), Some(Pass::Trial));
        }
    }
}
