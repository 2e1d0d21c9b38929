//! What an ingress hears that asks whether a request may pass, over the real binary. The ingresses
//! themselves are in `ingress.rs`.

use std::collections::BTreeMap;

use crate::support::backend::{Backend, CREATED};
use crate::support::client::{self, Connection, Reply, get};
use crate::support::gateway::{Gateway, Setup, without_settings};
use crate::support::order::{KEY, action, create, market};
use crate::support::{Directory, within_deadline};

/// The ways to ask: nginx, ingress-nginx, Traefik, Envoy.
const CONTRACTS: [&str; 4] = ["nginx", "ingress-nginx", "traefik", "envoy"];

/// An app without a backend, and an ingress on loopback that may ask.
fn setup() -> Setup {
    Setup::to("").without_backend().companion()
}

/// What an ingress of this kind sends when it holds a request.
fn question(ingress: &str, method: &str, host: &str, target: &str, headers: &str) -> String {
    let (method_line, path, host, more) = match ingress {
        "nginx" => (
            "GET",
            "/companion/auth-request".into(),
            host,
            format!("X-Original-URI: {target}\r\nX-Original-Method: {method}\r\n"),
        ),
        "ingress-nginx" => (
            "GET",
            "/companion/auth-request".into(),
            "spigate.spigate.svc:8081",
            format!(
                "X-Original-URL: https://{host}{target}\r\nX-Original-Method: {method}\r\nX-Sent-From: nginx-ingress-controller\r\n"
            ),
        ),
        "traefik" => (
            "GET",
            "/companion/forward-auth".into(),
            "spigate.spigate.svc:8081",
            format!(
                "X-Forwarded-Method: {method}\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: {host}\r\n\
                 X-Forwarded-Uri: {target}\r\n"
            ),
        ),
        "envoy" => (method, format!("/companion/ext-authz{target}"), host, "Content-Length: 0\r\n".into()),
        _ => panic!("{ingress}"),
    };
    format!("{method_line} {path} HTTP/1.1\r\nHost: {host}\r\n{more}{headers}\r\n")
}

async fn ask(gateway: &Gateway, ingress: &str, target: &str, headers: &str) -> Reply {
    client::one_reply(gateway.companion(), question(ingress, "GET", "localhost", target, headers)).await
}

/// Asserts that this lets the request pass.
#[track_caller]
fn assert_allowed(reply: &Reply) {
    // No success for a platform that it reaches by mistake.
    assert_eq!((reply.status, reply.text().as_str()), (200, ""), "{reply:?}");
    assert_eq!(reply.header("content-type"), None);
}

/// The headers that are ours, but for what differs each time.
fn ours(headers: &[(String, String)]) -> BTreeMap<String, String> {
    let is_ours = |name: &str| name.starts_with("x-spi-") || name == "idempotency-key";
    let lower = headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone()));
    lower.filter(|(name, _)| is_ours(name)).collect()
}

#[tokio::test]
async fn the_answer_has_the_headers_that_a_backend_would_get() {
    let backend = Backend::confirming().await;
    // Whatever `send` says.
    for (send, is_same) in [("headers", true), ("json", false), ("raw", false)] {
        let setup = Setup::new(&backend).companion().forwarding_all().backend(&format!("send = \"{send}\""));
        let gateway = setup.start().await;
        let order = create().with("debug", "true").and("未知", "值");
        let mut answers = Vec::new();
        for ingress in CONTRACTS {
            let reply = ask(&gateway, ingress, &order.target(), "").await;
            assert_allowed(&reply);
            assert_eq!(reply.request_id().len(), 32);
            assert_eq!(reply.header("x-envoy-auth-headers-to-remove").is_some(), ingress == "envoy");
            answers.push(ours(&reply.headers));
        }
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:#?}");
        for (name, value) in [
            ("x-spi-app", "crm"),
            ("x-spi-dialect", "qingcloud-appcenter"),
            ("x-spi-action", "CreateAppInstance"),
            ("x-spi-debug", "true"),
            ("x-spi-key-id", "k-2026"),
            ("x-spi-attempt", "1"),
            ("x-spi-param-order-id", order.value("order_id")),
            ("x-spi-param-debug", "true"),
        ] {
            assert_eq!(answers[0].get(name).map(String::as_str), Some(value), "{name}: {answers:#?}");
        }
        gateway.order(&order).await.assert_is(CREATED);
        let delivered = ours(&backend.last().headers);
        let same_key = delivered["idempotency-key"] == answers[0]["idempotency-key"];
        assert!(same_key && (delivered == answers[0]) == is_same, "{send}: {delivered:#?} {answers:#?}");
    }
}

