//! Message authentication: keys, signatures, and their text forms.
//!
//! A key is prepared once (the MAC's inner and outer state), so that verifying costs no set-up
//! and no allocation. Comparison is constant-time (`verify_slice`) and of the full length only:
//! a truncated signature never verifies.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac as _};
use sha2::{Sha256, Sha512};
use zeroize::Zeroizing;

use super::canonical::Sink;

/// Which MAC a dialect signs with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MacAlgorithm {
    /// HMAC with SHA-256 (RFC 2104, FIPS 180-4): 32 bytes.
    HmacSha256,
    /// HMAC with SHA-512: 64 bytes.
    HmacSha512,
}

/// How a signature is written as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TagEncoding {
    /// Standard base64 with padding; nothing else is accepted.
    Base64,
    /// Lower-case hexadecimal; upper case is accepted too.
    Hex,
}

/// How the console's key text becomes key bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyTransform {
    /// The bytes of the text itself.
    Text,
    /// What the text decodes to, as base64.
    Base64,
}

/// A key that cannot be used. Says nothing of its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyError {
    /// The key is empty.
    Empty,
    /// The dialect wants base64 and the key is not.
    NotBase64,
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "the key is empty",
            Self::NotBase64 => "the dialect's keys are base64, and this key is not",
        })
    }
}

impl std::error::Error for KeyError {}

/// A signature as bytes. Long enough for every [`MacAlgorithm`].
#[derive(Clone, Copy)]
pub struct Tag {
    bytes: [u8; 64],
    length: usize,
}

impl Tag {
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    fn new(source: &[u8]) -> Self {
        let mut bytes = [0; 64];
        let length = source.len().min(bytes.len());
        bytes[..length].copy_from_slice(&source[..length]);
        Self { bytes, length }
    }
}

impl TagEncoding {
    /// Writes a signature as text.
    pub fn encode(self, tag: &Tag) -> String {
        match self {
            Self::Base64 => STANDARD.encode(tag.as_bytes()),
            Self::Hex => {
                use fmt::Write as _;
                tag.as_bytes().iter().fold(String::with_capacity(128), |mut text, byte| {
                    // Writing to a String cannot fail.
                    let _ = write!(text, "{byte:02x}");
                    text
                })
            }
        }
    }

    /// Reads a signature from text; `None` for anything but exactly its form.
    pub fn decode(self, text: &str) -> Option<Tag> {
        let mut bytes = [0; 66];
        let length = match self {
            Self::Base64 => STANDARD.decode_slice(text, &mut bytes).ok().filter(|&length| length <= 64)?,
            Self::Hex => {
                if !text.len().is_multiple_of(2) || text.len() > 128 {
                    return None;
                }
                for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
                    let digit = |byte: u8| (byte as char).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
                    *byte = digit(pair[0])? << 4 | digit(pair[1])?;
                }
                text.len() / 2
            }
        };
        Some(Tag::new(&bytes[..length]))
    }
}

/// A key, prepared for signing and verifying.
#[derive(Clone)]
pub struct SigningKey(Prepared);

#[derive(Clone)]
enum Prepared {
    Sha256(Hmac<Sha256>),
    Sha512(Box<Hmac<Sha512>>),
}

impl SigningKey {
    /// Prepares a key from the text that the platform's console shows.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn new(algorithm: MacAlgorithm, transform: KeyTransform, secret: &str) -> Result<Self, KeyError> {
        let bytes = match transform {
            KeyTransform::Text => Zeroizing::new(secret.as_bytes().to_vec()),
            KeyTransform::Base64 => Zeroizing::new(STANDARD.decode(secret).map_err(|_| KeyError::NotBase64)?),
        };
        Self::from_bytes(algorithm, &bytes)
    }

    /// Prepares a key from its bytes.
    ///
    /// # Errors
    /// [`KeyError::Empty`].
    pub fn from_bytes(algorithm: MacAlgorithm, bytes: &[u8]) -> Result<Self, KeyError> {
        if bytes.is_empty() {
            return Err(KeyError::Empty);
        }
        // HMAC takes keys of every length, so the errors mapped here cannot happen.
        Ok(Self(match algorithm {
            MacAlgorithm::HmacSha256 => Prepared::Sha256(Hmac::new_from_slice(bytes).map_err(|_| KeyError::Empty)?),
            MacAlgorithm::HmacSha512 => {
                Prepared::Sha512(Box::new(Hmac::new_from_slice(bytes).map_err(|_| KeyError::Empty)?))
            }
        }))
    }

    /// Signs what `message` writes.
    ///
    /// # Errors
    /// Whatever `message` fails with.
    pub fn sign<E>(&self, message: impl FnOnce(&mut MacSink) -> Result<(), E>) -> Result<Tag, E> {
        let mut sink = MacSink(self.0.clone());
        message(&mut sink)?;
        Ok(match sink.0 {
            Prepared::Sha256(mac) => Tag::new(&mac.finalize().into_bytes()),
            Prepared::Sha512(mac) => Tag::new(&mac.finalize().into_bytes()),
        })
    }

    /// Whether `tag` is the full signature of what `message` writes, in constant time.
    ///
    /// # Errors
    /// Whatever `message` fails with.
    pub fn verify<E>(&self, tag: &Tag, message: impl FnOnce(&mut MacSink) -> Result<(), E>) -> Result<bool, E> {
        let mut sink = MacSink(self.0.clone());
        message(&mut sink)?;
        Ok(match sink.0 {
            Prepared::Sha256(mac) => mac.verify_slice(tag.as_bytes()).is_ok(),
            Prepared::Sha512(mac) => mac.verify_slice(tag.as_bytes()).is_ok(),
        })
    }
}

