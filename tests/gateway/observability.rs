//! What an operator sees of a run, and what nobody may see of it.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::support::backend::{Backend, CREATED, json, reply};
use crate::support::client::{Connection, get, one_reply};
use crate::support::gateway::{Gateway, Setup};
use crate::support::order::{KEY, action, create, encode};

/// A backend that confirms, refuses, fails or breaks the contract, as the order's user says.
async fn moody() -> Backend {
    Backend::start(|seen| match seen.json()["user_id"].as_str().unwrap_or("") {
        "refused" => json(r#"{"success":false,"message":"no"}"#),
        "failed" => reply("500 Oops", "", ""),
        "unconfirmed" => json(r#"{"success":true}"#),
        "another" => json(CREATED.replace("ins-1", "ins-2")),
        _ => json(CREATED),
    })
    .await
}

/// All of our series: name without a histogram's suffix, and labels.
fn series(metrics: &str) -> Vec<(String, BTreeMap<String, String>)> {
    let lines = metrics.lines().filter(|line| line.starts_with("spigate_"));
    lines
        .map(|line| {
            let (series, _) = line.rsplit_once(' ').unwrap();
            let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
            let is_histogram = name.contains("_seconds_") || name.contains("_size_");
            let name = if is_histogram { &name[..name.rfind('_').unwrap()] } else { name };
            let labels = labels.trim_end_matches('}').split("\",").filter(|pair| !pair.is_empty());
            let labels = labels.map(|pair| pair.trim_end_matches('"').split_once("=\"").unwrap());
            let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned()));
            (name.to_owned(), labels.filter(|(name, _)| name != "le").collect())
        })
        .collect()
}

