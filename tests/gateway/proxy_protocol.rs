//! Connections that a proxy hands through: who they are from stands in front of them.

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;

use crate::ports::free_port;
use crate::support::backend::{Backend, CREATED};
use crate::support::client::{Connection, get};
use crate::support::gateway::{Gateway, Setup};
use crate::support::order::create;
use crate::support::process::Process;
use crate::support::{Directory, has_program, within_deadline};

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// A gateway that listens to PROXY headers of this network.
async fn gateway(backend: &Backend, trusted: &str, limits: &str) -> Gateway {
    let setup = Setup::new(backend).forwarding_all().top(limits).environment("SPIGATE_LISTEN__PROXY_PROTOCOL", "true");
    setup.environment("SPIGATE_LISTEN__TRUSTED_PROXIES", trusted).start().await
}

fn version_2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    let length = u16::try_from(block.len()).unwrap().to_be_bytes();
    [SIGNATURE, &[command, family], &length, block].concat()
}

fn errors(reason: &str) -> String {
    format!("spigate_proxy_protocol_errors_total{{reason=\"{reason}\"}}")
}

#[tokio::test]
async fn the_client_is_whom_the_header_names() {
    let backend = Backend::confirming().await;
    let gateway = gateway(&backend, "127.0.0.0/8, 10.0.0.0/8", "").await;
    let v4 = [192, 0, 2, 7, 10, 0, 0, 1, 1, 2, 0, 80];
    let v6 = [&"2001:db8::7".parse::<std::net::Ipv6Addr>().unwrap().octets()[..], &[0; 20], &[4; 900]].concat();
    let nginx = [10, 1, 1, 1, 10, 0, 0, 1, 1, 2, 0, 80];
    let line = b"PROXY TCP4 192.0.2.7 127.0.0.1 4711 80\r\n".to_vec();
    for (header, claim, client, passed_on) in [
        (line.clone(), "", "192.0.2.7", Some("192.0.2.7")),
        (version_2(0x21, 0x11, &v4), "", "192.0.2.7", Some("192.0.2.7")),
        (version_2(0x21, 0x21, &v6), "", "2001:db8::7", Some("2001:db8::7")),
        // Who is not a trusted proxy is not believed, though it came through one.
        (line, "X-Forwarded-For: 6.6.6.6\r\n", "192.0.2.7", Some("192.0.2.7")),
        // A trusted proxy behind another one.
        (version_2(0x21, 0x11, &nginx), "X-Forwarded-For: 6.6.6.6\r\n", "6.6.6.6", Some("6.6.6.6")),
        // The proxy's own requests.
        (version_2(0x20, 0x00, &[]), "", "127.0.0.1", None),
        (version_2(0x20, 0x00, &[]), "X-Forwarded-For: 6.6.6.6\r\n", "6.6.6.6", Some("6.6.6.6")),
        // Somebody's, nobody knows whose.
        (b"PROXY UNKNOWN\r\n".to_vec(), "X-Forwarded-For: 6.6.6.6\r\n", "127.0.0.1", None),
        (version_2(0x21, 0x00, &[]), "X-Forwarded-For: 6.6.6.6\r\n", "127.0.0.1", None),
    ] {
        let mut connection = Connection::open(gateway.listen).await;
        // In pieces, and with the first request behind it in the last one.
        let (first, rest) = header.split_at(header.len() / 2);
        connection.send(first).await;
        connection.send([rest, get(&create().target(), claim).as_bytes()].concat()).await;
        for round in 0..2 {
            let reply = connection.reply().await.unwrap();
            reply.assert_is(CREATED);
            let line = gateway.access_line(&reply).await;
            assert_eq!(line["client"], client, "{line}");
            assert_eq!(line.get("peer").is_some(), client != "127.0.0.1", "{line}");
            assert_eq!(backend.requests().pop().unwrap().header("x-forwarded-for"), passed_on);
            if round == 0 {
                connection.send(get(&create().target(), claim)).await;
            }
        }
    }
}

