//! How long an HTTP/1 connection may take for what it is doing, and when it may be closed in a
//! stop: one clock per connection instead of a timer per request.
//!
//! The wire and the service note what happens with a few atomic stores; the connection's task
//! asks now and then whether a limit has passed.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::config::Limits;

/// What a connection is doing, since when.
pub struct Pace {
    born: Instant,
    state: AtomicU8,
    /// Of a head, of an answer that cannot be written and of idleness: nanoseconds from `born`.
    since: AtomicU64,
    /// When bytes came in for the last time, in the same way.
    received: AtomicU64,
    head: Duration,
    idle: Duration,
    /// Whether answers say that they are the last.
    leaving: AtomicBool,
    /// Whether the connection ends as soon as nothing is to be done; nanoseconds from `born`, zero if
    /// not.
    stopping: AtomicU64,
}

/// A new connection that has sent nothing yet.
const FRESH: u8 = 4;
/// Reading a request's head.
const HEAD: u8 = 0;
/// Working on a request: the gateway's own deadlines hold.
const BUSY: u8 = 1;
/// Writing an answer: no time is spent in it until it is held up.
const WRITING: u8 = 2;
/// Between requests.
const IDLE: u8 = 3;
/// A part of the next head has come behind the request that was answered last, and nothing since.
const BEHIND: u8 = 6;
/// Waiting for the client to take the rest of an answer.
const HELD_UP: u8 = 5;

/// How long a new connection may stay silent in a stop. Its client knows it as open, and its first
/// request is on the way.
pub(super) const FIRST_BYTE: Duration = Duration::from_secs(1);

impl Pace {
    /// The pace of a new connection.
    pub fn new(limits: &Limits) -> Self {
        Self {
            born: Instant::now(),
            state: AtomicU8::new(FRESH),
            since: AtomicU64::new(0),
            received: AtomicU64::new(0),
            head: limits.header_timeout,
            idle: limits.idle_timeout,
            leaving: AtomicBool::new(false),
            stopping: AtomicU64::new(0),
        }
    }

