//! The admin listener: liveness, readiness, metrics, the log level, and the journal page. Nothing of
//! it is on the public port.
//!
//! - `connections.rs`: who may connect, and for how long
//! - `access.rs`, `session.rs`: who may see what
//! - `overview.rs`, `deliveries.rs`, `decide.rs`, `workbench.rs`: the pages, each with what programs
//!   get of the same under `/api/v1` (`api.rs`)
//! - `look.rs`, `words.rs`, `form.rs`, `assets.rs`: what pages are made of; `templates/admin/`
//!
//! It has a thread and a runtime of its own. On the public listener's it would wait behind every
//! request and connection that a flood brings, just when somebody wants to look.

mod access;
mod api;
mod assets;
mod connections;
mod decide;
mod deliveries;
mod form;
pub mod log_level;
mod look;
mod overview;
mod session;
mod words;
mod workbench;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, RawQuery, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware;
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Handle};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinError;
use tokio_util::task::AbortOnDropHandle;
use tower_http::csrf::CsrfLayer;

use self::access::{Denied, Guard, client, guard};
use self::form::{Fields, local};
use self::look::Look;
use crate::app::App;
use crate::config::AppConfig;
use crate::journal::Journal;
use crate::journal::store::Unavailable;
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
    /// Where it listens.
    pub address: SocketAddr,
}

/// What the pages work with.
#[derive(Clone)]
struct Desk {
    admin: Admin,
    guard: Arc<Guard>,
    overview: Arc<overview::Cache>,
    /// The workbench answers one question at once.
    bench: Arc<Semaphore>,
}

/// How long a page waits for the journal.
const JOURNAL_WITHIN: Duration = Duration::from_secs(5);
/// Longest form; one with a reply in it is bounded by `limits.reply_bytes` as well.
const LONGEST_FORM: usize = 64 * 1024;
const LONGEST_REPLY_FORM: usize = 4 * 1024 * 1024;

impl Desk {
    /// Has the journal asked where it lives, and waits for its answer only so long. What nobody waits
    /// for any more is not asked any more.
    async fn ask<T, E>(&self, question: impl Future<Output = Result<T, E>> + Send + 'static) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Unavailable> + Send + 'static,
    {
        in_time(AbortOnDropHandle::new(self.admin.requests.spawn(question))).await
    }

    /// The same for what changes something: it is seen through to its end, whoever hangs up meanwhile.
    async fn act<T, E>(&self, deed: impl Future<Output = Result<T, E>> + Send + 'static) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Unavailable> + Send + 'static,
    {
        in_time(self.admin.requests.spawn(deed)).await
    }

    /// The app of this name, if it is configured.
    fn app(&self, name: &str) -> Option<AppConfig> {
        self.admin.served.borrow().apps.get(name).map(|app| app.config.clone())
    }

    /// The names of the configured apps.
    fn app_names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.admin.served.borrow().apps.keys().cloned().collect();
        names.sort_unstable();
        names
    }
}

/// Waits for a task that asks the journal, but only so long.
async fn in_time<T, E>(task: impl Future<Output = Result<Result<T, E>, JoinError>>) -> Result<T, E>
where
    E: From<Unavailable>,
{
    match tokio::time::timeout(JOURNAL_WITHIN, task).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) => Err(Unavailable::new("a bug in the journal, or its end").into()),
        Err(_) => Err(Unavailable::new(format_args!("no answer within {JOURNAL_WITHIN:?}")).into()),
    }
}

/// How long a scrape waits for the journal to be counted; the numbers of the last one stay then.
const COUNT_WITHIN: Duration = Duration::from_secs(2);

/// Serves the admin listener, to the end of the process: monitoring may look until the very last.
///
/// # Errors
/// No thread, or no runtime.
pub fn serve(listener: TcpListener, admin: Admin) -> io::Result<()> {
    let (served, router) = (admin.served.clone(), router(admin));
    let listener = listener.into_std()?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let listener = {
        let _runtime = runtime.enter();
        TcpListener::from_std(listener)?
    };
    let serve = move || runtime.block_on(connections::serve(listener, router, served));
    std::thread::Builder::new().name("admin".into()).spawn(serve).map(drop)
}