#[tokio::test]
async fn a_client_that_the_header_does_not_name_is_in_no_list() {
    let backend = Backend::confirming().await;
    let setup = Setup::new(&backend).app("allow_from = [\"127.0.0.1\", \"192.0.2.7\"]");
    let setup = setup.environment("SPIGATE_LISTEN__PROXY_PROTOCOL", "true");
    let gateway = setup.environment("SPIGATE_LISTEN__TRUSTED_PROXIES", "127.0.0.1").start().await;
    for (header, status) in [
        ("PROXY TCP4 192.0.2.7 127.0.0.1 4711 80\r\n", 200),
        ("PROXY TCP4 192.0.2.8 127.0.0.1 4711 80\r\n", 403),
        ("PROXY UNKNOWN\r\n", 403),
    ] {
        let mut connection = Connection::open(gateway.listen).await;
        connection.send([header, &get(&create().target(), "")].concat()).await;
        assert_eq!(connection.reply().await.unwrap().status, status, "{header}");
    }
}

#[tokio::test]
async fn what_does_not_begin_with_a_header_is_closed_and_counted() {
    let backend = Backend::confirming().await;
    let gateway = gateway(&backend, "127.0.0.1", "").await;
    let request = get(&create().target(), "");
    let malformed = [
        request.clone().into_bytes(),
        [b"PROXY TCP4 192.0.2.7 127.0.0.1 4711\r\n", request.as_bytes()].concat(),
        [&version_2(0x31, 0x11, &[0; 12])[..], request.as_bytes()].concat(),
        [&version_2(0x21, 0x11, &[0; 11])[..], request.as_bytes()].concat(),
        format!("PROXY UNKNOWN {}\r\n{request}", "x".repeat(200)).into_bytes(),
    ];
    for bytes in &malformed {
        assert!(gateway.raw(bytes).await.is_empty(), "{}", String::from_utf8_lossy(bytes));
    }
    assert_eq!(backend.count(), 0);
    assert_eq!(gateway.metric(&errors("malformed")).await, 5.0);
    // Looking whether the port is open is no mistake.
    drop(Connection::open(gateway.listen).await);
    gateway.wait_for_metric("spigate_connections", |open| open == 0.0).await;
    assert_eq!(gateway.metric(&errors("malformed")).await, 5.0);
    // One line tells of all.
    let told = |line: &serde_json::Value| line["reason"] == "malformed" && line["peer"] == "127.0.0.1";
    gateway.line("the warning", told).await;
    assert_eq!(gateway.output().matches("no PROXY header that counts").count(), 1, "{}", gateway.output());
}

#[tokio::test]
async fn nobody_but_trusted_proxies_may_speak() {
    let backend = Backend::confirming().await;
    let gateway = gateway(&backend, "10.0.0.0/8", "").await;
    let mut connection = Connection::open(gateway.listen).await;
    // Closed before a word is said.
    assert!(connection.until_closed().await.is_empty());
    let bytes = ["PROXY TCP4 10.0.0.1 127.0.0.1 4711 80\r\n", &get(&create().target(), "")].concat();
    assert!(gateway.raw(bytes).await.is_empty());
    assert_eq!(backend.count(), 0);
    assert_eq!(gateway.metric(&errors("untrusted")).await, 2.0);
}

#[tokio::test]
async fn a_header_has_to_come_in_time() {
    let backend = Backend::confirming().await;
    let gateway =
        gateway(&backend, "127.0.0.1", "[limits]\nheader_timeout = \"300ms\"\nidle_timeout = \"120s\"\n").await;
    for piece in [&b"PROXY TCP4 192."[..], &version_2(0x21, 0x11, &[0; 500])[..300], b""] {
        let mut connection = Connection::open(gateway.listen).await;
        connection.send(piece).await;
        assert!(connection.until_closed().await.is_empty());
    }
    assert_eq!(gateway.metric(&errors("timeout")).await, 3.0);
}

