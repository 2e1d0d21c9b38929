//! What is known of one URL's health: its circuit, and what the probe found. Tells of each
//! change once, in the log and in the metrics.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU8, Ordering};

use prometheus::{IntCounter, IntGauge};
use tokio::time::Instant;

use super::Watched;
use super::circuit::{Circuit, Moment, Pass};
use crate::config::{CircuitConfig, CountedFailures};

/// One URL's health.
pub(super) struct Health {
    circuit: Circuit,
    count: CountedFailures,
    probed: AtomicU8,
    app: String,
    /// For logs and metrics: a URL may hold secrets.
    position: usize,
    metrics: Option<MemberMetrics>,
}

struct MemberMetrics {
    up: IntGauge,
    opened: IntCounter,
    /// Of URLs that others fail over to.
    taken_over: Option<IntCounter>,
}

/// Nobody probes.
const NOT_PROBED: u8 = 0;
/// A probe has begun and found nothing yet.
const UNKNOWN: u8 = 1;
const WELL: u8 = 2;
const UNWELL: u8 = 3;

/// Circuits count milliseconds from here.
static BEGINNING: LazyLock<Instant> = LazyLock::new(Instant::now);

fn now() -> Moment {
    let millis = u64::try_from(BEGINNING.elapsed().as_millis()).unwrap_or(u64::MAX);
    // Without a source of chance, all pauses are of one length.
    Moment { millis, chance: getrandom::u32().unwrap_or(0) }
}

impl Health {
    pub(super) fn new(circuit: &CircuitConfig, probed: bool, position: usize, watched: Option<Watched<'_>>) -> Self {
        let metrics = watched.map(|Watched { app, metrics }| {
            let labels = &[app, &position.to_string()];
            MemberMetrics {
                up: metrics.backend_up.with_label_values(labels),
                opened: metrics.backend_circuit_opened.with_label_values(labels),
                taken_over: (position > 0).then(|| metrics.backend_failovers.with_label_values(labels)),
            }
        });
        Self {
            circuit: Circuit::new(circuit.failures, circuit.open_for),
            count: circuit.count,
            probed: AtomicU8::new(if probed { UNKNOWN } else { NOT_PROBED }),
            app: watched.map_or("", |watched| watched.app).to_owned(),
            position,
            metrics,
        }
    }

    /// Whether a call may be made.
    pub(super) fn admit(&self) -> Option<Pass> {
        self.circuit.admit(now)
    }

    /// Whether the probe found it unwell.
    pub(super) fn is_unwell(&self) -> bool {
        self.probed.load(Ordering::Relaxed) == UNWELL
    }

    /// Whether the probe found it well, or nobody probes.
    pub(super) fn is_ready(&self) -> bool {
        matches!(self.probed.load(Ordering::Relaxed), NOT_PROBED | WELL)
    }

    /// Writes the state into the metrics.
    pub(super) fn show(&self) {
        if let Some(metrics) = &self.metrics {
            metrics.up.set(i64::from(!self.circuit.is_open() && !self.is_unwell()));
        }
    }

    /// A complete reply came that speaks for it.
    pub(super) fn succeeded(&self, pass: Pass) {
        if self.circuit.succeeded(pass) {
            self.tell_closed();
        }
    }

    /// It took the request and then failed: a bad reply, or none.
    pub(super) fn answered_badly(&self, pass: Pass, cause: impl FnOnce() -> String) {
        match self.count {
            CountedFailures::Connect => self.succeeded(pass),
            CountedFailures::Any => self.failed(pass, &cause()),
        }
    }

    /// A call failed.
    pub(super) fn failed(&self, pass: Pass, cause: &str) {
        if self.circuit.failed(pass, now) {
            if let Some(metrics) = &self.metrics {
                metrics.opened.inc();
            }
            let (app, backend) = (&self.app, self.position);
            tracing::warn!(app, backend, cause, "the backend's circuit is open: too many calls in a row failed");
        }
    }

    /// A call's connection came about. A slow reply must not keep other calls waiting, where only
    /// connecting counts.
    pub(super) fn connected(&self, pass: Pass) {
        if pass == Pass::Trial && self.count == CountedFailures::Connect && self.circuit.hopeful() {
            self.tell_closed();
        }
    }

    /// A call was sent to it.
    pub(super) fn called(&self) {
        if let Some(taken_over) = self.metrics.as_ref().and_then(|metrics| metrics.taken_over.as_ref()) {
            taken_over.inc();
        }
    }

    /// The probe found something.
    pub(super) fn probed(&self, found: Result<(), String>) {
        let new = if found.is_ok() { WELL } else { UNWELL };
        let old = self.probed.swap(new, Ordering::Relaxed);
        let (app, backend) = (&self.app, self.position);
        match found {
            Err(cause) if old != UNWELL => tracing::warn!(app, backend, cause, "the backend's probe fails"),
            Ok(()) if old == UNWELL => tracing::info!(app, backend, "the backend's probe succeeds again"),
            _ => {}
        }
        // It connects: no order has to try that. What only a call can show, calls have to show.
        if new == WELL && self.count == CountedFailures::Connect && self.circuit.hopeful() {
            self.tell_closed();
        }
    }

    fn tell_closed(&self) {
        tracing::info!(app = self.app, backend = self.position, "the backend's circuit is closed: it is called again");
    }
}
