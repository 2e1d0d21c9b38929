//! TLS on the public listener: versions, protocols, certificates by name, clients' certificates,
//! and the same strictness and patience as without.

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::version::{TLS12, TLS13};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use crate::support::authority::{Authority, Certified};
use crate::support::backend::{Backend, CREATED};
use crate::support::client::{Connection, get, until_closed};
use crate::support::gateway::Setup;
use crate::support::order::{create, now};
use crate::support::tls_client::{TlsClient, certificate_for, chosen};
use crate::support::within_deadline;

const EXPIRY: &str = "spigate_tls_certificate_expiry_timestamp_seconds{certificate=\"tls.crt\",listener=\"listen\"}";

fn errors(reason: &str) -> String {
    format!("spigate_tls_handshake_errors_total{{reason=\"{reason}\"}}")
}

#[tokio::test]
async fn orders_come_by_both_versions_of_tls_and_of_http() {
    let (authority, backend) = (Authority::new(), Backend::confirming().await);
    let gateway = Setup::new(&backend).forwarding_all().tls(&authority.certify(&["localhost"])).start().await;
    for version in [&TLS12, &TLS13] {
        for offer in [&["h2", "http/1.1"][..], &["http/1.1"], &["http/1.1", "h2"], &[]] {
            let client = TlsClient::trusting(&authority).version(version).offering(offer);
            let stream = client.connect(gateway.listen).await.unwrap();
            let expected = match offer {
                [] => None,
                ["http/1.1"] => Some(b"http/1.1".to_vec()),
                _ => Some(b"h2".to_vec()),
            };
            assert_eq!(chosen(&stream), (version.version, expected.clone()), "{offer:?}");
            if expected.as_deref() == Some(b"h2") {
                let mut connection = client.http2(&gateway).await;
                for _ in 0..3 {
                    connection.get(&create().target()).await.assert_is(CREATED);
                }
            } else {
                let mut connection = Connection::over(stream);
                for _ in 0..3 {
                    connection.send(get(&create().target(), "")).await;
                    connection.reply().await.unwrap().assert_is(CREATED);
                }
            }
        }
    }
    assert_eq!(backend.count(), 24);
}

#[tokio::test]
async fn the_name_that_is_asked_for_picks_the_certificate_and_the_first_is_for_the_rest() {
    let (authority, backend) = (Authority::new(), Backend::confirming().await);
    let certificates: Vec<Certified> = [&["a.example"][..], &["b.example", "*.b.example"], &["deep.b.example"]]
        .iter()
        .map(|names| authority.certify(names))
        .collect();
    let mut setup = Setup::new(&backend);
    let mut tables = Vec::new();
    for (index, certified) in certificates.iter().enumerate() {
        setup =
            setup.file(&format!("{index}.crt"), &certified.certificate).file(&format!("{index}.key"), &certified.key);
        tables.push(format!("{{ certificate = \"{index}.crt\", key = \"{index}.key\" }}"));
    }
    let gateway = setup.listen(&format!("tls = [{}]", tables.join(", "))).start().await;
    for (name, expected) in [
        ("a.example", 0),
        ("A.EXAMPLE", 0),
        ("b.example", 1),
        ("x.b.example", 1),
        ("X.B.example", 1),
        ("x.y.b.example", 0),
        ("c.example", 0),
        ("127.0.0.1", 0),
    ] {
        // Whether the name fits is the client's business; here it is only what it is shown.
        let shown = certificate_for(name, gateway.listen).await;
        let expected = CertificateDer::from_pem_slice(certificates[expected].certificate.as_bytes()).unwrap();
        assert_eq!(shown, expected, "{name}");
    }
    for index in 0..3 {
        let series = format!(
            "spigate_tls_certificate_expiry_timestamp_seconds{{certificate=\"{index}.crt\",listener=\"listen\"}}"
        );
        assert!(gateway.metric(&series).await > 0.0, "{index}");
    }
}

#[tokio::test]
async fn where_clients_need_a_certificate_only_the_right_one_opens() {
    let (authority, clients, backend) = (Authority::new(), Authority::new(), Backend::confirming().await);
    let setup = Setup::new(&backend).forwarding_all().tls(&authority.certify(&["localhost"]));
    let gateway = setup.file("clients.pem", &clients.pem).listen("client_ca = \"clients.pem\"").start().await;
    let now = now().as_second();
    for version in [&TLS12, &TLS13] {
        let client = || TlsClient::trusting(&authority).version(version);
        let expired = clients.certify_for(&["platform"], now - 7_200, now - 3_600);
        for refused in [client(), client().showing(&authority.certify(&["platform"])), client().showing(&expired)] {
            // With TLS 1.3 a client hears of it when it reads.
            if let Ok(stream) = refused.connect(gateway.listen).await {
                let mut connection = Connection::over(stream);
                connection.send(get(&create().target(), "")).await;
                assert!(connection.until_closed().await.is_empty());
            }
        }
        let mut connection = client().showing(&clients.certify(&["platform"])).http1(&gateway).await;
        connection.send(get(&create().target(), "")).await;
        connection.reply().await.unwrap().assert_is(CREATED);
    }
    assert_eq!(backend.count(), 2);
    gateway.wait_for_metric(&errors("refused"), |refused| refused == 6.0).await;
}

