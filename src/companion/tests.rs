use std::sync::Arc;

use super::*;
use crate::app::App;
use crate::config::source::Sources;
use crate::config::{self, Limits};
use crate::dialect::builtin;
use crate::metrics::Metrics;
use crate::stage::normalize::headers_of_observed;
use crate::stage::receive::receive;

const LIMITS: Limits = Limits {
    parameters: 64,
    query_bytes: 16 * 1024,
    reply_bytes: 1,
    connections: 1,
    in_flight: 1,
    failed_per_minute: None,
    header_timeout: std::time::Duration::ZERO,
    idle_timeout: std::time::Duration::ZERO,
};

fn asked(method: &str, target: &str, headers: &[(&str, &str)]) -> request::Parts {
    let mut request = Request::builder().method(method).uri(target).header(HOST, "spigate.internal:8081");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

/// Method, host, path and query as the stops read them; the code of a refusal.
fn original(head: &request::Parts) -> Result<(String, String, String), &'static str> {
    let found = Contract::of(head).and_then(|contract| contract.original(head));
    let parts = found.map_err(|rejection| rejection.code())?;
    // Whatever the method, which the first stop would refuse.
    let mut readable = parts.clone();
    readable.method = Method::GET;
    let received = receive(&readable, false, &LIMITS).map_err(|rejection| rejection.code())?;
    let target = format!("{}?{}", received.path(), received.query());
    Ok((parts.method.to_string(), received.host().to_owned(), target))
}

fn is(method: &str, host: &str, target: &str) -> Result<(String, String, String), &'static str> {
    Ok((method.into(), host.into(), target.into()))
}

#[test]
fn each_contract_names_the_original_in_its_own_way() {
    let method = ("X-Original-Method", "GET");
    let nginx = asked("GET", "/companion/auth-request", &[("X-Original-URI", "/spi?a=%2B&b=1+2"), method]);
    assert_eq!(original(&nginx), is("GET", "spigate.internal", "/spi?a=%2B&b=1+2"));
    let url = ("X-Original-URL", "https://shop.example:8443/spi?a=b");
    let ingress = asked("GET", "/companion/auth-request", &[url, ("X-Original-Method", "POST")]);
    assert_eq!(original(&ingress), is("POST", "shop.example", "/spi?a=b"));
    let traefik = [
        ("X-Forwarded-Method", "HEAD"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "shop.example"),
        ("X-Forwarded-Uri", "//spi?a=b?c"),
    ];
    let traefik = asked("GET", "/companion/forward-auth", &traefik);
    assert_eq!(original(&traefik), is("HEAD", "shop.example", "//spi?a=b?c"));
    let envoy = asked("DELETE", "/companion/ext-authz/%73pi/?a=b", &[]);
    assert_eq!(original(&envoy), is("DELETE", "spigate.internal", "/%73pi/?a=b"));
    let envoy = asked("GET", "/companion/ext-authz//spi?a=b", &[]);
    assert_eq!(original(&envoy), is("GET", "spigate.internal", "//spi?a=b"));
}

