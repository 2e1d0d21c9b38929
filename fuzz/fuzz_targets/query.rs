//! Any query is refused, or read as a form is, to what can be written and read again unchanged.

#![no_main]

use libfuzzer_sys::fuzz_target;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode, utf8_percent_encode};
use spigate::query::{Lookup, Params, QueryError};

fuzz_target!(|query: &[u8]| {
    const LIMIT: usize = 64;
    let params = match Params::parse(query, LIMIT) {
        Ok(params) => params,
        Err(error) => {
            // Every refusal has its cause in the bytes.
            let cause = match error {
                QueryError::BadEscape => query.contains(&b'%'),
                QueryError::NotUtf8 => query.contains(&b'%') || !query.is_ascii(),
                QueryError::ControlCharacter => query.iter().any(|byte| matches!(byte, b'%' | b'\0' | b'\r' | b'\n')),
                QueryError::TooMany { limit } => {
                    query.split(|&byte| byte == b'&').filter(|p| !p.is_empty()).count() > limit
                }
            };
            assert!(cause, "{error}");
            return;
        }
    };
    assert!(params.len() <= LIMIT);

    let received: Vec<_> = params.received().collect();
    let decode = |encoded: &[u8]| {
        let spaced: Vec<u8> = encoded.iter().map(|&byte| if byte == b'+' { b' ' } else { byte }).collect();
        percent_decode(&spaced).collect::<Vec<u8>>()
    };
    let pairs: Vec<_> = query.split(|&byte| byte == b'&').filter(|pair| !pair.is_empty()).collect();
    assert_eq!(received.len(), pairs.len());
    for (param, pair) in received.iter().zip(pairs) {
        let mut halves = pair.splitn(2, |&byte| byte == b'=');
        assert_eq!(param.name.as_bytes(), decode(halves.next().unwrap_or_default()));
        assert_eq!(param.value.as_bytes(), decode(halves.next().unwrap_or_default()));
    }

    let encode = |text| utf8_percent_encode(text, NON_ALPHANUMERIC);
    let written: Vec<_> = received.iter().map(|p| format!("{}={}", encode(p.name), encode(p.value))).collect();
    let again = Params::parse(written.join("&").as_bytes(), LIMIT).expect("what was read can be written and read");
    assert!(again == params, "reading, writing and reading gave other parameters");

    let mut sorted = received.clone();
    sorted.sort_by(|a, b| a.name.as_bytes().cmp(b.name.as_bytes()));
    assert!(params.sorted().eq(sorted), "not sorted by name with equal names as received");

    for param in &received {
        assert!(!format!("{}{}", param.name, param.value).contains(['\0', '\r', '\n']));
        let same: Vec<_> = received.iter().filter(|other| other.name == param.name).collect();
        let expected = if same.len() == 1 { Lookup::Once(param.value) } else { Lookup::Repeated };
        assert_eq!(params.get(param.name), expected);
    }
});
