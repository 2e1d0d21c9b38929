//! How long an HTTP/1 connection may take for what it is doing, and when it may be closed in a
//! stop: one clock per connection instead of a timer per request.
//!
//! The wire and the service note what happens with a few atomic stores; the connection's task
//! asks now and then whether a limit has passed.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::config::Limits;

/// What a connection is doing, since when.
pub struct Pace {
    born: Instant,
    state: AtomicU8,
    /// Milliseconds from `born`.
    since: AtomicU64,
    head: Duration,
    idle: Duration,
    /// Whether answers say that they are the last.
    leaving: AtomicBool,
    /// Whether the connection ends as soon as nothing is to be done; milliseconds from `born`,
    /// zero if not.
    stopping: AtomicU64,
}

/// A new connection that has sent nothing yet.
const FRESH: u8 = 4;
/// Reading a request's head.
const HEAD: u8 = 0;
/// Working on a request: the gateway's own deadlines hold.
const BUSY: u8 = 1;
/// Writing an answer.
const WRITING: u8 = 2;
/// Between requests.
const IDLE: u8 = 3;

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
                FRESH => self.now().saturating_sub(stopping) >= FIRST_BYTE.as_secs() * 1_000,
                _ => false,
            }
    }

    /// Bytes came in.
    pub fn received(&self) {
        match self.state.load(Ordering::Relaxed) {
            IDLE => self.enter(HEAD),
            // Silence before the first byte is part of the time for it.
            FRESH => self.state.store(HEAD, Ordering::Relaxed),
            _ => {}
        }
    }

    /// A request is complete and worked on.
    pub fn begun(&self) {
        // Since when does not matter: there is no limit here.
        self.state.store(BUSY, Ordering::Relaxed);
    }

    /// Its answer is ready to be written.
    pub fn answered(&self) {
        self.enter(WRITING);
    }

    /// Everything written so far has left.
    pub fn flushed(&self) {
        if self.state.load(Ordering::Relaxed) == WRITING {
            self.enter(IDLE);
        }
    }

    /// When to ask for the first time.
    pub fn first_check(&self) -> Duration {
        self.head.min(self.idle)
    }

    /// When to ask again; `None` if the current limit has passed.
    ///
    /// Never later than a head may take: one that begins right after this call has to be seen in
    /// time.
    pub fn next_check(&self) -> Option<Duration> {
        let limit = match self.state.load(Ordering::Relaxed) {
            HEAD | FRESH => self.head,
            BUSY => return Some(self.first_check()),
            _ => self.idle,
        };
        let spent = self.born.elapsed().saturating_sub(Duration::from_millis(self.since.load(Ordering::Relaxed)));
        limit.checked_sub(spent).filter(|left| !left.is_zero()).map(|left| left.min(self.head))
    }

    // All of it happens in the connection's own task; the atomics only make it shareable.
    fn enter(&self, state: u8) {
        self.since.store(self.now(), Ordering::Relaxed);
        self.state.store(state, Ordering::Relaxed);
    }

    fn now(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_a_stop_only_what_is_idle_is_over() {
        let limits = Limits {
            parameters: 1,
            query_bytes: 1,
            reply_bytes: 1,
            connections: 1,
            in_flight: 1,
            failed_per_minute: None,
            header_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(60),
        };
        let pace = Pace::new(&limits);
        assert!(!pace.is_over() && !pace.is_leaving());
        pace.stop();
        // A new connection's first request is on the way.
        assert!(!pace.is_over() && pace.is_leaving());
        for (step, is_over) in [
            (Pace::received as fn(&Pace), false),
            (Pace::begun, false),
            (Pace::answered, false),
            (Pace::flushed, true),
            (Pace::received, false),
        ] {
            step(&pace);
            assert_eq!(pace.is_over(), is_over);
        }
    }
}
