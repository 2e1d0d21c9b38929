//! The marketplace's side: signs requests as the platform does, calls a notify URL, and judges
//! the reply as the platform judges it. Used by `sign`, `call`, `demo` and
//! `selftest`.

use std::fmt;
use std::time::Duration;

use http::header::USER_AGENT;
use http::{HeaderValue, Method, Uri};
use jiff::Timestamp;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::time::Instant;

use crate::backend::outgoing::Outgoing;
use crate::backend::{Backend, CallError, RawReply};
use crate::config::{BackendConfig, BackendTls, CircuitConfig, Endpoint, Send};
use crate::dialect::canonical::Ambiguous;
use crate::dialect::mac::SigningKey;
use crate::dialect::reply::{Judgement, ReplyContract};
use crate::dialect::{Action, Dialect, Presence};
use crate::query::{Params, QueryError};

/// How long the platform waits (`protocol.md` section 1, documented).
pub const PATIENCE: Duration = Duration::from_secs(15);
/// More than any reply that the platform would read.
const LONGEST_REPLY: usize = 16 * 1024 * 1024;

/// The platform's own wire encoding: a form encoder that also encodes `~`. Not the one that it
/// signs with.
const WIRE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b' ');

/// A request to sign.
pub struct Order<'a> {
    /// In which dialect.
    pub dialect: &'a Dialect,
    /// The notify URL, perhaps with parameters of its own: they are signed too.
    pub url: &'a str,
    /// Which action.
    pub action: &'a Action,
    /// Fields and further parameters in plain text; base64 is done here where the dialect says.
    pub fields: &'a [(String, String)],
    /// The signed time.
    pub time: Timestamp,
}

/// Why a request cannot be signed.
#[derive(Debug)]
pub enum OrderError {
    /// The URL's own query cannot be read.
    Query(QueryError),
    /// A parameter stands twice that may stand only once.
    Repeated(String),
    /// The dialect signs unencoded values and one contains a delimiter.
    Ambiguous(Ambiguous),
}

impl fmt::Display for OrderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Query(error) => write!(f, "the URL's query: {error}"),
            Self::Repeated(name) => write!(f, "{name} is given twice (in the URL and as a field?)"),
            Self::Ambiguous(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for OrderError {}

/// A signed request.
pub struct Signed {
    /// The URL without its query.
    base: String,
    /// The query without the signature, as the platform puts it on the wire.
    query: String,
    /// The signature's parameter and header.
    parameter: String,
    header: Option<String>,
    /// The signature.
    pub signature: String,
}

/// Where a signature travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Placement {
    /// In the query.
    Query,
    /// In the dialect's header.
    Header,
    /// In both.
    Both,
}

impl Order<'_> {
    /// Signs it.
    ///
    /// # Errors
    /// See [`OrderError`].
    pub fn sign(&self, key: &SigningKey) -> Result<Signed, OrderError> {
        let (base, own) = self.url.split_once('?').unwrap_or((self.url, ""));
        let own = Params::parse(own.as_bytes(), usize::MAX).map_err(OrderError::Query)?;
        let mut pairs: Vec<(String, String)> =
            own.received().map(|param| (param.name.to_owned(), param.value.to_owned())).collect();
        pairs.push((self.dialect.action_parameter.clone(), self.action.name.clone()));
        for (name, plain) in self.fields {
            let field = self.dialect.fields.iter().find(|field| field.name == *name);
            pairs.push((name.clone(), field.map_or_else(|| plain.clone(), |field| field.kind.encode(plain))));
        }
        if let Some(rule) = &self.dialect.time {
            // A time among the fields is meant: an old one, or a wrong one.
            if !pairs.iter().any(|(name, _)| *name == rule.parameter) {
                pairs.push((rule.parameter.clone(), rule.format.format(self.time)));
            }
        }
        for (index, (name, _)) in pairs.iter().enumerate() {
            if self.dialect.is_protocol_parameter(name) && pairs[..index].iter().any(|(before, _)| before == name) {
                return Err(OrderError::Repeated(name.clone()));
            }
        }
        let params = Params::from_pairs(pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let signature = self.dialect.sign(key, "GET", &params).map_err(OrderError::Ambiguous)?;
        let query = pairs.iter().map(|(name, value)| format!("{}={}", wire(name), wire(value))).collect::<Vec<_>>();
        Ok(Signed {
            base: base.to_owned(),
            query: query.join("&"),
            parameter: self.dialect.signature.parameter.clone(),
            header: self.dialect.signature.header.as_ref().map(ToString::to_string),
            signature,
        })
    }

    /// Required and expected fields that are not given.
    pub fn lacking(&self) -> Vec<&str> {
        let given = |name: &str| self.fields.iter().any(|(given, _)| given == name);
        let wanted = self
            .dialect
            .fields
            .iter()
            .zip(&self.action.presence)
            .filter(|(_, presence)| matches!(presence, Presence::Required | Presence::Expected));
        wanted.map(|(field, _)| field.name.as_str()).filter(|name| !given(name)).collect()
    }
}

