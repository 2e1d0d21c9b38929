//! A marketplace is data: a file beside the configuration is all that a new one takes.

use spigate::dialect::{Dialect, file};

use crate::support::backend::{Backend, json};
use crate::support::gateway::Setup;
use crate::support::order::Order;

/// A marketplace that nobody runs: every choice differs from the built-in ones.
pub(crate) const BAZAAR: &str = r#"
name = "bazaar"
title = "An invented marketplace"

[signature]
parameter = "token"
header = "x-bazaar-token"
mac = "hmac-sha512"
output = "hex"
key = "base64"

[canonical]
prefix = "v1:{method}:"
encoding = "plain"

[time]
parameter = "t"
format = "unix_milliseconds"

[protocol]
action = "event"
debug = "dry_run"
order = "purchase"
instance = "tenant"

[[fields]]
name = "purchase"
type = "text"
sample = "p"

[[fields]]
name = "tenant"
type = "text"
sample = "t"

[[fields]]
name = "plan"
type = "text"
sample = "gold plan"

[[fields]]
name = "dry_run"
type = "boolean"

[actions.opened]
kind = "create"
required = ["purchase", "plan"]
optional = ["dry_run"]
dedupe = "purchase"
reply = "opened"

[actions.closed]
kind = "delete"
required = ["tenant"]
dedupe = "tenant"
reply = "done"

[replies.opened]
success = "optional"
instance_id = "tenant"
sample = '{"tenant":"{new_id}"}'

[replies.opened.on_success]
tenant = { type = "string", required = true, min_length = 1, max_length = 8 }
quota = { type = "number" }

[replies.done]
success = "optional"
sample = '{}'
"#;

const KEY: &str = "c2VjcmV0IGtleQ==";

fn bazaar() -> Dialect {
    file::load(BAZAAR).unwrap()
}

/// A setup with the dialect in a directory, and a key of its form.
fn setup(backend: &Backend) -> Setup {
    Setup::new(backend)
        .top("dialect_dir = \"dialects\"\n")
        .file("dialects/bazaar.toml", BAZAAR)
        .dialect("bazaar")
        .environment("SPIGATE_APPS__0__KEYS__0__VALUE", KEY)
}

