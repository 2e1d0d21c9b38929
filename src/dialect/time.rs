//! The signed time of a request: strict readers, and the spellings for a signer.
//!
//! The shape is checked byte by byte before any calendar is asked, because time libraries are
//! lenient in ways that a signature scheme must not be (a space for `T`, lower-case `z`,
//! `:60`, zone names).

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

/// How a dialect writes the time of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeFormat {
    /// `2021-06-23T07:26:13Z`, exactly these 20 characters.
    Iso8601,
    /// Whole seconds since 1970-01-01T00:00:00Z, decimal digits only.
    UnixSeconds,
    /// Whole milliseconds since then, decimal digits only.
    UnixMilliseconds,
}

impl TimeFormat {
    /// Reads a time; `None` for anything but exactly its form.
    pub fn parse(self, text: &str) -> Option<Timestamp> {
        match self {
            Self::Iso8601 => parse_iso8601(text.as_bytes()),
            // Eleven digits reach the year 5138; a time in milliseconds has thirteen.
            Self::UnixSeconds => Timestamp::from_second(digits(text, 11)?).ok(),
            Self::UnixMilliseconds => Timestamp::from_millisecond(digits(text, 14)?).ok(),
        }
    }

    /// Writes a time as a signer does.
    pub fn format(self, time: Timestamp) -> String {
        match self {
            Self::Iso8601 => iso8601(time),
            Self::UnixSeconds => time.as_second().to_string(),
            Self::UnixMilliseconds => time.as_millisecond().to_string(),
        }
    }

    /// How the form is described to a human.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Iso8601 => "ISO 8601 in UTC, like 2021-06-23T07:26:13Z",
            Self::UnixSeconds => "UNIX seconds, like 1652254417",
            Self::UnixMilliseconds => "UNIX milliseconds, like 1652254417000",
        }
    }
}

/// A time as ISO 8601 in UTC, to the second.
pub fn iso8601(time: Timestamp) -> String {
    let civil = TimeZone::UTC.to_datetime(time);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
        civil.year(),
        civil.month(),
        civil.day(),
        civil.hour(),
        civil.minute(),
        civil.second()
    )
}

fn parse_iso8601(text: &[u8]) -> Option<Timestamp> {
    const SHAPE: &[u8; 20] = b"0000-00-00T00:00:00Z";
    if text.len() != SHAPE.len() {
        return None;
    }
    for (&byte, &shape) in text.iter().zip(SHAPE) {
        let fits = if shape == b'0' { byte.is_ascii_digit() } else { byte == shape };
        if !fits {
            return None;
        }
    }
    let number = |range: std::ops::Range<usize>| -> i16 {
        text[range].iter().fold(0, |number, byte| number * 10 + i16::from(byte - b'0'))
    };
    let small = |range| i8::try_from(number(range)).ok();
    // The calendar refuses month 13, February 30, 24:00:00 and second 60.
    let civil =
        DateTime::new(number(0..4), small(5..7)?, small(8..10)?, small(11..13)?, small(14..16)?, small(17..19)?, 0)
            .ok()?;
    TimeZone::UTC.to_timestamp(civil).ok()
}

fn digits(text: &str, most: usize) -> Option<i64> {
    let plain = !text.is_empty()
        && text.len() <= most
        && text.bytes().all(|byte| byte.is_ascii_digit())
        && (text == "0" || !text.starts_with('0'));
    plain.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iso8601_is_exact() {
        let time = TimeFormat::Iso8601.parse("2021-06-23T07:26:13Z").unwrap();
        assert_eq!(time.as_second(), 1_624_433_173);
        assert_eq!(TimeFormat::Iso8601.format(time), "2021-06-23T07:26:13Z");
        assert!(TimeFormat::Iso8601.parse("2024-02-29T23:59:59Z").is_some());
        for wrong in [
            "",
            "2021-06-23T07:26:13",
            "2021-06-23 07:26:13Z",
            "2021-06-23t07:26:13z",
            "2021-06-23T07:26:13.000Z",
            "2021-06-23T07:26:13+00:00",
            " 2021-06-23T07:26:13Z",
            "2021-06-23T07:26:13Z ",
            "2021-02-30T00:00:00Z",
            "2021-02-29T00:00:00Z",
            "2021-06-23T24:00:00Z",
            "2016-12-31T23:59:60Z",
            "2021-13-01T00:00:00Z",
            "2021-00-01T00:00:00Z",
            "2021-6-23T07:26:13Z",
            "+021-06-23T07:26:13Z",
            "1624433173",
            "２021-06-23T07:26:1Z",
            "2021-06-23T07:60:13Z",
        ] {
            assert_eq!(TimeFormat::Iso8601.parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn unix_seconds_are_digits() {
        assert_eq!(TimeFormat::UnixSeconds.parse("1652254417").unwrap().as_second(), 1_652_254_417);
        for wrong in
            ["", "1652254417.0", "+1652254417", " 1652254417", "-1", "1e9", "1652254417000", "0x1", "01652254417", "１"]
        {
            assert_eq!(TimeFormat::UnixSeconds.parse(wrong), None, "{wrong}");
        }
        assert_eq!(TimeFormat::UnixMilliseconds.parse("1652254417123").unwrap().as_millisecond(), 1_652_254_417_123);
    }
}
