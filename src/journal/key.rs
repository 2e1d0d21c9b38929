//! What makes two requests the same delivery (`design.md`, "Delivery guarantee").
//!
//! Pure: hashes of decoded fields. Every part is written with its length before it, so that no
//! two lists of parts share a text.

use std::fmt;
use std::hash::{Hash, Hasher};

use sha2::{Digest as _, Sha256};

use crate::dialect::mac::Tag;
use crate::dialect::request::{SpiRequest, Value};
use crate::dialect::{ActionKind, Dialect};

/// A hash under a name of its own, with the bytes that stores keep.
macro_rules! digest {
    ($(#[doc = $doc:literal])* $name:ident) => {
        $(#[doc = $doc])*
        #[derive(Clone, Copy, PartialEq, Eq)]
        pub struct $name([u8; 32]);

        /// A part of a digest tells the entries of a map apart as well as all of it.
        impl Hash for $name {
            fn hash<H: Hasher>(&self, state: &mut H) {
                state.write(&self.0[..8]);
            }
        }

        impl $name {
            /// As it is stored.
            pub fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// As it was stored; `None` if these are not 32 bytes.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }
        }

        impl From<[u8; 32]> for $name {
            fn from(digest: [u8; 32]) -> Self {
                Self(digest)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), hex(&self.0[..16]))
            }
        }
    };
}

digest! {
    /// Identifies a delivery: app, action, debug flag and the order (or instance) it is about.
    DeliveryKey
}
digest! {
    /// Tells orders with the same key and different content apart.
    Fingerprint
}
digest! {
    /// What of a request does not count: copies of one order may differ in it.
    Extras
}
digest! {
    /// The order behind a delivery: the same for its trial run and the real one.
    Origin
}
digest! {
    /// What two requests without an order number share if they ask for the same.
    Lookalike
}

impl DeliveryKey {
    /// The key of a request to the app called `app`.
    ///
    /// Without a dedupe field the request is its own order, known by its signature: a replay is
    /// caught, and two genuine purchases are not merged.
    pub fn of(app: &str, dialect: &Dialect, request: &SpiRequest, signature: &Tag) -> Self {
        Self::begun(Parts::of_action(DELIVERY, app, &request.action(dialect).name), dialect, request, signature)
    }

    fn begun(hash: Parts, dialect: &Dialect, request: &SpiRequest, signature: &Tag) -> Self {
        let debug: &[u8] = if request.is_debug(dialect) { b"debug" } else { b"" };
        Self(identity(hash, dialect, request, signature, debug))
    }

    /// The key of the same delivery in a later cycle of its instance; cycle 0 is the key itself.
    pub fn in_cycle(self, cycle: u32) -> Self {
        if cycle == 0 {
            return self;
        }
        let mut hash = Parts::new("spigate cycle 1");
        hash.put(&self.0);
        hash.put(&cycle.to_be_bytes());
        Self(hash.finish())
    }

    /// The value of the `Idempotency-Key` header: the same for every attempt of this delivery,
    /// before and after any restart.
    pub fn idempotency_key(&self) -> String {
        hex(&self.0[..16])
    }
}

/// What of the keys of an app's deliveries is the same each time, hashed ahead: for each action.
pub struct Begun(Vec<Parts>);

impl Begun {
    /// Prepares the keys of the app called `app`.
    pub fn new(app: &str, dialect: &Dialect) -> Self {
        Self(dialect.actions.iter().map(|action| Parts::of_action(DELIVERY, app, &action.name)).collect())
    }

    /// What [`DeliveryKey::of`] says of a request to that app.
    pub fn key(&self, dialect: &Dialect, request: &SpiRequest, signature: &Tag) -> DeliveryKey {
        DeliveryKey::begun(self.0[request.action_index()].clone(), dialect, request, signature)
    }
}

