//! The catalogue of metrics: a field is a metric, its doc comment is the metric's help text.
//!
//! Labels are bounded: apps and keys come from the configuration, actions, fields and rules
//! from dialects, the rest from enums. What a request needs is looked up once per app and
//! action ([`AppMetrics`]); the data path only adds.

use std::borrow::Borrow;
use std::sync::OnceLock;

use prometheus::{
    Encoder as _, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use crate::delivery::Outcome;
use crate::dialect::Dialect;

/// Seconds of a request or a backend call: from a loopback hop to the longest timeout.
const SECONDS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0, 60.0];
/// Seconds between the signed time and our clock; negative means signed in our future.
const SKEW: &[f64] = &[-600.0, -300.0, -60.0, -30.0, -10.0, -5.0, -1.0, 0.0, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0];

/// Operations in a batch of the journal.
const BATCH: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

macro_rules! catalogue {
    ($( $(#[doc = $help:literal])+ $field:ident: $kind:ident = $name:literal [$($label:literal),*] $(in $buckets:expr)?; )*) => {
        /// Every metric of the gateway.
        pub struct Metrics {
            registry: Registry,
            $( $(#[doc = $help])+ pub $field: $kind, )*
        }

        impl Metrics {
            /// Makes and registers all metrics.
            ///
            /// # Errors
            /// Only if two metrics had one name; a test makes them all.
            pub fn new() -> Result<Self, prometheus::Error> {
                let registry = Registry::new();
                $(
                    let $field = catalogue!(@make $kind, $name, concat!($($help),+).trim(), [$($label),*] $(, $buckets)?)?;
                    registry.register(Box::new($field.clone()))?;
                )*
                register_process(&registry)?;
                Ok(Self { registry, $($field,)* })
            }
        }
    };
    (@make IntCounter, $name:literal, $help:expr, []) => { IntCounter::new($name, $help) };
    (@make IntGauge, $name:literal, $help:expr, []) => { IntGauge::new($name, $help) };
    (@make IntCounterVec, $name:literal, $help:expr, [$($label:literal),*]) => {
        IntCounterVec::new(Opts::new($name, $help), &[$($label),*])
    };
    (@make IntGaugeVec, $name:literal, $help:expr, [$($label:literal),*]) => {
        IntGaugeVec::new(Opts::new($name, $help), &[$($label),*])
    };
    (@make Histogram, $name:literal, $help:expr, [], $buckets:expr) => {
        Histogram::with_opts(HistogramOpts::new($name, $help).buckets($buckets.to_vec()))
    };
    (@make HistogramVec, $name:literal, $help:expr, [$($label:literal),*], $buckets:expr) => {
        HistogramVec::new(HistogramOpts::new($name, $help).buckets($buckets.to_vec()), &[$($label),*])
    };
}

catalogue! {
    /// Requests answered, by how they ended.
    requests: IntCounterVec = "spigate_requests_total" ["app", "action", "outcome"];
    /// Requests that were not answered with a backend's reply, by code.
    rejections: IntCounterVec = "spigate_rejections_total" ["app", "code"];
    /// Requests and replies that would have been refused, were their app not observed only
    /// (enforce = false), by code.
    would_refuse: IntCounterVec = "spigate_would_refuse_total" ["app", "code"];
    /// Requests that an ingress asked the companion about, by the contract that it asked by. They are
    /// among spigate_requests_total, too.
    companion_requests: IntCounterVec = "spigate_companion_requests_total" ["app", "contract", "outcome"];
    /// Seconds from a request's arrival to its answer.
    request_seconds: HistogramVec = "spigate_request_seconds" ["app", "action"] in SECONDS;
    /// Seconds of backend calls, by how they ended.
    backend_seconds: HistogramVec = "spigate_backend_seconds" ["app", "action", "outcome"] in SECONDS;
    /// Age of verified requests in seconds: our clock minus the signed time.
    clock_skew_seconds: HistogramVec = "spigate_clock_skew_seconds" ["app"] in SKEW;
    /// Requests verified, by the key that did it; a key that stays at rest can be retired.
    key_verifications: IntCounterVec = "spigate_key_verifications_total" ["app", "key"];
    /// Accepted requests without a field that the platform's documentation requires.
    contract_warnings: IntCounterVec = "spigate_contract_warnings_total" ["app", "action", "field"];
    /// Backend replies that broke the contract, by rule.
    backend_violations: IntCounterVec = "spigate_backend_violations_total" ["app", "action", "rule"];
    /// Whether a URL of a backend is called, by its position: 0 while its circuit is open or its
    /// probe fails.
    backend_up: IntGaugeVec = "spigate_backend_up" ["app", "backend"];
    /// Times that the circuit of a backend's URL opened, because too many calls in a row failed.
    backend_circuit_opened: IntCounterVec = "spigate_backend_circuit_opened_total" ["app", "backend"];
    /// Calls that were sent to another URL than the first, by the position of that one.
    backend_failovers: IntCounterVec = "spigate_backend_failovers_total" ["app", "backend"];
    /// Deliveries, by what became of them: an attempt's outcome, or why a copy caused none. An
    /// attempt that was confirmed after its own caller had been answered counts as late, too.
    deliveries: IntCounterVec = "spigate_deliveries_total" ["app", "action", "outcome"];
    /// Confirmations that came after another attempt of the same delivery had been confirmed with
    /// another instance: the backend may have done it twice.
    duplicate_confirmations: IntCounterVec = "spigate_duplicate_confirmations_total" ["app"];
    /// Deliveries that may have been executed and are not confirmed.
    unconfirmed_deliveries: IntGaugeVec = "spigate_unconfirmed_deliveries" ["app"];
    /// Deliveries confirmed by the backend and never answered to the platform: orders that a
    /// customer paid for and does not see.
    unanswered_deliveries: IntGaugeVec = "spigate_unanswered_deliveries" ["app"];
    /// Seconds of journal operations, waiting for the disk or the server included.
    journal_seconds: HistogramVec = "spigate_journal_seconds" ["operation"] in SECONDS;
    /// Journal operations that failed.
    journal_errors: IntCounterVec = "spigate_journal_errors_total" ["operation"];
    /// Operations that shared one flush of the disk.
    journal_batch_size: Histogram = "spigate_journal_batch_size" [] in BATCH;
    /// Requests being worked on.
    in_flight_requests: IntGaugeVec = "spigate_in_flight_requests" ["app"];
    /// Connections open on the public listener.
    connections: IntGauge = "spigate_connections" [];
    /// Connections refused because limits.connections was reached.
    connections_refused: IntCounter = "spigate_connections_refused_total" [];
    /// Connections closed because they did not begin with a PROXY header that counts, by reason.
    proxy_protocol_errors: IntCounterVec = "spigate_proxy_protocol_errors_total" ["reason"];
    /// Times that accepting a connection failed, as it does without free file descriptors.
    accept_errors: IntCounter = "spigate_accept_errors_total" [];
    /// When the certificate, or the earliest of those that are sent with it, expires: seconds since
    /// 1970. By listener and the certificate's file.
    tls_certificate_expiry: IntGaugeVec =
        "spigate_tls_certificate_expiry_timestamp_seconds" ["listener", "certificate"];
    /// TLS handshakes that failed, by reason.
    tls_handshake_errors: IntCounterVec = "spigate_tls_handshake_errors_total" ["reason"];
    /// Requests whose caller hung up before the answer.
    callers_gone: IntCounter = "spigate_callers_gone_total" [];
    /// Log lines dropped because standard output was too slow for them.
    log_dropped: IntCounter = "spigate_log_dropped_total" [];
    /// Panics caught: bugs.
    panics: IntCounter = "spigate_panics_total" [];
    /// Changed configurations, by what became of them; a failure keeps the one before.
    config_reloads: IntCounterVec = "spigate_config_reloads_total" ["result"];
    /// Whether the configuration files, as they are now, are what is served: 0 from a change that
    /// cannot be used until it is mended or taken back.
    config_reload_successful: IntGauge = "spigate_config_last_reload_successful" [];
    /// When the configuration that is served was loaded, in seconds since 1970.
    config_loaded: IntGauge = "spigate_config_last_reload_success_timestamp_seconds" [];
    /// Always 1; the version is a label.
    build_info: IntGaugeVec = "spigate_build_info" ["version"];
}

fn register_process(registry: &Registry) -> Result<(), prometheus::Error> {
    #[cfg(target_os = "linux")]
    registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
    #[cfg(not(target_os = "linux"))]
    let _ = registry;
    Ok(())
}

impl Metrics {
    /// The metrics in Prometheus' text format.
    ///
    /// # Errors
    /// Only if a collector misbehaves.
    pub fn render(&self) -> Result<Vec<u8>, prometheus::Error> {
        let mut out = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut out)?;
        Ok(out)
    }
}

/// One app's metrics, looked up ahead.
pub struct AppMetrics {
    /// What is counted by action.
    pub answers: AnswerMetrics,
    /// Age of verified requests.
    pub skew: Histogram,
    /// Requests being worked on.
    pub in_flight: IntGauge,
    /// Verifications, by position of the key.
    pub verifications: Vec<IntCounter>,
}

/// What is counted by app and action; there is one for requests without an app, too.
pub struct AnswerMetrics {
    app: String,
    /// One for each action of the dialect, and one for what is no action.
    actions: Vec<ActionMetrics>,
}

/// One action's metrics. Children are made when they are first needed, so that ten thousand
/// apps do not mean half a million empty series.
struct ActionMetrics {
    action: String,
    requests: [OnceLock<IntCounter>; Outcome::ALL.len()],
    seconds: OnceLock<Histogram>,
    backend: [OnceLock<Histogram>; Outcome::ALL.len()],
    /// By position of the field.
    lacking: Vec<OnceLock<IntCounter>>,
}

/// The label of requests that no app or no action could be found for.
pub const UNKNOWN: &str = "unknown";

impl AppMetrics {
    /// Looks an app's metrics up.
    pub fn new<'k>(metrics: &Metrics, app: &str, dialect: &Dialect, keys: impl Iterator<Item = &'k str>) -> Self {
        Self {
            answers: AnswerMetrics::new(app, Some(dialect)),
            skew: metrics.clock_skew_seconds.with_label_values(&[app]),
            in_flight: metrics.in_flight_requests.with_label_values(&[app]),
            verifications: keys.map(|key| metrics.key_verifications.with_label_values(&[app, key])).collect(),
        }
    }
}

impl AnswerMetrics {
    /// Prepares them; without a dialect every action is unknown.
    pub fn new(app: &str, dialect: Option<&Dialect>) -> Self {
        let fields = dialect.map_or(0, |dialect| dialect.fields.len());
        let known = dialect.into_iter().flat_map(|dialect| dialect.actions.iter().map(|action| action.name.as_str()));
        let actions = known.chain([UNKNOWN]).map(|action| ActionMetrics::new(action, fields)).collect();
        Self { app: app.to_owned(), actions }
    }

    /// The label of an action, by its position in the dialect.
    fn action(&self, action: Option<usize>) -> &ActionMetrics {
        // The last one is always there.
        let last = self.actions.len() - 1;
        &self.actions[action.map_or(last, |action| action.min(last))]
    }

    /// Counts an answered request.
    pub fn answered(&self, metrics: &Metrics, action: Option<usize>, outcome: Outcome, seconds: f64) {
        let action = self.action(action);
        action.requests[outcome.index()]
            .get_or_init(|| metrics.requests.with_label_values(&[&self.app, &action.action, outcome.as_str()]))
            .inc();
        action
            .seconds
            .get_or_init(|| metrics.request_seconds.with_label_values(&[&self.app, &action.action]))
            .observe(seconds);
    }

    /// Counts an answered question of an ingress.
    pub fn vouched(&self, metrics: &Metrics, contract: &str, outcome: Outcome) {
        metrics.companion_requests.with_label_values(&[&self.app, contract, outcome.as_str()]).inc();
    }

    /// Counts a backend call.
    pub fn called(&self, metrics: &Metrics, action: Option<usize>, outcome: Outcome, seconds: f64) {
        let action = self.action(action);
        action.backend[outcome.index()]
            .get_or_init(|| metrics.backend_seconds.with_label_values(&[&self.app, &action.action, outcome.as_str()]))
            .observe(seconds);
    }

    /// Counts a rejection.
    pub fn rejected(&self, metrics: &Metrics, code: &str) {
        metrics.rejections.with_label_values(&[&self.app, code]).inc();
    }

    /// Counts what would have been refused.
    pub fn would_refuse(&self, metrics: &Metrics, code: &str) {
        metrics.would_refuse.with_label_values(&[&self.app, code]).inc();
    }

    /// Counts a field that a lenient contract let pass, by its position in the dialect.
    pub fn lacked(&self, metrics: &Metrics, action: usize, field: usize, name: &str) {
        let action = self.action(Some(action));
        if let Some(counter) = action.lacking.get(field) {
            counter
                .get_or_init(|| metrics.contract_warnings.with_label_values(&[&self.app, &action.action, name]))
                .inc();
        }
    }

    /// Counts a broken rule.
    pub fn violated(&self, metrics: &Metrics, action: usize, rule: &str) {
        metrics.backend_violations.with_label_values(&[&self.app, &self.action(Some(action)).action, rule]).inc();
    }
}

impl ActionMetrics {
    fn new(action: &str, fields: usize) -> Self {
        Self {
            action: action.to_owned(),
            requests: Default::default(),
            seconds: OnceLock::new(),
            backend: Default::default(),
            lacking: (0..fields).map(|_| OnceLock::new()).collect(),
        }
    }
}

/// Counts something as running for as long as it lives.
pub struct InFlight<G: Borrow<IntGauge>>(G);

impl<G: Borrow<IntGauge>> InFlight<G> {
    /// Begins, with the gauge or a reference to it.
    pub fn new(gauge: G) -> Self {
        gauge.borrow().inc();
        Self(gauge)
    }
}

impl<G: Borrow<IntGauge>> Drop for InFlight<G> {
    fn drop(&mut self) {
        self.0.borrow().dec();
    }
}

/// Counts the panic that passes it, if one does: for tasks that no layer stands around.
pub struct CountPanic(IntCounter);

impl CountPanic {
    /// Begins to watch.
    pub fn new(counter: &IntCounter) -> Self {
        Self(counter.clone())
    }
}

impl Drop for CountPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_can_be_registered_and_shown() {
        let metrics = Metrics::new().unwrap();
        let dialect = &crate::dialect::builtin::load().unwrap()[0];
        let app = AppMetrics::new(&metrics, "crm", dialect, ["k1"].into_iter());
        app.answers.answered(&metrics, Some(77), Outcome::Delivered, 0.1);
        app.answers.called(&metrics, None, Outcome::Failed, 0.1);
        app.answers.rejected(&metrics, "internal");
        let text = String::from_utf8(metrics.render().unwrap()).unwrap();
        assert!(text.contains(r#"spigate_requests_total{action="unknown",app="crm",outcome="delivered"} 1"#));
        assert!(text.contains(r#"spigate_key_verifications_total{app="crm",key="k1"} 0"#));
    }
}
