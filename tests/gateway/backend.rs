//! A backend may do anything; the platform only ever sees a valid reply or an honest rejection.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::backend::{Backend, CREATED, Seen, Step, json, raw, reply};
use crate::support::client::Reply;
use crate::support::corpora;
use crate::support::gateway::{Gateway, Setup};
use crate::support::order::{action, create, market};

const JSON: &str = "Content-Type: application/json\r\n";

/// What the gateway makes of one scripted reply to a create; the backend must see one request.
async fn outcome_of(steps: Vec<Step>) -> Reply {
    let backend = Backend::start(move |_| steps.clone()).await;
    let gateway = Gateway::over(&backend).await;
    let reply = gateway.order(&create()).await;
    assert_eq!(backend.count(), 1, "sent again");
    reply
}

#[tokio::test]
async fn a_backend_that_cannot_be_reached_is_a_502() {
    // A port that nobody listens on.
    let closed = Backend::closed();
    let plain = Backend::confirming().await;
    for url in [closed.url("/"), "http://no-such-host.invalid/".into(), plain.url("/").replace("http:", "https:")] {
        let gateway = Setup::to(&url).backend("connect_timeout = \"2s\"").start().await;
        let reply = gateway.order(&create()).await;
        reply.assert_rejected(502, "backend_unreachable");
        assert_eq!(gateway.access_line(&reply).await["outcome"], "failed", "{url}");
        gateway.order(&action("TestConnection")).await.assert_rejected(502, "backend_unreachable");
    }
    assert_eq!(plain.count(), 0);
}

#[tokio::test]
async fn a_backend_that_never_answers_is_a_504_and_copies_do_not_call_it_again() {
    let backend = Backend::start(|_| vec![Step::Stall]).await;
    let times = "answer_within = \"1s\"\nconnect_timeout = \"1s\"";
    let gateway = Setup::new(&backend).journal("memory:").backend(times).start().await;
    let order = create();
    let first = gateway.send(&order);
    backend.wait_for(1).await;
    // The first call still runs.
    gateway.order(&order).await.assert_rejected(503, "delivery_in_progress");
    let reply = first.await.unwrap();
    reply.assert_rejected(504, "backend_timeout");
    assert_eq!(gateway.access_line(&reply).await["outcome"], "unconfirmed");
    assert_eq!(backend.count(), 1);
    gateway.order(&action("TestConnection")).await.assert_rejected(504, "backend_timeout");
}

#[tokio::test]
async fn a_backend_that_accepts_no_connection_is_a_502_within_its_connect_timeout() {
    // It accepts and then says nothing, so that the TLS handshake cannot end.
    let backend = Backend::on_connect(vec![Step::Stall]).await;
    let setup = Setup::to(backend.url("/").replace("http:", "https:")).backend("connect_timeout = \"300ms\"");
    setup.start().await.order(&create()).await.assert_rejected(502, "backend_unreachable");
}

#[tokio::test]
async fn a_connection_that_breaks_at_any_point_is_a_502_and_nothing_is_sent_again() {
    let complete = format!("HTTP/1.1 200 OK\r\n{JSON}Content-Length: {}\r\n\r\n{CREATED}", CREATED.len());
    let head = complete.len() - CREATED.len();
    for end in [Step::Reset, Step::Close, Step::HalfClose] {
        for sent in [0, 5, 20, head - 2, head, head + 1, complete.len() - 1] {
            let reply = outcome_of(vec![Step::Send(complete.as_bytes()[..sent].to_vec()), end.clone()]).await;
            assert_eq!(reply.status, 502, "after {sent} bytes");
            reply.assert_rejected(502, "backend_broken_reply");
        }
    }
}

#[tokio::test]
async fn a_connection_that_breaks_before_the_request_is_a_502() {
    for end in [Step::Reset, Step::Close] {
        let backend = Backend::on_connect(vec![end]).await;
        let gateway = Gateway::over(&backend).await;
        assert_eq!(gateway.order(&create()).await.status, 502);
        assert_eq!(backend.count(), 0);
    }
}

