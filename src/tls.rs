//! TLS of the public listeners: certificates by name, clients' certificates, and the change of
//! both while connections are open.
//!
//! The code decides what may be changed: protocol versions and cipher suites are rustls'
//! defaults (TLS 1.2 and 1.3, forward secrecy and authenticated encryption only), because a list
//! in a configuration is right on the day that it is written.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::config::listen::{Identity, TlsConfig};
use crate::metrics::Metrics;

/// HTTP/2, as ALPN calls it.
pub const H2: &[u8] = b"h2";
const HTTP_1_1: &[u8] = b"http/1.1";

/// Why a certificate and its key cannot be used, and which of both is to blame.
#[derive(Debug)]
pub enum Unusable {
    /// The certificate's file.
    Certificate(String),
    /// The key's file.
    Key(String),
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Certificate(problem) => write!(f, "the certificate {problem}"),
            Self::Key(problem) => write!(f, "the key {problem}"),
        }
    }
}

/// What a certificate says of itself.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The DNS names that it is for, in lower case; `*.` in front stands for one label.
    pub names: Vec<String>,
    /// When all of the chain has become valid: seconds since 1970.
    pub not_before: i64,
    /// When the first of the chain expires: seconds since 1970.
    pub not_after: i64,
}

/// Reads a certificate and its key and checks that they belong together.
///
/// # Errors
/// Which of both cannot be used, and why. Never a part of the key.
pub fn examine(identity: &Identity) -> Result<Facts, Unusable> {
    certified(identity).map(|(_, facts)| facts)
}

fn certified(identity: &Identity) -> Result<(CertifiedKey, Facts), Unusable> {
    let chain = certificates(&identity.chain).map_err(Unusable::Certificate)?;
    let facts = facts(&chain).map_err(Unusable::Certificate)?;
    let key = PrivateKeyDer::from_pem_slice(&identity.key).map_err(|_| {
        // The most common mix-up deserves better than "no key found".
        let encrypted = identity.key.windows(9).any(|window| window == b"ENCRYPTED");
        Unusable::Key(if encrypted {
            "is encrypted with a passphrase; give one that is not (openssl pkey -in KEY -out PLAIN)".into()
        } else {
            "is not a PEM file with a private key".into()
        })
    })?;
    match CertifiedKey::from_der(chain, key, &provider()) {
        Ok(certified) => Ok((certified, facts)),
        Err(rustls::Error::InconsistentKeys(_)) => Err(Unusable::Key("does not belong to the certificate".into())),
        Err(rustls::Error::InvalidCertificate(_)) => {
            Err(Unusable::Certificate("holds a certificate that cannot be read".into()))
        }
        Err(_) => Err(Unusable::Key("is of a kind that cannot be used; use ECDSA P-256 or RSA of 2048 bits".into())),
    }
}

/// The certificates of a PEM file, at least one.
fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err("is not a PEM file with a certificate".into()),
        Err(_) => Err("is not a well-formed PEM file".into()),
    }
}

fn facts(chain: &[CertificateDer<'_>]) -> Result<Facts, String> {
    let mut facts = Facts { names: Vec::new(), not_before: i64::MIN, not_after: i64::MAX };
    for (index, certificate) in chain.iter().enumerate() {
        let (_, certificate) =
            X509Certificate::from_der(certificate).map_err(|_| "holds a certificate that cannot be read".to_owned())?;
        facts.not_before = facts.not_before.max(certificate.validity().not_before.timestamp());
        facts.not_after = facts.not_after.min(certificate.validity().not_after.timestamp());
        if index == 0
            && let Ok(Some(names)) = certificate.subject_alternative_name()
        {
            let names = names.value.general_names.iter().filter_map(|name| match name {
                GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
                _ => None,
            });
            facts.names = names.collect();
        }
    }
    Ok(facts)
}

/// The certificate authorities of clients.
///
/// # Errors
/// What is wrong with the file.
pub fn client_roots(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem)? {
        roots.add(certificate).map_err(|_| "holds a certificate that cannot be a root".to_owned())?;
    }
    Ok(roots)
}

