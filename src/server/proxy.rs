//! The PROXY protocol: a proxy that hands connections through says first for whom.
//!
//! Versions 1 (a line of text) and 2 (binary), as HAProxy's `proxy-protocol.txt` has them. The
//! header comes before anything else on the connection, TLS too, so it is read from the stream
//! as it is and to the byte: what follows it stays there. Of version 2 only the source address
//! is used; destination, TLVs and their checksum are passed over unread.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::metrics::Metrics;
use crate::peer::Peer;
use crate::throttle::Throttle;

/// Begins a header of version 2.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Longest header of version 1, line end included.
const LONGEST_LINE: usize = 107;
/// Addresses and ports of TCP over IPv6: the most of a header of version 2 that is of interest.
const ADDRESSES: usize = 36;

/// Between two lines about connections that were closed for their header.
const COMPLAIN_AGAIN: Duration = Duration::from_secs(10);

/// Where every connection has to begin with a header.
pub struct Introductions {
    metrics: Arc<Metrics>,
    complaints: Throttle,
}

impl Introductions {
    /// Counts what is wrong in `metrics`.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, complaints: Throttle::new(COMPLAIN_AGAIN) }
    }

    /// Whom a new connection is from; `None` if it has to be closed. Only trusted proxies may speak,
    /// and have to say for whom `within` this time.
    pub async fn introduce(&self, stream: &mut (impl AsyncRead + Unpin), peer: Peer, within: Duration) -> Option<Peer> {
        if !peer.trusted {
            self.refuse("untrusted", &peer);
            return None;
        }
        match tokio::time::timeout(within, read(stream)).await {
            Ok(Ok(Source::Itself)) => Some(peer),
            // Whoever it is, it is not the proxy, and its word counts for nothing.
            Ok(Ok(Source::Unknown)) => Some(Peer { trusted: false, known: false, ..peer }),
            Ok(Ok(Source::Client(address))) => Some(Peer { socket: peer.socket, ..peer.proxies.peer(address) }),
            Ok(Err(HeaderError::Malformed)) => {
                self.refuse("malformed", &peer);
                None
            }
            // Neither is anybody's fault.
            Ok(Err(HeaderError::Absent | HeaderError::Broken(_))) => None,
            Err(_) => {
                self.refuse("timeout", &peer);
                None
            }
        }
    }

    fn refuse(&self, reason: &'static str, peer: &Peer) {
        self.metrics.proxy_protocol_errors.with_label_values(&[reason]).inc();
        if self.complaints.passes() {
            tracing::warn!(
                reason,
                peer = %peer.address,
                "a connection was closed: listen.proxy_protocol is on, and it brought no PROXY header that counts"
            );
        }
    }
}

/// Whom a proxy speaks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Itself: a health check.
    Itself,
    /// A client that it gives no internet address of.
    Unknown,
    /// The client at this address.
    Client(IpAddr),
}

/// Why there is no header.
#[derive(Debug)]
pub enum HeaderError {
    /// The connection ended before its first byte: somebody looked whether the port is open.
    Absent,
    /// What came is no header, or part of one.
    Malformed,
    /// The connection broke.
    Broken(io::Error),
}

impl From<io::Error> for HeaderError {
    fn from(error: io::Error) -> Self {
        if error.kind() == ErrorKind::UnexpectedEof { Self::Malformed } else { Self::Broken(error) }
    }
}

/// Reads a header, and not one byte more.
///
/// Takes as long as the sender does; up to 64 KiB are read, a few bytes of them kept.
///
/// # Errors
/// See [`HeaderError`]. The connection is of no use then.
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Source, HeaderError> {
    // The shortest header, `PROXY UNKNOWN\r\n`, is longer than this.
    let mut start = [0; SIGNATURE.len()];
    let first = stream.read(&mut start).await?;
    if first == 0 {
        return Err(HeaderError::Absent);
    }
    stream.read_exact(&mut start[first..]).await?;
    if start == SIGNATURE { version_2(stream).await } else { version_1(stream, &start).await }
}

