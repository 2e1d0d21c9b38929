//! Who may see what of the admin listener.
//!
//! `/livez`, `/readyz` and `/metrics` are everybody's: kubelets and Prometheus have no token. All
//! else is for those who come over loopback, or who show the token once there is one. Off loopback
//! and without a token there is nobody else.
//!
//! Two things keep other sites' pages away from whoever may: the Host header has to be an address,
//! `localhost` or a name of the configuration (to a browser, a name that was made to point here
//! would be its owner's site), and what changes something has to come from a page of ours
//! (`Sec-Fetch-Site`, `Origin`: [`CsrfLayer`](tower_http::csrf::CsrfLayer); and the session's cookie
//! is `SameSite=Strict`).

use std::hash::RandomState;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{ConnectInfo, Request, State};
use axum::http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_SECURITY_POLICY, COOKIE, HOST, ORIGIN, REFERRER_POLICY, RETRY_AFTER,
    SET_COOKIE, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};
use tokio::sync::watch;

use super::api::Refusal;
use super::form::Fields;
use super::look::Look;
use super::session::{LASTS, Sessions, is_token};
use crate::config::admin::AdminConfig;
use crate::failures::{Table, TooMany};
use crate::served::Served;

/// Wrong tokens of one client in a minute; further ones are answered 429, and not logged.
const WRONG_PER_MINUTE: u64 = 10;
/// The session's cookie, where the page came encrypted and where it did not. A browser takes the first
/// from an https page only.
const COOKIES: [&str; 2] = ["__Host-spigate", "spigate"];
/// How long a request may take, with its body: more than anything that is waited for on its way.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// What is everybody's.
const PUBLIC: [&str; 3] = ["/livez", "/readyz", "/metrics"];

/// Every answer has these: nothing but our own style and script, in nobody's frame, in no cache.
const HEADERS: [(HeaderName, &str); 5] = [
    (
        CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; form-action \
         'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (REFERRER_POLICY, "no-referrer"),
    (CACHE_CONTROL, "no-store"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// How somebody was let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    /// Over loopback, where nothing is asked.
    Loopback,
    /// By a session.
    Session,
    /// By the token itself.
    Token,
}

impl Pass {
    /// Its name in the log.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::Session => "session",
            Self::Token => "token",
        }
    }
}

/// See the module.
pub(super) struct Guard {
    served: watch::Receiver<Arc<Served>>,
    /// Where it listens.
    address: SocketAddr,
    sessions: Sessions,
    wrong: Table<RandomState>,
    born: Instant,
}

impl Guard {
    /// For the listener at `address`.
    pub(super) fn new(served: watch::Receiver<Arc<Served>>, address: SocketAddr) -> Self {
        let wrong = Table::new(WRONG_PER_MINUTE, RandomState::new());
        Self { served, address, sessions: Sessions::default(), wrong, born: Instant::now() }
    }

    fn config(&self) -> AdminConfig {
        self.served.borrow().admin.clone()
    }

    /// Whether whoever comes has to show something.
    fn asks(&self, config: &AdminConfig) -> bool {
        config.token.is_some() || !self.address.ip().to_canonical().is_loopback()
    }

    /// Lets somebody in, or says why not.
    fn admit(&self, headers: &HeaderMap, client: IpAddr) -> Result<Pass, Denied> {
        let config = self.config();
        if !self.asks(&config) {
            return Ok(Pass::Loopback);
        }
        let Some(token) = &config.token else { return Err(Denied::NoToken) };
        if let Some(shown) = headers.get(AUTHORIZATION) {
            let shown = shown.to_str().ok().and_then(|text| text.split_once(' '));
            let bearer = shown.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
            return match bearer {
                Some((_, shown)) if is_token(shown.trim(), token) => Ok(Pass::Token),
                _ => Err(self.wrong(client)),
            };
        }
        let now = Instant::now();
        let known = session_ids(headers).any(|id| self.sessions.knows(id, token, now));
        if known { Ok(Pass::Session) } else { Err(Denied::Stranger) }
    }

    /// Counts a wrong token. A right one is never counted against, whoever shows wrong ones beside it:
    /// nobody can lock the operator out.
    fn wrong(&self, client: IpAddr) -> Denied {
        match self.wrong.count(client, self.born.elapsed()) {
            Ok(()) => {
                tracing::warn!(client = %client, "a wrong token was shown to the admin listener");
                Denied::Wrong
            }
            Err(TooMany { wait, .. }) => Denied::TooMany(wait),
        }
    }

