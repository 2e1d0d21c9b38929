//! What must hold for every input, over generated ones that are rich in delimiters and in near
//! misses: random text alone never meets an ambiguity.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::Value;
use spigate::dialect::ActionKind;
use spigate::dialect::canonical::{Ambiguous, Encoding};
use spigate::dialect::field::{Decoded, FieldType, Unit};
use spigate::dialect::reply::Judgement;
use spigate::dialect::time::TimeFormat;
use spigate::json;
use spigate::query::{Lookup, Params, QueryError};

use crate::support::{
    NO_LIMIT, Pair, canonical, dialect, dialects, pairs, params, reference_canonical, reference_read, sorted,
};

const ENCODINGS: [Encoding; 3] = [Encoding::Rfc3986, Encoding::Form, Encoding::Plain];

/// Text as a parameter may hold it: short, and mostly of characters that some encoding minds.
fn text() -> impl Strategy<Value = String> {
    const TRICKY: &[char] = &[
        '&', '=', '%', '+', ' ', ';', '~', '*', '/', '?', '#', '-', '_', '.', '2', '6', 'D', 'd', 'a', 'A', '\'', '"',
        '\t', '\x01', '\x7f', 'é', '套', '😀', '\u{fffd}', '\u{feff}', '\u{301}',
    ];
    let char = prop_oneof![
        6 => select(TRICKY),
        1 => any::<char>().prop_filter("refused by the reader", |char| !matches!(char, '\0' | '\r' | '\n')),
    ];
    vec(char, 0..6).prop_map(String::from_iter)
}

/// Parameters to be signed. The signature's own name is left out of what is signed, so it would
/// make two lists equal that are not.
fn signed_pairs() -> impl Strategy<Value = Vec<Pair>> {
    vec((text(), text()), 0..6).prop_map(|mut pairs| {
        pairs.retain(|(name, _)| name != "signature");
        pairs
    })
}

/// A change that a forger would try: the characters stay nearly the same, the meaning does not.
#[derive(Clone, Copy, Debug)]
enum Change {
    /// `a=1&b=2` becomes one pair with the delimiter in its value.
    MergeIntoValue,
    /// The same, in its name.
    MergeIntoName,
    /// The first `=` moves to the other side of the delimiter.
    ShiftEquals,
    /// A value is replaced by its own encoding.
    EncodeTwice,
    /// A space for a plus, or the other way round.
    SwapSpaceAndPlus,
    /// Two neighbours trade their values.
    SwapValues,
    /// The last character of a name moves to the value.
    MoveCharacter,
    /// An empty pair comes in.
    AddEmpty,
    /// A pair is there twice.
    Repeat,
    /// A pair goes.
    Remove,
    /// The letters of a value change their case.
    FlipCase,
}

const CHANGES: &[Change] = &[
    Change::MergeIntoValue,
    Change::MergeIntoName,
    Change::ShiftEquals,
    Change::EncodeTwice,
    Change::SwapSpaceAndPlus,
    Change::SwapValues,
    Change::MoveCharacter,
    Change::AddEmpty,
    Change::Repeat,
    Change::Remove,
    Change::FlipCase,
];

impl Change {
    fn apply(self, pairs: &[Pair], at: Index) -> Vec<Pair> {
        let mut pairs = pairs.to_vec();
        if let Self::AddEmpty = self {
            pairs.insert(at.index(pairs.len() + 1), Pair::default());
        }
        if pairs.is_empty() {
            return pairs;
        }
        let at = at.index(pairs.len());
        let next = (at + 1) % pairs.len();
        let (name, value) = pairs[at].clone();
        match self {
            Self::AddEmpty => {}
            Self::MergeIntoValue | Self::MergeIntoName if pairs.len() > 1 => {
                let (next_name, next_value) = pairs[next].clone();
                pairs[at] = match self {
                    Self::MergeIntoValue => (name, format!("{value}&{next_name}={next_value}")),
                    _ => (format!("{name}={value}&{next_name}"), next_value),
                };
                pairs.remove(next);
            }
            Self::MergeIntoValue | Self::MergeIntoName | Self::Remove => {
                pairs.remove(at);
            }
            Self::ShiftEquals => {
                pairs[at] = match name.split_once('=') {
                    Some((head, tail)) => (head.to_owned(), format!("{tail}={value}")),
                    None => (format!("{name}="), value),
                };
            }
            Self::EncodeTwice => pairs[at].1 = reference_canonical(&[(String::new(), value)], "%20")[1..].to_owned(),
            Self::SwapSpaceAndPlus => {
                pairs[at].1 = value
                    .chars()
                    .map(|char| match char {
                        ' ' => '+',
                        '+' => ' ',
                        char => char,
                    })
                    .collect();
            }
            Self::SwapValues => {
                pairs[at].1 = pairs[next].1.clone();
                pairs[next].1 = value;
            }
            Self::MoveCharacter => {
                let mut name = name;
                let moved = name.pop().map_or(String::new(), String::from);
                pairs[at] = (name, format!("{moved}{value}"));
            }
            Self::Repeat => pairs.insert(at, (name, value)),
            Self::FlipCase => {
                let flip =
                    |c: char| if c.is_ascii_uppercase() { c.to_ascii_lowercase() } else { c.to_ascii_uppercase() };
                pairs[at].1 = value.chars().map(flip).collect();
            }
        }
        // A signature parameter would drop out of what is signed.
        pairs.retain(|(name, _)| name != "signature");
        pairs
    }
}

