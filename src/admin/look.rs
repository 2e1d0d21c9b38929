//! How a page looks to whoever asks for it: language, theme, and what stands around every page.

use std::convert::Infallible;

use askama::Template;
use axum::extract::{FromRequestParts, RawQuery};
use axum::http::header::{ACCEPT_LANGUAGE, CONTENT_TYPE, SET_COOKIE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Redirect, Response};

use super::Desk;
use super::access::{Pass, cookies};
use super::api::Refusal;
use super::form::{Fields, local};
use super::words::{CHINESE, ENGLISH, Words};
use crate::plain::plain;

const LANGUAGE: &str = "spigate_lang";
const THEME: &str = "spigate_theme";
const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");

/// See the module.
#[derive(Clone)]
pub(super) struct Look {
    pub(super) words: &'static Words,
    pub(super) theme: &'static str,
    /// The page's path.
    pub(super) path: String,
    /// Path and query for coming back, as they stand in a query.
    pub(super) back: String,
    /// Whether more than signing in can be done.
    pub(super) may_look: bool,
    pub(super) signed_in: bool,
    pub(super) read_only: bool,
    pub(super) version: &'static str,
}

impl FromRequestParts<Desk> for Look {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, desk: &Desk) -> Result<Self, Infallible> {
        let headers = &parts.headers;
        let chosen = |name: &str| cookies(headers).find(|(known, _)| *known == name).map(|(_, value)| value);
        let words = chosen(LANGUAGE).and_then(language).unwrap_or_else(|| accepted(headers));
        let pass = parts.extensions.get::<Pass>();
        let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
        // What a form sends cannot be asked for again.
        let back = if parts.method.is_safe() { local(Some(target)) } else { parts.uri.path() };
        Ok(Self {
            words,
            theme: chosen(THEME).map_or("auto", theme),
            path: parts.uri.path().to_owned(),
            back: form_urlencoded::byte_serialize(back.as_bytes()).collect(),
            may_look: pass.is_some(),
            signed_in: pass == Some(&Pass::Session),
            read_only: desk.admin.served.borrow().admin.read_only,
            version: env!("CARGO_PKG_VERSION"),
        })
    }
}

fn language(code: &str) -> Option<&'static Words> {
    match code.get(..2) {
        Some(two) if two.eq_ignore_ascii_case("zh") => Some(&CHINESE),
        Some(two) if two.eq_ignore_ascii_case("en") => Some(&ENGLISH),
        _ => None,
    }
}

fn theme(name: &str) -> &'static str {
    ["light", "dark"].into_iter().find(|known| *known == name).unwrap_or("auto")
}

/// The language that a browser likes best of those that there are.
fn accepted(headers: &HeaderMap) -> &'static Words {
    let line = headers.get(ACCEPT_LANGUAGE).and_then(|line| line.to_str().ok()).unwrap_or_default();
    let liked = line.split(',').filter_map(|part| {
        let (code, weight) = part.trim().split_once(";q=").unwrap_or((part.trim(), "1"));
        let weight = weight.trim().parse::<f32>().ok().filter(|weight| *weight > 0.0)?;
        Some((language(code)?, weight))
    });
    // Of two that are liked as much, the first.
    let best = liked.reduce(|best, next| if next.1 > best.1 { next } else { best });
    best.map_or(&ENGLISH, |(words, _)| words)
}

/// Shows a page.
pub(super) fn page(template: &impl Template) -> Response {
    match template.render() {
        Ok(text) => ([(CONTENT_TYPE, HTML)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "a page cannot be rendered");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

#[derive(Template)]
#[template(path = "admin/problem.html")]
struct ProblemPage<'a> {
    look: &'a Look,
    title: &'a str,
    message: String,
    hint: &'a str,
    back: &'a str,
}

impl Look {
    /// A refusal as a page, with a way `back`.
    pub(super) fn refuse(&self, refusal: &Refusal, back: &str) -> Response {
        let words = self.words;
        let (title, hint) = match refusal.code {
            "not_found" => (words.not_found, words.no_such_delivery),
            "journal_unavailable" => (words.journal_down, words.journal_down_hint),
            _ => (words.problem, ""),
        };
        let message = plain(&refusal.message);
        let mut response = page(&ProblemPage { look: self, title, message, hint, back });
        *response.status_mut() = refusal.status;
        response
    }
}

/// `/look`: keeps language and theme in cookies that say nothing else, and goes back.
pub(super) async fn choose(RawQuery(query): RawQuery) -> Response {
    let fields = Fields::of_query(query.as_deref());
    let mut response = Redirect::to(local(fields.get("back"))).into_response();
    let language = fields.get("lang").and_then(language).map(|words| (LANGUAGE, words.code));
    let theme = fields.get("theme").map(|name| (THEME, theme(name)));
    for (name, value) in [language, theme].into_iter().flatten() {
        let cookie = format!("{name}={value}; Path=/; HttpOnly; SameSite=Lax; Max-Age=31536000");
        if let Ok(cookie) = HeaderValue::try_from(cookie) {
            response.headers_mut().append(SET_COOKIE, cookie);
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_browser_gets_the_language_that_it_likes_best() {
        for (line, expected) in [
            ("zh-CN,zh;q=0.9,en;q=0.8", "zh-Hans"),
            ("en-GB,en;q=0.9,zh;q=0.8", "en"),
            ("fr,zh-TW;q=0.5", "zh-Hans"),
            ("en;q=0.1, zh;q=0.2", "zh-Hans"),
            ("zh;q=0, en;q=0.1", "en"),
            ("fr", "en"),
            ("", "en"),
            ("é", "en"),
        ] {
            let headers = HeaderMap::from_iter([(ACCEPT_LANGUAGE, HeaderValue::try_from(line).unwrap())]);
            assert_eq!(accepted(&headers).code, expected, "{line}");
        }
    }
}
