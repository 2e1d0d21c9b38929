//! What the journal holds: one entry for each delivery, with its latest attempt.
//!
//! Plain data that every store writes and reads; what may become of it is decided in
//! `machine.rs`. Replies are sealed (`vault.rs`) before they come here.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::key::{DeliveryKey, Extras, Fingerprint, Lookalike, Origin};

/// What a delivery is about, as a request says it: of an entry, its first copy. Whatever tells of it
/// shares it, and whoever changes it has one of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The order behind it, debug or not.
    pub origin: Origin,
    /// What copies without an order number are recognised by, where the app asks for it.
    pub lookalike: Option<Lookalike>,
    /// Its content.
    pub fingerprint: Fingerprint,
    /// What of it does not count.
    pub extras: Extras,
    /// The app.
    pub app: Arc<str>,
    /// The action's name.
    pub action: Arc<str>,
    /// Whether it is a trial run.
    pub debug: bool,
    /// The order's number.
    pub order_id: Option<Arc<str>>,
    /// The instance that the request is about.
    pub instance_id: Option<Arc<str>>,
    /// The customer.
    pub user_id: Option<Arc<str>>,
}

/// A request for a delivery: what is to be delivered, and how the app wants it.
#[derive(Clone, Debug)]
pub struct Ask {
    /// The delivery, without a cycle.
    pub base: DeliveryKey,
    /// What is to be delivered.
    pub subject: Arc<Subject>,
    /// What the action does to the instance's cycle.
    pub lifecycle: Lifecycle,
    /// Whether an unconfirmed delivery waits for the operator (`on_unconfirmed = "hold"`).
    pub hold: bool,
    /// Whether a confirmed instance id must be new to the app.
    pub instance_must_be_new: bool,
    /// Who asks.
    pub claimant: Claimant,
    /// The request that asks.
    pub request_id: Arc<str>,
    /// When, by the gateway's clock. A store shared by several gateways takes its own.
    pub now: Timestamp,
}

/// What an action does to the cycle of its instance (`protocol.md` 5: lifecycles are cyclic).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifecycle {
    /// Nothing.
    None,
    /// Expire, delete: one delivery a cycle, keyed by the instance.
    Ends {
        /// How long a recorded confirmation is replayed before the next copy is a new cycle.
        replay_for: SignedDuration,
    },
    /// Renew, upgrade: forwarding it begins a new cycle.
    Revives,
}

/// Who claimed: a process, and which of its claims. Never the same twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimant {
    /// The serving process: random, made at its start.
    pub gateway: Arc<str>,
    /// Counts up.
    pub number: i64,
}

/// A delivery as it is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its key, in its cycle.
    pub key: DeliveryKey,
    /// Which of the instance's cycles; 0 unless the action ends one.
    pub cycle: u32,
    /// What its first copy asked for.
    pub subject: Arc<Subject>,
    /// When its first copy came.
    pub received_at: Timestamp,
    /// When this entry last changed.
    pub changed_at: Timestamp,
    /// What may happen next.
    pub state: State,
    /// Whether an attempt before the latest may have been executed.
    pub doubt: bool,
    /// The latest attempt.
    pub latest: Attempt,
    /// The recorded confirmation.
    pub confirmation: Option<Confirmation>,
    /// The sealed reply of the confirmation or, without one, of the last refusal.
    pub reply: Option<Sealed>,
    /// When the platform was first answered with success, or told of it by other means; while it is
    /// closed, when it was first answered with the operator's no.
    pub answered_at: Option<Timestamp>,
    /// The operator's last decision.
    pub decision: Option<OperatorDecision>,
}

impl Entry {
    /// Another one has taken its place as the one that lookalikes join: from now on only copies whose
    /// keys are known find it.
    pub fn give_way(&mut self) {
        Arc::make_mut(&mut self.subject).lookalike = None;
    }
}

