//! Which app a request is for is decided by an exact path and one well-formed host.

use crate::support::backend::{Backend, CREATED};
use crate::support::client::one_reply;
use crate::support::gateway::{Gateway, Setup};
use crate::support::order::{KEY, create};

#[tokio::test]
async fn only_the_exact_path_is_the_apps() {
    let backend = Backend::confirming().await;
    let gateway = Gateway::over(&backend).await;
    for path in [
        "//spi",
        "/spi/",
        "/spi/../spi",
        "/./spi",
        "/x/../spi",
        "/%73pi",
        "/spi%2f",
        "/SPI",
        "/spi;x",
        "/spi%00",
        "/spi.",
        "/spi%20",
        "/\\spi",
        "/",
        "/spi/internal/spi",
    ] {
        let reply = gateway.order(&create().path(path)).await;
        assert!([400, 404].contains(&reply.status), "{path}: {}", reply.status);
    }
    assert_eq!(backend.count(), 0);
    gateway.order(&create()).await.assert_is(CREATED);
}

#[tokio::test]
async fn targets_that_are_no_path_are_refused_and_the_connection_closed() {
    let backend = Backend::confirming().await;
    let gateway = Gateway::over(&backend).await;
    let query = create().query();
    for (request, statuses) in [
        ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), [400, 405]),
        ("GET * HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), [400, 404]),
        (format!("GET /spi?{query}#fragment HTTP/1.1\r\nHost: a\r\n\r\n"), [400, 400]),
        (format!("GET /spi#?{query} HTTP/1.1\r\nHost: a\r\n\r\n"), [400, 400]),
        (format!("GET spi?{query} HTTP/1.1\r\nHost: a\r\n\r\n"), [400, 404]),
        (format!("GET ?{query} HTTP/1.1\r\nHost: a\r\n\r\n"), [400, 404]),
        (format!("GET /spi?{query} /spi HTTP/1.1\r\nHost: a\r\n\r\n"), [400, 400]),
        ("GET  HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), [400, 400]),
        (format!("GET http:///spi?{query} HTTP/1.1\r\nHost: a\r\n\r\n"), [400, 400]),
        (format!("GET http://u@a/spi?{query} HTTP/1.1\r\nHost: a\r\n\r\n"), [400, 400]),
        ("GET a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n".to_owned(), [400, 404]),
    ] {
        // What does not close by itself is asked to.
        let request = request.replacen("\r\nHost", "\r\nConnection: close\r\nHost", 1);
        let replies = gateway.raw(&request).await;
        assert_eq!(replies.len(), 1, "{request}: {replies:?}");
        assert!(statuses.contains(&replies[0].status), "{request}: {}", replies[0].status);
    }
    assert_eq!(backend.count(), 0);
}

