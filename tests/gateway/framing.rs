//! Where a request ends is never in doubt: what could be read in two ways is refused, the
//! connection closed, and no second request reaches the backend.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use tokio::task::JoinSet;

use crate::support::backend::{Backend, CREATED};
use crate::support::client::{Connection, Reply, get, one_reply};
use crate::support::corpora;
use crate::support::gateway::{Gateway, Setup};
use crate::support::order::create;

/// A complete request that would be delivered if it were read as one.
fn canary() -> String {
    get(&create().target(), "")
}

fn statuses(replies: &[Reply]) -> Vec<u16> {
    replies.iter().map(|reply| reply.status).collect()
}

#[tokio::test]
async fn a_body_whose_end_is_in_doubt_is_refused_and_hides_no_second_request() {
    let backend = Backend::confirming().await;
    let gateway = Gateway::over(&backend).await;
    for framing in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: 0\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nContent-Length: 0\r\n",
        "Content-Length: 0, 0\r\n",
        "Content-Length: 5, 5\r\n",
        "Content-Length: +0\r\n",
        "Content-Length: -0\r\n",
        "Content-Length: 0x0\r\n",
        "Content-Length: 00\r\n",
        "Content-Length:\r\n",
        "Content-Length: 18446744073709551616\r\n",
        "Content-Length : 0\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding: Chunked\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: chunked, chunked\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: identity\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: chunked;q=1\r\n",
        "Transfer-Encoding: \"chunked\"\r\n",
        "Transfer-Encoding: , chunked\r\n",
        "Transfer-Encoding:\r\n",
        "Transfer-Encoding:\tchunked\r\n",
        "Transfer-Encoding: \x0bchunked\r\n",
        "Transfer-Encoding:\r\n chunked\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
    ] {
        for version in ["1.1", "1.0"] {
            for body in ["0\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n", "hello", ""] {
                let request = get(&create().target(), framing).replacen("1.1", version, 1);
                let replies = gateway.raw(format!("{request}{body}{}", canary())).await;
                assert_eq!(statuses(&replies), [400], "{version} {framing:?} {body:?}");
            }
        }
    }
    assert_eq!(backend.count(), 0);
    // Zero, said once and plainly, is no body.
    gateway.get_with(&create().target(), "Content-Length: 0\r\n").await.assert_is(CREATED);
}

#[tokio::test]
async fn a_get_with_a_body_is_refused_and_the_body_is_not_read_as_a_request() {
    let backend = Backend::confirming().await;
    let gateway = Gateway::over(&backend).await;
    let body = canary();
    let request = get(&create().target(), &format!("Content-Length: {}\r\n", body.len()));
    let replies = gateway.raw(format!("{request}{body}")).await;
    assert_eq!(replies.len(), 1);
    replies[0].assert_rejected(400, "body_not_allowed");
    // Nor one that is announced and never comes, or is waited for with 100.
    for headers in ["Content-Length: 5\r\n", "Content-Length: 5\r\nExpect: 100-continue\r\n"] {
        let replies = gateway.raw(get(&create().target(), headers)).await;
        assert_eq!(replies.len(), 1);
        replies[0].assert_rejected(400, "body_not_allowed");
    }
    assert_eq!(backend.count(), 0);
}

#[tokio::test]
async fn an_upgrade_or_a_tunnel_is_refused_and_what_follows_goes_nowhere() {
    let backend = Backend::confirming().await;
    let gateway = Gateway::over(&backend).await;
    for (headers, code) in [
        ("Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n", "body_not_allowed"),
        ("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\n", "body_not_allowed"),
        ("Upgrade: websocket\r\n", "body_not_allowed"),
    ] {
        let replies = gateway.raw(format!("{}{}", get(&create().target(), headers), canary())).await;
        assert_eq!(replies.len(), 1, "{headers}: {replies:?}");
        replies[0].assert_rejected(400, code);
    }
    for request in [
        format!("CONNECT {} HTTP/1.1\r\nHost: {0}\r\n\r\n", backend.authority()),
        "CONNECT localhost HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(),
    ] {
        let replies = gateway.raw(format!("{request}{}", canary())).await;
        assert!(matches!(statuses(&replies)[..], [400 | 405]), "{request}: {replies:?}");
    }
    let replies = gateway.raw(format!("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{}", canary())).await;
    assert!(statuses(&replies).iter().all(|&status| status == 400), "{replies:?}");
    assert_eq!((backend.count(), backend.connections()), (0, 0));
}

