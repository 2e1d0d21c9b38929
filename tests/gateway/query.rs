//! The query is read strictly: nothing is repaired, cut or guessed.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::support::backend::{Backend, CREATED};
use crate::support::gateway::{Gateway, Setup};
use crate::support::order::{action, create, market};

#[tokio::test]
async fn a_semicolon_is_data() {
    let backend = Backend::confirming().await;
    let gateway = Gateway::over(&backend).await;
    let order = create().with("note", "a=1;b=2").with("x;y", "z");
    // Raw on the wire, as some clients leave it.
    let target = order.target().replace("%3B", ";");
    assert!(target.contains(";b"));
    gateway.get(&target).await.assert_is(CREATED);
    let body = backend.only_request().json();
    assert_eq!((&body["note"], &body["x;y"]), (&"a=1;b=2".into(), &"z".into()));
}

#[tokio::test]
async fn nul_and_line_ends_are_refused_in_names_and_values() {
    let backend = Backend::confirming().await;
    let gateway = Gateway::over(&backend).await;
    for text in ["\0", "\r", "\n", "a\r\nX-Spi-App: other", "a\0b"] {
        for order in [create().with("note", text), create().with(text, "1"), create().with("user_id", text)] {
            gateway.order(&order).await.assert_rejected(400, "malformed_request");
        }
    }
    assert_eq!(backend.count(), 0);
}

#[tokio::test]
async fn bad_escapes_and_bytes_that_are_no_utf8_are_refused_and_never_replaced() {
    let backend = Backend::confirming().await;
    let gateway = Gateway::over(&backend).await;
    let replaced = create().with("note", "\u{fffd}");
    for wrong in [
        "%C0%AF",
        "%FF",
        "%80",
        "%ED%A0%80",
        "%ED%B0%80",
        "%F4%90%80%80",
        "%E5%A5",
        "%",
        "%2",
        "%zz",
        "%u5957",
        "%%",
        "a%0",
        "%+1",
    ] {
        // Signed as a lenient reader would have read it, and as an unsigned extra.
        let lenient = replaced.target().replace("%EF%BF%BD", wrong);
        assert!(lenient.contains(wrong));
        gateway.get(&lenient).await.assert_rejected(400, "malformed_request");
        gateway.get(&format!("{}&{wrong}=1", create().target())).await.assert_rejected(400, "malformed_request");
    }
    assert_eq!(backend.count(), 0);
    // U+FFFD itself is a character like any other.
    gateway.order(&replaced).await.assert_is(CREATED);
}

#[tokio::test]
async fn too_many_parameters_are_refused_and_never_cut() {
    let backend = Backend::confirming().await;
    let gateway = Gateway::over(&backend).await;
    let order = create();
    let own = order.query().split('&').count();
    let with = |count: usize| (own..count).fold(order.clone(), |order, n| order.and(&format!("x{n}"), "1"));
    gateway.order(&with(65)).await.assert_rejected(400, "malformed_request");
    // A reader that stops at 64 would find a signature that verifies.
    let cut = format!("{}&x=1", with(64).target());
    gateway.get(&cut).await.assert_rejected(400, "malformed_request");
    assert_eq!(backend.count(), 0);
    gateway.order(&with(64)).await.assert_is(CREATED);
    let body = backend.only_request().json();
    // All but the signature.
    assert_eq!(body.as_object().unwrap().len(), 63);
}

#[tokio::test]
async fn a_query_over_the_limit_is_refused_and_one_at_the_limit_arrives_whole() {
    let backend = Backend::confirming().await;
    let gateway = Gateway::over(&backend).await;
    let order = create();
    let room = 16 * 1024 - order.clone().with("note", "").query().len();
    // The signature's length on the wire varies with its `+` and `/`: the number finds a note
    // whose query has exactly this length.
    let of_length = |length: usize| {
        let notes = (0..10_000).map(|number| format!("{number:04}{}", "n".repeat(length + room - 16 * 1024 - 4)));
        notes.map(|note| order.clone().with("note", &note)).find(|order| order.query().len() == length).unwrap()
    };
    gateway.order(&of_length(16 * 1024 + 1)).await.assert_rejected(414, "uri_too_long");
    assert_eq!(backend.count(), 0);
    let fits = of_length(16 * 1024);
    gateway.order(&fits).await.assert_is(CREATED);
    assert_eq!(backend.only_request().json()["note"], fits.value("note"));
}

#[tokio::test]
async fn a_target_over_64_kib_is_refused_with_414() {
    let backend = Backend::confirming().await;
    let gateway = Gateway::over(&backend).await;
    let target = create().with("note", &"n".repeat(66 * 1024)).target();
    let replies = gateway.raw(crate::support::client::get(&target, "")).await;
    assert_eq!(replies.iter().map(|reply| reply.status).collect::<Vec<_>>(), [414]);
    assert_eq!(backend.count(), 0);
}

#[tokio::test]
async fn a_period_has_one_to_nine_digits_and_is_not_zero() {
    let backend = Backend::confirming().await;
    let gateway = Gateway::forwarding_all(&backend).await;
    for wrong in [
        "0_day",
        "000000000_day",
        "1000000000_day",
        "-1_day",
        "+1_day",
        "1.5_month",
        "1_week",
        "1_DAY",
        "1_days",
        "1",
        "day",
        "_day",
        "1_",
        "1__day",
        " 1_day",
        "1_day ",
        "１_day",
    ] {
        let reply = gateway.order(&create().with("period", wrong)).await;
        reply.assert_rejected(400, "field_invalid");
        assert!(reply.text().contains("period"), "{}", reply.text());
    }
    assert_eq!(backend.count(), 0);
    for (period, value) in [("1_day", 1), ("999999999_year", 999_999_999), ("007_month", 7)] {
        gateway.order(&create().with("period", period)).await.assert_is(CREATED);
        assert_eq!(backend.requests().last().unwrap().json()["period"]["value"], value);
    }
}