    /// Begins a session for whoever shows the token.
    pub(super) fn sign_in(&self, shown: &str, client: IpAddr) -> Result<String, Denied> {
        let config = self.config();
        let Some(token) = &config.token else { return Err(Denied::NoToken) };
        if !is_token(shown.trim(), token) {
            return Err(self.wrong(client));
        }
        tracing::info!(client = %client, "somebody signed in to the admin listener");
        self.sessions.begin(token, Instant::now()).ok_or(Denied::Stranger)
    }

    /// Ends the session of a request.
    pub(super) fn sign_out(&self, headers: &HeaderMap) {
        session_ids(headers).for_each(|id| self.sessions.end(id));
    }
}

/// Why somebody is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Denied {
    /// There is no token that could be shown, and this is not loopback.
    NoToken,
    /// Nothing was shown.
    Stranger,
    /// What was shown is wrong.
    Wrong,
    /// What was shown is wrong, and was so too often.
    TooMany(Duration),
}

/// What a person or a program without a token is told off loopback.
const NO_TOKEN: &str = "this listener is not on loopback and admin.token is not set, so only /livez, /readyz and \
                        /metrics are shown: set admin.token, or let admin.address be on loopback";

impl Denied {
    /// As programs are told.
    pub(super) fn refusal(self) -> Refusal {
        match self {
            Self::NoToken => Refusal::new(StatusCode::FORBIDDEN, "no_token_configured", NO_TOKEN),
            Self::Stranger => {
                let message = "show the token of the configuration: Authorization: Bearer …, or sign in at /login";
                Refusal::new(StatusCode::UNAUTHORIZED, "unauthenticated", message)
            }
            Self::Wrong => Refusal::new(StatusCode::UNAUTHORIZED, "wrong_token", "this is not the token"),
            Self::TooMany(_) => {
                let message = "too many wrong tokens: wait a minute, or show the right one";
                Refusal::new(StatusCode::TOO_MANY_REQUESTS, "too_many_failures", message)
            }
        }
    }

    fn answer(self) -> Response {
        let mut response = self.refusal().into_response();
        let headers = response.headers_mut();
        match self {
            Self::Stranger | Self::Wrong => {
                headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"spigate\""));
            }
            Self::TooMany(wait) => {
                headers.insert(RETRY_AFTER, HeaderValue::from(wait.as_secs().saturating_add(1)));
            }
            Self::NoToken => {}
        }
        response
    }
}