#[tokio::test]
async fn a_request_that_a_reused_connection_swallowed_is_not_sent_again() {
    // The first request of a connection is answered, the second one read and dropped.
    let answered = AtomicUsize::new(0);
    let backend =
        Backend::start(
            move |_| {
                if answered.fetch_add(1, Ordering::SeqCst) == 0 { json(CREATED) } else { vec![Step::Reset] }
            },
        )
        .await;
    let gateway = Setup::new(&backend).backend("keep_alive = \"60s\"").start().await;
    gateway.order(&create()).await.assert_is(CREATED);
    gateway.order(&create()).await.assert_rejected(502, "backend_broken_reply");
    let connections: Vec<_> = backend.requests().iter().map(|seen| seen.connection).collect();
    assert_eq!(connections, [1, 1]);
}

#[tokio::test]
async fn connections_are_reused_only_where_the_configuration_says_so() {
    let backend = Backend::confirming().await;
    let reusing = Setup::new(&backend).forwarding_all().backend("keep_alive = \"60s\"").start().await;
    for _ in 0..5 {
        reusing.order(&create()).await.assert_is(CREATED);
    }
    assert_eq!(backend.connections(), 1);
    let fresh = Setup::new(&backend).forwarding_all().backend("keep_alive = \"0s\"").start().await;
    for _ in 0..5 {
        fresh.order(&create()).await.assert_is(CREATED);
    }
    assert_eq!(backend.connections(), 6);
}

#[tokio::test]
async fn an_idle_connection_is_closed_though_no_further_request_comes() {
    let backend = Backend::confirming().await;
    let gateway = Setup::new(&backend).forwarding_all().backend("keep_alive = \"50ms\"").start().await;
    for round in 1..=2 {
        gateway.order(&create()).await.assert_is(CREATED);
        backend.wait_for_ended(round).await;
    }
}

#[tokio::test]
async fn a_reply_with_two_media_types_is_a_502() {
    for double in ["Content-Type: text/html\r\n", "Content-Encoding: identity\r\nContent-Encoding: gzip\r\n"] {
        let headers = format!("Content-Type: application/json\r\n{double}");
        outcome_of(reply("200 OK", &headers, CREATED)).await.assert_rejected(502, "backend_broken_reply");
    }
}

#[tokio::test]
async fn a_truncated_body_is_a_502_and_never_a_partial_200() {
    let chunked = format!("HTTP/1.1 200 OK\r\n{JSON}Transfer-Encoding: chunked\r\n\r\n");
    let chunk = format!("{:x}\r\n{CREATED}\r\n", CREATED.len());
    for bytes in [
        // The whole document came, but not the end that was promised.
        format!("{chunked}{chunk}"),
        format!("{chunked}{chunk}0\r\n"),
        format!("{chunked}{}", &chunk[..chunk.len() - 4]),
        format!("{chunked}zz\r\n{CREATED}\r\n0\r\n\r\n"),
        format!("HTTP/1.1 200 OK\r\n{JSON}Content-Length: {}\r\n\r\n{CREATED}", CREATED.len() + 1),
        format!("HTTP/1.1 200 OK\r\n{JSON}Content-Length: 5\r\nContent-Length: 6\r\n\r\n{CREATED}"),
        format!("HTTP/1.1 200 OK\r\n{JSON}Content-Length: x\r\n\r\n{CREATED}"),
        format!("HTTP/1.1 200 OK\r\n{JSON}X: a\0b\r\nContent-Length: {}\r\n\r\n{CREATED}", CREATED.len()),
        "HTTP/1.1 2000 OK\r\n\r\n".into(),
        "SSH-2.0-OpenSSH_9.2\r\n".into(),
        "\0\0\0".into(),
    ] {
        let reply = outcome_of([raw(&bytes), vec![Step::Close]].concat()).await;
        assert_eq!(reply.status, 502, "{bytes}");
        reply.assert_rejected(502, "backend_broken_reply");
    }
    // The same whole, also byte by byte.
    let whole = format!("{chunked}{chunk}0\r\n\r\n");
    outcome_of(raw(&whole)).await.assert_is(CREATED);
    outcome_of(vec![Step::Trickle(whole.into_bytes())]).await.assert_is(CREATED);
    outcome_of([raw(format!("HTTP/1.0 200 OK\r\n{JSON}\r\n{CREATED}")), vec![Step::Close]].concat())
        .await
        .assert_is(CREATED);
}

