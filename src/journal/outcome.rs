//! Between the two languages: how an attempt ended, as the gateway says it and as the journal
//! records it. Pure.

use std::sync::Arc;

use super::entry::{AttemptOutcome, Ended, Entry, Reason, State};
use crate::delivery::Delivery;
use crate::dialect::reply::Violation;
use crate::rejection::Rejection;

/// What a copy that joined attempt `number` is told, as far as the entry knows.
#[derive(Debug)]
pub enum Joined {
    /// The recorded confirmation.
    Confirmed,
    /// The recorded refusal.
    Refused,
    /// It ended without a reply.
    Ended(Delivery),
    /// It runs.
    Running,
}

/// See [`Joined`]. A waiter never starts another attempt: one that was lost or superseded ends
/// its waiting, too.
pub fn joined(entry: &Entry, number: u32) -> Joined {
    let in_progress = || Joined::Ended(Delivery::unconfirmed(Rejection::DeliveryInProgress));
    if entry.state == State::Done {
        return Joined::Confirmed;
    }
    if entry.latest.number != number {
        return in_progress();
    }
    match &entry.latest.ended {
        None if entry.state == State::Running => Joined::Running,
        None => in_progress(),
        Some(Ended { outcome: AttemptOutcome::Refused, .. }) => Joined::Refused,
        Some(ended) => match (ended.outcome, rejection(ended)) {
            (_, None) => in_progress(),
            (AttemptOutcome::Failed, Some(rejection)) => Joined::Ended(Delivery::failed(rejection)),
            (_, Some(rejection)) => Joined::Ended(Delivery::unconfirmed(rejection)),
        },
    }
}

/// Why an attempt brought no reply, to be recorded.
pub fn reason(rejection: &Rejection) -> Reason {
    let rule = match rejection {
        Rejection::BackendContract(violation) => Some(violation.rule.to_string()),
        _ => None,
    };
    Reason { code: rejection.code().into(), rule, detail: rejection.cause().map(std::borrow::Cow::into_owned) }
}

/// The recorded reason, as the rejection that it was; `None` where there was none, as after a
/// crash.
fn rejection(ended: &Ended) -> Option<Rejection> {
    let cause = || Arc::from(ended.detail.as_deref().unwrap_or_default());
    Some(match ended.code.as_deref()? {
        "backend_unreachable" => Rejection::BackendUnreachable { cause: cause() },
        "backend_broken_reply" => Rejection::BackendBrokenReply { cause: cause() },
        "backend_timeout" => Rejection::BackendTimeout,
        "backend_contract" => {
            let rule = ended.rule.as_deref().unwrap_or("unknown");
            Rejection::BackendContract(Violation::new(rule, ended.detail.clone().unwrap_or_default()))
        }
        "backend_error" => {
            let status = ended.detail.as_deref().and_then(|detail| detail.rsplit(' ').next()?.parse().ok());
            Rejection::BackendError { status: status.unwrap_or(500) }
        }
        "internal" => Rejection::Internal,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::entry::AttemptOutcome;

    #[test]
    fn what_is_recorded_is_the_rejection_that_it_was() {
        let all = [
            Rejection::BackendUnreachable { cause: "connection refused".into() },
            Rejection::BackendBrokenReply { cause: "it broke off".into() },
            Rejection::BackendTimeout,
            Rejection::BackendContract(Violation::new("success_type", "`success` must be true or false")),
            Rejection::BackendError { status: 503 },
            Rejection::Internal,
        ];
        for expected in all {
            let Reason { code, rule, detail } = reason(&expected);
            let outcome = AttemptOutcome::Failed;
            let ended = Ended { outcome, code: Some(code), rule, detail, instance_id: None };
            assert_eq!(rejection(&ended), Some(expected));
        }
    }
}
