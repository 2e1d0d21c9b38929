//! Lists of networks: whose word is believed, and who may call.

use ipnet::IpNet;

use super::listen::{Address, ListenConfig};
use super::raw::RawListen;
use super::scalar::Strings;
use super::validate::Validator;
use super::{AppConfig, CompanionConfig, units};

impl Validator<'_> {
    /// Reads a list of networks.
    pub(super) fn networks(&mut self, path: &str, raw: &Strings) -> Vec<IpNet> {
        let networks = raw.0.iter().enumerate();
        networks.filter_map(|(index, text)| self.read(&format!("{path}[{index}]"), units::network(text))).collect()
    }

    /// With a PROXY header required, somebody has to be allowed to send it.
    pub(super) fn introductions(&mut self, at: &str, raw: &RawListen) {
        if raw.proxy_protocol.0 && raw.trusted_proxies.0.is_empty() {
            self.problem(
                &format!("{at}.proxy_protocol"),
                "needs trusted_proxies: only proxies listed there may connect, and there is none",
            );
        }
    }

    /// Warns of lists that will not do what they are there for.
    pub(super) fn doubt_lists(
        &mut self,
        listeners: &[ListenConfig],
        companion: Option<&CompanionConfig>,
        apps: &[AppConfig],
    ) {
        let is_local = |listener: &ListenConfig| match &listener.address {
            Address::Tcp(address) => address.ip().is_loopback(),
            Address::Unix(_) => true,
        };
        let trusted: Vec<_> = listeners.iter().flat_map(|listener| &listener.trusted_proxies).collect();
        for listener in listeners {
            if let Some(everybody) = listener.trusted_proxies.iter().find(|network| network.prefix_len() == 0) {
                self.warn(
                    &format!("{}.trusted_proxies", listener.name),
                    &format!("{everybody} believes everybody: any client can name any other; list the proxies alone"),
                );
            }
        }
        let lists = apps.iter().enumerate().filter(|(_, app)| !app.allow_from.is_empty());
        for (index, app) in lists {
            let path = format!("apps[{index}].allow_from");
            // Only something on the same machine reaches it, whoever it speaks for.
            if app.backend.is_some() && listeners.iter().all(is_local) && trusted.is_empty() {
                self.warn(
                    &path,
                    "the listener is reached from this machine only, and no proxy on it is trusted to say who calls: \
                     set listen.trusted_proxies, or every client is a local one",
                );
            }
            let mut may_ask = companion.into_iter().flat_map(|companion| &companion.allow_from);
            if let Some(both) = may_ask.find(|network| app.allow_from.contains(network)) {
                self.warn(
                    &path,
                    &format!("{both} may ask the companion, too: it lets in whatever the ingress names no client for"),
                );
            }
            if let Some(both) = app.allow_from.iter().find(|network| trusted.contains(network)) {
                self.warn(
                    &path,
                    &format!("{both} is a trusted proxy, too: it lets in whatever the proxy names no client for"),
                );
            }
        }
    }
}
