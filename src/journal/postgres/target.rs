//! The server that `journal.url` names, and how it is spoken to.
//!
//! What the URL may say is what its library reads, with three of libpq's spellings beside it:
//! `sslrootcert`, and `sslmode` as `verify-ca` and `verify-full`. Certificates are verified
//! whenever TLS is spoken, so that these two ask for nothing more than `require` does.

use std::time::Duration;

use percent_encoding::percent_decode_str;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::config::{SslMode, TargetSessionAttrs};
use tokio_postgres::{Client, Config};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::failure::{self, OpenError};
use crate::backend::client_tls;
use crate::config::scalar::Secret;

/// How long a dead peer goes unnoticed.
const SILENCE: Duration = Duration::from_secs(10);

/// Where the server is.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) config: Config,
    pub(super) tls: MakeRustlsConnect,
    /// How long a connection may take.
    pub(super) limit: Duration,
}

impl Target {
    /// Reads a URL. Connects to nothing. `limit` is how long a connection may take.
    ///
    /// # Errors
    /// What is wrong with it, without a part of it: any part may be one of a password that was
    /// not percent-encoded.
    pub(super) fn parse(url: &Secret, limit: Duration) -> Result<Self, String> {
        let (base, query) = url.expose().split_once('?').unwrap_or((url.expose(), ""));
        let mut options = Vec::new();
        let mut roots = None;
        for option in query.split('&').filter(|option| !option.is_empty()) {
            match option.split_once('=') {
                Some(("sslrootcert", "system")) => {}
                Some(("sslrootcert", file)) => roots = Some(read_roots(file)?),
                Some(("sslmode", "verify-ca" | "verify-full")) => options.push("sslmode=require"),
                // The server decides, as with prefer.
                Some(("sslmode", "allow")) => options.push("sslmode=prefer"),
                _ => options.push(option),
            }
        }
        let given =
            |name: &str| options.iter().any(|option| option.split_once('=').is_some_and(|(key, _)| key == name));
        let mut config: Config = format!("{base}?{}", options.join("&")).parse().map_err(|_| {
            "must be postgres://USER:PASSWORD@HOST:PORT/DATABASE, with special characters of its parts \
             percent-encoded; options known after a ? are sslmode (disable, prefer, require, verify-full), \
             sslrootcert, channel_binding, connect_timeout, application_name, options, target_session_attrs, \
             load_balance_hosts, hostaddr, keepalives and tcp_user_timeout"
                .to_owned()
        })?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err("must name a host: postgres://USER:PASSWORD@HOST:PORT/DATABASE".into());
        }
        if !given("application_name") {
            config.application_name("spigate");
        }
        if !given("connect_timeout") {
            config.connect_timeout(limit);
        }
        if !given("tcp_user_timeout") {
            config.tcp_user_timeout(SILENCE);
        }
        if !given("keepalives_idle") {
            config.keepalives_idle(SILENCE / 2);
            config.keepalives_interval(SILENCE / 5);
            config.keepalives_retries(3);
        }
        // Of several hosts it is the one that can be written which has the journal.
        if !given("target_session_attrs") && config.get_hosts().len() > 1 {
            config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        let roots = match config.get_ssl_mode() {
            // Reads nothing then: without TLS there is nothing to trust.
            SslMode::Disable => None,
            _ => roots.as_deref(),
        };
        let tls = client_tls(roots).map_err(|problem| format!("its sslrootcert {problem}"))?;
        Ok(Self { config, tls: MakeRustlsConnect::new(tls), limit })
    }

    /// A connection of its own, beside the pool. It ends with its client.
    pub(super) async fn connect(&self) -> Result<(Client, JoinHandle<()>), OpenError> {
        match timeout(self.limit, self.config.connect(self.tls.clone())).await {
            Ok(Ok((client, connection))) => {
                // What breaks it reaches whoever uses the client.
                let driver = async move { connection.await.unwrap_or_default() };
                Ok((client, tokio::spawn(driver)))
            }
            Ok(Err(error)) => Err(failure::explain(&error)),
            Err(_) => Err(OpenError::Unreachable(format!("no connection within {} ms", self.limit.as_millis()))),
        }
    }
}

fn read_roots(file: &str) -> Result<Vec<u8>, String> {
    let file = percent_decode_str(file).decode_utf8().map_err(|_| "its sslrootcert is not UTF-8".to_owned())?;
    std::fs::read(&*file).map_err(|error| format!("its sslrootcert {file} cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Target, String> {
        Target::parse(&Secret::new(url), Duration::from_secs(2))
    }

    #[test]
    fn libpqs_spellings_are_known() {
        let mode = |url| parse(url).unwrap().config.get_ssl_mode();
        assert_eq!(mode("postgres://u:p@h/d"), SslMode::Prefer);
        assert_eq!(mode("postgres://u:p@h/d?sslmode=disable"), SslMode::Disable);
        assert_eq!(mode("postgres://u:p@h/d?sslmode=verify-full&sslrootcert=system"), SslMode::Require);
    }

    #[test]
    fn an_error_shows_nothing_of_the_url() {
        for url in ["postgres://u:geheim@h/d?x", "postgres://u:geheim@h:port/d", "postgres://u:geheim@h/d?geheim=1"] {
            let error = parse(url).err().unwrap();
            assert!(!error.contains("geheim"), "{error}");
        }
        let error = parse("postgres:///spigate").err().unwrap();
        assert!(error.contains("must name a host"), "{error}");
        let error = parse("postgres://u:geheim@h/d?sslrootcert=/nowhere.pem").err().unwrap();
        assert!(error.contains("/nowhere.pem") && !error.contains("geheim"), "{error}");
    }

    #[test]
    fn several_hosts_mean_the_one_that_can_be_written() {
        let attributes = |url| parse(url).unwrap().config.get_target_session_attrs();
        assert_eq!(attributes("postgres://u@a,b/d"), TargetSessionAttrs::ReadWrite);
        assert_eq!(attributes("postgres://u@a/d"), TargetSessionAttrs::Any);
        assert_eq!(attributes("postgres://u@a,b/d?target_session_attrs=any"), TargetSessionAttrs::Any);
    }
}
