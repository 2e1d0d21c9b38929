//! What a client's headers may do: nothing, except where the design lets them.

use crate::support::backend::{Backend, CREATED};
use crate::support::gateway::{Gateway, Setup};
use crate::support::order::create;

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

#[tokio::test]
async fn nothing_that_a_client_sends_can_pose_as_ours() {
    let backend = Backend::confirming().await;
    let gateway = Gateway::forwarding_all(&backend).await;
    let ours = [
        "X-Spi-App",
        "X-Spi-Dialect",
        "X-Spi-Action",
        "X-Spi-Debug",
        "X-Spi-Key-Id",
        "X-Spi-Attempt",
        "X-Spi-Param-User-Id",
        "X-Request-Id",
        "Idempotency-Key",
        "App-Signature",
        "X-Forwarded-For",
        "X-Forwarded-Host",
        "X-Forwarded-Proto",
        "Forwarded",
        "X-Real-Ip",
        "Authorization",
        "Cookie",
        "Expect",
        "Accept-Encoding",
        "Range",
        "X-Http-Method-Override",
        "Proxy-Authorization",
        "TE",
    ];
    let headers: String = ours
        .iter()
        .flat_map(|name| {
            let spellings = [
                name.to_string(),
                name.to_lowercase(),
                name.to_uppercase(),
                name.replace('-', "_"),
                name.replace('-', "."),
            ];
            spellings.map(|name| format!("{name}: FORGED\r\n"))
        })
        // 100-continue is hyper's; and the signature's own header must hold one.
        .filter(|line| !line.to_lowercase().starts_with("expect") && !line.to_lowercase().starts_with("app_signature"))
        .collect();
    // Within the limit of headers.
    let lines: Vec<_> = headers.lines().collect();
    for lines in lines.chunks(80) {
        let headers = lines.iter().map(|line| format!("{line}\r\n")).collect::<String>();
        gateway.get_with(&create().target(), &headers).await.assert_is(CREATED);
    }
    for seen in backend.requests() {
        assert!(!seen.text().contains("FORGED"), "{}", seen.text());
        assert_eq!(seen.header("x-spi-app"), Some("crm"));
        assert_eq!(seen.header("x-spi-action"), Some("CreateAppInstance"));
    }
}

#[tokio::test]
async fn naming_our_headers_hop_by_hop_does_not_take_them_away() {
    let backend = Backend::confirming().await;
    let gateway = Gateway::over(&backend).await;
    let headers = "Connection: X-Spi-App, Idempotency-Key, x-request-id, Content-Type, Content-Length, Host\r\n\
                   Connection: X-Spi-Action, User-Agent\r\nUser-Agent: hop\r\n";
    gateway.get_with(&create().target(), headers).await.assert_is(CREATED);
    let seen = backend.only_request();
    for name in ["X-Spi-App", "X-Spi-Action", "Idempotency-Key", "X-Request-Id", "Content-Type", "Content-Length"] {
        assert!(seen.header(name).is_some(), "{name} is gone: {}", seen.text());
    }
    assert_eq!(seen.header("host"), Some(backend.authority().as_str()));
    // A header of the client that it calls hop-by-hop is not for the backend.
    assert_eq!(seen.header("user-agent"), None);
    assert_eq!(seen.header("connection"), None);
}

