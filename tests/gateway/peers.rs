//! Who may call, by the client's address.

use crate::support::backend::{Backend, CREATED};
use crate::support::gateway::Setup;
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
    let warning = "apps[0].allow_from: the listener is reached from this machine only";
    assert!(checked.text.contains(warning), "{}", checked.text);
}
