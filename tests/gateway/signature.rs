//! Only who holds a key of the app gets through, and only now.

use crate::support::backend::{Backend, CREATED, json};
use crate::support::client::{Connection, get, one_reply};
use crate::support::gateway::{Gateway, Setup};
use crate::support::order::{KEY, Order, action, create, encode, market, now};

#[tokio::test]
async fn a_signed_request_is_delivered_and_the_reply_passed_on_unchanged() {
    let backend = Backend::confirming().await;
    let gateway = Gateway::over(&backend).await;
    for name in ["CreateAppInstance", "RenewAppInstance", "UpgradeAppInstance", "ExpireAppInstance"] {
        gateway.order(&action(name)).await.assert_is(CREATED);
    }
    gateway.order(&action("DeleteAppInstance")).await.assert_is(CREATED);
    gateway.order(&action("TestConnection")).await.assert_is(CREATED);
    assert_eq!(backend.count(), 6);
}

#[tokio::test]
async fn a_signature_that_is_not_exactly_the_signature_is_refused() {
    let backend = Backend::confirming().await;
    let gateway = Gateway::over(&backend).await;
    let order = create();
    let good = order.signature();
    let bytes: Vec<u8> = good.bytes().collect();
    let mut wrong: Vec<String> = (0..bytes.len() - 1)
        .map(|position| {
            // The neighbour in the alphabet: another bit of the MAC at every position. The last
            // digit before the padding would only differ in trailing bits.
            let mut text = bytes.clone();
            text[position] = if text[position] == b'A' { b'B' } else { b'A' };
            String::from_utf8(text).unwrap()
        })
        .filter(|text| *text != good)
        .collect();
    let unpadded = good.trim_end_matches('=');
    wrong.extend([
        String::new(),
        unpadded.to_owned(),
        good[..20].to_owned(),
        good[..40].to_owned(),
        format!("{good}="),
        format!("{good}AAAA"),
        format!("{good}{good}"),
        format!(" {good}"),
        format!("{good} "),
        format!("{good}\t"),
        "0f".repeat(32),
        good.to_lowercase(),
        // The same bytes in the url-safe alphabet, and in a spelling with other trailing bits.
        format!("{}-_", &good[..42]),
        "=".repeat(44),
        "é".to_owned(),
    ]);
    for signature in wrong {
        gateway.get(&order.target_with(&signature)).await.assert_rejected(401, "signature_invalid");
        let in_header = format!("app_signature: {signature}\r\n");
        // Leading and trailing white space is not part of a header's value.
        if signature.trim() == good || !signature.is_ascii() || signature.is_empty() {
            continue;
        }
        let reply = gateway.get_with(&order.unsigned_target(), &in_header).await;
        reply.assert_rejected(401, "signature_invalid");
    }
    gateway.get(&order.unsigned_target()).await.assert_rejected(401, "signature_missing");
    assert_eq!(backend.count(), 0);
    gateway.get(&order.target_with(&good)).await.assert_is(CREATED);
}

#[tokio::test]
async fn url_safe_base64_of_a_true_signature_is_refused() {
    let backend = Backend::confirming().await;
    let gateway = Gateway::over(&backend).await;
    // A signature that has a digit which the alphabets spell differently.
    let order = std::iter::repeat_with(create).find(|order| order.signature().contains(['+', '/'])).unwrap();
    let url_safe = order.signature().replace('+', "-").replace('/', "_");
    gateway.get(&order.target_with(&url_safe)).await.assert_rejected(401, "signature_invalid");
    assert_eq!(backend.count(), 0);
    gateway.order(&order).await.assert_is(CREATED);
}

