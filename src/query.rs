//! The strict query-string reader.
//!
//! Turns the query of a request into decoded parameters, or says why it refuses. Everything
//! behind it (canonical form, fields, contracts) sees decoded UTF-8 only, so a byte that this
//! reader lets through is a byte that was signed. It never repairs: a bad escape or invalid
//! UTF-8 is an error, never U+FFFD. It knows nothing of marketplaces and does no I/O.
//!
//! Rules (`protocol.md` section 2, 1): `&` separates, the first `=` ends the name, `+` is a
//! space, a name without `=` has an empty value, empty pairs are skipped, `;` is data.

use std::cmp::Ordering;
use std::fmt;

/// Decoded parameters of one query string.
///
/// Two allocations whatever the number of parameters: one text that holds all decoded names and
/// values, and one list of positions in it, sorted by name (byte order, equal names in received
/// order), which is the order in which the canonical form wants them.
#[derive(Clone, PartialEq, Eq)]
pub struct Params {
    text: String,
    entries: Vec<Entry>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Entry {
    /// The first eight bytes of the name, so that most comparisons are one of numbers.
    prefix: u64,
    /// Where the name begins.
    start: u32,
    name_end: u32,
    value_end: u32,
}

impl Entry {
    /// The entry whose value ends where `text` ends.
    fn new(text: &[u8], start: u32, name_end: u32) -> Self {
        let prefix = prefix(&text[start as usize..name_end as usize]);
        Self { prefix, start, name_end, value_end: position(text) }
    }

    fn by_name(&self, other: &Self, text: &str) -> Ordering {
        self.prefix.cmp(&other.prefix).then_with(|| self.name(text).cmp(other.name(text)))
    }

    /// Compares its name with another one.
    fn name_cmp(&self, prefix: u64, name: &str, text: &str) -> Ordering {
        match self.prefix.cmp(&prefix) {
            Ordering::Equal => self.name(text).cmp(name.as_bytes()),
            unequal => unequal,
        }
    }

    fn name<'t>(&self, text: &'t str) -> &'t [u8] {
        &text.as_bytes()[self.start as usize..self.name_end as usize]
    }

    fn value<'t>(&self, text: &'t str) -> &'t str {
        &text[self.name_end as usize..self.value_end as usize]
    }

    /// The received order. Starts alone do not tell it: an empty name with an empty value begins
    /// where the next entry does.
    fn order(&self) -> (u32, u32) {
        (self.start, self.value_end)
    }
}

/// A decoded parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Param<'a> {
    /// Decoded name.
    pub name: &'a str,
    /// Decoded value.
    pub value: &'a str,
}

/// What a look-up by name found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup<'a> {
    /// No parameter has this name.
    Absent,
    /// Exactly one has; its value.
    Once(&'a str),
    /// Several have.
    Repeated,
}

/// The place of a parameter among its fellows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(usize);

/// Where a look-up by name ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// No parameter has this name.
    Absent,
    /// Exactly one has.
    Once(Place),
    /// Several have.
    Repeated,
}

/// Names to look for, all in one walk over the parameters.
#[derive(Clone, Debug)]
pub struct Names(Vec<Name>);

#[derive(Clone, Debug)]
struct Name {
    prefix: u64,
    text: String,
    /// Its position among the names as they were given.
    position: usize,
}

impl Names {
    /// Prepares names.
    pub fn new<'n>(names: impl IntoIterator<Item = &'n str>) -> Self {
        let name =
            |(position, text): (usize, &str)| Name { prefix: prefix(text.as_bytes()), text: text.to_owned(), position };
        let mut names: Vec<_> = names.into_iter().enumerate().map(name).collect();
        names.sort_by(|a, b| a.text.cmp(&b.text));
        Self(names)
    }
}

/// Why a query string was refused. Never carries a value: what was refused may be a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueryError {
    /// `%` that two hexadecimal digits do not follow.
    BadEscape,
    /// A name or a value that is not UTF-8 after decoding.
    NotUtf8,
    /// A NUL, CR or LF in a name or a value.
    ControlCharacter,
    /// More parameters than allowed.
    TooMany {
        /// The configured limit.
        limit: usize,
    },
}

impl fmt::Display for QueryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadEscape => f.write_str("the query has a % that is not followed by two hexadecimal digits"),
            Self::NotUtf8 => f.write_str("the query does not decode to valid UTF-8"),
            Self::ControlCharacter => f.write_str("the query has a NUL, CR or LF in a name or value"),
            Self::TooMany { limit } => write!(f, "the query has more than {limit} parameters"),
        }
    }
}