#[tokio::test]
async fn requests_in_a_row_on_one_connection_are_answered_in_order() {
    let backend = Backend::confirming().await;
    let gateway = Gateway::forwarding_all(&backend).await;
    let mut connection = Connection::open(gateway.listen).await;
    let wrong = get(&create().key("wrong").target(), "");
    // The last one in pieces, to be put together over several reads.
    connection.send(format!("{}{wrong}\r\n", canary())).await;
    let last = canary();
    for piece in last.as_bytes().chunks(7) {
        connection.send(piece).await;
    }
    connection.reply().await.unwrap().assert_is(CREATED);
    connection.reply().await.unwrap().assert_rejected(401, "signature_invalid");
    connection.reply().await.unwrap().assert_is(CREATED);
    assert_eq!(backend.count(), 2);
}

#[tokio::test]
async fn connection_close_and_http_1_0_end_after_one_answer() {
    let backend = Backend::confirming().await;
    let gateway = Gateway::forwarding_all(&backend).await;
    for request in [get(&create().target(), "Connection: close\r\n"), canary().replacen("HTTP/1.1", "HTTP/1.0", 1)] {
        let replies = gateway.raw(format!("{request}{}", canary())).await;
        assert_eq!(statuses(&replies), [200], "{request}");
    }
    assert_eq!(backend.count(), 2);
}

fn headers(case: &Value) -> &[Value] {
    case["headers"].as_array().map_or(&[], Vec::as_slice)
}

/// A desync case as bytes; odd paths stay, plain ones become the signed one.
fn desync_request(case: &Value, method: &str) -> Vec<u8> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let target = create().target();
    let mut uri = text(&case["uri"]);
    for plain in ["/foo/bar", "/test.html", "/endpoint_a"] {
        uri = uri.replacen(plain, &target, 1);
    }
    let mut request = format!("{method} {uri}");
    let version = text(&case["version"]);
    if !version.is_empty() {
        request.push(' ');
        request.push_str(&version);
    }
    request.push_str("\r\n");
    let headers = headers(case);
    if !headers.iter().any(|header| text(&header["name"]).eq_ignore_ascii_case("host")) {
        request.push_str("Host: localhost\r\n");
    }
    for header in headers {
        request.push_str(&format!("{}: {}\r\n", text(&header["name"]), text(&header["value"])));
    }
    request.push_str("\r\n");
    request.into_bytes()
}

