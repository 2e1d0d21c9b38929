//! TLS of calls: whom a client trusts, and who it is.

use std::sync::{Arc, LazyLock};

use aws_lc_rs::rand;
use rustls::client::WantsClientCert;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ConfigBuilder, RootCertStore};
use tokio_rustls::TlsConnector;

use crate::config::{BackendTls, ClientIdentity};

/// What is wrong with TLS settings.
#[derive(Debug)]
pub struct Wrong {
    /// The key of `[apps.backend]` that it is wrong with.
    pub key: &'static str,
    /// What is wrong, as half a sentence. Never a part of a file.
    pub what: String,
}

/// TLS for a client that trusts these roots or, without any, the system's.
///
/// # Errors
/// What is wrong with the roots.
pub fn client_tls(ca_pem: Option<&[u8]>) -> Result<ClientConfig, String> {
    Ok(trusting(ca_pem)?.with_no_client_auth())
}

/// TLS settings of a backend's calls.
///
/// # Errors
/// What is wrong with them.
pub fn client_config(tls: &BackendTls) -> Result<ClientConfig, Wrong> {
    let builder = trusting(tls.ca_pem.as_deref()).map_err(|what| Wrong { key: "ca_file", what })?;
    let Some(identity) = &tls.identity else { return Ok(builder.with_no_client_auth()) };
    let (certificates, key) = pair(identity)?;
    builder.with_client_auth_cert(certificates, key).map_err(|error| Wrong {
        key: "client_key",
        // What else it could be has been looked at.
        what: match error {
            rustls::Error::InconsistentKeys(_) => "is not the key of client_certificate".into(),
            _ => "and client_certificate cannot be used together".into(),
        },
    })
}

/// Makes connections of TCP or Unix sockets TLS ones.
///
/// # Errors
/// What is wrong with the settings.
pub(super) fn connector(tls: &BackendTls) -> Result<TlsConnector, String> {
    let config = client_config(tls).map_err(|Wrong { key, what }| format!("{key} {what}"))?;
    // The library's random numbers take 30 ms to begin with: now, and not when an order waits for the
    // first handshake. Whoever needs them and gets none fails then.
    let _ = rand::fill(&mut [0]);
    Ok(TlsConnector::from(Arc::new(config)))
}

/// The name that a certificate is checked against, and that the backend is told.
///
/// # Errors
/// That it is no name.
pub fn server_name(name: &str) -> Result<ServerName<'static>, String> {
    ServerName::try_from(name.to_owned()).map_err(|_| "the host cannot be checked against a certificate".to_owned())
}

fn trusting(ca_pem: Option<&[u8]>) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, String> {
    let roots = match ca_pem {
        Some(pem) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(pem)? {
                roots.add(certificate).map_err(|_| "holds a certificate that cannot be a root".to_owned())?;
            }
            Arc::new(roots)
        }
        None => Arc::clone(&SYSTEM_ROOTS),
    };
    // Always with this provider by name: a process with two would panic on the default one.
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    Ok(builder.with_root_certificates(roots))
}

fn pair(identity: &ClientIdentity) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Wrong> {
    let certificates =
        certificates(&identity.certificate_pem).map_err(|what| Wrong { key: "client_certificate", what })?;
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem.expose().as_bytes());
    let key = key.map_err(|_| Wrong {
        key: "client_key",
        what: "is not a PEM file with an unencrypted private key (PKCS #8, PKCS #1 or SEC 1)".into(),
    })?;
    Ok((certificates, key))
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err("holds no certificate".into()),
        Ok(certificates) => Ok(certificates),
        Err(_) => Err("is not a PEM file of certificates".into()),
    }
}

/// Reading the system's store takes milliseconds; once is enough for all apps.
static SYSTEM_ROOTS: LazyLock<Arc<RootCertStore>> = LazyLock::new(|| {
    let mut roots = RootCertStore::empty();
    for certificate in rustls_native_certs::load_native_certs().certs {
        // A store may hold roots that rustls cannot use; the others still count.
        let _ = roots.add(certificate);
    }
    Arc::new(roots)
});