async fn version_1(stream: &mut (impl AsyncRead + Unpin), start: &[u8]) -> Result<Source, HeaderError> {
    let mut line = [0; LONGEST_LINE];
    let mut length = start.len();
    line[..length].copy_from_slice(start);
    if !start.starts_with(b"PROXY ") {
        return Err(HeaderError::Malformed);
    }
    // Byte by byte: where the line ends is only known when it does, and what follows is not ours.
    while !line[..length].ends_with(b"\r\n") {
        if length == LONGEST_LINE {
            return Err(HeaderError::Malformed);
        }
        line[length] = stream.read_u8().await?;
        length += 1;
    }
    line_source(&line[..length - 2]).ok_or(HeaderError::Malformed)
}

/// The source of a line without its end; `None` if it is malformed.
fn line_source(line: &[u8]) -> Option<Source> {
    let text = str::from_utf8(line).ok()?.strip_prefix("PROXY ")?;
    // The rest of such a line is to be ignored, whatever it holds.
    if text == "UNKNOWN" || text.starts_with("UNKNOWN ") {
        return Some(Source::Unknown);
    }
    let mut parts = text.split(' ');
    let mut next = || parts.next();
    let (family, source, destination) = (next()?, next()?, next()?);
    let ports = [next()?, next()?];
    let source: IpAddr = match family {
        "TCP4" => source.parse::<Ipv4Addr>().ok().filter(|_| destination.parse::<Ipv4Addr>().is_ok())?.into(),
        "TCP6" => source.parse::<Ipv6Addr>().ok().filter(|_| destination.parse::<Ipv6Addr>().is_ok())?.into(),
        _ => return None,
    };
    (parts.next().is_none() && ports.into_iter().all(is_port)).then_some(Source::Client(source.to_canonical()))
}

/// Digits without a leading zero.
fn is_port(text: &str) -> bool {
    text.parse::<u16>().is_ok_and(|port| port.to_string() == text)
}

async fn version_2(stream: &mut (impl AsyncRead + Unpin)) -> Result<Source, HeaderError> {
    let mut head = [0; 4];
    stream.read_exact(&mut head).await?;
    let [version_and_command, family, high, low] = head;
    let length = usize::from(u16::from_be_bytes([high, low]));
    let mut addresses = [0; ADDRESSES];
    let kept = length.min(ADDRESSES);
    stream.read_exact(&mut addresses[..kept]).await?;
    let mut rest = length - kept;
    let mut passed_over = [0; 512];
    while rest > 0 {
        let part = rest.min(passed_over.len());
        rest -= stream.read_exact(&mut passed_over[..part]).await?;
    }
    block_source(version_and_command, family, &addresses[..kept]).ok_or(HeaderError::Malformed)
}

