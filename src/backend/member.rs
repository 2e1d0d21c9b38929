//! One URL of a backend, and a call of it.

use std::sync::Arc;

use http::HeaderValue;
use tokio::time::{Instant, timeout_at};

use super::circuit::Pass;
use super::connection::{Connection, Failed};
use super::dial::Dialer;
use super::health::Health;
use super::outgoing::Written;
use super::pool::Pool;
use super::{CallError, RawReply, Watched, tls};
use crate::config::{BackendConfig, Endpoint};

/// One URL of a backend.
pub(super) struct Member {
    /// Its place among them, from 0.
    pub(super) position: usize,
    pub(super) health: Health,
    pub(super) authority: HeaderValue,
    /// Whether requests, which name the first URL's host, have to be told this one's.
    renames: bool,
    dialer: Dialer,
    pool: Pool,
    reply_bytes: usize,
}

/// How a call failed.
pub(super) enum Failure {
    /// Nothing was sent, and why.
    Unsent(String),
    /// The call's own time was over before the URL had a fair part of it. That says nothing of the URL.
    Late,
    /// There is nothing more to try.
    Over(CallError),
}

/// Prepares all URLs of a backend.
///
/// # Errors
/// What is wrong with its TLS settings.
pub(super) fn all(
    config: &BackendConfig,
    reply_bytes: usize,
    watched: Option<Watched<'_>>,
) -> Result<Vec<Arc<Member>>, String> {
    let needs_tls = config.endpoints().any(|endpoint| endpoint.tls);
    let connector = needs_tls.then(|| tls::connector(&config.tls)).transpose()?;
    let member = |(position, endpoint): (usize, &Endpoint)| {
        let name = config.tls.server_name.as_deref().unwrap_or_else(|| endpoint.address.host());
        let tls = match connector.clone().filter(|_| endpoint.tls) {
            Some(connector) => Some((connector, tls::server_name(name)?)),
            None => None,
        };
        Ok(Arc::new(Member {
            position,
            health: Health::new(&config.circuit, config.probe.is_some(), position, watched),
            authority: endpoint.authority.clone(),
            renames: !config.failover.is_empty(),
            dialer: Dialer { address: endpoint.address.clone(), tls, limit: config.connect_timeout },
            pool: Pool::new(config.keep_alive),
            reply_bytes,
        }))
    };
    config.endpoints().enumerate().map(member).collect()
}

impl Member {
    /// Sends a request and reads the whole reply, until `deadline` at the latest.
    pub(super) async fn call(&self, request: &mut Written, pass: Pass, deadline: Instant) -> Result<RawReply, Failure> {
        if self.renames {
            request.rename(&self.authority);
        }
        let result = self.exchange(request, pass, deadline).await;
        self.judge(pass, &result);
        result
    }

    /// What a call says about this URL's health.
    fn judge(&self, pass: Pass, result: &Result<RawReply, Failure>) {
        match result {
            Ok(reply) if reply.status.is_server_error() => {
                self.health.answered_badly(pass, || format!("it answered {}", reply.status.as_u16()));
            }
            Ok(_) => self.health.succeeded(pass),
            Err(Failure::Late) => return,
            Err(Failure::Unsent(cause) | Failure::Over(CallError::Unreachable(cause))) => {
                return self.health.failed(pass, cause);
            }
            Err(Failure::Over(CallError::Broken(cause))) => self.health.answered_badly(pass, || cause.clone()),
            Err(Failure::Over(CallError::TimedOut)) => {
                self.health.answered_badly(pass, || "no reply came in time".to_owned());
            }
        }
        self.health.called();
    }

    async fn exchange(&self, request: &Written, pass: Pass, deadline: Instant) -> Result<RawReply, Failure> {
        loop {
            let (mut connection, fresh) = match self.pool.check_out() {
                Some(connection) => (connection, false),
                None => {
                    // On the heap: it is rare, and longer than all the rest of a call.
                    let begun = Instant::now();
                    let Ok(connected) = Box::pin(timeout_at(deadline, self.connect())).await else {
                        let is_late = begun.elapsed() < self.dialer.limit / 2;
                        return Err(if is_late { Failure::Late } else { Failure::Over(CallError::no_connection()) });
                    };
                    let connection = connected.map_err(Failure::Unsent)?;
                    self.health.connected(pass);
                    (connection, true)
                }
            };
            match connection.exchange(request.bytes(), self.reply_bytes, deadline).await {
                None => return Err(Failure::Over(CallError::TimedOut)),
                Some(Ok((reply, may_go_on))) => {
                    if may_go_on {
                        self.pool.check_in(connection);
                    }
                    return Ok(reply);
                }
                // Closed while it was idle, which nobody had been told of.
                Some(Err(Failed::Unsent(_))) if !fresh => {}
                Some(Err(Failed::Unsent(cause))) => {
                    return Err(Failure::Unsent(format!("the backend closed a new connection at once: {cause}")));
                }
                Some(Err(Failed::Sent(cause))) => return Err(Failure::Over(CallError::Broken(cause))),
            }
        }
    }

    /// Connects, for a connection test; the connection is kept for the next call.
    ///
    /// # Errors
    /// Why it cannot.
    pub(super) async fn connect_once(&self) -> Result<(), String> {
        self.connect().await.map(|connection| self.pool.check_in(connection))
    }

    /// A new connection.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) async fn connect(&self) -> Result<Connection, String> {
        self.dialer.connect().await.map(Connection::new)
    }
}