/// Whether the unencoded form has to refuse the list.
fn is_ambiguous(pairs: &[Pair]) -> bool {
    pairs.iter().any(|(name, value)| name.contains(['=', '&']) || value.contains('&'))
}

fn tell_apart(encoding: Encoding, a: &[Pair], b: &[Pair]) -> Result<(), TestCaseError> {
    match (canonical(encoding, a), canonical(encoding, b)) {
        (Ok(one), Ok(other)) => prop_assert_eq!(one == other, sorted(a) == sorted(b), "{:?}: {}", encoding, one),
        (one, other) => {
            prop_assert_eq!(encoding, Encoding::Plain);
            prop_assert_eq!(one.is_err(), is_ambiguous(a));
            prop_assert_eq!(other.is_err(), is_ambiguous(b));
        }
    }
    Ok(())
}

/// Every list of up to two parameters over the texts that collide where anything does.
#[test]
fn canonical_form_is_injective_over_all_small_lists() {
    const TEXTS: [&str; 8] = ["", "a", "=", "&", "%", " ", "+", "%3D"];
    let all: Vec<Pair> =
        TEXTS.iter().flat_map(|name| TEXTS.iter().map(|value| (name.to_string(), value.to_string()))).collect();
    let mut lists = vec![Vec::new()];
    lists.extend(all.iter().map(|pair| vec![pair.clone()]));
    lists.extend(all.iter().flat_map(|a| all.iter().map(|b| vec![a.clone(), b.clone()])));
    for encoding in ENCODINGS {
        let mut seen: HashMap<String, Vec<Pair>> = HashMap::new();
        let mut refused = 0;
        for list in &lists {
            match canonical(encoding, list) {
                Ok(text) => {
                    let list = sorted(list);
                    let first = seen.entry(text).or_insert_with_key(|_| list.clone());
                    assert_eq!(*first, list, "{encoding:?}: two lists, one string");
                }
                Err(Ambiguous) => {
                    assert!(encoding == Encoding::Plain && is_ambiguous(list), "{encoding:?}: refused {list:?}");
                    refused += 1;
                }
            }
        }
        assert_eq!(refused > 0, encoding == Encoding::Plain, "{encoding:?}: refused {refused}");
        assert!(seen.len() > 100, "{encoding:?}: {} strings", seen.len());
    }
}

/// How an encoder writes a byte on the wire.
#[derive(Clone, Copy, Debug)]
enum Encoder {
    /// RFC 3986, upper-case or lower-case hexadecimal.
    Rfc3986 { lower: bool },
    /// Forms: a space is `+`, and `*` stays.
    Form { lower: bool },
    /// Every byte escaped.
    Everything { lower: bool },
    /// Java's `URLEncoder`: a space is `+`, `*` stays, `~` is escaped.
    Java,
    /// As little as the reader needs.
    Nothing,
    /// Any of these for each byte.
    Any,
}

const ENCODERS: &[Encoder] = &[
    Encoder::Rfc3986 { lower: false },
    Encoder::Rfc3986 { lower: true },
    Encoder::Form { lower: false },
    Encoder::Form { lower: true },
    Encoder::Everything { lower: false },
    Encoder::Everything { lower: true },
    Encoder::Java,
    Encoder::Nothing,
    Encoder::Any,
];