impl Extras {
    /// The extras of a request: documented fields that the dialect leaves out of the fingerprint,
    /// and what nobody documented.
    pub fn of(dialect: &Dialect, request: &SpiRequest) -> Self {
        let mut hash = Parts::new("spigate extras 1");
        for (name, value) in request.documented(dialect) {
            if let Value::Text(text) | Value::Object(text) = value
                && dialect.field_index(name).is_some_and(|field| !dialect.fields[field].in_fingerprint)
            {
                hash.put(name.as_bytes());
                hash.put(text.as_bytes());
            }
        }
        for param in request.undocumented(dialect) {
            hash.put(param.name.as_bytes());
            hash.put(param.value.as_bytes());
        }
        Self(hash.finish())
    }
}

impl Origin {
    /// The order behind a request.
    pub fn of(app: &str, dialect: &Dialect, request: &SpiRequest, signature: &Tag) -> Self {
        let hash = Parts::of_action("spigate origin 1", app, &request.action(dialect).name);
        Self(identity(hash, dialect, request, signature, b""))
    }
}

impl Lookalike {
    /// What a request without a dedupe field is recognised by; `None` for one that has it.
    pub fn of(app: &str, dialect: &Dialect, request: &SpiRequest, fingerprint: &Fingerprint) -> Option<Self> {
        if dedupe(dialect, request).is_some() {
            return None;
        }
        let mut hash = Parts::new("spigate lookalike 1");
        hash.put(app.as_bytes());
        hash.put(request.action(dialect).name.as_bytes());
        hash.put(if request.is_debug(dialect) { b"debug" } else { b"" });
        hash.put(&fingerprint.0);
        Some(Self(hash.finish()))
    }
}

/// The field that tells one delivery of this request's action from another, and its value.
pub fn dedupe<'r>(dialect: &Dialect, request: &'r SpiRequest) -> Option<(usize, &'r str)> {
    request.action(dialect).dedupe.and_then(|field| Some((field, request.text(field)?)))
}

fn identity(mut hash: Parts, dialect: &Dialect, request: &SpiRequest, signature: &Tag, debug: &[u8]) -> [u8; 32] {
    hash.put(debug);
    match dedupe(dialect, request) {
        Some((field, value)) => {
            hash.put(dialect.fields[field].name.as_bytes());
            hash.put(value.as_bytes());
        }
        None => {
            hash.put(b"");
            hash.put(signature.as_bytes());
        }
    }
    hash.finish()
}

fn hex(bytes: &[u8]) -> String {
    let digit = |half: u8| b"0123456789abcdef"[usize::from(half)];
    let digits = bytes.iter().map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect::<Vec<_>>();
    // Digits are always text.
    String::from_utf8(digits.into_flattened()).unwrap_or_default()
}

impl Fingerprint {
    /// The fingerprint of a request: its documented fields except signature, time, debug and
    /// what the dialect leaves out.
    pub fn of(dialect: &Dialect, request: &SpiRequest) -> Self {
        let mut hash = Parts::new("spigate fingerprint 1");
        for (name, value) in request.documented(dialect) {
            let counts = dialect
                .field_index(name)
                .is_some_and(|field| dialect.fields[field].in_fingerprint && dialect.debug != Some(field));
            if !counts {
                continue;
            }
            hash.put(name.as_bytes());
            match value {
                Value::Text(text) | Value::Object(text) | Value::Time { text, .. } => hash.put(text.as_bytes()),
                Value::Boolean(value) => hash.put(&[u8::from(value)]),
                Value::Period { value, unit, .. } => {
                    hash.put(&value.to_be_bytes());
                    hash.put(unit.as_str().as_bytes());
                }
            }
        }
        Self(hash.finish())
    }
}

/// Whether deliveries of this kind of action are told apart at all: a connection test is
/// answered anew each time.
pub fn is_delivery(kind: ActionKind) -> bool {
    kind != ActionKind::Test
}

/// The domain of a delivery's key.
const DELIVERY: &str = "spigate delivery 1";

#[derive(Clone)]
struct Parts(Sha256);

impl Parts {
    fn of_action(domain: &str, app: &str, action: &str) -> Self {
        let mut parts = Self::new(domain);
        parts.put(app.as_bytes());
        parts.put(action.as_bytes());
        parts
    }

