//! `[telemetry]`: where traces go, and how many.

use super::endpoint::Endpoint;
use super::raw::RawTelemetry;
use super::validate::Validator;

/// Where traces go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TelemetryConfig {
    /// The collector, and the path of its traces.
    pub collector: Option<(Endpoint, String)>,
    /// The service's name in traces.
    pub service_name: Option<String>,
    /// How many of a hundred requests are traced.
    pub sample_percent: usize,
}

/// Where a collector takes traces, after the path of its endpoint.
const TRACES: &str = "/v1/traces";

impl Validator<'_> {
    pub(super) fn telemetry(&mut self, raw: &RawTelemetry) -> TelemetryConfig {
        let at = "telemetry.otlp_endpoint";
        let collector = raw.otlp_endpoint.as_ref().and_then(|url| {
            if !cfg!(feature = "otel") {
                self.problem(at, "this spigate was built without traces; build it with `--features otel`");
            }
            let (endpoint, path) = self.read(at, Endpoint::parse(url).map_err(str::to_owned))?;
            if endpoint.query.is_some() {
                self.problem(at, "must not have a query");
            }
            Some((endpoint, format!("{}{TRACES}", path.trim_end_matches('/'))))
        });
        if raw.service_name.as_deref().is_some_and(str::is_empty) {
            self.problem("telemetry.service_name", "must not be empty");
        }
        TelemetryConfig {
            collector,
            service_name: raw.service_name.clone(),
            sample_percent: self.count("telemetry.sample_percent", raw.sample_percent, 0..=100),
        }
    }
}