#[tokio::test]
async fn nothing_is_claimed_or_delivered() {
    let backend = Backend::confirming().await;
    let gateway = Setup::new(&backend).companion().start().await;
    let order = create();
    for _ in 0..2 {
        assert_allowed(&ask(&gateway, "nginx", &order.target(), "").await);
    }
    assert_eq!(backend.count(), 0);
    assert_eq!(gateway.metric("spigate_journal_seconds_count{operation=\"claim\"}").await, 0.0);
    // The order itself is new, and once it is done the ingress may still pass it on.
    gateway.order(&order).await.assert_is(CREATED);
    assert_eq!(backend.last().attempt().0, 1);
    assert_allowed(&ask(&gateway, "envoy", &order.target(), "").await);
    assert_eq!(backend.count(), 1);
    gateway.order(&order).await.assert_is(CREATED);
    assert_eq!(backend.count(), 1);
}

#[tokio::test]
async fn what_breaks_a_rule_is_refused_as_it_is_elsewhere() {
    let gateway = setup().start().await;
    let good = create();
    let tampered = good.target().replace("user_id=", "user_id=x");
    for (status, code, target) in [
        (401, "signature_invalid", create().key("wrong").target()),
        (401, "signature_invalid", tampered),
        (401, "signature_missing", create().unsigned_target()),
        (401, "timestamp_expired", create().seconds_from_now(-400).target()),
        (401, "timestamp_in_future", create().seconds_from_now(100).target()),
        (401, "timestamp_invalid", create().with("time_stamp", "now").target()),
        (400, "unknown_action", create().with("action", "Sell").target()),
        (400, "field_missing", create().without("user_id").target()),
        (400, "field_invalid", create().with("period", "soon").target()),
        (400, "malformed_request", format!("{}&action=x", good.target())),
        (400, "malformed_request", "/spi?a=%zz".into()),
        (400, "malformed_request", "/spi?a=%00".into()),
        (404, "unknown_app", good.clone().path("/other").target()),
        (404, "unknown_app", good.clone().path("//spi").target()),
        (404, "unknown_app", good.clone().path("/spi/").target()),
        (404, "unknown_app", good.clone().path("/spi/../spi").target()),
        (404, "unknown_app", good.clone().path("/%73pi").target()),
        (400, "original_missing", "/spi".into()),
        (414, "uri_too_long", format!("/spi?{}", "a".repeat(16 * 1024 + 1))),
    ] {
        for ingress in CONTRACTS {
            let reply = ask(&gateway, ingress, &target, "").await;
            reply.assert_rejected(status, code);
            assert!(ours(&reply.headers).keys().all(|name| name == "x-spi-denial"), "{reply:?}");
            // nginx has no other way to pass the body on.
            let denial = reply.header("x-spi-denial");
            assert_eq!(denial, ingress.contains("nginx").then_some(reply.text().as_str()), "{ingress}");
        }
    }
    for ingress in CONTRACTS {
        assert_allowed(&ask(&gateway, ingress, &good.target(), "").await);
        for method in ["POST", "HEAD", "OPTIONS", "PUT", "get"] {
            let mut connection = Connection::open(gateway.companion()).await;
            if (ingress, method) == ("envoy", "HEAD") {
                connection = connection.bodiless();
            }
            connection.send(question(ingress, method, "localhost", &good.target(), "")).await;
            let reply = connection.reply().await.expect("an answer");
            assert_eq!((reply.status, reply.header("allow")), (405, Some("GET")), "{ingress} {method}");
        }
    }
    let reply = ask(&gateway, "nginx", "/spi", "").await;
    assert!(reply.text().contains("$request_uri"), "{}", reply.text());
}