/// Writes queries as one encoder does. `dice` decides where the encoder has a choice.
struct Wire<'d> {
    encoder: Encoder,
    dice: std::iter::Cycle<std::iter::Copied<std::slice::Iter<'d, u8>>>,
}

impl<'d> Wire<'d> {
    fn new(encoder: Encoder, dice: &'d [u8]) -> Self {
        Self { encoder, dice: dice.iter().copied().cycle() }
    }

    fn roll(&mut self, sides: u8) -> u8 {
        self.dice.next().unwrap_or(0) % sides
    }

    fn text(&mut self, text: &str, is_name: bool, out: &mut Vec<u8>) {
        for &byte in text.as_bytes() {
            let encoder = match self.encoder {
                // The last of them is `Any` itself.
                Encoder::Any => ENCODERS[usize::from(self.roll(8))],
                encoder => encoder,
            };
            let alphanumeric = byte.is_ascii_alphanumeric();
            let (stays, plus, lower) = match encoder {
                Encoder::Rfc3986 { lower } => (alphanumeric || b"-_.~".contains(&byte), false, lower),
                Encoder::Form { lower } => (alphanumeric || b"-_.*".contains(&byte), true, lower),
                Encoder::Everything { lower } => (false, false, lower),
                Encoder::Java => (alphanumeric || b"-_.*".contains(&byte), true, false),
                Encoder::Nothing | Encoder::Any => {
                    (!b"%&+".contains(&byte) && (byte != b'=' || !is_name), false, false)
                }
            };
            match byte {
                b' ' if plus => out.push(b'+'),
                byte if stays => out.push(byte),
                byte if lower => out.extend(format!("%{byte:02x}").bytes()),
                byte => out.extend(format!("%{byte:02X}").bytes()),
            }
        }
    }

    fn query(&mut self, pairs: &[Pair]) -> Vec<u8> {
        let mut out = Vec::new();
        for (index, (name, value)) in pairs.iter().enumerate() {
            if index > 0 {
                out.push(b'&');
            }
            // Sloppy writers leave empty pairs, and leave out the `=` of an empty value.
            let sloppy = matches!(self.encoder, Encoder::Nothing | Encoder::Any);
            if sloppy && self.roll(4) == 0 {
                out.push(b'&');
            }
            self.text(name, true, &mut out);
            if !(sloppy && value.is_empty() && !name.is_empty() && self.roll(2) == 0) {
                out.push(b'=');
            }
            self.text(value, false, &mut out);
        }
        out
    }
}

/// Bytes of a query, mostly well-formed, with halves of characters on either side of delimiters.
fn wire_noise() -> impl Strategy<Value = Vec<u8>> {
    const PIECES: &[&[u8]] = &[
        b"&",
        b"&",
        b"=",
        b"=",
        b"+",
        b";",
        b"a",
        b"%61",
        b"%C3",
        b"%a9",
        b"\xc3",
        b"\xa9",
        b"\xc3\xa9",
        b"%F0%9F%98%80",
    ];
    const BROKEN: &[&[u8]] =
        &[b"%", b"%2", b"%zz", b"%+1", b"%00", b"\0", b"%0d", b"\n", b"%C0%AF", b"%ED%A0%80", b"\xff"];
    let piece = prop_oneof![
        30 => select(PIECES).prop_map(<[u8]>::to_vec),
        1 => select(BROKEN).prop_map(<[u8]>::to_vec),
        1 => any::<u8>().prop_map(|byte| vec![byte]),
    ];
    vec(piece, 0..16).prop_map(|pieces| pieces.concat())
}

