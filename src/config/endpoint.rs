//! URLs of backends: `http://host:port/path` and, for a Unix socket, `http://unix:/socket:/path`.

use std::path::PathBuf;

use http::uri::PathAndQuery;
use http::{HeaderValue, Uri};

/// An http or https endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Whether it is https.
    pub tls: bool,
    /// Where it is.
    pub address: Address,
    /// Value of the Host header.
    pub authority: HeaderValue,
    /// The query of the url, if it has one.
    pub query: Option<String>,
}

/// Where an endpoint is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// On the network.
    Tcp {
        /// Host name or address, without brackets.
        host: String,
        /// Port.
        port: u16,
    },
    /// A Unix socket on this machine.
    Unix(PathBuf),
}

impl Address {
    /// The name that a certificate of it has: its host, and `localhost` for a Unix socket.
    pub fn host(&self) -> &str {
        match self {
            Self::Tcp { host, .. } => host,
            Self::Unix(_) => LOCALHOST,
        }
    }
}

/// What a Unix socket is called in the Host header, as with other clients.
const LOCALHOST: &str = "localhost";
/// Longest name of a Unix socket on Linux; other systems have less, and say so when connecting.
const LONGEST_SOCKET: usize = 107;

impl Endpoint {
    /// Reads a url: the endpoint, and the url's path.
    ///
    /// # Errors
    /// What is wrong with it. Never the url itself: it may hold a password.
    pub fn parse(url: &str) -> Result<(Self, String), &'static str> {
        if url.contains('#') {
            return Err("must not have a fragment");
        }
        for (scheme, tls) in [("http://unix:", false), ("https://unix:", true)] {
            // A host may be called so, too, and then has a port.
            if let Some(rest) = url.strip_prefix(scheme).filter(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
            {
                return Self::of_socket(rest, tls);
            }
        }
        if url.starts_with("unix:") {
            return Err("must begin with http:// or https://; a Unix socket is http://unix:/run/app.sock:/path");
        }
        let uri: Uri = url.parse().map_err(|_| "is not a URL")?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err("must begin with http:// or https://"),
        };
        let authority = uri.authority().ok_or("has no host")?;
        if authority.as_str().contains('@') {
            return Err("must not have a user or a password");
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err("has no host");
        }
        let port = match authority.as_str().rsplit_once(':') {
            // An IPv6 address has colons of its own, and ends in a bracket.
            Some((_, port)) if !port.ends_with(']') => {
                port.parse().ok().filter(|&port| port > 0).ok_or("must have a port from 1 to 65535")?
            }
            _ if tls => 443,
            _ => 80,
        };
        let endpoint = Self {
            tls,
            address: Address::Tcp { host, port },
            authority: HeaderValue::from_str(authority.as_str()).map_err(|_| "has no host")?,
            query: query(uri.query()),
        };
        Ok((endpoint, uri.path().to_owned()))
    }

    /// What follows `unix:`. The socket's name ends at the first colon, as in nginx.
    fn of_socket(rest: &str, tls: bool) -> Result<(Self, String), &'static str> {
        let (socket, target) = rest.split_once(':').unwrap_or((rest, "/"));
        if !socket.starts_with('/') || socket.ends_with('/') || socket.contains(['?', '\0']) {
            return Err("must name a Unix socket by its whole path, as in http://unix:/run/app.sock:/path");
        }
        if socket.len() > LONGEST_SOCKET {
            return Err("names a Unix socket with more than 107 bytes, the most that the system takes");
        }
        let target = if target.is_empty() { "/" } else { target };
        if !target.starts_with('/') {
            return Err("must have a path after the Unix socket, as in http://unix:/run/app.sock:/path");
        }
        let target: PathAndQuery = target.parse().map_err(|_| "is not a URL")?;
        let endpoint = Self {
            tls,
            address: Address::Unix(socket.into()),
            authority: HeaderValue::from_static(LOCALHOST),
            query: query(target.query()),
        };
        Ok((endpoint, target.path().to_owned()))
    }
}

/// Whether two endpoints are one.
pub(super) fn same_place(one: &Endpoint, other: &Endpoint) -> bool {
    (one.tls, &one.address) == (other.tls, &other.address)
}

fn query(query: Option<&str>) -> Option<String> {
    query.filter(|query| !query.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unix_socket_ends_at_the_first_colon() {
        for (url, socket, path, own) in [
            ("http://unix:/run/app.sock:/internal/spi", "/run/app.sock", "/internal/spi", None),
            ("http://unix:/run/app.sock:/spi?a=b:c", "/run/app.sock", "/spi", Some("a=b:c")),
            ("http://unix:/run/app.sock", "/run/app.sock", "/", None),
            ("https://unix:/run/app.sock:", "/run/app.sock", "/", None),
        ] {
            let (endpoint, found) = Endpoint::parse(url).unwrap();
            assert_eq!(endpoint.address, Address::Unix(socket.into()), "{url}");
            assert_eq!((found.as_str(), endpoint.query.as_deref()), (path, own), "{url}");
            assert_eq!((endpoint.authority.as_bytes(), endpoint.tls), (&b"localhost"[..], url.starts_with("https")));
        }
    }

    #[test]
    fn a_host_may_be_called_unix() {
        let (endpoint, path) = Endpoint::parse("http://unix:9000/spi").unwrap();
        assert_eq!(endpoint.address, Address::Tcp { host: "unix".into(), port: 9000 });
        assert_eq!((path.as_str(), endpoint.authority.as_bytes()), ("/spi", &b"unix:9000"[..]));
    }

    #[test]
    fn a_url_that_names_no_socket_says_how_to_name_one() {
        let long = format!("http://unix:/{}:/spi", "x".repeat(107));
        for (url, what) in [
            ("unix:/run/app.sock:/spi", "http://unix:/run/app.sock:/path"),
            ("http://unix:run/app.sock:/spi", "whole path"),
            ("http://unix:", "whole path"),
            ("http://unix:/run/:/spi", "whole path"),
            ("http://unix:/run/app.sock:spi", "path after the Unix socket"),
            ("http://unix:/run/app.sock:/spi#x", "fragment"),
            ("http://unix:/run/app.sock:/s pi", "is not a URL"),
            (&long, "107 bytes"),
        ] {
            let error = Endpoint::parse(url).unwrap_err();
            assert!(error.contains(what), "{url}: {error}");
        }
    }
}
