//! What both ends need of HTTP/1.1 and of sockets.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

/// Where the head of a message ends, if it has come whole.
pub(crate) fn end_of_head(bytes: &[u8]) -> Option<usize> {
    memchr::memmem::find(bytes, b"\r\n\r\n").map(|at| at + 4)
}

/// The value of a header, if there is exactly one of that name.
pub(crate) fn header<'a>(head: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let mut values = head.split(|&byte| byte == b'\n').skip(1).filter_map(|line| {
        let (found, value) = line.split_at(memchr::memchr(b':', line)?);
        found.eq_ignore_ascii_case(name.as_bytes()).then(|| value[1..].trim_ascii())
    });
    let value = values.next()?;
    values.next().is_none().then_some(value)
}

/// `Content-Length`, as a number.
pub(crate) fn content_length(head: &[u8]) -> Option<usize> {
    std::str::from_utf8(header(head, "content-length")?).ok()?.parse().ok()
}

/// What came of reading what there is.
#[derive(PartialEq)]
pub(crate) enum Got {
    /// All of it.
    All,
    /// All of it, and the other side will send no more.
    End,
}

/// Reads what there is, at most a chunk: epoll tells again when there is more.
pub(crate) fn read_some(mut stream: impl io::Read, into: &mut Vec<u8>) -> io::Result<Got> {
    const CHUNK: usize = 64 * 1024;
    let filled = into.len();
    // A buffer that has its size costs nothing to fill again.
    into.resize(filled + CHUNK.min(into.capacity().saturating_sub(filled).max(4096)), 0);
    let read = stream.read(&mut into[filled..]);
    into.truncate(filled + *read.as_ref().unwrap_or(&0));
    match read {
        Ok(0) => Ok(Got::End),
        Ok(_) => Ok(Got::All),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(Got::All),
        Err(error) => Err(error),
    }
}

/// A client's connection, perhaps under TLS.
pub(crate) enum Connection {
    Plain(TcpStream),
    Tls(Box<ClientConnection>, TcpStream),
}

/// Trusts exactly one certificate, for `localhost`.
pub(crate) fn trusting(file: &str) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(file).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    Arc::new(config.with_root_certificates(roots).with_no_client_auth())
}

impl Connection {
    pub(crate) fn open(port: u16, tls: Option<&Arc<ClientConfig>>) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_nodelay(true).unwrap();
        let connection = tls.map(|config| {
            let name = ServerName::try_from("localhost").unwrap();
            let mut connection = ClientConnection::new(Arc::clone(config), name).unwrap();
            while connection.is_handshaking() {
                connection.complete_io(&mut stream).unwrap();
            }
            Box::new(connection)
        });
        stream.set_nonblocking(true).unwrap();
        match connection {
            None => Self::Plain(stream),
            Some(connection) => Self::Tls(connection, stream),
        }
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) | Self::Tls(_, stream) => stream,
        }
    }

    /// Sends a request; it always fits the socket's buffer, because the one before was answered.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.write_all(bytes),
            Self::Tls(connection, stream) => {
                connection.writer().write_all(bytes)?;
                while connection.wants_write() {
                    connection.write_tls(stream)?;
                }
                Ok(())
            }
        }
    }

    pub(crate) fn receive(&mut self, into: &mut Vec<u8>) -> io::Result<Got> {
        match self {
            Self::Plain(stream) => read_some(stream, into),
            Self::Tls(connection, stream) => {
                match connection.read_tls(stream) {
                    Ok(0) => return Ok(Got::End),
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Got::All),
                    Err(error) => return Err(error),
                }
                let state = connection.process_new_packets().map_err(io::Error::other)?;
                let filled = into.len();
                into.resize(filled + state.plaintext_bytes_to_read(), 0);
                connection.reader().read_exact(&mut into[filled..])?;
                Ok(Got::All)
            }
        }
    }
}