#[tokio::test]
async fn http_desync_guardian_cases_end_in_a_refusal_where_they_are_ambiguous() {
    let Some(cases) = corpora::cases("http-desync-guardian/all-cases.json") else { return };
    let backend = Backend::confirming().await;
    let gateway = Gateway::forwarding_all(&backend).await;
    let mut classes = BTreeMap::<&str, usize>::new();
    let mut delivered = 0;
    for case in &cases {
        let (name, tier) = (case["name"].as_str().unwrap(), case["expected"]["tier"].as_str().unwrap());
        let method = case["method"].as_str().unwrap();
        let is_doubtful = matches!(tier, "Ambiguous" | "Severe");
        *classes.entry(tier).or_default() += 1;
        // As it is, and as the GET that would be delivered if its framing were let pass.
        let takes_bodies = ["POST", "PUT", "HEAD"].contains(&method);
        for method in if takes_bodies { vec![method, "GET"] } else { vec![method] } {
            let mut bytes = desync_request(case, method);
            if is_doubtful {
                bytes.extend_from_slice(canary().as_bytes());
            }
            let mut connection = Connection::open(gateway.listen).await;
            if method == "HEAD" {
                connection = connection.bodiless();
            }
            connection.send(&bytes).await;
            let shown = String::from_utf8_lossy(&bytes).into_owned();
            if is_doubtful && !harmless_as_get(case, method) {
                let replies = connection.until_closed().await;
                let all_refused = replies.len() <= 1 && replies.iter().all(|reply| (400..500).contains(&reply.status));
                assert!(all_refused, "{tier}: {name}: {replies:?}\n{shown}");
            } else {
                let reply = connection.reply().await.expect(name);
                if reply.status == 200 {
                    delivered += 1;
                    assert_eq!(method, "GET", "{name}");
                } else {
                    assert!((400..500).contains(&reply.status), "{name}: {reply:?}\n{shown}");
                    assert!(tier != "Compliant" || !is_plain_get(case), "{name}: {reply:?}\n{shown}");
                }
                if is_doubtful {
                    // Its canary is an ordinary next request.
                    connection.reply().await.expect(&shown).assert_is(CREATED);
                    delivered += 1;
                }
            }
            assert_eq!(backend.count(), delivered, "{tier}: {name}\n{shown}");
        }
    }
    assert!(backend.stray().is_empty());
    for tier in ["Compliant", "Acceptable", "Ambiguous", "Severe"] {
        assert!(classes.get(tier).is_some_and(|&count| count > 0), "no {tier} case: {classes:?}");
    }
    assert!(delivered > 0);
    println!("{classes:?}, delivered {delivered}");
}

/// Header names that are tokens of their own and frame nothing. Some gateways fold `_` into
/// `-`; spigate does not, and passes none of them on, so as a GET without a body the request
/// says the same to everybody.
fn harmless_as_get(case: &Value, method: &str) -> bool {
    let harmless = ["Transfer_Encoding", "Content_Length", "Transfer---Encoding", "Transfer___Encoding"];
    let headers = headers(case);
    method == "GET" && headers.len() == 1 && harmless.contains(&headers[0]["name"].as_str().unwrap_or(""))
}

/// A GET in HTTP/1.1, without a body, whose path we made ours.
fn is_plain_get(case: &Value) -> bool {
    let headers = headers(case);
    let frames = |header: &Value| {
        let name = header["name"].as_str().unwrap_or("").to_ascii_lowercase();
        matches!(name.as_str(), "content-length" | "transfer-encoding" | "upgrade" | "host")
    };
    case["method"] == "GET"
        && case["version"] == "HTTP/1.1"
        && ["/foo/bar", "/test.html", "/endpoint_a"].contains(&case["uri"].as_str().unwrap())
        && !headers.iter().any(frames)
}

/// Cases of http11probe where an origin server that takes bodies may answer 2xx and we do not.
const DEVIATIONS: [(&str, &str); 4] = [
    ("COMP-OPTIONS-STAR", "SPI has no OPTIONS"),
    ("COMP-POST-CL-ZERO", "SPI has no POST"),
    ("COMP-POST-NO-CL-NO-TE", "SPI has no POST"),
    ("COMP-CHUNKED-EMPTY", "SPI has neither POST nor bodies"),
];

/// As a GET, its `Content-Length: 0` is fine, and what follows is the next request.
const POISON: &str = "SMUG-CL0-BODY-POISON";

