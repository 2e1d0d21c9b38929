//! `[listen]` and `[[listeners]]`: where requests arrive, and by which certificates.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use zeroize::Zeroizing;

use super::raw::{RawCertificate, RawListen};
use super::validate::Validator;
use crate::{clock, tls};

/// A public listener.
#[derive(Clone, Debug)]
pub struct ListenConfig {
    /// Its path in the configuration, `listen` or `listeners[0]`: its name in metrics and logs.
    pub name: String,
    /// Where it listens.
    pub address: Address,
    /// Whose forwarding headers are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether every connection begins with a PROXY header.
    pub proxy_protocol: bool,
    /// Its certificates; plain HTTP/1.1 without.
    pub tls: Option<TlsConfig>,
}

/// Where a listener listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// An address and port.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// What a listener shows and demands in TLS handshakes: texts of files, so that whoever watches
/// them can tell by comparison whether they changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// The certificates; the first is the default.
    pub identities: Vec<Identity>,
    /// PEM text of the authorities of clients, if clients need a certificate.
    pub client_ca: Option<Vec<u8>>,
}

/// A certificate and its key.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// The certificate's file, as the configuration names it: its name in metrics.
    pub name: String,
    /// PEM text of the certificate and those between it and the authority.
    pub chain: Vec<u8>,
    /// PEM text of the private key.
    pub key: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Validator<'_> {
    /// All public listeners, `[listen]` first.
    pub(super) fn listeners(&mut self, listen: &RawListen, further: &[RawListen]) -> Vec<ListenConfig> {
        let mut listeners = Vec::new();
        listeners.extend(self.listener("listen", listen));
        for (index, raw) in further.iter().enumerate() {
            let name = format!("listeners[{index}]");
            let Some(listener) = self.listener(&name, raw) else { continue };
            let takes_any = matches!(listener.address, Address::Tcp(address) if address.port() == 0);
            if !takes_any && listeners.iter().any(|other| other.address == listener.address) {
                self.problem(&format!("{name}.address"), "another listener has this address");
            }
            listeners.push(listener);
        }
        listeners
    }

    fn listener(&mut self, at: &str, raw: &RawListen) -> Option<ListenConfig> {
        let place = format!("{at}.address");
        let address = match raw.address.strip_prefix("unix:") {
            Some(path) if path.is_empty() || path.contains('\0') => {
                self.problem(&place, "must name a file after unix:");
                None
            }
            Some(path) => Some(Address::Unix(self.base.join(path))),
            None => self.address(&place, &raw.address).map(Address::Tcp),
        };
        let trusted_proxies = self.networks(&format!("{at}.trusted_proxies"), &raw.trusted_proxies);
        self.introductions(at, raw);
        let tls = self.tls(at, raw);
        let proxy_protocol = raw.proxy_protocol.0;
        Some(ListenConfig { name: at.to_owned(), address: address?, trusted_proxies, proxy_protocol, tls })
    }

    fn tls(&mut self, at: &str, raw: &RawListen) -> Option<TlsConfig> {
        let mut identities = Vec::new();
        for (index, certificate) in raw.tls.items.iter().enumerate() {
            let place = if raw.tls.is_list { format!("{at}.tls[{index}]") } else { format!("{at}.tls") };
            identities.extend(self.identity(&place, certificate, index > 0));
        }
        let client_ca = raw.client_ca.as_ref().and_then(|file| {
            let place = format!("{at}.client_ca");
            if raw.tls.items.is_empty() {
                self.problem(&place, "needs tls: without it no client shows a certificate");
            }
            let pem = self.files.read(&self.base.join(file)).map_err(|error| format!("cannot be read: {error}"));
            let pem = self.read(&place, pem)?;
            self.read(&place, tls::client_roots(&pem)).map(|_| pem)
        });
        if raw.tls.items.is_empty() {
            return None;
        }
        Some(TlsConfig { identities, client_ca })
    }

    fn identity(&mut self, at: &str, raw: &RawCertificate, is_further: bool) -> Option<Identity> {
        let (certificate, key) = (format!("{at}.certificate"), format!("{at}.key"));
        let chain = self.pem(&certificate, raw.certificate.as_deref());
        let secret = self.pem(&key, raw.key.as_deref()).map(Zeroizing::new);
        let identity = Identity { name: raw.certificate.clone()?, chain: chain?, key: secret? };
        let facts = match tls::examine(&identity) {
            Ok(facts) => facts,
            Err(tls::Unusable::Certificate(problem)) => {
                self.problem(&certificate, &problem);
                return None;
            }
            Err(tls::Unusable::Key(problem)) => {
                self.problem(&key, &problem);
                return None;
            }
        };
        let now = clock::now().as_second();
        if facts.not_after <= now {
            self.warn(&certificate, "has expired: clients will refuse it; renew it");
        } else if facts.not_before > now {
            self.warn(&certificate, "is not valid yet: clients will refuse it until it is");
        }
        if is_further && facts.names.is_empty() {
            self.warn(&certificate, "holds no DNS name: no client can ask for it, and it is not the first one");
        }
        Some(identity)
    }

    fn pem(&mut self, at: &str, file: Option<&str>) -> Option<Vec<u8>> {
        let Some(file) = file else {
            self.problem(at, "is missing");
            return None;
        };
        let text = self.files.read(&self.base.join(file)).map_err(|error| format!("cannot be read: {error}"));
        self.read(at, text)
    }
}
