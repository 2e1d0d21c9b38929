//! What a backend receives, byte for byte, in each form that it may be configured for.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::support::backend::{Backend, CREATED, json};
use crate::support::gateway::{Gateway, Setup};
use crate::support::order::{Order, action, create, dialect, market};

/// A setup that accepts requests that the platform published years ago.
fn lasting(backend: &Backend) -> Setup {
    Setup::new(backend).more("[apps.freshness]\nmax_age = \"36500d\"\n")
}

/// The published request with this action.
fn published(action: &str) -> &'static str {
    let published = dialect("qingcloud-appcenter").published.iter();
    published.map(|request| request.query.as_str()).find(|query| query.contains(action)).unwrap()
}

#[tokio::test]
async fn the_platforms_own_examples_reach_a_json_backend_exactly_like_this() {
    let backend = Backend::confirming().await;
    let gateway = lasting(&backend).start().await;
    gateway.get(&format!("/spi?{}", published("CreateAppInstance"))).await.assert_is(CREATED);
    gateway.get(&format!("/spi?{}", published("RenewAppInstance"))).await.assert_is(CREATED);
    let requests = backend.requests();
    let (create, renew) = (&requests[0], &requests[1]);
    assert_eq!((create.method.as_str(), create.target.as_str()), ("POST", "/internal/spi"));
    assert_eq!(
        String::from_utf8_lossy(&create.body),
        concat!(
            r#"{"action":"CreateAppInstance","user_id":"usr-xx1xx","app_id":"app-xxxxx","spec":"套餐名称1","#,
            r#""period":{"value":1,"unit":"day"},"cloud_info":{"api_server":"api.qingcloud.com:7777","#,
            r#""sso_server":"sso.qingcloud.com"},"time_stamp":"2021-06-23T07:26:13Z"}"#
        )
    );
    assert_eq!(
        String::from_utf8_lossy(&renew.body),
        concat!(
            r#"{"action":"RenewAppInstance","instance_id":"a0ec8245-d3f4-11eb-b8c6-acde48001122","spec":"套餐名称1","#,
            r#""period":{"value":1,"unit":"day"},"time_stamp":"2021-06-23T07:28:39Z"}"#
        )
    );
    assert_eq!(create.header("content-length"), Some(create.body.len().to_string().as_str()));
    assert_eq!(create.header("transfer-encoding"), None);
    assert_eq!(create.header("host"), Some(backend.authority().as_str()));
}

/// An order whose values need every kind of care.
fn awkward() -> Order<'static> {
    create()
        .with("order_id", "ord 1/2?3#4&5=6%20+é\"\\,;")
        .with("user_id", "usr-\u{7}\u{1b}[31m\u{7f}")
        .with("spec", &STANDARD.encode("标准版 \"A\"\t+%"))
        .with("spec_package", &STANDARD.encode("a~*"))
        .with("cloud_info", &STANDARD.encode("{ \"a\" : \"é \\u00e9 😀\", \"n\": 1.10 }"))
        .with("debug", "True")
        .with("platform", "qing cloud")
        .with("note", "2")
        .and("note", "1")
        .and("empty", "")
}

#[tokio::test]
async fn a_json_backend_receives_decoded_values_flat_and_in_the_dialects_order() {
    let backend = Backend::confirming().await;
    let gateway = Setup::to(backend.url("/hook?tenant=a%20b")).start().await;
    let order = awkward();
    gateway.order(&order).await.assert_is(CREATED);
    let seen = backend.only_request();
    assert_eq!(seen.target, "/hook?tenant=a%20b");
    let expected = format!(
        concat!(
            r#"{{"action":"CreateAppInstance","user_id":"usr-\u0007\u001b[31m{}","app_id":"{}","#,
            r#""spec":"标准版 \"A\"\t+%","spec_package":"a~*","period":{{"value":1,"unit":"month"}},"#,
            r#""cloud_info":{{"a":"é \u00e9 😀","n":1.10}},"debug":true,"#,
            r#""order_id":"ord 1/2?3#4&5=6%20+é\"\\,;","time_stamp":"{}","#,
            r#""empty":"","note":["2","1"],"platform":"qing cloud"}}"#
        ),
        '\u{7f}',
        order.value("app_id"),
        order.value("time_stamp"),
    );
    assert_eq!(String::from_utf8_lossy(&seen.body), expected);
}