/// Always this provider by name: a process with two would panic on the default one.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn server_config(config: &TlsConfig) -> Result<(ServerConfig, Vec<Facts>), String> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let builder = match &config.client_ca {
        None => builder.with_no_client_auth(),
        Some(pem) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(client_roots(pem)?), provider());
            builder.with_client_cert_verifier(verifier.build().map_err(|error| format!("client_ca: {error}"))?)
        }
    };
    let mut certificates = Vec::new();
    let mut all = Vec::new();
    for identity in &config.identities {
        let (key, facts) = certified(identity).map_err(|error| format!("{}: {error}", identity.name))?;
        certificates.push((facts.names.clone(), Arc::new(key)));
        all.push(facts);
    }
    let mut server = builder.with_cert_resolver(Arc::new(ByName { certificates }));
    server.alpn_protocols = vec![H2.to_vec(), HTTP_1_1.to_vec()];
    server.ignore_client_order = true;
    // Tickets keep nothing here for each client, and their keys change every six hours. They are
    // of this configuration only: after a change of `client_ca` nobody resumes past it.
    server.ticketer = aws_lc_rs::Ticketer::new().map_err(|error| error.to_string())?;
    Ok((server, all))
}

/// Certificates by the names in them.
#[derive(Debug)]
struct ByName {
    /// In the configuration's order.
    certificates: Vec<(Vec<String>, Arc<CertifiedKey>)>,
}

impl ByName {
    /// The certificates for a name, or the first one; several may differ in the kind of key.
    fn candidates(&self, name: Option<&str>) -> impl Iterator<Item = &Arc<CertifiedKey>> {
        let name = name.map(str::to_ascii_lowercase);
        let fits = move |names: &[String]| {
            name.as_ref().is_some_and(|name| {
                let parent = name.split_once('.').map(|(_, parent)| parent);
                names.iter().any(|known| known == name || (parent.is_some() && known.strip_prefix("*.") == parent))
            })
        };
        let fitting: Vec<_> = self.certificates.iter().filter(|(names, _)| fits(names)).collect();
        let fitting = if fitting.is_empty() { self.certificates.first().into_iter().collect() } else { fitting };
        fitting.into_iter().map(|(_, key)| key)
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let schemes = hello.signature_schemes();
        self.candidates(hello.server_name()).find(|key| key.key.choose_scheme(schemes).is_some()).cloned()
    }
}

/// What is ready to be used by the next handshake.
pub struct Prepared<'a> {
    acceptors: &'a Acceptors,
    config: &'a TlsConfig,
    server: ServerConfig,
    facts: Vec<Facts>,
}

impl Prepared<'_> {
    /// Uses it from now on.
    pub fn apply(self) {
        self.acceptors.current.send_replace(Arc::new(self.server));
        self.acceptors.show(self.config, &self.facts);
    }
}

/// A listener's side of TLS handshakes, which can be changed while it listens.
pub struct Acceptors {
    listener: String,
    metrics: Arc<Metrics>,
    current: watch::Sender<Arc<ServerConfig>>,
    /// The certificates that have a metric.
    shown: Mutex<HashSet<String>>,
}

impl Acceptors {
    /// Prepares the handshakes of the listener called `listener`.
    ///
    /// # Errors
    /// What is wrong with the certificates; validated configurations have nothing wrong.
    pub fn new(listener: &str, config: &TlsConfig, metrics: Arc<Metrics>) -> Result<Self, String> {
        let (server, facts) = server_config(config)?;
        let current = watch::Sender::new(Arc::new(server));
        let acceptors = Self { listener: listener.to_owned(), metrics, current, shown: Mutex::default() };
        acceptors.show(config, &facts);
        Ok(acceptors)
    }

    /// The listener.
    pub fn listener(&self) -> &str {
        &self.listener
    }

