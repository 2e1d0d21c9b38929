//! Everything that can go wrong with a request, once.
//!
//! A rejection carries what the caller is told, what the log is told, whose fault it is and
//! whether the platform should come again. Stages return it, and it goes up in the
//! verdict on the request (`observe.rs`), from which the answer, the metrics and the access log are
//! made without knowing the stage. There is no other error type on the data path and no catch-all.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use http::StatusCode;

use crate::dialect::reply::Violation;
use crate::dialect::request::ContractError;
use crate::peer::client::Client;
use crate::query::QueryError;

/// Why a request is not answered with a backend's reply. The codes are listed in the README.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// The request cannot be read safely.
    MalformedRequest(Malformed),
    /// Not a GET.
    MethodNotAllowed,
    /// No app has this host and path.
    UnknownApp,
    /// The client is not among those that may call the app.
    ClientNotAllowed {
        /// Its address, as far as it is known.
        client: Client,
    },
    /// Who asks the companion is not among those that may.
    NotTheIngress {
        /// The other end of its connection.
        peer: IpAddr,
    },
    /// An auth sub-request does not say which request it is about.
    OriginalMissing {
        /// What is missing.
        what: &'static str,
        /// Which setting of the ingress to change.
        fix: &'static str,
    },
    /// The query is longer than `limits.query_bytes`.
    UriTooLong {
        /// The configured limit in bytes.
        limit: usize,
    },
    /// More headers than the gateway accepts.
    HeadersTooLarge,
    /// A GET with a body.
    BodyNotAllowed,
    /// No signature in the query and none in the header.
    SignatureMissing {
        /// Whether this dialect also reads a header, which an ingress may have dropped.
        header: Option<String>,
    },
    /// No active key verifies the signature.
    SignatureInvalid(BadSignature),
    /// The request carries no time.
    TimestampMissing,
    /// The time is not of the dialect's form.
    TimestampInvalid,
    /// The time lies too far back.
    TimestampExpired {
        /// Its age in seconds.
        age: i64,
    },
    /// The time lies too far ahead.
    TimestampInFuture {
        /// How far, in seconds.
        ahead: i64,
    },
    /// The dialect has no such action.
    UnknownAction,
    /// A required field is missing.
    FieldMissing {
        /// Its name.
        field: String,
    },
    /// A field holds what it must not.
    FieldInvalid {
        /// Its name.
        field: String,
        /// What is wrong, as half a sentence.
        why: &'static str,
    },
    /// The same order with different content.
    OrderConflict,
    /// The first delivery of this order still runs.
    DeliveryInProgress,
    /// This delivery may have been executed, and the operator wants to decide.
    DeliveryHeld,
    /// The journal cannot be read or written: nothing is forwarded, and nothing answered that is
    /// not recorded.
    JournalUnavailable {
        /// The cause, for the log.
        cause: Arc<str>,
    },
    /// No connection to the backend: nothing was sent.
    BackendUnreachable {
        /// The cause, for the log.
        cause: Arc<str>,
    },
    /// The backend's reply broke off or was too long. The backend may have acted.
    BackendBrokenReply {
        /// The cause, for the log.
        cause: Arc<str>,
    },
    /// The backend's reply breaks the contract.
    BackendContract(Violation),
    /// The backend did not reply in time. It may still act.
    BackendTimeout,
    /// The backend answered 5xx or 429.
    BackendError {
        /// Its status.
        status: u16,
    },
    /// The client failed to prove itself more often than `limits.failed_per_minute`.
    TooManyFailures {
        /// Seconds until another failure would be told in its own words.
        retry_after: u32,
        /// The code of what failed this time.
        instead_of: &'static str,
        /// Whether the log is told; once a minute is enough.
        told: bool,
    },
    /// The gateway is at one of its limits.
    Overloaded,
    /// The gateway is about to end.
    ShuttingDown,
    /// A bug: a panic was caught.
    Internal,
}

