//! What may become of a delivery: the claim/record state machine.
//!
//! Pure: an entry and an event in, a decision and the changed entry out. Every store reads what
//! is known, asks here, and writes what comes back, atomically. The promises of `design.md`,
//! "Delivery guarantee", hold because of what this file does *not* do: nothing leads from
//! [`State::Done`] anywhere else, and nothing but a claim makes an attempt.
//!
//! ```text
//!            claim                confirmed
//!   (none) ────────► Running ─────────────────► Done
//!                     ▲   │ refused, failed
//!               claim │   ├────────────► Open ──┐
//!                     │   │ unconfirmed, lease  │ claim
//!                     │   └────────────► Unconfirmed (claim, unless held)
//!                     └─────────────────────────┘
//!   operator: Open, Unconfirmed, Closed ──► Open (retry), Done, Closed (failed)
//!   a late confirmation: anything but Done ──► Done
//! ```
//!
//! The platform is told how it ended in `Done` and in `Closed`. Whoever leaves `Closed` has it told
//! anew: what it was told, a final no, is not how it ends.

use std::sync::Arc;

use jiff::Timestamp;

use super::entry::{
    Ask, Attempt, AttemptOutcome, Confirmation, End, Ended, Ending, Entry, LEASE_LOST, Lifecycle, OperatorDecision,
    Reason, Sealed, State,
};
use super::key::DeliveryKey;

/// What a claim comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Call the backend: this is the entry's latest attempt.
    Forward,
    /// Answer with the recorded reply.
    Replay,
    /// Wait for the latest attempt, which runs.
    Join,
    /// The same key with other content.
    Conflict,
    /// It may have been executed, and the operator wants to decide.
    Hold,
    /// The operator said that it failed.
    Refuse,
}

/// A claim's result.
#[derive(Clone, Debug)]
pub struct Claimed {
    /// What to do.
    pub decision: Decision,
    /// The entry as it is now. Shared: a store may remember what it has just written.
    pub entry: Arc<Entry>,
}

/// What a store has to write, in one transaction. All of it or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Whether the entry has to be written.
    pub entry: bool,
    /// An attempt that is not the latest (any more): insert it into the history, or replace it.
    pub history: Option<Attempt>,
    /// What becomes of the cycle of the request's instance.
    pub cycle: CycleChange,
    /// An instance id that belongs to the entry's order from now on.
    pub instance: Option<Arc<str>>,
    /// Another key that leads to the entry from now on: that of a copy without an order number,
    /// so that its byte-identical replay is known as well.
    pub alias: Option<DeliveryKey>,
    /// Whether the entry is no longer what the platform may have been told: it is unanswered again,
    /// and gives way ([`Entry::give_way`]) if another unanswered one has its lookalike by now.
    pub unanswered: bool,
}

/// What becomes of an instance's cycle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CycleChange {
    /// Nothing.
    #[default]
    None,
    /// It was used: keep it as long as what refers to it.
    Touch,
    /// One more.
    Raise,
}

/// What a claim leads to.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "lives for a moment, and nearly always is the large one")]
pub enum Step {
    /// This.
    Decided(Claimed, Change),
    /// The recorded end of this cycle is too old to be replayed: raise the instance's cycle by
    /// one if it still is the one that was looked at, then look again.
    NextCycle,
}

/// A copy of an order came. `known` is the entry at `key`, or else the one that `key` is an alias
/// of, or else the latest unanswered one with the same lookalike; `lapsed` whether the process that
/// made its latest attempt has lost its lease. `ask.now` is the store's time.
pub fn claim(known: Option<Entry>, lapsed: bool, ask: &Ask, key: DeliveryKey, cycle: u32) -> Step {
    let Some(mut entry) = known else {
        let change = Change { entry: true, cycle: forwarded(ask), ..Change::default() };
        let entry = Arc::new(first(ask, key, cycle));
        return Step::Decided(Claimed { decision: Decision::Forward, entry }, change);
    };
    let alias = (entry.key != key).then_some(key);
    let keep = |decision, entry| {
        let entry = Arc::new(entry);
        Step::Decided(Claimed { decision, entry }, Change { alias, ..Change::default() })
    };
    if entry.subject.fingerprint != ask.subject.fingerprint {
        return keep(Decision::Conflict, entry);
    }
    let lost = entry.state == State::Running && lapsed;
    if lost {
        lose(&mut entry, LEASE_LOST, ask.now);
    }
    match entry.state {
        // Asked again, because whoever asks did not hear that the claim was recorded.
        State::Running if entry.latest.claimant == ask.claimant => keep(Decision::Forward, entry),
        State::Running => keep(Decision::Join, entry),
        State::Done => match ask.lifecycle {
            // Without an instance there is no cycle to raise.
            Lifecycle::Ends { replay_for }
                if ask.subject.instance_id.is_some() && is_older(&entry, replay_for, ask.now) =>
            {
                Step::NextCycle
            }
            _ => keep(Decision::Replay, entry),
        },
        State::Closed => keep(Decision::Refuse, entry),
        State::Unconfirmed if ask.hold => {
            let change = Change { entry: lost, alias, ..Change::default() };
            Step::Decided(Claimed { decision: Decision::Hold, entry: Arc::new(entry) }, change)
        }
        State::Open | State::Unconfirmed => {
            let next = Attempt {
                number: entry.latest.number.saturating_add(1),
                claimant: ask.claimant.clone(),
                request_id: ask.request_id.clone(),
                began_at: ask.now,
                ended_at: None,
                ended: None,
            };
            entry.doubt |= entry.state == State::Unconfirmed;
            entry.state = State::Running;
            entry.changed_at = ask.now;
            let change = Change {
                entry: true,
                history: Some(std::mem::replace(&mut entry.latest, next)),
                cycle: forwarded(ask),
                alias,
                ..Change::default()
            };
            Step::Decided(Claimed { decision: Decision::Forward, entry: Arc::new(entry) }, change)
        }
    }
}

