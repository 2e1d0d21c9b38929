//! Several public listeners, and Unix sockets.

use std::os::unix::fs::PermissionsExt as _;

use tokio::net::UnixStream;

use crate::support::Directory;
use crate::support::authority::Authority;
use crate::support::backend::{Backend, CREATED};
use crate::support::client::{Connection, get, one_reply};
use crate::support::gateway::{Gateway, Setup};
use crate::support::order::create;
use crate::support::tls_client::TlsClient;

/// The address that a listener says it listens at.
async fn address(gateway: &Gateway, name: &str) -> String {
    let line = gateway.line(name, |line| line["message"] == "listening" && line["listener"] == name).await;
    line["address"].as_str().unwrap().to_owned()
}

async fn order_by(path: &std::path::Path) {
    let mut connection = Connection::over(UnixStream::connect(path).await.unwrap());
    for _ in 0..2 {
        connection.send(get(&create().target(), "")).await;
        connection.reply().await.unwrap().assert_is(CREATED);
    }
}

#[tokio::test]
async fn orders_come_by_every_listener_and_the_limit_of_connections_is_one() {
    let (authority, backend, directory) = (Authority::new(), Backend::confirming().await, Directory::new());
    let certified = authority.certify(&["localhost"]);
    let socket = directory.path().join("spi.sock");
    let setup = Setup::new(&backend).forwarding_all().file("tls.crt", &certified.certificate).top(&format!(
        "[limits]\nconnections = 3\n
        [[listeners]]\naddress = \"127.0.0.1:0\"\ntls = {{ certificate = \"tls.crt\", key = \"tls.key\" }}
        [[listeners]]\naddress = \"unix:{}\"\n",
        socket.display()
    ));
    let gateway = setup.file("tls.key", &certified.key).start().await;
    gateway.order(&create()).await.assert_is(CREATED);
    assert_eq!(address(&gateway, "listen").await, gateway.listen.to_string());
    let second = address(&gateway, "listeners[0]").await.parse().unwrap();
    let stream = TlsClient::trusting(&authority).connect(second).await.unwrap();
    let mut encrypted = Connection::over(stream);
    encrypted.send(get(&create().target(), "")).await;
    encrypted.reply().await.unwrap().assert_is(CREATED);
    order_by(&socket).await;
    let expiry = "spigate_tls_certificate_expiry_timestamp_seconds{certificate=\"tls.crt\",listener=\"listeners[0]\"}";
    assert!(gateway.metric(expiry).await > 0.0);

    gateway.wait_for_metric("spigate_connections", |connections| connections == 1.0).await;
    let kept = [Connection::open(gateway.listen).await, Connection::open(gateway.listen).await];
    gateway.wait_for_metric("spigate_connections", |connections| connections == 3.0).await;
    let mut refused = Connection::over(UnixStream::connect(&socket).await.unwrap());
    assert_eq!(refused.reply().await.unwrap().status, 503);
    drop(kept);
}

#[tokio::test]
async fn a_unix_socket_is_its_groups_and_is_gone_after_the_end() {
    let (backend, directory) = (Backend::confirming().await, Directory::new());
    let socket = directory.path().join("spi.sock");
    let listener = format!("[[listeners]]\naddress = \"unix:{}\"\n", socket.display());
    let shutdown = "[shutdown]\ndelay = \"0s\"\n";
    let setup = || Setup::new(&backend).forwarding_all().top(shutdown).top(&listener);
    let mut gateway = setup().start().await;
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o660);
    order_by(&socket).await;
    let reply = {
        let mut connection = Connection::over(UnixStream::connect(&socket).await.unwrap());
        connection.send(get(&create().target(), "")).await;
        connection.reply().await.unwrap()
    };
    assert_eq!(gateway.access_line(&reply).await["client"], "0.0.0.0");

    // Another one does not take it away.
    let refusal = setup().refusal().await;
    assert_eq!(refusal.code, 2, "{}", refusal.text);
    assert!(refusal.text.contains("another process listens on this socket"), "{}", refusal.text);
    order_by(&socket).await;

    // A file that is left over is no obstacle.
    gateway.kill();
    assert!(socket.exists());
    gateway.spawn_again(None);
    gateway.until_ready().await;
    order_by(&socket).await;
    gateway.stop().await;
    assert!(!socket.exists());

    // A file that is something else stays what it is.
    std::fs::write(&socket, "mine").unwrap();
    let refusal = setup().refusal().await;
    assert!(refusal.code == 2 && refusal.text.contains("no socket"), "{}", refusal.text);
    assert_eq!(std::fs::read_to_string(&socket).unwrap(), "mine");
}

#[tokio::test]
async fn addresses_that_are_none_or_taken_are_problems_with_their_place() {
    let backend = Backend::confirming().await;
    for (address, expected) in [
        ("nowhere", "listeners[0].address: is not an address and port"),
        ("unix:", "listeners[0].address: must name a file after unix:"),
    ] {
        let checked = Setup::new(&backend).top(&format!("[[listeners]]\naddress = \"{address}\"\n")).check();
        assert!(checked.code == 1 && checked.text.contains(expected), "{}", checked.text);
    }
    let twice = "[[listeners]]\naddress = \"unix:a.sock\"\n".repeat(2);
    let checked = Setup::new(&backend).top(&twice).check();
    assert!(checked.text.contains("listeners[1].address: another listener has this address"), "{}", checked.text);
    let unknown = "[[listeners]]\naddress = \"unix:a.sock\"\ncolour = \"red\"\n";
    let checked = Setup::new(&backend).top(unknown).check();
    assert!(checked.text.contains("listeners[0].colour: unknown key"), "{}", checked.text);
}

#[tokio::test]
async fn a_listener_is_named_when_its_address_is_taken() {
    let (backend, other) = (Backend::confirming().await, Backend::confirming().await);
    let taken = other.authority();
    let refusal = Setup::new(&backend).top(&format!("[[listeners]]\naddress = \"{taken}\"\n")).refusal().await;
    assert_eq!(refusal.code, 2, "{}", refusal.text);
    assert!(refusal.text.contains(&format!("listeners[0].address = \"{taken}\"")), "{}", refusal.text);
    // And so it is for whoever asks there: nothing of it was served.
    assert_eq!(one_reply(taken.parse().unwrap(), get("/", "")).await.status, 200);
}

/// The kernel drops who comes when nobody accepts and the queue is full, and tells nobody.
#[tokio::test]
async fn a_burst_waits_in_the_queue_while_the_gateway_has_no_time() {
    let backend = Backend::confirming().await;
    let gateway = Setup::new(&backend).forwarding_all().start().await;
    gateway.signal("STOP");
    let mut burst = Vec::new();
    for _ in 0..600 {
        burst.push(Connection::open(gateway.listen).await);
    }
    gateway.signal("CONT");
    for connection in burst.iter_mut().rev().take(3) {
        connection.send(get(&create().target(), "")).await;
        connection.reply().await.unwrap().assert_is(CREATED);
    }
}
