//! Strict JSON, shared by request fields (base64 JSON objects) and backend replies.
//!
//! Stricter than `serde_json::Value`: duplicate keys are an error at every depth (last-wins
//! hides what a signer or a reader meant), numbers that no double can hold are errors, nesting
//! ends at 128. Documents are checked, then passed on as they came; they are never rebuilt, so
//! no number loses a digit.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt::{self, Write as _};
use std::io;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::ser::Serialize;
use serde_json::ser::{Formatter, Serializer};

/// Why a document was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JsonError {
    /// There are no bytes at all.
    Empty,
    /// Not JSON (bad syntax or encoding, a number or nesting out of bounds, trailing bytes).
    Invalid,
    /// A key stands twice in one object.
    DuplicateKey,
}

impl fmt::Display for JsonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "it is empty",
            Self::Invalid => "it is not valid JSON",
            Self::DuplicateKey => "a key stands twice in one object",
        })
    }
}

impl std::error::Error for JsonError {}

/// What a walker sees of one value. Objects and arrays are announced before their content.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Seen<'t> {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// Any number.
    Number,
    /// A string, unescaped.
    String(&'t str),
    /// An array.
    Array,
    /// An object.
    Object,
}

/// Follows a document while it is read, from the top down. A `Place` is what the walker wants
/// to remember of a position in the document.
pub trait Walker {
    /// A position, as this walker sees it.
    type Place: Copy;
    /// Sees the value at a place.
    fn see(&mut self, place: Self::Place, seen: Seen<'_>);
    /// Says what the member `key` of the object at `place` is.
    fn member(&mut self, place: Self::Place, key: &str) -> Member<Self::Place>;
    /// Says what the place of the elements of the array at `place` is.
    fn element(&mut self, place: Self::Place) -> Self::Place;
}

/// What a walker makes of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Member<P> {
    /// One that it knows, at its place, and that did not stand in this object before.
    First(P),
    /// One that it knows, and that did.
    Again,
    /// Any other, at its place: whether it stands twice is found out without the walker.
    Other(P),
}

/// Reads `document` strictly and shows it to `walker`, which stands at `top` first.
///
/// # Errors
/// See [`JsonError`].
pub fn walk<W: Walker>(document: &[u8], walker: &mut W, top: W::Place) -> Result<(), JsonError> {
    // Looked at once as a whole: the reader would do it again for each string.
    walk_text(str::from_utf8(document).map_err(|_| JsonError::Invalid)?, walker, top)
}

/// The same of text.
fn walk_text<W: Walker>(document: &str, walker: &mut W, top: W::Place) -> Result<(), JsonError> {
    if document.is_empty() {
        return Err(JsonError::Empty);
    }
    let mut keys = Keys { open: Vec::new(), repeated: false };
    let mut reader = serde_json::Deserializer::from_str(document);
    let start = Value { walker, place: top, keys: &mut keys };
    match start.deserialize(&mut reader).and_then(|()| reader.end()) {
        Ok(()) => Ok(()),
        Err(_) if keys.repeated => Err(JsonError::DuplicateKey),
        Err(_) => Err(JsonError::Invalid),
    }
}

/// Checks `document` and says what it is at the top.
///
/// # Errors
/// See [`JsonError`].
pub fn is_object(document: &[u8]) -> Result<bool, JsonError> {
    is_object_text(str::from_utf8(document).map_err(|_| JsonError::Invalid)?)
}

/// The same of text.
///
/// # Errors
/// See [`JsonError`].
pub fn is_object_text(document: &str) -> Result<bool, JsonError> {
    struct Top(bool);
    impl Walker for Top {
        type Place = bool;
        fn see(&mut self, at_top: bool, seen: Seen<'_>) {
            if at_top {
                self.0 = seen == Seen::Object;
            }
        }
        fn member(&mut self, _: bool, _: &str) -> Member<bool> {
            Member::Other(false)
        }
        fn element(&mut self, _: bool) -> bool {
            false
        }
    }
    let mut top = Top(false);
    walk_text(document, &mut top, true)?;
    Ok(top.0)
}

/// Drops the white space between the tokens of a **checked** document.
pub fn compact(document: &str) -> String {
    let mut out = String::with_capacity(document.len());
    let (mut from, mut at) = (0, 0);
    while let Some(byte) = document.as_bytes().get(at) {
        match byte {
            b'"' => at += string_length(&document[at..]),
            b' ' | b'\t' | b'\n' | b'\r' => {
                out.push_str(&document[from..at]);
                at += 1;
                from = at;
            }
            _ => at += 1,
        }
    }
    out.push_str(&document[from..]);
    out
}

/// The length of the string literal that `text` begins with, quotes included.
fn string_length(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut at = 1;
    while let Some(found) = bytes.get(at..).and_then(|rest| memchr::memchr2(b'"', b'\\', rest)) {
        at += found + 1;
        if bytes[at - 1] == b'"' {
            return at;
        }
        // Whatever follows a backslash is not the end. It is one byte: JSON escapes are ASCII.
        at += 1;
    }
    text.len()
}

