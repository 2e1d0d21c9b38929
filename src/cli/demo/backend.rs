//! The demo's sample backend: what a vendor writes when spigate does the rest. It reads JSON,
//! answers by the dialect's samples, and keeps what it received for the table.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::dialect::Dialect;

/// The path at which the backend answers what no platform can read.
pub(super) const BROKEN: &str = "/broken";

/// The path at which it takes its time, until it is [told to go on](SampleBackend::go_on).
pub(super) const SLOW: &str = "/slow";

/// The sample backend.
#[derive(Clone)]
pub(super) struct SampleBackend {
    dialect: Arc<Dialect>,
    received: Arc<Mutex<Vec<String>>>,
    count: Arc<AtomicUsize>,
    goes_on: watch::Sender<bool>,
}

impl SampleBackend {
    /// Starts it on a free loopback port.
    ///
    /// # Errors
    /// No port to be had.
    pub(super) async fn start(dialect: Arc<Dialect>) -> io::Result<(Self, SocketAddr)> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let backend =
            Self { dialect, received: Arc::default(), count: Arc::default(), goes_on: watch::Sender::new(false) };
        let served = backend.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let backend = served.clone();
                let service = service_fn(move |request| backend.clone().answer(request));
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Ok((backend, address))
    }

    /// Takes what was received since the last call.
    pub(super) fn take_received(&self) -> Vec<String> {
        std::mem::take(&mut self.received.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// From here on it takes its time nowhere.
    pub(super) fn go_on(&self) {
        self.goes_on.send_replace(true);
    }

    async fn answer(self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let is_broken = request.uri().path() == BROKEN;
        let is_slow = request.uri().path() == SLOW;
        let line = format!("{} {}", request.method(), request.uri().path());
        let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let text = String::from_utf8_lossy(&body).into_owned();
        let action = serde_json::from_slice::<serde_json::Value>(&body)
            .ok()
            .and_then(|body| body.get(&self.dialect.action_parameter)?.as_str().map(str::to_owned));
        self.received.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{line}\n{}", super::members(&text)));
        if is_slow {
            // The sender is there for as long as this is.
            let _ = self.goes_on.subscribe().wait_for(|goes_on| *goes_on).await;
        }
        // A new id for each purchase, as the platform demands.
        let number = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        let reply = match action.and_then(|name| self.dialect.action_index(&name)) {
            Some(_) if is_broken => r#"{"success":"yes"}"#.to_owned(),
            Some(action) => self.dialect.actions[action]
                .reply
                .sample
                .replace("{new_id}", &format!("demo-{number}"))
                .replace("{password}", "shown-once"),
            None => r#"{"success":false,"message":"unknown action"}"#.to_owned(),
        };
        let mut response = Response::new(Full::new(Bytes::from(reply)));
        // Most frameworks add the character set, which the platform does not take; spigate does.
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
        Ok(response)
    }
}