#[tokio::test]
async fn metrics_have_the_documented_names_and_only_bounded_labels() {
    let backend = moody().await;
    let gateway = Gateway::over(&backend).await;
    for user in ["delivered", "refused", "failed", "unconfirmed"] {
        gateway.order(&create().with("user_id", user)).await;
    }
    let unnumbered = gateway.order(&create().with("user_id", "another").without("order_id")).await;
    assert_eq!(unnumbered.status, 200, "{unnumbered:?}");
    gateway.order(&create().key("wrong")).await;
    gateway.order(&create().with("action", "made-up-action")).await;
    gateway.order(&create().path("/made-up-path")).await;
    gateway.order(&action("TestConnection")).await;
    gateway.raw("BAD\r\n\r\n").await;

    let metrics = gateway.metrics().await;
    let seen = series(&metrics);
    let names: BTreeMap<&str, BTreeSet<&str>> = seen.iter().fold(BTreeMap::new(), |mut names, (name, labels)| {
        names.entry(name.as_str()).or_insert_with(BTreeSet::new).extend(labels.keys().map(String::as_str));
        names
    });
    for (name, labels) in [
        ("spigate_requests_total", vec!["app", "action", "outcome"]),
        ("spigate_rejections_total", vec!["app", "code"]),
        ("spigate_request_seconds", vec!["app", "action"]),
        ("spigate_backend_seconds", vec!["app", "action", "outcome"]),
        ("spigate_clock_skew_seconds", vec!["app"]),
        ("spigate_key_verifications_total", vec!["app", "key"]),
        ("spigate_contract_warnings_total", vec!["app", "action", "field"]),
        ("spigate_backend_violations_total", vec!["app", "action", "rule"]),
        ("spigate_backend_up", vec!["app", "backend"]),
        ("spigate_backend_circuit_opened_total", vec!["app", "backend"]),
        ("spigate_deliveries_total", vec!["app", "action", "outcome"]),
        ("spigate_unconfirmed_deliveries", vec!["app"]),
        ("spigate_unanswered_deliveries", vec!["app"]),
        ("spigate_journal_seconds", vec!["operation"]),
        ("spigate_journal_batch_size", vec![]),
        ("spigate_in_flight_requests", vec!["app"]),
        ("spigate_connections", vec![]),
        ("spigate_connections_refused_total", vec![]),
        ("spigate_accept_errors_total", vec![]),
        ("spigate_log_dropped_total", vec![]),
        ("spigate_callers_gone_total", vec![]),
        ("spigate_panics_total", vec![]),
        ("spigate_build_info", vec!["version"]),
    ] {
        let expected: BTreeSet<&str> = labels.into_iter().collect();
        assert_eq!(names.get(name), Some(&expected), "{name}");
        assert!(metrics.contains(&format!("# HELP {name} ")) && metrics.contains(&format!("# TYPE {name} ")), "{name}");
    }
    let values = |label: &str| -> BTreeSet<&str> {
        seen.iter().filter_map(|(_, labels)| labels.get(label).map(String::as_str)).collect()
    };
    assert_eq!(values("app"), BTreeSet::from(["crm", "unknown"]));
    assert_eq!(values("action"), BTreeSet::from(["CreateAppInstance", "TestConnection", "unknown"]));
    assert_eq!(values("outcome"), BTreeSet::from(["delivered", "refused", "failed", "unconfirmed", "rejected"]));
    assert_eq!(values("key"), BTreeSet::from(["k-2026"]));
    assert_eq!(values("backend"), BTreeSet::from(["0"]));
    assert_eq!(values("rule"), BTreeSet::from(["instance_id_missing"]));
    assert!(!metrics.contains("made-up"), "{metrics}");
    for (series, expected) in [
        ("spigate_requests_total{action=\"CreateAppInstance\",app=\"crm\",outcome=\"delivered\"}", 2.0),
        ("spigate_requests_total{action=\"CreateAppInstance\",app=\"crm\",outcome=\"refused\"}", 1.0),
        ("spigate_requests_total{action=\"unknown\",app=\"crm\",outcome=\"rejected\"}", 2.0),
        ("spigate_requests_total{action=\"unknown\",app=\"unknown\",outcome=\"rejected\"}", 1.0),
        ("spigate_rejections_total{app=\"crm\",code=\"signature_invalid\"}", 1.0),
        ("spigate_rejections_total{app=\"crm\",code=\"unknown_action\"}", 1.0),
        ("spigate_rejections_total{app=\"unknown\",code=\"unknown_app\"}", 1.0),
        ("spigate_backend_seconds_count{action=\"CreateAppInstance\",app=\"crm\",outcome=\"unconfirmed\"}", 1.0),
        ("spigate_key_verifications_total{app=\"crm\",key=\"k-2026\"}", 7.0),
        ("spigate_in_flight_requests{app=\"crm\"}", 0.0),
    ] {
        assert_eq!(gateway.metric(series).await, expected, "{series}\n{metrics}");
    }
    assert!(metrics.contains("\nprocess_open_fds "));
}

#[tokio::test]
async fn every_request_has_one_access_line_that_tells_its_story() {
    let backend = moody().await;
    let gateway = Gateway::over(&backend).await;
    let order = create().with("debug", "1");
    let reply = gateway.order(&order).await;
    let line = gateway.access_line(&reply).await;
    for (field, value) in [
        ("level", "INFO"),
        ("client", "127.0.0.1"),
        ("method", "GET"),
        ("path", "/spi"),
        ("app", "crm"),
        ("action", "CreateAppInstance"),
        ("order_id", order.value("order_id")),
        ("instance_id", "ins-1"),
        ("key", "k-2026"),
        ("outcome", "delivered"),
    ] {
        assert_eq!(line[field], value, "{line}");
    }
    assert_eq!((&line["debug"], &line["status"]), (&true.into(), &200.into()));
    assert!(line["duration_ms"].as_f64().unwrap() >= line["backend_ms"].as_f64().unwrap(), "{line}");
    let timestamp: jiff::Timestamp = line["timestamp"].as_str().unwrap().parse().unwrap();
    assert!(crate::support::order::now().duration_since(timestamp).as_secs() < 60);

    // A stranger's claims are not in it.
    let reply = gateway.order(&create().key("wrong")).await;
    let line = gateway.access_line(&reply).await;
    assert_eq!((&line["status"], &line["code"]), (&401.into(), &"signature_invalid".into()));
    for absent in ["action", "order_id", "instance_id", "key", "debug", "backend_ms", "rule"] {
        assert!(line.get(absent).is_none(), "{absent}: {line}");
    }
    assert!(line["cause"].as_str().unwrap().contains("no active key"), "{line}");

    let reply = gateway.get(&create().unsigned_target()).await;
    let line = gateway.access_line(&reply).await;
    assert!(line["cause"].as_str().unwrap().contains("underscores_in_headers"), "{line}");

    let reply = gateway.order(&create().with("user_id", "unconfirmed")).await;
    let line = gateway.access_line(&reply).await;
    assert_eq!((&line["level"], &line["outcome"]), (&"WARN".into(), &"unconfirmed".into()));
    assert_eq!((&line["code"], &line["rule"]), (&"backend_contract".into(), &"instance_id_missing".into()));

    let count = gateway.output().lines().filter(|line| line.contains("\"message\":\"request\"")).count();
    assert_eq!(count, 4);
}