/// The dialect's sample values for everything that an action wants, except the fields given.
pub fn samples(dialect: &Dialect, action: &Action, given: &[(String, String)]) -> Vec<(String, String)> {
    let wanted = dialect.fields.iter().zip(&action.presence);
    wanted
        .filter(|(field, presence)| {
            matches!(presence, Presence::Required | Presence::Expected)
                && !given.iter().any(|(name, _)| *name == field.name)
        })
        .filter_map(|(field, _)| Some((field.name.clone(), field.sample.clone()?)))
        .collect()
}

impl Signed {
    /// The URL that the platform calls.
    pub fn url(&self, placement: Placement) -> String {
        let Self { base, query, parameter, signature, .. } = self;
        match placement {
            Placement::Header => format!("{base}?{query}"),
            Placement::Query | Placement::Both => format!("{base}?{query}&{}={}", wire(parameter), wire(signature)),
        }
    }

    /// The header that it sends besides, if any: name and value.
    pub fn header(&self, placement: Placement) -> Option<(&str, &str)> {
        let header = self.header.as_deref().filter(|_| placement != Placement::Query);
        header.map(|name| (name, self.signature.as_str()))
    }

    /// The same request with another signature text.
    pub fn with_signature(mut self, signature: String) -> Self {
        self.signature = signature;
        self
    }

    /// The same request with another first digit of the signature: another value in base64 as in
    /// hexadecimal, where `a` and `A` are one.
    pub fn with_flipped_signature(self) -> Self {
        let first = if self.signature.starts_with(['A', 'a']) { 'B' } else { 'A' };
        let rest = self.signature.chars().skip(1);
        let flipped = std::iter::once(first).chain(rest).collect();
        self.with_signature(flipped)
    }
}

/// A name or value as the platform puts it on the wire.
pub(crate) fn wire(text: &str) -> String {
    utf8_percent_encode(text, WIRE).to_string().replace(' ', "+")
}

/// A reply as the platform sees it.
pub struct Reply {
    /// What came.
    pub raw: RawReply,
    /// How long it took.
    pub took: Duration,
}

/// Calls a notify URL.
///
/// # Errors
/// A URL that cannot be called, as text; or how the call failed.
pub async fn call(url: &str, header: Option<(&str, &str)>, patience: Duration) -> Result<Reply, CallFailure> {
    let (client, endpoint, path) = client(url, patience)?;
    let target = endpoint.query.as_ref().map_or_else(|| path.clone(), |query| format!("{path}?{query}"));
    let authority = endpoint.authority;
    let unusable = |error: &dyn fmt::Display| CallFailure::Url(error.to_string());
    let target = target.parse::<Uri>().map_err(|error| unusable(&error))?;
    let mut request = Outgoing::new(Method::GET, &target, &authority);
    request.header(&USER_AGENT, &HeaderValue::from_static("spigate"));
    if let Some((name, value)) = header {
        let name = http::HeaderName::from_bytes(name.as_bytes()).map_err(|error| unusable(&error))?;
        let value = HeaderValue::from_str(value).map_err(|error| unusable(&error))?;
        request.header(&name, &value);
    }
    let begun = Instant::now();
    let raw = client.call(request, begun + patience).await.map_err(CallFailure::Call)?;
    Ok(Reply { raw, took: begun.elapsed() })
}