impl std::error::Error for QueryError {}

impl Params {
    /// Reads a query string (without its `?`).
    ///
    /// `limit` is the largest number of parameters accepted.
    ///
    /// # Errors
    /// See [`QueryError`]. The query must be shorter than 4 GiB; the gateway's own limit is far
    /// below that.
    pub fn parse(query: &[u8], limit: usize) -> Result<Self, QueryError> {
        let mut text = Vec::with_capacity(query.len());
        // Counting first keeps the list at one exact allocation.
        let pairs = memchr::memchr_iter(b'&', query).count() + 1;
        let mut entries = Vec::with_capacity(pairs.min(limit));
        let mut rest = query;
        while let Some(&first) = rest.first() {
            if first == b'&' {
                rest = &rest[1..];
                continue;
            }
            if entries.len() == limit {
                return Err(QueryError::TooMany { limit });
            }
            let start = position(&text);
            rest = decode_until::<true>(rest, &mut text)?;
            let name_end = position(&text);
            if let [b'=', value @ ..] = rest {
                rest = decode_until::<false>(value, &mut text)?;
            }
            entries.push(Entry::new(&text, start, name_end));
        }
        let text = String::from_utf8(text).map_err(|_| QueryError::NotUtf8)?;
        // Every name and value must be UTF-8 of its own: none may begin what the next one ends.
        let is_cut = |entry: &Entry| {
            !text.is_char_boundary(entry.name_end as usize) || !text.is_char_boundary(entry.value_end as usize)
        };
        if entries.iter().any(is_cut) {
            return Err(QueryError::NotUtf8);
        }
        entries.sort_unstable_by(|a, b| a.by_name(b, &text).then_with(|| a.order().cmp(&b.order())));
        Ok(Self { text, entries })
    }

    /// Builds parameters from decoded pairs, in received order. For signers and tests.
    pub fn from_pairs<'p>(pairs: impl IntoIterator<Item = (&'p str, &'p str)>) -> Self {
        let mut text = String::new();
        let mut entries = Vec::new();
        for (name, value) in pairs {
            let start = position(text.as_bytes());
            text.push_str(name);
            let name_end = position(text.as_bytes());
            text.push_str(value);
            entries.push(Entry::new(text.as_bytes(), start, name_end));
        }
        entries.sort_by(|a, b| a.by_name(b, &text));
        Self { text, entries }
    }

    /// The number of parameters.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All parameters, sorted by the bytes of their names; equal names in received order.
    pub fn sorted(&self) -> impl Iterator<Item = Param<'_>> {
        self.entries.iter().map(|entry| self.param(entry))
    }

    /// All parameters as received.
    pub fn received(&self) -> impl Iterator<Item = Param<'_>> {
        let mut order: Vec<&Entry> = self.entries.iter().collect();
        order.sort_unstable_by_key(|entry| entry.order());
        order.into_iter().map(|entry| self.param(entry))
    }

    /// Looks a parameter up by its decoded name.
    pub fn get(&self, name: &str) -> Lookup<'_> {
        match self.find(name) {
            Found::Absent => Lookup::Absent,
            Found::Once(place) => Lookup::Once(self.value(place)),
            Found::Repeated => Lookup::Repeated,
        }
    }

    /// Looks for a parameter by its decoded name; its place is good for these parameters only.
    pub fn find(&self, name: &str) -> Found {
        let prefix = prefix(name.as_bytes());
        // Comparing a handful of numbers in a row is faster than halving.
        let mut from = if self.entries.len() <= FEW {
            0
        } else {
            self.entries.partition_point(|entry| entry.name_cmp(prefix, name, &self.text).is_lt())
        };
        self.find_from(&mut from, prefix, name)
    }

    /// Looks for parameters by their decoded names: what [`Params::find`] says of each, by the
    /// positions of the names.
    pub fn find_all(&self, names: &Names) -> Vec<Found> {
        let mut found = vec![Found::Absent; names.0.len()];
        let mut from = 0;
        for name in &names.0 {
            found[name.position] = self.find_from(&mut from, name.prefix, &name.text);
        }
        found
    }

    /// The same for a name that no parameter before `from` has. Moves that over all that stand before
    /// the name.
    fn find_from(&self, from: &mut usize, prefix: u64, name: &str) -> Found {
        while let Some(entry) = self.entries.get(*from) {
            match entry.name_cmp(prefix, name, &self.text) {
                Ordering::Less => *from += 1,
                Ordering::Greater => return Found::Absent,
                Ordering::Equal => {
                    let next = self.entries.get(*from + 1);
                    let repeated = next.is_some_and(|next| next.name_cmp(prefix, name, &self.text).is_eq());
                    return if repeated { Found::Repeated } else { Found::Once(Place(*from)) };
                }
            }
        }
        Found::Absent
    }

    /// Names that stand more than once.
    pub fn repeated(&self) -> impl Iterator<Item = &str> {
        let pairs = self.entries.iter().zip(self.entries.iter().skip(1));
        pairs.filter(|(one, next)| one.by_name(next, &self.text).is_eq()).map(|(one, _)| self.param(one).name)
    }

    /// The value at a place that [`Params::find`] gave.
    pub fn value(&self, place: Place) -> &str {
        self.entries[place.0].value(&self.text)
    }

    fn param(&self, entry: &Entry) -> Param<'_> {
        Param { name: &self.text[entry.start as usize..entry.name_end as usize], value: entry.value(&self.text) }
    }
}