#[tokio::test]
async fn base64_that_is_not_exactly_base64_is_refused_by_the_name_of_its_field() {
    let backend = Backend::confirming().await;
    let gateway = Gateway::over(&backend).await;
    let good = STANDARD.encode("套餐~?>");
    for wrong in [
        good.trim_end_matches('=').to_owned() + "===",
        "5aWX6aSQ5ZCN56ewMQ".into(),
        // Other trailing bits.
        "5aWX6aSQ5ZCN56ewMR==".into(),
        "5aWX6aSQ 5ZCN56ewMQ==".into(),
        "5aWX6aSQ\t5ZCN56ewMQ==".into(),
        " 5aWX6aSQ5ZCN56ewMQ==".into(),
        "fn5-_w==".into(),
        "plain text".into(),
        "=".into(),
        // 0xFF, an overlong slash, a surrogate.
        STANDARD.encode(b"\xff"),
        STANDARD.encode(b"\xc0\xaf"),
        STANDARD.encode(b"\xed\xa0\x80"),
    ] {
        for field in ["spec", "spec_package", "cloud_info"] {
            let reply = gateway.order(&create().with(field, &wrong)).await;
            reply.assert_rejected(400, "field_invalid");
            let message = reply.json()["message"].as_str().unwrap().to_owned();
            assert!(message.starts_with(&format!("{field} ")), "{message}");
            assert!(!message.contains(&wrong) || wrong == "=", "the value is shown: {message}");
        }
    }
    assert_eq!(backend.count(), 0);
}

#[tokio::test]
async fn cloud_info_must_be_a_json_object_without_duplicate_keys() {
    let backend = Backend::confirming().await;
    let gateway = Gateway::over(&backend).await;
    for document in [
        "",
        "[]",
        "null",
        "\"{}\"",
        "7",
        "{",
        "{}x",
        "\u{feff}{}",
        r#"{"a":1,"a":2}"#,
        r#"{"a":{"b":1,"\u0062":2}}"#,
        r#"{"a":1e400}"#,
        r#"{"a":"\ud800"}"#,
        "{'a':1}",
    ] {
        let reply = gateway.order(&create().with("cloud_info", &STANDARD.encode(document))).await;
        reply.assert_rejected(400, "field_invalid");
        assert!(reply.text().contains("cloud_info"), "{document}: {}", reply.text());
    }
    let deep = format!("{{\"a\":{}1{}}}", "[".repeat(2_000), "]".repeat(2_000));
    let reply = gateway.order(&create().with("cloud_info", &STANDARD.encode(deep))).await;
    reply.assert_rejected(400, "field_invalid");
    assert_eq!(backend.count(), 0);
}

#[tokio::test]
async fn an_empty_required_or_dedupe_field_is_refused_by_its_name() {
    let backend = Backend::confirming().await;
    let gateway = Gateway::over(&backend).await;
    for field in ["user_id", "app_id", "spec", "spec_package", "period", "cloud_info", "order_id", "action"] {
        let reply = gateway.order(&create().with(field, "")).await;
        reply.assert_rejected(400, "field_invalid");
        assert!(reply.text().contains(field), "{}", reply.text());
    }
    for name in ["ExpireAppInstance", "DeleteAppInstance", "RenewAppInstance"] {
        let reply = gateway.order(&action(name).with("instance_id", "")).await;
        reply.assert_rejected(400, "field_invalid");
        assert!(reply.text().contains("instance_id"), "{}", reply.text());
    }
    for field in ["user_id", "app_id", "spec", "period", "cloud_info", "action"] {
        let reply = gateway.order(&create().without(field)).await;
        reply.assert_rejected(400, "field_missing");
        assert!(reply.text().contains(field), "{}", reply.text());
    }
    gateway.order(&create().with("action", "CreateInstance")).await.assert_rejected(400, "unknown_action");
    assert_eq!(backend.count(), 0);
}

#[tokio::test]
async fn what_the_platforms_own_examples_lack_is_accepted_and_counted_or_strictly_refused() {
    let backend = Backend::confirming().await;
    let lenient = Gateway::over(&backend).await;
    let sparse = || create().without("order_id").without("spec_package");
    lenient.order(&sparse()).await.assert_is(CREATED);
    for field in ["order_id", "spec_package"] {
        let series =
            format!("spigate_contract_warnings_total{{action=\"CreateAppInstance\",app=\"crm\",field=\"{field}\"}}");
        assert_eq!(lenient.metric(&series).await, 1.0, "{series}");
    }
    let strict = Setup::new(&backend).app("contract = \"strict\"").start().await;
    strict.order(&sparse()).await.assert_rejected(400, "field_missing");
    assert_eq!(backend.count(), 1);
}

#[tokio::test]
async fn contract_errors_are_told_to_nobody_who_has_no_key() {
    let backend = Backend::confirming().await;
    let gateway = Setup::new(&backend).dialect("qingcloud-market").start().await;
    for order in [market("CreateInstance").with("action", "Nope"), market("CreateInstance").without("spec")] {
        gateway.order(&order.key("wrong")).await.assert_rejected(401, "signature_invalid");
    }
    assert_eq!(backend.count(), 0);
}