#[tokio::test]
async fn an_absolute_target_counts_only_for_the_host_that_the_request_is_for() {
    let backend = Backend::confirming().await;
    let gateway = Gateway::forwarding_all(&backend).await;
    let ask = |authority: &str, host: &str| {
        let target = create().target();
        let request = format!("GET http://{authority}{target} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        one_reply(gateway.listen, request)
    };
    ask("shop.example", "shop.example").await.assert_is(CREATED);
    ask("Shop.Example:8080", "shop.example:8080").await.assert_is(CREATED);
    for (authority, host) in
        [("other.example", "shop.example"), ("shop.example:81", "shop.example"), ("u@shop.example", "shop.example")]
    {
        ask(authority, host).await.assert_rejected(400, "malformed_request");
    }
    assert_eq!(backend.count(), 2);
}

#[tokio::test]
async fn an_app_with_the_host_comes_before_one_without_and_hosts_are_compared_by_name() {
    let backend = Backend::confirming().await;
    let app = |name: &str, host: &str, path: &str| {
        format!(
            "[[apps]]\nname = \"{name}\"\nhost = \"{host}\"\npath = \"{path}\"\n\
             dialect = \"qingcloud-appcenter\"\ndeliver_once = false\n\
             keys = [{{ id = \"k\", value = \"{KEY}\" }}]\n[apps.backend]\nurl = \"{}\"\n",
            backend.url("/")
        )
    };
    let more = [
        app("shop", "Shop.Example", "/spi"),
        app("other", "other.example", "/spi"),
        app("six", "[2001:db8::1]", "/spi"),
        app("hosted", "shop.example", "/hosted"),
    ];
    let gateway = Setup::new(&backend).forwarding_all().more(&more.concat()).start().await;
    let ask = async |path: &str, host: &str| {
        let target = create().path(path).target();
        one_reply(gateway.listen, format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await
    };
    for (host, app) in [
        ("shop.example", "shop"),
        ("SHOP.example:8443", "shop"),
        ("shop.example:80", "shop"),
        ("other.example", "other"),
        ("[2001:db8::1]", "six"),
        ("[2001:DB8::1]:8080", "six"),
        // Other names than the configured ones, however near: the app that takes any.
        ("shop.example.", "crm"),
        ("www.shop.example", "crm"),
        ("shop.example.evil.example", "crm"),
        ("shop", "crm"),
        ("127.0.0.1:8080", "crm"),
    ] {
        ask("/spi", host).await.assert_is(CREATED);
        assert_eq!(backend.requests().pop().unwrap().header("x-spi-app"), Some(app), "{host}");
    }
    // Without an app that takes any, a host that no app has is served by none.
    ask("/hosted", "Shop.Example:1").await.assert_is(CREATED);
    for host in ["other.example", "shop.example.", "localhost"] {
        ask("/hosted", host).await.assert_rejected(404, "unknown_app");
    }
}

#[tokio::test]
async fn a_request_without_exactly_one_well_formed_host_is_refused_and_the_connection_closed() {
    let backend = Backend::confirming().await;
    let gateway = Gateway::over(&backend).await;
    for hosts in [
        "",
        "Host: a\r\nHost: a\r\n",
        "Host: a\r\nHost: b\r\n",
        "Host: a\r\nhost: b\r\n",
        "Host:\r\n",
        "Host: a b\r\n",
        "Host: a, b\r\n",
        "Host: a/b\r\n",
        "Host: u@a\r\n",
        "Host: a:80:80\r\n",
        "Host: a:port\r\n",
        "Host: a:65536\r\n",
        "Host: [::1\r\n",
        "Host: [::g]\r\n",
        "Host: a?b\r\n",
        "Host: a#b\r\n",
        "Host: \u{e9}\r\n",
        "Host: http://a\r\n",
    ] {
        let replies = gateway.raw(format!("GET {} HTTP/1.1\r\n{hosts}\r\n", create().target())).await;
        assert_eq!(replies.len(), 1, "{hosts:?}");
        replies[0].assert_rejected(400, "malformed_request");
        // HTTP/1.0 may go without, but then there is no telling which app is meant.
        let replies = gateway.raw(format!("GET {} HTTP/1.0\r\n{hosts}\r\n", create().target())).await;
        assert_eq!(replies.len(), 1, "{hosts:?}");
        assert_eq!(replies[0].status, 400);
    }
    assert_eq!(backend.count(), 0);
}

#[tokio::test]
async fn a_head_that_readers_could_read_differently_is_refused_and_the_connection_closed() {
    let backend = Backend::confirming().await;
    let gateway = Gateway::over(&backend).await;
    let line = format!("GET {} HTTP/1.1\r\n", create().target());
    for rest in [
        "Host: a\0b\r\n\r\n",
        "Host: a\r\nX: a\0b\r\n\r\n",
        "Host: a\r\nX\0: b\r\n\r\n",
        "Host: a\r\nX: a\rb\r\n\r\n",
        "Host: a\r\nX: a\nY: b\r\n\r\n",
        "Host: a\n\r\n",
        "Host: a\r\n\n",
        "Host: a\r\nX: a\r\n b\r\n\r\n",
        "Host: a\r\nX: a\r\n\tb\r\n\r\n",
        " Host: a\r\n\r\n",
        "Host : a\r\n\r\n",
        "Host\t: a\r\n\r\n",
        "Host: a\r\n: b\r\n\r\n",
        "Host: a\r\nX\r\n\r\n",
        "Host: a\r\nX Y: b\r\n\r\n",
        "Host: a\r\nX\u{e9}: b\r\n\r\n",
        "Host: a\r\nX: \u{1b}[31m\r\n\r\n",
        "Host: a\r\nX: \u{7f}\r\n\r\n",
    ] {
        let replies = gateway.raw(format!("{line}{rest}")).await;
        assert_eq!(replies.iter().map(|reply| reply.status).collect::<Vec<_>>(), [400], "{rest:?}");
    }
    for line in [
        line.replace("HTTP/1.1\r\n", "HTTP/1.1\n"),
        line.replace(" HTTP", "  HTTP"),
        line.replace("GET ", "GET\t"),
        line.replace("GET /spi?", "GET /spi?\0"),
        line.replace("GET ", "GET\0 "),
        line.replace("HTTP/1.1", "HTTP/1.1 "),
        line.replace("HTTP/1.1", "HTTP/1.2"),
        line.replace("HTTP/1.1", "HTTP/2.0"),
        line.replace("HTTP/1.1", "http/1.1"),
        line.replace(" HTTP/1.1", ""),
    ] {
        let replies = gateway.raw(format!("{line}Host: a\r\n\r\n")).await;
        assert_eq!(replies.iter().map(|reply| reply.status).collect::<Vec<_>>(), [400], "{line:?}");
    }
    assert_eq!(backend.count(), 0);
}