#[tokio::test]
async fn an_invented_marketplace_works_without_recompiling() {
    let backend = Backend::start(|_| json(r#"{"tenant":"t-1","quota":7}"#)).await;
    let gateway = setup(&backend).start().await;
    let dialect = bazaar();
    let order = Order::of(&dialect, "opened").key(KEY).with("dry_run", "false").with("plan", "gold = plan; 套餐");
    assert_eq!(order.signature().len(), 128);
    gateway.order(&order).await.assert_is(r#"{"tenant":"t-1","quota":7}"#);
    // Its number of a purchase is what tells copies, wherever their signature stands.
    let header = format!("X-Bazaar-Token: {}\r\n", order.signature().to_uppercase());
    gateway.get_with(&order.unsigned_target(), &header).await.assert_is(r#"{"tenant":"t-1","quota":7}"#);
    let seen = backend.only_request();
    assert_eq!(seen.header("x-spi-dialect"), Some("bazaar"));
    assert_eq!(seen.header("x-spi-action"), Some("opened"));
    let body = seen.json();
    let milliseconds: i64 = order.value("t").parse().unwrap();
    let seconds = jiff::Timestamp::from_second(milliseconds / 1000).unwrap();
    assert_eq!(
        body,
        serde_json::json!({
            "event": "opened", "purchase": order.value("purchase"), "plan": "gold = plan; 套餐", "dry_run": false,
            "t": seconds.to_string(),
        })
    );
    // Its own contract of requests and replies.
    gateway.order(&Order::of(&dialect, "opened").key(KEY).without("plan")).await.assert_rejected(400, "field_missing");
    gateway.order(&order.clone().key("AAAA")).await.assert_rejected(401, "signature_invalid");
    gateway.get(&order.unsigned_target()).await.assert_rejected(401, "signature_missing");
    let old = order.seconds_from_now(-3_600);
    gateway.order(&old).await.assert_rejected(401, "timestamp_expired");
    assert_eq!(backend.count(), 1);
    let closed = gateway.order(&Order::of(&dialect, "closed").key(KEY)).await;
    assert_eq!(closed.status, 200);
}

#[tokio::test]
async fn an_invented_contract_of_replies_is_enforced() {
    let backend = Backend::start(|_| json(r#"{"tenant":"much-too-long"}"#)).await;
    let gateway = setup(&backend).start().await;
    let reply = gateway.order(&Order::of(&bazaar(), "opened").key(KEY)).await;
    reply.assert_rejected(502, "backend_contract");
    assert_eq!(gateway.access_line(&reply).await["rule"], "tenant_length");
}

#[tokio::test]
async fn a_scheme_that_signs_unencoded_values_refuses_what_it_cannot_tell_apart() {
    let backend = Backend::start(|_| json(r#"{"tenant":"t-1"}"#)).await;
    let gateway = setup(&backend).start().await;
    let dialect = bazaar();
    // Both spell the same unencoded text, so the signature of one is that of the other.
    let honest = Order::of(&dialect, "opened").key(KEY).with("a", "1").with("b", "2");
    let forged = honest.clone().without("b").with("a", "1&b=2");
    gateway.get(&forged.target_with(&honest.signature())).await.assert_rejected(401, "signature_invalid");
    let forged = honest.clone().without("a").with("a=1&b", "2").without("b");
    gateway.get(&forged.target_with(&honest.signature())).await.assert_rejected(401, "signature_invalid");
    assert_eq!(backend.count(), 0);
    gateway.order(&honest).await.assert_is(r#"{"tenant":"t-1"}"#);
}

#[tokio::test]
async fn a_dialect_with_problems_or_a_taken_name_is_refused_at_start() {
    let backend = Backend::confirming().await;
    let taken = BAZAAR.replace("name = \"bazaar\"", "name = \"qingcloud-market\"");
    let broken = BAZAAR.replace("hmac-sha512", "md5");
    for (text, message) in [(taken, "already a dialect called qingcloud-market"), (broken, "bazaar.toml: line ")] {
        let setup = Setup::new(&backend).top("dialect_dir = \"dialects\"\n").file("dialects/bazaar.toml", &text);
        let output = setup.check();
        assert_eq!(output.code, 1, "{}", output.text);
        assert!(output.text.contains(message), "{}", output.text);
    }
}

#[tokio::test]
async fn two_parameters_that_are_one_header_are_refused_where_headers_are_sent() {
    let backend = Backend::confirming().await;
    for (twin, header) in [("Dry-Run", "dry-run"), ("EVENT", "event"), ("T", "t"), ("purchasé", "")] {
        let text = BAZAAR.replace("\"plan\"", &format!("\"{twin}\"")).replace("key = \"base64\"", "key = \"text\"");
        let setup = || {
            let setup = Setup::new(&backend).top("dialect_dir = \"dialects\"\n").file("dialects/bazaar.toml", &text);
            setup.dialect("bazaar")
        };
        for (setup, sender) in [
            (setup(), ""),
            (setup().backend("send = \"query\""), ""),
            (setup().backend("send = \"headers\""), "send = \"headers\""),
            (setup().companion(), "[companion]"),
        ] {
            let checked = setup.check();
            let is_refused = !sender.is_empty() && !header.is_empty();
            assert_eq!(checked.code, i32::from(is_refused), "{twin} {sender}: {}", checked.text);
            for words in [
                format!("cannot be used with {sender}: its parameters"),
                format!("are both the header x-spi-param-{header}\n"),
            ] {
                assert_eq!(checked.text.contains(&words), is_refused, "{}", checked.text);
            }
        }
    }
}