/// What cannot be read safely about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// The query string.
    Query(QueryError),
    /// A parameter of the protocol stands twice.
    RepeatedParameter,
    /// Query and header carry different signatures, or the header stands twice.
    TwoSignatures,
    /// The Host header is missing, doubled, or not a host.
    Host,
    /// The request target is neither a path nor a URL of this host.
    Target,
    /// What an auth sub-request says of the request that it is about.
    Original(&'static str),
}

/// Why a signature does not verify. For the log; callers are not told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadSignature {
    /// It is not of the dialect's form (base64 of 32 bytes, say).
    Form,
    /// No active key made it for these parameters.
    NoKey,
    /// The parameters cannot be signed unambiguously.
    Ambiguous,
}

/// Whose fault a rejection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Whoever called.
    Client,
    /// The vendor's backend.
    Backend,
    /// spigate itself, or its load.
    Gateway,
}

impl Rejection {
    /// The HTTP status of the answer.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::MalformedRequest(_)
            | Self::OriginalMissing { .. }
            | Self::BodyNotAllowed
            | Self::UnknownAction
            | Self::FieldMissing { .. }
            | Self::FieldInvalid { .. } => StatusCode::BAD_REQUEST,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::UnknownApp => StatusCode::NOT_FOUND,
            Self::ClientNotAllowed { .. } | Self::NotTheIngress { .. } => StatusCode::FORBIDDEN,
            Self::UriTooLong { .. } => StatusCode::URI_TOO_LONG,
            Self::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::SignatureMissing { .. }
            | Self::SignatureInvalid(_)
            | Self::TimestampMissing
            | Self::TimestampInvalid
            | Self::TimestampExpired { .. }
            | Self::TimestampInFuture { .. } => StatusCode::UNAUTHORIZED,
            Self::OrderConflict => StatusCode::UNPROCESSABLE_ENTITY,
            Self::TooManyFailures { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::BackendUnreachable { .. }
            | Self::BackendBrokenReply { .. }
            | Self::BackendContract(_)
            | Self::BackendError { .. } => StatusCode::BAD_GATEWAY,
            Self::BackendTimeout => StatusCode::GATEWAY_TIMEOUT,
            Self::DeliveryInProgress
            | Self::DeliveryHeld
            | Self::JournalUnavailable { .. }
            | Self::Overloaded
            | Self::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The stable machine code: part of the answer, label of a metric.
    pub fn code(&self) -> &'static str {
        match self {
            Self::MalformedRequest(_) => "malformed_request",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::UnknownApp => "unknown_app",
            Self::ClientNotAllowed { .. } | Self::NotTheIngress { .. } => "client_not_allowed",
            Self::OriginalMissing { .. } => "original_missing",
            Self::UriTooLong { .. } => "uri_too_long",
            Self::HeadersTooLarge => "headers_too_large",
            Self::BodyNotAllowed => "body_not_allowed",
            Self::SignatureMissing { .. } => "signature_missing",
            Self::SignatureInvalid(_) => "signature_invalid",
            Self::TimestampMissing => "timestamp_missing",
            Self::TimestampInvalid => "timestamp_invalid",
            Self::TimestampExpired { .. } => "timestamp_expired",
            Self::TimestampInFuture { .. } => "timestamp_in_future",
            Self::UnknownAction => "unknown_action",
            Self::FieldMissing { .. } => "field_missing",
            Self::FieldInvalid { .. } => "field_invalid",
            Self::OrderConflict => "order_conflict",
            // For the caller the same: not done yet, come again.
            Self::DeliveryInProgress | Self::DeliveryHeld => "delivery_in_progress",
            Self::JournalUnavailable { .. } => "journal_unavailable",
            Self::BackendUnreachable { .. } => "backend_unreachable",
            Self::BackendBrokenReply { .. } => "backend_broken_reply",
            Self::BackendContract(_) => "backend_contract",
            Self::BackendTimeout => "backend_timeout",
            Self::BackendError { .. } => "backend_error",
            Self::TooManyFailures { .. } => "too_many_failures",
            Self::Overloaded => "overloaded",
            Self::ShuttingDown => "shutting_down",
            Self::Internal => "internal",
        }
    }

