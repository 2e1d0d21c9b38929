//! Whose request is it? The client's address, as far as proxies that are trusted vouch for it.
//!
//! Each proxy in front appends the address that it was called from, so the list is read from the
//! right: over trusted proxies to the first address that is not one. What stands left of that
//! was written by whoever has that address, and may be anything. Pure: no I/O.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::header::FORWARDED;
use http::{HeaderMap, HeaderName};

use super::{Peer, Proxies};

/// The list of addresses that most proxies write.
pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// The client's address; if that is not known, the last one on the way that is.
    pub address: IpAddr,
    /// Whether it is the client's. A trusted proxy may say that it does not know, or say it
    /// badly, or two headers may name different clients.
    pub known: bool,
}

/// The client behind `peer`, by its `Forwarded` (RFC 7239) and `X-Forwarded-For`.
///
/// A peer that is not trusted is the client itself, whatever it claims. Most proxies write one of
/// the two headers and pass on whatever a stranger put into the other. So neither is preferred:
/// where both stand they have to name the same client, else it is not known.
pub fn client(peer: &Peer, headers: &HeaderMap) -> Client {
    let own = Client { address: peer.address, known: peer.known };
    if !peer.trusted {
        return own;
    }
    let named = |name: &HeaderName, read: fn(&[u8]) -> Vec<Option<IpAddr>>| {
        let mut lines = headers.get_all(name).iter().rev().peekable();
        lines.peek()?;
        let entries = lines.flat_map(|line| read(line.as_bytes()).into_iter().rev());
        Some(walk(peer.address, entries, &peer.proxies))
    };
    match (named(&FORWARDED, forwarded), named(&X_FORWARDED_FOR, x_forwarded_for)) {
        (None, None) => own,
        (Some(named), None) | (None, Some(named)) => named,
        (Some(one), Some(other)) if one == other => one,
        _ => Client { address: peer.address, known: false },
    }
}

/// From the peer leftwards, over trusted proxies. An entry that names no address ends the walk:
/// nothing beyond it is believed.
fn walk(peer: IpAddr, entries: impl Iterator<Item = Option<IpAddr>>, proxies: &Proxies) -> Client {
    let mut address = peer;
    for entry in entries {
        let Some(before) = entry else { return Client { address, known: false } };
        address = before;
        if !proxies.include(address) {
            break;
        }
    }
    Client { address, known: true }
}

/// A line of `X-Forwarded-For`, left to right; `None` for what is no address.
fn x_forwarded_for(line: &[u8]) -> Vec<Option<IpAddr>> {
    let address = |entry: &[u8]| {
        let text = str::from_utf8(entry.trim_ascii()).ok()?;
        // Without brackets a port cannot be told from an IPv6 address's end, so there is none.
        text.parse().ok().or_else(|| node(text))
    };
    line.split(|&byte| byte == b',').map(|entry| address(entry).map(|address: IpAddr| address.to_canonical())).collect()
}

/// A line of `Forwarded`, left to right; `None` for an element that names no address.
fn forwarded(line: &[u8]) -> Vec<Option<IpAddr>> {
    match split(line, b',') {
        Some(elements) => elements.into_iter().map(forwarded_for).collect(),
        // A quote that a stranger opened may have swallowed what the proxy added.
        None => vec![None],
    }
}

/// The `for` of an element: exactly one.
fn forwarded_for(element: &[u8]) -> Option<IpAddr> {
    let mut found = None;
    for pair in split(element, b';')? {
        let equals = pair.iter().position(|&byte| byte == b'=')?;
        let (name, value) = (pair[..equals].trim_ascii(), pair[equals + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"for") && found.replace(value).is_some() {
            return None;
        }
    }
    let value = match found? {
        [b'"', inner @ .., b'"'] => inner,
        value => value,
    };
    node(str::from_utf8(value).ok()?).map(|address| address.to_canonical())
}

/// Splits at a separator outside of quoted strings; `None` if a quote stays open.
fn split(text: &[u8], separator: u8) -> Option<Vec<&[u8]>> {
    let (mut parts, mut begin, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (index, &byte) in text.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if byte == separator && !quoted => {
                parts.push(&text[begin..index]);
                begin = index + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[begin..]);
    (!quoted).then_some(parts)
}

/// RFC 7239, section 6: `192.0.2.1`, `192.0.2.1:80`, `[2001:db8::1]`, `[2001:db8::1]:_port`. No
/// `unknown`, no obfuscated name: these name no address.
fn node(text: &str) -> Option<IpAddr> {
    let (address, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']')?;
            (IpAddr::V6(address.parse::<Ipv6Addr>().ok()?), port)
        }
        None => {
            let (address, port) = text.split_at(text.find(':').unwrap_or(text.len()));
            (IpAddr::V4(address.parse::<Ipv4Addr>().ok()?), port)
        }
    };
    (port.is_empty() || port.strip_prefix(':').is_some_and(is_port)).then_some(address)
}

