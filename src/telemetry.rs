//! Logging: one writer to standard output for events and access lines, and a panic hook that
//! says where, never what: a panic's message may hold a secret.

pub mod level;
pub mod spans;

use std::io;
use std::panic;

use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::{Layer, Registry, fmt};

use self::level::Levels;
use crate::config::LogConfig;
use crate::config::raw::LogFormat;

/// Lines that wait for a slow standard output; further ones are dropped rather than kept in
/// memory or waited for.
const BUFFERED_LINES: usize = 8_192;

/// Keeps the writer alive; flushes when it is dropped.
pub struct Telemetry {
    /// Where access lines go.
    pub out: NonBlocking,
    /// The level of events, for who changes it.
    pub levels: Levels,
    _guard: WorkerGuard,
}

/// Sets logging up for the process.
pub fn init(config: &LogConfig) -> Telemetry {
    let (out, guard) =
        NonBlockingBuilder::default().lossy(true).buffered_lines_limit(BUFFERED_LINES).finish(io::stdout());
    let (levels, filter) = Levels::new(config.level);
    // Spans are stops of a request, and below the usual level: their ends say how long each took.
    let lines = fmt::layer().with_writer(out.clone()).with_target(false).with_span_events(FmtSpan::CLOSE);
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
    Telemetry { out, levels, _guard: guard }
}