#[tokio::test]
async fn interim_answers_trailers_and_the_backends_own_headers_stay_inside() {
    let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n";
    let own = "Set-Cookie: s=1\r\nServer: php\r\nX-Powered-By: php\r\nKeep-Alive: timeout=9\r\nX-Hop: 1\r\n\
               Connection: keep-alive, X-Hop\r\nProxy-Authenticate: Basic\r\nX-Request-Id: theirs\r\nX-Spi-App: x\r\n\
               Cache-Control: no-store\r\nRetry-After: 9\r\n";
    let body = format!("{:x}\r\n{CREATED}\r\n0\r\nX-Trailer: 1\r\nContent-Type: text/html\r\n\r\n", CREATED.len());
    let bytes = format!(
        "{interim}HTTP/1.1 201 Created\r\n{own}Content-Type: application/json; charset=utf-8\r\nTrailer: X-Trailer\r\n\
         Transfer-Encoding: chunked\r\n\r\n{body}"
    );
    let reply = outcome_of(raw(bytes)).await;
    reply.assert_is(CREATED);
    let mut names: Vec<_> = reply.headers.iter().map(|(name, _)| name.to_lowercase()).collect();
    names.sort();
    assert_eq!(names, ["content-length", "content-type", "date", "x-request-id"]);
    assert_ne!(reply.request_id(), "theirs");

    let switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n";
    outcome_of(raw(format!("{switch}{CREATED}"))).await.assert_rejected(502, "backend_broken_reply");
}

#[tokio::test]
async fn a_reply_that_is_too_long_is_a_502() {
    let limit = "[limits]\nreply_bytes = \"4KiB\"\n";
    let padded = |length: usize| {
        let rest = r#"{"success":true,"instanceId":"i","message":""}"#;
        rest.replace("\"\"}", &format!("\"{}\"}}", "m".repeat(length - rest.len())))
    };
    let endless = || {
        let head = raw(format!("HTTP/1.1 200 OK\r\n{JSON}Transfer-Encoding: chunked\r\n\r\n"));
        let chunk = Step::Send(format!("{:x}\r\n{}\r\n", 65_536, "x".repeat(65_536)).into_bytes());
        [head, vec![chunk; 1_000]].concat()
    };
    let announced = || raw(format!("HTTP/1.1 200 OK\r\n{JSON}Content-Length: 9999999999\r\n\r\n{{"));
    for steps in [json(padded(4_097)), endless(), [announced(), vec![Step::Send(vec![b'x'; 10_000])]].concat()] {
        let backend = Backend::start(move |_| steps.clone()).await;
        let gateway = Setup::new(&backend).top(limit).start().await;
        let reply = gateway.order(&create()).await;
        reply.assert_rejected(502, "backend_broken_reply");
    }
    let fits = padded(4_096);
    let served = fits.clone();
    let backend = Backend::start(move |_| json(&served)).await;
    Setup::new(&backend).top(limit).start().await.order(&create()).await.assert_is(&fits);
}

#[tokio::test]
async fn a_flood_of_reply_headers_is_a_502() {
    let many = (0..200).map(|number| format!("X-{number}: 1\r\n")).collect::<String>();
    let endless = format!("X: {}\r\n", "x".repeat(1_000_000));
    for headers in [many, endless] {
        let reply = outcome_of(reply("200 OK", &format!("{headers}{JSON}"), CREATED)).await;
        reply.assert_rejected(502, "backend_broken_reply");
    }
}