/// Shows that there is a key, nothing more.
impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(…)")
    }
}

/// A MAC that is being computed.
pub struct MacSink(Prepared);

impl Sink for MacSink {
    fn put(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            Prepared::Sha256(mac) => mac.update(bytes),
            Prepared::Sha512(mac) => mac.update(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sign(algorithm: MacAlgorithm, key: &str, message: &str) -> Tag {
        let key = SigningKey::new(algorithm, KeyTransform::Text, key).unwrap();
        key.sign(|sink| {
            sink.put(message.as_bytes());
            Ok::<(), ()>(())
        })
        .unwrap()
    }

    #[test]
    fn rfc_4231_case_2() {
        let tag = sign(MacAlgorithm::HmacSha256, "Jefe", "what do ya want for nothing?");
        assert_eq!(TagEncoding::Hex.encode(&tag), "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
        let tag = sign(MacAlgorithm::HmacSha512, "Jefe", "what do ya want for nothing?");
        assert_eq!(
            TagEncoding::Hex.encode(&tag),
            "164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea2505549758bf75c05a994a6d034f65f8f0e6fdcaeab1a34d4a6b4b636e070a38bce737"
        );
    }

    #[test]
    fn only_the_whole_signature_verifies() {
        let key = SigningKey::new(MacAlgorithm::HmacSha256, KeyTransform::Text, "key").unwrap();
        let tag = sign(MacAlgorithm::HmacSha256, "key", "message");
        let verify = |tag: &Tag| {
            key.verify(tag, |sink| {
                sink.put(b"message");
                Ok::<(), ()>(())
            })
            .unwrap()
        };
        assert!(verify(&tag));
        for length in 0..32 {
            assert!(!verify(&Tag::new(&tag.as_bytes()[..length])), "truncated to {length}");
        }
        let mut longer = tag.as_bytes().to_vec();
        longer.push(0);
        assert!(!verify(&Tag::new(&longer)));
    }

    #[test]
    fn signature_text_has_one_form() {
        let tag = sign(MacAlgorithm::HmacSha256, "key", "message");
        let text = TagEncoding::Base64.encode(&tag);
        assert_eq!(TagEncoding::Base64.decode(&text).unwrap().as_bytes(), tag.as_bytes());
        let unpadded = text.trim_end_matches('=');
        for wrong in [
            unpadded.to_owned(),
            format!("{text}="),
            format!(" {text}"),
            format!("{text}\n"),
            text.replace(['+', '/'], "_"),
            format!("{text}{text}"),
            "é".to_owned(),
        ] {
            // Without + or / in it, the url-safe spelling is the same text.
            if wrong != text {
                assert!(TagEncoding::Base64.decode(&wrong).is_none(), "{wrong}");
            }
        }
        assert_eq!(TagEncoding::Base64.decode("").unwrap().as_bytes(), b"");
        let text = TagEncoding::Hex.encode(&tag);
        assert_eq!(TagEncoding::Hex.decode(&text.to_uppercase()).unwrap().as_bytes(), tag.as_bytes());
        for wrong in ["0", "0g", "+1", "é0", &"00".repeat(65)] {
            assert!(TagEncoding::Hex.decode(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn keys_are_checked_and_never_shown() {
        let new = |transform, key: &str| SigningKey::new(MacAlgorithm::HmacSha256, transform, key);
        for transform in [KeyTransform::Text, KeyTransform::Base64] {
            assert_eq!(new(transform, "").unwrap_err(), KeyError::Empty);
        }
        assert_eq!(SigningKey::from_bytes(MacAlgorithm::HmacSha512, &[]).unwrap_err(), KeyError::Empty);
        assert_eq!(new(KeyTransform::Base64, "not base64!").unwrap_err(), KeyError::NotBase64);
        assert_eq!(format!("{:?}", new(KeyTransform::Text, "hunter2").unwrap()), "SigningKey(…)");
    }
}