#[tokio::test]
async fn every_request_carries_all_of_our_headers_once() {
    let backend = Backend::confirming().await;
    let gateway = Gateway::forwarding_all(&backend).await;
    let order = create().with("debug", "True");
    let reply = gateway.order(&order).await;
    let seen = backend.only_request();
    for (name, value) in [
        ("X-Spi-App", "crm"),
        ("X-Spi-Dialect", "qingcloud-appcenter"),
        ("X-Spi-Action", "CreateAppInstance"),
        ("X-Spi-Debug", "true"),
        ("X-Spi-Key-Id", "k-2026"),
        ("X-Spi-Attempt", "1"),
        ("X-Request-Id", reply.request_id()),
        ("Content-Type", "application/json"),
    ] {
        assert_eq!(seen.header(name), Some(value), "{name}");
    }
    // The same for every copy of the order, another one for its trial run.
    let idempotency_key = |position: usize| backend.requests()[position].header("idempotency-key").unwrap().to_owned();
    gateway.order(&order.clone().seconds_from_now(-3)).await.assert_is(CREATED);
    gateway.order(&order.without("debug")).await.assert_is(CREATED);
    assert_eq!(idempotency_key(0), idempotency_key(1));
    assert_ne!(idempotency_key(0), idempotency_key(2));
    assert_eq!(backend.requests()[2].header("x-spi-debug"), Some("false"));
}

#[tokio::test]
async fn a_valid_traceparent_is_passed_on_and_any_other_is_not() {
    let backend = Backend::confirming().await;
    let gateway = Gateway::forwarding_all(&backend).await;
    let seen = async |headers: &str| {
        gateway.get_with(&create().target(), headers).await.assert_is(CREATED);
        let seen = backend.requests().pop().unwrap();
        (seen.header("traceparent").map(str::to_owned), seen.header("tracestate").map(str::to_owned))
    };
    let (parent, state) = seen(&format!("traceparent: {TRACE}\r\ntracestate: a=1\r\n")).await;
    assert_eq!((parent.as_deref(), state.as_deref()), (Some(TRACE), Some("a=1")));
    let double = format!("traceparent: {TRACE}\r\ntraceparent: x\r\n");
    assert_eq!(seen(&double).await, (None, None));
    for wrong in [
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
        "x",
    ] {
        let headers = format!("traceparent: {wrong}\r\ntracestate: a=1\r\n");
        assert_eq!(seen(&headers).await, (None, None), "{wrong}");
    }
    assert_eq!(seen("tracestate: a=1\r\n").await, (None, None));
}

#[tokio::test]
async fn the_user_agent_is_passed_on() {
    let backend = Backend::confirming().await;
    let gateway = Gateway::over(&backend).await;
    gateway.get_with(&create().target(), "User-Agent: platform/1\r\n").await.assert_is(CREATED);
    assert_eq!(backend.only_request().header("user-agent"), Some("platform/1"));
}

#[tokio::test]
async fn a_strangers_request_id_and_forwarding_headers_are_not_believed() {
    let backend = Backend::confirming().await;
    let gateway = Gateway::over(&backend).await;
    let claims = "X-Request-Id: mine\r\nX-Forwarded-For: 10.9.9.9\r\nForwarded: for=10.9.9.9\r\n";
    let reply = gateway.get_with(&create().target(), claims).await;
    assert_ne!(reply.request_id(), "mine");
    let seen = backend.only_request();
    assert_eq!(seen.header("x-request-id"), Some(reply.request_id()));
    assert!(!seen.text().contains("10.9.9.9"));
    assert_eq!(gateway.access_line(&reply).await["client"], "127.0.0.1");
}

#[tokio::test]
async fn a_trusted_proxys_request_id_is_kept_if_it_looks_like_one() {
    let backend = Backend::confirming().await;
    let setup =
        Setup::new(&backend).forwarding_all().environment("SPIGATE_LISTEN__TRUSTED_PROXIES", "10.0.0.0/8, 127.0.0.1");
    let gateway = setup.start().await;
    let reply =
        gateway.get_with(&create().target(), "X-Request-Id: from-the-proxy\r\nX-Forwarded-For: 10.9.9.9\r\n").await;
    assert_eq!(reply.request_id(), "from-the-proxy");
    let seen = backend.only_request();
    assert_eq!(seen.header("x-request-id"), Some("from-the-proxy"));
    assert_eq!(seen.header("x-forwarded-for"), Some("10.9.9.9"));
    assert_eq!(gateway.access_line(&reply).await["request_id"], "from-the-proxy");
    for wrong in ["", "a b", "caf\u{e9}", &"x".repeat(129)] {
        let reply = gateway.get_with(&create().target(), &format!("X-Request-Id: {wrong}\r\n")).await;
        assert_ne!(reply.request_id(), wrong);
    }
    // The rejections of later proxies' requests are found by the same id.
    let reply = gateway.get_with("/nowhere", "X-Request-Id: lost\r\n").await;
    reply.assert_rejected(404, "unknown_app");
    assert_eq!(reply.request_id(), "lost");
}