/// Shows how many parameters there are, never what they hold.
impl fmt::Debug for Params {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Params({})", self.entries.len())
    }
}

/// The length of a text as a position in it. Queries end at 64 KiB (`http::Uri`), so this never
/// saturates; a saturated position would only make a look-up miss.
fn position(text: &[u8]) -> u32 {
    u32::try_from(text.len()).unwrap_or(u32::MAX)
}

/// Up to so many parameters are looked through one by one.
const FEW: usize = 16;

/// The first eight bytes of a name as a number that sorts as they do. Shorter names are filled
/// up with zeros; where that makes two names equal, the names themselves are compared.
fn prefix(name: &[u8]) -> u64 {
    match name.first_chunk() {
        Some(first) => u64::from_be_bytes(*first),
        None => {
            let mut bytes = [0; 8];
            bytes[..name.len()].copy_from_slice(name);
            u64::from_be_bytes(bytes)
        }
    }
}

/// Decodes a name, which ends at `=` or `&`, or a value, which ends at `&`, to the end of `text`,
/// whatever its bytes mean. Returns what it ends at and all behind that.
fn decode_until<'q, const NAME: bool>(encoded: &'q [u8], text: &mut Vec<u8>) -> Result<&'q [u8], QueryError> {
    let mut rest = encoded;
    loop {
        // What needs no decoding is copied in one piece.
        let plain = rest.iter().position(|&byte| IS_SPECIAL[usize::from(byte)]).unwrap_or(rest.len());
        text.extend_from_slice(&rest[..plain]);
        let (decoded, tail) = match &rest[plain..] {
            end @ ([] | [b'&', ..]) => return Ok(end),
            end @ [b'=', ..] if NAME => return Ok(end),
            [b'+', tail @ ..] => (b' ', tail),
            [b'%', high, low, tail @ ..] => {
                let (Some(high), Some(low)) = (hex_digit(*high), hex_digit(*low)) else {
                    return Err(QueryError::BadEscape);
                };
                (high << 4 | low, tail)
            }
            [b'%', ..] => return Err(QueryError::BadEscape),
            [byte, tail @ ..] => (*byte, tail),
        };
        if matches!(decoded, 0 | b'\r' | b'\n') {
            return Err(QueryError::ControlCharacter);
        }
        text.push(decoded);
        rest = tail;
    }
}

/// Bytes that do not simply stand for themselves.
static IS_SPECIAL: [bool; 256] = {
    let mut table = [false; 256];
    table[b'&' as usize] = true;
    table[b'=' as usize] = true;
    table[b'+' as usize] = true;
    table[b'%' as usize] = true;
    table[0] = true;
    table[b'\r' as usize] = true;
    table[b'\n' as usize] = true;
    table
};