#[tokio::test]
async fn the_signature_may_travel_in_the_query_the_header_or_equally_in_both() {
    let backend = Backend::confirming().await;
    let gateway = Gateway::forwarding_all(&backend).await;
    let order = create();
    let header = |signature: &str| format!("app_signature: {signature}\r\n");
    gateway.get_with(&order.unsigned_target(), &header(&order.signature())).await.assert_is(CREATED);
    gateway.get_with(&order.target(), &header(&order.signature())).await.assert_is(CREATED);
    assert_eq!(backend.count(), 2);

    let other = create().signature();
    let different = [
        gateway.get_with(&order.target(), &header(&other)).await,
        gateway.get_with(&order.target_with(&other), &header(&order.signature())).await,
        gateway.get_with(&order.target(), &header("")).await,
        gateway.get_with(&order.unsigned_target(), &header(&order.signature()).repeat(2)).await,
    ];
    for reply in different {
        reply.assert_rejected(400, "malformed_request");
    }
    // Only the name with the underscore is the platform's.
    for name in ["app-signature", "app.signature", "appsignature", "signature"] {
        let header = format!("{name}: {}\r\n", order.signature());
        gateway.get_with(&order.unsigned_target(), &header).await.assert_rejected(401, "signature_missing");
    }
    assert_eq!(backend.count(), 2);
}

#[tokio::test]
async fn a_header_is_no_place_for_a_signature_where_the_dialect_names_none() {
    let backend = Backend::confirming().await;
    let gateway = Setup::new(&backend).dialect("qingcloud-market").start().await;
    let order = market("TestConnection");
    let header = format!("app_signature: {}\r\n", order.signature());
    gateway.get_with(&order.unsigned_target(), &header).await.assert_rejected(401, "signature_missing");
    assert_eq!(backend.count(), 0);
}

#[tokio::test]
async fn a_protocol_parameter_that_stands_twice_is_refused_in_every_spelling() {
    let backend = Backend::confirming().await;
    let gateway = Gateway::over(&backend).await;
    let order = create();
    let mut twice: Vec<_> = [
        order.clone().and("action", "CreateAppInstance"),
        order.clone().and("order_id", "another"),
        order.clone().and("time_stamp", order.value("time_stamp")),
        order.clone().and("instance_id", "a").and("instance_id", "b"),
        order.clone().and("debug", "1").and("debug", "1"),
    ]
    .iter()
    .map(Order::target)
    .collect();
    let signature = encode(&order.signature());
    twice.push(format!("{}&signature={signature}", order.target()));
    twice.push(format!("{}&signature=", order.target()));
    // The signer sees one name twice, whatever the spelling on the wire.
    twice.push(order.clone().and("action", "CreateAppInstance").target().replacen("action=", "%61ction=", 1));
    twice.push(format!("{}&%73ignature={signature}", order.target()));
    for target in twice {
        gateway.get(&target).await.assert_rejected(400, "malformed_request");
    }
    assert_eq!(backend.count(), 0);
    // A name that nobody documented may.
    gateway.order(&order.and("note", "1").and("note", "2")).await.assert_is(CREATED);
}

#[tokio::test]
async fn a_time_outside_the_window_is_refused_on_both_sides() {
    let backend = Backend::confirming().await;
    let setup =
        Setup::new(&backend).forwarding_all().more("[apps.freshness]\nmax_age = \"10m\"\nmax_future = \"5m\"\n");
    let gateway = setup.start().await;
    for (seconds, expected) in [
        (-601, Some("timestamp_expired")),
        (-86_400, Some("timestamp_expired")),
        (-1_500_000_000, Some("timestamp_expired")),
        // A little more than the edge: the clock goes on between signing and checking.
        (340, Some("timestamp_in_future")),
        (86_400 * 365, Some("timestamp_in_future")),
        (86_400 * 365 * 7000, Some("timestamp_in_future")),
        (-540, None),
        (299, None),
    ] {
        let reply = gateway.order(&create().seconds_from_now(seconds)).await;
        match expected {
            Some(code) => reply.assert_rejected(401, code),
            None => reply.assert_is(CREATED),
        }
    }
    assert_eq!(backend.count(), 2);
}

#[tokio::test]
async fn a_time_is_part_of_what_is_signed() {
    let backend = Backend::confirming().await;
    let gateway = Gateway::over(&backend).await;
    let order = create().seconds_from_now(-2);
    let later = order.clone().seconds_from_now(-1);
    gateway.get(&later.target_with(&order.signature())).await.assert_rejected(401, "signature_invalid");
    assert_eq!(backend.count(), 0);
}

