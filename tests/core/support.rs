//! What the other modules share: the built-in dialects, and second implementations of what is
//! tested, written to be obviously right rather than fast.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode, utf8_percent_encode};
use spigate::dialect::canonical::{Ambiguous, CanonicalForm, Encoding};
use spigate::dialect::{Dialect, builtin};
use spigate::query::{Param, Params};

/// A decoded name and value.
pub(crate) type Pair = (String, String);

/// Far above what any test sends, so that the limit on parameters is only met where it is tested.
pub(crate) const NO_LIMIT: usize = 10_000;

pub(crate) fn dialects() -> Vec<Dialect> {
    builtin::load().unwrap()
}

pub(crate) fn dialect(name: &str) -> Dialect {
    dialects().into_iter().find(|dialect| dialect.name == name).unwrap_or_else(|| panic!("no dialect {name}"))
}

pub(crate) fn params(pairs: &[Pair]) -> Params {
    Params::from_pairs(pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())))
}

pub(crate) fn pairs<'p>(params: impl Iterator<Item = Param<'p>>) -> Vec<Pair> {
    params.map(|param| (param.name.to_owned(), param.value.to_owned())).collect()
}

/// The order that is signed: by name, equal names as received.
pub(crate) fn sorted(pairs: &[Pair]) -> Vec<Pair> {
    let mut pairs = pairs.to_vec();
    pairs.sort_by(|(a, _), (b, _)| a.as_bytes().cmp(b.as_bytes()));
    pairs
}

/// The canonical string without a prefix.
pub(crate) fn canonical(encoding: Encoding, pairs: &[Pair]) -> Result<String, Ambiguous> {
    let mut out = Vec::new();
    CanonicalForm { prefix: Vec::new(), encoding }.write("GET", &params(pairs), "signature", &mut out)?;
    Ok(String::from_utf8(out).unwrap())
}

/// The same by another way: the percent-encoding crate, and strings joined.
pub(crate) fn reference_canonical(pairs: &[Pair], space: &str) -> String {
    const KEEP_UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
    let encode = |text: &str| utf8_percent_encode(text, KEEP_UNRESERVED).to_string().replace("%20", space);
    let written =
        sorted(pairs).iter().map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect::<Vec<_>>();
    written.join("&")
}

/// The strict reader by another way; `None` where it must refuse. Has no limit.
pub(crate) fn reference_read(query: &[u8]) -> Option<Vec<Pair>> {
    let decode = |encoded: &[u8]| {
        let broken = encoded.iter().enumerate().any(|(at, &byte)| {
            let escape = encoded.get(at + 1..at + 3);
            byte == b'%' && !escape.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
        });
        let spaced: Vec<u8> = encoded.iter().map(|&byte| if byte == b'+' { b' ' } else { byte }).collect();
        let text = percent_decode(&spaced).decode_utf8().ok()?.into_owned();
        (!broken && !text.contains(['\0', '\r', '\n'])).then_some(text)
    };
    let mut read = Vec::new();
    for pair in query.split(|&byte| byte == b'&').filter(|pair| !pair.is_empty()) {
        let mut halves = pair.splitn(2, |&byte| byte == b'=');
        read.push((decode(halves.next()?)?, decode(halves.next().unwrap_or_default())?));
    }
    Some(read)
}
