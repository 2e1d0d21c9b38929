//! Why does a signature not verify? Tries what signers are known to get wrong, alone and
//! together, and names the smallest set of mistakes that explains the signature at hand.
//!
//! Pure, and slow by the standards of the data path: a tool for a human with the key at hand.

use std::convert::Infallible;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::dialect::Dialect;
use crate::dialect::canonical::{CanonicalForm, Encoding, PrefixPart, Sink as _};
use crate::dialect::mac::{KeyTransform, SigningKey, Tag, TagEncoding};
use crate::query::{Lookup, Params};

/// A key that may have signed.
pub struct Candidate<'a> {
    /// Its name, for the report.
    pub name: String,
    /// Its text.
    pub secret: &'a str,
    /// What is wrong with signing with it, if something is.
    pub mistake: Option<&'static str>,
}

/// What explains a signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Name of the key that it fits.
    pub key: String,
    /// Name of the dialect that it fits.
    pub dialect: String,
    /// The signer's mistakes; none if it verifies.
    pub mistakes: Vec<&'static str>,
}

/// A way of doing a step, and what is wrong with it (`None` for the right way).
type Way<T> = (T, Option<&'static str>);

/// Finds the explanation of `signature` with the fewest mistakes.
///
/// `query` is the query as received; its signature parameter is left out by name.
pub fn explain(dialects: &[&Dialect], keys: &[Candidate<'_>], query: &str, signature: &str) -> Option<Explanation> {
    let params = Params::parse(query.as_bytes(), usize::MAX).ok()?;
    let action = |dialect: &Dialect| match params.get(&dialect.action_parameter) {
        Lookup::Once(name) => dialect.action_index(name),
        Lookup::Absent | Lookup::Repeated => None,
    };
    // Of two explanations with as many mistakes, the dialect that has this action is likelier.
    let cost = |dialect: &Dialect, mistakes: usize| 2 * mistakes + usize::from(action(dialect).is_none());
    let mut best: Option<(usize, Explanation)> = None;
    for (position, dialect) in dialects.iter().enumerate() {
        for key in keys {
            let other_dialect = (position > 0).then_some("signed in another dialect than the app's");
            let given = [other_dialect, key.mistake];
            let trial = Trial { dialect, secret: key.secret, query, params: &params, signature, given };
            let Some(mistakes) = trial.run() else { continue };
            let cost = cost(dialect, mistakes.len());
            if best.as_ref().is_none_or(|(least, _)| cost < *least) {
                let explanation = Explanation { key: key.name.clone(), dialect: dialect.name.clone(), mistakes };
                best = Some((cost, explanation));
            }
        }
    }
    best.map(|(_, explanation)| explanation)
}

struct Trial<'a> {
    dialect: &'a Dialect,
    secret: &'a str,
    query: &'a str,
    params: &'a Params,
    signature: &'a str,
    /// Mistakes of choosing this dialect and this key at all.
    given: [Option<&'static str>; 2],
}

/// What is joined into the string to sign.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    Canonical(Encoding),
    /// Java's `URLEncoder`: a form encoder that leaves `*` and encodes `~`.
    Java,
    LowerHex,
    RawWire,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    Names,
    Pairs,
    Received,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Chosen {
    All,
    Documented,
    NotEmpty,
}

impl Trial<'_> {
    /// The fewest mistakes that explain the signature.
    fn run(&self) -> Option<Vec<&'static str>> {
        let (claimed, messages) = (self.claimed(), self.messages());
        let mut best: Option<Vec<&'static str>> = None;
        for (key, key_mistake) in self.keys() {
            for (message, message_mistakes) in &messages {
                let signed = key.sign(|sink| {
                    sink.put(message.as_bytes());
                    Ok::<(), Infallible>(())
                });
                let Ok(tag) = signed;
                let fitting = claimed.iter().filter(|(claimed, _)| claimed.as_bytes() == tag.as_bytes());
                for (_, claimed_mistakes) in fitting {
                    let mistakes = self
                        .given
                        .iter()
                        .flatten()
                        .chain(&key_mistake)
                        .chain(message_mistakes)
                        .chain(claimed_mistakes)
                        .copied();
                    let mistakes: Vec<_> = mistakes.collect();
                    if best.as_ref().is_none_or(|best| mistakes.len() < best.len()) {
                        best = Some(mistakes);
                    }
                }
            }
        }
        best
    }

    /// What the signature's text may stand for.
    fn claimed(&self) -> Vec<(Tag, Vec<&'static str>)> {
        let right = self.dialect.signature.output;
        let other = match right {
            TagEncoding::Base64 => TagEncoding::Hex,
            TagEncoding::Hex => TagEncoding::Base64,
        };
        let hex_in_base64 = |text: &str| {
            let hex = STANDARD.decode(text).ok().and_then(|bytes| String::from_utf8(bytes).ok())?;
            TagEncoding::Hex.decode(&hex)
        };
        let mut claimed = Vec::new();
        for (text, text_mistake) in self.texts() {
            let readings = [
                (right.decode(&text), None),
                (
                    other.decode(&text),
                    Some("the signature is written as hex instead of base64, or the other way round"),
                ),
                (hex_in_base64(&text), Some("the signature is the base64 of its hex text")),
            ];
            for (tag, reading_mistake) in readings {
                let mistakes = [text_mistake, reading_mistake].into_iter().flatten().collect();
                claimed.extend(tag.map(|tag| (tag, mistakes)));
            }
        }
        claimed
    }

    /// What may have been signed.
    fn messages(&self) -> Vec<(String, Vec<&'static str>)> {
        let mut messages = Vec::new();
        for (chosen, chosen_mistake) in CHOICES {
            for (order, order_mistake) in ORDERS {
                for (style, style_mistake) in self.styles() {
                    let joined = self.joined(style, order, chosen);
                    for (prefix, prefix_mistake) in self.prefixes() {
                        let mistakes = [chosen_mistake, order_mistake, style_mistake, prefix_mistake];
                        messages.push((format!("{prefix}{joined}"), mistakes.into_iter().flatten().collect()));
                    }
                }
            }
        }
        messages
    }

    fn keys(&self) -> Vec<Way<SigningKey>> {
        let rule = &self.dialect.signature;
        let (right, wrong, mistake) = match rule.key {
            KeyTransform::Text => {
                (KeyTransform::Text, KeyTransform::Base64, "the key was base64-decoded; its text is the key")
            }
            KeyTransform::Base64 => {
                (KeyTransform::Base64, KeyTransform::Text, "the key's text was used; it must be base64-decoded")
            }
        };
        let with_newline = format!("{}\n", self.secret);
        let trimmed = self.secret.trim();
        let ways = [
            (SigningKey::new(rule.mac, right, self.secret), None),
            (SigningKey::new(rule.mac, wrong, self.secret), Some(mistake)),
            (SigningKey::new(rule.mac, right, &with_newline), Some("the key was used with a newline at its end")),
            (
                SigningKey::new(rule.mac, right, trimmed),
                Some("the key at hand has white space around it; the signer's has none"),
            ),
        ];
        ways.into_iter().filter_map(|(key, mistake)| Some((key.ok()?, mistake))).collect()
    }

    fn styles(&self) -> Vec<Way<Style>> {
        let right = self.dialect.canonical.encoding;
        let mistake = |encoding| match encoding {
            _ if encoding == right => None,
            Encoding::Rfc3986 => {
                Some("names and values are encoded by RFC 3986 (%20 for a space); this dialect signs another encoding")
            }
            Encoding::Form => {
                Some("names and values are form-encoded (+ for a space); this dialect signs another encoding")
            }
            Encoding::Plain => Some("names and values are not encoded at all"),
        };
        let canonical = [Encoding::Rfc3986, Encoding::Form, Encoding::Plain]
            .map(|encoding| (Style::Canonical(encoding), mistake(encoding)));
        let others = [
            (Style::Java, Some("encoded as Java's URLEncoder does: + for a space, * left, ~ encoded")),
            (Style::LowerHex, Some("percent escapes have lower-case hex digits; they must be upper-case")),
            (Style::RawWire, Some("the raw wire bytes were signed instead of decoded and re-encoded parameters")),
        ];
        canonical.into_iter().chain(others).collect()
    }

    fn prefixes(&self) -> Vec<Way<String>> {
        let write = |method: &str| {
            let part = |part: &PrefixPart| match part {
                PrefixPart::Literal(text) => text.clone(),
                PrefixPart::Method => method.to_owned(),
            };
            self.dialect.canonical.prefix.iter().map(part).collect::<String>()
        };
        let right = write("GET");
        let others = [
            (String::new(), "the method line is missing"),
            ("GET\n".to_owned(), "there is a method line, which this dialect does not have"),
            (write("POST"), "signed for POST instead of GET"),
            (write("get"), "the method is written in lower case"),
            ("GET&".to_owned(), "the method is followed by & instead of a newline"),
        ];
        let mut ways = vec![(right.clone(), None)];
        for (prefix, mistake) in others {
            if !ways.iter().any(|(known, _)| *known == prefix) {
                ways.push((prefix, Some(mistake)));
            }
        }
        ways
    }

    fn texts(&self) -> Vec<Way<String>> {
        let mut ways = vec![(self.signature.to_owned(), None)];
        if self.signature.contains(' ') {
            let mended = self.signature.replace(' ', "+");
            ways.push((mended, Some("the signature's + was not percent-encoded in the URL and arrived as a space")));
        }
        if self.signature.contains('%') {
            let mended = percent_encoding::percent_decode_str(self.signature).decode_utf8_lossy().into_owned();
            ways.push((mended, Some("the signature is percent-encoded twice")));
        }
        if self.signature.contains(['-', '_']) {
            let mended = self.signature.replace('-', "+").replace('_', "/");
            ways.push((mended, Some("the signature is url-safe base64; it must be standard base64")));
        }
        ways
    }

    fn joined(&self, style: Style, order: Order, chosen: Chosen) -> String {
        let is_chosen = |name: &str, value: &str| {
            name != self.dialect.signature.parameter
                && match chosen {
                    Chosen::All => true,
                    Chosen::Documented => self.dialect.is_protocol_parameter(name),
                    Chosen::NotEmpty => !value.is_empty(),
                }
        };
        let mut pairs: Vec<(String, String)> = if style == Style::RawWire {
            let raw = self.query.split('&').filter(|pair| !pair.is_empty());
            let raw = raw.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
            raw.filter(|(name, value)| is_chosen(name, value))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect()
        } else {
            let encode = |text: &str| encoded(text, style);
            let chosen = self.params.received().filter(|param| is_chosen(param.name, param.value));
            chosen.map(|param| (encode(param.name), encode(param.value))).collect()
        };
        match order {
            Order::Names => pairs.sort_by(|(a, _), (b, _)| a.cmp(b)),
            Order::Pairs => pairs.sort_by_key(|(name, value)| format!("{name}={value}")),
            Order::Received => {}
        }
        pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
    }
}

