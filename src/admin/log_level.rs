//! `/log/level`: what is logged, and a way to change that without a restart.

use std::net::SocketAddr;
use std::time::Duration;

use axum::extract::{ConnectInfo, DefaultBodyLimit, RawQuery, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use serde_json::json;

use crate::config::raw::LogLevel;
use crate::config::units;
use crate::telemetry::level::{self, Levels, Shown};

/// A level and a line end.
const LONGEST_BODY: usize = 64;
/// Whoever wants it longer can leave it out.
const LONGEST_WHILE: Duration = Duration::from_secs(7 * 86_400);
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// The routes. Who may, and that no page of another site does, is seen to around them.
pub fn router(levels: Levels) -> Router {
    Router::new()
        .route("/log/level", get(show).post(change))
        .layer(DefaultBodyLimit::max(LONGEST_BODY))
        .with_state(levels)
}

async fn show(State(levels): State<Levels>) -> Response {
    answer(levels.get())
}

async fn change(
    State(levels): State<Levels>,
    RawQuery(query): RawQuery,
    peer: Option<Extension<ConnectInfo<SocketAddr>>>,
    body: String,
) -> Response {
    match read(query.as_deref(), &body) {
        Ok((level, lasts)) => {
            // A listener that is no TCP socket has nobody to name.
            let client = peer.map_or("unknown".to_owned(), |Extension(ConnectInfo(peer))| peer.ip().to_string());
            answer(levels.set(level, lasts, &format!("admin client {client}")))
        }
        Err(message) => (StatusCode::BAD_REQUEST, format!("{message}\n")).into_response(),
    }
}

/// The level of a body, and of a query for how long.
fn read(query: Option<&str>, body: &str) -> Result<(LogLevel, Option<Duration>), String> {
    let level = level::parse(body.trim()).ok_or("the body must be error, warn, info, debug or trace")?;
    let lasts = match query.filter(|query| !query.is_empty()) {
        None => None,
        Some(query) => {
            let text = query.strip_prefix("for=").ok_or("the query may only be for=10m or the like")?;
            let lasts = units::duration(text).map_err(|message| format!("for {message}"))?;
            if lasts.is_zero() || lasts > LONGEST_WHILE {
                return Err("for must be more than zero and at most 7d; without it the level stays".into());
            }
            Some(lasts)
        }
    };
    Ok((level, lasts))
}

fn answer(shown: Shown) -> Response {
    let Shown { level, configured, reverts_at } = shown;
    let reverts_at = reverts_at.map(|at| at.to_string());
    let body = json!({ "level": level::name(level), "configured": level::name(configured), "reverts_at": reverts_at });
    ([(CONTENT_TYPE, JSON)], format!("{body}\n")).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_and_queries() {
        assert_eq!(read(None, "debug\n"), Ok((LogLevel::Debug, None)));
        assert_eq!(read(Some("for=10m"), "trace"), Ok((LogLevel::Trace, Some(Duration::from_secs(600)))));
        assert_eq!(read(Some(""), "error"), Ok((LogLevel::Error, None)));
        for (query, body) in
            [(None, ""), (None, "loud"), (Some("for=0s"), "info"), (Some("for=8d"), "info"), (Some("in=1s"), "info")]
        {
            assert!(read(query, body).is_err(), "{query:?} {body}");
        }
    }
}