/// What recording the end of an attempt comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finished {
    /// It stands as it was told.
    Recorded,
    /// Another attempt was confirmed before, and that confirmation is the answer.
    AlreadyDone,
    /// The same, and this attempt named another instance: the backend may have done it twice.
    Duplicate,
    /// The confirmed instance id belongs to another order: recorded as unconfirmed.
    InstanceReused,
}

/// The rule that a reply breaks when it names an instance of another order.
pub const INSTANCE_REUSED: &str = "instance_id_reused";

/// An attempt ended. `known` is the entry, `earlier` the attempt that ended if it is in the
/// history and not the latest, `taken` whether the confirmed instance id belongs to another
/// order of the app.
pub fn finish(
    known: Option<Arc<Entry>>,
    earlier: Option<Attempt>,
    taken: bool,
    end: &End,
) -> (Finished, Arc<Entry>, Change) {
    let mut shared = known.unwrap_or_else(|| {
        // Lost with the store's last moments, or removed. What the backend confirmed is not
        // lost with it.
        let mut entry = first(&end.ask, end.key, end.cycle);
        entry.latest.number = end.attempt;
        entry.latest.began_at = end.began_at;
        Arc::new(entry)
    });
    // Nearly always nobody else has it any more.
    let entry = Arc::make_mut(&mut shared);
    let (outcome, reason, instance_id) = match &end.ending {
        Ending::Confirmed { instance_id: Some(id), .. } if taken && end.ask.instance_must_be_new => {
            let reason = Reason {
                code: "backend_contract".into(),
                rule: Some(INSTANCE_REUSED.into()),
                detail: Some("the instance id belongs to another order of this app".into()),
            };
            (AttemptOutcome::Unconfirmed, Some(reason), Some(id))
        }
        Ending::Confirmed { instance_id, .. } if entry.state == State::Done => {
            let same = confirmed_instance(entry) == instance_id.as_ref();
            let outcome = if same { AttemptOutcome::Confirmed } else { AttemptOutcome::Duplicate };
            (outcome, None, instance_id.as_ref())
        }
        Ending::Confirmed { instance_id, .. } => (AttemptOutcome::Confirmed, None, instance_id.as_ref()),
        Ending::Refused { .. } => (AttemptOutcome::Refused, None, None),
        Ending::Failed(reason) => (AttemptOutcome::Failed, Some(reason.clone()), None),
        Ending::Unconfirmed(reason) => (AttemptOutcome::Unconfirmed, Some(reason.clone()), None),
    };
    let reused = outcome == AttemptOutcome::Unconfirmed && matches!(end.ending, Ending::Confirmed { .. });
    let ended = Ended {
        outcome,
        code: reason.as_ref().map(|reason| reason.code.clone()),
        rule: reason.as_ref().and_then(|reason| reason.rule.clone()),
        detail: reason.and_then(|reason| reason.detail),
        instance_id: instance_id.cloned(),
    };

    // A store that has lost its last moments may have given the same number away again.
    let is_latest = entry.latest.number == end.attempt && entry.latest.claimant == end.ask.claimant;
    let is_unknown = !is_latest && earlier.is_none();
    let recorded = if is_latest { Some(&entry.latest) } else { earlier.as_ref() };
    if recorded.is_some_and(|attempt| attempt.ended.as_ref() == Some(&ended)) {
        // Told again, because whoever tells did not hear that it was recorded. What has become of
        // the delivery since then (the operator's decision, say) stays.
        let finished = match (entry.state, &end.ending) {
            (State::Done, _) if outcome == AttemptOutcome::Duplicate => Finished::Duplicate,
            (State::Done, Ending::Confirmed { reply, .. }) if entry.reply.as_ref() == Some(reply) => Finished::Recorded,
            (State::Done, _) => Finished::AlreadyDone,
            _ if reused => Finished::InstanceReused,
            _ => Finished::Recorded,
        };
        return (finished, shared, Change::default());
    }
    let is_known = is_latest && entry.latest.ended.as_ref().is_some_and(is_confirmed);
    if is_known && entry.state == State::Done && !matches!(end.ending, Ending::Confirmed { .. }) {
        // The end of the process came to it a moment too late, and says less than is known.
        return (Finished::AlreadyDone, shared, Change::default());
    }
    let mut change = Change { entry: true, ..Change::default() };
    let retried = entry.state == State::Open
        && entry.latest.ended.as_ref().is_some_and(|ended| ended.outcome == AttemptOutcome::Unconfirmed);
    if is_latest {
        entry.latest.ended_at = Some(end.now);
        entry.latest.ended = Some(ended);
    } else if entry.latest.number != end.attempt {
        let attempt = earlier.unwrap_or_else(|| Attempt {
            number: end.attempt,
            claimant: end.ask.claimant.clone(),
            request_id: end.ask.request_id.clone(),
            began_at: end.began_at,
            ended_at: None,
            ended: None,
        });
        change.history = Some(Attempt { ended_at: Some(end.now), ended: Some(ended), ..attempt });
    }
    entry.changed_at = end.now;

    if entry.state == State::Done {
        // Whatever this attempt says: what is recorded is the answer.
        if outcome == AttemptOutcome::Duplicate && end.ask.instance_must_be_new {
            change.instance = instance_id.cloned();
        }
        let duplicate = outcome == AttemptOutcome::Duplicate;
        return (if duplicate { Finished::Duplicate } else { Finished::AlreadyDone }, shared, change);
    }
    match &end.ending {
        Ending::Confirmed { instance_id, reply } if !reused => {
            change.unanswered = leave_closed(entry);
            entry.state = State::Done;
            entry.doubt = false;
            entry.confirmation = Some(Confirmation { at: end.now, instance_id: instance_id.clone() });
            entry.reply = Some(reply.clone());
            if end.ask.instance_must_be_new {
                change.instance.clone_from(instance_id);
            }
        }
        // Nothing undoes a decision of the operator but a confirmation.
        _ if entry.state == State::Closed => {}
        // Nobody took it into account when the latest one was claimed.
        _ if is_unknown && outcome == AttemptOutcome::Unconfirmed => match entry.state {
            State::Open => entry.state = State::Unconfirmed,
            _ => entry.doubt = true,
        },
        // An earlier attempt's end says nothing of the latest.
        _ if !is_latest => {}
        Ending::Refused { reply } => {
            entry.state = State::Open;
            entry.doubt = false;
            entry.reply = Some(reply.clone());
        }
        Ending::Failed(_) => entry.state = if entry.doubt { State::Unconfirmed } else { State::Open },
        // The operator knew that when they decided that it is forwarded again.
        Ending::Confirmed { .. } | Ending::Unconfirmed(_) if retried => {}
        Ending::Confirmed { .. } | Ending::Unconfirmed(_) => entry.state = State::Unconfirmed,
    }
    (if reused { Finished::InstanceReused } else { Finished::Recorded }, shared, change)
}