    fn new(domain: &str) -> Self {
        let mut parts = Self(Sha256::new());
        parts.put(domain.as_bytes());
        parts
    }

    fn put(&mut self, part: &[u8]) {
        self.0.update((part.len() as u64).to_be_bytes());
        self.0.update(part);
    }

    fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::builtin;
    use crate::dialect::mac::TagEncoding;
    use crate::dialect::request::Strictness;
    use crate::query::Params;

    fn request(dialect: &Dialect, change: &[(&str, &str)]) -> SpiRequest {
        let mut pairs = vec![
            ("action", "RenewInstance"),
            ("order_id", "o-1"),
            ("instance_id", "i-1"),
            ("spec", "s"),
            ("package", "p"),
            ("duration", "1_year"),
        ];
        for (name, value) in change {
            pairs.retain(|(known, _)| known != name);
            if !value.is_empty() {
                pairs.push((name, value));
            }
        }
        dialect.check_request(Params::from_pairs(pairs), None, Strictness::Lenient).unwrap()
    }

    #[test]
    fn same_order_same_key_whatever_the_spelling_of_debug() {
        let dialect = &builtin::load().unwrap()[1];
        let tag = TagEncoding::Hex.decode("00").unwrap();
        let key = |change: &[(&str, &str)]| DeliveryKey::of("crm", dialect, &request(dialect, change), &tag);
        assert_eq!(key(&[]), key(&[("debug", "False"), ("spec", "other"), ("unknown", "x")]));
        assert_eq!(key(&[("debug", "1")]), key(&[("debug", "True")]));
        assert_ne!(key(&[]), key(&[("debug", "1")]));
        assert_ne!(key(&[]), key(&[("order_id", "o-2")]));
        assert_ne!(key(&[]), key(&[("action", "UpgradeInstance")]));
        assert_ne!(key(&[]), DeliveryKey::of("erp", dialect, &request(dialect, &[]), &tag));
        let begun = Begun::new("crm", dialect);
        for change in [&[][..], &[("debug", "1")], &[("action", "UpgradeInstance")], &[("order_id", "o-2")]] {
            assert_eq!(begun.key(dialect, &request(dialect, change), &tag), key(change), "{change:?}");
        }
        // Computed without this code: backends know it, so it must never change.
        assert_eq!(key(&[]).idempotency_key(), "66b610444b90e23f6b178cb8296e5a43");
    }

    #[test]
    fn without_an_order_the_signature_is_the_key() {
        let dialect = &builtin::load().unwrap()[0];
        let tag = |text| TagEncoding::Hex.decode(text).unwrap();
        let pairs = [("action", "RenewAppInstance"), ("instance_id", "i"), ("spec", "c3BlYw=="), ("period", "1_day")];
        let request = dialect.check_request(Params::from_pairs(pairs), None, Strictness::Lenient).unwrap();
        let key = |text| DeliveryKey::of("crm", dialect, &request, &tag(text));
        assert_eq!(key("0011"), key("0011"));
        assert_eq!(Begun::new("crm", dialect).key(dialect, &request, &tag("0011")), key("0011"));
        assert_ne!(key("0011"), key("0012"));
    }

    #[test]
    fn fingerprints_see_documented_fields_only() {
        let dialect = &builtin::load().unwrap()[1];
        let print = |change: &[(&str, &str)]| Fingerprint::of(dialect, &request(dialect, change));
        assert_eq!(print(&[]), print(&[("debug", "1"), ("unknown", "x")]));
        let extras = |change: &[(&str, &str)]| Extras::of(dialect, &request(dialect, change));
        assert_eq!(extras(&[]), extras(&[("debug", "1"), ("spec", "other")]));
        assert_ne!(extras(&[]), extras(&[("unknown", "x")]));
        assert_ne!(print(&[]), print(&[("spec", "other")]));
        assert_ne!(print(&[]), print(&[("duration", "1_month")]));
        assert_ne!(print(&[]), print(&[("instance_id", "i-2")]));
        assert_ne!(print(&[("spec", "ab"), ("package", "c")]), print(&[("spec", "a"), ("package", "bc")]));
    }
}
