//! A connection to one URL of a backend: TCP or a Unix socket, with or without TLS.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::config::Address;
use crate::server::stream::{Socket, delegate};

/// Pause before a Unix socket whose queue is full is tried again.
const QUEUE_PAUSE: Duration = Duration::from_millis(10);

/// A connection that requests can be written to.
pub(crate) enum Stream {
    /// In clear.
    Plain(Socket),
    /// After a TLS handshake.
    Tls(Box<TlsStream<Socket>>),
}

delegate!(Stream { Plain, Tls });

/// Connects to one URL.
pub(crate) struct Dialer {
    pub(crate) address: Address,
    /// With the name that the certificate must have.
    pub(crate) tls: Option<(TlsConnector, ServerName<'static>)>,
    /// Longest time, TLS included.
    pub(crate) limit: Duration,
}

impl Dialer {
    /// A new connection.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) async fn connect(&self) -> Result<Stream, String> {
        match timeout(self.limit, self.open()).await {
            Ok(result) => result.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no connection within {} ms", self.limit.as_millis())),
        }
    }

    async fn open(&self) -> io::Result<Stream> {
        match &self.address {
            Address::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                self.secure(Socket::Tcp(stream)).await
            }
            Address::Unix(path) => loop {
                match UnixStream::connect(path).await {
                    Ok(stream) => return self.secure(Socket::Unix(stream)).await,
                    // The backend's queue is full. TCP would wait by itself.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => tokio::time::sleep(QUEUE_PAUSE).await,
                    Err(error) => return Err(error),
                }
            },
        }
    }

    async fn secure(&self, socket: Socket) -> io::Result<Stream> {
        Ok(match &self.tls {
            Some((connector, name)) => Stream::Tls(Box::new(connector.connect(name.clone(), socket).await?)),
            None => Stream::Plain(socket),
        })
    }
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
