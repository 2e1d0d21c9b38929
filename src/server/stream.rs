//! The ways in: a TCP connection or one of a Unix socket, with or without TLS, as one type, so
//! that everything above is compiled once.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use rustix::net::{RecvFlags, recv};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;

/// A connection as it was accepted.
pub enum Socket {
    /// By TCP.
    Tcp(TcpStream),
    /// By a Unix socket.
    Unix(UnixStream),
}

/// The address of a peer that has none.
pub const UNSPECIFIED: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

impl Socket {
    /// Sends small answers at once, without waiting for the acknowledgement of the one before.
    ///
    /// # Errors
    /// A connection that is gone.
    pub fn set_nodelay(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_nodelay(true),
            Self::Unix(_) => Ok(()),
        }
    }

    /// Reads what can be read without waiting.
    ///
    /// # Errors
    /// Also that nothing can.
    pub fn try_read(&self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_read(bytes),
            Self::Unix(stream) => stream.try_read(bytes),
        }
    }

    /// Writes what can be written without waiting.
    ///
    /// # Errors
    /// Also that nothing can.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_write(bytes),
            Self::Unix(stream) => stream.try_write(bytes),
        }
    }
}

impl Socket {
    /// The same connection once more: it stays open until both are dropped.
    ///
    /// # Errors
    /// No file descriptor left, mostly.
    pub fn duplicate(&self) -> io::Result<Self> {
        let descriptor = self.as_fd().try_clone_to_owned()?;
        Ok(match self {
            Self::Tcp(_) => Self::Tcp(TcpStream::from_std(descriptor.into())?),
            Self::Unix(_) => Self::Unix(UnixStream::from_std(descriptor.into())?),
        })
    }

    /// Ends this side and reads what the other end still sends, until it ends its own. Closing before
    /// would have the kernel answer with a reset, which can overtake what was written.
    pub async fn linger(mut self) {
        // It may have ended already.
        let _ = self.shutdown().await;
        let mut ignored = [0; 1024];
        while self.read(&mut ignored).await.is_ok_and(|length| length > 0) {}
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

/// Reads from and writes to whichever variant it is.
macro_rules! delegate {
    ($type:ty { $($variant:ident),+ }) => {
        impl AsyncRead for $type {
            fn poll_read(
                self: Pin<&mut Self>,
                context: &mut Context<'_>,
                buffer: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    $(Self::$variant(stream) => Pin::new(stream).poll_read(context, buffer),)+
                }
            }
        }

        impl AsyncWrite for $type {
            fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
                match self.get_mut() {
                    $(Self::$variant(stream) => Pin::new(stream).poll_write(context, bytes),)+
                }
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                context: &mut Context<'_>,
                bytes: &[io::IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                match self.get_mut() {
                    $(Self::$variant(stream) => Pin::new(stream).poll_write_vectored(context, bytes),)+
                }
            }

            fn is_write_vectored(&self) -> bool {
                match self {
                    $(Self::$variant(stream) => stream.is_write_vectored(),)+
                }
            }

            fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    $(Self::$variant(stream) => Pin::new(stream).poll_flush(context),)+
                }
            }

            fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    $(Self::$variant(stream) => Pin::new(stream).poll_shutdown(context),)+
                }
            }
        }
    };
}

pub(crate) use delegate;

delegate!(Socket { Tcp, Unix });

/// A connection that requests can be read from.
pub enum Stream {
    /// In clear.
    Plain(Socket),
    /// After a TLS handshake.
    Tls(Box<TlsStream<Socket>>),
}

delegate!(Stream { Plain, Tls });

/// Whether the kernel holds bytes that were not read yet. The runtime may not have been told of
/// them, so that reading in the usual way cannot tell.
pub trait Waiting {
    /// See the trait.
    fn has_input(&self) -> bool;
}

impl Waiting for Stream {
    fn has_input(&self) -> bool {
        let socket = match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => stream.get_ref().0,
        };
        let mut byte = [0_u8; 1];
        recv(socket, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT).is_ok_and(|(_, length)| length > 0)
    }
}