    /// What the next handshake uses.
    pub fn current(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.current.borrow()))
    }

    /// Changes the certificates and the authorities of clients: handshakes that begin from now on
    /// use these, open connections go on as they are. On an error nothing changes.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn replace(&self, config: &TlsConfig) -> Result<(), String> {
        self.prepare(config).map(Prepared::apply)
    }

    /// Makes ready what [`replace`](Self::replace) changes, and changes nothing yet.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn prepare<'a>(&'a self, config: &'a TlsConfig) -> Result<Prepared<'a>, String> {
        let (server, facts) = server_config(config)?;
        Ok(Prepared { acceptors: self, config, server, facts })
    }

    fn show(&self, config: &TlsConfig, facts: &[Facts]) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        for gone in shown.drain() {
            // It may be one that stays: it is set again below.
            let _ = self.metrics.tls_certificate_expiry.remove_label_values(&[&self.listener, &gone]);
        }
        for (identity, facts) in config.identities.iter().zip(facts) {
            self.metrics
                .tls_certificate_expiry
                .with_label_values(&[&self.listener, &identity.name])
                .set(facts.not_after);
            shown.insert(identity.name.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn identity(name: &str, names: &[&str], year: i32) -> Identity {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        let chain = params.self_signed(&key).unwrap().pem().into_bytes();
        Identity { name: name.to_owned(), chain, key: key.serialize_pem().into_bytes().into() }
    }

    fn config(identities: Vec<Identity>) -> TlsConfig {
        TlsConfig { identities, client_ca: None }
    }

    #[test]
    fn names_are_taken_as_certificates_mean_them() {
        let names = [&["a.example"][..], &["*.b.example", "B.example"], &["c.b.example"]];
        let key = |names| certified(&identity("x", names, 2090)).unwrap();
        let certificates = names.map(key).map(|(key, facts)| (facts.names, Arc::new(key)));
        let by_name = ByName { certificates: certificates.to_vec() };
        let index = |key: &Arc<CertifiedKey>| {
            by_name.certificates.iter().position(|(_, known)| Arc::ptr_eq(known, key)).unwrap()
        };
        for (name, expected) in [
            (None, &[0][..]),
            (Some("a.example"), &[0]),
            (Some("b.example"), &[1]),
            (Some("B.EXAMPLE"), &[1]),
            (Some("x.b.example"), &[1]),
            (Some("c.b.example"), &[1, 2]),
            (Some("x.y.b.example"), &[0]),
            (Some("example"), &[0]),
            (Some("b.example.org"), &[0]),
        ] {
            assert_eq!(by_name.candidates(name).map(index).collect::<Vec<_>>(), expected, "{name:?}");
        }
    }

    #[test]
    fn what_replaces_a_certificate_is_used_from_then_on_and_an_error_changes_nothing() {
        let metrics = Arc::new(Metrics::new().unwrap());
        let (old, new) = (identity("old", &["a"], 2090), identity("new", &["a"], 2091));
        let acceptors = Acceptors::new("listen", &config(vec![old.clone()]), Arc::clone(&metrics)).unwrap();
        let shown = || {
            let text = String::from_utf8(metrics.render().unwrap()).unwrap();
            let lines = text.lines().filter(|line| line.starts_with("spigate_tls_certificate_expiry"));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        let before = Arc::clone(&acceptors.current.borrow());
        let line = |name: &str, year: i32| {
            let expiry = rcgen::date_time_ymd(year, 1, 1).unix_timestamp();
            let labels = format!("certificate=\"{name}\",listener=\"listen\"");
            format!("spigate_tls_certificate_expiry_timestamp_seconds{{{labels}}} {expiry}")
        };
        assert_eq!(shown(), [line("old", 2090)]);
        let mixed = Identity { key: old.key.clone(), ..new.clone() };
        let error = acceptors.replace(&config(vec![mixed])).unwrap_err();
        assert_eq!(error, "new: the key does not belong to the certificate");
        assert!(Arc::ptr_eq(&before, &acceptors.current.borrow()));
        assert_eq!(shown(), [line("old", 2090)]);
        acceptors.replace(&config(vec![new])).unwrap();
        assert!(!Arc::ptr_eq(&before, &acceptors.current.borrow()));
        assert_eq!(shown(), [line("new", 2091)]);
    }

    #[test]
    fn keys_are_not_shown() {
        let config = config(vec![identity("x", &["a"], 2090)]);
        let key = std::str::from_utf8(&config.identities[0].key).unwrap().lines().nth(1).unwrap().to_owned();
        let shown = format!("{config:?}");
        assert!(shown.contains('x') && !shown.contains(&key) && !shown.contains("45, 45, 45"), "{shown}");
    }
}
