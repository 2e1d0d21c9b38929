//! Lists of networks: whose word is believed, and who may call.

use std::net::SocketAddr;

use ipnet::IpNet;

use super::raw::RawListen;
use super::scalar::Strings;
use super::validate::Validator;
use super::{AppConfig, units};

impl Validator<'_> {
    /// Reads a list of networks.
    pub(super) fn networks(&mut self, path: &str, raw: &Strings) -> Vec<IpNet> {
        let networks = raw.0.iter().enumerate();
        networks.filter_map(|(index, text)| self.read(&format!("{path}[{index}]"), units::network(text))).collect()
    }

    /// With a PROXY header required, somebody has to be allowed to send it.
    pub(super) fn introductions(&mut self, raw: &RawListen) {
        if raw.proxy_protocol.0 && raw.trusted_proxies.0.is_empty() {
            self.problem(
                "listen.proxy_protocol",
                "needs listen.trusted_proxies: only proxies listed there may connect, and there is none",
            );
        }
    }

    /// Warns of lists that will not do what they are there for.
    pub(super) fn doubt_lists(&mut self, listen: Option<SocketAddr>, trusted: &[IpNet], apps: &[AppConfig]) {
        if let Some(everybody) = trusted.iter().find(|network| network.prefix_len() == 0) {
            self.warn(
                "listen.trusted_proxies",
                &format!("{everybody} believes everybody: any client can name any other; list the proxies alone"),
            );
        }
        let lists = apps.iter().enumerate().filter(|(_, app)| !app.allow_from.is_empty());
        for (index, app) in lists {
            let path = format!("apps[{index}].allow_from");
            // Only something on the same machine reaches it, whoever it speaks for.
            if listen.is_some_and(|listen| listen.ip().is_loopback()) && trusted.is_empty() {
                self.warn(
                    &path,
                    "the listener is reached from this machine only, and no proxy on it is trusted to say who calls: \
                     set listen.trusted_proxies, or every client is a local one",
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
