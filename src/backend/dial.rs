//! A connection to one URL of a backend: TCP or a Unix socket, with or without TLS.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::config::Address;

/// Most headers of a reply; hyper's own default, written down because a test relies on it.
const MAX_REPLY_HEADERS: usize = 100;
/// Most bytes of a reply's head, and of a read.
const MAX_REPLY_HEAD: usize = 64 * 1024;
/// Pause before a Unix socket whose queue is full is tried again.
const QUEUE_PAUSE: Duration = Duration::from_millis(10);

/// A connection that requests can be sent on.
pub(super) type Sender = SendRequest<Full<Bytes>>;

/// Connects to one URL.
pub(super) struct Dialer {
    pub(super) address: Address,
    /// With the name that the certificate must have.
    pub(super) tls: Option<(TlsConnector, ServerName<'static>)>,
    /// Longest time, TLS included.
    pub(super) limit: Duration,
}

impl Dialer {
    /// A new connection.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) async fn connect(&self) -> Result<Sender, String> {
        match timeout(self.limit, self.open()).await {
            Ok(result) => result.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no connection within {} ms", self.limit.as_millis())),
        }
    }

    async fn open(&self) -> io::Result<Sender> {
        match &self.address {
            Address::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                self.secure(stream).await
            }
            Address::Unix(path) => loop {
                match UnixStream::connect(path).await {
                    Ok(stream) => return self.secure(stream).await,
                    // The backend's queue is full. TCP would wait by itself.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => tokio::time::sleep(QUEUE_PAUSE).await,
                    Err(error) => return Err(error),
                }
            },
        }
    }

    async fn secure<S>(&self, stream: S) -> io::Result<Sender>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        match &self.tls {
            Some((connector, name)) => handshake(connector.connect(name.clone(), stream).await?).await,
            None => handshake(stream).await,
        }
    }
}

async fn handshake<S>(stream: S) -> io::Result<Sender>
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

#[cfg(test)]
mod tests {
    use tokio::net::UnixSocket;

    use super::*;

    #[tokio::test]
    async fn a_unix_socket_whose_queue_is_full_is_waited_for() {
        let path = std::env::temp_dir().join(format!("spigate-dial-{}.sock", std::process::id()));
        let socket = UnixSocket::new_stream().unwrap();
        socket.bind(&path).unwrap();
        let listener = socket.listen(0).unwrap();
        let mut queued = Vec::new();
        let full = loop {
            match UnixStream::connect(&path).await {
                Ok(stream) => queued.push(stream),
                Err(error) => break error,
            }
            assert!(queued.len() < 1_000);
        };
        let dialer = |limit| Dialer { address: Address::Unix(path.clone()), tls: None, limit };
        let hasty = dialer(Duration::from_millis(50)).connect().await;
        let patient = dialer(Duration::from_secs(30));
        let patient = tokio::spawn(async move { patient.connect().await.map(drop) });
        listener.accept().await.unwrap();
        let connected = patient.await.unwrap();
        let _ = std::fs::remove_file(listener.local_addr().unwrap().as_pathname().unwrap());
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(hasty.map(drop), Err("no connection within 50 ms".to_owned()));
        assert_eq!(connected, Ok(()));
    }
}
