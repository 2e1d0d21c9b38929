//! The admin listener: liveness, readiness, metrics, the log level. Nothing of it is on the
//! public port.
//!
//! It has a thread and a runtime of its own. On the public listener's it would wait behind every
//! request and connection that a flood brings, just when somebody wants to look.

pub mod log_level;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Handle};
use tokio::sync::watch;

use crate::app::App;
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
    /// How many log lines were dropped; none where nothing is logged.
    pub dropped_lines: Option<Arc<dyn Fn() -> u64 + Send + Sync>>,
    /// Where requests run, and the journal with them.
    pub requests: Handle,
}

/// How long a scrape waits for the journal to be counted; the numbers of the last one stay then.
const COUNT_WITHIN: Duration = Duration::from_secs(2);

/// Serves the admin listener, to the end of the process: monitoring may look until the very last.
///
/// # Errors
/// No thread, or no runtime.
pub fn serve(listener: TcpListener, router: Router) -> io::Result<()> {
    let listener = listener.into_std()?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let listener = {
        let _runtime = runtime.enter();
        TcpListener::from_std(listener)?
    };
    let serve = move || {
        // It waits out errors of accepting, and never ends.
        let _ = runtime.block_on(async {
            axum::serve(listener, router.into_make_service_with_connect_info::<SocketAddr>()).await
        });
    };
    std::thread::Builder::new().name("admin".into()).spawn(serve).map(drop)
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
    let is_ready = |app: &App| app.backend.as_ref().is_none_or(|backend| backend.is_ready());
    let waits = served.apps.values().filter(|app| app.config.ready_requires_backend && !is_ready(app));
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
    // What the journal waits for belongs to its own runtime, which may be busy.
    let journal = Arc::clone(&admin.journal);
    let counted = admin.requests.spawn(async move { journal.count().await });
    let _ = tokio::time::timeout(COUNT_WITHIN, counted).await;
    if let Some(dropped) = &admin.dropped_lines {
        // One thread serves all scrapes, and nothing is waited for in between.
        admin.metrics.log_dropped.inc_by(dropped().saturating_sub(admin.metrics.log_dropped.get()));
    }
    admin.served.borrow().apps.values().filter_map(|app| app.backend.as_ref()).for_each(|backend| backend.show());
    match admin.metrics.render() {
        Ok(text) => ([(CONTENT_TYPE, METRICS)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "metrics cannot be rendered");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