/// The layer around everything on the admin listener.
pub(super) async fn guard(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    let mut response = match tokio::time::timeout(ANSWER_WITHIN, admitted(&guard, request, next)).await {
        Ok(response) => response,
        Err(_) => {
            let message = "the request did not come whole, or took too long";
            Refusal::new(StatusCode::REQUEST_TIMEOUT, "too_slow", message).into_response()
        }
    };
    for (name, value) in HEADERS {
        response.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

async fn admitted(guard: &Guard, mut request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if PUBLIC.contains(&path) {
        return next.run(request).await;
    }
    let config = guard.config();
    let headers = request.headers();
    // Whoever only asks for the log level from a terminal may use any name; a browser may not.
    let may_use_names = path == "/log/level" && !is_browser(headers);
    if !may_use_names && !is_host(headers, &config.hosts) {
        let message = "open this by its address, as localhost, or by a name of admin.hosts";
        return Refusal::new(StatusCode::FORBIDDEN, "unknown_host", message).into_response();
    }
    if config.read_only && path == "/log/level" && !request.method().is_safe() {
        return Refusal::read_only().into_response();
    }
    let is_open = path == "/login" || path.starts_with("/assets/") || path == "/look";
    match guard.admit(headers, client(&request)) {
        Ok(pass) => {
            request.extensions_mut().insert(pass);
            next.run(request).await
        }
        Err(denied) if denied != Denied::NoToken && is_open => next.run(request).await,
        Err(Denied::Stranger) if wants_page(&request) => {
            let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
            let back = if request.method() == Method::GET { target } else { "/" };
            let query = Fields::default().query_with(&[("next", back)]);
            Redirect::to(&format!("/login?{query}")).into_response()
        }
        Err(denied) => denied.answer(),
    }
}

/// Whether a browser asks for a page, and not a program for what a page is made of.
fn wants_page(request: &Request) -> bool {
    let accept = request.headers().get(axum::http::header::ACCEPT).and_then(|accept| accept.to_str().ok());
    !request.uri().path().starts_with("/api/") && accept.is_some_and(|accept| accept.contains("text/html"))
}

/// The peer; a listener that is no TCP socket has nobody to name.
pub(super) fn client(request: &Request) -> IpAddr {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
    peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |ConnectInfo(peer)| peer.ip().to_canonical())
}

pub(super) fn is_browser(headers: &HeaderMap) -> bool {
    headers.contains_key(ORIGIN) || headers.contains_key("sec-fetch-site")
}

/// Whether the request came by an address, as `localhost`, or by one of these names.
pub(super) fn is_host(headers: &HeaderMap, names: &[String]) -> bool {
    let mut hosts = headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
    let Some(Ok(authority)) = host.to_str().ok().map(str::parse::<axum::http::uri::Authority>) else { return false };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
    name == "localhost" || name.parse::<IpAddr>().is_ok() || names.contains(&name)
}

/// The identifiers of sessions in a request's cookies.
fn session_ids(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    cookies(headers).filter(|(name, _)| COOKIES.contains(name)).map(|(_, value)| value)
}

/// The cookies of a request.
pub(super) fn cookies(headers: &HeaderMap) -> impl Iterator<Item = (&str, &str)> {
    let lines = headers.get_all(COOKIE).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='))
}

/// Sends the session's cookie along. Whether the page came encrypted, only the browser knows, and it
/// says so in `Origin`.
pub(super) fn with_session(mut response: Response, id: &str, headers: &HeaderMap) -> Response {
    let is_https = headers.get(ORIGIN).is_some_and(|origin| origin.as_bytes().starts_with(b"https://"));
    let (name, secure) = if is_https { (COOKIES[0], "; Secure") } else { (COOKIES[1], "") };
    let seconds = if id.is_empty() { 0 } else { LASTS.as_secs() };
    let cookie = format!("{name}={id}; Path=/; HttpOnly; SameSite=Strict; Max-Age={seconds}{secure}");
    if let Ok(cookie) = HeaderValue::try_from(cookie) {
        response.headers_mut().append(SET_COOKIE, cookie);
    }
    response
}

/// What the sign-in page says of a failure.
pub(super) fn words_of(denied: Denied, look: &Look) -> &'static str {
    match denied {
        Denied::TooMany(_) => look.words.too_many_tokens,
        Denied::Wrong | Denied::Stranger | Denied::NoToken => look.words.wrong_token,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_no_addresses() {
        for (host, expected) in [
            ("127.0.0.1:9090", true),
            ("[::1]:9090", true),
            ("10.1.2.3", true),
            ("localhost", true),
            ("LOCALHOST:1", true),
            ("ops.example:9090", true),
            ("OPS.example", true),
            ("evil.example:9090", false),
            ("127.0.0.1.evil.example", false),
            ("localhost.evil.example", false),
            ("", false),
        ] {
            let headers = HeaderMap::from_iter([(HOST, HeaderValue::from_static(host))]);
            assert_eq!(is_host(&headers, &["ops.example".to_owned()]), expected, "{host}");
        }
        assert!(!is_host(&HeaderMap::new(), &[]));
        let mut two = HeaderMap::from_iter([(HOST, HeaderValue::from_static("localhost"))]);
        two.append(HOST, HeaderValue::from_static("localhost"));
        assert!(!is_host(&two, &[]));
    }

    #[test]
    fn the_cookie_is_for_this_host_and_no_script() {
        let cookie = |origin: &'static str| {
            let headers = HeaderMap::from_iter([(ORIGIN, HeaderValue::from_static(origin))]);
            let response = with_session(Response::default(), "abc", &headers);
            response.headers()[SET_COOKIE].to_str().unwrap().to_owned()
        };
        let attributes = "=abc; Path=/; HttpOnly; SameSite=Strict; Max-Age=43200";
        assert_eq!(cookie("http://10.0.0.1:9090"), format!("spigate{attributes}"));
        assert_eq!(cookie("https://ops.example"), format!("__Host-spigate{attributes}; Secure"));
    }
}