/// A document with everything outside ASCII written as `\uXXXX`: survives every header decoder.
/// Only strings can hold such characters.
pub fn ascii(document: &str) -> Cow<'_, str> {
    let plain = |char: char| char.is_ascii() && char != '\x7f';
    // Every byte is looked at, which goes faster than to stop at the first.
    if document.bytes().fold(true, |all, byte| all & (byte < 0x7f)) {
        return Cow::Borrowed(document);
    }
    let mut out = String::with_capacity(2 * document.len());
    for char in document.chars() {
        if plain(char) {
            out.push(char);
        } else {
            use fmt::Write as _;
            for unit in char.encode_utf16(&mut [0; 2]) {
                // Writing to a String cannot fail.
                let _ = write!(out, "\\u{unit:04x}");
            }
        }
    }
    Cow::Owned(out)
}

/// Whether a character could move a terminal's cursor, or hide or turn around other text.
pub fn is_unseen(char: char) -> bool {
    char.is_control()
        || matches!(char, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Whether a text is visible ASCII and spaces, of which nothing [`is_unseen`]. Every byte is looked at,
/// which goes faster than to stop at the first.
pub fn is_plain_ascii(text: &str) -> bool {
    text.bytes().fold(true, |all, byte| all & (b' '..0x7f).contains(&byte))
}

/// Writes JSON that no terminal takes for commands: DEL and the controls beyond ASCII (U+009B
/// begins an escape sequence) are escaped too, which JSON does not ask for.
pub struct Inert;

impl Formatter for Inert {
    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        // Nearly always.
        if is_plain_ascii(fragment) {
            return writer.write_all(fragment.as_bytes());
        }
        let mut plain = 0;
        for (at, unseen) in fragment.match_indices(is_unseen) {
            writer.write_all(&fragment.as_bytes()[plain..at])?;
            for char in unseen.chars() {
                write!(writer, "\\u{:04x}", u32::from(char))?;
            }
            plain = at + unseen.len();
        }
        writer.write_all(&fragment.as_bytes()[plain..])
    }
}

/// JSON in one line, with control characters escaped that JSON itself would let pass.
pub fn to_text(value: &impl Serialize) -> String {
    let mut text = Vec::new();
    // Texts, numbers and lists always serialize.
    let _ = value.serialize(&mut Serializer::with_formatter(&mut text, Inert));
    String::from_utf8(text).unwrap_or_default()
}

/// JSON over several lines; its texts are as inert as those of [`to_text`].
pub fn to_lines(value: &impl Serialize) -> String {
    let text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.chars().fold(String::with_capacity(text.len()), |mut out, char| {
        if char != '\n' && is_unseen(char) {
            // Writing to a String cannot fail.
            let _ = write!(out, "\\u{:04x}", u32::from(char));
        } else {
            out.push(char);
        }
        out
    })
}

/// One value of the document, on its way through serde.
struct Value<'w, 'de, W: Walker> {
    walker: &'w mut W,
    place: W::Place,
    keys: &'w mut Keys<'de>,
}

impl<'de, W: Walker> DeserializeSeed<'de> for Value<'_, 'de, W> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, W: Walker> Visitor<'de> for Value<'_, 'de, W> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        self.walker.see(self.place, Seen::Null);
        Ok(())
    }
    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        self.walker.see(self.place, Seen::Bool(value));
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        self.walker.see(self.place, Seen::Number);
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        self.walker.see(self.place, Seen::Number);
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        self.walker.see(self.place, Seen::Number);
        Ok(())
    }
    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        self.walker.see(self.place, Seen::String(text));
        Ok(())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        self.walker.see(self.place, Seen::Array);
        let place = self.walker.element(self.place);
        loop {
            let element = Value { walker: &mut *self.walker, place, keys: &mut *self.keys };
            if seq.next_element_seed(element)?.is_none() {
                return Ok(());
            }
        }
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        self.walker.see(self.place, Seen::Object);
        let mut object = self.keys.begin();
        while let Some(Key(key)) = map.next_key()? {
            let place = match self.walker.member(self.place, &key) {
                Member::First(place) => Some(place),
                Member::Other(place) => self.keys.insert(&mut object, key).then_some(place),
                Member::Again => None,
            };
            let Some(place) = place else {
                self.keys.repeated = true;
                return Err(A::Error::custom("duplicate key"));
            };
            map.next_value_seed(Value { walker: &mut *self.walker, place, keys: &mut *self.keys })?;
        }
        self.keys.end(&object);
        Ok(())
    }
}

/// A key, borrowed from the document where it has no escapes.
struct Key<'de>(Cow<'de, str>);

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Key<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Read)
    }
}