/// The source in a header of version 2; `None` if it is malformed.
fn block_source(version_and_command: u8, family: u8, addresses: &[u8]) -> Option<Source> {
    match version_and_command {
        // The rest of such a header is to be ignored.
        0x20 => return Some(Source::Itself),
        0x21 => {}
        _ => return None,
    }
    // Families: none, IPv4, IPv6, Unix sockets. Transports: none, stream, datagram.
    match (family >> 4, family & 0xf) {
        (1, 1) => Some(Source::Client(IpAddr::from(*addresses.get(..12)?.first_chunk::<4>()?))),
        (2, 1) => Some(Source::Client(IpAddr::from(*addresses.get(..36)?.first_chunk::<16>()?).to_canonical())),
        (0..=3, 0..=2) => Some(Source::Unknown),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// What a header comes to, and what is left behind it.
    fn outcome(bytes: &[u8]) -> (Option<Source>, Vec<u8>) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut stream = bytes;
            let source = read(&mut stream).await.ok();
            (source, stream.to_vec())
        })
    }

    fn v2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let length = u16::try_from(block.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, block].concat()
    }

    fn client(text: &str) -> Option<Source> {
        Some(Source::Client(text.parse().unwrap()))
    }

    const V4: [u8; 12] = [192, 0, 2, 7, 10, 0, 0, 1, 0x12, 0x34, 0, 80];

    fn v6(source: &str) -> Vec<u8> {
        [&source.parse::<Ipv6Addr>().unwrap().octets()[..], &[0; 16], &[1, 2, 3, 4]].concat()
    }

    #[test]
    fn lines_of_version_1() {
        for (line, source) in [
            ("PROXY TCP4 192.0.2.7 10.0.0.1 4711 80", client("192.0.2.7")),
            ("PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535", client("255.255.255.255")),
            ("PROXY TCP4 192.0.2.7 10.0.0.1 0 0", client("192.0.2.7")),
            ("PROXY TCP6 2001:db8::7 ::1 4711 80", client("2001:db8::7")),
            ("PROXY TCP6 ::ffff:192.0.2.7 ::1 4711 80", client("192.0.2.7")),
            ("PROXY UNKNOWN", Some(Source::Unknown)),
            ("PROXY UNKNOWN ffff::1 whatever \r it says", Some(Source::Unknown)),
        ] {
            let (found, rest) = outcome(format!("{line}\r\nGET / HTTP/1.1\r\n").as_bytes());
            assert_eq!(found, source, "{line}");
            assert_eq!(rest, b"GET / HTTP/1.1\r\n", "{line}");
        }
    }

    #[test]
    fn malformed_lines_of_version_1() {
        for line in [
            "PROXY TCP4 192.0.2.7 10.0.0.1 4711 80\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 4711\r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 4711 80 \r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 4711 80 1\r\n",
            "PROXY TCP4  192.0.2.7 10.0.0.1 4711 80\r\n",
            "PROXY TCP4 192.0.2.7\t10.0.0.1 4711 80\r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 04711 80\r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 +4711 80\r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 65536 80\r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 -1 80\r\n",
            "PROXY TCP4 192.0.2.256 10.0.0.1 4711 80\r\n",
            "PROXY TCP4 192.0.2.07 10.0.0.1 4711 80\r\n",
            "PROXY TCP4 192.0.2.7 ::1 4711 80\r\n",
            "PROXY TCP4 2001:db8::7 ::1 4711 80\r\n",
            "PROXY TCP6 192.0.2.7 10.0.0.1 4711 80\r\n",
            "PROXY TCP6 [2001:db8::7] ::1 4711 80\r\n",
            "PROXY TCP6 fe80::1%eth0 ::1 4711 80\r\n",
            "PROXY UDP4 192.0.2.7 10.0.0.1 4711 80\r\n",
            "PROXY UNKNOWNS\r\n",
            "PROXY tcp4 192.0.2.7 10.0.0.1 4711 80\r\n",
            "proxy TCP4 192.0.2.7 10.0.0.1 4711 80\r\n",
            " PROXY TCP4 192.0.2.7 10.0.0.1 4711 80\r\n",
            "PROXY  UNKNOWN\r\n",
            "PROXY TCP4 192.0.2.\u{e9} 10.0.0.1 4711 80\r\n",
            "GET /spi HTTP/1.1\r\nHost: a\r\n\r\n",
            "PROXY\r\n",
            "",
        ] {
            assert_eq!(outcome(line.as_bytes()).0, None, "{line:?}");
        }
        // Its end is looked for so far and no farther.
        let longest = format!("PROXY UNKNOWN {}\r\n", "x".repeat(LONGEST_LINE - 16));
        assert_eq!(outcome(longest.as_bytes()), (Some(Source::Unknown), Vec::new()));
        let longer = format!("PROXY UNKNOWN {}\r\nrest", "x".repeat(LONGEST_LINE - 15));
        assert_eq!(outcome(longer.as_bytes()).0, None);
    }

    #[test]
    fn headers_of_version_2() {
        let with_tlvs = [&V4[..], &[0x04, 0xff, 0xff], &[7; 3_000]].concat();
        for (bytes, source) in [
            (v2(0x21, 0x11, &V4), client("192.0.2.7")),
            (v2(0x21, 0x11, &with_tlvs), client("192.0.2.7")),
            (v2(0x21, 0x21, &v6("2001:db8::7")), client("2001:db8::7")),
            (v2(0x21, 0x21, &v6("::ffff:192.0.2.7")), client("192.0.2.7")),
            (v2(0x21, 0x21, &[v6("2001:db8::7"), vec![0; 65_499]].concat()), client("2001:db8::7")),
            (v2(0x20, 0x00, &[]), Some(Source::Itself)),
            (v2(0x20, 0xff, &V4[..3]), Some(Source::Itself)),
            (v2(0x20, 0x11, &V4), Some(Source::Itself)),
            (v2(0x21, 0x00, &[]), Some(Source::Unknown)),
            (v2(0x21, 0x00, &[1; 40]), Some(Source::Unknown)),
            (v2(0x21, 0x12, &V4), Some(Source::Unknown)),
            (v2(0x21, 0x31, &[0; 216]), Some(Source::Unknown)),
        ] {
            let (found, rest) = outcome(&[&bytes[..], b"\x16\x03\x01"].concat());
            assert_eq!(found, source, "{:?}", &bytes[12..16]);
            assert_eq!(rest, b"\x16\x03\x01");
        }
    }

    #[test]
    fn malformed_headers_of_version_2() {
        for bytes in [
            v2(0x11, 0x11, &V4),
            v2(0x31, 0x11, &V4),
            v2(0x22, 0x11, &V4),
            v2(0x2f, 0x11, &V4),
            v2(0x21, 0x41, &V4),
            v2(0x21, 0x13, &V4),
            v2(0x21, 0x11, &V4[..11]),
            v2(0x21, 0x21, &v6("2001:db8::7")[..35]),
            v2(0x21, 0x11, &[]),
            v2(0x21, 0x11, &V4)[..27].to_vec(),
            v2(0x21, 0x11, &V4)[..14].to_vec(),
            SIGNATURE.to_vec(),
            SIGNATURE[..11].to_vec(),
        ] {
            assert_eq!(outcome(&bytes).0, None, "{bytes:?}");
        }
    }

    /// Bytes that are nearly a header.
    fn nearly() -> impl Strategy<Value = Vec<u8>> {
        let line = "PROXY TCP4 192.0.2.7 10.0.0.1 4711 80\r\n".as_bytes().to_vec();
        let block = v2(0x21, 0x11, &[&V4[..], &[4, 0, 1, 0]].concat());
        let header =
            prop_oneof![Just(line), Just(block), Just(v2(0x21, 0x21, &v6("2001:db8::7"))), vec(any::<u8>(), 0..64)];
        (header, vec((any::<proptest::sample::Index>(), any::<u8>()), 0..3), any::<u8>()).prop_map(
            |(mut bytes, changes, cut)| {
                for (index, byte) in changes {
                    let length = bytes.len();
                    if length > 0 {
                        bytes[index.index(length)] = byte;
                    }
                }
                bytes.truncate(bytes.len().saturating_sub(usize::from(cut / 32)));
                bytes
            },
        )
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_or_refused_within_bounds(bytes in nearly(), rest in vec(any::<u8>(), 0..200)) {
            let all = [bytes, rest].concat();
            let (source, left) = outcome(&all);
            let taken = all.len() - left.len();
            prop_assert!(taken <= 16 + usize::from(u16::MAX));
            if source.is_some() {
                // A header ends where it says it does, wherever that is.
                let end = if all.starts_with(&SIGNATURE) {
                    16 + usize::from(u16::from_be_bytes([all[14], all[15]]))
                } else {
                    all.windows(2).position(|pair| pair == b"\r\n").unwrap() + 2
                };
                prop_assert_eq!(taken, end);
            }
        }

        #[test]
        fn every_address_survives_either_version(bits: u128, v4: bool, port: u16, rest in vec(any::<u8>(), 0..40)) {
            let (address, line, block) = if v4 {
                let address = Ipv4Addr::from_bits(u32::try_from(bits >> 96).unwrap());
                let block = [&address.octets()[..], &[10, 0, 0, 1], &port.to_be_bytes(), &[0, 80]].concat();
                (IpAddr::V4(address), format!("PROXY TCP4 {address} 10.0.0.1 {port} 80\r\n"), v2(0x21, 0x11, &block))
            } else {
                let address = Ipv6Addr::from_bits(bits);
                let line = format!("PROXY TCP6 {address} ::1 {port} 80\r\n");
                (IpAddr::V6(address).to_canonical(), line, v2(0x21, 0x21, &v6(&address.to_string())))
            };
            for header in [line.into_bytes(), block] {
                let (source, left) = outcome(&[&header[..], &rest].concat());
                prop_assert_eq!(source, Some(Source::Client(address)));
                prop_assert_eq!(&left, &rest);
            }
        }
    }
}