/// The process of the latest attempt is gone, or was silent for longer than its lease: the
/// attempt may have been executed.
pub fn lose(entry: &mut Entry, code: &'static str, now: Timestamp) {
    entry.state = State::Unconfirmed;
    entry.changed_at = now;
    entry.latest.ended_at = Some(now);
    entry.latest.ended = Some(Ended {
        outcome: AttemptOutcome::Unconfirmed,
        code: Some(code.into()),
        rule: None,
        detail: None,
        instance_id: None,
    });
}

/// What an operator decides about a delivery.
#[derive(Clone, Debug)]
pub enum Resolution {
    /// Forward the next copy, although it may have been executed.
    Retry,
    /// It was executed: this is its reply.
    Done {
        /// The instance id that the reply names.
        instance_id: Option<Arc<str>>,
        /// The reply.
        reply: Sealed,
        /// Whether the recorded reply can no longer be opened, so that nothing is overwritten.
        lost_reply: bool,
    },
    /// It failed for good: refuse every copy with this message.
    Failed {
        /// What the platform is told.
        message: String,
    },
    /// It is done, and the platform was told of it by other means.
    Settled,
}

/// A decision, and whose it is.
#[derive(Clone, Debug)]
pub struct Ruling {
    /// The decision.
    pub resolution: Resolution,
    /// Who decides, as they call themselves.
    pub by: Option<String>,
    /// Why.
    pub why: Option<String>,
}