/// Names and values so alike that only the received order tells them apart.
fn crowded_pairs() -> impl Strategy<Value = Vec<Pair>> {
    let text = || select(&["", "", "x", "y"][..]).prop_map(str::to_owned);
    vec((text(), text()), 0..64)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn canonical_form_tells_lists_apart(
        a in signed_pairs(),
        b in signed_pairs(),
        change in select(CHANGES),
        at in any::<Index>(),
    ) {
        let near = change.apply(&a, at);
        for encoding in ENCODINGS {
            tell_apart(encoding, &a, &b)?;
            tell_apart(encoding, &a, &near)?;
        }
    }

    #[test]
    fn canonical_form_is_what_the_protocol_describes(
        mut pairs in signed_pairs(),
        // Long enough to meet the end of a chunk, wherever that is, in every way.
        long in prop_oneof![3 => Just(String::new()), 1 => (text(), 0..1500_usize).prop_map(|(text, n)| text.repeat(n))],
    ) {
        if !long.is_empty() {
            pairs.push((String::from("long"), long));
        }
        prop_assert_eq!(canonical(Encoding::Rfc3986, &pairs).unwrap(), reference_canonical(&pairs, "%20"));
        prop_assert_eq!(canonical(Encoding::Form, &pairs).unwrap(), reference_canonical(&pairs, "+"));
    }

    #[test]
    fn what_any_encoder_writes_is_read_back(
        sent in prop_oneof![2 => signed_pairs(), 1 => crowded_pairs()],
        encoder in select(ENCODERS),
        dice in vec(any::<u8>(), 1..64),
    ) {
        let query = Wire::new(encoder, &dice).query(&sent);
        let read = Params::parse(&query, NO_LIMIT).unwrap();
        prop_assert_eq!(&pairs(read.received()), &sent);
        prop_assert_eq!(&pairs(read.sorted()), &sorted(&sent));
        prop_assert!(read == params(&sent));
        for dialect in dialects() {
            prop_assert_eq!(
                dialect.canonical_string("GET", &read).unwrap(),
                dialect.canonical_string("GET", &params(&sent)).unwrap()
            );
        }
    }

    #[test]
    fn the_reader_takes_any_bytes_and_reads_what_the_reference_reads(
        query in wire_noise(),
        limit in 0..8_usize,
    ) {
        let expected = reference_read(&query);
        let read = Params::parse(&query, NO_LIMIT);
        prop_assert_eq!(read.as_ref().ok().map(|params| pairs(params.received())), expected.clone());

        let count = query.split(|&byte| byte == b'&').filter(|pair| !pair.is_empty()).count();
        match Params::parse(&query, limit) {
            Ok(params) => prop_assert!(expected.is_some() && params.len() == count && count <= limit),
            Err(QueryError::TooMany { limit: named }) => prop_assert!(count > limit && named == limit),
            Err(error) => prop_assert!(expected.is_none(), "{error}"),
        }
    }

    #[test]
    fn look_ups_find_what_was_received(sent in crowded_pairs(), name in select(&["", "x", "y", "z"][..])) {
        let values: Vec<_> = sent.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_str()).collect();
        let expected = match values[..] {
            [] => Lookup::Absent,
            [value] => Lookup::Once(value),
            _ => Lookup::Repeated,
        };
        let params = params(&sent);
        prop_assert_eq!(params.get(name), expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn what_is_signed_verifies_however_it_is_sent(
        sent in signed_pairs(),
        encoder in select(ENCODERS),
        dice in vec(any::<u8>(), 1..64),
        at in any::<Index>(),
        secret in "[!-~]{1,80}",
    ) {
        for dialect in dialects() {
            let key = dialect.signing_key(&secret).unwrap();
            let signature = dialect.sign(&key, "GET", &params(&sent)).unwrap();
            let mut sent = sent.clone();
            sent.insert(at.index(sent.len() + 1), (dialect.signature.parameter.clone(), signature.clone()));

            let query = Wire::new(encoder, &dice).query(&sent);
            let received = Params::parse(&query, NO_LIMIT).unwrap();
            prop_assert_eq!(received.get(&dialect.signature.parameter), Lookup::Once(&signature));
            let tag = dialect.signature.output.decode(&signature).unwrap();
            prop_assert!(dialect.verify(&key, &tag, "GET", &received).unwrap());

            let other = dialect.signing_key(&format!("{secret}x")).unwrap();
            prop_assert!(!dialect.verify(&other, &tag, "GET", &received).unwrap());
        }
    }

    #[test]
    fn what_was_changed_after_signing_never_verifies(
        signed in signed_pairs(),
        change in select(CHANGES),
        at in any::<Index>(),
        fresh in (text(), text()),
    ) {
        let added = {
            let mut pairs = signed.clone();
            pairs.insert(at.index(pairs.len() + 1), fresh.clone());
            pairs
        };
        let (mut renamed, mut revalued) = (signed.clone(), signed.clone());
        if !signed.is_empty() {
            let at = at.index(signed.len());
            renamed[at].0 = fresh.0;
            revalued[at].1 = fresh.1;
        }
        for dialect in dialects() {
            let key = dialect.signing_key("a key").unwrap();
            let signature = dialect.sign(&key, "GET", &params(&signed)).unwrap();
            let tag = dialect.signature.output.decode(&signature).unwrap();
            for changed in [&change.apply(&signed, at), &added, &renamed, &revalued] {
                // Some changes change nothing: swapping two equal values, say.
                let same = sorted(changed) == sorted(&signed);
                prop_assert_eq!(dialect.verify(&key, &tag, "GET", &params(changed)).unwrap(), same, "{:?}", changed);
            }
        }
    }

    #[test]
    fn a_signature_with_a_bit_flipped_never_verifies(
        signed in signed_pairs(),
        bit in 0..256_usize,
        text_bit in any::<Index>(),
    ) {
        let params = params(&signed);
        for dialect in dialects() {
            let key = dialect.signing_key("a key").unwrap();
            let signature = dialect.sign(&key, "GET", &params).unwrap();
            let accepts = |text: &str| {
                let tag = dialect.signature.output.decode(text);
                tag.is_some_and(|tag| dialect.verify(&key, &tag, "GET", &params).unwrap())
            };
            prop_assert!(accepts(&signature));

            let mut bytes = STANDARD.decode(&signature).unwrap();
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!accepts(&STANDARD.encode(bytes)));

            // The text has bits of its own: padding, and those that no byte uses.
            let mut text = signature.into_bytes();
            let text_bit = text_bit.index(text.len() * 7);
            text[text_bit / 7] ^= 1 << (text_bit % 7);
            prop_assert!(!accepts(std::str::from_utf8(&text).unwrap()));
        }
    }
}