/// Whether anybody accepts a connection at a notify URL. Nothing is sent.
///
/// # Errors
/// A URL that cannot be called, or nobody there.
pub async fn reach(url: &str, patience: Duration) -> Result<(), CallFailure> {
    let (client, ..) = client(url, patience)?;
    client.accepts(Instant::now() + patience).await.map_err(CallFailure::Call)
}

/// A client of a URL, as the platform is one; where that is, and its path.
fn client(url: &str, patience: Duration) -> Result<(Backend, Endpoint, String), CallFailure> {
    let (endpoint, path) = Endpoint::parse(url).map_err(|what| CallFailure::Url(what.to_owned()))?;
    let config = BackendConfig {
        endpoint: endpoint.clone(),
        failover: Vec::new(),
        send: Send::Raw,
        answer_within: patience,
        timeout: patience,
        connect_timeout: patience,
        keep_alive: Duration::ZERO,
        path: path.clone(),
        tls: BackendTls::default(),
        circuit: CircuitConfig::OFF,
        probe: None,
        routes: Vec::new(),
    };
    let client = Backend::new(&config, LONGEST_REPLY, None).map_err(CallFailure::Url)?;
    Ok((client, endpoint, path))
}

/// Why there is no reply.
#[derive(Debug)]
pub enum CallFailure {
    /// The URL cannot be called.
    Url(String),
    /// The call failed.
    Call(CallError),
}

impl fmt::Display for CallFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(what) => write!(f, "the URL {what}"),
            Self::Call(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for CallFailure {}

/// One thing that the platform looks at.
pub struct Check {
    /// What it looks at.
    pub what: &'static str,
    /// Whether it is satisfied.
    pub passed: bool,
    /// What it demands and what came.
    pub detail: String,
}

/// What the platform makes of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The order is done.
    Success,
    /// The order is refused for good.
    Refused,
    /// Not a reply: the platform comes again, up to three times.
    Retry,
}

