//! What of a reply is a fault: judged as the platform judges, and beyond that by what the step has
//! to come to. Pure.
//!
//! One fault must not hide another: a reply with the wrong media type is still read, so that a
//! second instance behind it is seen too.

use std::collections::HashSet;
use std::time::Duration;

use super::case::{Expect, Forgery};
use crate::backend::{CallError, RawReply};
use crate::delivery::Delivery;
use crate::dialect::reply::{Judgement, ReplyContract, Violation};
use crate::platform::{self, CallFailure, Reply, Verdict};
use crate::rejection::Rejection;
use crate::stage::validate;

/// What is wrong with a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// There was no connection.
    Unreachable(String),
    /// The reply broke off.
    Broken(String),
    /// No reply came in time, or not all of it.
    TimedOut,
    /// It came whole, but too late.
    Late(Duration),
    /// A genuine request was answered as one that does not verify.
    Unauthorized(u16),
    /// The status is none that the platform takes.
    Status(u16),
    /// The media type is none that the platform takes; `None` if there is none.
    ContentType(Option<String>),
    /// The body breaks the contract.
    Body(Violation),
    /// A genuine order was refused for good.
    Refused,
    /// A copy of an order made another instance.
    SecondInstance,
    /// A new order was told an instance that another order has.
    InstanceReused,
    /// What must be refused was accepted.
    Accepted(Forgery),
    /// What must be refused broke something.
    Crashed(u16),
    /// Instances that could not be removed.
    LeftOver(Vec<String>),
}

/// What is remarkable, but no fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// The answer took longer than the platform's client was seen to wait.
    Slow(Duration),
    /// A real order was told the instance of its trial.
    TrialForReal,
    /// Something was done to an instance that nobody made.
    UnknownAccepted,
    /// So many of the copies at once were told to come again.
    ToldToComeAgain(usize),
    /// The dialect has no action that would remove these instances.
    CannotRemove(Vec<String>),
}

/// How long the platform's client was seen to read (`protocol.md` section 1).
const SEEN_PATIENCE: Duration = Duration::from_secs(6);

/// What one request came to.
pub struct Outcome<'a> {
    /// What the caller got.
    pub reply: Result<&'a Reply, &'a CallFailure>,
    /// What the backend behind a gateway of our own answered last, if it was called.
    pub behind: Option<Result<&'a RawReply, &'a CallError>>,
}

/// What it is judged by.
pub struct Measure<'a> {
    /// The contract of the action's replies.
    pub contract: &'a ReplyContract,
    /// Whether the action makes an instance.
    pub creates: bool,
    /// What has to come of it.
    pub expect: Expect,
    /// What is wrong with the request.
    pub forgery: Option<Forgery>,
    /// The instance that the steps before told.
    pub before: Option<&'a str>,
    /// Every instance of other orders.
    pub known: &'a HashSet<String>,
}

/// What is found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Faults.
    pub faults: Vec<Fault>,
    /// Remarks.
    pub notes: Vec<Note>,
    /// The instance that was told, whether or not the reply is in order otherwise.
    pub instance: Option<String>,
    /// Further instances, told to other requests of the same step.
    pub others: Vec<String>,
    /// Whether the platform takes it for a success.
    pub success: bool,
    /// Whether the backend says that it acted, whatever else is wrong with the reply.
    pub acted: bool,
}

