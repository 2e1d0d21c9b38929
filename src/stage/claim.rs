//! Seventh stop and eleventh: claim the delivery in the journal, and record how it ended.
//!
//! The first copy of an order claims it, and its attempt runs apart from the caller (`detach.rs`):
//! whoever hangs up or runs into a deadline, the call to the backend goes on and its result is
//! recorded.
//! Later copies wait for it, here or from another process, and never start another attempt.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;
use tracing::field::debug;

use crate::delivery::{Delivery, Outcome};
use crate::detach::DetachOnDrop;
use crate::dialect::Dialect;
use crate::dialect::reply::{ReplyContract, Violation};
use crate::journal::entry::{Ask, Entry, Reason, State};
use crate::journal::key::DeliveryKey;
use crate::journal::machine::{Claimed, Decision, Finished, INSTANCE_REUSED};
use crate::journal::outcome::{self, Joined};
use crate::journal::running::{Outlet, Running, RunningClaim, Ticket};
use crate::journal::store::Unavailable;
use crate::journal::{Journal, Outgoing, Receipt};
use crate::metrics::Metrics;
use crate::places::Place;
use crate::rejection::Rejection;
use crate::telemetry::spans;

/// The deliveries of this process: their claims, and the tasks that run them.
#[derive(Clone)]
pub struct Deliveries {
    journal: Arc<Journal>,
    metrics: Arc<Metrics>,
    running: Running,
    tasks: TaskTracker,
}

/// One copy of an order: what it asks for, and until when it waits.
#[derive(Debug)]
pub struct Order {
    /// What is to be delivered.
    pub ask: Arc<Ask>,
    /// The app's dialect.
    pub dialect: Arc<Dialect>,
    /// Position of the action in the dialect.
    pub action: usize,
    /// When the platform is answered at the latest.
    pub deadline: Instant,
    /// What is held until the copy is answered and the end of its attempt is recorded: replies that
    /// cannot be recorded must not pile up.
    pub slot: Place,
}

impl Order {
    fn contract(&self) -> &ReplyContract {
        &self.dialect.actions[self.action].reply
    }
}

/// What an attempt needs to know of its claim.
#[derive(Clone, Debug)]
pub struct Go {
    /// The attempt's number, from 1.
    pub number: u32,
    /// The delivery's `Idempotency-Key`.
    pub idempotency_key: String,
}

/// How long the end of the process waits until what still runs is recorded as unconfirmed.
const ABANDON_WITHIN: Duration = Duration::from_secs(3);

/// How long to wait before an end that could not be recorded is tried again: at first, at most.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What the claim tells the caller, once.
enum Told {
    /// The answer: of the caller's own attempt, or without one.
    Answer(Delivery),
    /// Somebody else's attempt runs, and the order is the caller's again.
    Join(Arc<Entry>, Order),
}

/// A caller that waits for its answer. It is there for as long as the caller is, so its claim
/// only points to it.
#[derive(Default)]
struct Caller {
    told: Mutex<Option<Told>>,
    /// The caller's own attempt, from before anything is forwarded.
    attempt: OnceLock<(DeliveryKey, u32)>,
}

impl Caller {
    /// Gives back what there is nobody to tell of any more.
    fn tell(caller: &Weak<Self>, told: Told) -> Option<Told> {
        let Some(caller) = caller.upgrade() else { return Some(told) };
        *caller.told.lock().unwrap_or_else(PoisonError::into_inner) = Some(told);
        None
    }

    fn told(&self) -> Option<Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Listens to a claim, and runs it meanwhile; so nobody has to be woken by what it tells.
struct Listening<C: Future<Output = ()> + Send + Unpin + 'static> {
    /// Before the claim, which goes on elsewhere when it is dropped, and must not tell somebody who
    /// is about to go.
    caller: Arc<Caller>,
    claim: DetachOnDrop<C>,
}

impl<C: Future<Output = ()> + Send + Unpin + 'static> Future for Listening<C> {
    /// Nothing if it has ended and told nothing.
    type Output = Option<Told>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Told>> {
        let ended = self.claim.poll_unpin(context);
        match self.caller.told() {
            None if ended.is_pending() => Poll::Pending,
            // Whether it has ended or not: what counts is what it tells.
            told => Poll::Ready(told),
        }
    }
}

