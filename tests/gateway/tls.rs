//! A backend behind https is called only if its certificate says that it is the one.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ResolvesServerCertUsingSni, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use crate::support::Directory;
use crate::support::backend::{Backend, CREATED};
use crate::support::gateway::Setup;
use crate::support::order::create;
use crate::unix_socket::at_socket;

/// A certificate authority.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// A server whose certificate is for this name.
    fn acceptor(&self, name: &str) -> TlsAcceptor {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }

    /// A certificate for this name and its key, both PEM.
    fn signed(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// A server that wants a certificate of `clients`.
    fn demanding(&self, name: &str, clients: &Self) -> TlsAcceptor {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(clients.pem.as_bytes()).unwrap()).unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let (certificate, key) = self.signed(name);
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
            );
        TlsAcceptor::from(Arc::new(config.unwrap()))
    }

    /// A server that has a certificate only for whoever asks for this name.
    fn by_name_only(&self, name: &str) -> TlsAcceptor {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let (certificate, key) = self.signed(name);
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        let certified = CertifiedKey::new(
            vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
            provider.key_provider.load_private_key(key).unwrap(),
        );
        let mut resolver = ResolvesServerCertUsingSni::new();
        resolver.add(name, certified).unwrap();
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(resolver));
        TlsAcceptor::from(Arc::new(config))
    }
}

fn trusting(backend: &Backend, authority: &Authority) -> Setup {
    Setup::new(backend).file("ca.pem", &authority.pem).backend("ca_file = \"ca.pem\"")
}

#[tokio::test]
async fn an_https_backend_with_a_certificate_of_the_configured_authority_is_called() {
    let authority = Authority::new();
    let backend = Backend::tls(authority.acceptor("127.0.0.1")).await;
    let gateway = trusting(&backend, &authority).forwarding_all().backend("keep_alive = \"60s\"").start().await;
    for _ in 0..3 {
        gateway.order(&create()).await.assert_is(CREATED);
    }
    assert_eq!((backend.count(), backend.connections()), (3, 1));
    assert_eq!(backend.requests()[0].header("host"), Some(backend.authority().as_str()));
}

#[tokio::test]
async fn a_certificate_of_another_authority_or_name_is_a_502_and_nothing_is_sent() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let by_name = Backend::tls(ours.acceptor("backend.example")).await;
    let by_authority = Backend::tls(theirs.acceptor("127.0.0.1")).await;
    for backend in [by_name, by_authority] {
        let gateway = trusting(&backend, &ours).start().await;
        let reply = gateway.order(&create()).await;
        reply.assert_rejected(502, "backend_unreachable");
        let cause = gateway.access_line(&reply).await["cause"].as_str().unwrap().to_owned();
        assert!(cause.contains("certificate"), "{cause}");
        // The caller learns nothing of it.
        assert!(!reply.text().contains("certificate"), "{}", reply.text());
        assert_eq!(backend.count(), 0);
        // The system's own authorities know it no better.
        let gateway = Setup::new(&backend).start().await;
        gateway.order(&create()).await.assert_rejected(502, "backend_unreachable");
        assert_eq!(backend.count(), 0);
    }
}

#[tokio::test]
async fn a_ca_file_that_holds_no_certificate_is_a_problem_of_the_configuration() {
    let backend = Backend::tls(Authority::new().acceptor("127.0.0.1")).await;
    for text in ["", "hello", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        let checked = Setup::new(&backend).file("ca.pem", text).backend("ca_file = \"ca.pem\"").check();
        assert_eq!(checked.code, 1, "{}", checked.text);
        assert!(checked.text.contains("apps[0].backend.ca_file"), "{}", checked.text);
    }
}