#[test]
fn what_does_not_say_which_request_it_is_about_is_refused() {
    let (uri, method) = (("X-Original-URI", "/spi?a=b"), ("X-Original-Method", "GET"));
    let url = |url| ("X-Original-URL", url);
    for (code, headers) in [
        ("original_missing", vec![]),
        ("original_missing", vec![method]),
        ("original_missing", vec![uri]),
        ("original_missing", vec![("X-Original-URI", "/spi"), method]),
        ("original_missing", vec![url("http://a/spi"), method]),
        // Whoever sends both, one of them may be the client.
        ("malformed_request", vec![uri, url("http://spigate.internal:8081/spi?a=b"), method]),
        ("malformed_request", vec![uri, uri, method]),
        ("malformed_request", vec![url("http://a/spi?a=b"), url("http://b/spi?a=b"), method]),
        ("malformed_request", vec![uri, method, method]),
        ("malformed_request", vec![("X-Original-URI", "http://a/spi?a=b"), method]),
        ("malformed_request", vec![("X-Original-URI", "spi?a=b"), method]),
        ("malformed_request", vec![("X-Original-URI", "*"), method]),
        ("malformed_request", vec![("X-Original-URI", ""), method]),
        ("malformed_request", vec![("X-Original-URI", "/spi?a=b#c"), method]),
        ("malformed_request", vec![("X-Original-URI", "/s pi?a=b"), method]),
        ("malformed_request", vec![("X-Original-URI", "/sp\u{ef}?a=b"), method]),
        ("malformed_request", vec![url("/spi?a=b"), method]),
        ("malformed_request", vec![url("ftp://a/spi?a=b"), method]),
        ("malformed_request", vec![url("HTTP://a/spi?a=b"), method]),
        ("malformed_request", vec![url("http:///spi?a=b"), method]),
        ("malformed_request", vec![url("http://user@a/spi?a=b"), method]),
        ("malformed_request", vec![url("http://user:word@a/spi?a=b"), method]),
        ("malformed_request", vec![url("http://a?b/spi?a=b"), method]),
        ("malformed_request", vec![url("http://a#b/spi?a=b"), method]),
        ("malformed_request", vec![url("http://a/spi?a=b#c"), method]),
        ("malformed_request", vec![url("http://a:port/spi?a=b"), method]),
        ("malformed_request", vec![url("http://a,b/spi?a=b"), method]),
        ("malformed_request", vec![url("http://a\\b/spi?a=b"), method]),
        ("method_not_allowed", vec![uri, ("X-Original-Method", "G ET")]),
        ("method_not_allowed", vec![uri, ("X-Original-Method", "")]),
    ] {
        let head = asked("GET", "/companion/auth-request", &headers);
        assert_eq!(original(&head), Err(code), "{headers:?}");
    }
    let whole = [
        ("X-Forwarded-Method", "GET"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "shop.example"),
        ("X-Forwarded-Uri", "/spi?a=b"),
    ];
    for (index, (name, value)) in whole.into_iter().enumerate() {
        let mut lacking = whole.to_vec();
        lacking.remove(index);
        assert_eq!(original(&asked("GET", "/companion/forward-auth", &lacking)), Err("original_missing"), "{name}");
        let twice = [&whole[..], &[(name, value)]].concat();
        assert_eq!(original(&asked("GET", "/companion/forward-auth", &twice)), Err("malformed_request"), "{name}");
    }
    for (code, index, value) in [
        ("malformed_request", 1, "wss"),
        ("malformed_request", 2, "shop.example, evil.example"),
        ("malformed_request", 2, "a@shop.example"),
        ("malformed_request", 3, "https://shop.example/spi?a=b"),
        ("original_missing", 3, "/spi"),
    ] {
        let mut headers = whole;
        headers[index].1 = value;
        assert_eq!(original(&asked("GET", "/companion/forward-auth", &headers)), Err(code), "{value}");
    }
    for (code, target) in [
        ("original_missing", "/companion/ext-authz"),
        ("original_missing", "/companion/ext-authz?a=b"),
        ("original_missing", "/companion/ext-authz/spi"),
        ("unknown_app", "/companion/ext-authzspi?a=b"),
        ("unknown_app", "/companion/ext-auth/spi?a=b"),
        ("unknown_app", "/companion/auth-request/"),
        ("unknown_app", "/companion/forward-auth/spi?a=b"),
        ("unknown_app", "/companion"),
        ("unknown_app", "/spi?a=b"),
        ("unknown_app", "/Companion/ext-authz/spi?a=b"),
        ("unknown_app", "//companion/ext-authz/spi?a=b"),
        ("malformed_request", "http://spigate.internal:8081/companion/ext-authz/spi?a=b"),
    ] {
        assert_eq!(original(&asked("GET", target, &[])), Err(code), "{target}");
    }
    for path in ["/companion/auth-request", "/companion/forward-auth"] {
        let all = [&whole[..], &[uri, method]].concat();
        assert_eq!(original(&asked("HEAD", path, &all)), Err("method_not_allowed"), "{path}");
        assert!(original(&asked("GET", path, &all)).is_ok(), "{path}");
    }
}