fn is_port(text: &str) -> bool {
    let obfuscated = |name: &str| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
    };
    let digits = (1..=5).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    digits || text.strip_prefix('_').is_some_and(obfuscated)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn proxies() -> Proxies {
        Proxies::new(["10.0.0.0/8", "fd00::/8"].map(|network| network.parse().unwrap()))
    }

    /// The client that these lines name to a trusted proxy; `None` if it is not known.
    fn named(lines: &[(HeaderName, &str)]) -> Option<IpAddr> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        let proxies = proxies();
        let client = client(&proxies.peer("10.0.0.1".parse().unwrap()), &headers);
        client.known.then_some(client.address)
    }

    fn is(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn nobody_is_believed_who_is_not_trusted() {
        let mut headers = HeaderMap::new();
        headers.insert(X_FORWARDED_FOR, HeaderValue::from_static("192.0.2.7"));
        let stranger: IpAddr = "192.0.2.1".parse().unwrap();
        let own = Client { address: stranger, known: true };
        assert_eq!(client(&proxies().peer(stranger), &headers), own);
        assert_eq!(client(&Proxies::default().peer(stranger), &headers), own);
    }

    #[test]
    fn the_list_is_read_from_the_right_over_trusted_proxies() {
        let xff = |list| named(&[(X_FORWARDED_FOR, list)]);
        assert_eq!(named(&[]), is("10.0.0.1"));
        assert_eq!(xff("192.0.2.7"), is("192.0.2.7"));
        assert_eq!(xff("192.0.2.9, 192.0.2.7, 10.0.0.2"), is("192.0.2.7"));
        assert_eq!(xff("10.0.0.3, 10.0.0.2"), is("10.0.0.3"));
        assert_eq!(xff("nonsense, 192.0.2.7"), is("192.0.2.7"));
        assert_eq!(named(&[(X_FORWARDED_FOR, "6.6.6.6"), (X_FORWARDED_FOR, "192.0.2.7")]), is("192.0.2.7"));
        assert_eq!(named(&[(X_FORWARDED_FOR, "192.0.2.7"), (X_FORWARDED_FOR, "10.0.0.2")]), is("192.0.2.7"));
    }

    #[test]
    fn what_names_no_address_ends_the_walk() {
        for list in [
            "192.0.2.7, unknown",
            "192.0.2.7, _hidden",
            "192.0.2.7,",
            "",
            "192.0.2.7, 10.0.0.256",
            "192.0.2.7, 10.0.0.2:",
            "192.0.2.7, 10.0.0.2:port",
            "192.0.2.7, [fd00::1",
            "192.0.2.7, [10.0.0.2]",
            "192.0.2.7, fd00::1%eth0",
            "192.0.2.7, \"10.0.0.2\"",
            "192.0.2.7 10.0.0.2",
            "192.0.2.7, 010.0.0.2",
        ] {
            assert_eq!(named(&[(X_FORWARDED_FOR, list)]), None, "{list}");
        }
        // The last address that is known still stands for it.
        let mut headers = HeaderMap::new();
        headers.insert(X_FORWARDED_FOR, HeaderValue::from_static("192.0.2.7, unknown, 10.0.0.2"));
        let found = client(&proxies().peer("10.0.0.1".parse().unwrap()), &headers);
        assert_eq!(found, Client { address: "10.0.0.2".parse().unwrap(), known: false });
    }

    #[test]
    fn addresses_come_in_many_forms() {
        for (entry, address) in [
            ("192.0.2.7:4711", "192.0.2.7"),
            ("192.0.2.7:_hidden", "192.0.2.7"),
            ("2001:db8::7", "2001:db8::7"),
            ("[2001:db8::7]", "2001:db8::7"),
            ("[2001:db8::7]:4711", "2001:db8::7"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("2001:db8::7, fd00::1", "2001:db8::7"),
            ("192.0.2.7, ::ffff:10.0.0.2", "192.0.2.7"),
            ("\t192.0.2.7 ", "192.0.2.7"),
        ] {
            assert_eq!(named(&[(X_FORWARDED_FOR, entry)]), is(address), "{entry}");
        }
    }

    #[test]
    fn forwarded_is_read_as_rfc_7239_has_it() {
        let forwarded = |list| named(&[(FORWARDED, list)]);
        for (list, address) in [
            ("for=192.0.2.7", "192.0.2.7"),
            ("For=\"192.0.2.7:4711\";proto=https;by=203.0.113.43", "192.0.2.7"),
            ("for=\"[2001:db8::7]:4711\"", "2001:db8::7"),
            ("for=192.0.2.9, for=192.0.2.7;host=\"a,b;c\", for=10.0.0.2", "192.0.2.7"),
            ("for=192.0.2.7;host=\"a\\\"b\"", "192.0.2.7"),
            ("nonsense, for=192.0.2.7", "192.0.2.7"),
        ] {
            assert_eq!(forwarded(list), is(address), "{list}");
        }
        for list in [
            "for=192.0.2.7, for=unknown",
            "for=192.0.2.7, for=_hidden",
            "for=192.0.2.7, for=\"_hidden:80\"",
            "for=192.0.2.7, proto=https",
            "for=192.0.2.7, for=10.0.0.2;for=10.0.0.3",
            "for=192.0.2.7, for=fd00::1",
            "for=192.0.2.7, for=\"10.0.0.2",
            "for=192.0.2.7, for=10.0.0.2;",
            "for=192.0.2.7, for=\"10.0.0.2\"x",
            "for=\"10.0.0.2\\\"\"",
            "",
        ] {
            assert_eq!(forwarded(list), None, "{list}");
        }
        // A quote that a stranger left open, and what a proxy adds behind it.
        assert_eq!(forwarded("for=192.0.2.9;x=\", for=192.0.2.7"), None);
        assert_eq!(forwarded("for=192.0.2.9;x=\", for=\"[2001:db8::7]\""), None);
        assert_eq!(forwarded("for=192.0.2.9;x=\"\\, for=\"[2001:db8::7]\""), None);
    }

    #[test]
    fn two_headers_have_to_agree() {
        let both = |one, other| named(&[(FORWARDED, one), (X_FORWARDED_FOR, other)]);
        assert_eq!(both("for=192.0.2.7", "6.6.6.6, 192.0.2.7"), is("192.0.2.7"));
        assert_eq!(both("for=192.0.2.7", "192.0.2.8"), None);
        assert_eq!(both("for=unknown", "192.0.2.7"), None);
        assert_eq!(both("for=192.0.2.7", "unknown"), None);
    }
}