/// No bit of a published signature is without effect.
#[test]
fn every_bit_of_a_published_signature_counts() {
    let dialect = dialect("qingcloud-appcenter");
    let published = &dialect.published[0];
    let key = dialect.signing_key(&published.key).unwrap();
    let params = Params::parse(published.query.as_bytes(), 64).unwrap();
    let Lookup::Once(signature) = params.get(&dialect.signature.parameter) else { panic!("unsigned") };
    let accepts = |text: &str| {
        let tag = dialect.signature.output.decode(text);
        tag.is_some_and(|tag| dialect.verify(&key, &tag, "GET", &params).unwrap())
    };
    assert!(accepts(signature));
    for bit in 0..256 {
        let mut bytes = STANDARD.decode(signature).unwrap();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(!accepts(&STANDARD.encode(bytes)), "bit {bit}");
    }
    for bit in 0..signature.len() * 7 {
        let mut text = signature.as_bytes().to_vec();
        text[bit / 7] ^= 1 << (bit % 7);
        assert!(!accepts(std::str::from_utf8(&text).unwrap()), "bit {bit} of the text");
    }
}

/// Joins one of each list: mostly right parts, with wrong ones among them.
fn assembled(parts: &'static [&'static [&'static str]]) -> impl Strategy<Value = String> {
    let picks: Vec<_> = parts.iter().map(|&part| select(part)).collect();
    picks.prop_map(|picked| picked.concat())
}

fn reference_period(text: &str) -> Option<(u32, Unit)> {
    [Unit::Year, Unit::Month, Unit::Day].into_iter().find_map(|unit| {
        let digits = text.strip_suffix(&format!("_{}", unit.as_str()))?;
        let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        let value = if plain && digits.len() < 10 { digits.parse().ok()? } else { 0 };
        (value > 0).then_some((value, unit))
    })
}

fn reference_boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" => Some(true),
        "false" | "0" => Some(false),
        _ => None,
    }
}

/// Digits only, without leading zeros, and at most as many as the format has.
fn reference_count(text: &str, digits: usize) -> Option<i64> {
    let count: i64 = text.parse().ok()?;
    (count >= 0 && text == count.to_string() && text.len() <= digits).then_some(count)
}

