//! Clients of the gateway's TLS: raw bytes for HTTP/1.1, hyper for HTTP/2.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, DigitallySignedStruct, ProtocolVersion, RootCertStore, SignatureScheme, SupportedProtocolVersion,
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::authority::{Authority, Certified};
use super::client::{Connection, Reply};
use super::gateway::Gateway;
use super::within_deadline;

/// What a client brings to a handshake.
pub(crate) struct TlsClient {
    roots: Arc<RootCertStore>,
    versions: Vec<&'static SupportedProtocolVersion>,
    protocols: Vec<Vec<u8>>,
    name: ServerName<'static>,
    certificate: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
}

impl TlsClient {
    /// A client that trusts this authority, asks for `localhost` and offers no protocol.
    pub(crate) fn trusting(authority: &Authority) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap()).unwrap();
        Self {
            roots: Arc::new(roots),
            versions: rustls::ALL_VERSIONS.to_vec(),
            protocols: Vec::new(),
            name: ServerName::try_from("localhost").unwrap(),
            certificate: None,
        }
    }

    pub(crate) fn version(mut self, version: &'static SupportedProtocolVersion) -> Self {
        self.versions = vec![version];
        self
    }

    pub(crate) fn offering(mut self, protocols: &[&str]) -> Self {
        self.protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        self
    }

    pub(crate) fn showing(mut self, certified: &Certified) -> Self {
        let chain = vec![CertificateDer::from_pem_slice(certified.certificate.as_bytes()).unwrap()];
        self.certificate = Some((chain, PrivateKeyDer::from_pem_slice(certified.key.as_bytes()).unwrap()));
        self
    }

    fn config(&self) -> ClientConfig {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&self.versions).unwrap();
        let builder = builder.with_root_certificates(Arc::clone(&self.roots));
        let mut config = match &self.certificate {
            Some((chain, key)) => builder.with_client_auth_cert(chain.clone(), key.clone_key()).unwrap(),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols.clone_from(&self.protocols);
        config.resumption = Resumption::disabled();
        config
    }

    /// A handshake on this connection.
    pub(crate) async fn handshake(&self, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        let connector = TlsConnector::from(Arc::new(self.config()));
        within_deadline("a handshake", connector.connect(self.name.clone(), stream)).await
    }

    pub(crate) async fn connect(&self, address: SocketAddr) -> std::io::Result<TlsStream<TcpStream>> {
        self.handshake(within_deadline("connecting", TcpStream::connect(address)).await?).await
    }

    /// A connection for bytes of HTTP/1.1.
    pub(crate) async fn http1(&self, gateway: &Gateway) -> Connection {
        Connection::over(self.connect(gateway.listen).await.unwrap())
    }

    /// A connection for requests of HTTP/2.
    pub(crate) async fn http2(&self, gateway: &Gateway) -> Http2 {
        Http2::over(self.connect(gateway.listen).await.unwrap()).await
    }
}

/// The protocol version of a connection, and what ALPN chose.
pub(crate) fn chosen(stream: &TlsStream<TcpStream>) -> (ProtocolVersion, Option<Vec<u8>>) {
    let connection = stream.get_ref().1;
    (connection.protocol_version().unwrap(), connection.alpn_protocol().map(<[u8]>::to_vec))
}

/// An HTTP/2 connection.
pub(crate) struct Http2 {
    pub(crate) sender: SendRequest<Empty<Bytes>>,
    connection: tokio::task::JoinHandle<hyper::Result<()>>,
}

impl Http2 {
    pub(crate) async fn over(stream: TlsStream<TcpStream>) -> Self {
        let (sender, connection) =
            http2::Builder::new(TokioExecutor::new()).handshake::<_, Empty<Bytes>>(TokioIo::new(stream)).await.unwrap();
        Self { sender, connection: tokio::spawn(connection) }
    }

    pub(crate) async fn get(&mut self, target: &str) -> Reply {
        self.send(http::Request::get(format!("https://localhost{target}"))).await
    }

    pub(crate) async fn send(&mut self, request: http::request::Builder) -> Reply {
        let request = request.body(Empty::new()).unwrap();
        reply(within_deadline("an answer", self.sender.send_request(request)).await.unwrap()).await
    }

    /// Waits until the gateway has ended the connection.
    pub(crate) async fn until_closed(self) {
        // Kept until then: a client without anything to ask would end it itself.
        let _sender = self.sender;
        let _ = within_deadline("the end of an HTTP/2 connection", self.connection).await.unwrap();
    }
}

/// An answer as the raw client has it.
pub(crate) async fn reply(response: http::Response<hyper::body::Incoming>) -> Reply {
    let (parts, body) = response.into_parts();
    let headers = parts.headers.iter();
    Reply {
        status: parts.status.as_u16(),
        headers: headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect(),
        body: within_deadline("a body", body.collect()).await.unwrap().to_bytes().to_vec(),
    }
}

/// The certificate that a client is shown who asks for this name and takes whatever it gets.
pub(crate) async fn certificate_for(name: &str, address: SocketAddr) -> CertificateDer<'static> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anything))
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].clone()
}

/// Trusts everybody, to see what they show.
#[derive(Debug)]
struct Anything;

impl ServerCertVerifier for Anything {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