#[tokio::test]
async fn the_host_of_the_original_picks_the_app() {
    let app = |name: &str, host: &str| {
        format!(
            "[[apps]]\nname = \"{name}\"\npath = \"/spi\"\n{host}\ndialect = \"qingcloud-appcenter\"\n\
             keys = [{{ id = \"k\", value = \"{KEY}\" }}]\n"
        )
    };
    let setup = setup().more(&app("shop", "host = \"shop.example\""));
    let gateway = setup.start().await;
    for ingress in CONTRACTS {
        for (host, app) in [
            ("shop.example", Some("shop")),
            ("SHOP.example:8443", Some("shop")),
            ("other.example", Some("crm")),
            ("[::1]:80", Some("crm")),
            ("a@shop.example", None),
            ("shop.example, other.example", None),
        ] {
            let bytes = question(ingress, "GET", host, &create().target(), "X-Original-Host: evil.example\r\n");
            let reply = client::one_reply(gateway.companion(), bytes).await;
            match app {
                Some(app) => assert_eq!(reply.header("x-spi-app"), Some(app), "{ingress} {host}: {reply:?}"),
                None => reply.assert_rejected(400, "malformed_request"),
            }
        }
    }
}

#[tokio::test]
async fn what_is_said_twice_or_badly_is_believed_in_no_version() {
    let gateway = setup().start().await;
    let (good, evil) = (create().target(), create().key("wrong").target());
    for (ingress, headers) in [
        ("nginx", format!("X-Original-URI: {evil}\r\n")),
        ("nginx", format!("X-Original-URI: {good}\r\n")),
        ("nginx", format!("X-Original-URL: http://localhost{good}\r\n")),
        ("nginx", "X-Original-Method: GET\r\n".into()),
        ("nginx", "Host: localhost\r\n".into()),
        ("ingress-nginx", format!("X-Original-URI: {good}\r\n")),
        ("ingress-nginx", format!("x-original-url: https://localhost{evil}\r\n")),
        ("traefik", format!("X-Forwarded-Uri: {evil}\r\n")),
        ("traefik", "X-Forwarded-Method: GET\r\n".into()),
        ("traefik", "X-Forwarded-Host: localhost\r\n".into()),
        ("envoy", "Host: localhost\r\n".into()),
    ] {
        let reply = ask(&gateway, ingress, &good, &headers).await;
        reply.assert_rejected(400, "malformed_request");
    }
    // A header of another contract is only a client's header.
    for ingress in ["nginx", "ingress-nginx"] {
        let headers = format!("X-Forwarded-Uri: {evil}\r\nX-Forwarded-Host: evil\r\nX-Forwarded-Method: POST\r\n");
        assert_allowed(&ask(&gateway, ingress, &good, &headers).await);
        let headers = format!("X-Forwarded-Uri: {good}\r\n");
        ask(&gateway, ingress, &evil, &headers).await.assert_rejected(401, "signature_invalid");
    }
    for ingress in ["traefik", "envoy"] {
        let headers =
            format!("X-Original-URI: {evil}\r\nX-Original-URL: http://evil{evil}\r\nX-Original-Method: POST\r\n");
        assert_allowed(&ask(&gateway, ingress, &good, &headers).await);
        let headers = format!("X-Original-URI: {good}\r\nX-Original-Method: GET\r\n");
        ask(&gateway, ingress, &evil, &headers).await.assert_rejected(401, "signature_invalid");
    }
}