#[tokio::test]
async fn it_needs_somebody_who_may_speak() {
    let backend = Backend::confirming().await;
    let refused = Setup::new(&backend).environment("SPIGATE_LISTEN__PROXY_PROTOCOL", "true").refusal().await;
    assert_eq!(refused.code, 1, "{}", refused.text);
    assert!(refused.text.contains("listen.proxy_protocol: needs trusted_proxies"), "{}", refused.text);
}

/// Asks from another loopback address than the proxy's, and closes.
async fn ask_from(source: [u8; 4], address: SocketAddr) -> String {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((source, 0))).unwrap();
    let mut stream = within_deadline("connecting", socket.connect(address)).await.unwrap();
    let mut answer = String::new();
    within_deadline("sending", stream.write_all(get(&create().target(), "Connection: close\r\n").as_bytes()))
        .await
        .unwrap();
    within_deadline("an answer", stream.read_to_string(&mut answer)).await.unwrap();
    answer
}

#[tokio::test]
async fn a_real_haproxy_is_understood_in_both_versions() {
    if !has_program("haproxy") {
        return;
    }
    let backend = Backend::confirming().await;
    let gateway = gateway(&backend, "127.0.0.1", "").await;
    let (directory, listen) = (Directory::new(), gateway.listen);
    let (one, two) = (free_port(), free_port());
    let config = directory.write(
        "haproxy.cfg",
        &format!(
            "global\n  maxconn 100\ndefaults\n  mode tcp\n  timeout connect 20s\n  timeout client 60s\n  \
             timeout server 60s\n  default-server check inter 50ms fall 1000 check-send-proxy\nlisten one\n  bind {one}\n  \
             server gateway {listen} send-proxy\nlisten two\n  bind {two}\n  server gateway {listen} send-proxy-v2\n"
        ),
    );
    let mut command = Command::new("haproxy");
    let haproxy = Process::start(command.arg("-db").arg("-f").arg(config), two, directory.path().join("log")).await;
    for (source, address) in [([127, 0, 0, 2], one), ([127, 0, 0, 3], two)] {
        let answer = ask_from(source, address).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with(CREATED), "{answer}\n{}", haproxy.output());
        let client = std::net::Ipv4Addr::from(source).to_string();
        let line = gateway.line("the access line", |line| line["client"] == client.as_str()).await;
        assert_eq!((&line["peer"], &line["outcome"]), (&"127.0.0.1".into(), &"delivered".into()), "{line}");
        assert_eq!(backend.requests().pop().unwrap().header("x-forwarded-for"), Some(client.as_str()));
    }
    // Its health checks and what looked whether it listens are no errors.
    assert_eq!(gateway.metric(&errors("malformed")).await, 0.0, "{}", gateway.output());
}

#[tokio::test]
async fn who_has_not_spoken_yet_when_the_end_comes_is_still_served() {
    let backend = Backend::confirming().await;
    // Who speaks within a second of the end is served. On a busy machine more may pass before a
    // word is out, which shows nothing: then once more.
    loop {
        let gateway = gateway(&backend, "127.0.0.0/8", "[shutdown]\ndelay = \"0s\"\ngrace = \"25s\"\n").await;
        let mut silent = Connection::open(gateway.listen).await;
        gateway.wait_for_metric("spigate_connections", |connections| connections == 1.0).await;
        let end = Instant::now();
        gateway.terminate();
        let closed = async { while tokio::net::TcpStream::connect(gateway.listen).await.is_ok() {} };
        within_deadline("the end of the listener", closed).await;
        let order = get(&create().target(), "");
        silent.send(format!("PROXY TCP4 192.0.2.7 127.0.0.1 4711 80\r\n{order}")).await;
        let in_time = end.elapsed() < Duration::from_millis(900);
        let answer = silent.reply().await;
        gateway.ended().await;
        if in_time {
            return answer.expect("an answer").assert_is(CREATED);
        }
    }
}
