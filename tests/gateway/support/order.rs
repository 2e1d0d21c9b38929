//! Signed requests, made with the library's own signer.

use std::sync::LazyLock;

use jiff::Timestamp;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use spigate::dialect::{Dialect, Presence, builtin};
use spigate::query::Params;

use super::unique;

/// The key that [`super::gateway::Setup`] gives to its app.
pub(crate) const KEY: &str = "2UNHjKQE9u6A4np4kI++o5iXPcn3cA6yZjDEdHN3iXfDFwCRaKtCQHSLT9HdeF+1";

const COMPONENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

static BUILTIN: LazyLock<Vec<Dialect>> = LazyLock::new(|| builtin::load().unwrap());

/// A built-in dialect.
pub(crate) fn dialect(name: &str) -> &'static Dialect {
    BUILTIN.iter().find(|dialect| dialect.name == name).unwrap()
}

/// Wall-clock time: the process under test has no other.
#[allow(clippy::disallowed_methods, reason = "requests must be fresh when the real binary sees them")]
pub(crate) fn now() -> Timestamp {
    Timestamp::try_from(std::time::SystemTime::now()).unwrap()
}

/// A request of the platform: decoded pairs and what signs them.
#[derive(Clone)]
pub(crate) struct Order<'d> {
    dialect: &'d Dialect,
    key: String,
    path: String,
    pairs: Vec<(String, String)>,
}

impl<'d> Order<'d> {
    /// A valid request with every documented field, signed now, about an order of its own.
    pub(crate) fn of(dialect: &'d Dialect, action: &str) -> Self {
        let action = dialect.action_index(action).map(|index| &dialect.actions[index]).expect("an action");
        let mut pairs = vec![(dialect.action_parameter.clone(), action.name.clone())];
        for (index, field) in dialect.fields.iter().enumerate() {
            if matches!(action.presence[index], Presence::Required | Presence::Expected) {
                let sample = field.sample.clone().unwrap_or_default();
                let is_id = Some(index) == dialect.order || Some(index) == dialect.instance;
                let plain = if is_id { format!("{sample}-{}", unique()) } else { sample };
                pairs.push((field.name.clone(), field.kind.encode(&plain)));
            }
        }
        let order = Self { dialect, key: KEY.into(), path: "/spi".into(), pairs };
        order.signed_at(now())
    }

    /// With another time.
    pub(crate) fn signed_at(self, time: Timestamp) -> Self {
        match &self.dialect.time {
            Some(rule) => {
                let (name, text) = (rule.parameter.clone(), rule.format.format(time));
                self.with(&name, &text)
            }
            None => self,
        }
    }

    /// With a time so many seconds from now.
    pub(crate) fn seconds_from_now(self, seconds: i64) -> Self {
        let time = Timestamp::from_second(now().as_second() + seconds).unwrap();
        self.signed_at(time)
    }

    /// With another value, as it travels: base64 text stays base64.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        match self.pairs.iter_mut().find(|(known, _)| known == name) {
            Some(pair) => value.clone_into(&mut pair.1),
            None => self.pairs.push((name.into(), value.into())),
        }
        self
    }

    /// With one more pair, even if the name is taken.
    pub(crate) fn and(mut self, name: &str, value: &str) -> Self {
        self.pairs.push((name.into(), value.into()));
        self
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        self.pairs.retain(|(known, _)| known != name);
        self
    }

    /// Signed with another key.
    pub(crate) fn key(mut self, key: &str) -> Self {
        self.key = key.into();
        self
    }

    /// Sent to another path.
    pub(crate) fn path(mut self, path: &str) -> Self {
        self.path = path.into();
        self
    }

    /// The value of a pair.
    pub(crate) fn value(&self, name: &str) -> &str {
        &self.pairs.iter().find(|(known, _)| known == name).expect("a pair").1
    }

    /// The names of its parameters.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.pairs.iter().map(|(name, _)| name.as_str())
    }

    /// The signature, as text.
    pub(crate) fn signature(&self) -> String {
        self.signature_of("GET")
    }

    /// The signature that a request with another method would have.
    pub(crate) fn signature_of(&self, method: &str) -> String {
        let params = Params::from_pairs(self.pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let key = self.dialect.signing_key(&self.key).unwrap();
        self.dialect.sign(&key, method, &params).unwrap()
    }

    /// The query without a signature.
    pub(crate) fn unsigned_query(&self) -> String {
        let pairs: Vec<_> =
            self.pairs.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect();
        pairs.join("&")
    }

    /// The query with this signature.
    pub(crate) fn query_with(&self, signature: &str) -> String {
        format!("{}&{}={}", self.unsigned_query(), self.dialect.signature.parameter, encode(signature))
    }

    /// The signed query.
    pub(crate) fn query(&self) -> String {
        self.query_with(&self.signature())
    }

    /// Path and signed query.
    pub(crate) fn target(&self) -> String {
        format!("{}?{}", self.path, self.query())
    }

    /// Path and the query with this signature.
    pub(crate) fn target_with(&self, signature: &str) -> String {
        format!("{}?{}", self.path, self.query_with(signature))
    }

    /// Path and the query without a signature.
    pub(crate) fn unsigned_target(&self) -> String {
        format!("{}?{}", self.path, self.unsigned_query())
    }
}

/// Percent-encodes everything but unreserved characters.
pub(crate) fn encode(text: &str) -> String {
    utf8_percent_encode(text, COMPONENT).to_string()
}

/// A create of the default app.
pub(crate) fn create() -> Order<'static> {
    Order::of(dialect("qingcloud-appcenter"), "CreateAppInstance")
}

/// Another action of the default app.
pub(crate) fn action(name: &str) -> Order<'static> {
    Order::of(dialect("qingcloud-appcenter"), name)
}

/// An action of the cloud market.
pub(crate) fn market(name: &str) -> Order<'static> {
    Order::of(dialect("qingcloud-market"), name)
}
