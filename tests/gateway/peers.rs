//! Who may call, by the client's address, and how often it may fail.

use crate::support::backend::{Backend, CREATED};
use crate::support::gateway::{Gateway, Setup};
use crate::support::order::create;

/// A gateway that trusts the test to be a proxy.
fn behind_us(backend: &Backend) -> Setup {
    Setup::new(backend).forwarding_all().environment("SPIGATE_LISTEN__TRUSTED_PROXIES", "127.0.0.1")
}

fn from(client: &str) -> String {
    format!("X-Forwarded-For: {client}\r\n")
}

#[tokio::test]
async fn only_listed_clients_may_call_an_app() {
    let backend = Backend::confirming().await;
    let other = format!(
        "[[apps]]\nname = \"open\"\npath = \"/open\"\ndialect = \"qingcloud-appcenter\"\n\
         keys = [{{ id = \"k\", value = \"{}\" }}]\n[apps.backend]\nurl = \"{}\"\n",
        crate::support::order::KEY,
        backend.url("/open")
    );
    let setup = behind_us(&backend).app("allow_from = [\"192.0.2.0/24\", \"2001:db8::7\"]").more(&other);
    let gateway = setup.start().await;
    for client in ["192.0.2.7", "192.0.2.255:4711", "::ffff:192.0.2.7", "2001:db8::7"] {
        gateway.get_with(&create().target(), &from(client)).await.assert_is(CREATED);
    }
    let count = backend.count();
    for (client, cause) in [
        ("192.0.3.7", "192.0.3.7 is not in the app's allow_from"),
        ("2001:db8::8", "2001:db8::8 is not in the app's allow_from"),
        // What a stranger writes in front does not help.
        ("192.0.2.7, 192.0.3.7", "192.0.3.7 is not in the app's allow_from"),
        ("192.0.2.7, unknown", "its address is not known"),
    ] {
        let reply = gateway.get_with(&create().target(), &from(client)).await;
        reply.assert_rejected(403, "client_not_allowed");
        assert!(!reply.text().contains("192.0"), "{}", reply.text());
        let line = gateway.access_line(&reply).await;
        assert!(line["cause"].as_str().unwrap().contains(cause), "{line}");
        assert_eq!((&line["outcome"], &line["level"]), (&"rejected".into(), &"INFO".into()));
    }
    // Before anything is verified; and the proxy itself is in no list.
    gateway.get_with("/spi?x=1", &from("192.0.3.7")).await.assert_rejected(403, "client_not_allowed");
    gateway.order(&create()).await.assert_rejected(403, "client_not_allowed");
    let both = format!("{}Forwarded: for=192.0.3.7\r\n", from("192.0.2.7"));
    gateway.get_with(&create().target(), &both).await.assert_rejected(403, "client_not_allowed");
    assert_eq!(backend.count(), count);
    assert_eq!(gateway.metric("spigate_rejections_total{app=\"crm\",code=\"client_not_allowed\"}").await, 7.0);
    // It is a matter of each app.
    gateway.get_with(&create().path("/open").target(), &from("192.0.3.7")).await.assert_is(CREATED);
}

#[tokio::test]
async fn a_strangers_claim_opens_nothing() {
    let backend = Backend::confirming().await;
    let gateway = Setup::new(&backend).app("allow_from = [\"192.0.2.0/24\"]").start().await;
    let claims = "X-Forwarded-For: 192.0.2.7\r\nForwarded: for=192.0.2.7\r\nX-Real-IP: 192.0.2.7\r\n";
    gateway.get_with(&create().target(), claims).await.assert_rejected(403, "client_not_allowed");
    assert_eq!(backend.count(), 0);
    let gateway = Setup::new(&backend).app("allow_from = [\"127.0.0.1\"]").start().await;
    gateway.get_with(&create().target(), claims).await.assert_is(CREATED);
}

#[tokio::test]
async fn lists_that_will_not_do_are_warned_of_or_refused() {
    let backend = Backend::confirming().await;
    let checked = Setup::new(&backend).app("allow_from = [\"192.0.2.0/24\", \"nowhere\", \"10.0.0.0/33\"]").check();
    assert_eq!(checked.code, 1, "{}", checked.text);
    for path in ["apps[0].allow_from[1]", "apps[0].allow_from[2]"] {
        assert!(checked.text.contains(path), "{}", checked.text);
    }
    let checked = Setup::new(&backend).app("allow_from = [\"192.0.2.0/24\"]").check();
    assert_eq!(checked.code, 0, "{}", checked.text);
    let believing = Setup::new(&backend).environment("SPIGATE_LISTEN__TRUSTED_PROXIES", "0.0.0.0/0").start().await;
    believing
        .line("the warning", |line| line["message"].as_str().is_some_and(|text| text.contains("believes everybody")))
        .await;
    let warning = "apps[0].allow_from: the listener is reached from this machine only";
    assert!(checked.text.contains(warning), "{}", checked.text);
}