/// Seconds since 1970 by counting days.
fn reference_iso8601(text: &str) -> Option<i64> {
    let is_leap = |year: i64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let number = |from: usize, to: usize| {
        let digits = text.get(from..to)?;
        if digits.bytes().all(|byte| byte.is_ascii_digit()) { digits.parse::<i64>().ok() } else { None }
    };
    let marks = [(4, "-"), (7, "-"), (10, "T"), (13, ":"), (16, ":"), (19, "Z")];
    if text.len() != 20 || marks.iter().any(|&(at, mark)| text.get(at..=at) != Some(mark)) {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let february = if is_leap(year) { 29 } else { 28 };
    let months = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let index = usize::try_from(month - 1).ok()?;
    if !(1..=*months.get(index)?).contains(&day) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let leap_days_before = |year: i64| (0..year).filter(|&year| is_leap(year)).count() as i64;
    let days_before = |year: i64| year * 365 + leap_days_before(year);
    let day = days_before(year) - days_before(1970) + months[..index].iter().sum::<i64>() + day - 1;
    let seconds = ((day * 24 + hour) * 60 + minute) * 60 + second;
    // The time library ends 26 hours before the year 9999 does, so that every zone can show it.
    (seconds <= jiff::Timestamp::MAX.as_second()).then_some(seconds)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn periods_are_read_as_the_reference_says(text in prop_oneof![
        8 => assembled(&[
            &["", "", "", "", "", " ", "+", "-", "0", "00", "٣"],
            &["1", "12", "0", "000", "999999999", "99999999", "1000000000", "4294967296", "1.5", "1e3", ""],
            &["_", "_", "_", "_", "_", "", "__", "-", " "],
            &["year", "month", "day", "year", "month", "day", "Day", "days", "week", ""],
            &["", "", "", "", "", " ", "_", "\t"],
        ]),
        1 => text(),
    ]) {
        let expected = reference_period(&text).map(|(value, unit)| Decoded::Period(value, unit));
        prop_assert_eq!(FieldType::Period.decode(&text).ok(), expected);
    }

    #[test]
    fn booleans_are_read_as_the_reference_says(text in prop_oneof![
        8 => assembled(&[
            &["", "", "", "", " ", "0", "1"],
            &["t", "T", "f", "F", "1", "0", ""],
            &["rue", "RUE", "rUe", "alse", "ALSE", "aLse", "", "", "alſe"],
            &["", "", "", "", " ", "0", "\t"],
        ]),
        1 => text(),
    ]) {
        prop_assert_eq!(FieldType::Boolean.decode(&text).ok(), reference_boolean(&text).map(Decoded::Boolean));
    }

    #[test]
    fn iso_times_are_read_as_the_reference_says(text in prop_oneof![
        8 => assembled(&[
            &["2021", "2024", "2000", "1900", "1970", "0000", "9999", "+021", "202", "２021"],
            &["-", "-", "-", "-", "-", "-", "-", "/"],
            &["01", "02", "02", "06", "12", "12", "11", "00", "13", "1", " 1"],
            &["-"],
            &["01", "28", "29", "30", "30", "31", "00", "32", "+1"],
            &["T", "T", "T", "T", "T", "T", "t", " "],
            &["00", "22", "23", "21", "24", "-1", "9"],
            &[":"],
            &["00", "59", "30", "60"],
            &[":", ":", ":", ":", ":", ":", ""],
            &["00", "59", "07", "60", "99", "1.5"],
            &["Z", "Z", "Z", "Z", "Z", "Z", "Z", "z", "", "+00:00", ".000Z", "Z "],
        ]),
        1 => text(),
    ]) {
        let read = TimeFormat::Iso8601.parse(&text);
        prop_assert_eq!(read.map(jiff::Timestamp::as_second), reference_iso8601(&text));
        if let Some(time) = read {
            prop_assert_eq!(TimeFormat::Iso8601.format(time), text);
        }
    }

    #[test]
    fn every_second_reads_back_as_it_was_written(second in -62_167_219_200..=253_402_207_200_i64) {
        let time = jiff::Timestamp::from_second(second).unwrap();
        let text = TimeFormat::Iso8601.format(time);
        prop_assert_eq!(reference_iso8601(&text), Some(second));
        prop_assert_eq!(TimeFormat::Iso8601.parse(&text), Some(time));
    }

    #[test]
    fn counted_times_are_read_as_the_reference_says(text in prop_oneof![
        2 => (any::<u64>(), 0..20_u32).prop_map(|(number, shift)| (number / 10_u64.pow(shift.min(19))).to_string()),
        8 => assembled(&[
            &["", "", "", "", "", "+", "-", " ", "0", "0x"],
            &["0", "1", "1652254417", "99999999999", "99999999999999", "00", "１", ""],
            &["", "", "", "000", "0", "9"],
            &["", "", "", "", "", ".0", "e3", " ", "Z"],
        ]),
        1 => text(),
    ]) {
        let seconds = TimeFormat::UnixSeconds.parse(&text).map(jiff::Timestamp::as_second);
        prop_assert_eq!(seconds, reference_count(&text, 11));
        let milliseconds = TimeFormat::UnixMilliseconds.parse(&text).map(jiff::Timestamp::as_millisecond);
        prop_assert_eq!(milliseconds, reference_count(&text, 14));
    }
}

/// A document as tokens: what it means and how it is spelt, without white space.
fn document() -> impl Strategy<Value = Vec<String>> {
    let string = || {
        let piece = prop_oneof![
            4 => select(&["\\\"", "\\\\", "\\n", "\\u0041", "\\ud83d\\ude00", " ", "\t", ",", "{", "]", ":", "é", "😀", "\x7f"][..])
                // A raw tab is no JSON inside a string.
                .prop_map(|piece| if piece == "\t" { "\\t".to_owned() } else { piece.to_owned() }),
            1 => any::<char>()
                .prop_filter("must be escaped", |&char| char >= ' ' && char != '"' && char != '\\')
                .prop_map(String::from),
        ];
        vec(piece, 0..6).prop_map(|pieces| format!("\"{}\"", pieces.concat()))
    };
    let number = prop_oneof![
        any::<f64>().prop_filter("JSON has none", |number| number.is_finite()).prop_map(|number| format!("{number:e}")),
        any::<i64>().prop_map(|number| number.to_string()),
        select(&["-0", "1.50", "10000000000000000999", "1E-999", "1e+6"][..]).prop_map(str::to_owned),
    ];
    let leaf = prop_oneof![
        2 => string(),
        2 => number,
        1 => select(&["null", "true", "false"][..]).prop_map(str::to_owned),
    ]
    .prop_map(|token| vec![token]);
    leaf.prop_recursive(4, 32, 5, move |inner| {
        let array = vec(inner.clone(), 0..5).prop_map(|items| bracketed("[", items, "]"));
        let object = vec((string(), inner), 0..5).prop_map(|members| {
            let members = members.into_iter().enumerate().map(|(index, (key, mut value))| {
                // A number in front keeps keys apart, and white space may follow them.
                let mut tokens = vec![format!("\"{index}{}", &key[1..]), ":".to_owned()];
                tokens.append(&mut value);
                tokens
            });
            bracketed("{", members.collect(), "}")
        });
        prop_oneof![array, object]
    })
}

fn bracketed(open: &str, items: Vec<Vec<String>>, close: &str) -> Vec<String> {
    let mut tokens = vec![open.to_owned()];
    for (index, mut item) in items.into_iter().enumerate() {
        if index > 0 {
            tokens.push(",".to_owned());
        }
        tokens.append(&mut item);
    }
    tokens.push(close.to_owned());
    tokens
}

fn valid_reply() -> impl Strategy<Value = String> {
    let samples: Vec<String> =
        dialects().into_iter().flat_map(|dialect| dialect.actions).map(|action| action.reply.sample).collect();
    select(samples)
}

/// Replies made of the contract's own words, right and wrong.
fn reply() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        4 => select(&["", "x", "ins-1", "true"][..]).prop_map(Value::from),
        1 => (126..131_usize, select(&['x', '套'][..])).prop_map(|(length, char)| String::from_iter(vec![char; length]).into()),
        3 => any::<bool>().prop_map(Value::from),
        1 => select(vec![Value::Null, Value::from(1), Value::from(0.5)]),
    ];
    let key = || select(&["url", "username", "frontEnd", "admin", "authUrl", "success", "instanceId", "other"][..]);
    let nested = leaf.clone().prop_recursive(3, 12, 4, move |inner| {
        prop_oneof![
            3 => vec((key(), inner.clone()), 0..4).prop_map(Value::from_iter),
            1 => vec(inner, 0..3).prop_map(Value::from),
        ]
    });
    let member = |key: &'static str, usual: BoxedStrategy<Value>| {
        prop_oneof![5 => usual.prop_map(Some), 1 => nested.clone().prop_map(Some), 1 => Just(None)]
            .prop_map(move |value| value.map(|value| (key, value)))
    };
    let text = || leaf.clone().prop_filter("usually text", Value::is_string).boxed();
    let sides = vec((select(&["url", "username", "password"][..]), text()), 0..3).prop_map(Value::from_iter);
    let info = vec(prop_oneof![(select(&["frontEnd", "admin"][..]), sides), (Just("authUrl"), text()),], 0..3)
        .prop_map(Value::from_iter);
    (
        member("success", prop_oneof![3 => Just(true), 1 => Just(false)].prop_map(Value::from).boxed()),
        member("instanceId", text()),
        member("message", text()),
        member("appInfo", info.boxed()),
        member("other", leaf.clone().boxed()),
    )
        .prop_map(|(a, b, c, d, e)| [a, b, c, d, e].into_iter().flatten().collect())
}