impl Deliveries {
    /// Deliveries that are recorded in `journal`.
    pub fn new(journal: Arc<Journal>, metrics: Arc<Metrics>) -> Self {
        Self { journal, metrics, running: Running::default(), tasks: TaskTracker::new() }
    }

    /// The journal.
    pub fn journal(&self) -> &Arc<Journal> {
        &self.journal
    }

    /// Claims a delivery and runs `attempt` if it is this copy's to run; else replays what is
    /// recorded, or waits for the attempt that runs, until `deadline`. `unheard` learns of an
    /// attempt that ended when nobody waited any more.
    ///
    /// # Errors
    /// `order_conflict`, `journal_unavailable`, and `shutting_down` when nobody would wait for
    /// this one's end.
    pub fn once<F>(
        &self,
        order: Order,
        attempt: impl FnOnce(Go) -> F + Send + 'static,
        unheard: impl FnOnce(&Ask, &Delivery) + Send + 'static,
    ) -> impl Future<Output = Result<Delivery, Rejection>> + Send
    where
        F: Future<Output = Delivery> + Send + 'static,
    {
        let deadline = order.deadline;
        let span = spans::delivery(&order.ask.request_id);
        let caller = Arc::<Caller>::default();
        // In a box, and made before it is waited for: what a delivery waits in is large, is moved if
        // the caller goes away, and would be a part of every request's future.
        let claim = Box::pin(self.clone().claim(order, attempt, Arc::downgrade(&caller), unheard));
        async move {
            if self.tasks.is_closed() {
                return Err(Rejection::ShuttingDown);
            }
            // A claim that is made must be followed through, so not even the asking may be dropped.
            let claim = DetachOnDrop::new(claim.instrument(span), &self.tasks);
            let mut listening = Listening { caller, claim };
            match timeout_at(deadline, &mut listening).await {
                Ok(Some(Told::Answer(delivery))) => Ok(delivery),
                // Rare, and too large to make room for in every request.
                Ok(Some(Told::Join(entry, order))) => Ok(Box::pin(self.joined(entry, order)).await),
                Ok(None) => Err(Rejection::Internal),
                Err(_) => match listening.caller.attempt.get() {
                    Some(&id) => {
                        Ok(Delivery { recorded: Some(id), ..Delivery::unconfirmed(Rejection::BackendTimeout) })
                    }
                    None => Err(too_late()),
                },
            }
        }
    }

    /// Asks the journal, and does what it says.
    async fn claim<F>(
        self,
        order: Order,
        attempt: impl FnOnce(Go) -> F,
        caller: Weak<Caller>,
        unheard: impl FnOnce(&Ask, &Delivery),
    ) where
        F: Future<Output = Delivery>,
    {
        let span = spans::claim();
        let claimed = self.journal.claim(Arc::clone(&order.ask)).instrument(span.clone()).await;
        if let Ok(claimed) = &claimed {
            span.record("spigate.decision", debug(claimed.decision));
            notice_extras(&order.ask, &claimed.entry);
        }
        drop(span);
        let entry = match claimed {
            Ok(Claimed { decision: Decision::Forward, entry }) => entry,
            other => {
                let told = self.told(other, order).await;
                // A caller that is gone needs no answer.
                let _ = Caller::tell(&caller, told);
                return;
            }
        };
        let id = (entry.key, entry.latest.number);
        let ticket = self.running.begin(RunningClaim {
            ask: Arc::clone(&order.ask),
            key: entry.key,
            cycle: entry.cycle,
            number: entry.latest.number,
            began_at: entry.latest.began_at,
        });
        // The store changes what it remembers in place if nobody else has it.
        drop(entry);
        // Before the time is looked at: a caller that finds nothing here at its deadline says that
        // nothing is forwarded.
        if let Some(caller) = caller.upgrade() {
            let _ = caller.attempt.set(id);
        }
        let mut caller = Some(caller);
        let delivery = if Instant::now() >= order.deadline {
            Delivery::failed(too_late())
        } else {
            let go = Go { number: id.1, idempotency_key: id.0.idempotency_key() };
            // A bug in the attempt must not leave a claim behind that nobody ends.
            let attempt = std::panic::AssertUnwindSafe(attempt(go)).catch_unwind();
            attempt.await.unwrap_or_else(|_| Delivery::unconfirmed(Rejection::Internal))
        };
        let delivery = Delivery { recorded: Some(id), ..delivery };
        let is_late = Instant::now() >= order.deadline;
        let delivery = self.record(&ticket, delivery, order.contract(), &mut caller).await;
        self.count(&order.ask, delivery.outcome.as_str());
        if is_late && delivery.outcome == Outcome::Delivered {
            self.count(&order.ask, "late");
        }
        let copies_heard = ticket.finish(&delivery);
        let unsaid = match caller {
            Some(caller) => Caller::tell(&caller, Told::Answer(delivery)),
            None => Some(Told::Answer(delivery)),
        };
        if let (Some(Told::Answer(delivery)), false) = (unsaid, copies_heard) {
            unheard(&order.ask, &delivery);
        }
    }