#[tokio::test]
async fn what_cannot_work_is_a_problem_of_the_configuration_with_its_place() {
    let (authority, backend) = (Authority::new(), Backend::confirming().await);
    let (ours, other) = (authority.certify(&["localhost"]), authority.certify(&["localhost"]));
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let good = "tls = { certificate = \"crt\", key = \"key\" }";
    for (certificate, key, listen, expected) in [
        (&*ours.certificate, &*other.key, good, "listen.tls.key: does not belong to the certificate"),
        (&ours.key, &ours.key, good, "listen.tls.certificate: is not a PEM file with a certificate"),
        ("hello", &ours.key, good, "listen.tls.certificate: is not a PEM file with a certificate"),
        (
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            &ours.key,
            good,
            "listen.tls.certificate: holds a certificate that cannot be read",
        ),
        (&ours.certificate, &ours.certificate, good, "listen.tls.key: is not a PEM file with a private key"),
        (&ours.certificate, encrypted, good, "listen.tls.key: is encrypted with a passphrase"),
        (&ours.certificate, "", "tls = { certificate = \"crt\", key = \"none\" }", "listen.tls.key: cannot be read"),
        (&ours.certificate, "", "tls = { certificate = \"crt\" }", "listen.tls.key: is missing"),
        (&ours.certificate, &ours.key, "tls = { colour = \"red\" }", "listen.tls.colour: unknown key"),
        (&ours.certificate, &ours.key, "tls = [{ certificate = 1 }]", "listen.tls[0].certificate: expected"),
        (&ours.certificate, &ours.key, "tls = \"crt\"", "listen.tls: expected a table or a list of tables"),
        (
            &ours.certificate,
            &other.key,
            "tls = [{ certificate = \"crt\", key = \"key\" }]",
            "listen.tls[0].key: does not belong",
        ),
        (&ours.certificate, &ours.key, "client_ca = \"crt\"", "listen.client_ca: needs tls"),
        (
            &ours.certificate,
            &ours.key,
            "tls = { certificate = \"crt\", key = \"key\" }\nclient_ca = \"key\"",
            "listen.client_ca: is not a PEM file with a certificate",
        ),
    ] {
        let checked = Setup::new(&backend).file("crt", certificate).file("key", key).listen(listen).check();
        assert_eq!(checked.code, 1, "{expected}: {}", checked.text);
        assert!(checked.text.contains(expected), "{expected}: {}", checked.text);
        assert!(!checked.text.contains("BEGIN"), "{}", checked.text);
    }
    let setup = Setup::new(&backend).forwarding_all().tls(&ours);
    assert_eq!(setup.check().code, 0, "{}", setup.check().text);
}

#[tokio::test]
async fn when_a_certificate_expires_is_a_metric_and_an_expired_one_a_warning() {
    let (authority, backend) = (Authority::new(), Backend::confirming().await);
    let now = now().as_second();
    let gateway = Setup::new(&backend)
        .forwarding_all()
        .tls(&authority.certify_for(&["localhost"], now - 60, now + 86_400))
        .start()
        .await;
    assert_eq!(gateway.metric(EXPIRY).await, (now + 86_400) as f64);
    for (from, to, expected) in [(-7_200, -3_600, "has expired"), (3_600, 7_200, "is not valid yet")] {
        let certified = authority.certify_for(&["localhost"], now + from, now + to);
        let setup = Setup::new(&backend).forwarding_all().tls(&certified);
        let checked = setup.check();
        assert_eq!(checked.code, 0, "{}", checked.text);
        let place = format!("spigate.toml:8: listen.tls.certificate: {expected}");
        let warning = checked.text.lines().find(|line| line.starts_with("warning:") && line.contains(&place));
        assert!(warning.is_some(), "{}", checked.text);
        // It is served all the same: a gateway that does not start helps nobody.
        let gateway = setup.start().await;
        assert_eq!(gateway.metric(EXPIRY).await, (now + to) as f64);
    }
}

