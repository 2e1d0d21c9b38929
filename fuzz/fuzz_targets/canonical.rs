//! Two queries share a canonical string only if they hold the same parameters, and the encoded
//! canonical strings read back as what was signed.
//!
//! The input is two queries with a line feed between them, which no accepted query holds.

#![no_main]

use libfuzzer_sys::fuzz_target;
use spigate::dialect::canonical::{Ambiguous, CanonicalForm, Encoding};
use spigate::query::{Param, Params};

const SIGNATURE: &str = "s";

fn canonical(encoding: Encoding, params: &Params) -> Result<Vec<u8>, Ambiguous> {
    let mut out = Vec::new();
    CanonicalForm { prefix: Vec::new(), encoding }.write("GET", params, SIGNATURE, &mut out)?;
    Ok(out)
}

fn signed(params: &Params) -> Vec<Param<'_>> {
    params.sorted().filter(|param| param.name != SIGNATURE).collect()
}

fuzz_target!(|input: &[u8]| {
    let mut halves = input.splitn(2, |&byte| byte == b'\n');
    let (Some(a), Some(b)) = (halves.next(), halves.next()) else { return };
    let (Ok(a), Ok(b)) = (Params::parse(a, 64), Params::parse(b, 64)) else { return };
    let same = signed(&a) == signed(&b);

    for encoding in [Encoding::Rfc3986, Encoding::Form] {
        let text = canonical(encoding, &a).expect("encoded forms are never ambiguous");
        let other = canonical(encoding, &b).expect("encoded forms are never ambiguous");
        assert_eq!(text == other, same, "{encoding:?}");
        let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.~%&=+".contains(byte);
        assert!(text.iter().all(allowed), "{encoding:?}");
        assert!(encoding == Encoding::Form || !text.contains(&b'+'));
        let again = Params::parse(&text, 64).expect("a canonical string is a query");
        assert!(again.received().eq(signed(&a)), "{encoding:?}");
    }

    match (canonical(Encoding::Plain, &a), canonical(Encoding::Plain, &b)) {
        (Ok(text), Ok(other)) => assert_eq!(text == other, same),
        (refused, _) => {
            let delimiter = |param: &Param<'_>| param.name.contains(['=', '&']) || param.value.contains('&');
            assert_eq!(refused.is_err(), signed(&a).iter().any(delimiter));
        }
    }
});