/// What may happen next with a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The latest attempt runs: copies join it.
    Running,
    /// Refused or failed: the next copy is forwarded.
    Open,
    /// It may have been executed: the next copy is forwarded, or held.
    Unconfirmed,
    /// Confirmed: copies get the recorded reply.
    Done,
    /// The operator said that it failed: copies are refused.
    Closed,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Running, Self::Open, Self::Unconfirmed, Self::Done, Self::Closed];

    /// Its name in stores and listings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Open => "open",
            Self::Unconfirmed => "unconfirmed",
            Self::Done => "done",
            Self::Closed => "closed",
        }
    }

    /// The state of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One call of the backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// 1 for the first.
    pub number: u32,
    /// Who made it.
    pub claimant: Claimant,
    /// The request that caused it.
    pub request_id: Arc<str>,
    /// When it was claimed.
    pub began_at: Timestamp,
    /// When its end was recorded.
    pub ended_at: Option<Timestamp>,
    /// How it ended; `None` while it runs.
    pub ended: Option<Ended>,
}

/// How an attempt ended, without its reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// In one word.
    pub outcome: AttemptOutcome,
    /// The rejection's code, or what else ended it ([`LEASE_LOST`], [`PROCESS_ENDED`]).
    pub code: Option<Cow<'static, str>>,
    /// The rule that the reply broke.
    pub rule: Option<String>,
    /// The cause for a human; never a value of the request or the reply.
    pub detail: Option<String>,
    /// The instance id that the reply named.
    pub instance_id: Option<Arc<str>>,
}

/// The code of an attempt whose process lost its lease: it was stopped or cut off for too long.
pub const LEASE_LOST: &str = "lease_lost";
/// The code of an attempt that was running when its process ended.
pub const PROCESS_ENDED: &str = "process_ended";

/// How an attempt ended (`design.md`, "Outcomes of an attempt").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptOutcome {
    /// A valid success reply was recorded.
    Confirmed,
    /// A valid `success:false`.
    Refused,
    /// Nothing was sent, or the backend said that it failed.
    Failed,
    /// It may have been executed.
    Unconfirmed,
    /// It was confirmed after another attempt had been, with another instance id.
    Duplicate,
}

impl AttemptOutcome {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Confirmed, Self::Refused, Self::Failed, Self::Unconfirmed, Self::Duplicate];

    /// Its name in stores and listings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Confirmed => "confirmed",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Unconfirmed => "unconfirmed",
            Self::Duplicate => "duplicate_confirmed",
        }
    }

    /// The outcome of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.as_str() == name)
    }
}

/// A recorded confirmation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confirmation {
    /// When it was recorded.
    pub at: Timestamp,
    /// The instance id that the reply named.
    pub instance_id: Option<Arc<str>>,
}

/// What the operator decided, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorDecision {
    /// `retry`, `done`, `failed` or `settled`.
    pub what: String,
    /// When.
    pub at: Timestamp,
    /// The message that copies of a failed delivery are refused with.
    pub message: Option<String>,
    /// Who decided, as they call themselves.
    pub by: Option<String>,
    /// Why.
    pub why: Option<String>,
}

/// A sealed text and the data key that opens it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// The data key's number in the journal.
    pub data_key: i64,
    /// Nonce and ciphertext.
    pub bytes: Vec<u8>,
}

/// The end of an attempt, to be recorded.
#[derive(Clone, Debug)]
pub struct End {
    /// What was asked for. A delivery whose entry is gone by now is recorded anew from it.
    pub ask: Arc<Ask>,
    /// The delivery.
    pub key: DeliveryKey,
    /// Its cycle.
    pub cycle: u32,
    /// The attempt that ended.
    pub attempt: u32,
    /// When it was claimed.
    pub began_at: Timestamp,
    /// How it ended.
    pub ending: Ending,
    /// When, by the gateway's clock.
    pub now: Timestamp,
}

/// How an attempt ended, with its reply.
#[derive(Clone, Debug)]
pub enum Ending {
    /// The backend did it.
    Confirmed {
        /// The instance id that the reply names.
        instance_id: Option<Arc<str>>,
        /// The reply.
        reply: Sealed,
    },
    /// The backend says no.
    Refused {
        /// The reply.
        reply: Sealed,
    },
    /// Nothing was done.
    Failed(Reason),
    /// It may have been done.
    Unconfirmed(Reason),
}

/// Why an attempt brought no reply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reason {
    /// The rejection's code.
    pub code: Cow<'static, str>,
    /// The rule that the reply broke.
    pub rule: Option<String>,
    /// The cause for a human.
    pub detail: Option<String>,
}
