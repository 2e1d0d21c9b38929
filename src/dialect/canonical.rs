//! The canonical string: the one text that signer and verifier both hash.
//!
//! It is made from *decoded* parameters, never from wire bytes, because the platform encodes
//! the wire and the signed string with two different functions (`protocol.md` section 2). With
//! the `rfc3986` and `form` encodings the form is injective: two different lists of parameters
//! never share a string. The unencoded form is not, so it refuses values with a delimiter.

use std::fmt;

use crate::percent;
use crate::query::Params;

/// Takes the canonical string piece by piece, so that it can be hashed without being built.
pub trait Sink {
    /// Appends `bytes`.
    fn put(&mut self, bytes: &[u8]);
}

impl Sink for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// How names and values are written into the canonical string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// RFC 3986: everything but `A–Z a–z 0–9 - _ . ~` as upper-case `%XX`.
    Rfc3986,
    /// The same, but a space is `+`.
    Form,
    /// As they are; a name with `=` or `&` or a value with `&` is refused.
    Plain,
}

/// How a dialect builds its canonical string.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CanonicalForm {
    /// What stands before the parameters.
    pub prefix: Vec<PrefixPart>,
    /// How names and values are written.
    pub encoding: Encoding,
}

/// A piece of what stands before the parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PrefixPart {
    /// Fixed text.
    Literal(String),
    /// The request's method.
    Method,
}

/// The parameters contain a delimiter that the unencoded form cannot tell from its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ambiguous;

impl fmt::Display for Ambiguous {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name or value contains a delimiter that this dialect signs unencoded")
    }
}

impl std::error::Error for Ambiguous {}

impl CanonicalForm {
    /// Writes the canonical string of `params` without the parameter named `signature`.
    ///
    /// # Errors
    /// [`Ambiguous`], only with [`Encoding::Plain`].
    pub fn write(&self, method: &str, params: &Params, signature: &str, sink: &mut impl Sink) -> Result<(), Ambiguous> {
        let mut out = Chunks { sink, buffer: [0; CHUNK], used: 0 };
        for part in &self.prefix {
            match part {
                PrefixPart::Literal(text) => out.bytes(text.as_bytes()),
                PrefixPart::Method => out.bytes(method.as_bytes()),
            }
        }
        let signed = params.sorted().filter(|param| param.name != signature);
        for (index, param) in signed.enumerate() {
            if index > 0 {
                out.byte(b'&');
            }
            match self.encoding {
                Encoding::Rfc3986 => {
                    out.encoded(param.name);
                    out.byte(b'=');
                    out.encoded(param.value);
                }
                Encoding::Form => {
                    out.form(param.name);
                    out.byte(b'=');
                    out.form(param.value);
                }
                Encoding::Plain => {
                    if param.name.contains(['=', '&']) || param.value.contains('&') {
                        return Err(Ambiguous);
                    }
                    out.bytes(param.name.as_bytes());
                    out.byte(b'=');
                    out.bytes(param.value.as_bytes());
                }
            }
        }
        out.flush();
        Ok(())
    }
}

/// Large enough for the platform's own requests, so that a hash sees them in one piece.
const CHUNK: usize = 1024;

/// Collects single bytes into chunks: hashing byte by byte is several times slower.
struct Chunks<'s, S: Sink> {
    sink: &'s mut S,
    buffer: [u8; CHUNK],
    used: usize,
}

impl<S: Sink> Chunks<'_, S> {
    fn flush(&mut self) {
        self.sink.put(&self.buffer[..self.used]);
        self.used = 0;
    }

    fn byte(&mut self, byte: u8) {
        if self.used == CHUNK {
            self.flush();
        }
        self.buffer[self.used] = byte;
        self.used += 1;
    }

    fn bytes(&mut self, bytes: &[u8]) {
        // Nearly always there is room.
        if let Some(room) = self.buffer.get_mut(self.used..self.used + bytes.len()) {
            room.copy_from_slice(bytes);
            self.used += bytes.len();
            return;
        }
        for chunk in bytes.chunks(CHUNK) {
            if self.used + chunk.len() > CHUNK {
                self.flush();
            }
            self.buffer[self.used..self.used + chunk.len()].copy_from_slice(chunk);
            self.used += chunk.len();
        }
    }

    fn encoded(&mut self, text: &str) {
        percent::encode(text, &percent::UNRESERVED, |bytes| self.bytes(bytes));
    }

    fn form(&mut self, text: &str) {
        for (index, word) in text.split(' ').enumerate() {
            if index > 0 {
                self.byte(b'+');
            }
            self.encoded(word);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(encoding: Encoding, pairs: &[(&str, &str)]) -> Result<String, Ambiguous> {
        let form = CanonicalForm { prefix: vec![PrefixPart::Method, PrefixPart::Literal("\n".into())], encoding };
        let mut out = Vec::new();
        form.write("GET", &Params::from_pairs(pairs.iter().copied()), "signature", &mut out)?;
        Ok(String::from_utf8(out).expect("canonical strings are text"))
    }

    #[test]
    fn encodes_what_is_not_unreserved() {
        let pairs = [("b", "~*+/ -_."), ("a é", "套"), ("signature", "x")];
        assert_eq!(canonical(Encoding::Rfc3986, &pairs).unwrap(), "GET\na%20%C3%A9=%E5%A5%97&b=~%2A%2B%2F%20-_.");
        assert_eq!(canonical(Encoding::Form, &pairs).unwrap(), "GET\na+%C3%A9=%E5%A5%97&b=~%2A%2B%2F+-_.");
    }

    #[test]
    fn plain_form_refuses_delimiters() {
        assert_eq!(canonical(Encoding::Plain, &[("a", "1"), ("b", "=2")]).unwrap(), "GET\na=1&b==2");
        for pair in [("a", "1&b=2"), ("a=1", "2"), ("a&b", "")] {
            assert_eq!(canonical(Encoding::Plain, &[pair]), Err(Ambiguous));
        }
    }

    #[test]
    fn long_values_cross_chunks_unharmed() {
        for length in [CHUNK - 3, CHUNK - 2, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7] {
            let value = "x".repeat(length);
            assert_eq!(canonical(Encoding::Rfc3986, &[("a", &value)]).unwrap(), format!("GET\na={value}"));
            let value = "/".repeat(length);
            assert_eq!(
                canonical(Encoding::Rfc3986, &[("a", &value)]).unwrap(),
                format!("GET\na={}", "%2F".repeat(length))
            );
        }
    }
}