/// One that nobody put a name to.
impl From<Resolution> for Ruling {
    fn from(resolution: Resolution) -> Self {
        Self { resolution, by: None, why: None }
    }
}

/// Why the operator cannot decide that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unresolvable {
    /// An attempt runs.
    Running,
    /// The backend's confirmation is recorded.
    Done,
    /// Nothing is recorded that could be settled.
    NotDone,
    /// The instance id belongs to another order.
    InstanceReused,
}

/// The operator decides. `lapsed` and `taken` as in [`claim`] and [`finish`].
///
/// # Errors
/// See [`Unresolvable`].
pub fn resolve(
    mut entry: Entry,
    lapsed: bool,
    taken: bool,
    ruling: &Ruling,
    now: Timestamp,
) -> Result<(Entry, Change), Unresolvable> {
    let Ruling { resolution, by, why } = ruling;
    let mut change = Change { entry: true, ..Change::default() };
    match (entry.state, resolution) {
        (State::Running, Resolution::Settled) => return Err(Unresolvable::NotDone),
        (State::Running, _) if lapsed => lose(&mut entry, LEASE_LOST, now),
        (State::Running, _) => return Err(Unresolvable::Running),
        (State::Done, Resolution::Done { lost_reply: true, instance_id, .. })
            if confirmed_instance(&entry).is_none_or(|known| Some(known) == instance_id.as_ref()) => {}
        (State::Done, Resolution::Settled) => {}
        (State::Done, _) => return Err(Unresolvable::Done),
        (_, Resolution::Settled) => return Err(Unresolvable::NotDone),
        _ => {}
    }
    let (what, message) = match resolution {
        Resolution::Retry => {
            change.unanswered = leave_closed(&mut entry);
            entry.state = State::Open;
            entry.doubt = false;
            ("retry", None)
        }
        Resolution::Done { instance_id, reply, .. } => {
            if taken {
                return Err(Unresolvable::InstanceReused);
            }
            change.unanswered = leave_closed(&mut entry);
            entry.state = State::Done;
            entry.doubt = false;
            // A confirmation that is recorded stays; just the words of a lost reply are new.
            if confirmed_instance(&entry).is_none() {
                let at = entry.confirmation.map_or(now, |known| known.at);
                entry.confirmation = Some(Confirmation { at, instance_id: instance_id.clone() });
            }
            entry.reply = Some(reply.clone());
            change.instance.clone_from(instance_id);
            ("done", None)
        }
        Resolution::Failed { message } => {
            entry.state = State::Closed;
            ("failed", Some(message.clone()))
        }
        Resolution::Settled => {
            entry.answered_at.get_or_insert(now);
            ("settled", None)
        }
    };
    entry.changed_at = now;
    let (by, why) = (by.clone(), why.clone());
    entry.decision = Some(OperatorDecision { what: what.to_owned(), at: now, message, by, why });
    Ok((entry, change))
}

/// What the operator had closed goes on, or is done after all: a no that the platform was told is
/// not how it ends. Says whether it was closed.
fn leave_closed(entry: &mut Entry) -> bool {
    let was_closed = entry.state == State::Closed;
    if was_closed {
        entry.answered_at = None;
    }
    was_closed
}

/// A new entry whose first attempt runs.
fn first(ask: &Ask, key: DeliveryKey, cycle: u32) -> Entry {
    Entry {
        key,
        cycle,
        subject: Arc::clone(&ask.subject),
        received_at: ask.now,
        changed_at: ask.now,
        state: State::Running,
        doubt: false,
        latest: Attempt {
            number: 1,
            claimant: ask.claimant.clone(),
            request_id: ask.request_id.clone(),
            began_at: ask.now,
            ended_at: None,
            ended: None,
        },
        confirmation: None,
        reply: None,
        answered_at: None,
        decision: None,
    }
}

/// What forwarding does to the instance's cycle: a renewal begins a new one, whatever comes of it.
fn forwarded(ask: &Ask) -> CycleChange {
    match ask.lifecycle {
        Lifecycle::None => CycleChange::None,
        Lifecycle::Ends { .. } => CycleChange::Touch,
        Lifecycle::Revives => CycleChange::Raise,
    }
}

fn is_confirmed(ended: &Ended) -> bool {
    ended.outcome == AttemptOutcome::Confirmed
}

fn confirmed_instance(entry: &Entry) -> Option<&Arc<str>> {
    entry.confirmation.as_ref().and_then(|confirmation| confirmation.instance_id.as_ref())
}

fn is_older(entry: &Entry, than: jiff::SignedDuration, now: Timestamp) -> bool {
    entry.confirmation.as_ref().is_some_and(|confirmation| now.duration_since(confirmation.at) > than)
}

#[cfg(test)]
mod tests;
