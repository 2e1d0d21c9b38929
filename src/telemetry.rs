//! Logging: events and access lines to standard output, each kind with a queue of its own, and a
//! panic hook that says where, never what: a panic's message may hold a secret.

use std::io;
use std::panic;

use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::{FilterFn, LevelFilter};
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt as _;

use crate::config::LogConfig;
use crate::config::raw::{LogFormat, LogLevel};

/// Lines of each kind that wait for a slow standard output; further ones are dropped rather than
/// kept in memory or waited for.
const BUFFERED_LINES: usize = 8_192;
/// Who warns of every connection to the journal that broke; that the journal cannot be used, and
/// why, is told once and by ourselves.
const POOL: &str = "deadpool";

/// Keeps the writer alive; flushes when it is dropped.
pub struct Telemetry {
    /// Where access lines go.
    pub out: NonBlocking,
    dropped: [ErrorCounter; 2],
    _guards: [WorkerGuard; 2],
}

impl Telemetry {
    /// Counts the lines of either kind that were dropped.
    pub fn dropped_lines(&self) -> impl Fn() -> u64 + Send + Sync + use<> {
        let counters = self.dropped.clone();
        move || counters.iter().map(|counter| u64::try_from(counter.dropped_lines()).unwrap_or(u64::MAX / 2)).sum()
    }
}

fn queue() -> (NonBlocking, WorkerGuard) {
    NonBlockingBuilder::default().lossy(true).buffered_lines_limit(BUFFERED_LINES).finish(io::stdout())
}

/// Sets logging up for the process.
pub fn init(config: &LogConfig) -> Telemetry {
    // Anybody can cause access lines; they must not push out what needs the operator. Each line is
    // one write, so the two do not cut into each other.
    let ((out, access_guard), (events, events_guard)) = (queue(), queue());
    let dropped = [out.error_counter(), events.error_counter()];
    let level = match config.level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let builder = fmt().with_max_level(level).with_writer(events);
    let ours = FilterFn::new(|event| !event.target().starts_with(POOL)).with_max_level_hint(level);
    // A second call in one process (tests) keeps the first subscriber.
    let _ = match config.format {
        LogFormat::Json => {
            let lines = builder.json().flatten_event(true).with_target(false).finish();
            tracing::subscriber::set_global_default(lines.with(ours))
        }
        LogFormat::Text => {
            let lines = builder.with_ansi(false).with_target(false).finish();
            tracing::subscriber::set_global_default(lines.with(ours))
        }
    };
    panic::set_hook(Box::new(|panic| {
        let place = panic.location().map_or_else(|| "unknown".to_owned(), ToString::to_string);
        tracing::error!(place, "panic: a bug; please report it with this place");
    }));
    Telemetry { out, dropped, _guards: [access_guard, events_guard] }
}
