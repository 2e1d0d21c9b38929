//! How long a connection may take for what it is doing: one clock per connection instead of a
//! timer per request.
//!
//! The wire and the service note what happens with a few atomic stores; the connection's task
//! asks now and then whether a limit has passed.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
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
}

/// Reading a request's head; a new connection begins here.
const HEAD: u8 = 0;
/// Working on a request: the gateway's own deadlines hold.
const BUSY: u8 = 1;
/// Writing an answer.
const WRITING: u8 = 2;
/// Between requests.
const IDLE: u8 = 3;

impl Pace {
    /// The pace of a new connection.
    pub fn new(limits: &Limits) -> Self {
        Self {
            born: Instant::now(),
            state: AtomicU8::new(HEAD),
            since: AtomicU64::new(0),
            head: limits.header_timeout,
            idle: limits.idle_timeout,
        }
    }

    /// Bytes came in.
    pub fn received(&self) {
        if self.state.load(Ordering::Relaxed) == IDLE {
            self.enter(HEAD);
        }
    }

    /// A request is complete and worked on.
    pub fn begun(&self) {
        self.enter(BUSY);
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

    /// When to ask again; `None` if the current limit has passed.
    ///
    /// Never later than a head may take: one that begins right after this call has to be seen in
    /// time.
    pub fn next_check(&self) -> Option<Duration> {
        let limit = match self.state.load(Ordering::Relaxed) {
            HEAD => self.head,
            BUSY => return Some(self.head.min(self.idle)),
            _ => self.idle,
        };
        let spent = self.born.elapsed().saturating_sub(Duration::from_millis(self.since.load(Ordering::Relaxed)));
        limit.checked_sub(spent).filter(|left| !left.is_zero()).map(|left| left.min(self.head))
    }

    // All of it happens in the connection's own task; the atomics only make it shareable.
    fn enter(&self, state: u8) {
        self.since.store(u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.state.store(state, Ordering::Relaxed);
    }
}
