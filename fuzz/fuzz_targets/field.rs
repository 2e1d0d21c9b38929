//! Fields, times and signatures: what is accepted has one meaning and can be written again.
//!
//! The first byte picks the reader; the rest is the text.

#![no_main]

use libfuzzer_sys::fuzz_target;
use spigate::dialect::field::{Decoded, FieldType};
use spigate::dialect::mac::TagEncoding;
use spigate::dialect::time::TimeFormat;
use spigate::json;

fuzz_target!(|input: &[u8]| {
    let Some((&pick, text)) = input.split_first() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    match pick % 10 {
        0 => assert_eq!(FieldType::Text.decode(text), Ok(Decoded::AsReceived)),
        1 => match FieldType::Base64Text.decode(text) {
            Ok(Decoded::Text(plain)) => {
                assert_eq!(FieldType::Base64Text.encode(&plain), text, "two spellings of one text")
            }
            Ok(other) => panic!("{other:?}"),
            Err(why) => assert!(!why.is_empty()),
        },
        2 => {
            if let Ok(decoded) = FieldType::Base64Json.decode(text) {
                let Decoded::Object(object) = decoded else { panic!("not an object") };
                assert_eq!(json::is_object(object.as_bytes()), Ok(true));
                assert_eq!(json::compact(&object), object);
            }
        }
        // Any text, offered as the content of a base64 field.
        3 => {
            let encoded = FieldType::Base64Text.encode(text);
            assert_eq!(FieldType::Base64Text.decode(&encoded), Ok(Decoded::Text(text.to_owned())));
            let accepted = FieldType::Base64Json.decode(&encoded).is_ok();
            assert_eq!(accepted, json::is_object(text.as_bytes()) == Ok(true));
        }
        4 => {
            let expected = match text.to_ascii_lowercase().as_str() {
                "true" | "1" => Some(true),
                "false" | "0" => Some(false),
                _ => None,
            };
            assert_eq!(FieldType::Boolean.decode(text).ok(), expected.map(Decoded::Boolean));
        }
        5 => {
            if let Ok(decoded) = FieldType::Period.decode(text) {
                let Decoded::Period(value, unit) = decoded else { panic!("not a period") };
                assert!((1..=999_999_999).contains(&value));
                assert_eq!(format!("{value}_{}", unit.as_str()), text.trim_start_matches('0'));
            }
        }
        6 => one_spelling(TimeFormat::Iso8601, text),
        7 => one_spelling(TimeFormat::UnixSeconds, text),
        8 => one_spelling(TimeFormat::UnixMilliseconds, text),
        _ => {
            if let Some(tag) = TagEncoding::Base64.decode(text) {
                assert!(tag.as_bytes().len() <= 64);
                assert_eq!(TagEncoding::Base64.encode(&tag), text);
            }
            if let Some(tag) = TagEncoding::Hex.decode(text) {
                assert!(tag.as_bytes().len() <= 64);
                assert_eq!(TagEncoding::Hex.encode(&tag), text.to_ascii_lowercase());
            }
        }
    }
});

/// Every accepted time is exactly what a signer would write.
fn one_spelling(format: TimeFormat, text: &str) {
    if let Some(time) = format.parse(text) {
        assert_eq!(format.format(time), text);
    }
}
