//! The client side: one app's backend, at one URL or at several.
//!
//! A delivery must never be sent twice behind the journal's back, so this is a small HTTP/1 client
//! instead of a general one: a request is tried again, or at another URL, only when provably
//! nothing of it was sent, idle connections are dropped long before a backend does, and every
//! failure says whether the backend may have seen the request. It is also what a general client
//! cannot be, cheap: a request is one buffer, and no task stands between it and its reply.
//!
//! - `outgoing.rs`: a request, as bytes (pure)
//! - `member.rs`: one URL, and a call of it
//! - `connection.rs`: a request on a connection, and the bytes of its reply
//! - `reply.rs`: what they mean (pure)
//! - `dial.rs`: a connection to it; `tls.rs`: what of that is TLS
//! - `pool.rs`: connections that are idle
//! - `circuit.rs`: when a URL is left alone for a while (pure)
//! - `health.rs`: what is known of a URL's health, told and counted
//! - `probe.rs`: looks whether a URL is well

mod circuit;
mod connection;
pub(crate) mod dial;
mod health;
mod member;
pub mod outgoing;
mod pool;
mod probe;
mod reply;
pub mod tls;

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use crate::config::BackendConfig;
use crate::metrics::Metrics;
use member::{Failure, Member};
use outgoing::{Outgoing, Written};

pub use tls::client_tls;

/// One app's backend. What looks after it ends when it is dropped.
pub struct Backend {
    /// What the configuration says.
    pub config: BackendConfig,
    /// In the order in which they are tried.
    members: Vec<Arc<Member>>,
    _probes: Vec<AbortOnDropHandle<()>>,
}

/// Where a backend's state is told: whose it is, and what counts it.
#[derive(Clone, Copy)]
pub struct Watched<'a> {
    /// The app's name.
    pub app: &'a str,
    /// All metrics.
    pub metrics: &'a Metrics,
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

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(cause) => write!(f, "no connection: {cause}"),
            Self::Broken(cause) => write!(f, "the reply broke off: {cause}"),
            Self::TimedOut => f.write_str("no complete reply in time"),
        }
    }
}

impl std::error::Error for CallError {}

impl CallError {
    fn no_connection() -> Self {
        Self::Unreachable("no connection in time".into())
    }
}

impl Backend {
    /// Prepares a backend; connects to nothing yet, except that it probes where it is told to,
    /// for which it has to be made within a runtime.
    ///
    /// # Errors
    /// What is wrong with its TLS settings; validated configurations have nothing wrong.
    pub fn new(config: &BackendConfig, reply_bytes: usize, watched: Option<Watched<'_>>) -> Result<Self, String> {
        let members = member::all(config, reply_bytes, watched)?;
        let probes = config.probe.iter().flat_map(|probe| {
            members
                .iter()
                .map(|member| AbortOnDropHandle::new(tokio::spawn(probe::keep(Arc::clone(member), probe.clone()))))
        });
        let probes = probes.collect();
        Ok(Self { config: config.clone(), members, _probes: probes })
    }

    /// Sends a request and reads the whole reply, until `deadline` at the latest.
    ///
    /// The first URL that is well and takes the request gets it. URLs that a probe found unwell
    /// come last: a probe is a hint, and no reason to refuse what may well be possible.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn call(
        &self,
        request: Outgoing,
        deadline: Instant,
    ) -> impl Future<Output = Result<RawReply, CallError>> + Send {
        // Before the future is made, which would have to carry it as it was.
        self.send(request.write(), deadline)
    }

    async fn send(&self, mut request: Written, deadline: Instant) -> Result<RawReply, CallError> {
        let mut causes = Causes { text: String::new(), named: self.members.len() > 1 };
        let mut tried = 0_u32;
        for unwell_too in [false, true] {
            for member in &self.members {
                let this = 1 << member.position;
                if tried & this != 0 || (!unwell_too && member.health.is_unwell()) {
                    continue;
                }
                tried |= this;
                let Some(pass) = member.health.admit() else {
                    causes.add(member.position, "not called: too many calls in a row failed, its circuit is open");
                    continue;
                };
                match member.call(&mut request, pass, deadline).await {
                    Ok(reply) => return Ok(reply),
                    Err(Failure::Over(error)) => return Err(error),
                    Err(Failure::Late) => return Err(CallError::no_connection()),
                    Err(Failure::Unsent(cause)) => causes.add(member.position, &cause),
                }
            }
        }
        Err(CallError::Unreachable(causes.text))
    }

    /// The host and port of the first URL.
    pub fn authority(&self) -> Option<&HeaderValue> {
        self.members.first().map(|member| &member.authority)
    }

    /// Whether one of the URLs accepts a connection until `deadline`, whatever is known of their
    /// health.
    ///
    /// # Errors
    /// [`CallError::Unreachable`].
    pub async fn accepts(&self, deadline: Instant) -> Result<(), CallError> {
        timeout_at(deadline, self.connect_to_any()).await.unwrap_or_else(|_| Err(CallError::no_connection()))
    }

    async fn connect_to_any(&self) -> Result<(), CallError> {
        let mut causes = Causes { text: String::new(), named: self.members.len() > 1 };
        for member in &self.members {
            match member.connect_once().await {
                Ok(()) => return Ok(()),
                Err(cause) => causes.add(member.position, &cause),
            }
        }
        Err(CallError::Unreachable(causes.text))
    }

    /// Whether the probe found a URL well; without a probe, yes.
    pub fn is_ready(&self) -> bool {
        self.members.iter().any(|member| member.health.is_ready())
    }

    /// Writes the state of each URL into the metrics.
    pub fn show(&self) {
        for member in &self.members {
            member.health.show();
        }
    }
}

