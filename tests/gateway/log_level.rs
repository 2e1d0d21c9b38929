//! The level of the log, changed while the gateway runs.

use serde_json::{Value, json};

use crate::support::backend::Backend;
use crate::support::client::{self, Reply};
use crate::support::gateway::{Gateway, Setup};
use crate::support::order::{KEY, create};
use crate::support::within_deadline;

async fn level(gateway: &Gateway) -> Value {
    client::one_reply(gateway.admin, client::get("/log/level", "")).await.json()
}

/// Posts with these header lines; Host among them.
async fn post(gateway: &Gateway, query: &str, body: &str, headers: &str) -> Reply {
    let length = body.len();
    let head = format!("POST /log/level{query} HTTP/1.1\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}");
    client::one_reply(gateway.admin, format!("{head}\r\n{body}")).await
}

const CURL: &str = "Host: 127.0.0.1:9090\r\nContent-Type: application/x-www-form-urlencoded\r\n";

fn is_change(line: &Value, from: &str, to: &str) -> bool {
    line["message"] == "the log level has changed" && line["from"] == from && line["to"] == to
}

#[tokio::test]
async fn the_level_changes_and_the_log_says_who_did_it() {
    let backend = Backend::confirming().await;
    let gateway = Setup::new(&backend).top("[shutdown]\ndelay = \"0s\"\n").start().await;
    assert_eq!(level(&gateway).await, json!({ "level": "info", "configured": "info", "reverts_at": null }));
    let changed = post(&gateway, "", "trace\n", CURL).await;
    assert_eq!(changed.status, 200, "{changed:?}");
    assert_eq!(changed.json(), json!({ "level": "trace", "configured": "info", "reverts_at": null }));
    let line = gateway.line("the change", |line| is_change(line, "info", "trace")).await;
    assert_eq!((&line["by"], &line["level"]), (&"admin client 127.0.0.1".into(), &"WARN".into()));
    // How it happens: each stop of the request.
    let order = create();
    gateway.order(&order).await;
    for stop in ["verify", "claim", "backend"] {
        gateway.line(stop, |line| line["level"] == "DEBUG" && line["span"]["name"] == stop).await;
    }
    let changed = post(&gateway, "", "error", "Host: spigate.internal:9090\r\n").await;
    assert_eq!(changed.status, 200, "{changed:?}");
    gateway.line("the change", |line| is_change(line, "trace", "error")).await;
    // Access lines have no level to be below of.
    let reply = gateway.order(&create().key("wrong")).await;
    gateway.access_line(&reply).await;
    let output = gateway.stop().await;
    assert!(!output.contains("\"stopped\""), "{output}");
    for secret in [KEY, "signature=", "time_stamp="] {
        assert!(!output.contains(secret), "{secret} in\n{output}");
    }
}

#[tokio::test]
async fn a_level_for_a_while_goes_back_by_itself() {
    let backend = Backend::confirming().await;
    let gateway = Setup::new(&backend).top("[log]\nlevel = \"debug\"\n").start().await;
    let changed = post(&gateway, "?for=100ms", "warn", CURL).await.json();
    assert_eq!((&changed["level"], &changed["configured"]), (&"warn".into(), &"debug".into()));
    assert!(changed["reverts_at"].is_string(), "{changed}");
    let back = async {
        while level(&gateway).await != json!({ "level": "debug", "configured": "debug", "reverts_at": null }) {
            tokio::task::yield_now().await;
        }
    };
    within_deadline("the level from before", back).await;
    let line = gateway.line("the way back", |line| is_change(line, "warn", "debug")).await;
    assert_eq!(line["by"], "the end of the time that was asked for");
    // A reload takes the level from the file, as it takes everything else.
    gateway.reconfigure(|text| text.replace("level = \"debug\"", "level = \"info\"")).await;
    assert_eq!(level(&gateway).await["level"], "info");
    let line = gateway.line("the reload's change", |line| is_change(line, "debug", "info")).await;
    assert_eq!(line["by"], "the configuration");
}

#[tokio::test]
async fn what_is_no_level_is_refused_with_a_reason() {
    let backend = Backend::confirming().await;
    let gateway = Gateway::over(&backend).await;
    for (query, body, reason) in [
        ("", "loud", "the body must be error, warn, info, debug or trace"),
        ("", "", "the body must be"),
        ("?for=soon", "debug", "for is not a duration"),
        ("?for=30d", "debug", "at most 7d"),
        ("?until=1h", "debug", "the query may only be for="),
    ] {
        let refused = post(&gateway, query, body, CURL).await;
        assert_eq!(refused.status, 400, "{refused:?}");
        assert!(refused.text().contains(reason), "{refused:?}");
    }
    assert_eq!(post(&gateway, "", &"debug ".repeat(100), CURL).await.status, 413);
    assert_eq!(level(&gateway).await["level"], "info");
}

#[tokio::test]
async fn no_page_of_another_site_changes_the_level() {
    let backend = Backend::confirming().await;
    let gateway = Gateway::over(&backend).await;
    let here = gateway.admin;
    for headers in [
        // A form or a fetch of a page elsewhere.
        format!("Host: {here}\r\nOrigin: https://evil.example\r\nContent-Type: text/plain\r\n"),
        format!("Host: {here}\r\nOrigin: null\r\n"),
        format!("Host: {here}\r\nSec-Fetch-Site: cross-site\r\n"),
        format!("Host: {here}\r\nSec-Fetch-Site: same-site\r\nOrigin: http://127.0.0.1:1\r\n"),
        // A name that was made to point here.
        "Host: evil.example:9090\r\nOrigin: http://evil.example:9090\r\nSec-Fetch-Site: same-origin\r\n".into(),
        "Host: evil.example:9090\r\nOrigin: http://evil.example:9090\r\n".into(),
        "Host: evil.example:9090\r\nSec-Fetch-Site: none\r\n".into(),
    ] {
        let refused = post(&gateway, "", "debug", &headers).await;
        assert_eq!(refused.status, 403, "{headers}{refused:?}");
    }
    assert_eq!(level(&gateway).await["level"], "info");
    let own = format!("Host: {here}\r\nOrigin: http://{here}\r\nSec-Fetch-Site: same-origin\r\n");
    assert_eq!(post(&gateway, "", "debug", &own).await.status, 200);
    // And it is nothing of the public port's.
    let public = client::one_reply(gateway.listen, client::get("/log/level", "")).await;
    assert_eq!(public.status, 404, "{public:?}");
}
