//! Logging: events and access lines to standard output, each kind with a queue of its own, and a
//! panic hook that says where, never what: a panic's message may hold a secret. And traces, where
//! they are wanted.

pub mod level;
pub mod spans;
#[cfg_attr(not(feature = "otel"), path = "telemetry/no_traces.rs")]
pub mod traces;

use std::io;
use std::panic;

use tokio::runtime::Handle;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::{Layer, Registry, fmt};

use self::level::Levels;
use self::traces::Traces;
use crate::config::Config;
use crate::config::raw::LogFormat;

/// Access lines that wait for a slow standard output; further ones are dropped rather than kept in
/// memory or waited for.
const WAITING_LINES: usize = 8_192;
/// Events that wait likewise. They are far fewer, and a queue takes its room when it is made.
const WAITING_EVENTS: usize = 1_024;

/// Whose events are logged and whose spans are traced: this crate's.
const OURS: &str = env!("CARGO_CRATE_NAME");

/// One of the consumers of events and spans.
type BoxedLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// Keeps the writer alive; flushes when it is dropped.
pub struct Telemetry {
    /// Where access lines go.
    pub out: NonBlocking,
    /// The level of events, for who changes it.
    pub levels: Levels,
    /// Traces, if there are some.
    pub traces: Option<Traces>,
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

fn queue(lines: usize) -> (NonBlocking, WorkerGuard) {
    NonBlockingBuilder::default().lossy(true).buffered_lines_limit(lines).finish(io::stdout())
}

/// Sets logging and traces up for the process, whose runtime this is.
///
/// # Errors
/// Traces that are wanted and cannot be.
pub fn init(config: &Config, runtime: &Handle) -> Result<Telemetry, String> {
    // Anybody can cause access lines; they must not push out what needs the operator. Each line is
    // one write, so the two do not cut into each other.
    let ((out, access_guard), (events, events_guard)) = (queue(WAITING_LINES), queue(WAITING_EVENTS));
    let dropped = [out.error_counter(), events.error_counter()];
    let (levels, filter) = Levels::new(config.log.level);
    // Spans are stops of a request, and below the usual level: their ends say how long each took.
    let lines = fmt::layer().with_writer(events).with_target(false).with_span_events(FmtSpan::CLOSE);
    let lines: BoxedLayer = match config.log.format {
        LogFormat::Json => lines.json().flatten_event(true).with_filter(filter).boxed(),
        LogFormat::Text => lines.with_ansi(false).with_filter(filter).boxed(),
    };
    let (traces, layer) = traces::start(&config.telemetry, runtime)?.unzip();
    let layers: Vec<BoxedLayer> = [lines].into_iter().chain(layer).collect();
    // A second call in one process (tests) keeps the first subscriber.
    let _ = tracing::subscriber::set_global_default(Registry::default().with(layers));
    panic::set_hook(Box::new(|panic| {
        let place = panic.location().map_or_else(|| "unknown".to_owned(), ToString::to_string);
        tracing::error!(place, "panic: a bug; please report it with this place");
    }));
    Ok(Telemetry { out, levels, traces, dropped, _guards: [access_guard, events_guard] })
}
