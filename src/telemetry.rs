//! Logging: events and access lines to standard output, each kind with a queue of its own, and a
//! panic hook that says where, never what: a panic's message may hold a secret.

pub mod level;
pub mod spans;

use std::io;
use std::panic;

use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::{Layer, Registry, fmt};

use self::level::Levels;
use crate::config::LogConfig;
use crate::config::raw::LogFormat;

/// Lines of each kind that wait for a slow standard output; further ones are dropped rather than
/// kept in memory or waited for.
const BUFFERED_LINES: usize = 8_192;

/// Keeps the writer alive; flushes when it is dropped.
pub struct Telemetry {
    /// Where access lines go.
    pub out: NonBlocking,
    /// The level of events, for who changes it.
    pub levels: Levels,
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
    let (levels, filter) = Levels::new(config.level);
    // Spans are stops of a request, and below the usual level: their ends say how long each took.
    let lines = fmt::layer().with_writer(events).with_target(false).with_span_events(FmtSpan::CLOSE);
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match config.format {
        LogFormat::Json => lines.json().flatten_event(true).with_filter(filter).boxed(),
        LogFormat::Text => lines.with_ansi(false).with_filter(filter).boxed(),
    };
    // A second call in one process (tests) keeps the first subscriber.
    let _ = tracing::subscriber::set_global_default(Registry::default().with(lines));
    panic::set_hook(Box::new(|panic| {
        let place = panic.location().map_or_else(|| "unknown".to_owned(), ToString::to_string);
        tracing::error!(place, "panic: a bug; please report it with this place");
    }));
    Telemetry { out, levels, dropped, _guards: [access_guard, events_guard] }
}