#[tokio::test]
async fn handshakes_and_heads_that_do_not_end_close_the_connection() {
    let (authority, backend) = (Authority::new(), Backend::confirming().await);
    let limits = "[limits]\nheader_timeout = \"1s\"\nidle_timeout = \"1s\"\n";
    let gateway =
        Setup::new(&backend).forwarding_all().tls(&authority.certify(&["localhost"])).top(limits).start().await;
    // Nothing, and the first bytes of a ClientHello that promises more.
    for part in [&b""[..], b"\x16\x03\x01\x02\x00\x01\x00"] {
        assert!(until_closed(gateway.listen, part).await.is_empty());
    }
    gateway.wait_for_metric(&errors("timeout"), |count| count == 2.0).await;
    let head = get(&create().target(), "");
    let client = TlsClient::trusting(&authority);
    for part in ["", "G", "GET /spi", &head[..head.len() - 2]] {
        let mut connection = client.http1(&gateway).await;
        connection.send(part).await;
        assert!(connection.until_closed().await.is_empty(), "{part:?}");
    }
    let mut connection = client.http1(&gateway).await;
    connection.send(get(&create().target(), "")).await;
    assert_eq!(connection.until_closed().await.len(), 1);
    assert_eq!(backend.count(), 1);
}

#[tokio::test]
async fn what_is_no_handshake_is_refused_and_counted() {
    let (authority, backend) = (Authority::new(), Backend::confirming().await);
    let gateway = Setup::new(&backend).forwarding_all().tls(&authority.certify(&["localhost"])).start().await;
    let mut plain = TcpStream::connect(gateway.listen).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut plain, get("/spi", "").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = within_deadline("the end", plain.read_to_end(&mut answer)).await;
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    gateway.wait_for_metric(&errors("refused"), |count| count == 1.0).await;
    // A client that does not trust the authority, one without a common protocol.
    let stranger = Authority::new();
    assert!(TlsClient::trusting(&stranger).connect(gateway.listen).await.is_err());
    assert!(TlsClient::trusting(&authority).offering(&["spdy/3"]).connect(gateway.listen).await.is_err());
    gateway.wait_for_metric(&errors("refused"), |count| count == 3.0).await;
    drop(TcpStream::connect(gateway.listen).await.unwrap());
    gateway.wait_for_metric(&errors("closed"), |count| count == 1.0).await;
    let mut connection = TlsClient::trusting(&authority).http1(&gateway).await;
    connection.send(get(&create().target(), "")).await;
    connection.reply().await.unwrap().assert_is(CREATED);
}

#[tokio::test]
async fn heads_are_read_as_strictly_as_without_tls() {
    let (authority, backend) = (Authority::new(), Backend::confirming().await);
    let gateway = Setup::new(&backend).forwarding_all().tls(&authority.certify(&["localhost"])).start().await;
    let target = create().target();
    for request in [
        format!("GET {target} HTTP/1.1\nHost: localhost\n\n"),
        format!("GET {target}#x HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        format!("GET {target} HTTP/1.1\r\n\r\n"),
        format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1, 1\r\n\r\n"),
    ] {
        let mut connection = TlsClient::trusting(&authority).offering(&["http/1.1"]).http1(&gateway).await;
        connection.send(&request).await;
        let reply = connection.reply().await.unwrap();
        assert_eq!(reply.status, 400, "{request:?}");
    }
    assert_eq!(backend.count(), 0);
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_while_admin_answers() {
    let (authority, backend) = (Authority::new(), Backend::confirming().await);
    let setup = Setup::new(&backend).forwarding_all().tls(&authority.certify(&["localhost"]));
    let gateway = setup.top("[limits]\nconnections = 2\n").start().await;
    let client = TlsClient::trusting(&authority);
    // A handshake that has not begun counts as well.
    let kept = [client.http1(&gateway).await, Connection::open(gateway.listen).await];
    gateway.wait_for_metric("spigate_connections", |connections| connections == 2.0).await;
    let mut refused = TcpStream::connect(gateway.listen).await.unwrap();
    let mut answer = Vec::new();
    let _ = within_deadline("the end", refused.read_to_end(&mut answer)).await;
    assert!(answer.is_empty(), "{answer:?}");
    assert_eq!(gateway.readyz().await.status, 200);
    assert_eq!(gateway.metric("spigate_connections_refused_total").await, 1.0);
    drop(kept);
    gateway.wait_for_metric("spigate_connections", |connections| connections == 0.0).await;
    let mut connection = client.http1(&gateway).await;
    connection.send(get(&create().target(), "")).await;
    connection.reply().await.unwrap().assert_is(CREATED);
}
