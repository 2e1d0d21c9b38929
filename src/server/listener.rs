//! Where connections come in: a TCP port or a Unix socket.

use std::fs::{self, Permissions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::inherited::Inherited;
use super::stream::{Socket, UNSPECIFIED};
use crate::config::listen::Address;

/// A bound public listener.
pub struct Listener {
    socket: Listening,
    /// Whether it is also open elsewhere, and stays so when this process lets go of it.
    outlives: bool,
}

enum Listening {
    /// A TCP port.
    Tcp(TcpListener),
    /// A Unix socket, and its file if it is ours. That goes first: once nobody listens, another
    /// process may make its own.
    Unix(Option<SocketFile>, UnixListener),
}

/// A socket's file, removed when its listener is gone.
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Whoever removed it before has done the same.
        let _ = fs::remove_file(&self.0);
    }
}

/// Owner and group may connect: a proxy or an app beside shares the group.
const MODE: u32 = 0o660;

impl Listener {
    /// Binds an address, or takes the socket that was handed over for it. A socket's file that
    /// nobody listens on any more is replaced.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub async fn bind(address: &Address, inherited: &mut Inherited) -> io::Result<Self> {
        let (socket, outlives) = match address {
            Address::Tcp(address) => match inherited.tcp(*address) {
                Some(listener) => (Listening::Tcp(TcpListener::from_std(listener)?), true),
                None => (Listening::Tcp(TcpListener::bind(address).await?), false),
            },
            Address::Unix(path) => match inherited.unix(path) {
                Some(listener) => (Listening::Unix(None, UnixListener::from_std(listener)?), true),
                None => {
                    remove_stale(path)?;
                    let listener = UnixListener::bind(path)?;
                    let file = SocketFile(path.clone());
                    fs::set_permissions(path, Permissions::from_mode(MODE))?;
                    (Listening::Unix(Some(file), listener), false)
                }
            },
        };
        Ok(Self { socket, outlives })
    }

    /// Where it really listens.
    ///
    /// # Errors
    /// Only if the system cannot tell.
    pub fn address(&self) -> io::Result<Address> {
        match &self.socket {
            Listening::Tcp(listener) => listener.local_addr().map(Address::Tcp),
            Listening::Unix(_, listener) => {
                let address = listener.local_addr()?;
                Ok(Address::Unix(address.as_pathname().unwrap_or(Path::new("")).to_owned()))
            }
        }
    }

    /// The next connection and its peer's address; a Unix socket's peer has none.
    ///
    /// # Errors
    /// What the system says.
    pub async fn accept(&self) -> io::Result<(Socket, SocketAddr)> {
        match &self.socket {
            Listening::Tcp(listener) => listener.accept().await.map(|(stream, peer)| (Socket::Tcp(stream), peer)),
            Listening::Unix(_, listener) => {
                listener.accept().await.map(|(stream, _)| (Socket::Unix(stream), UNSPECIFIED))
            }
        }
    }

    /// Closes the listener and returns the connections that waited to be accepted: their clients
    /// know them as open, and may have sent a request. Those of a socket that outlives this process
    /// go on waiting, for the next one.
    ///
    /// Asks the kernel, not the runtime, which may not have been told of them yet.
    pub fn close(self) -> Vec<(Socket, SocketAddr)> {
        let mut waiting = Vec::new();
        if self.outlives {
            return waiting;
        }
        match self.socket {
            Listening::Tcp(listener) => {
                let Ok(listener) = listener.into_std() else { return waiting };
                while let Ok((stream, peer)) = listener.accept() {
                    let adopted = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
                    waiting.extend(adopted.map(|stream| (Socket::Tcp(stream), peer)));
                }
            }
            Listening::Unix(file, listener) => {
                // Nobody new first, then those who came before.
                drop(file);
                let Ok(listener) = listener.into_std() else { return waiting };
                while let Ok((stream, _)) = listener.accept() {
                    let adopted = stream.set_nonblocking(true).and_then(|()| UnixStream::from_std(stream));
                    waiting.extend(adopted.map(|stream| (Socket::Unix(stream), UNSPECIFIED)));
                }
            }
        }
        waiting
    }
}

/// Removes a socket's file whose process is gone.
fn remove_stale(path: &Path) -> io::Result<()> {
    let is_socket = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type().is_socket(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !is_socket {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file of this name that is no socket"));
    }
    match StdUnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens on this socket")),
        Err(error) => Err(error),
    }
}