#[test]
fn a_contract_looks_at_no_header_of_another() {
    // Those of the others are a client's.
    let foreign = [
        ("X-Forwarded-Uri", "/evil?a=b"),
        ("X-Forwarded-Host", "evil.example"),
        ("X-Forwarded-Method", "GET"),
        ("X-Original-Host", "evil.example"),
        ("X-Rewrite-URL", "/evil?a=b"),
        ("Forwarded", "host=evil.example"),
    ];
    let own = [("X-Original-URI", "/spi?a=b"), ("X-Original-Method", "POST")];
    let head = asked("GET", "/companion/auth-request", &[&foreign[..], &own].concat());
    assert_eq!(original(&head), is("POST", "spigate.internal", "/spi?a=b"));
    let head = asked("GET", "/companion/ext-authz/spi?a=b", &[&foreign[..], &own].concat());
    assert_eq!(original(&head), is("GET", "spigate.internal", "/spi?a=b"));
    let own = [
        ("X-Forwarded-Uri", "/spi?a=b"),
        ("X-Forwarded-Host", "shop.example"),
        ("X-Forwarded-Method", "GET"),
        ("X-Forwarded-Proto", "http"),
        ("X-Original-URI", "/evil?a=b"),
        ("X-Original-URL", "http://evil.example/evil?a=b"),
        ("X-Original-Method", "POST"),
    ];
    let head = asked("GET", "/companion/forward-auth", &own);
    assert_eq!(original(&head), is("GET", "shop.example", "/spi?a=b"));
}

#[test]
fn the_longest_target_is_told_from_a_longer_one() {
    let with = |length: usize| {
        let uri = format!("/spi?{}", "a".repeat(length - 5));
        original(&asked("GET", "/companion/auth-request", &[("X-Original-URI", &uri), ("X-Original-Method", "GET")]))
    };
    assert_eq!(with(16 * 1024 + 5).map(drop), Ok(()));
    for length in [16 * 1024 + 6, MAX_TARGET, MAX_TARGET + 1, 2 * MAX_TARGET] {
        assert_eq!(with(length), Err("uri_too_long"), "{length}");
    }
}

fn app() -> App {
    let text = format!(
        "[companion]\naddress = \"127.0.0.1:1\"\nallow_from = [\"::1\"]\n[[apps]]\nname = \"crm\"\npath = \"/spi\"\n\
         dialect = \"{}\"\nkeys = [{{ id = \"k\", value = \"secret\" }}]\n",
        builtin::load().unwrap()[0].name
    );
    let sources = Sources { file: "test".into(), text, ..Sources::default() };
    let config = config::load(&sources, std::path::Path::new("/")).unwrap();
    assert_eq!(config.warnings, []);
    App::new(config.apps[0].clone(), None, &config.limits, &Arc::new(Metrics::new().unwrap())).unwrap()
}

#[test]
fn envoy_removes_whatever_could_pose_as_ours_and_was_not_set() {
    let app = app();
    assert!(app.backend.is_none());
    let sent = [
        ("x-spi-app", "evil"),
        ("x_spi_app", "evil"),
        ("x.spi.app", "evil"),
        ("x-spi_param.user-id", "evil"),
        ("x-spi-made-up", "evil"),
        ("idempotency_key", "evil"),
        ("x.request.id", "evil"),
        ("app-signature", "evil"),
        ("app_signature", "genuine"),
        ("x-spinach", "fine"),
        ("user-agent", "fine"),
    ];
    let answer = headers_of_observed(&app, &HeaderValue::from_static("id"));
    let (name, list) = to_remove(&app, &asked("GET", "/", &sent).headers, &answer).unwrap();
    assert_eq!(name, "x-envoy-auth-headers-to-remove");
    let list: Vec<_> = list.to_str().unwrap().split(',').collect();
    for (name, value) in sent {
        // What the answer sets replaces the client's; removed after that, it would be gone.
        let removed = value == "evil" && !answer.contains_key(name);
        assert_eq!(list.contains(&name), removed, "{name} {list:?}");
    }
    for name in ["x-spi-action", "x-spi-param-order-id", "x-spi-param-cloud-info", "idempotency-key"] {
        assert!(list.contains(&name), "{name} {list:?}");
    }
    assert!(answer.contains_key("x-spi-app") && !list.contains(&"x-spi-dialect") && !list.contains(&"x-request-id"));
}

#[test]
fn a_denial_fits_into_a_header_whatever_it_says() {
    let (_, value) = denial("{\"message\":\"字段 is missing\"}".as_bytes()).unwrap();
    assert_eq!(value, "{\"message\":\"\\u5b57\\u6bb5 is missing\"}");
    assert!(denial(b"\xff").is_none() && denial(b"\r\n").is_none());
}
