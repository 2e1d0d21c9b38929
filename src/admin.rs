//! The admin listener: liveness, readiness, metrics, the log level. Nothing of it is on the
//! public port.

pub mod log_level;

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::sync::watch;

use crate::journal::Journal;
use crate::metrics::Metrics;
use crate::served::Served;
use crate::telemetry::level::Levels;

/// What the admin listener shows.
#[derive(Clone)]
pub struct Admin {
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// The journal.
    pub journal: Arc<Journal>,
    /// What requests are judged by.
    pub served: watch::Receiver<Arc<Served>>,
    /// Whether requests are welcome.
    pub ready: watch::Receiver<bool>,
    /// The level of the log, where there is one.
    pub levels: Option<Levels>,
}

/// Prometheus' text format, as its scrapers ask for it.
const METRICS: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// The admin routes. They want to know who asks: serve them with connect info.
pub fn router(admin: Admin) -> Router {
    let log_level = admin.levels.clone().map(log_level::router).unwrap_or_default();
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(admin)
        .merge(log_level)
}

async fn readyz(State(admin): State<Admin>) -> (StatusCode, String) {
    if !*admin.ready.borrow() {
        return (StatusCode::SERVICE_UNAVAILABLE, "not ready: starting or shutting down\n".to_owned());
    }
    if let Err(cause) = admin.journal.health().check() {
        return (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: the journal is not available: {cause}\n"));
    }
    // What the probes found last: whoever asks here calls no backend.
    let served = Arc::clone(&admin.served.borrow());
    let waits = served.apps.values().filter(|app| app.config.ready_requires_backend && !app.backend.is_ready());
    let mut waits: Vec<_> = waits.map(|app| app.config.name.as_str()).collect();
    waits.sort_unstable();
    if !waits.is_empty() {
        let text = format!("not ready: no URL of the backend is well, of app {}\n", waits.join(", "));
        return (StatusCode::SERVICE_UNAVAILABLE, text);
    }
    (StatusCode::OK, format!("ok\n{}", remarks(&served)))
}

/// What is no reason not to be ready, and should not be forgotten.
fn remarks(served: &Served) -> String {
    let observed = served.apps.values().map(|app| &app.config).filter(|app| !app.enforce);
    let mut lines = observed
        .map(|app| format!("app {} is only observed (enforce = false): nothing is refused or recorded\n", app.name))
        .collect::<Vec<_>>();
    lines.sort();
    lines.concat()
}

async fn metrics(State(admin): State<Admin>) -> Response {
    admin.journal.count().await;
    admin.served.borrow().apps.values().for_each(|app| app.backend.show());
    match admin.metrics.render() {
        Ok(text) => ([(CONTENT_TYPE, METRICS)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "metrics cannot be rendered");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
