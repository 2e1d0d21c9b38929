//! What became of a delivery: the backend's answer or the reason why there is none.

use std::time::Duration;

use bytes::Bytes;

use crate::journal::Receipt;
use crate::journal::key::DeliveryKey;
use crate::rejection::Rejection;

/// How a request ended: label of metrics, field of the access log (`design.md`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The backend confirmed.
    Delivered,
    /// A recorded confirmation was answered again.
    Replayed,
    /// A running delivery's result was answered.
    Joined,
    /// The backend said no.
    Refused,
    /// Nothing was done.
    Failed,
    /// The backend may have done it.
    Unconfirmed,
    /// spigate refused the request.
    Rejected,
    /// A companion told its ingress that the request may pass; what became of it only that knows.
    Allowed,
}

impl Outcome {
    /// All of them, in the order of their positions in [`Outcome::index`].
    pub const ALL: [Self; 8] = [
        Self::Delivered,
        Self::Replayed,
        Self::Joined,
        Self::Refused,
        Self::Failed,
        Self::Unconfirmed,
        Self::Rejected,
        Self::Allowed,
    ];

    /// Its name in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Replayed => "replayed",
            Self::Joined => "joined",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Unconfirmed => "unconfirmed",
            Self::Rejected => "rejected",
            Self::Allowed => "allowed",
        }
    }

    /// Its position in [`Outcome::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }
}

/// The result of an attempt; cheap to clone for everybody who waits for it.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// How it ended.
    pub outcome: Outcome,
    /// The backend's body for the platform, or why there is none.
    pub answer: Result<Bytes, Rejection>,
    /// The id of the new instance, where the reply names one.
    pub instance_id: Option<String>,
    /// How long the backend took.
    pub backend_time: Option<Duration>,
    /// Which delivery it is in the journal, and which of its attempts this was.
    pub recorded: Option<(DeliveryKey, u32)>,
    /// Whom to tell that the platform was answered with success, where that is not known yet.
    pub receipt: Option<Receipt>,
}

impl Delivery {
    /// A delivery that the backend may have executed, without a usable answer.
    pub fn unconfirmed(rejection: Rejection) -> Self {
        Self {
            outcome: Outcome::Unconfirmed,
            answer: Err(rejection),
            instance_id: None,
            backend_time: None,
            recorded: None,
            receipt: None,
        }
    }

    /// A delivery that the backend has not executed.
    pub fn failed(rejection: Rejection) -> Self {
        Self { outcome: Outcome::Failed, ..Self::unconfirmed(rejection) }
    }

    /// A delivery that spigate itself refused.
    pub fn rejected(rejection: Rejection) -> Self {
        Self { outcome: Outcome::Rejected, ..Self::unconfirmed(rejection) }
    }

    /// An answer in the backend's words.
    pub fn answered(outcome: Outcome, body: Bytes, instance_id: Option<String>) -> Self {
        Self { outcome, answer: Ok(body), instance_id, backend_time: None, recorded: None, receipt: None }
    }
}