/// The contract of AppCenter's create reply, as `protocol.md` section 4 words it.
fn reference_judge(reply: &Value) -> Option<Judgement> {
    let is_text_or_absent = |value: Option<&Value>| value.is_none_or(Value::is_string);
    let is_account_or_absent = |value: Option<&Value>| {
        value.is_none_or(|value| {
            value.is_object() && ["url", "username", "password"].iter().all(|key| is_text_or_absent(value.get(key)))
        })
    };
    let reply = reply.as_object()?;
    let success = reply.get("success")?.as_bool()?;
    if !reply.get("message").is_none_or(|message| message.is_string() || message.is_null()) {
        return None;
    }
    if !success {
        return Some(Judgement::Refusal);
    }
    let instance_id = reply.get("instanceId")?.as_str()?;
    let info_fits = reply.get("appInfo").is_none_or(|info| {
        info.is_object()
            && is_account_or_absent(info.get("frontEnd"))
            && is_account_or_absent(info.get("admin"))
            && is_text_or_absent(info.get("authUrl"))
    });
    let fits = (1..=128).contains(&instance_id.chars().count()) && info_fits;
    fits.then(|| Judgement::Success { instance_id: Some(instance_id.to_owned()) })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn compacting_keeps_every_token(
        tokens in document(),
        gaps in vec(select(&["", "", " ", "\n", "\t", "\r", " \r\n\t "][..]), 1..16),
    ) {
        let mut gaps = gaps.into_iter().cycle();
        let spaced: String = tokens.iter().flat_map(|token| [token.as_str(), gaps.next().unwrap_or("")]).collect();
        json::is_object(spaced.as_bytes()).unwrap();
        let compact = json::compact(&spaced);
        prop_assert_eq!(&compact, &tokens.concat());

        let ascii = json::ascii(&json::compact(&spaced)).into_owned();
        prop_assert!(ascii.bytes().all(|byte| matches!(byte, b' '..=b'~')), "{ascii}");
        let value: Value = serde_json::from_str(&spaced).unwrap();
        prop_assert_eq!(&serde_json::from_str::<Value>(&compact).unwrap(), &value);
        prop_assert_eq!(&serde_json::from_str::<Value>(&ascii).unwrap(), &value);
    }

    #[test]
    fn strict_json_is_json(tokens in document(), cut in any::<Index>(), byte in any::<u8>()) {
        let mut document = tokens.concat().into_bytes();
        document[cut.index(tokens.concat().len())] = byte;
        let value = serde_json::from_slice::<Value>(&document).ok();
        match json::is_object(&document) {
            Ok(is_object) => prop_assert_eq!(value.map(|value| value.is_object()), Some(is_object)),
            // The changed byte made two keys equal; what follows was not read.
            Err(json::JsonError::DuplicateKey) => {}
            Err(_) => prop_assert!(value.is_none()),
        }
    }

    #[test]
    fn replies_are_judged_as_the_reference_judges(reply in reply()) {
        let contract = dialect("qingcloud-appcenter").action_of(ActionKind::Create).unwrap().reply.clone();
        let judged = contract.judge(reply.to_string().as_bytes());
        prop_assert_eq!(judged.clone().ok(), reference_judge(&reply), "{:?}", judged);
    }

    #[test]
    fn the_judge_takes_any_bytes(
        noise in vec(any::<u8>(), 0..64),
        sample in valid_reply(),
        at in any::<Index>(),
        insert in vec(prop_oneof![2 => select(&b"{}[]\",:\\0e-tfn "[..]), 1 => any::<u8>()], 0..4),
        removed in 0..4_usize,
    ) {
        let mut damaged = sample.into_bytes();
        let at = at.index(damaged.len());
        damaged.splice(at..damaged.len().min(at + removed), insert);
        for dialect in dialects() {
            for action in &dialect.actions {
                for body in [&noise, &damaged] {
                    let is_object = json::is_object(body) == Ok(true);
                    let judged = action.reply.judge(body);
                    prop_assert!(is_object || judged.is_err(), "{:?}", judged);
                }
            }
        }
    }
}
