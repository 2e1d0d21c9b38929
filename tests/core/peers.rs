//! Who the client is, over generated ways through proxies: nothing that a stranger writes may
//! change what trusted proxies say.

use std::net::IpAddr;

use http::header::FORWARDED;
use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use spigate::peer::Proxies;
use spigate::peer::client::{Client, X_FORWARDED_FOR, client};

const PROXY: &str = "10.0.0.1";

fn proxies() -> Proxies {
    Proxies::new(["10.0.0.0/8", "fd00::/8"].map(|network| network.parse().unwrap()))
}

/// What a trusted proxy hands on makes of the client.
fn seen(lines: &[(HeaderName, Vec<u8>)]) -> Client {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        headers.append(name, HeaderValue::from_bytes(value).unwrap());
    }
    client(&proxies().peer(PROXY.parse().unwrap()), &headers)
}

/// Bytes that a header may hold, rich in what the two lists are made of.
fn claim() -> impl Strategy<Value = Vec<u8>> {
    const PIECES: &[&str] = &[
        "for=",
        "For=",
        "\"",
        "\\",
        ",",
        ";",
        "=",
        " ",
        "[",
        "]",
        ":",
        "80",
        "_x",
        "unknown",
        "192.0.2.9",
        "10.0.0.9",
        "2001:db8::9",
        "fd00::9",
        "by=",
        "host=a",
        "\u{e9}",
    ];
    vec(select(PIECES), 0..12).prop_map(|pieces| pieces.concat().into_bytes())
}

/// An address that is no proxy's.
fn outside() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<u32>().prop_map(|bits| IpAddr::V4(bits.into())),
        any::<u128>().prop_map(|bits| IpAddr::V6(bits.into()).to_canonical()),
    ]
    .prop_filter("a proxy", |address| !proxies().include(*address))
}

/// The trusted proxies that a request came through, the client's side first.
fn hops() -> impl Strategy<Value = Vec<IpAddr>> {
    vec(select(&["10.1.2.3", "fd00::1", "10.255.0.1"][..]).prop_map(|text| text.parse().unwrap()), 0..4)
}

/// An entry as a proxy writes it.
fn node(address: IpAddr, port: bool) -> String {
    match (address, port) {
        (IpAddr::V4(address), false) => address.to_string(),
        (IpAddr::V4(address), true) => format!("\"{address}:4711\""),
        (IpAddr::V6(address), false) => format!("\"[{address}]\""),
        (IpAddr::V6(address), true) => format!("\"[{address}]:4711\""),
    }
}

/// The claim, and behind it, in the same line or in one of its own, what proxies added.
fn added(name: &HeaderName, claim: &[u8], entries: &[String], own_line: bool) -> Vec<(HeaderName, Vec<u8>)> {
    let entries = entries.join(", ").into_bytes();
    if own_line {
        vec![(name.clone(), claim.to_vec()), (name.clone(), entries)]
    } else {
        vec![(name.clone(), [claim, b", ", &entries].concat())]
    }
}

proptest! {
    #[test]
    fn a_peer_that_is_not_trusted_is_the_client(address in outside(), one in claim(), other in claim()) {
        let mut headers = HeaderMap::new();
        headers.append(FORWARDED, HeaderValue::from_bytes(&one).unwrap());
        headers.append(X_FORWARDED_FOR, HeaderValue::from_bytes(&other).unwrap());
        let found = client(&proxies().peer(address), &headers);
        prop_assert_eq!(found, Client { address, known: true });
    }

    #[test]
    fn nothing_left_of_the_client_counts_in_x_forwarded_for(
        address in outside(), claim in claim(), hops in hops(), own_line: bool, port: bool,
    ) {
        let entries: Vec<_> = [&[address][..], &hops].concat().into_iter()
            .map(|address| node(address, port).trim_matches('"').to_owned())
            .collect();
        let found = seen(&added(&X_FORWARDED_FOR, &claim, &entries, own_line));
        prop_assert_eq!(found, Client { address, known: true });
    }

    #[test]
    fn nothing_left_of_the_client_names_another_one_in_forwarded(
        address in outside(), claim in claim(), hops in hops(), own_line: bool, port: bool, proto: bool,
    ) {
        let more = if proto { ";proto=https;host=\"a,b\"" } else { "" };
        let entries: Vec<_> = [&[address][..], &hops].concat().into_iter()
            .map(|address| format!("for={}{more}", node(address, port)))
            .collect();
        let found = seen(&added(&FORWARDED, &claim, &entries, own_line));
        // In one line a quote that the claim leaves open makes all of it unreadable.
        let unreadable = Client { address: PROXY.parse().unwrap(), known: false };
        prop_assert!(found == Client { address, known: true } || (!own_line && found == unreadable), "{found:?}");
    }

    #[test]
    fn a_second_header_can_only_take_the_knowledge_away(address in outside(), claim in claim()) {
        let lines = [(X_FORWARDED_FOR, address.to_string().into_bytes()), (FORWARDED, claim)];
        let found = seen(&lines);
        prop_assert!(!found.known || found.address == address, "{found:?}");
    }

    #[test]
    fn a_client_is_an_address_that_somebody_named_or_the_peer(one in claim(), other in claim()) {
        let found = seen(&[(FORWARDED, one.clone()), (X_FORWARDED_FOR, other.clone())]);
        let named = |text: &[u8]| String::from_utf8_lossy(text).contains(&found.address.to_string());
        prop_assert!(found.address.to_string() == PROXY || named(&one) || named(&other), "{found:?}");
    }
}