/// The rule that a reply to a create breaks, from the access log and the metric.
async fn broken_rule(steps: Vec<Step>) -> String {
    let backend = Backend::start(move |_| steps.clone()).await;
    let gateway = Gateway::over(&backend).await;
    let reply = gateway.order(&create()).await;
    if reply.status == 200 {
        return "none".into();
    }
    reply.assert_rejected(502, "backend_contract");
    let line = gateway.access_line(&reply).await;
    let rule = line["rule"].as_str().unwrap().to_owned();
    let series =
        format!("spigate_backend_violations_total{{action=\"CreateAppInstance\",app=\"crm\",rule=\"{rule}\"}}");
    assert_eq!(gateway.metric(&series).await, 1.0, "{series}");
    rule
}

#[tokio::test]
async fn a_reply_that_is_no_strict_json_object_breaks_the_contract() {
    let deep = format!(r#"{{"success":true,"instanceId":"i","x":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    let with = |member: &str| format!(r#"{{"success":true,"instanceId":"i",{member}}}"#).into_bytes();
    for (body, rule) in [
        (Vec::new(), "empty_body"),
        (b" \r\n".to_vec(), "invalid_json"),
        (b"<html>{}</html>".to_vec(), "invalid_json"),
        (b"null".to_vec(), "not_an_object"),
        (b"[]".to_vec(), "not_an_object"),
        (b"true".to_vec(), "not_an_object"),
        (with(r#""success":true"#), "duplicate_key"),
        (with(r#""instance\u0049d":"i""#), "duplicate_key"),
        (with(r#""a":{"b":{"c":1,"c":2}}"#), "duplicate_key"),
        (deep.into_bytes(), "invalid_json"),
        (with(r#""a":1e400"#), "invalid_json"),
        (with(r#""a":NaN"#), "invalid_json"),
        (with(r#""a":-Infinity"#), "invalid_json"),
        (with(r#""a":"\ud800""#), "invalid_json"),
        (with(r#""a":01"#), "invalid_json"),
        (with("\"a\":\"\t\""), "invalid_json"),
        ([b"\xef\xbb\xbf".as_slice(), CREATED.as_bytes()].concat(), "invalid_json"),
        ([CREATED.as_bytes(), b"x"].concat(), "invalid_json"),
        ([CREATED.as_bytes(), b"\0"].concat(), "invalid_json"),
        (CREATED.repeat(2).into_bytes(), "invalid_json"),
        (CREATED.replace("开", "\u{0}").into_bytes(), "invalid_json"),
        ([b"{\"success\":true,\"instanceId\":\"".as_slice(), b"\xff\"}"].concat(), "invalid_json"),
    ] {
        let shown = String::from_utf8_lossy(&body).chars().take(60).collect::<String>();
        assert_eq!(broken_rule(json(body)).await, rule, "{shown}");
    }
    assert_eq!(broken_rule(json(format!(" \t\r\n{CREATED}\n"))).await, "none");
}

#[tokio::test]
async fn a_reply_of_another_media_type_is_no_reply() {
    for content_type in ["text/html", "text/json", "application/problem+json", "application/jsonx", "json", "", "*/*"] {
        let headers = format!("Content-Type: {content_type}\r\n");
        assert_eq!(broken_rule(reply("200 OK", &headers, CREATED)).await, "content_type", "{content_type}");
    }
    assert_eq!(broken_rule(reply("200 OK", "", CREATED)).await, "content_type");
    for content_type in ["APPLICATION/JSON", "application/json; charset=utf-8", "application/json;charset=GBK; x=y"] {
        let headers = format!("Content-Type: {content_type}\r\n");
        assert_eq!(broken_rule(reply("200 OK", &headers, CREATED)).await, "none", "{content_type}");
    }
    for coding in ["gzip", "br", "deflate", "x"] {
        let headers = format!("{JSON}Content-Encoding: {coding}\r\n");
        assert_eq!(broken_rule(reply("200 OK", &headers, CREATED)).await, "content_encoding", "{coding}");
    }
}

#[tokio::test]
async fn members_of_the_wrong_type_or_size_break_the_contract_by_the_name_of_their_rule() {
    let long = "套".repeat(129);
    for (body, rule) in [
        (r#"{"instanceId":"i"}"#.to_owned(), "success_missing"),
        (r#"{"success":"true","instanceId":"i"}"#.into(), "success_type"),
        (r#"{"success":1,"instanceId":"i"}"#.into(), "success_type"),
        (r#"{"success":null,"instanceId":"i"}"#.into(), "success_type"),
        (r#"{"success":true}"#.into(), "instance_id_missing"),
        (r#"{"success":true,"instanceId":""}"#.into(), "instance_id_length"),
        (format!(r#"{{"success":true,"instanceId":"{long}"}}"#), "instance_id_length"),
        (r#"{"success":true,"instanceId":17}"#.into(), "instance_id_type"),
        (r#"{"success":true,"instanceId":null}"#.into(), "instance_id_type"),
        (r#"{"success":true,"instanceId":["i"]}"#.into(), "instance_id_type"),
        (r#"{"success":true,"instanceId":"i","message":{}}"#.into(), "message_type"),
        (r#"{"success":true,"instanceId":"i","appInfo":"x"}"#.into(), "app_info_type"),
        (r#"{"success":true,"instanceId":"i","appInfo":{"authUrl":1}}"#.into(), "app_info_auth_url_type"),
        (r#"{"success":true,"instanceId":"i","appInfo":{"admin":[]}}"#.into(), "app_info_admin_type"),
        (
            r#"{"success":true,"instanceId":"i","appInfo":{"frontEnd":{"password":null}}}"#.into(),
            "app_info_front_end_password_type",
        ),
        (r#"{"success":false,"message":7}"#.into(), "message_type"),
        (r#"{"success":true,"instanceId":"i","appInfo":{"more":[1],"admin":{"x":1}},"y":{}}"#.into(), "none"),
        (format!(r#"{{"success":true,"instanceId":"{}","message":null}}"#, "套".repeat(128)), "none"),
        (r#"{"success":false,"message":"开通失败","instanceId":8}"#.into(), "none"),
    ] {
        assert_eq!(broken_rule(json(&body)).await, rule, "{body}");
    }
}

#[tokio::test]
async fn the_cloud_markets_contract_is_its_own() {
    const INFO: &str =
        r#""instanceInfo":{"frontEndUrl":"https://a","adminUrl":"https://b","username":"u","password":"p"}"#;
    for (action, body, rule) in [
        ("CreateInstance", format!(r#"{{"instanceId":"i",{INFO},"spiVersion":"1"}}"#), None),
        ("CreateInstance", format!(r#"{{"success":true,"instanceId":"i",{INFO}}}"#), None),
        ("CreateInstance", r#"{"success":false,"message":"no"}"#.into(), None),
        ("CreateInstance", format!(r#"{{"success":"true","instanceId":"i",{INFO}}}"#), Some("success_type")),
        ("CreateInstance", r#"{"instanceId":"i"}"#.into(), Some("instance_info_missing")),
        ("CreateInstance", format!(r#"{{{INFO}}}"#), Some("instance_id_missing")),
        ("DeleteInstance", "{}".into(), Some("success_missing")),
        ("DeleteInstance", r#"{"success":true,"spiVersion":1}"#.into(), Some("spi_version_type")),
        ("DeleteInstance", r#"{"success":true}"#.into(), None),
    ] {
        let served = body.clone();
        let backend = Backend::start(move |_| json(&served)).await;
        let gateway = Setup::new(&backend).dialect("qingcloud-market").start().await;
        let reply = gateway.order(&market(action)).await;
        match rule {
            None => reply.assert_is(&body),
            Some(rule) => {
                reply.assert_rejected(502, "backend_contract");
                assert_eq!(gateway.access_line(&reply).await["rule"], rule, "{body}");
            }
        }
    }
}

#[tokio::test]
async fn a_redirect_is_never_followed() {
    let elsewhere = Backend::confirming().await;
    for status in ["301 Moved", "302 Found", "303 See Other", "307 Temporary Redirect", "308 Permanent Redirect"] {
        let headers = format!("Location: {}\r\n{JSON}", elsewhere.url("/"));
        assert_eq!(broken_rule(reply(status, &headers, CREATED)).await, "redirect", "{status}");
    }
    assert_eq!(elsewhere.connections(), 0);
}

#[tokio::test]
async fn a_failing_backend_is_a_502_and_its_own_refusal_passes_unchanged() {
    for status in ["500 Oops", "502 Bad Gateway", "503 Busy", "429 Too Many Requests"] {
        outcome_of(reply(status, JSON, CREATED)).await.assert_rejected(502, "backend_error");
    }
    let refusal = r#"{"message":"开通失败","success":false,"more":{"b":1,"a":1.50}}"#;
    for status in ["200 OK", "400 Bad Request", "404 Not Found", "409 Conflict"] {
        outcome_of(reply(status, JSON, refusal)).await.assert_is(refusal);
    }
    for status in ["400 Bad Request", "404 Not Found"] {
        assert_eq!(broken_rule(reply(status, JSON, CREATED)).await, "success_with_error_status");
    }
    assert_eq!(broken_rule(reply("404 Not Found", "Content-Type: text/html\r\n", "<html>")).await, "content_type");
}

#[tokio::test]
async fn a_connection_test_may_be_answered_by_the_gateway_itself() {
    let backend = Backend::start(|_: &Seen| reply("500 Oops", JSON, "{}")).await;
    let test = || action("TestConnection");
    let forwarding = Gateway::over(&backend).await;
    forwarding.order(&test()).await.assert_rejected(502, "backend_error");
    assert_eq!(backend.count(), 1);
    for mode in ["answer", "probe"] {
        let gateway = Setup::new(&backend).app(&format!("test_connection = \"{mode}\"")).start().await;
        gateway.order(&test()).await.assert_is(r#"{"success":true}"#);
    }
    assert_eq!(backend.count(), 1);
    let closed = Backend::closed();
    let gateway = Setup::to(closed.url("/")).app("test_connection = \"probe\"").start().await;
    gateway.order(&test()).await.assert_rejected(502, "backend_unreachable");
}

#[tokio::test]
async fn no_document_of_the_json_test_suite_becomes_a_success() {
    let Some(folder) = corpora::path("jsontestsuite/test_parsing") else { return };
    let mut documents: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(&path).unwrap()))
        .collect();
    documents.sort();
    let bodies: Vec<_> = documents.iter().map(|(_, body)| body.clone()).collect();
    let next = AtomicUsize::new(0);
    let backend = Backend::start(move |_| json(&bodies[next.fetch_add(1, Ordering::SeqCst)])).await;
    let gateway = Gateway::over(&backend).await;
    let mut rules = std::collections::BTreeMap::<(char, String), usize>::new();
    for (name, _) in &documents {
        let reply = gateway.order(&action("ExpireAppInstance")).await;
        assert_eq!(reply.status, 502, "{name}: {}", reply.text());
        reply.assert_rejected(502, "backend_contract");
        let rule = gateway.access_line(&reply).await["rule"].as_str().unwrap().to_owned();
        let syntax_is_wrong = ["invalid_json", "empty_body"].contains(&rule.as_str());
        // Documents that break no rule of syntax may still hold a key twice.
        match &name[..2] {
            "n_" => assert!(syntax_is_wrong, "{name}: {rule}"),
            "y_" => assert!(!syntax_is_wrong, "{name}: {rule}"),
            _ => {}
        }
        *rules.entry((name.chars().next().unwrap(), rule)).or_default() += 1;
    }
    assert_eq!(backend.count(), documents.len());
    for class in ['n', 'y', 'i'] {
        assert!(rules.keys().any(|(known, _)| *known == class), "no {class}_ document");
    }
    println!("{rules:?}");
}