#[tokio::test]
async fn a_backend_that_wants_a_client_certificate_is_shown_the_configured_one() {
    let (servers, clients, strangers) = (Authority::new(), Authority::new(), Authority::new());
    let backend = Backend::tls(servers.demanding("127.0.0.1", &clients)).await;
    let keys = "client_certificate = \"me.pem\"\nclient_key = \"me.key\"";
    let with = |(certificate, key): (String, String)| {
        trusting(&backend, &servers).file("me.pem", &certificate).file("me.key", &key).backend(keys)
    };
    with(clients.signed("spigate.example")).start().await.order(&create()).await.assert_is(CREATED);
    assert_eq!(backend.count(), 1);
    for refused in [trusting(&backend, &servers), with(strangers.signed("spigate.example"))] {
        // With TLS 1.3 the refusal may come after the request: then it counts as sent.
        assert_eq!(refused.start().await.order(&create()).await.status, 502);
    }
    assert_eq!(backend.count(), 1);
}

#[tokio::test]
async fn server_name_is_what_the_certificate_is_asked_for_and_checked_against() {
    let authority = Authority::new();
    let backend = Backend::tls(authority.by_name_only("backend.example")).await;
    let named = |name: &str| trusting(&backend, &authority).backend(&format!("server_name = \"{name}\""));
    named("backend.example").start().await.order(&create()).await.assert_is(CREATED);
    // The Host header stays the URL's.
    assert_eq!(backend.only_request().header("host"), Some(backend.authority().as_str()));
    for unnamed in [trusting(&backend, &authority), named("other.example")] {
        unnamed.start().await.order(&create()).await.assert_rejected(502, "backend_unreachable");
    }
    let other = Backend::tls(authority.acceptor("other.example")).await;
    let setup = trusting(&other, &authority).backend("server_name = \"backend.example\"");
    setup.start().await.order(&create()).await.assert_rejected(502, "backend_unreachable");
    assert_eq!((backend.count(), other.count()), (1, 0));
}

#[tokio::test]
async fn tls_may_be_spoken_on_a_unix_socket() {
    let (authority, directory) = (Authority::new(), Directory::new());
    let backend = Backend::tls(authority.by_name_only("localhost")).await;
    let socket = directory.path().join("app.sock");
    at_socket(&socket, &backend);
    let setup = Setup::to(format!("https://unix:{}:/spi", socket.display())).file("ca.pem", &authority.pem);
    setup.backend("ca_file = \"ca.pem\"").start().await.order(&create()).await.assert_is(CREATED);
    assert_eq!(backend.only_request().header("host"), Some("localhost"));
}

#[tokio::test]
async fn a_client_certificate_that_cannot_be_used_is_a_problem_of_its_place_and_never_shown() {
    let authority = Authority::new();
    let backend = Backend::tls(authority.acceptor("127.0.0.1")).await;
    let (certificate, key) = authority.signed("spigate.example");
    let (_, other_key) = authority.signed("spigate.example");
    let both = "client_certificate = \"me.pem\"\nclient_key = \"me.key\"";
    for (certificate, key, keys, problem) in [
        (&*certificate, &*other_key, both, "backend.client_key: is not the key of client_certificate"),
        ("hello", &key, both, "backend.client_certificate: holds no certificate"),
        (&certificate, "hello", both, "backend.client_key: is not a PEM file with an unencrypted private key"),
        (&certificate, &certificate, both, "backend.client_key: is not a PEM file with an unencrypted private key"),
        (&certificate, &key, "client_certificate = \"me.pem\"", "client_certificate: needs client_key, too"),
        (&certificate, &key, "client_key = \"me.key\"", "client_key: needs client_certificate, too"),
        (&certificate, &key, "client_certificate = \"no.pem\"\nclient_key = \"me.key\"", "cannot be read"),
        (&certificate, &key, "server_name = \"https://x\"", "backend.server_name: must be a host name"),
    ] {
        let setup = trusting(&backend, &authority).file("me.pem", certificate).file("me.key", key).backend(keys);
        let checked = setup.check();
        assert_eq!(checked.code, 1, "{}", checked.text);
        assert!(checked.text.contains(problem), "{problem}: {}", checked.text);
        assert!(!key.lines().any(|line| line.len() > 30 && checked.text.contains(line)), "{}", checked.text);
    }
    let plain = Backend::confirming().await;
    let checked = Setup::new(&plain).backend("server_name = \"backend.example\"").check();
    assert_eq!(checked.code, 0, "{}", checked.text);
    assert!(checked.text.contains("apps[0].backend.server_name: has no effect"), "{}", checked.text);
}