    /// What a caller is told for whom nothing is forwarded.
    async fn told(&self, claimed: Result<Claimed, Unavailable>, order: Order) -> Told {
        let Claimed { decision, entry } = match claimed {
            Ok(claimed) => claimed,
            Err(cause) => {
                self.count(&order.ask, "rejected");
                return Told::Answer(Delivery::rejected(unavailable(&cause)));
            }
        };
        let (outcome, delivery) = match decision {
            Decision::Forward | Decision::Join => return Told::Join(entry, order),
            Decision::Replay => ("replayed", self.replay(&entry, order.contract(), Outcome::Replayed).await),
            Decision::Conflict => ("conflict", Delivery::rejected(Rejection::OrderConflict)),
            Decision::Hold => ("held", Delivery::unconfirmed(Rejection::DeliveryHeld)),
            // Once the platform knows, what looks like it is another purchase.
            Decision::Refuse => ("refused", Delivery { receipt: self.receipt(&entry), ..refusal(&entry) }),
        };
        self.count(&order.ask, outcome);
        Told::Answer(recorded(&entry, delivery))
    }

    /// Waits for somebody else's attempt until the copy has to be answered.
    async fn joined(&self, entry: Arc<Entry>, order: Order) -> Delivery {
        let joined = timeout_at(order.deadline, self.join(&entry, order.contract())).await;
        let delivery = joined.unwrap_or_else(|_| in_progress());
        self.count(&order.ask, "joined");
        Delivery { outcome: Outcome::Joined, ..recorded(&entry, delivery) }
    }

    /// Records how an attempt ended, however long that takes, and says what it comes to.
    ///
    /// Those who wait are told at once when it cannot be recorded: 503 instead of a success that
    /// might be forgotten, anything else as it is.
    async fn record(
        &self,
        ticket: &Ticket,
        delivery: Delivery,
        contract: &ReplyContract,
        caller: &mut Option<Weak<Caller>>,
    ) -> Delivery {
        let end = outgoing(&delivery);
        ticket.ended(end.clone());
        let mut told = false;
        let mut pause = FIRST_PAUSE;
        loop {
            let recorded = match self.journal.health().check() {
                Ok(()) => self.journal.finish(ticket.claim(), &end).await,
                Err(down) => Err(down),
            };
            match recorded {
                Ok((finished, entry)) => return self.finished(finished, &entry, delivery, contract).await,
                Err(cause) => {
                    if !told {
                        told = true;
                        let interim = match end {
                            Outgoing::Confirmed { .. } => {
                                tracing::error!(
                                    app = &*ticket.claim().ask.subject.app,
                                    order_id = ticket.claim().ask.subject.order_id.as_deref(),
                                    %cause,
                                    "a confirmation cannot be recorded: it is kept in memory until it can"
                                );
                                Delivery::unconfirmed(unavailable(&cause))
                            }
                            _ => delivery.clone(),
                        };
                        ticket.hand_out(&interim);
                        if let Some(caller) = caller.take() {
                            // One that is gone needs no answer.
                            let _ = Caller::tell(&caller, Told::Answer(interim));
                        }
                    }
                    // The journal may be well and just this record not: that must not spin.
                    sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    self.journal.health().wellness().await;
                }
            }
        }
    }