#[tokio::test]
async fn a_headers_backend_receives_each_field_as_ascii() {
    let backend = Backend::confirming().await;
    let gateway = Setup::new(&backend).backend("send = \"headers\"").start().await;
    let order = awkward();
    gateway.order(&order).await.assert_is(CREATED);
    let seen = backend.only_request();
    assert!(seen.bytes.is_ascii(), "{}", seen.text());
    assert_eq!((seen.method.as_str(), seen.body.len()), ("GET", 0));
    assert_eq!(seen.target, "/internal/spi?platform=qing%20cloud&note=2&note=1&empty=");
    for (name, value) in [
        ("Action", "CreateAppInstance"),
        ("User-Id", "usr-%07%1B[31m%7F"),
        ("App-Id", order.value("app_id")),
        ("Spec", "%E6%A0%87%E5%87%86%E7%89%88%20%22A%22%09%2B%25"),
        ("Spec-Package", "a~*"),
        ("Period", "1_month"),
        ("Cloud-Info", r#"{"a":"\u00e9 \u00e9 \ud83d\ude00","n":1.10}"#),
        ("Debug", "true"),
        ("Order-Id", "ord%201/2?3#4&5=6%2520%2B%C3%A9%22%5C%2C%3B"),
        ("Time-Stamp", order.value("time_stamp")),
    ] {
        assert_eq!(seen.header(&format!("X-Spi-Param-{name}")), Some(value), "{name}");
    }
    assert!(!seen.text().to_lowercase().contains("signature"), "{}", seen.text());
    let params = seen.headers.iter().filter(|(name, _)| name.to_lowercase().starts_with("x-spi-param-")).count();
    assert_eq!(params, 10);
}

#[tokio::test]
async fn a_query_backend_receives_decoded_values_without_the_signature() {
    let backend = Backend::confirming().await;
    let gateway = Setup::to(backend.url("/q?own=1")).backend("send = \"query\"").start().await;
    let order = awkward().without("user_id").with("user_id", "u");
    gateway.order(&order).await.assert_is(CREATED);
    let seen = backend.only_request();
    assert_eq!((seen.method.as_str(), seen.body.len()), ("GET", 0));
    let time = order.value("time_stamp").replace(':', "%3A");
    let expected = format!(
        "/q?own=1&action=CreateAppInstance&user_id=u&app_id={}&spec=%E6%A0%87%E5%87%86%E7%89%88%20%22A%22%09%2B%25\
         &spec_package=a~%2A&period=1_month\
         &cloud_info=%7B%22a%22%3A%22%C3%A9%20%5Cu00e9%20%F0%9F%98%80%22%2C%22n%22%3A1.10%7D&debug=true\
         &order_id=ord%201%2F2%3F3%234%265%3D6%2520%2B%C3%A9%22%5C%2C%3B&time_stamp={time}\
         &platform=qing%20cloud&note=2&note=1&empty=",
        order.value("app_id")
    );
    assert_eq!(seen.target, expected);
    assert!(!seen.text().to_lowercase().contains("signature"), "{}", seen.text());
}

#[tokio::test]
async fn a_raw_backend_receives_the_query_as_it_came_and_the_signature() {
    let backend = Backend::confirming().await;
    let gateway = lasting(&backend).forwarding_all().backend("send = \"raw\"").start().await;
    for query in [published("CreateAppInstance").to_owned(), published("RenewAppInstance").to_owned()] {
        gateway.get(&format!("/spi?{query}")).await.assert_is(CREATED);
        assert_eq!(backend.requests().last().unwrap().target, format!("/internal/spi?{query}"));
    }
    // Spellings that decode to the same are kept, too, and so is the header.
    let order = create();
    let target = format!("{}&&", order.unsigned_target().replace("order_id", "%6frder_id"));
    let header = format!("app_signature: {}\r\n", order.signature());
    gateway.get_with(&target, &header).await.assert_is(CREATED);
    let seen = backend.requests().pop().unwrap();
    assert_eq!((seen.method.as_str(), seen.target), ("GET", format!("/internal{target}")));
    assert_eq!(seen.headers.iter().find(|(name, _)| name == "app_signature").unwrap().1, order.signature());
}

#[tokio::test]
async fn the_cloud_market_is_delivered_in_every_form() {
    let order = || {
        market("RenewInstance").with("spec", "标准版 A").with("duration", "3_year").with("debug", "1").with("x", "y")
    };
    let deliver = async |send: &str| {
        let backend = Backend::start(|_| json(r#"{"success":true}"#)).await;
        let setup = Setup::new(&backend).dialect("qingcloud-market").backend(&format!("send = \"{send}\""));
        let order = order();
        setup.start().await.order(&order).await.assert_is(r#"{"success":true}"#);
        (order, backend.only_request())
    };
    let (order_id, instance_id) = ("order_id", "instance_id");
    let (order, seen) = deliver("json").await;
    let body = seen.json();
    assert_eq!(body["spec"], "标准版 A");
    assert_eq!(body["duration"], serde_json::json!({"value": 3, "unit": "year"}));
    assert_eq!((&body["debug"], &body["x"]), (&true.into(), &"y".into()));
    // Seconds on the wire, ISO 8601 for the backend.
    let seconds: i64 = order.value("timestamp").parse().unwrap();
    let time = jiff::Timestamp::from_second(seconds).unwrap().to_string();
    assert_eq!(body["timestamp"], time);
    assert_eq!(body[order_id], order.value(order_id));
    assert!(body.get("signature").is_none());

    let (order, seen) = deliver("headers").await;
    assert_eq!(seen.header("x-spi-param-spec"), Some("%E6%A0%87%E5%87%86%E7%89%88%20A"));
    assert_eq!(seen.header("x-spi-param-duration"), Some("3_year"));
    assert_eq!(seen.header("x-spi-param-debug"), Some("true"));
    assert_eq!(seen.header("x-spi-param-timestamp"), Some(order.value("timestamp")));
    assert_eq!(seen.header("x-spi-param-instance-id"), Some(order.value(instance_id)));

    let (_, seen) = deliver("query").await;
    for pair in ["&spec=%E6%A0%87%E5%87%86%E7%89%88%20A&", "&duration=3_year&", "&debug=true&", "&x=y"] {
        assert!(seen.target.contains(pair), "{pair}: {}", seen.target);
    }
    let (order, seen) = deliver("raw").await;
    assert_eq!(seen.target, format!("/internal{}", order.target()));
}

#[tokio::test]
async fn actions_can_have_a_method_and_a_path_of_their_own() {
    let backend = Backend::confirming().await;
    let routes = "[apps.backend.routes.RenewAppInstance]\nmethod = \"PUT\"\npath = \"/tenants/{instance_id}/renew\"\n\
                  [apps.backend.routes.DeleteAppInstance]\nmethod = \"DELETE\"\npath = \"/{action}/{instance_id}\"\n";
    let gateway = Setup::new(&backend).more(routes).start().await;
    let renew = action("RenewAppInstance").with("instance_id", "a/b?c#d e%é..");
    gateway.order(&renew).await.assert_is(CREATED);
    gateway.order(&action("DeleteAppInstance").with("instance_id", "i-1")).await.assert_is(CREATED);
    gateway.order(&action("ExpireAppInstance")).await.assert_is(CREATED);
    let lines: Vec<_> = backend.requests().iter().map(|seen| format!("{} {}", seen.method, seen.target)).collect();
    assert_eq!(
        lines,
        ["PUT /tenants/a%2Fb%3Fc%23d%20e%25%C3%A9../renew", "DELETE /DeleteAppInstance/i-1", "POST /internal/spi"]
    );
    // A value must not become a direction.
    for dots in [".", ".."] {
        let reply = gateway.order(&action("RenewAppInstance").with("instance_id", dots)).await;
        reply.assert_rejected(400, "field_invalid");
    }
    assert_eq!(backend.count(), 3);
}

#[tokio::test]
async fn repeated_order_numbers_with_other_content_conflict_while_the_first_one_runs() {
    let gate = crate::support::backend::Gate::closed();
    let wait = gate.clone();
    let backend =
        Backend::start(move |_| [vec![crate::support::backend::Step::Wait(wait.clone())], json(CREATED)].concat())
            .await;
    let gateway = std::sync::Arc::new(Gateway::over(&backend).await);
    let order = create();
    let (first, target) = (std::sync::Arc::clone(&gateway), order.target());
    let first = tokio::spawn(async move { first.get(&target).await });
    backend.wait_for(1).await;
    gateway.order(&order.clone().with("user_id", "usr-other")).await.assert_rejected(422, "order_conflict");
    // Its trial run is another delivery; it waits at the same gate.
    let (trial, target) = (std::sync::Arc::clone(&gateway), order.with("debug", "1").target());
    let trial = tokio::spawn(async move { trial.get(&target).await });
    backend.wait_for(2).await;
    gate.open();
    first.await.unwrap().assert_is(CREATED);
    trial.await.unwrap().assert_is(CREATED);
    assert_eq!(backend.count(), 2);
}