/// Prometheus' text format, as its scrapers ask for it.
const METRICS: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// The admin routes. They want to know who asks: serve them with connect info.
fn router(admin: Admin) -> Router {
    let log_level = admin.levels.clone().map(log_level::router).unwrap_or_default();
    let keeper = Arc::new(Guard::new(admin.served.clone(), admin.address));
    let desk = Desk {
        admin: admin.clone(),
        guard: Arc::clone(&keeper),
        overview: Arc::default(),
        bench: Arc::new(Semaphore::new(1)),
    };
    let decisions = Router::new()
        .route("/deliveries/{id}/{decision}", get(decide::confirm).post(decide::decide))
        .route("/api/v1/deliveries/{id}", get(deliveries::show_json).post(decide::decide_json))
        .layer(DefaultBodyLimit::max(LONGEST_REPLY_FORM));
    let pages = Router::new()
        .route("/", get(overview::show))
        .route("/deliveries", get(deliveries::list))
        .route("/deliveries/{id}", get(deliveries::show))
        .route("/workbench", get(workbench::show).post(workbench::ask))
        .route("/api/v1/overview", get(overview::show_json))
        .route("/api/v1/deliveries", get(deliveries::list_json))
        .route("/api/v1/workbench", post(workbench::ask_json))
        .route("/api/v1/openapi.json", get(api::openapi))
        .route("/api/{*rest}", get(api::nothing_here).post(api::nothing_here))
        .route("/login", get(sign_in_page).post(sign_in))
        .route("/logout", post(sign_out))
        .route("/look", get(look::choose))
        .layer(DefaultBodyLimit::max(LONGEST_FORM))
        .merge(decisions)
        .merge(assets::router())
        .fallback(nothing_here)
        .with_state(desk);
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(admin)
        .merge(pages)
        .merge(log_level)
        .layer(CsrfLayer::new())
        // Outermost: nothing of what is behind it is done for whoever may not.
        .layer(middleware::from_fn_with_state(keeper, guard))
}

async fn nothing_here(look: Look) -> Response {
    look.refuse(&api::Refusal::new(StatusCode::NOT_FOUND, "not_found", "404"), "/")
}

#[derive(askama::Template)]
#[template(path = "admin/login.html")]
struct LoginPage<'a> {
    look: &'a Look,
    problem: &'static str,
    next: &'a str,
}

async fn sign_in_page(look: Look, RawQuery(query): RawQuery) -> Response {
    let fields = Fields::of_query(query.as_deref());
    if look.may_look {
        return Redirect::to(local(fields.get("next"))).into_response();
    }
    look::page(&LoginPage { look: &look, problem: "", next: local(fields.get("next")) })
}

async fn sign_in(State(desk): State<Desk>, look: Look, request: Request) -> Response {
    let (client, headers) = (client(&request), request.headers().clone());
    let Ok(body) = axum::body::to_bytes(request.into_body(), LONGEST_FORM).await else {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    };
    let fields = Fields::parse(&body);
    let next = local(fields.get("next"));
    if look.may_look {
        return Redirect::to(next).into_response();
    }
    match desk.guard.sign_in(fields.get("token").unwrap_or_default(), client) {
        Ok(id) => access::with_session(Redirect::to(next).into_response(), &id, &headers),
        Err(denied) => {
            let problem = access::words_of(denied, &look);
            let mut response = look::page(&LoginPage { look: &look, problem, next });
            *response.status_mut() = denied.refusal().status;
            if let Denied::TooMany(wait) = denied {
                response.headers_mut().insert("retry-after", HeaderValue::from(wait.as_secs().saturating_add(1)));
            }
            response
        }
    }
}

async fn sign_out(State(desk): State<Desk>, headers: HeaderMap, _: Bytes) -> Response {
    desk.guard.sign_out(&headers);
    access::with_session(Redirect::to("/login").into_response(), "", &headers)
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
