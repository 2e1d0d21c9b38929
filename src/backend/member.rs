//! One URL of a backend, and a call of it.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HOST};
use http::{HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use tokio::time::{Instant, timeout_at};

use super::circuit::Pass;
use super::dial::{Dialer, Sender};
use super::health::Health;
use super::pool::Pool;
use super::{CallError, RawReply, Watched, describe, tls};
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
    /// Nothing was sent: here is the request again, and why.
    Unsent(Box<Request<Full<Bytes>>>, String),
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
    pub(super) async fn call(
        &self,
        mut request: Request<Full<Bytes>>,
        pass: Pass,
        deadline: Instant,
    ) -> Result<RawReply, Failure> {
        if self.renames {
            request.headers_mut().insert(HOST, self.authority.clone());
        }
        let mut sent = false;
        let result = match timeout_at(deadline, self.exchange(request, pass, &mut sent)).await {
            Ok(result) => result,
            Err(_) if sent => Err(Failure::Over(CallError::TimedOut)),
            Err(_) => Err(Failure::Over(CallError::Unreachable("no connection in time".into()))),
        };
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
            Err(Failure::Unsent(_, cause) | Failure::Over(CallError::Unreachable(cause))) => {
                self.health.failed(pass, cause);
                return;
            }
            Err(Failure::Over(CallError::Broken(cause))) => self.health.answered_badly(pass, || cause.clone()),
            Err(Failure::Over(CallError::TimedOut)) => {
                self.health.answered_badly(pass, || "no reply came in time".to_owned());
            }
        }
        self.health.called();
    }

    async fn exchange(
        &self,
        mut request: Request<Full<Bytes>>,
        pass: Pass,
        sent: &mut bool,
    ) -> Result<RawReply, Failure> {
        loop {
            let (mut sender, fresh) = match self.pool.check_out().await {
                Some(sender) => (sender, false),
                None => match self.dialer.connect().await {
                    Ok(sender) => {
                        self.health.connected(pass);
                        (sender, true)
                    }
                    Err(cause) => return Err(Failure::Unsent(Box::new(request), cause)),
                },
            };
            *sent = true;
            match sender.try_send_request(request).await {
                Ok(response) => {
                    let reply = self.read(response).await.map_err(Failure::Over)?;
                    self.pool.check_in(sender);
                    return Ok(reply);
                }
                Err(mut error) => match error.take_message() {
                    // hyper gives the request back only if not a byte of it was written.
                    Some(unsent) if !fresh => {
                        *sent = false;
                        request = unsent;
                    }
                    Some(unsent) => {
                        let cause = "the backend closed a new connection at once".to_owned();
                        return Err(Failure::Unsent(Box::new(unsent), cause));
                    }
                    None => return Err(Failure::Over(CallError::Broken(describe(&error.into_error())))),
                },
            }
        }
    }

    async fn read(&self, response: http::Response<hyper::body::Incoming>) -> Result<RawReply, CallError> {
        let (mut parts, mut body) = response.into_parts();
        // Readers differ in which of two they believe.
        for name in [CONTENT_TYPE, CONTENT_ENCODING] {
            if parts.headers.get_all(&name).iter().count() > 1 {
                return Err(CallError::Broken(format!("the reply has more than one {name}")));
            }
        }
        if parts.status == StatusCode::SWITCHING_PROTOCOLS {
            return Err(CallError::Broken("the backend switched protocols".into()));
        }
        let over_long = || CallError::Broken(format!("the reply is longer than {} bytes", self.reply_bytes));
        let mut first = Bytes::new();
        let mut rest = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| CallError::Broken(describe(&error)))?;
            // Trailers are not part of the protocol.
            let Ok(data) = frame.into_data() else { continue };
            if first.len() + rest.len() + data.len() > self.reply_bytes {
                return Err(over_long());
            }
            if first.is_empty() {
                first = data;
            } else {
                rest.extend_from_slice(&data);
            }
        }
        // Nearly every reply is one frame, which is passed on without a copy.
        let body = if rest.is_empty() { first } else { [first, rest.freeze()].concat().into() };
        Ok(RawReply {
            status: parts.status,
            content_type: parts.headers.remove(CONTENT_TYPE),
            content_encoding: parts.headers.remove(CONTENT_ENCODING),
            body,
        })
    }

    /// Connects, for a connection test; the connection is kept for the next call.
    ///
    /// # Errors
    /// Why it cannot.
    pub(super) async fn connect_once(&self) -> Result<(), String> {
        self.connect().await.map(|sender| self.pool.check_in(sender))
    }

    /// A new connection.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) async fn connect(&self) -> Result<Sender, String> {
        self.dialer.connect().await
    }
}