fn hex_digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(query: &str) -> Vec<(String, String)> {
        let params = Params::parse(query.as_bytes(), 64).expect("parses");
        params.received().map(|p| (p.name.to_owned(), p.value.to_owned())).collect()
    }

    fn refused(query: &str) -> QueryError {
        Params::parse(query.as_bytes(), 64).expect_err("is refused")
    }

    #[test]
    fn decodes_as_a_form_does() {
        assert_eq!(
            pairs("a+b=c%2Bd&e&&=f&g=h=i;j"),
            [("a b", "c+d"), ("e", ""), ("", "f"), ("g", "h=i;j")].map(|(a, b)| (a.into(), b.into()))
        );
        assert_eq!(pairs(""), []);
    }

    #[test]
    fn sorts_by_name_and_keeps_the_order_of_equal_names() {
        let params = Params::parse(b"x=2&a-b=2&x=1&a=1&%61=0", 64).expect("parses");
        let sorted: Vec<_> = params.sorted().map(|p| (p.name, p.value)).collect();
        assert_eq!(sorted, [("a", "1"), ("a", "0"), ("a-b", "2"), ("x", "2"), ("x", "1")]);
    }

    /// An empty parameter takes no room in the text, so it begins where the next one does.
    #[test]
    fn empty_parameters_keep_their_order_in_long_queries() {
        let sent: Vec<_> = (0..64).map(|at| ["=", "=x", "=", "y=", "=", "="][at % 6]).collect();
        let expected: Vec<_> = sent.iter().map(|pair| pair.split_once('=').unwrap()).collect();
        let params = Params::parse(sent.join("&").as_bytes(), 64).expect("parses");
        assert_eq!(params.received().map(|p| (p.name, p.value)).collect::<Vec<_>>(), expected);
        let mut by_name = expected;
        by_name.sort_by_key(|&(name, _)| name);
        assert_eq!(params.sorted().map(|p| (p.name, p.value)).collect::<Vec<_>>(), by_name);
    }

    #[test]
    fn looks_up_by_decoded_name() {
        let params = Params::parse(b"b=1&%61=2&b=3", 64).expect("parses");
        assert_eq!(params.get("a"), Lookup::Once("2"));
        assert_eq!(params.get("b"), Lookup::Repeated);
        assert_eq!(params.get("c"), Lookup::Absent);
        assert_eq!(params.get(""), Lookup::Absent);
    }

    #[test]
    fn looking_for_many_finds_what_looking_for_each_does() {
        let many = (0..40).map(|number| format!("&parameter{number:02}=x")).collect::<String>();
        for more in ["", &many] {
            let query = format!("b=1&%61=2&b=3&parameters=4&parameter=5&c=&parameters=6{more}");
            let params = Params::parse(query.as_bytes(), 64).expect("parses");
            let names = ["c", "parameters", "a", "", "parameter", "b", "parameter07", "d", "a", "paramete"];
            let found = params.find_all(&Names::new(names));
            assert_eq!(found, names.map(|name| params.find(name)));
            assert_eq!([found[1], found[3], found[5]], [Found::Repeated, Found::Absent, Found::Repeated]);
            let values = [0, 2, 4, 8].map(|position| match found[position] {
                Found::Once(place) => params.value(place),
                other => panic!("{other:?}"),
            });
            assert_eq!(values, ["", "2", "5", "2"]);
            assert_eq!(params.repeated().collect::<Vec<_>>(), ["b", "parameters"]);
        }
        assert!(Params::parse(b"", 64).expect("parses").find_all(&Names::new(["a"])) == [Found::Absent]);
    }

    #[test]
    fn refuses_bad_escapes_utf8_and_control_characters() {
        for query in ["%", "a=%", "a=%2", "a=%zz", "%zz=1", "a=%2&b=0", "a=%+1"] {
            assert_eq!(refused(query), QueryError::BadEscape, "{query}");
        }
        for query in ["a=%C0%AF", "a=%FF", "%FF=a", "a=%ED%A0%80", "%E9%9D&%92=x", "a=%E9&b=%9D%92"] {
            assert_eq!(refused(query), QueryError::NotUtf8, "{query}");
        }
        for query in ["a=%00", "a%00=b", "a=%0d", "a=b%0Ac"] {
            assert_eq!(refused(query), QueryError::ControlCharacter, "{query}");
        }
    }

    #[test]
    fn counts_parameters_but_not_empty_pairs() {
        let query = vec!["a=1"; 64].join("&&");
        assert_eq!(Params::parse(query.as_bytes(), 64).expect("parses").len(), 64);
        assert_eq!(refused(&vec!["a=1"; 65].join("&")), QueryError::TooMany { limit: 64 });
    }

    #[test]
    fn debug_shows_no_value() {
        let params = Params::parse(b"secret=hunter2", 64).expect("parses");
        assert_eq!(format!("{params:?}"), "Params(1)");
    }
}