#[tokio::test]
async fn a_signed_time_of_any_other_form_is_refused() {
    let backend = Backend::confirming().await;
    let gateway = Gateway::over(&backend).await;
    let order = create();
    let time = order.value("time_stamp").to_owned();
    let (date, clock) = (&time[..10], &time[11..19]);
    for wrong in [
        String::new(),
        format!("{date}T{clock}"),
        format!("{date} {clock}Z"),
        format!("{date}t{clock}z"),
        format!("{date}T{clock}.000Z"),
        format!("{date}T{clock}+00:00"),
        format!("{date}T{clock}Z[UTC]"),
        format!(" {time}"),
        format!("{time} "),
        format!("+{time}"),
        format!("{date}T24:00:00Z"),
        "2016-12-31T23:59:60Z".into(),
        "2024-02-30T00:00:00Z".into(),
        format!("{date}T{}Z", &clock[..5]),
        now().as_second().to_string(),
        "now".into(),
    ] {
        gateway.order(&order.clone().with("time_stamp", &wrong)).await.assert_rejected(401, "timestamp_invalid");
    }
    gateway.order(&order.clone().without("time_stamp")).await.assert_rejected(401, "timestamp_missing");
    assert_eq!(backend.count(), 0);
}

#[tokio::test]
async fn seconds_of_any_other_form_are_refused() {
    let backend = Backend::start(|_| json(r#"{"success":true}"#)).await;
    let gateway = Setup::new(&backend).dialect("qingcloud-market").start().await;
    let seconds = now().as_second();
    for wrong in [
        String::new(),
        format!("{seconds}.0"),
        format!("+{seconds}"),
        format!(" {seconds}"),
        format!("{seconds} "),
        format!("0{seconds}"),
        format!("{seconds}000"),
        format!("-{seconds}"),
        "1e9".into(),
        "0x60000000".into(),
        create().value("time_stamp").into(),
    ] {
        let order = market("TestConnection").with("timestamp", &wrong);
        gateway.order(&order).await.assert_rejected(401, "timestamp_invalid");
    }
    assert_eq!(backend.count(), 0);
    gateway.order(&market("TestConnection")).await.assert_is(r#"{"success":true}"#);
}

#[tokio::test]
async fn an_encoded_delimiter_and_a_real_one_are_two_requests() {
    let backend = Backend::confirming().await;
    let gateway = Gateway::over(&backend).await;
    let joined = create().with("a", "1&b=2");
    let split = joined.clone().with("a", "1").with("b", "2");
    gateway.get(&split.target_with(&joined.signature())).await.assert_rejected(401, "signature_invalid");
    gateway.get(&joined.target_with(&split.signature())).await.assert_rejected(401, "signature_invalid");
    assert_eq!(backend.count(), 0);
    gateway.order(&joined).await.assert_is(CREATED);
    assert_eq!(backend.only_request().json()["a"], "1&b=2");
}

#[tokio::test]
async fn a_parameter_that_was_not_signed_is_refused() {
    let backend = Backend::confirming().await;
    let gateway = Gateway::over(&backend).await;
    let order = create();
    for extra in ["&debug=true", "&x=", "&x", "&=", "&utm_source=a", "&%20"] {
        gateway.get(&format!("{}{extra}", order.target())).await.assert_rejected(401, "signature_invalid");
    }
    let removed = order.clone().without("spec_package");
    gateway.get(&removed.target_with(&order.signature())).await.assert_rejected(401, "signature_invalid");
    let changed = order.clone().with("user_id", "usr-other");
    gateway.get(&changed.target_with(&order.signature())).await.assert_rejected(401, "signature_invalid");
    assert_eq!(backend.count(), 0);
    // Order on the wire and empty pairs are no part of what is signed.
    let reversed = order.query().split('&').rev().collect::<Vec<_>>().join("&&");
    gateway.get(&format!("/spi?&{reversed}&")).await.assert_is(CREATED);
}

#[tokio::test]
async fn the_signature_of_a_get_opens_no_other_method() {
    let backend = Backend::confirming().await;
    let gateway = Gateway::over(&backend).await;
    let order = create();
    let mut head = Connection::open(gateway.listen).await.bodiless();
    head.send(get(&order.target_with(&order.signature_of("HEAD")), "").replacen("GET", "HEAD", 1)).await;
    let statuses: Vec<_> = head.until_closed().await.iter().map(|reply| reply.status).collect();
    assert_eq!(statuses, [405]);
    for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "get", "G"] {
        for target in [order.target(), order.target_with(&order.signature_of(method))] {
            let request = get(&target, "").replacen("GET", method, 1);
            let mut connection = Connection::open(gateway.listen).await;
            connection.send(&request).await;
            connection.reply().await.unwrap().assert_rejected(405, "method_not_allowed");
            assert!(connection.until_closed().await.is_empty());
        }
    }
    assert_eq!(backend.count(), 0);
}

#[tokio::test]
async fn the_signature_for_one_app_does_not_open_another() {
    let backend = Backend::confirming().await;
    let other_key = "another-key-of-another-app";
    let other = format!(
        "[[apps]]\nname = \"other\"\npath = \"/other\"\ndialect = \"qingcloud-appcenter\"\n\
         keys = [{{ id = \"o\", value = \"{other_key}\" }}]\nbackend = {{ url = \"{0}\" }}\n\
         [[apps]]\nname = \"hosted\"\nhost = \"shop.example\"\npath = \"/hosted\"\ndialect = \"qingcloud-appcenter\"\n\
         keys = [{{ id = \"h\", value = \"{KEY}\" }}]\nbackend = {{ url = \"{0}\" }}\n",
        backend.url("/other")
    );
    let gateway = Setup::new(&backend).more(&other).start().await;
    gateway.order(&create().path("/other")).await.assert_rejected(401, "signature_invalid");
    gateway.order(&create().key(other_key)).await.assert_rejected(401, "signature_invalid");
    gateway.order(&create().path("/nowhere")).await.assert_rejected(404, "unknown_app");
    gateway.order(&create().path("/hosted")).await.assert_rejected(404, "unknown_app");
    assert_eq!(backend.count(), 0);

    gateway.order(&create().path("/other").key(other_key)).await.assert_is(CREATED);
    let request = format!("GET {} HTTP/1.1\r\nHost: Shop.Example:8080\r\n\r\n", create().path("/hosted").target());
    one_reply(gateway.listen, request).await.assert_is(CREATED);
    let apps: Vec<_> = backend.requests().iter().map(|seen| seen.header("x-spi-app").unwrap().to_owned()).collect();
    assert_eq!(apps, ["other", "hosted"]);
}

#[tokio::test]
async fn any_active_key_verifies_and_a_retired_one_does_not() {
    let backend = Backend::confirming().await;
    // The first key stands in the configuration of every test.
    let setup = Setup::new(&backend).forwarding_all().environment("SPIGATE_APPS__0__KEYS__1__ID", "next");
    let setup = setup.environment("SPIGATE_APPS__0__KEYS__1__VALUE", "next-key");
    let setup = setup.environment("SPIGATE_APPS__0__KEYS__2__ID", "old");
    let setup = setup.environment("SPIGATE_APPS__0__KEYS__2__VALUE", "old-key");
    let gateway = setup.environment("SPIGATE_APPS__0__KEYS__2__STATE", "retired").start().await;
    gateway.order(&create()).await.assert_is(CREATED);
    gateway.order(&create().key("next-key")).await.assert_is(CREATED);
    gateway.order(&create().key("old-key")).await.assert_rejected(401, "signature_invalid");
    let keys: Vec<_> = backend.requests().iter().map(|seen| seen.header("x-spi-key-id").unwrap().to_owned()).collect();
    assert_eq!(keys, ["k-2026", "next"]);
}
