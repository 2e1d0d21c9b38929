//! `/log/level`: what is logged, and a way to change that without a restart.

use std::net::SocketAddr;
use std::time::Duration;

use axum::extract::{ConnectInfo, DefaultBodyLimit, RawQuery, Request, State};
use axum::http::header::{CONTENT_TYPE, HOST, ORIGIN};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use serde_json::json;
use tower_http::csrf::CsrfLayer;

use crate::config::raw::LogLevel;
use crate::config::units;
use crate::telemetry::level::{self, Levels, Shown};

/// A level and a line end.
const LONGEST_BODY: usize = 64;
/// Whoever wants it longer can leave it out.
const LONGEST_WHILE: Duration = Duration::from_secs(7 * 86_400);
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// The routes. What changes something is closed to pages of other sites.
pub fn router(levels: Levels) -> Router {
    Router::new()
        .route("/log/level", get(show).post(change))
        .layer(DefaultBodyLimit::max(LONGEST_BODY))
        .layer(middleware::from_fn(by_address))
        .layer(CsrfLayer::new())
        .with_state(levels)
}

/// Refuses a browser that came by a name: whoever owns a name can let it point here, and to
/// the browser their page is then one of ours. Nobody can do that with an address.
async fn by_address(request: Request, next: Next) -> Response {
    let headers = request.headers();
    let is_browser = headers.contains_key(ORIGIN) || headers.contains_key("sec-fetch-site");
    if !request.method().is_safe() && is_browser && !is_address(headers) {
        let message = "open this by its address or as localhost, not by a name\n";
        return (StatusCode::FORBIDDEN, message).into_response();
    }
    next.run(request).await
}

fn is_address(headers: &HeaderMap) -> bool {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let Ok(authority) = host.parse::<axum::http::uri::Authority>() else { return false };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok()
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

    #[test]
    fn names_are_no_addresses() {
        for (host, expected) in [
            ("127.0.0.1:9090", true),
            ("[::1]:9090", true),
            ("localhost", true),
            ("evil.example:9090", false),
            ("127.0.0.1.evil.example", false),
            ("", false),
        ] {
            let headers = HeaderMap::from_iter([(HOST, HeaderValue::from_static(host))]);
            assert_eq!(is_address(&headers), expected, "{host}");
        }
    }
}
