//! Sockets that were open before the process was: systemd listens on them and hands them over
//! (socket activation, `LISTEN_FDS`). They outlive the process, so that a restart refuses nobody.
//!
//! A socket belongs to the listener whose address it has; the configuration needs no word about it.

use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::PathBuf;

use listenfd::ListenFd;

use crate::config::listen::Address;

/// The sockets that nobody has taken yet.
#[derive(Debug, Default)]
pub struct Inherited(Vec<Handed>);

/// A socket and its address.
#[derive(Debug)]
enum Handed {
    Tcp(SocketAddr, StdTcpListener),
    Unix(PathBuf, StdUnixListener),
}

impl Inherited {
    /// Takes what was handed over, once, and removes the variables that say so. To be called before
    /// there is a second thread: one that reads the environment meanwhile would be in danger.
    ///
    /// # Errors
    /// What was handed over is no listening socket of a kind that spigate serves.
    pub fn take() -> Result<Self, String> {
        let mut descriptors = ListenFd::from_env();
        let sockets = (0..descriptors.len()).map(|index| {
            let handed = Handed::from(&mut descriptors, index);
            handed.map_err(|error| format!("LISTEN_FDS: socket {} of {}: {error}", index + 1, descriptors.len()))
        });
        sockets.collect::<Result<_, _>>().map(Self)
    }

    /// The TCP socket for a listener at `address`. One on all addresses of IPv6 is also on those of
    /// IPv4: `ListenStream=8080` makes one.
    pub fn tcp(&mut self, address: SocketAddr) -> Option<StdTcpListener> {
        let serves = |at: SocketAddr| {
            at == address
                || at.port() == address.port()
                    && at.ip().is_unspecified()
                    && address.ip().is_unspecified()
                    && at.is_ipv6()
        };
        let index = self.0.iter().position(|handed| matches!(handed, Handed::Tcp(at, _) if serves(*at)))?;
        match self.0.swap_remove(index) {
            Handed::Tcp(_, listener) => Some(listener),
            Handed::Unix(..) => None,
        }
    }

    /// The Unix socket for a listener at this path.
    pub fn unix(&mut self, path: &std::path::Path) -> Option<StdUnixListener> {
        let same = |at: &PathBuf| {
            at == path || at.canonicalize().ok().zip(path.canonicalize().ok()).is_some_and(|(at, path)| at == path)
        };
        let index = self.0.iter().position(|handed| matches!(handed, Handed::Unix(at, _) if same(at)))?;
        match self.0.swap_remove(index) {
            Handed::Unix(_, listener) => Some(listener),
            Handed::Tcp(..) => None,
        }
    }

    /// Makes sure that no socket is left over: connections to it would wait for ever.
    ///
    /// # Errors
    /// The addresses of those that are.
    pub fn all_taken(&self) -> Result<(), String> {
        if self.0.is_empty() {
            return Ok(());
        }
        let addresses = self.0.iter().map(|handed| match handed {
            Handed::Tcp(at, _) => at.to_string(),
            Handed::Unix(at, _) => Address::Unix(at.clone()).to_string(),
        });
        Err(format!(
            "the service manager handed over a socket that no listener of the configuration has: {}; make \
             ListenStream= of the socket unit and listen.address (or listeners, companion.address, admin.address) agree",
            addresses.collect::<Vec<_>>().join(", ")
        ))
    }
}

impl Handed {
    fn from(descriptors: &mut ListenFd, index: usize) -> io::Result<Self> {
        if let Ok(Some(listener)) = descriptors.take_tcp_listener(index) {
            listener.set_nonblocking(true)?;
            return Ok(Self::Tcp(listener.local_addr()?, listener));
        }
        let listener = descriptors.take_unix_listener(index)?.ok_or(io::ErrorKind::NotFound)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let path = address.as_pathname().ok_or_else(|| io::Error::other("it has no path"))?;
        Ok(Self::Unix(path.to_owned(), listener))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handed(address: &str) -> Inherited {
        let listener = StdTcpListener::bind("127.0.0.1:0").unwrap();
        Inherited(vec![Handed::Tcp(address.parse().unwrap(), listener)])
    }

    #[test]
    fn a_socket_goes_to_the_listener_of_its_address() {
        for (socket, listener, fits) in [
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("0.0.0.0:80", "0.0.0.0:80", true),
            ("[::]:80", "[::]:80", true),
            ("[::]:80", "0.0.0.0:80", true),
            ("0.0.0.0:80", "[::]:80", false),
            ("127.0.0.1:80", "127.0.0.1:81", false),
            ("127.0.0.1:80", "0.0.0.0:80", false),
            ("[::]:80", "127.0.0.1:80", false),
        ] {
            let mut inherited = handed(socket);
            assert_eq!(inherited.tcp(listener.parse().unwrap()).is_some(), fits, "{socket} {listener}");
            assert_eq!(inherited.all_taken().is_ok(), fits);
        }
    }

    #[test]
    fn who_is_left_over_is_named() {
        let left_over = handed("192.0.2.1:443").all_taken().unwrap_err();
        assert!(left_over.contains("192.0.2.1:443") && left_over.contains("ListenStream="), "{left_over}");
    }
}
