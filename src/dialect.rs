//! A dialect: everything that one marketplace does its own way, as data.
//!
//! Loaded from a TOML file (`file.rs`; the built-in ones are listed in `builtin.rs`) and compiled
//! into the types here, which the stages ask. Nothing outside this module knows a marketplace,
//! and nothing in it does I/O, reads a clock, or waits: this is the pure core.
//!
//! - `canonical.rs`: the string that is signed
//! - `mac.rs`: keys and signatures
//! - `time.rs`: the signed time
//! - `field.rs`: types of parameters
//! - `request.rs`: the contract of requests
//! - `reply.rs`: the contract of replies

pub mod builtin;
pub mod canonical;
pub mod field;
pub mod file;
pub mod mac;
pub mod reply;
pub mod request;
pub mod time;

use http::HeaderName;

use crate::query::{Names, Params};
use canonical::{Ambiguous, CanonicalForm};
use field::FieldType;
use mac::{KeyError, KeyTransform, MacAlgorithm, SigningKey, Tag, TagEncoding};
use reply::ReplyContract;
use time::TimeFormat;

/// A marketplace's dialect, ready to be asked.
#[derive(Clone, Debug)]
pub struct Dialect {
    /// Its name in configurations.
    pub name: String,
    /// Its name for humans.
    pub title: String,
    /// Where signatures are and how they are made.
    pub signature: SignatureRule,
    /// What is signed.
    pub canonical: CanonicalForm,
    /// Where the time of a request is; `None` where requests carry none.
    pub time: Option<TimeRule>,
    /// The parameter that names the action.
    pub action_parameter: String,
    /// Position of the field that marks trial runs.
    pub debug: Option<usize>,
    /// Position of the field that holds the order's number.
    pub order: Option<usize>,
    /// Position of the field that holds the instance's id.
    pub instance: Option<usize>,
    /// Position of the field that names the customer.
    pub user: Option<usize>,
    /// Documented parameters besides action, time and signature.
    pub fields: Vec<Field>,
    /// The names of the fields in their order, then those of action, signature and time.
    names: Names,
    /// Actions, in the order of their names in the file.
    pub actions: Vec<Action>,
    /// Requests that the platform published, with real signatures.
    pub published: Vec<Published>,
}

/// Where signatures are and how they are made.
#[derive(Clone, Debug)]
pub struct SignatureRule {
    /// The query parameter.
    pub parameter: String,
    /// A header that may carry it too, or instead.
    pub header: Option<HeaderName>,
    /// The MAC.
    pub mac: MacAlgorithm,
    /// How it is written.
    pub output: TagEncoding,
    /// What the console's text is as a key.
    pub key: KeyTransform,
}

/// Where the time of a request is.
#[derive(Clone, Debug)]
pub struct TimeRule {
    /// The query parameter.
    pub parameter: String,
    /// How it is written.
    pub format: TimeFormat,
}

/// A documented parameter.
#[derive(Clone, Debug)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: FieldType,
    /// Whether another value under the same dedupe key is another order.
    pub in_fingerprint: bool,
    /// Plain text that a signer can fill in.
    pub sample: Option<String>,
}

/// What an action is for: what it does to an instance, in every marketplace's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ActionKind {
    /// A purchase: a new instance.
    Create,
    /// A longer subscription.
    Renew,
    /// Another specification.
    Upgrade,
    /// Isolate, keep the data.
    Expire,
    /// Remove.
    Delete,
    /// Is the backend there?
    Test,
    /// Anything else.
    Other,
}

/// An action of a dialect.
#[derive(Clone, Debug)]
pub struct Action {
    /// Its name in requests.
    pub name: String,
    /// What it is for.
    pub kind: ActionKind,
    /// For each field of the dialect: whether this action carries it.
    pub presence: Vec<Presence>,
    /// Position of the field that tells one delivery from another.
    pub dedupe: Option<usize>,
    /// What its reply has to be.
    pub reply: ReplyContract,
}

/// Whether an action carries a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Without it the request is refused.
    Required,
    /// Documented as required, yet absent from the platform's own examples.
    Expected,
    /// May be absent.
    Optional,
    /// The documentation of this action does not name it.
    Undocumented,
}

/// A request that the platform published.
#[derive(Clone, Debug)]
pub struct Published {
    /// What it is.
    pub title: String,
    /// The published key that signed it.
    pub key: String,
    /// The query, byte for byte.
    pub query: String,
}

impl Dialect {
    /// Prepares a key of this dialect from the text that the platform's console shows.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn signing_key(&self, secret: &str) -> Result<SigningKey, KeyError> {
        SigningKey::new(self.signature.mac, self.signature.key, secret)
    }

    /// Whether `tag` is `key`'s signature of the request, in constant time.
    ///
    /// # Errors
    /// [`Ambiguous`], only in dialects that sign unencoded values.
    pub fn verify(&self, key: &SigningKey, tag: &Tag, method: &str, params: &Params) -> Result<bool, Ambiguous> {
        key.verify(tag, |sink| self.canonical.write(method, params, &self.signature.parameter, sink))
    }

    /// Signs a request; the signature as text.
    ///
    /// # Errors
    /// [`Ambiguous`], only in dialects that sign unencoded values.
    pub fn sign(&self, key: &SigningKey, method: &str, params: &Params) -> Result<String, Ambiguous> {
        let tag = key.sign(|sink| self.canonical.write(method, params, &self.signature.parameter, sink))?;
        Ok(self.signature.output.encode(&tag))
    }

    /// The canonical string of a request, for humans.
    ///
    /// # Errors
    /// [`Ambiguous`], only in dialects that sign unencoded values.
    pub fn canonical_string(&self, method: &str, params: &Params) -> Result<String, Ambiguous> {
        let mut out = Vec::new();
        self.canonical.write(method, params, &self.signature.parameter, &mut out)?;
        Ok(String::from_utf8_lossy(&out).into_owned())
    }

    /// Position of an action by its name in requests.
    pub fn action_index(&self, name: &str) -> Option<usize> {
        self.actions.iter().position(|action| action.name == name)
    }

    /// The first action of a kind.
    pub fn action_of(&self, kind: ActionKind) -> Option<&Action> {
        self.actions.iter().find(|action| action.kind == kind)
    }

    /// Position of a field by its name.
    pub fn field_index(&self, name: &str) -> Option<usize> {
        self.fields.iter().position(|field| field.name == name)
    }

    /// Whether a parameter is one that this dialect documents: a field, the action, the time or
    /// the signature. Such a parameter may stand only once.
    pub fn is_protocol_parameter(&self, name: &str) -> bool {
        name == self.action_parameter
            || name == self.signature.parameter
            || self.time.as_ref().is_some_and(|rule| rule.parameter == name)
            || self.fields.iter().any(|field| field.name == name)
    }
}