    /// What a recorded end means for those who wait.
    async fn finished(
        &self,
        finished: Finished,
        entry: &Entry,
        delivery: Delivery,
        contract: &ReplyContract,
    ) -> Delivery {
        match finished {
            Finished::Recorded if delivery.outcome == Outcome::Delivered => {
                Delivery { receipt: self.receipt(entry), ..delivery }
            }
            Finished::Recorded => delivery,
            Finished::InstanceReused => {
                let detail = "the instance id belongs to another order of this app";
                let violation = Violation::new(INSTANCE_REUSED, detail);
                // The reply kept every rule that can be judged without the journal, so nobody has
                // counted it yet.
                let labels = [&*entry.subject.app, &*entry.subject.action, violation.rule.as_ref()];
                self.metrics.backend_violations.with_label_values(&labels).inc();
                Delivery {
                    backend_time: delivery.backend_time,
                    recorded: delivery.recorded,
                    ..Delivery::unconfirmed(Rejection::BackendContract(violation))
                }
            }
            Finished::AlreadyDone | Finished::Duplicate => {
                if finished == Finished::Duplicate {
                    self.metrics.duplicate_confirmations.with_label_values(&[&*entry.subject.app]).inc();
                    tracing::error!(
                        app = &*entry.subject.app,
                        order_id = entry.subject.order_id.as_deref(),
                        recorded = entry.confirmation.as_ref().and_then(|known| known.instance_id.as_deref()),
                        named = delivery.instance_id,
                        "duplicate_confirmed: a second attempt was confirmed with another instance; the first stays, \
                         and the backend may have made two"
                    );
                }
                let backend_time = delivery.backend_time;
                // Rare, and large: it must not be part of every delivery's future.
                Delivery { backend_time, ..Box::pin(self.replay(entry, contract, Outcome::Replayed)).await }
            }
        }
    }

    /// Waits for an attempt that somebody else made, for as long as that takes.
    async fn join(&self, entry: &Entry, contract: &ReplyContract) -> Delivery {
        let (key, number) = (entry.key, entry.latest.number);
        loop {
            if let Some(outlet) = self.running.outlet(key, number) {
                return result(outlet).await.unwrap_or_else(in_progress);
            }
            match self.journal.look(key).await {
                Err(cause) => return Delivery::unconfirmed(unavailable(&cause)),
                // Gone: it was removed, or the store has lost its last moments.
                Ok(None) => return in_progress(),
                Ok(Some(entry)) => match outcome::joined(&entry, number) {
                    Joined::Confirmed => return self.replay(&entry, contract, Outcome::Joined).await,
                    Joined::Refused => return self.reply_of(&entry, contract, Outcome::Joined).await,
                    Joined::Ended(delivery) => return delivery,
                    Joined::Running => {}
                },
            }
            self.journal.changed(key).await;
        }
    }

    /// The recorded confirmation, as an answer.
    async fn replay(&self, entry: &Entry, contract: &ReplyContract, outcome: Outcome) -> Delivery {
        let delivery = recorded(entry, self.reply_of(entry, contract, outcome).await);
        if delivery.answer.is_err() { delivery } else { Delivery { receipt: self.receipt(entry), ..delivery } }
    }

    async fn reply_of(&self, entry: &Entry, contract: &ReplyContract, outcome: Outcome) -> Delivery {
        let instance_id = entry.confirmation.as_ref().and_then(|confirmation| confirmation.instance_id.as_deref());
        let instance_id = instance_id.map(str::to_owned);
        let Some(sealed) = &entry.reply else {
            if entry.confirmation.is_none() {
                return Delivery::unconfirmed(Rejection::DeliveryInProgress);
            }
            // Retention has removed the reply; that it succeeded, and with which instance, stays.
            let minimal = contract.minimal(instance_id.as_deref());
            return Delivery::answered(outcome, minimal.into(), instance_id);
        };
        match self.journal.open_reply(entry, sealed).await {
            Ok(Some(reply)) => Delivery::answered(outcome, reply, instance_id),
            // Never forwarded again: it is done. Only its words are lost.
            Ok(None) => Delivery::unconfirmed(Rejection::JournalUnavailable {
                cause: "no configured key opens the recorded reply; put the old key back with state = \"retired\", or \
                        give the reply anew with `spigate journal resolve`"
                    .into(),
            }),
            Err(cause) => Delivery::unconfirmed(unavailable(&cause)),
        }
    }

