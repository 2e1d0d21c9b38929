//! A backend behind https is called only if its certificate says that it is the one.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio_rustls::TlsAcceptor;

use crate::support::backend::{Backend, CREATED};
use crate::support::gateway::Setup;
use crate::support::order::create;

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
