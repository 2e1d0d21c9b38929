//! Field types: how a documented parameter's text becomes a value, and back for a signer.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::json;

/// The type of a documented parameter (`protocol.md` section 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldType {
    /// Text as it is.
    Text,
    /// UTF-8 text in standard base64.
    Base64Text,
    /// A JSON object in standard base64.
    Base64Json,
    /// `true`, `false`, `1` or `0`; letters of any case.
    Boolean,
    /// `VALUE_UNIT`: one to nine digits, not zero; `year`, `month` or `day`.
    Period,
}

/// The unit of a period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Years.
    Year,
    /// Months.
    Month,
    /// Days.
    Day,
}

impl Unit {
    /// The protocol's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Year => "year",
            Self::Month => "month",
            Self::Day => "day",
        }
    }
}

/// What a documented parameter holds once it is decoded and differs from its wire text.
#[derive(Clone, PartialEq, Eq)]
pub enum Decoded {
    /// The wire text is the value.
    AsReceived,
    /// Text that came in base64.
    Text(String),
    /// A checked JSON object without white space between its tokens.
    Object(String),
    /// A boolean.
    Boolean(bool),
    /// A period.
    Period(u32, Unit),
}

/// Shows the kind of value, never the value: it may be personal data.
impl fmt::Debug for Decoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AsReceived => "AsReceived",
            Self::Text(_) => "Text(…)",
            Self::Object(_) => "Object(…)",
            Self::Boolean(_) => "Boolean(…)",
            Self::Period(..) => "Period(…)",
        })
    }
}

impl FieldType {
    /// Decodes a parameter's text.
    ///
    /// # Errors
    /// What is wrong, as half a sentence that can follow the field's name. Never the value.
    pub fn decode(self, text: &str) -> Result<Decoded, &'static str> {
        match self {
            Self::Text => Ok(Decoded::AsReceived),
            Self::Base64Text => base64_text(text).map(Decoded::Text),
            Self::Base64Json => {
                let document = base64_text(text)?;
                match json::is_object_text(&document) {
                    Ok(true) => Ok(Decoded::Object(json::compact(&document))),
                    Ok(false) => Err("does not hold a JSON object"),
                    Err(json::JsonError::DuplicateKey) => Err("holds JSON with a key that stands twice in one object"),
                    Err(_) => Err("does not hold valid JSON"),
                }
            }
            Self::Boolean => match text {
                "1" => Ok(Decoded::Boolean(true)),
                "0" => Ok(Decoded::Boolean(false)),
                _ if text.eq_ignore_ascii_case("true") => Ok(Decoded::Boolean(true)),
                _ if text.eq_ignore_ascii_case("false") => Ok(Decoded::Boolean(false)),
                _ => Err("is neither true, false, 1 nor 0"),
            },
            Self::Period => {
                period(text).ok_or("is not a period like 1_month (1 to 9 digits, not zero; year, month or day)")
            }
        }
    }

    /// Writes plain text as the platform would send it: base64 where the type says so.
    pub fn encode(self, plain: &str) -> String {
        match self {
            Self::Text | Self::Boolean | Self::Period => plain.to_owned(),
            Self::Base64Text | Self::Base64Json => STANDARD.encode(plain),
        }
    }
}

fn base64_text(text: &str) -> Result<String, &'static str> {
    let bytes = STANDARD.decode(text).map_err(|_| "is not standard padded base64")?;
    String::from_utf8(bytes).map_err(|_| "does not decode to valid UTF-8")
}

fn period(text: &str) -> Option<Decoded> {
    let (value, unit) = text.split_once('_')?;
    let plain = (1..=9).contains(&value.len()) && value.bytes().all(|byte| byte.is_ascii_digit());
    let value = plain.then(|| value.parse::<u32>().ok()).flatten().filter(|&value| value > 0)?;
    let unit = match unit {
        "year" => Unit::Year,
        "month" => Unit::Month,
        "day" => Unit::Day,
        _ => return None,
    };
    Some(Decoded::Period(value, unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_strict() {
        assert_eq!(FieldType::Base64Text.decode("5aWX6aSQ5ZCN56ewMQ=="), Ok(Decoded::Text("套餐名称1".into())));
        for wrong in ["5aWX6aSQ5ZCN56ewMQ", "5aWX6aSQ5ZCN56ewMR==", "5aWX 6aSQ", "5aWX\n", "_-8=", "====", "A"] {
            assert_eq!(FieldType::Base64Text.decode(wrong), Err("is not standard padded base64"), "{wrong}");
        }
        assert_eq!(FieldType::Base64Text.decode("/w=="), Err("does not decode to valid UTF-8"));
    }

    #[test]
    fn objects_are_objects() {
        let decode = |document: &str| FieldType::Base64Json.decode(&STANDARD.encode(document));
        assert_eq!(decode(r#"{"a": "b:1"}"#), Ok(Decoded::Object(r#"{"a":"b:1"}"#.into())));
        for document in ["[]", "1", "null", "", "{", r#"{"a":1,"a":1}"#, "\u{feff}{}"] {
            assert!(decode(document).is_err(), "{document}");
        }
    }

    #[test]
    fn booleans_as_the_platform_spells_them() {
        for text in ["True", "true", "TRUE", "1"] {
            assert_eq!(FieldType::Boolean.decode(text), Ok(Decoded::Boolean(true)));
        }
        for text in ["False", "false", "0"] {
            assert_eq!(FieldType::Boolean.decode(text), Ok(Decoded::Boolean(false)));
        }
        for text in ["", "yes", "2", " true", "01"] {
            assert!(FieldType::Boolean.decode(text).is_err(), "{text}");
        }
    }

    #[test]
    fn periods_have_one_to_nine_digits() {
        assert_eq!(FieldType::Period.decode("1_day"), Ok(Decoded::Period(1, Unit::Day)));
        assert_eq!(FieldType::Period.decode("999999999_year"), Ok(Decoded::Period(999_999_999, Unit::Year)));
        for text in [
            "",
            "1",
            "_day",
            "0_day",
            "000_day",
            "1000000000_day",
            "-1_day",
            "+1_day",
            "1.5_day",
            "1_days",
            "1_Day",
            "1_day_",
        ] {
            assert!(FieldType::Period.decode(text).is_err(), "{text}");
        }
    }
}