#[tokio::test]
async fn access_lines_can_be_switched_off() {
    let backend = Backend::confirming().await;
    let gateway = Setup::new(&backend).top("[log]\naccess = false\n[shutdown]\ndelay = \"0s\"\n").start().await;
    gateway.order(&create()).await.assert_is(CREATED);
    let output = gateway.stop().await;
    assert!(output.contains("\"ready\"") && output.contains("\"stopped\""), "{output}");
    assert!(!output.contains("\"request\""), "{output}");
}

/// Values that would take over a terminal or forge a line.
const HOSTILE: [&str; 8] = [
    "\u{1b}[31mred\u{1b}[0m",
    "\u{1b}]0;title\u{7}",
    "\u{9b}31m",
    "\u{85}next line",
    "\u{8}\u{8}\u{8}",
    "\u{7f}",
    "\t\u{b}\u{c}",
    "a\" outcome=delivered \\",
];

#[tokio::test]
async fn control_characters_of_any_value_never_reach_a_line_raw() {
    for format in ["json", "text"] {
        let backend = Backend::start(|seen| match seen.json()["order_id"].as_str() {
            Some(order) => {
                json(serde_json::json!({"success": true, "instanceId": order, "message": order}).to_string())
            }
            None => reply("500 \u{1b}[31m", "X: \u{1b}\r\n", "\u{1b}[31m"),
        })
        .await;
        let mut gateway = Setup::new(&backend)
            .top("[shutdown]\ndelay = \"0s\"\n")
            .environment("SPIGATE_LOG__LEVEL", "trace")
            .start_logging(format)
            .await;
        for hostile in HOSTILE {
            gateway.order(&create().with("order_id", hostile)).await;
            gateway.order(&action("ExpireAppInstance").with("instance_id", hostile)).await;
            gateway.order(&create().with("action", hostile)).await;
            gateway.order(&create().with(hostile, hostile)).await;
            gateway.order(&create().with("debug", hostile)).await;
            gateway.get(&format!("/{}", encode(hostile))).await;
            gateway.get_with(&create().target(), &format!("User-Agent: {hostile}\r\n")).await;
            gateway.raw(format!("{hostile} / HTTP/1.1\r\n\r\n")).await;
        }
        assert!(gateway.lives());
        let output = gateway.stop().await;
        let raw = output.chars().find(|char| char.is_control() && *char != '\n');
        let at = raw.and_then(|char| output.lines().find(|line| line.contains(char)));
        assert_eq!(raw, None, "{format}: {at:?}");
        // The values are there, escaped, so that the order can be found.
        assert!(output.contains("[31mred"), "{output}");
        if format == "json" {
            let all_parse = output.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok());
            assert!(all_parse, "{output}");
            let found = output
                .lines()
                .any(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["order_id"] == HOSTILE[2]);
            assert!(found, "a value changed on its way into the log");
        }
    }
}