#[tokio::test]
async fn only_its_paths_are_answered_and_only_with_heads_that_are_well() {
    let gateway = setup().start().await;
    let good = create().target();
    for target in ["/", "/spi", "/companion", "/companion/", "/companion/auth-request/", "/metrics", "/readyz", &good] {
        client::one_reply(gateway.companion(), get(target, "")).await.assert_rejected(404, "unknown_app");
    }
    let prefix = client::one_reply(gateway.companion(), get("/companion/ext-authz", "")).await;
    prefix.assert_rejected(400, "original_missing");
    assert!(prefix.text().contains("path_prefix"), "{}", prefix.text());
    for ingress in CONTRACTS {
        let body = question(ingress, "GET", "localhost", &good, "Transfer-Encoding: chunked\r\n");
        if ingress != "envoy" {
            for bytes in
                [format!("{body}0\r\n\r\n"), body.replace("Transfer-Encoding: chunked", "Content-Length: 1") + "a"]
            {
                let replies = client::until_closed(gateway.companion(), bytes).await;
                replies[0].assert_rejected(400, "body_not_allowed");
                assert_eq!(replies.len(), 1);
            }
        }
        // An ingress may say that there is none.
        let nothing = if ingress == "envoy" { "" } else { "Content-Length: 0\r\n" };
        assert_allowed(&ask(&gateway, ingress, &good, nothing).await);
        let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
        ask(&gateway, ingress, &good, upgrade).await.assert_rejected(400, "body_not_allowed");
        let many = (0..81).map(|number| format!("X-{number}: a\r\n")).collect::<String>();
        ask(&gateway, ingress, &good, &many).await.assert_rejected(431, "headers_too_large");
        let long = format!("X-Long: {}\r\n", "a".repeat(33 * 1024));
        ask(&gateway, ingress, &good, &long).await.assert_rejected(431, "headers_too_large");
    }
    for bytes in
        ["CONNECT localhost:80 HTTP/1.1\r\nHost: localhost:80\r\n\r\n", "OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n"]
    {
        client::one_reply(gateway.companion(), bytes).await.assert_rejected(404, "unknown_app");
    }
    let absolute = format!("GET http://localhost/companion/ext-authz{good} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    client::one_reply(gateway.companion(), absolute).await.assert_rejected(400, "malformed_request");
}

#[tokio::test]
async fn only_the_ingress_is_answered() {
    let gateway = Setup::to("").without_backend().companion_for("192.0.2.0/24").start().await;
    let claim = "X-Forwarded-For: 192.0.2.7\r\nForwarded: for=192.0.2.7\r\n";
    for ingress in CONTRACTS {
        let reply = ask(&gateway, ingress, &create().target(), claim).await;
        reply.assert_rejected(403, "client_not_allowed");
        assert_eq!(reply.header("connection"), Some("close"));
        let line = gateway.access_line(&reply).await;
        assert!(line["cause"].as_str().unwrap().contains("127.0.0.1 is not in companion.allow_from"), "{line}");
        // Not even which apps there are.
        ask(&gateway, ingress, "/nowhere?a=b", "").await.assert_rejected(403, "client_not_allowed");
    }
    client::one_reply(gateway.companion(), get("/nowhere", "")).await.assert_rejected(403, "client_not_allowed");
    // It follows a reload, also for connections that are open.
    gateway.reconfigure(|text| text.replace("192.0.2.0/24", "127.0.0.1")).await;
    let mut connection = Connection::open(gateway.companion()).await;
    connection.send(question("nginx", "GET", "localhost", &create().target(), "")).await;
    assert_allowed(&connection.reply().await.unwrap());
    gateway.reconfigure(|text| text.replace("127.0.0.1\"]", "192.0.2.0/24\"]")).await;
    connection.send(question("nginx", "GET", "localhost", &create().target(), "")).await;
    connection.reply().await.unwrap().assert_rejected(403, "client_not_allowed");
    assert!(connection.until_closed().await.is_empty());
}

#[tokio::test]
async fn another_address_takes_a_restart() {
    let gateway = setup().start().await;
    let before = gateway.companion();
    gateway.reconfigure(|text| text.replacen("address = \"127.0.0.1:0\"", "address = \"127.0.0.1:1\"", 1)).await;
    gateway.line("the key", |line| line["key"] == "companion.address" && line["level"] == "WARN").await;
    assert_allowed(&client::one_reply(before, question("envoy", "GET", "a", &create().target(), "")).await);
}

#[tokio::test]
async fn an_app_without_a_backend_is_the_companions_alone() {
    let backend = Backend::confirming().await;
    let other = format!(
        "[[apps]]\nname = \"open\"\npath = \"/open\"\ndialect = \"qingcloud-appcenter\"\n\
         keys = [{{ id = \"k\", value = \"{KEY}\" }}]\n[apps.backend]\nurl = \"{}\"\n",
        backend.url("/open")
    );
    let gateway = setup().more(&other).start().await;
    gateway.order(&create()).await.assert_rejected(404, "unknown_app");
    gateway.get("/spi?a=%zz").await.assert_rejected(400, "malformed_request");
    gateway.order(&create().path("/open")).await.assert_is(CREATED);
    assert_allowed(&ask(&gateway, "traefik", &create().target(), "").await);
    assert_allowed(&ask(&gateway, "traefik", &create().path("/open").target(), "").await);
    assert_eq!(backend.count(), 1);
    assert_eq!(gateway.readyz().await.status, 200);
    let metrics = gateway.metrics().await;
    assert!(!metrics.contains("spigate_backend_up{app=\"crm\""), "{metrics}");
    assert_eq!(gateway.metric("spigate_rejections_total{app=\"unknown\",code=\"unknown_app\"}").await, 1.0);
    // It may get one, and lose it, while the gateway runs.
    let url = format!("[apps.backend]\nurl = \"{}\"\n[[apps]]\nname = \"open\"", backend.url("/crm"));
    gateway.reconfigure(|text| text.replace("[[apps]]\nname = \"open\"", &url)).await;
    gateway.order(&create()).await.assert_is(CREATED);
    gateway.reconfigure(|text| text.replace(&url, "[[apps]]\nname = \"open\"")).await;
    gateway.order(&create()).await.assert_rejected(404, "unknown_app");
    assert!(!gateway.metrics().await.contains("spigate_backend_up{app=\"crm\""));
}

#[tokio::test]
async fn every_action_of_both_dialects_can_be_asked_about() {
    let appcenter = setup().start().await;
    let names =
        ["CreateAppInstance", "RenewAppInstance", "UpgradeAppInstance", "ExpireAppInstance", "DeleteAppInstance"];
    for name in names.into_iter().chain(["TestConnection"]) {
        let reply = ask(&appcenter, "nginx", &action(name).target(), "").await;
        assert_allowed(&reply);
        assert_eq!(reply.header("x-spi-action"), Some(name));
    }
    let gateway = setup().dialect("qingcloud-market").start().await;
    for name in
        ["CreateInstance", "RenewInstance", "UpgradeInstance", "ExpireInstance", "DeleteInstance", "TestConnection"]
    {
        assert_allowed(&ask(&gateway, "envoy", &market(name).target(), "").await);
    }
}

#[tokio::test]
async fn the_signature_may_be_in_its_header_and_its_loss_is_diagnosed() {
    let gateway = setup().start().await;
    let order = create();
    for ingress in CONTRACTS {
        let header = format!("app_signature: {}\r\n", order.signature());
        assert_allowed(&ask(&gateway, ingress, &order.unsigned_target(), &header).await);
        assert_allowed(&ask(&gateway, ingress, &order.target(), &header).await);
        ask(&gateway, ingress, &create().target(), &header).await.assert_rejected(400, "malformed_request");
        // Only the header itself is one.
        let folded = header.replace('_', "-");
        let reply = ask(&gateway, ingress, &order.unsigned_target(), &folded).await;
        reply.assert_rejected(401, "signature_missing");
        let line = gateway.access_line(&reply).await;
        assert!(line["cause"].as_str().unwrap().contains("underscores_in_headers on"), "{line}");
    }
}

#[tokio::test]
async fn an_app_that_is_observed_is_always_let_pass() {
    let gateway = setup().app("enforce = false").start().await;
    let refused = [create().key("wrong"), create().seconds_from_now(-4_000), create().without("user_id")];
    for ingress in CONTRACTS {
        for order in &refused {
            let reply = ask(&gateway, ingress, &order.target(), "").await;
            assert_allowed(&reply);
            // Nothing that is not believed.
            let names = ours(&reply.headers).into_keys().collect::<Vec<_>>();
            assert_eq!(names, ["x-spi-app", "x-spi-dialect"]);
        }
        let reply = ask(&gateway, ingress, &create().target(), "").await;
        assert_eq!(reply.header("x-spi-action"), Some("CreateAppInstance"));
    }
    let count = |code: &str| format!("spigate_would_refuse_total{{app=\"crm\",code=\"{code}\"}}");
    for code in ["signature_invalid", "timestamp_expired", "field_missing"] {
        assert_eq!(gateway.metric(&count(code)).await, CONTRACTS.len() as f64, "{code}");
    }
    let reply = ask(&gateway, "envoy", &refused[0].target(), "").await;
    let line = gateway.access_line(&reply).await;
    assert_eq!((&line["would_refuse"], &line["outcome"]), (&"signature_invalid".into(), &"allowed".into()));
    // What is no request of the app, or none at all, is nobody's to observe.
    ask(&gateway, "envoy", "/nowhere?a=b", "").await.assert_rejected(404, "unknown_app");
    ask(&gateway, "nginx", "/spi", "").await.assert_rejected(400, "original_missing");
}

#[tokio::test]
async fn the_client_is_whom_the_ingress_was_called_by() {
    let app = "allow_from = [\"198.51.100.0/24\"]";
    let setup = setup().app(app).environment("SPIGATE_LISTEN__TRUSTED_PROXIES", "203.0.113.9");
    // A whole cluster may ask. Clients live there, too.
    let gateway = setup.environment("SPIGATE_COMPANION__ALLOW_FROM", "127.0.0.0/8, 10.0.0.0/8").start().await;
    for (claim, is_allowed) in [
        ("X-Forwarded-For: 198.51.100.7\r\n", true),
        ("Forwarded: for=198.51.100.7\r\n", true),
        // What stands left of the last one was written by that one.
        ("X-Forwarded-For: 198.51.100.7, 192.0.2.1\r\n", false),
        ("X-Forwarded-For: 198.51.100.7, 10.0.0.8\r\n", false),
        ("X-Forwarded-For: 198.51.100.7\r\nX-Forwarded-For: 10.0.0.8\r\n", false),
        ("X-Forwarded-For: 198.51.100.7, 127.0.0.1\r\n", false),
        // But a load balancer that the configuration knows may stand in front of the ingress.
        ("X-Forwarded-For: 6.6.6.6, 198.51.100.7, 203.0.113.9\r\n", true),
        ("X-Forwarded-For: 198.51.100.7, 6.6.6.6, 203.0.113.9\r\n", false),
        ("X-Forwarded-For: 198.51.100.7\r\nForwarded: for=192.0.2.1\r\n", false),
        ("X-Forwarded-For: unknown\r\n", false),
        ("X-Real-IP: 198.51.100.7\r\n", false),
        ("", false),
    ] {
        for ingress in CONTRACTS {
            let reply = ask(&gateway, ingress, &create().target(), claim).await;
            if is_allowed {
                assert_allowed(&reply);
                let line = gateway.access_line(&reply).await;
                assert_eq!((&line["client"], &line["peer"]), (&"198.51.100.7".into(), &"127.0.0.1".into()));
            } else {
                reply.assert_rejected(403, "client_not_allowed");
            }
        }
    }
}

#[tokio::test]
async fn it_is_told_and_counted_like_every_request_and_apart_from_others() {
    let backend = Backend::confirming().await;
    let setup = Setup::new(&backend).companion().top("[shutdown]\ndelay = \"0s\"\n");
    let gateway = setup.start().await;
    let (good, bad) = (create(), create().key("wrong"));
    let allowed = ask(&gateway, "ingress-nginx", &good.target(), "X-Request-Id: from-the-ingress\r\n").await;
    assert_eq!(allowed.request_id(), "from-the-ingress");
    let line = gateway.access_line(&allowed).await;
    for (field, value) in [
        ("method", "GET"),
        ("path", "/spi"),
        ("companion", "auth-request"),
        ("app", "crm"),
        ("action", "CreateAppInstance"),
        ("order_id", good.value("order_id")),
        ("key", "k-2026"),
        ("outcome", "allowed"),
        ("client", "127.0.0.1"),
    ] {
        assert_eq!(line[field], value, "{line}");
    }
    assert!(line.get("delivery").is_none() && line.get("code").is_none(), "{line}");
    let denied = ask(&gateway, "traefik", &bad.target(), "").await;
    let line = gateway.access_line(&denied).await;
    assert_eq!((&line["companion"], &line["code"]), (&"forward-auth".into(), &"signature_invalid".into()));
    let lost = ask(&gateway, "envoy", "/nowhere?a=b", "").await;
    assert_eq!(gateway.access_line(&lost).await["path"], "/nowhere");
    gateway.order(&create()).await.assert_is(CREATED);
    for (series, count) in [
        ("spigate_companion_requests_total{app=\"crm\",contract=\"auth-request\",outcome=\"allowed\"}", 1.0),
        ("spigate_companion_requests_total{app=\"crm\",contract=\"forward-auth\",outcome=\"rejected\"}", 1.0),
        ("spigate_companion_requests_total{app=\"unknown\",contract=\"ext-authz\",outcome=\"rejected\"}", 1.0),
        ("spigate_requests_total{action=\"CreateAppInstance\",app=\"crm\",outcome=\"allowed\"}", 1.0),
        ("spigate_requests_total{action=\"CreateAppInstance\",app=\"crm\",outcome=\"delivered\"}", 1.0),
        ("spigate_requests_total{action=\"unknown\",app=\"crm\",outcome=\"rejected\"}", 1.0),
        ("spigate_rejections_total{app=\"crm\",code=\"signature_invalid\"}", 1.0),
        ("spigate_key_verifications_total{app=\"crm\",key=\"k-2026\"}", 2.0),
    ] {
        assert_eq!(gateway.metric(series).await, count, "{series}");
    }
    let (metrics, output) = (gateway.metrics().await, gateway.stop().await);
    for secret in [good.signature(), bad.signature(), KEY.into(), good.value("user_id").into(), good.query()] {
        assert!(!output.contains(&secret) && !metrics.contains(&secret), "{secret} in {output}");
    }
}

#[tokio::test]
async fn limits_of_the_public_listener_hold_here_too() {
    let limits = "[limits]\nconnections = 2\nheader_timeout = \"1s\"\nidle_timeout = \"120s\"\n";
    let gateway = setup().top(limits).start().await;
    // Of all listeners together.
    let mut served = Connection::open(gateway.listen).await;
    served.send(get("/nowhere", "")).await;
    served.reply().await.unwrap().assert_rejected(404, "unknown_app");
    let mut asking = Connection::open(gateway.companion()).await;
    asking.send(question("nginx", "GET", "localhost", &create().target(), "")).await;
    assert_allowed(&asking.reply().await.unwrap());
    let refused = client::until_closed(gateway.companion(), "").await;
    assert_eq!(refused.iter().map(|reply| reply.status).collect::<Vec<_>>(), [503]);
    drop(served);
    gateway.wait_for_metric("spigate_connections", |connections| connections == 1.0).await;
    // Whoever is slow loses the place.
    let mut slow = Connection::open(gateway.companion()).await;
    slow.send("GET /companion/auth-request HTTP/1.1\r\nHost:").await;
    assert!(slow.until_closed().await.is_empty());
}

#[tokio::test]
async fn a_stop_answers_what_was_asked() {
    let gateway = setup().top("[shutdown]\ndelay = \"5s\"\n").start().await;
    let mut asking = Connection::open(gateway.companion()).await;
    asking.send(question("envoy", "GET", "localhost", &create().target(), "")).await;
    assert_allowed(&asking.reply().await.unwrap());
    let mut idle = Connection::open(gateway.companion()).await;
    idle.send(question("envoy", "GET", "localhost", &create().target(), "")).await;
    assert_allowed(&idle.reply().await.unwrap());
    gateway.terminate();
    gateway.wait_for_readyz(503).await;
    // Until the delay is over everything is answered, and asked to come by another connection.
    asking.send(question("envoy", "GET", "localhost", &create().target(), "")).await;
    let last = asking.reply().await.unwrap();
    assert_allowed(&last);
    assert_eq!(last.header("connection"), Some("close"));
    assert!(idle.until_closed().await.is_empty());
    gateway.ended().await;
}

#[tokio::test]
async fn who_fails_too_often_is_told_less_here_too() {
    let gateway = setup().top("[limits]\nfailed_per_minute = 1\n").start().await;
    let flooder = "X-Forwarded-For: 192.0.2.7\r\n";
    let mut codes = Vec::new();
    while codes.last() != Some(&429) {
        assert!(codes.len() < 100);
        codes.push(ask(&gateway, "envoy", &create().key("wrong").target(), flooder).await.status);
    }
    assert_allowed(&ask(&gateway, "envoy", &create().target(), flooder).await);
}

fn check(toml: &str) -> (i32, String) {
    let checked = crate::support::gateway::check(&Directory::new(), toml);
    (checked.code, checked.text)
}

#[test]
fn it_is_switched_on_by_both_keys_and_nothing_else() {
    let app = format!(
        "[[apps]]\nname = \"crm\"\npath = \"/spi\"\ndialect = \"qingcloud-appcenter\"\n\
         keys = [{{ id = \"k\", value = \"{KEY}\" }}]\n"
    );
    let backend = "[apps.backend]\nurl = \"http://127.0.0.1:1/\"\ntimeout = \"20s\"\n";
    let on = "[companion]\naddress = \"127.0.0.1:8081\"\nallow_from = [\"127.0.0.1\"]\n";
    for (toml, expected) in [
        (format!("{on}{app}"), None),
        (format!("{on}[journal]\nurl = \"memory:\"\n{app}"), None),
        (format!("{on}{app}{backend}"), None),
        (format!("[companion]\nallow_from = []\n{app}{backend}"), None),
        (format!("[companion]\naddress = \"127.0.0.1:8081\"\n{app}"), Some("companion.allow_from: is missing")),
        (format!("[companion]\nallow_from = [\"::1\"]\n{app}{backend}"), Some("companion.address: is missing")),
        (
            format!("[companion]\naddress = \"unix:/a\"\nallow_from = [\"::1\"]\n{app}"),
            Some("companion.address: is not"),
        ),
        (format!("{}{app}", on.replace("127.0.0.1\"]", "localhost\"]")), Some("companion.allow_from[0]: ")),
        (format!("{}{app}", on.replace("8081", "9090")), Some("companion.address: must not be the admin")),
        (
            format!("{}{app}", on.replace("127.0.0.1:8081", "0.0.0.0:8080")),
            Some("companion.address: must not be a public"),
        ),
        (format!("{on}colour = 1\n{app}"), Some("companion.colour: unknown key")),
        (app.clone(), Some("apps[0].backend: is missing; only with [companion]")),
        (format!("{on}{app}[apps.backend]\nsend = \"raw\"\n"), Some("apps[0].backend.url: is missing")),
        (format!("{on}{app}ready_requires_backend = true\n"), Some("apps[0].ready_requires_backend: needs a backend")),
    ] {
        let (code, text) = check(&toml);
        assert_eq!(code, i32::from(expected.is_some()), "{toml}\n{text}");
        match expected {
            Some(expected) => assert!(text.contains(expected) && text.contains("1 problem"), "{expected}: {text}"),
            None => assert!(!text.contains("warning"), "{text}"),
        }
    }
    for (toml, warning) in [
        // Its client is whom the ingress names, wherever the public listener is.
        (format!("{on}[listen]\naddress = \"127.0.0.1:8080\"\n{app}allow_from = [\"192.0.2.7\"]\n"), None),
        (
            format!("{on}{app}allow_from = [\"127.0.0.1\"]\n"),
            Some("apps[0].allow_from: 127.0.0.1/32 may ask the companion"),
        ),
    ] {
        let (code, text) = check(&toml);
        assert_eq!((code, text.contains("warning")), (0, warning.is_some()), "{text}");
        assert!(text.contains(warning.unwrap_or_default()), "{text}");
    }
    let (code, text) = check(&format!("{}{app}", on.replace("\"127.0.0.1\"", "\"0.0.0.0/0\"")));
    assert!(code == 0 && text.contains("warning: ") && text.contains("companion.allow_from: 0.0.0.0/0"), "{text}");
}

#[tokio::test]
async fn the_command_line_shows_and_variables_set_it() {
    let directory = Directory::new();
    let config = directory.write("spigate.toml", &setup().text());
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_spigate"));
    let command = without_settings(&mut command).args(["check-config", "--print-config", "--config"]).arg(config);
    let shown = command.env("SPIGATE_COMPANION__ADDRESS", "127.0.0.1:7").output().unwrap();
    let text = String::from_utf8(shown.stdout).unwrap();
    assert!(text.contains("[companion]\naddress = \"127.0.0.1:7\"\nallow_from = [\"127.0.0.1\"]"), "{text}");
    assert!(!text.contains("[apps.backend]"), "{text}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let refused = within_deadline("its end", async {
        setup().environment("SPIGATE_COMPANION__ADDRESS", &address).refusal().await
    });
    let refused = refused.await;
    assert!(refused.code == 2 && refused.text.contains("companion.address"), "{}", refused.text);
}