const CHOICES: [Way<Chosen>; 3] = [
    (Chosen::All, None),
    (Chosen::Documented, Some("only documented parameters were signed; those of the notify URL belong to it too")),
    (Chosen::NotEmpty, Some("empty parameters were left out; they are signed as name=")),
];

const ORDERS: [Way<Order>; 3] = [
    (Order::Names, None),
    (Order::Pairs, Some("joined pairs were sorted; only the names are")),
    (Order::Received, Some("parameters were not sorted by name")),
];

fn encoded(text: &str, style: Style) -> String {
    let canonical = |encoding, text: &str| {
        let form = CanonicalForm { prefix: Vec::new(), encoding };
        let mut out = Vec::new();
        // One pair with an empty name: what follows its = is the value.
        let done = form.write("", &Params::from_pairs([("", text)]), "signature", &mut out);
        done.map_or_else(|_| text.to_owned(), |()| String::from_utf8_lossy(&out[1..]).into_owned())
    };
    match style {
        Style::Canonical(Encoding::Plain) | Style::RawWire => text.to_owned(),
        Style::Canonical(encoding) => canonical(encoding, text),
        Style::Java => canonical(Encoding::Form, text).replace("%2A", "*").replace('~', "%7E"),
        Style::LowerHex => {
            let upper = canonical(Encoding::Rfc3986, text);
            let mut rest = upper.as_str();
            let mut lower = String::with_capacity(upper.len());
            while let Some(at) = rest.find('%') {
                lower.push_str(&rest[..at]);
                lower.push_str(&rest[at..at + 3].to_ascii_lowercase());
                rest = &rest[at + 3..];
            }
            lower + rest
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::builtin;
    use crate::dialect::mac::MacAlgorithm;

    const SECRET: &str = "m7Zt+Q4vX/0nWc8yRk1LhJpE2sDgUaFb";
    const QUERY: &str = "b=x+y%7E%2A&action=TestConnection&a-b=2&a=1&empty=&z=%e5%a5%97";

    fn sign(secret: &str, transform: KeyTransform, text: &str) -> String {
        let key = SigningKey::new(MacAlgorithm::HmacSha256, transform, secret).unwrap();
        let tag = key
            .sign(|sink| {
                sink.put(text.as_bytes());
                Ok::<(), ()>(())
            })
            .unwrap();
        TagEncoding::Base64.encode(&tag)
    }

    fn mistakes(signature: &str) -> Option<Vec<&'static str>> {
        let dialects = builtin::load().unwrap();
        let dialects: Vec<_> = dialects.iter().collect();
        let keys = [Candidate { name: "k".into(), secret: SECRET, mistake: None }];
        explain(&dialects[..1], &keys, QUERY, signature).map(|explanation| explanation.mistakes)
    }

    const RIGHT: &str = "GET\na=1&a-b=2&action=TestConnection&b=x%20y~%2A&empty=&z=%E5%A5%97";

    #[test]
    fn the_right_signature_has_no_mistakes() {
        assert_eq!(mistakes(&sign(SECRET, KeyTransform::Text, RIGHT)), Some(vec![]));
    }

    #[test]
    fn each_known_mistake_is_named_alone() {
        let text = |text: &str| sign(SECRET, KeyTransform::Text, text);
        let body = &RIGHT[4..];
        for (signature, expected) in [
            (text(body), "the method line is missing"),
            (text(&format!("POST\n{body}")), "signed for POST"),
            (sign(SECRET, KeyTransform::Base64, RIGHT), "the key was base64-decoded"),
            (text(&RIGHT.replace("%20", "+")), "form-encoded"),
            (text(&RIGHT.replace("%20", "+").replace('~', "%7E").replace("%2A", "*")), "Java's URLEncoder"),
            (text(&RIGHT.replace("%2A", "%2a").replace("%E5%A5%97", "%e5%a5%97")), "lower-case hex"),
            (text("GET\na=1&a-b=2&action=TestConnection&b=x+y%7E%2A&empty=&z=%e5%a5%97"), "raw wire bytes"),
            (text("GET\na-b=2&a=1&action=TestConnection&b=x%20y~%2A&empty=&z=%E5%A5%97"), "joined pairs were sorted"),
            (text("GET\nb=x%20y~%2A&action=TestConnection&a-b=2&a=1&empty=&z=%E5%A5%97"), "not sorted"),
            (text("GET\na=1&a-b=2&action=TestConnection&b=x y~*&empty=&z=套"), "not encoded at all"),
            (text("GET\naction=TestConnection"), "only documented parameters"),
            (text(&RIGHT.replace("&empty=", "")), "empty parameters were left out"),
            (text(&format!("{SECRET}{RIGHT}")), ""),
        ] {
            let found = mistakes(&signature);
            if expected.is_empty() {
                assert_eq!(found, None);
                continue;
            }
            let found = found.unwrap_or_else(|| panic!("not explained: {expected}"));
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].contains(expected), "{expected}: {found:?}");
        }
    }

    #[test]
    fn two_mistakes_together_are_both_named() {
        let found = mistakes(&sign(SECRET, KeyTransform::Text, &RIGHT[4..].replace("%20", "+"))).unwrap();
        // Without method line and form-encoded is exactly another dialect's way, but here only
        // the app's own is asked.
        assert_eq!(found.len(), 2, "{found:?}");
    }

    #[test]
    fn spoiled_signature_texts_are_recognized() {
        let right = sign(SECRET, KeyTransform::Text, RIGHT);
        let plus = (0..)
            .map(|number| format!("{SECRET}{number}"))
            .find(|secret| sign(secret, KeyTransform::Text, RIGHT).contains('+'));
        let secret = plus.unwrap();
        let spaced = sign(&secret, KeyTransform::Text, RIGHT).replace('+', " ");
        let dialects = builtin::load().unwrap();
        let keys = [Candidate { name: "k".into(), secret: &secret, mistake: None }];
        let explanation = explain(&[&dialects[0]], &keys, QUERY, &spaced).unwrap();
        assert!(explanation.mistakes[0].contains("arrived as a space"), "{explanation:?}");
        let hex = TagEncoding::Hex.encode(&TagEncoding::Base64.decode(&right).unwrap());
        assert!(mistakes(&hex).unwrap()[0].contains("hex"));
    }

    #[test]
    fn another_key_and_another_dialect_are_named() {
        let dialects = builtin::load().unwrap();
        let dialects: Vec<_> = dialects.iter().collect();
        let keys = [
            Candidate { name: "new".into(), secret: "another", mistake: None },
            Candidate { name: "old".into(), secret: SECRET, mistake: Some("signed with a retired key") },
        ];
        let explanation = explain(&dialects, &keys, QUERY, &sign(SECRET, KeyTransform::Text, RIGHT)).unwrap();
        assert_eq!((explanation.key.as_str(), explanation.mistakes), ("old", vec!["signed with a retired key"]));
        let market = sign(SECRET, KeyTransform::Text, &RIGHT[4..].replace("%20", "+"));
        let explanation = explain(&dialects, &keys, QUERY, &market).unwrap();
        assert_eq!(explanation.dialect, dialects[1].name);
        assert_eq!(explanation.mistakes.len(), 2, "{explanation:?}");
    }
}