impl Measure<'_> {
    /// Judges one reply.
    pub fn judge(&self, outcome: &Outcome<'_>) -> Found {
        let reply = match outcome.reply {
            Ok(reply) => reply,
            Err(_) if self.expect == Expect::Nothing => return Found::default(),
            Err(failure) => return Found { faults: vec![no_reply(failure)], ..Found::default() },
        };
        let (verdict, _) = platform::judge(self.contract, reply, platform::PATIENCE);
        let said = self.contract.judge(&reply.raw.body).ok().filter(|_| reply.raw.status.is_success());
        let instance = match &said {
            Some(Judgement::Success { instance_id }) if self.creates => instance_id.clone(),
            _ => None,
        };
        let acted = matches!(said, Some(Judgement::Success { .. }));
        let mut found = Found { instance, success: verdict == Verdict::Success, acted, ..Found::default() };
        match self.expect {
            Expect::Nothing => {}
            Expect::Refusal => found.faults.extend(self.refusal(reply, said.as_ref())),
            Expect::Answer => match verdict {
                Verdict::Success => found.notes.push(Note::UnknownAccepted),
                Verdict::Refused => {}
                Verdict::Retry => found.faults = faults(self.contract, reply, outcome),
            },
            Expect::Success | Expect::Shared | Expect::Same | Expect::Either => {
                match verdict {
                    Verdict::Success => {}
                    Verdict::Refused => found.faults.push(Fault::Refused),
                    Verdict::Retry => found.faults = faults(self.contract, reply, outcome),
                }
                self.instance(&mut found);
            }
        }
        if self.expect != Expect::Nothing && reply.took > SEEN_PATIENCE {
            found.notes.push(Note::Slow(reply.took));
        }
        found
    }

    /// Judges copies of one order that were sent at once: one instance, and at least one answer. The
    /// platform comes again with the others.
    pub fn judge_copies(&self, outcomes: &[Outcome<'_>]) -> Found {
        let mut all = Found::default();
        let mut again = Vec::new();
        for outcome in outcomes {
            let before = all.instance.as_deref().or(self.before);
            let expect = if all.instance.is_some() { Expect::Same } else { self.expect };
            let mut found = Measure { before, expect, ..*self }.judge(outcome);
            let told = found.instance.take();
            if all.instance.is_some() {
                all.others.extend(told);
            } else {
                all.instance = told;
            }
            all.success |= found.success;
            all.acted |= found.acted;
            all.notes.extend(found.notes);
            let lasts = |fault: &Fault| matches!(fault, Fault::Refused | Fault::SecondInstance | Fault::InstanceReused);
            let (last, over): (Vec<_>, Vec<_>) = found.faults.into_iter().partition(lasts);
            all.faults.extend(last);
            again.push(over);
        }
        let count = again.iter().filter(|faults| !faults.is_empty()).count();
        if !all.success {
            all.faults.extend(again.into_iter().flatten());
        } else if count > 0 {
            all.notes.push(Note::ToldToComeAgain(count));
        }
        all.faults.dedup();
        all
    }

    /// Judges different orders that were sent at once: each by itself, and no instance twice.
    pub fn judge_crowd(&self, outcomes: &[Outcome<'_>]) -> Found {
        let mut all = Found::default();
        let mut known = self.known.clone();
        for outcome in outcomes {
            let found = Measure { known: &known, ..*self }.judge(outcome);
            all.success |= found.success;
            all.acted |= found.acted;
            all.faults.extend(found.faults);
            all.notes.extend(found.notes);
            known.extend(found.instance.clone());
            all.others.extend(found.instance);
        }
        all
    }

    /// What is wrong with the instance that a success names.
    fn instance(&self, found: &mut Found) {
        let Some(instance) = &found.instance else { return };
        let is_before = self.before == Some(instance);
        match self.expect {
            Expect::Same if is_before => {}
            Expect::Same if self.before.is_some() => found.faults.push(Fault::SecondInstance),
            Expect::Either if is_before => found.notes.push(Note::TrialForReal),
            _ if self.known.contains(instance) => found.faults.push(Fault::InstanceReused),
            _ => {}
        }
    }

    fn refusal(&self, reply: &Reply, said: Option<&Judgement>) -> Option<Fault> {
        let status = reply.raw.status;
        let refused = !status.is_success() || said == Some(&Judgement::Refusal);
        match (refused, self.forgery) {
            (false, Some(forgery)) => Some(Fault::Accepted(forgery)),
            _ if status.is_server_error() => Some(Fault::Crashed(status.as_u16())),
            _ => None,
        }
    }
}

/// What the platform finds wrong with a reply that is none. Behind a gateway of our own, what the
/// gateway found wrong with the backend's.
fn faults(contract: &ReplyContract, reply: &Reply, outcome: &Outcome<'_>) -> Vec<Fault> {
    match outcome.behind {
        Some(Ok(raw)) => {
            if let Some(fault) = behind(contract, raw) {
                return vec![fault];
            }
        }
        Some(Err(CallError::Unreachable(cause))) => return vec![Fault::Unreachable(cause.clone())],
        Some(Err(CallError::Broken(cause))) => return vec![Fault::Broken(cause.clone())],
        Some(Err(CallError::TimedOut)) => return vec![Fault::TimedOut],
        None => {}
    }
    let status = reply.raw.status.as_u16();
    match status {
        200 => {}
        401 | 403 => return vec![Fault::Unauthorized(status)],
        // Whatever an error page holds is not the matter.
        _ => return vec![Fault::Status(status)],
    }
    let mut faults = Vec::new();
    let (_, checks) = platform::judge(contract, reply, platform::PATIENCE);
    for check in checks.iter().filter(|check| !check.passed) {
        match check.what {
            "content type" => faults.push(Fault::ContentType(content_type(&reply.raw))),
            "body" => faults.extend(contract.judge(&reply.raw.body).err().map(Fault::Body)),
            "time" => faults.push(Fault::Late(reply.took)),
            _ => {}
        }
    }
    faults
}

/// Why our gateway does not pass a reply on.
fn behind(contract: &ReplyContract, raw: &RawReply) -> Option<Fault> {
    let Delivery { answer, .. } = validate::validate(contract, raw.clone());
    match answer {
        Err(Rejection::BackendError { status }) => Some(Fault::Status(status)),
        // A refusal is passed on with any 4xx; what is none is an error page.
        Err(Rejection::BackendContract(_)) if raw.status.is_client_error() => Some(Fault::Status(raw.status.as_u16())),
        Err(Rejection::BackendContract(violation)) => Some(match &*violation.rule {
            "content_type" => Fault::ContentType(content_type(raw)),
            "redirect" | "status" => Fault::Status(raw.status.as_u16()),
            _ => Fault::Body(violation),
        }),
        _ => None,
    }
}

fn content_type(raw: &RawReply) -> Option<String> {
    raw.content_type.as_ref().map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}

fn no_reply(failure: &CallFailure) -> Fault {
    match failure {
        CallFailure::Url(cause) | CallFailure::Call(CallError::Unreachable(cause)) => Fault::Unreachable(cause.clone()),
        CallFailure::Call(CallError::Broken(cause)) => Fault::Broken(cause.clone()),
        CallFailure::Call(CallError::TimedOut) => Fault::TimedOut,
    }
}

#[cfg(test)]
mod tests;
