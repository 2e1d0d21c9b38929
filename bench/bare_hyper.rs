//! The benchmark's anchor: what a gateway costs on hyper when it does nothing but verify the
//! signature, forward, and check the reply. No freshness, contract, headers, limits, metrics or
//! log; one backend connection for each client connection. Not a product.
//!
//! `bare_hyper LISTEN BACKEND KEY`

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark that cannot go on must stop")]

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use spigate::dialect::mac::SigningKey;
use spigate::dialect::reply::ReplyContract;
use spigate::dialect::{ActionKind, Dialect, builtin};
use spigate::query::{Lookup, Params};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

struct Gateway {
    dialect: Dialect,
    key: SigningKey,
    contract: ReplyContract,
    backend: String,
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, listen, backend, secret] = &arguments[..] else { panic!("bare_hyper LISTEN BACKEND KEY") };
    let dialect = builtin::load().unwrap().remove(0);
    let gateway = Arc::new(Gateway {
        key: dialect.signing_key(secret).unwrap(),
        contract: dialect.action_of(ActionKind::Create).unwrap().reply.clone(),
        dialect,
        backend: backend.clone(),
    });
    let listener = TcpListener::bind(listen).await.unwrap();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let gateway = Arc::clone(&gateway);
        tokio::spawn(async move {
            stream.set_nodelay(true).unwrap();
            let connection = TcpStream::connect(&gateway.backend).await.unwrap();
            connection.set_nodelay(true).unwrap();
            let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(connection)).await.unwrap();
            tokio::spawn(connection);
            let sender = Arc::new(Mutex::new(sender));
            let service = service_fn(move |request| answer(Arc::clone(&gateway), Arc::clone(&sender), request));
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

type Sender = Arc<Mutex<SendRequest<Full<Bytes>>>>;

async fn answer(
    gateway: Arc<Gateway>,
    sender: Sender,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let verified = verify(&gateway, &request);
    if !verified {
        return Ok(json(StatusCode::UNAUTHORIZED, Bytes::from_static(b"{\"success\":false}")));
    }
    let mut outgoing = Request::new(Full::new(Bytes::new()));
    *outgoing.uri_mut() = request.uri().clone();
    outgoing.headers_mut().insert(HOST, HeaderValue::from_str(&gateway.backend).unwrap());
    let mut sender = sender.lock().await;
    sender.ready().await.unwrap();
    let reply = sender.send_request(outgoing).await.unwrap();
    let body = reply.into_body().collect().await.unwrap().to_bytes();
    drop(sender);
    let status = if gateway.contract.judge(&body).is_ok() { StatusCode::OK } else { StatusCode::BAD_GATEWAY };
    Ok(json(status, body))
}

fn verify(gateway: &Gateway, request: &Request<Incoming>) -> bool {
    let Ok(params) = Params::parse(request.uri().query().unwrap_or("").as_bytes(), 64) else { return false };
    let rule = &gateway.dialect.signature;
    let Lookup::Once(text) = params.get(&rule.parameter) else { return false };
    let Some(tag) = rule.output.decode(text) else { return false };
    gateway.dialect.verify(&gateway.key, &tag, "GET", &params).unwrap_or(false)
}

fn json(status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