/// Sends failing requests until one is told to wait; how many were told their own reason.
async fn fail_until_limited(gateway: &Gateway, headers: &str) -> usize {
    for count in 0..100 {
        let reply = gateway.get_with(&create().key("wrong").target(), headers).await;
        if reply.status == 429 {
            reply.assert_rejected(429, "too_many_failures");
            let wait: u32 = reply.header("retry-after").unwrap().parse().unwrap();
            assert!((1..=60).contains(&wait));
            return count;
        }
        reply.assert_rejected(401, "signature_invalid");
    }
    panic!("never limited");
}

#[tokio::test]
async fn who_fails_too_often_is_told_less_and_still_served() {
    let backend = Backend::confirming().await;
    // A minute's worth comes in meanwhile, but slowly.
    let gateway = behind_us(&backend).top("[limits]\nfailed_per_minute = 10\n").start().await;
    let flooder = from("192.0.2.7");
    let own = fail_until_limited(&gateway, &flooder).await;
    assert!((10..20).contains(&own), "{own}");
    // The platform's way in may be the same proxy, or somebody may flood in its name.
    for _ in 0..20 {
        gateway.get_with(&create().target(), &flooder).await.assert_is(CREATED);
    }
    // Every way of failing is one of them, and others are not.
    let old = create().seconds_from_now(-4_000);
    let none = create().unsigned_target();
    for target in [old.target(), none, "/spi?a=%zz".into(), format!("{}&action=x", create().target())] {
        let reply = gateway.get_with(&target, &flooder).await;
        assert!([429, 401, 400].contains(&reply.status));
        if reply.status != 429 {
            // The rate allows one now and then.
            fail_until_limited(&gateway, &flooder).await;
        }
    }
    gateway.get_with("/nowhere", &flooder).await.assert_rejected(404, "unknown_app");
    let incomplete = create().with("action", "made-up").target();
    gateway.get_with(&incomplete, &flooder).await.assert_rejected(400, "unknown_action");
    // Everybody has a rate of their own; of IPv6, every network of 64 bits.
    // Two clients share one by chance, once in sixteen thousand times.
    let mut told = 0;
    for other in ["192.0.2.8", "192.0.2.9", "198.51.100.7", "2001:db8::7"] {
        let reply = gateway.get_with(&create().key("wrong").target(), &from(other)).await;
        told += usize::from(reply.status == 401);
    }
    assert!(told >= 3, "{told}");
    for network in 1..=4 {
        let own = fail_until_limited(&gateway, &from(&format!("2001:db8:0:{network}::1"))).await;
        let neighbours = fail_until_limited(&gateway, &from(&format!("2001:db8:0:{network}:8000::2"))).await;
        assert!(neighbours < 10, "{neighbours}");
        if own >= 10 {
            return assert!(own < 20, "{own}");
        }
    }
    panic!("no network has a rate of its own");
}

#[tokio::test]
async fn a_flood_of_failures_is_not_a_flood_of_lines() {
    let backend = Backend::confirming().await;
    let setup = Setup::new(&backend).top("[limits]\nfailed_per_minute = 1\n[shutdown]\ndelay = \"0s\"\n");
    let gateway = setup.start().await;
    const FLOOD: usize = 200;
    for _ in 0..FLOOD {
        gateway.order(&create().key("wrong")).await;
    }
    gateway.order(&create()).await.assert_is(CREATED);
    let series = |code: &str| format!("spigate_rejections_total{{app=\"crm\",code=\"{code}\"}}");
    let (own, limited) =
        (gateway.metric(&series("signature_invalid")).await, gateway.metric(&series("too_many_failures")).await);
    // Counted is every one of them.
    assert_eq!(own + limited, 200.0);
    let output = gateway.stop().await;
    let lines = |code: &str| output.matches(&format!("\"code\":\"{code}\"")).count();
    assert_eq!(lines("signature_invalid") as f64, own, "{output}");
    // One a minute; the test may take longer than that on a machine that is very slow.
    assert!((1..5).contains(&lines("too_many_failures")), "{output}");
    assert!(output.contains("signature_invalid this time"), "{output}");
    assert!(output.lines().count() < FLOOD / 4, "{output}");
}

#[tokio::test]
async fn failures_are_not_limited_unless_the_operator_says_so() {
    let backend = Backend::confirming().await;
    let gateway = Gateway::over(&backend).await;
    for _ in 0..100 {
        gateway.order(&create().key("wrong")).await.assert_rejected(401, "signature_invalid");
    }
}