#[tokio::test]
async fn http11probe_cases_are_answered_as_expected_or_stricter() {
    let Some(cases) = corpora::cases("http11probe/http11probe-cases.json") else { return };
    let backend = Backend::confirming().await;
    let patient = Gateway::forwarding_all(&backend).await;
    // For requests that are never complete, and to see the end of connections that may stay open.
    let impatient = "[limits]\nheader_timeout = \"500ms\"\nidle_timeout = \"500ms\"\n";
    let impatient = Arc::new(Setup::new(&backend).top(impatient).start().await);
    let mut free = JoinSet::new();
    let mut classes = BTreeMap::<&str, usize>::new();
    let mut deviations = Vec::new();
    for case in &cases {
        let id = case["id"].as_str().unwrap();
        let steps: Vec<Vec<u8>> = match &case["payload_b64"] {
            Value::String(payload) => vec![STANDARD.decode(payload).unwrap()],
            _ => {
                let steps = case["steps"].as_array().unwrap().iter();
                steps.filter_map(|step| STANDARD.decode(step["b64"].as_str()?).ok()).collect()
            }
        };
        let expected = case["expected_status"].as_array();
        let text = case["expected_text"].as_str().unwrap_or("");
        let wants_refusal = expected.is_some_and(|range| range[0] == 400)
            || (text.starts_with("400") && !text.contains("2xx") && !text.contains("200"));
        let wants_success = expected.is_some_and(|range| range[0] == 200);
        let class = if wants_refusal {
            "refuse"
        } else if wants_success {
            "accept"
        } else {
            "free"
        };
        *classes.entry(class).or_default() += 1;

        if wants_refusal {
            // As it is, and as the signed GET that it would be if its flaw were let pass. A case
            // of several steps begins with what is refused.
            let gateway = if text.contains("timeout") { &impatient } else { &patient };
            let as_get = (id != POISON).then(|| signed(&steps));
            for steps in as_get.into_iter().chain([steps]) {
                let answered = probe(gateway, &steps).await;
                let shown = String::from_utf8_lossy(&steps.concat()).chars().take(300).collect::<String>();
                assert!(answered.iter().all(|status| (400..600).contains(status)), "{id}: {answered:?}\n{shown}");
                assert_eq!(backend.count(), 0, "{id}: {shown}");
            }
        } else if wants_success && !DEVIATIONS.iter().any(|(known, _)| *known == id) {
            // What we accept is a signed GET of our path.
            one_reply(patient.listen, signed(&steps).concat()).await.assert_is(CREATED);
            backend.forget();
        } else {
            deviations.extend(wants_success.then_some(id));
            // Whatever it is answered: it is neither signed nor for our path.
            let (gateway, id) = (Arc::clone(&impatient), id.to_owned());
            free.spawn(async move {
                let answered = probe(&gateway, &steps).await;
                assert!(!answered.iter().any(|status| (200..300).contains(status)), "{id}: {answered:?}");
            });
        }
    }
    free.join_all().await;
    assert_eq!(backend.count(), 0);
    assert!(backend.stray().is_empty());
    for class in ["refuse", "accept", "free"] {
        assert!(classes.get(class).is_some_and(|&count| count > 0), "no {class} case: {classes:?}");
    }
    assert_eq!(deviations.len(), DEVIATIONS.len(), "{deviations:?}");
    println!("{classes:?}, deviations {DEVIATIONS:?}");
}

/// The same with our signed target, as a GET.
fn signed(steps: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let latin: Vec<String> = steps.iter().map(|step| step.iter().map(|&byte| char::from(byte)).collect()).collect();
    let replaced = latin.iter().map(|step| {
        let step = step.replace(" / HTTP", &format!(" {} HTTP", create().target()));
        let method = step.split(' ').next().unwrap_or("").to_owned();
        let is_method = matches!(method.as_str(), "POST" | "HEAD" | "OPTIONS" | "PUT");
        if is_method { step.replacen(&method, "GET", 1) } else { step }
    });
    replaced.map(|step| step.chars().map(|char| char as u32 as u8).collect()).collect()
}

/// Sends the steps and reads until the gateway closes the connection.
async fn probe(gateway: &Gateway, steps: &[Vec<u8>]) -> Vec<u16> {
    let mut connection = Connection::open(gateway.listen).await;
    if steps.iter().any(|step| step.starts_with(b"HEAD")) {
        connection = connection.bodiless();
    }
    for step in steps {
        connection.send(step).await;
    }
    statuses(&connection.until_closed().await)
}