    /// From now on answers say that they are the last.
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    /// Whether answers say that they are the last.
    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }

    /// From now on the connection ends as soon as nothing is to be done.
    pub fn stop(&self) {
        self.leave();
        self.stopping.store(self.now().max(1), Ordering::Relaxed);
    }

    /// Whether the connection ends now unless bytes wait to be read.
    pub fn is_over(&self) -> bool {
        let stopping = self.stopping.load(Ordering::Relaxed);
        stopping > 0
            && match self.state.load(Ordering::Relaxed) {
                IDLE => true,
                FRESH => Duration::from_nanos(self.now().saturating_sub(stopping)) >= FIRST_BYTE,
                _ => false,
            }
    }

    /// Bytes came in.
    pub fn received(&self) {
        let now = self.now();
        self.received.store(now, Ordering::Relaxed);
        match self.state.load(Ordering::Relaxed) {
            IDLE => self.enter(HEAD, now),
            // Silence before the first byte is part of the time for it, as it is before the next one.
            FRESH | BEHIND => self.state.store(HEAD, Ordering::Relaxed),
            _ => {}
        }
    }

    /// A request is complete and worked on. Since when.
    pub fn begun(&self) -> Instant {
        // There is no limit here.
        let before = self.state.load(Ordering::Relaxed);
        self.state.store(BUSY, Ordering::Relaxed);
        match before {
            HEAD => self.born + Duration::from_nanos(self.received.load(Ordering::Relaxed)),
            // It came behind another one, and begins only now.
            _ => Instant::now(),
        }
    }

    /// Its answer is ready to be written.
    pub fn answered(&self) {
        self.state.store(WRITING, Ordering::Relaxed);
    }

    /// It cannot be written on at once.
    pub fn held_up(&self) {
        if self.state.load(Ordering::Relaxed) == WRITING {
            self.enter(HELD_UP, self.now());
        }
    }

    /// Everything written so far has left; `in_head` if what came in so far ends inside a head.
    pub fn flushed(&self, in_head: bool) {
        if let WRITING | HELD_UP = self.state.load(Ordering::Relaxed) {
            self.enter(if in_head { BEHIND } else { IDLE }, self.now());
        }
    }

    /// When to ask for the first time.
    pub fn first_check(&self) -> Duration {
        self.head.min(self.idle)
    }

    /// When to ask again; `None` if the current limit has passed.
    ///
    /// Never later than the shorter limit: what begins right after this call has to be seen in time.
    pub fn next_check(&self) -> Option<Duration> {
        let limit = match self.state.load(Ordering::Relaxed) {
            HEAD | FRESH | BEHIND => self.head,
            BUSY | WRITING => return Some(self.first_check()),
            _ => self.idle,
        };
        let spent = self.born.elapsed().saturating_sub(Duration::from_nanos(self.since.load(Ordering::Relaxed)));
        limit.checked_sub(spent).filter(|left| !left.is_zero()).map(|left| left.min(self.first_check()))
    }

    // All of it happens in the connection's own task; the atomics only make it shareable.
    fn enter(&self, state: u8, now: u64) {
        self.since.store(now, Ordering::Relaxed);
        self.state.store(state, Ordering::Relaxed);
    }

    fn now(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Limits that nothing reaches.
    pub(in crate::server) const LIMITS: Limits = Limits {
        parameters: 1,
        query_bytes: 1,
        reply_bytes: 1,
        connections: 1,
        in_flight: 1,
        failed_per_minute: None,
        header_timeout: Duration::from_secs(60),
        idle_timeout: Duration::from_secs(60),
    };

    #[test]
    fn a_request_begins_when_it_came_or_when_the_one_before_is_answered() {
        let pace = Pace::new(&LIMITS);
        pace.received();
        let came = Instant::now();
        assert!(pace.begun() <= came);
        pace.answered();
        pace.flushed(false);
        // It lay behind the other one: nothing has come in.
        let answered = Instant::now();
        assert!(pace.begun() >= answered);
        pace.answered();
        // The same, with a part of a third one behind it.
        pace.flushed(true);
        let answered = Instant::now();
        assert!(pace.begun() >= answered);
        pace.answered();
        pace.flushed(true);
        // The third one's rest.
        pace.received();
        let came = Instant::now();
        assert!(pace.begun() <= came);
    }

    #[test]
    fn a_part_of_a_head_behind_another_request_has_the_time_of_a_head() {
        for (in_head, limits) in [
            (true, Limits { header_timeout: Duration::ZERO, ..LIMITS }),
            (false, Limits { idle_timeout: Duration::ZERO, ..LIMITS }),
        ] {
            for is_in_head in [false, true] {
                let pace = Pace::new(&limits);
                pace.received();
                pace.begun();
                pace.answered();
                pace.flushed(is_in_head);
                assert_eq!(pace.next_check().is_none(), is_in_head == in_head);
            }
        }
    }

    #[test]
    fn what_begins_right_after_a_look_is_seen_in_time() {
        for (head, idle) in [(60, 2), (2, 60)] {
            let (header_timeout, idle_timeout) = (Duration::from_secs(head), Duration::from_secs(idle));
            let pace = Pace::new(&Limits { header_timeout, idle_timeout, ..LIMITS });
            let soon = |pace: &Pace| assert!(pace.next_check().unwrap() <= Duration::from_secs(2));
            soon(&pace);
            pace.received();
            soon(&pace);
            pace.begun();
            soon(&pace);
            pace.answered();
            pace.flushed(false);
            soon(&pace);
        }
    }

    #[test]
    fn an_answer_has_a_limit_once_it_is_held_up() {
        let pace = Pace::new(&Limits { idle_timeout: Duration::ZERO, ..LIMITS });
        pace.received();
        pace.begun();
        pace.answered();
        assert!(pace.next_check().is_some());
        pace.held_up();
        assert!(pace.next_check().is_none());
    }

    #[test]
    fn in_a_stop_only_what_is_idle_is_over() {
        let pace = Pace::new(&LIMITS);
        assert!(!pace.is_over() && !pace.is_leaving());
        pace.stop();
        // A new connection's first request is on the way.
        assert!(!pace.is_over() && pace.is_leaving());
        let begun = |pace: &Pace| {
            pace.begun();
        };
        let flushed = |pace: &Pace| pace.flushed(false);
        for (step, is_over) in [
            (Pace::received as fn(&Pace), false),
            (begun, false),
            (Pace::answered, false),
            (Pace::held_up, false),
            (flushed, true),
            (begun, false),
            (Pace::answered, false),
            (flushed, true),
            (Pace::received, false),
            (begun, false),
            (Pace::answered, false),
            // The rest of a request that was begun is on the way.
            (|pace| pace.flushed(true), false),
            (Pace::received, false),
        ] {
            step(&pace);
            assert_eq!(pace.is_over(), is_over);
        }
    }
}