#[tokio::test]
async fn only_the_client_that_trusted_proxies_vouch_for_is_passed_on_and_logged() {
    let backend = Backend::confirming().await;
    let setup =
        Setup::new(&backend).forwarding_all().environment("SPIGATE_LISTEN__TRUSTED_PROXIES", "10.0.0.0/8, 127.0.0.1");
    let gateway = setup.start().await;
    for (headers, client, passed_on) in [
        ("", "127.0.0.1", None),
        ("X-Forwarded-For: 192.0.2.7\r\n", "192.0.2.7", Some("192.0.2.7")),
        // A proxy that adds a line of its own behind a forged one.
        ("X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 192.0.2.7\r\n", "192.0.2.7", Some("192.0.2.7")),
        ("X-Forwarded-For: 6.6.6.6, 192.0.2.7, 10.1.1.1\r\n", "192.0.2.7", Some("192.0.2.7")),
        ("Forwarded: for=\"[2001:db8::7]:80\";proto=https\r\n", "2001:db8::7", Some("2001:db8::7")),
        // Naming it hop-by-hop does not take it away.
        ("Connection: X-Forwarded-For\r\nX-Forwarded-For: 192.0.2.7\r\n", "192.0.2.7", Some("192.0.2.7")),
        // Not known: nothing is passed on.
        ("X-Forwarded-For: 192.0.2.7, unknown, 10.1.1.1\r\n", "10.1.1.1", None),
        ("X-Forwarded-For: 192.0.2.7\r\nForwarded: for=192.0.2.8\r\n", "127.0.0.1", None),
    ] {
        let reply = gateway.get_with(&create().target(), headers).await;
        reply.assert_is(CREATED);
        let seen = backend.requests().pop().unwrap();
        assert_eq!(seen.header("x-forwarded-for"), passed_on, "{headers}");
        assert_eq!(seen.header("forwarded"), None);
        let line = gateway.access_line(&reply).await;
        assert_eq!(line["client"], client, "{headers}");
        let peer = line.get("peer").map(|peer| peer.as_str().unwrap());
        assert_eq!(peer, (client != "127.0.0.1").then_some("127.0.0.1"), "{headers}");
    }
}

#[tokio::test]
async fn too_many_headers_or_too_long_ones_are_refused() {
    let backend = Backend::confirming().await;
    let gateway = Gateway::over(&backend).await;
    let many = |count: usize| (0..count).map(|number| format!("X-{number}: 1\r\n")).collect::<String>();
    gateway.get_with(&create().target(), &many(81)).await.assert_rejected(431, "headers_too_large");
    let long = format!("X: {}\r\n", "x".repeat(33 * 1024));
    gateway.get_with(&create().target(), &long).await.assert_rejected(431, "headers_too_large");
    for flood in [many(5_000), format!("X: {}\r\n", "x".repeat(500_000))] {
        let replies = gateway.raw(crate::support::client::get(&create().target(), &flood)).await;
        assert!(replies.iter().all(|reply| [400, 431].contains(&reply.status)), "{replies:?}");
        assert!(replies.len() <= 1);
    }
    assert_eq!(backend.count(), 0);
    // With Host it has eighty.
    gateway.get_with(&create().target(), &many(79)).await.assert_is(CREATED);
}