    fn receipt(&self, entry: &Entry) -> Option<Receipt> {
        let is_final = matches!(entry.state, State::Done | State::Closed);
        let is_new = is_final && entry.answered_at.is_none();
        is_new.then(|| Receipt::new(Arc::clone(&self.journal), entry))
    }

    fn count(&self, ask: &Ask, outcome: &str) {
        self.metrics.deliveries.with_label_values(&[&*ask.subject.app, &*ask.subject.action, outcome]).inc();
    }

    /// Waits until no delivery runs any more. Call it when no request can begin one.
    pub async fn drained(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Records what still runs as unconfirmed, because the process ends now; and what has ended
    /// without being recorded yet, as it ended.
    pub async fn abandon(&self) {
        // Whoever comes now would claim what nobody records any more.
        self.tasks.close();
        let claims = self.running.claims();
        // All at once, so that they share what time and flushes of the disk are left.
        let recorded = join_all(claims.iter().map(|(claim, end)| async move {
            let end = end.clone().unwrap_or_else(|| {
                let subject = &*claim.ask.subject;
                tracing::warn!(
                    app = &*subject.app,
                    action = &*subject.action,
                    order_id = subject.order_id.as_deref(),
                    instance_id = subject.instance_id.as_deref(),
                    attempt = claim.number,
                    "a delivery still runs although the process ends: it is unconfirmed now"
                );
                let code = Rejection::ShuttingDown.code().into();
                Outgoing::Unconfirmed(Reason { code, ..Reason::default() })
            });
            // What cannot be recorded now is found unconfirmed at the next start.
            let _ = self.journal.finish(claim, &end).await;
        }));
        let _ = tokio::time::timeout(ABANDON_WITHIN, recorded).await;
    }
}

fn outgoing(delivery: &Delivery) -> Outgoing {
    let reason = |rejection: &Rejection| outcome::reason(rejection);
    match (&delivery.answer, delivery.outcome) {
        (Ok(reply), Outcome::Refused) => Outgoing::Refused { reply: reply.clone() },
        (Ok(reply), _) => {
            Outgoing::Confirmed { instance_id: delivery.instance_id.as_deref().map(Arc::from), reply: reply.clone() }
        }
        (Err(rejection), Outcome::Failed) => Outgoing::Failed(reason(rejection)),
        (Err(rejection), _) => Outgoing::Unconfirmed(reason(rejection)),
    }
}

/// Copies that differ in what does not count are one order; whoever looks into one should know.
fn notice_extras(ask: &Ask, entry: &Entry) {
    let (asked, known) = (&*ask.subject, &*entry.subject);
    if asked.extras != known.extras && asked.fingerprint == known.fingerprint {
        tracing::info!(
            app = &*asked.app,
            action = &*asked.action,
            order_id = asked.order_id.as_deref(),
            delivery = entry.key.idempotency_key(),
            request_id = &*ask.request_id,
            "a copy of this order differs in fields that do not count: undocumented ones, or ones that the dialect leaves out"
        );
    }
}

/// With the entry that it belongs to.
fn recorded(entry: &Entry, delivery: Delivery) -> Delivery {
    Delivery { recorded: Some((entry.key, entry.latest.number)), ..delivery }
}

/// The operator's no, in the protocol's words.
fn refusal(entry: &Entry) -> Delivery {
    let message = entry.decision.as_ref().and_then(|decision| decision.message.as_deref());
    let body = serde_json::json!({ "success": false, "message": message.unwrap_or("the order failed") });
    Delivery::answered(Outcome::Refused, body.to_string().into(), None)
}

fn unavailable(cause: &Unavailable) -> Rejection {
    Rejection::JournalUnavailable { cause: Arc::clone(&cause.cause) }
}

fn in_progress() -> Delivery {
    Delivery::unconfirmed(Rejection::DeliveryInProgress)
}

fn too_late() -> Rejection {
    unavailable(&Unavailable::new("the claim took longer than answer_within"))
}

async fn result(mut outlet: Outlet) -> Option<Delivery> {
    // The ticket sends a result even when it is dropped by a panic, so there always is one.
    outlet.wait_for(Option::is_some).await.ok()?.clone()
}

#[cfg(test)]
mod tests;
