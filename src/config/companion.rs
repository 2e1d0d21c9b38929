//! `[companion]`: where an ingress asks whether a request may pass, and who may ask.

use std::net::SocketAddr;

use ipnet::IpNet;

use super::listen::{Address, ListenConfig};
use super::raw::RawCompanion;
use super::validate::Validator;

/// The companion's listener.
#[derive(Clone, Debug)]
pub struct CompanionConfig {
    /// Where it listens.
    pub address: SocketAddr,
    /// Who is answered.
    pub allow_from: Vec<IpNet>,
}

impl Validator<'_> {
    /// The companion, if it is switched on. It takes both keys: a port that answers nobody is of no
    /// use, and one that answers everybody tells strangers which signatures are right.
    pub(super) fn companion(
        &mut self,
        raw: &RawCompanion,
        listeners: &[ListenConfig],
        admin: Option<SocketAddr>,
    ) -> Option<CompanionConfig> {
        let allow_from = self.networks("companion.allow_from", &raw.allow_from);
        let Some(address) = &raw.address else {
            if !raw.allow_from.0.is_empty() {
                self.problem("companion.address", "is missing: allow_from alone does not switch the companion on");
            }
            return None;
        };
        let address = self.address("companion.address", address);
        if raw.allow_from.0.is_empty() {
            self.problem(
                "companion.allow_from",
                "is missing: list the addresses of the ingress; nobody else is answered",
            );
        }
        if let Some(address) = address.filter(|address| address.port() != 0) {
            if listeners.iter().any(|listener| listener.address == Address::Tcp(address)) {
                self.problem("companion.address", "must not be a public listener's address");
            } else if admin == Some(address) {
                self.problem("companion.address", "must not be the admin listener's address");
            }
        }
        if let Some(everybody) = allow_from.iter().find(|network| network.prefix_len() == 0) {
            self.warn(
                "companion.allow_from",
                &format!("{everybody} answers everybody, and believes whom anybody names as the client; list the ingress alone"),
            );
        }
        Some(CompanionConfig { address: address?, allow_from })
    }
}