/// Why nothing was sent, URL by URL where there are several.
struct Causes {
    text: String,
    named: bool,
}

impl Causes {
    fn add(&mut self, position: usize, cause: &str) {
        if !self.text.is_empty() {
            self.text.push_str("; ");
        }
        if self.named {
            // Not the URL, which is nobody's business but the configuration's.
            self.text.push_str(&format!("backend {position}: "));
        }
        self.text.push_str(cause);
    }
}

/// An error and its sources, in one line.
#[cfg(any(feature = "postgres", feature = "otel"))]
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{BackendTls, CircuitConfig, ClientIdentity, Endpoint, ProbeConfig, Send};

    fn config() -> BackendConfig {
        BackendConfig {
            // A port that nobody listens on.
            endpoint: Endpoint::parse("http://127.0.0.1:1/").unwrap().0,
            failover: Vec::new(),
            send: Send::Json,
            answer_within: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            connect_timeout: Duration::from_secs(1),
            keep_alive: Duration::ZERO,
            path: "/".into(),
            tls: BackendTls::default(),
            circuit: CircuitConfig::OFF,
            probe: None,
            routes: Vec::new(),
        }
    }

    /// What took the time was something else, the journal for one.
    #[tokio::test(start_paused = true)]
    async fn a_call_whose_time_is_over_says_nothing_of_a_backend_that_had_none_of_it() {
        // Its kernel takes connections, and nobody speaks TLS on them.
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}/", silent.local_addr().unwrap());
        let circuit = CircuitConfig { failures: 1, open_for: Duration::from_secs(3600), ..CircuitConfig::OFF };
        let config = BackendConfig { endpoint: Endpoint::parse(&url).unwrap().0, circuit, ..config() };
        let backend = Backend::new(&config, 1, None).unwrap();
        for (time, opens) in [(0, false), (400, false), (600, true)] {
            let deadline = Instant::now() + Duration::from_millis(time);
            let request = Outgoing::new(http::Method::POST, &"/".parse().unwrap(), &HeaderValue::from_static("h"));
            let called = backend.call(request, deadline).await;
            assert!(matches!(called, Err(CallError::Unreachable(_))), "{time} ms");
            assert_eq!(backend.members[0].health.admit().is_none(), opens, "{time} ms");
        }
    }

    #[tokio::test]
    async fn probes_end_with_the_backend() {
        let probe = ProbeConfig { path: None, every: Duration::from_millis(1), timeout: Duration::from_secs(1) };
        let backend = Backend::new(&BackendConfig { probe: Some(probe), ..config() }, 1, None).unwrap();
        let member = Arc::downgrade(&backend.members[0]);
        while !backend.members[0].health.is_unwell() {
            tokio::task::yield_now().await;
        }
        drop(backend);
        let gone = async {
            while member.upgrade().is_some() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), gone).await.expect("the probe still runs");
    }

    #[test]
    fn another_content_of_a_file_is_another_configuration_and_no_key_is_shown() {
        let with = |key: &str| {
            let identity = ClientIdentity {
                certificate_pem: b"certificate".to_vec(),
                key_pem: crate::config::scalar::Secret::new(key),
            };
            BackendConfig { tls: BackendTls { identity: Some(identity), ..BackendTls::default() }, ..config() }
        };
        assert_eq!(with("k3y-one"), with("k3y-one"));
        assert_ne!(with("k3y-one"), with("k3y-two"));
        assert!(!format!("{:?}", with("k3y-one")).contains("k3y"));
    }
}