/// The keys of the objects that are open, but for those that the walker knows, the innermost one's
/// last: one list for a document.
struct Keys<'de> {
    open: Vec<Cow<'de, str>>,
    /// A key was found to stand twice.
    repeated: bool,
}

/// The keys of one object: a part of the list while they are few, a set once they are not, so that
/// an object of a hundred thousand keys costs no more a key than one of ten.
struct Object<'de> {
    from: usize,
    many: Option<HashSet<Cow<'de, str>>>,
}

impl<'de> Keys<'de> {
    const FEW: usize = 16;

    fn begin(&self) -> Object<'de> {
        Object { from: self.open.len(), many: None }
    }

    /// Adds a key; whether it is a new one.
    fn insert(&mut self, object: &mut Object<'de>, key: Cow<'de, str>) -> bool {
        let few = &self.open[object.from..];
        if object.many.is_none() && few.len() < Self::FEW {
            let is_new = !few.contains(&key);
            if is_new {
                if self.open.is_empty() {
                    // At once for nearly every document.
                    self.open.reserve(Self::FEW);
                }
                self.open.push(key);
            }
            is_new
        } else {
            let many = object.many.get_or_insert_default();
            // The first time there are some; after that objects inside leave none behind.
            many.extend(self.open.drain(object.from..));
            many.insert(key)
        }
    }

    fn end(&mut self, object: &Object<'de>) {
        self.open.truncate(object.from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_duplicates_at_every_depth() {
        for document in [r#"{"a":1,"a":2}"#, r#"{"a":{"b":1,"\u0062":2}}"#, r#"[{"a":[{"b":0,"b":0}]}]"#] {
            assert_eq!(is_object(document.as_bytes()), Err(JsonError::DuplicateKey), "{document}");
        }
        let many = (0..40).map(|n| format!("\"k{n}\":1")).collect::<Vec<_>>().join(",");
        assert_eq!(is_object(format!("{{{many}}}").as_bytes()), Ok(true));
        assert_eq!(is_object(format!("{{{many},\"k3\":2}}").as_bytes()), Err(JsonError::DuplicateKey));
        assert_eq!(is_object(br#"[{"a":1},{"a":1}]"#), Ok(false));
    }

    #[test]
    fn keys_of_objects_inside_are_not_keys_of_those_around() {
        for count in [1, 15, 16, 17, 40] {
            let inner = (0..count).map(|n| format!("\"k{n}\":1")).collect::<Vec<_>>().join(",");
            let outer = (0..count).map(|n| format!("\"k{n}\":{{{inner}}}")).collect::<Vec<_>>().join(",");
            assert_eq!(is_object(format!("{{{outer}}}").as_bytes()), Ok(true), "{count}");
            for twice in [0, count - 1] {
                let repeated = format!("{{{outer},\"k{twice}\":1}}");
                assert_eq!(is_object(repeated.as_bytes()), Err(JsonError::DuplicateKey), "{count}");
                let inside = format!("{{{outer},\"x\":{{{inner},\"k{twice}\":1}}}}");
                assert_eq!(is_object(inside.as_bytes()), Err(JsonError::DuplicateKey), "{count}");
            }
        }
    }

    #[test]
    fn refuses_what_is_not_json() {
        for document in [
            "{",
            "{}x",
            "{} {}",
            "\u{feff}{}",
            r#"{"a":1e400}"#,
            r#"{"a":"\ud800"}"#,
            "NaN",
            "{'a':1}",
            r#"{"a":01}"#,
            "<html>",
            "{\"a\":\"\x01\"}",
        ] {
            assert_eq!(is_object(document.as_bytes()), Err(JsonError::Invalid), "{document}");
        }
        assert_eq!(is_object(b"{\"a\":\"\xff\"}"), Err(JsonError::Invalid));
        assert_eq!(is_object(b""), Err(JsonError::Empty));
        assert_eq!(is_object("[".repeat(100_000).as_bytes()), Err(JsonError::Invalid));
        assert_eq!(is_object(format!("{}{}", "[".repeat(100), "]".repeat(100)).as_bytes()), Ok(false));
    }

    #[test]
    fn compacts_without_touching_strings_or_numbers() {
        let document = "{ \"a b\" :\t[1.50 , \"\\\" , \\\\\" , 10000000000000000999],\n\"套\": \"a 😀\" }";
        assert_eq!(compact(document), r#"{"a b":[1.50,"\" , \\",10000000000000000999],"套":"a 😀"}"#);
        let ascii = ascii(&compact(document)).into_owned();
        assert_eq!(ascii, r#"{"a b":[1.50,"\" , \\",10000000000000000999],"\u5957":"a \ud83d\ude00"}"#);
        let (before, after): (serde_json::Value, serde_json::Value) =
            (serde_json::from_str(document).unwrap(), serde_json::from_str(&ascii).unwrap());
        assert_eq!(before, after);
    }
}