/// Judges a reply (`protocol.md` section 4).
pub fn judge(contract: &ReplyContract, reply: &Reply, patience: Duration) -> (Verdict, Vec<Check>) {
    let check = |what, passed, detail: String| Check { what, passed, detail };
    let RawReply { status, content_type, body, .. } = &reply.raw;
    let media_type =
        content_type.as_ref().map_or("none".to_owned(), |value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let judged = contract.judge(body);
    let (success, said) = match &judged {
        Ok(Judgement::Success { .. }) => (true, "the reply says success".to_owned()),
        Ok(Judgement::Refusal) => (false, "the reply says success = false".to_owned()),
        Err(_) => (false, "cannot be told from a reply that breaks the contract".to_owned()),
    };
    let seconds = reply.took.as_secs_f64();
    let checks = vec![
        check("status", status.as_u16() == 200, format!("must be exactly 200, is {}", status.as_u16())),
        check(
            "content type",
            media_type == "application/json",
            format!("must be exactly application/json, is {media_type}"),
        ),
        check(
            "body",
            judged.is_ok(),
            judged.as_ref().err().map_or_else(|| "keeps the contract".to_owned(), ToString::to_string),
        ),
        check("success", success, said),
        check("time", reply.took <= patience, format!("must be within {} s, took {seconds:.3} s", patience.as_secs())),
    ];
    let well_formed = checks.iter().filter(|check| check.what != "success").all(|check| check.passed);
    let verdict = match (well_formed, success) {
        (true, true) => Verdict::Success,
        (true, false) => Verdict::Refused,
        (false, _) => Verdict::Retry,
    };
    (verdict, checks)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::StatusCode;

    use super::*;
    use crate::dialect::{ActionKind, builtin};
    use crate::query::Lookup;

    fn order<'a>(dialect: &'a Dialect, url: &'a str, fields: &'a [(String, String)]) -> Order<'a> {
        let time = Timestamp::from_second(1_700_000_000).unwrap();
        Order { dialect, url, action: dialect.action_of(ActionKind::Create).unwrap(), fields, time }
    }

    #[test]
    fn signs_what_a_verifier_accepts_in_every_dialect() {
        for dialect in builtin::load().unwrap() {
            let action = dialect.action_of(ActionKind::Create).unwrap();
            let mut fields = samples(&dialect, action, &[]);
            fields.push(("note".into(), "a b+c~*é".into()));
            let key = dialect.signing_key("key").unwrap();
            let order = order(&dialect, "http://h/spi?platform=x%20y", &fields);
            assert_eq!(order.lacking(), Vec::<&str>::new());
            let signed = order.sign(&key).unwrap();
            let url = signed.url(Placement::Query);
            assert!(url.contains("platform=x+y") && url.contains("%7E"), "{url}");
            let params = Params::parse(url.split_once('?').unwrap().1.as_bytes(), 64).unwrap();
            let Lookup::Once(text) = params.get(&dialect.signature.parameter) else { panic!("unsigned") };
            let tag = dialect.signature.output.decode(text).unwrap();
            assert!(dialect.verify(&key, &tag, "GET", &params).unwrap());
        }
    }

    #[test]
    fn a_flipped_signature_is_another_value_in_every_notation() {
        let dialect = &builtin::load().unwrap()[0];
        let key = dialect.signing_key("key").unwrap();
        for (text, flipped) in [("abc", "Bbc"), ("Abc", "Bbc"), ("bbc", "Abc"), ("0", "A"), ("B=", "A=")] {
            let signed = order(dialect, "http://h/spi", &[]).sign(&key).unwrap();
            assert_eq!(signed.with_signature(text.into()).with_flipped_signature().signature, flipped);
        }
    }

    #[test]
    fn a_protocol_parameter_cannot_be_given_twice() {
        let dialect = &builtin::load().unwrap()[0];
        let key = dialect.signing_key("key").unwrap();
        let result = order(dialect, "http://h/spi?action=Other", &[]).sign(&key);
        assert!(matches!(result, Err(OrderError::Repeated(name)) if name == "action"));
    }

    #[test]
    fn judges_as_the_platform_does() {
        let dialect = &builtin::load().unwrap()[0];
        let contract = &dialect.action_of(ActionKind::Create).unwrap().reply;
        let judge = |status: u16, content_type: &'static str, body: &'static str, took| {
            let raw = RawReply {
                status: StatusCode::from_u16(status).unwrap(),
                content_type: Some(HeaderValue::from_static(content_type)),
                content_encoding: None,
                body: Bytes::from_static(body.as_bytes()),
            };
            let (verdict, checks) = judge(contract, &Reply { raw, took: Duration::from_secs(took) }, PATIENCE);
            let failed = checks.iter().filter(|check| !check.passed).map(|check| check.what).collect::<Vec<_>>();
            (verdict, failed.join(","))
        };
        let good = r#"{"success":true,"instanceId":"i"}"#;
        assert_eq!(judge(200, "application/json", good, 1), (Verdict::Success, String::new()));
        assert_eq!(judge(201, "application/json", good, 1), (Verdict::Retry, "status".into()));
        assert_eq!(judge(200, "application/json; charset=utf-8", good, 1), (Verdict::Retry, "content type".into()));
        assert_eq!(judge(200, "application/json", good, 16), (Verdict::Retry, "time".into()));
        assert_eq!(judge(200, "application/json", "{}", 1), (Verdict::Retry, "body,success".into()));
        assert_eq!(judge(200, "application/json", r#"{"success":false}"#, 1), (Verdict::Refused, "success".into()));
    }
}