    /// What the caller is told. Never an expected signature, a key id, a value, a path.
    pub fn message(&self) -> Cow<'static, str> {
        match self {
            Self::MalformedRequest(Malformed::Query(error)) => error.to_string().into(),
            Self::MalformedRequest(Malformed::RepeatedParameter) => "a parameter of the protocol stands twice".into(),
            Self::MalformedRequest(Malformed::TwoSignatures) => "the request carries two different signatures".into(),
            Self::MalformedRequest(Malformed::Host) => "the Host header is missing, doubled or malformed".into(),
            Self::MalformedRequest(Malformed::Target) => {
                "the request target is neither a path nor a URL of this host".into()
            }
            Self::MalformedRequest(Malformed::Original(what)) => {
                format!("the original request cannot be told: {what}").into()
            }
            Self::MethodNotAllowed => "only GET is allowed".into(),
            Self::UnknownApp => "nothing is served at this address".into(),
            Self::ClientNotAllowed { .. } => "this client may not call this app".into(),
            Self::NotTheIngress { .. } => "this client may not ask here".into(),
            Self::OriginalMissing { what, fix } => format!("{what}: {fix}").into(),
            Self::UriTooLong { limit } => format!("the query is longer than {limit} bytes").into(),
            Self::HeadersTooLarge => "the request has more than 80 headers, or more than 32 KiB of them".into(),
            Self::BodyNotAllowed => "a GET must not have a body".into(),
            Self::SignatureMissing { .. } => "the request carries no signature".into(),
            Self::SignatureInvalid(_) => "the signature does not verify".into(),
            Self::TimestampMissing => "the request carries no time".into(),
            Self::TimestampInvalid => "the time of the request is malformed".into(),
            Self::TimestampExpired { age } => format!("the request is {age} s old: too old").into(),
            Self::TimestampInFuture { ahead } => format!("the request's time lies {ahead} s in the future").into(),
            Self::UnknownAction => "the action is unknown".into(),
            Self::FieldMissing { field } => format!("{field} is missing").into(),
            Self::FieldInvalid { field, why } => format!("{field} {why}").into(),
            Self::OrderConflict => "this order was received before with different content".into(),
            Self::DeliveryInProgress => "the first delivery of this order still runs; come again".into(),
            Self::DeliveryHeld => "this order waits for a decision of the operator; come again".into(),
            Self::JournalUnavailable { .. } => "the delivery journal is not available; come again".into(),
            Self::BackendUnreachable { .. } => "the backend cannot be reached".into(),
            Self::BackendBrokenReply { .. } => "the backend's reply broke off".into(),
            Self::BackendContract(_) => "the backend's reply breaks the contract".into(),
            Self::BackendTimeout => "the backend did not reply in time".into(),
            Self::BackendError { .. } => "the backend failed".into(),
            Self::TooManyFailures { .. } => "too many requests that do not verify came from this address".into(),
            Self::Overloaded => "the gateway is overloaded; come again".into(),
            Self::ShuttingDown => "the gateway is shutting down; come again".into(),
            Self::Internal => "an internal error; it was logged".into(),
        }
    }

    /// Message and cause, for the log.
    pub fn told(&self) -> String {
        let message = self.message();
        self.cause().map_or_else(|| message.clone().into_owned(), |cause| format!("{message}: {cause}"))
    }

    /// What only the log is told: the cause, and what to do about it.
    pub fn cause(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::ClientNotAllowed { client: Client { address, known: true } } => {
                Some(format!("{address} is not in the app's allow_from").into())
            }
            Self::ClientNotAllowed { client: Client { address, known: false } } => Some(
                format!(
                    "its address is not known, only that it came by way of {address}; look at what the proxy writes \
                     into X-Forwarded-For and Forwarded"
                )
                .into(),
            ),
            Self::NotTheIngress { peer } => Some(format!("{peer} is not in companion.allow_from").into()),
            Self::SignatureMissing { header: Some(header) } => Some(
                format!(
                    "neither the query nor the header {header} has one; if the platform sent the header, an nginx or \
                     ingress in front drops it: set underscores_in_headers on"
                )
                .into(),
            ),
            Self::SignatureMissing { header: None } => Some("the query has none".into()),
            Self::SignatureInvalid(BadSignature::Form) => {
                Some("it is not a signature of this dialect's form (length, alphabet, padding)".into())
            }
            Self::SignatureInvalid(BadSignature::NoKey) => Some(
                "no active key of the app verifies it; `spigate explain` tells which known mistake would explain it"
                    .into(),
            ),
            Self::SignatureInvalid(BadSignature::Ambiguous) => {
                Some("a value contains a delimiter that this dialect signs unencoded".into())
            }
            Self::TooManyFailures { instead_of, .. } => Some(
                format!("{instead_of} this time; its failures beyond the limit are not logged again for a minute")
                    .into(),
            ),
            Self::BackendUnreachable { cause }
            | Self::BackendBrokenReply { cause }
            | Self::JournalUnavailable { cause } => Some((&**cause).into()),
            Self::DeliveryHeld => Some(
                "on_unconfirmed = \"hold\": an attempt may have been executed; decide with `spigate journal resolve`"
                    .into(),
            ),
            Self::BackendContract(violation) => Some(violation.detail.as_str().into()),
            Self::BackendError { status } => Some(format!("the backend answered {status}").into()),
            _ => None,
        }
    }

    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            Self::DeliveryInProgress
            | Self::DeliveryHeld
            | Self::BackendUnreachable { .. }
            | Self::BackendBrokenReply { .. }
            | Self::BackendContract(_)
            | Self::BackendTimeout
            | Self::BackendError { .. } => Fault::Backend,
            Self::JournalUnavailable { .. } | Self::Overloaded | Self::ShuttingDown | Self::Internal => Fault::Gateway,
            _ => Fault::Client,
        }
    }

    /// Seconds after which the caller should come again; `None` where coming again is no use or
    /// the platform's own schedule will do.
    pub fn retry_after(&self) -> Option<u32> {
        match self {
            Self::DeliveryInProgress | Self::JournalUnavailable { .. } => Some(5),
            Self::DeliveryHeld => Some(60),
            Self::TooManyFailures { retry_after, .. } => Some(*retry_after),
            Self::Overloaded | Self::ShuttingDown => Some(1),
            _ => None,
        }
    }

    /// Whether the access log has a line for it.
    pub fn is_logged(&self) -> bool {
        !matches!(self, Self::TooManyFailures { told: false, .. })
    }

    /// Whether the connection must not carry another request: its framing is in doubt.
    pub fn closes_connection(&self) -> bool {
        matches!(
            self,
            Self::MalformedRequest(Malformed::Host | Malformed::Target)
                | Self::MethodNotAllowed
                | Self::NotTheIngress { .. }
                | Self::BodyNotAllowed
                | Self::HeadersTooLarge
                | Self::ShuttingDown
        )
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code(), self.message())
    }
}

impl std::error::Error for Rejection {}

impl From<QueryError> for Rejection {
    fn from(error: QueryError) -> Self {
        Self::MalformedRequest(Malformed::Query(error))
    }
}

impl From<ContractError> for Rejection {
    fn from(error: ContractError) -> Self {
        match error {
            ContractError::UnknownAction => Self::UnknownAction,
            ContractError::Missing { field } => Self::FieldMissing { field },
            ContractError::Invalid { field, why } => Self::FieldInvalid { field, why },
        }
    }
}