#[tokio::test]
async fn no_secret_of_a_run_is_in_its_output_or_its_metrics() {
    const PASSWORD: &str = "hunter2-of-the-customer";
    const USER: &str = "usr-personal-4711";
    const SERVER: &str = "private-cloud.example";
    for (format, send) in [("json", "json"), ("text", "headers"), ("json", "query"), ("text", "raw")] {
        let backend = Backend::start(|seen| {
            let good = format!(
                r#"{{"success":true,"instanceId":"i","appInfo":{{"admin":{{"password":"{PASSWORD}"}},"authUrl":"https://a/?t={PASSWORD}"}}}}"#
            );
            match seen.header("user-agent") {
                Some("broken") => json(good.replace("\"i\"", &format!("\"{}\"", PASSWORD.repeat(20)))),
                Some("no-json") => json(format!("{good}{PASSWORD}")),
                Some("refused") => json(format!(r#"{{"success":false,"message":"{PASSWORD}"}}"#)),
                Some("failed") => reply("500 Oops", &format!("X: {PASSWORD}\r\n"), PASSWORD),
                Some("type") => reply("200 OK", &format!("Content-Type: {PASSWORD}\r\n"), PASSWORD),
                Some("redirect") => reply("302 Found", &format!("Location: /{PASSWORD}\r\n"), ""),
                _ => json(good),
            }
        })
        .await;
        let cloud_info = STANDARD.encode(format!(r#"{{"sso_server":"{SERVER}","api_server":"{SERVER}"}}"#));
        let order =
            || create().with("user_id", USER).with("cloud_info", &cloud_info).with("undocumented-name", "its-value");
        let other = format!(
            "[[apps]]\nname = \"closed\"\npath = \"/closed\"\ndialect = \"qingcloud-appcenter\"\n\
             allow_from = [\"192.0.2.7\"]\nkeys = [{{ id = \"k\", value = \"{KEY}\" }}]\n\
             [apps.backend]\nurl = \"{}\"\n",
            backend.url("/")
        );
        let gateway = Setup::new(&backend)
            .top("[shutdown]\ndelay = \"0s\"\n[limits]\nfailed_per_minute = 4\n")
            .backend(&format!("send = \"{send}\""))
            .more(&other)
            .environment("SPIGATE_LOG__LEVEL", "trace")
            .environment("SPIGATE_LISTEN__TRUSTED_PROXIES", "127.0.0.1")
            .start_logging(format)
            .await;
        let mut signatures = Vec::new();
        for agent in ["good", "broken", "no-json", "refused", "failed", "type", "redirect"] {
            let order = order();
            signatures.push(order.signature());
            let reply = gateway.get_with(&order.target(), &format!("User-Agent: {agent}\r\n")).await;
            assert_eq!(reply.status == 200, ["good", "refused"].contains(&agent), "{agent}");
        }
        let flawed = [
            order().key("wrong"),
            order().seconds_from_now(-9_999),
            order().with("period", "forever-and-a-day"),
            order().with("cloud_info", USER),
            order().without("app_id"),
            order().with("action", USER),
            order().and("user_id", USER),
            order().path("/nowhere"),
            order().path("/closed"),
            order().and("signature", PASSWORD),
            // These are told only that they are too many.
            order().key("wrong"),
            order().without("time_stamp"),
            order().with("time_stamp", PASSWORD),
        ];
        for order in flawed {
            signatures.push(order.signature());
            let reply = gateway.order(&order).await;
            assert!((400..500).contains(&reply.status), "{reply:?}");
            for secret in [USER, SERVER, "forever-and-a-day", KEY, &order.signature(), &cloud_info] {
                assert!(!reply.text().contains(secret), "{secret} is told to the caller: {}", reply.text());
            }
        }
        let in_header = order();
        signatures.push(in_header.signature());
        let header = format!("app_signature: {}\r\nAuthorization: Bearer {PASSWORD}\r\n", in_header.signature());
        gateway.get_with(&in_header.unsigned_target(), &header).await;
        gateway.raw(get(&order().target(), &format!("X: {PASSWORD}\0\r\n"))).await;
        for claims in [
            format!("X-Forwarded-For: {PASSWORD}\r\nCookie: {PASSWORD}\r\nReferer: https://a/?{PASSWORD}\r\n"),
            format!("Forwarded: for=\"{PASSWORD}\";by={PASSWORD}\r\nUser-Agent: {PASSWORD}\r\n"),
            format!("traceparent: {PASSWORD}\r\ntracestate: {PASSWORD}\r\nHost: {PASSWORD}\r\n"),
        ] {
            gateway.get_with(&order().target(), &claims).await;
            gateway.get_with(&order().path("/closed").target(), &claims).await;
        }
        for request in [
            format!("POST /spi?p={PASSWORD} HTTP/1.1\r\nHost: a\r\nContent-Length: 23\r\n\r\n{PASSWORD}"),
            format!("GET /spi?p={PASSWORD}#{PASSWORD} HTTP/1.1\r\nHost: a\r\n\r\n"),
            format!("{} / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", PASSWORD.repeat(2)),
            format!("PROXY TCP4 {PASSWORD} 10.0.0.1 1 2\r\n"),
        ] {
            gateway.raw(request).await;
        }
        for path in ["/metrics", "/readyz", "/nowhere"] {
            let header = format!("Authorization: Bearer {PASSWORD}\r\n");
            one_reply(gateway.admin, get(&format!("{path}?token={PASSWORD}"), &header)).await;
        }
        // A copy, its caller gone before the answer, and a delivery that ends unheard.
        let copy = order();
        signatures.push(copy.signature());
        for _ in 0..2 {
            gateway.order(&copy).await;
        }
        let mut gone = Connection::open(gateway.listen).await;
        gone.send(get(&order().target(), "")).await;
        drop(gone);

        let metrics = gateway.metrics().await;
        let output = gateway.stop().await;
        let mut secrets: Vec<String> = [PASSWORD, USER, SERVER, KEY, cloud_info.as_str()].map(str::to_owned).to_vec();
        secrets
            .extend(["user_id=", "signature=", "undocumented-name", "its-value", "标准版", "/spi?"].map(str::to_owned));
        secrets.extend(signatures.iter().flat_map(|signature| [signature.clone(), encode(signature)]));
        for secret in secrets {
            assert!(!output.contains(&secret), "{secret} is in the {format} output:\n{output}");
            assert!(!metrics.contains(&secret), "{secret} is in the metrics:\n{metrics}");
        }
        for told in ["signature_invalid", "no active key", "client_not_allowed", "too_many_failures"] {
            assert!(output.contains(told), "{told}: {output}");
        }
    }
}

#[tokio::test]
async fn a_container_without_other_programs_can_ask_whether_it_is_ready() {
    let backend = Backend::confirming().await;
    let mut gateway = Gateway::over(&backend).await;
    let url = format!("http://{}/readyz", gateway.admin);
    let ask = || {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_spigate"));
        let output = command.args(["healthcheck", "--url", &url]).output().unwrap();
        (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    };
    assert_eq!(ask(), (Some(0), "ok\n".to_owned()));
    std::fs::remove_file(gateway.directory().path().join("spigate.db")).unwrap();
    gateway.wait_for_readyz(503).await;
    let (code, text) = ask();
    assert!(code == Some(1) && text.contains("the journal is not available"), "{text}");
    gateway.kill();
    let (code, text) = ask();
    assert!(code == Some(1) && text.contains("no connection"), "{text}");
}

#[tokio::test]
async fn no_secret_of_a_connection_that_is_closed_at_once_is_told() {
    const SECRET: &str = "hunter2-of-the-customer";
    let backend = Backend::confirming().await;
    let setup = Setup::new(&backend).top("[shutdown]\ndelay = \"0s\"\n").environment("SPIGATE_LOG__LEVEL", "trace");
    let setup = setup.environment("SPIGATE_LISTEN__TRUSTED_PROXIES", "127.0.0.1");
    let gateway = setup.environment("SPIGATE_LISTEN__PROXY_PROTOCOL", "true").start().await;
    for bytes in [format!("PROXY TCP4 {SECRET} 10.0.0.1 1 2\r\n"), get(&format!("/spi?p={SECRET}"), "")] {
        assert!(gateway.raw(bytes).await.is_empty());
    }
    let metrics = gateway.metrics().await;
    let output = gateway.stop().await;
    assert!(output.contains("no PROXY header that counts"), "{output}");
    assert!(!output.contains(SECRET) && !metrics.contains(SECRET), "{output}\n{metrics}");
}
