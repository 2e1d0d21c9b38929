//! `[admin]`: where operators look, and who may.

use std::net::SocketAddr;

use super::raw::RawAdmin;
use super::scalar::Secret;
use super::validate::{Validator, is_host};

/// Shorter tokens can be guessed.
const SHORTEST_TOKEN: usize = 32;

/// The admin listener.
#[derive(Clone, Debug)]
pub struct AdminConfig {
    /// Where it listens.
    pub address: SocketAddr,
    /// What one has to show.
    pub token: Option<Secret>,
    /// Names by which a browser may come, lower case.
    pub hosts: Vec<String>,
    /// Whether nothing can be changed.
    pub read_only: bool,
}

impl Validator<'_> {
    pub(super) fn admin(&mut self, raw: &RawAdmin) -> Option<AdminConfig> {
        let address = self.address("admin.address", &raw.address);
        let token = raw.token.as_ref().and_then(|token| {
            let (place, token) = self.secret("admin.token", &token.file, &token.env, &token.value)?;
            if token.expose().len() < SHORTEST_TOKEN {
                self.problem(&place, "must have at least 32 characters; make one with `openssl rand -base64 32`");
            } else if !token.expose().bytes().all(|byte| byte.is_ascii_graphic()) {
                self.problem(&place, "must be visible ASCII characters without spaces: it travels in a header");
            }
            Some(token)
        });
        let hosts = raw.hosts.0.iter().map(|host| host.to_ascii_lowercase()).collect::<Vec<_>>();
        if !hosts.iter().all(|host| is_host(host)) {
            self.problem("admin.hosts", "must be host names, without scheme and port");
        }
        Some(AdminConfig { address: address?, token, hosts, read_only: raw.read_only.0 })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::config::source::Sources;
    use crate::config::{self, Config};
    use crate::dialect::builtin;

    fn load(admin: &str) -> Result<Config, String> {
        let text = format!(
            "[admin]\n{admin}\n[[apps]]\nname = \"crm\"\npath = \"/spi\"\ndialect = \"{}\"\n\
             keys = [{{ id = \"k\", value = \"secret\" }}]\n[apps.backend]\nurl = \"http://127.0.0.1:1/\"\n",
            builtin::load().unwrap()[0].name
        );
        let sources = Sources { file: "test".into(), text, ..Sources::default() };
        let config = config::load(&sources, Path::new("."));
        config.map_err(|problems| problems.iter().map(|problem| format!("{problem}\n")).collect())
    }

    #[test]
    fn what_keeps_nobody_out_is_refused_and_never_shown() {
        for (admin, expected) in [
            ("token = { value = \"hush-hush\" }", "admin.token.value: must have at least 32"),
            ("token = { value = \"hush-hush and-30-more-characters-beside\" }", "admin.token.value: must be visible"),
            ("token = { file = \"/none\" }", "admin.token.file: cannot be read"),
            ("token = {}", "admin.token: must have exactly one"),
            ("hosts = [\"https://ops.example\"]", "admin.hosts: must be host names"),
            ("hosts = [\"ops.example:9090\"]", "admin.hosts: must be host names"),
        ] {
            let problems = load(admin).unwrap_err();
            assert!(problems.contains(expected) && !problems.contains("hush"), "{admin}: {problems}");
        }
        let config =
            load("token = { value = \"0123456789abcdef0123456789abcdef\" }\nhosts = \"A.example, b\"").unwrap();
        assert_eq!(config.admin.hosts, ["a.example", "b"]);
        assert!(!format!("{:?}", config.admin).contains("0123456789abcdef"));
    }
}
