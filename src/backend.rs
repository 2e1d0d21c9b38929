//! The client side: one app's backend and its pooled connections.
//!
//! A delivery must never be sent twice behind the journal's back, so this is a small client
//! over hyper's own connection type instead of a general one: a request is tried again only
//! when hyper hands it back unsent, idle connections are dropped long before a backend does,
//! and every failure says whether the backend may have seen the request.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;

use crate::config::BackendConfig;

/// Most headers of a reply; hyper's own default, written down because a test relies on it.
const MAX_REPLY_HEADERS: usize = 100;
/// Most bytes of a reply's head, and of a read.
const MAX_REPLY_HEAD: usize = 64 * 1024;

/// One app's backend.
pub struct Backend {
    config: BackendConfig,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    reply_bytes: usize,
    idle: Arc<Mutex<VecDeque<Idle>>>,
    /// Whether a sweeper looks after the idle ones.
    swept: Arc<AtomicBool>,
}

struct Idle {
    sender: SendRequest<Full<Bytes>>,
    since: Instant,
}

/// A complete reply, not judged yet.
#[derive(Clone, Debug)]
pub struct RawReply {
    /// Its status.
    pub status: StatusCode,
    /// Its media type, as sent.
    pub content_type: Option<HeaderValue>,
    /// Its content coding, as sent.
    pub content_encoding: Option<HeaderValue>,
    /// Its body.
    pub body: Bytes,
}

/// Why there is no complete reply.
#[derive(Debug)]
pub enum CallError {
    /// Nothing was sent.
    Unreachable(String),
    /// The request was sent; the reply broke off or was too long.
    Broken(String),
    /// The request was sent; no complete reply came in time.
    TimedOut,
}

impl Backend {
    /// Prepares a backend; connects to nothing yet.
    ///
    /// # Errors
    /// What is wrong with its TLS settings; validated configurations have nothing wrong.
    pub fn new(config: BackendConfig, reply_bytes: usize) -> Result<Self, String> {
        let tls = match tls_config(&config)? {
            Some(tls) => {
                let name = ServerName::try_from(config.endpoint.host.clone())
                    .map_err(|_| "the host cannot be checked against a certificate".to_owned())?;
                Some((TlsConnector::from(tls), name))
            }
            None => None,
        };
        Ok(Self { config, tls, reply_bytes, idle: Arc::default(), swept: Arc::default() })
    }

    /// Sends a request and reads the whole reply, until `deadline` at the latest.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn call(&self, request: Request<Full<Bytes>>, deadline: Instant) -> Result<RawReply, CallError> {
        let mut sent = false;
        match timeout_at(deadline, self.exchange(request, &mut sent)).await {
            Ok(result) => result,
            Err(_) if sent => Err(CallError::TimedOut),
            Err(_) => Err(CallError::Unreachable("no connection in time".into())),
        }
    }

    /// Whether the backend accepts a connection.
    ///
    /// # Errors
    /// [`CallError::Unreachable`].
    pub async fn probe(&self) -> Result<(), CallError> {
        self.connect().await.map(|sender| self.check_in(sender))
    }

    async fn exchange(&self, mut request: Request<Full<Bytes>>, sent: &mut bool) -> Result<RawReply, CallError> {
        loop {
            let (mut sender, fresh) = match self.check_out().await {
                Some(sender) => (sender, false),
                None => (self.connect().await?, true),
            };
            *sent = true;
            match sender.try_send_request(request).await {
                Ok(response) => {
                    let reply = self.read(response).await?;
                    self.check_in(sender);
                    return Ok(reply);
                }
                Err(mut error) => match error.take_message() {
                    // hyper gives the request back only if not a byte of it was written.
                    Some(unsent) if !fresh => {
                        *sent = false;
                        request = unsent;
                    }
                    Some(_) => {
                        return Err(CallError::Unreachable("the backend closed a new connection at once".into()));
                    }
                    None => return Err(CallError::Broken(describe(&error.into_error()))),
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

    async fn check_out(&self) -> Option<SendRequest<Full<Bytes>>> {
        loop {
            let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop_back()?;
            let Idle { mut sender, since } = idle;
            if since.elapsed() < self.config.keep_alive && !sender.is_closed() && sender.ready().await.is_ok() {
                return Some(sender);
            }
        }
    }

    fn check_in(&self, sender: SendRequest<Full<Bytes>>) {
        if sender.is_closed() || self.config.keep_alive.is_zero() {
            return;
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        // Connections enter an empty pool again only after the sweeper has left it.
        if idle.is_empty() && !self.swept.swap(true, Ordering::Relaxed) {
            tokio::spawn(sweep(Arc::clone(&self.idle), Arc::clone(&self.swept), self.config.keep_alive));
        }
        idle.push_back(Idle { sender, since: Instant::now() });
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, CallError> {
        let limit = self.config.connect_timeout;
        match timeout(limit, self.open()).await {
            Ok(Ok(sender)) => Ok(sender),
            Ok(Err(error)) => Err(CallError::Unreachable(error.to_string())),
            Err(_) => Err(CallError::Unreachable(format!("no connection within {} ms", limit.as_millis()))),
        }
    }

    async fn open(&self) -> io::Result<SendRequest<Full<Bytes>>> {
        let endpoint = &self.config.endpoint;
        let stream = TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await?;
        stream.set_nodelay(true)?;
        match &self.tls {
            Some((connector, name)) => handshake(connector.connect(name.clone(), stream).await?).await,
            None => handshake(stream).await,
        }
    }
}

/// Closes connections that have been idle for `keep_alive`, until there are none.
///
/// A backend with a worker for each connection would else keep them busy with nothing.
async fn sweep(idle: Arc<Mutex<VecDeque<Idle>>>, swept: Arc<AtomicBool>, keep_alive: Duration) {
    loop {
        let next = {
            let mut idle = idle.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            // The oldest stand in front.
            while idle.front().is_some_and(|oldest| now >= oldest.since + keep_alive) {
                idle.pop_front();
            }
            match idle.front() {
                Some(oldest) => oldest.since + keep_alive,
                None => {
                    swept.store(false, Ordering::Relaxed);
                    return;
                }
            }
        };
        tokio::time::sleep_until(next).await;
    }
}

async fn handshake<S>(stream: S) -> io::Result<SendRequest<Full<Bytes>>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::Builder::new()
        .max_headers(MAX_REPLY_HEADERS)
        .max_buf_size(MAX_REPLY_HEAD)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    // Ends when the sender is dropped or the backend closes; its error reaches the caller
    // through the sender.
    tokio::spawn(connection);
    Ok(sender)
}

/// An error and its sources, in one line.
pub(crate) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

/// TLS settings of an https backend; `None` for http.
///
/// # Errors
/// What is wrong with them.
pub fn tls_config(config: &BackendConfig) -> Result<Option<Arc<ClientConfig>>, String> {
    config.endpoint.tls.then(|| client_tls(config.ca_pem.as_deref()).map(Arc::new)).transpose()
}

/// TLS for a client that trusts these roots or, without any, the system's.
///
/// # Errors
/// What is wrong with the roots.
pub fn client_tls(ca_pem: Option<&[u8]>) -> Result<ClientConfig, String> {
    let roots = match ca_pem {
        Some(pem) => {
            let mut roots = RootCertStore::empty();
            for certificate in CertificateDer::pem_slice_iter(pem) {
                let certificate = certificate.map_err(|_| "is not a PEM file of certificates".to_owned())?;
                roots.add(certificate).map_err(|_| "holds a certificate that cannot be a root".to_owned())?;
            }
            if roots.is_empty() {
                return Err("holds no certificate".into());
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
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
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
