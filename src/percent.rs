//! Percent-encoding as the hot way of a request needs it: piece by piece into whatever takes it,
//! with nothing built in between. Pure.

/// Which bytes stay as they are.
pub struct Kept([bool; 256]);

/// The unreserved characters of RFC 3986, section 2.3.
pub static UNRESERVED: Kept = {
    let mut kept = [false; 256];
    let mut byte = 0_u8;
    while byte < 0x7f {
        kept[byte as usize] = byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~');
        byte += 1;
    }
    Kept(kept)
};

/// What a header's value carries through every language's decoder: visible ASCII without `%`
/// itself, `+` (which some decoders take for a space), list and parameter separators, quotes.
pub static IN_HEADERS: Kept = {
    let mut kept = [false; 256];
    let mut byte = 0_u8;
    while byte < 0x7f {
        kept[byte as usize] = byte.is_ascii_graphic() && !matches!(byte, b'%' | b'+' | b',' | b';' | b'"' | b'\\');
        byte += 1;
    }
    Kept(kept)
};

/// Hands `text` to `put` from front to back, with every other byte than the kept ones as upper-case
/// `%XX`.
pub fn encode(text: &str, kept: &Kept, mut put: impl FnMut(&[u8])) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut rest = text.as_bytes();
    loop {
        let plain = rest.iter().position(|&byte| !kept.0[usize::from(byte)]).unwrap_or(rest.len());
        if plain > 0 {
            put(&rest[..plain]);
        }
        let [byte, tail @ ..] = &rest[plain..] else { return };
        put(&[b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        rest = tail;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(text: &str, kept: &Kept) -> String {
        let mut out = Vec::new();
        encode(text, kept, |bytes| out.extend_from_slice(bytes));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn bytes_are_kept_or_encoded() {
        for char in (0..=0xff_u8).map(char::from) {
            let text = char.to_string();
            let as_escapes = text.bytes().map(|byte| format!("%{byte:02X}")).collect::<String>();
            let unreserved = char.is_ascii_alphanumeric() || "-_.~".contains(char);
            assert_eq!(encoded(&text, &UNRESERVED), *if unreserved { &text } else { &as_escapes }, "{char:?}");
            let in_headers = char.is_ascii_graphic() && !"%+,;\"\\".contains(char);
            assert_eq!(encoded(&text, &IN_HEADERS), *if in_headers { &text } else { &as_escapes }, "{char:?}");
        }
        assert_eq!(encoded("", &UNRESERVED), "");
        assert_eq!(encoded(" a b套%", &UNRESERVED), "%20a%20b%E5%A5%97%25");
    }
}
