//! Seventh stop and eleventh: claim the delivery in the journal, and record how it ended.
//!
//! The first copy of an order claims it, and its attempt runs apart from the caller (`detach.rs`):
//! whoever hangs up or runs into a deadline, the call to the backend goes on and its result is
//! recorded.
//! Later copies wait for it, here or from another process, and never start another attempt.

use std::future::{Future, poll_fn};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use tokio::sync::oneshot;
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
use crate::journal::machine::{Decision, Finished, INSTANCE_REUSED};
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
#[derive(Clone, Debug)]
pub struct Order {
    /// What is to be delivered.
    pub ask: Arc<Ask>,
    /// The app's dialect.
    pub dialect: Arc<Dialect>,
    /// Position of the action in the dialect.
    pub action: usize,
    /// When the platform is answered at the latest.
    pub deadline: Instant,
    /// What is held until the end of the attempt is recorded: replies that cannot be recorded
    /// must not pile up.
    pub slot: Arc<Place>,
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
    /// Somebody else's attempt runs.
    Join(Arc<Entry>),
}

/// A caller that waits for its answer.
struct Waiting {
    tell: oneshot::Sender<Told>,
    /// The caller's own attempt, from before anything is forwarded.
    attempt: Arc<OnceLock<(DeliveryKey, u32)>>,
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
    pub async fn once<F>(
        &self,
        order: Order,
        attempt: impl FnOnce(Go) -> F + Send + 'static,
        unheard: impl FnOnce(&Delivery) + Send + 'static,
    ) -> Result<Delivery, Rejection>
    where
        F: Future<Output = Delivery> + Send + 'static,
    {
        if self.tasks.is_closed() {
            return Err(Rejection::ShuttingDown);
        }
        let deadline = order.deadline;
        let (tell, mut told) = oneshot::channel();
        let own = Arc::new(OnceLock::new());
        let waiting = Waiting { tell, attempt: Arc::clone(&own) };
        // A claim that is made must be followed through, so not even the asking may be dropped.
        let span = spans::delivery(&order.ask.request_id);
        // In a box: what a delivery waits in is large, and is moved if the caller goes away.
        let claim = Box::pin(self.clone().claim(order.clone(), attempt, waiting, Box::new(unheard)));
        let mut claim = DetachOnDrop::new(claim.instrument(span), &self.tasks);
        let heard = poll_fn(|context| {
            // Whether it has ended or not: what counts is what it tells.
            let _ = claim.poll_unpin(context);
            told.poll_unpin(context)
        });
        match timeout_at(deadline, heard).await {
            Ok(Ok(Told::Answer(delivery))) => Ok(delivery),
            Ok(Ok(Told::Join(entry))) => {
                // Rare, and too large to make room for in every request.
                let joined = Box::pin(self.join(&entry, order.contract()));
                let joined = timeout_at(deadline, joined).await;
                let delivery = joined.unwrap_or_else(|_| in_progress());
                self.count(&order.ask, "joined");
                Ok(Delivery { outcome: Outcome::Joined, ..recorded(&entry, delivery) })
            }
            Ok(Err(_)) => Err(Rejection::Internal),
            Err(_) => match own.get() {
                Some(id) => Ok(Delivery { recorded: Some(*id), ..Delivery::unconfirmed(Rejection::BackendTimeout) }),
                None => Err(too_late()),
            },
        }
    }

    /// Asks the journal, and does what it says.
    async fn claim<F>(
        self,
        order: Order,
        attempt: impl FnOnce(Go) -> F,
        waiting: Waiting,
        unheard: Box<impl FnOnce(&Delivery)>,
    ) where
        F: Future<Output = Delivery>,
    {
        let ask = &order.ask;
        let span = spans::claim();
        let claimed = self.journal.claim(Arc::clone(ask)).instrument(span.clone()).await;
        if let Ok(claimed) = &claimed {
            span.record("spigate.decision", debug(claimed.decision));
            notice_extras(ask, &claimed.entry);
        }
        drop(span);
        let told = match claimed {
            Err(cause) => {
                self.count(ask, "rejected");
                Told::Answer(Delivery::rejected(unavailable(&cause)))
            }
            Ok(claimed) => match claimed.decision {
                Decision::Forward => {
                    // On the heap: a copy that is only replayed needs no room for it.
                    let run = Box::pin(self.run(claimed.entry, order, attempt, waiting, unheard));
                    return run.await;
                }
                Decision::Join => Told::Join(claimed.entry),
                Decision::Replay => {
                    self.count(ask, "replayed");
                    Told::Answer(self.replay(&claimed.entry, order.contract(), Outcome::Replayed).await)
                }
                Decision::Conflict => {
                    self.count(ask, "conflict");
                    Told::Answer(recorded(&claimed.entry, Delivery::rejected(Rejection::OrderConflict)))
                }
                Decision::Hold => {
                    self.count(ask, "held");
                    Told::Answer(recorded(&claimed.entry, Delivery::unconfirmed(Rejection::DeliveryHeld)))
                }
                Decision::Refuse => {
                    self.count(ask, "refused");
                    // Once the platform knows, what looks like it is another purchase.
                    let receipt = self.receipt(&claimed.entry);
                    Told::Answer(Delivery { receipt, ..recorded(&claimed.entry, refusal(&claimed.entry)) })
                }
            },
        };
        // A caller that is gone needs no answer.
        let _ = waiting.tell.send(told);
    }

    /// Runs an attempt that was claimed, and records how it ended.
    async fn run<F>(
        self,
        entry: Arc<Entry>,
        order: Order,
        attempt: impl FnOnce(Go) -> F,
        waiting: Waiting,
        unheard: Box<impl FnOnce(&Delivery)>,
    ) where
        F: Future<Output = Delivery>,
    {
        let id = (entry.key, entry.latest.number);
        let ticket = self.running.begin(RunningClaim {
            ask: Arc::clone(&order.ask),
            key: entry.key,
            cycle: entry.cycle,
            number: entry.latest.number,
            began_at: entry.latest.began_at,
        });
        drop(entry);
        // Before the time is looked at: a caller that finds nothing here at its deadline says that
        // nothing is forwarded.
        let _ = waiting.attempt.set(id);
        let mut caller = Some(waiting.tell);
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
            Some(caller) => caller.send(Told::Answer(delivery)).err(),
            None => Some(Told::Answer(delivery)),
        };
        if let (Some(Told::Answer(delivery)), false) = (unsaid, copies_heard) {
            unheard(&delivery);
        }
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
        caller: &mut Option<oneshot::Sender<Told>>,
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
                                    app = ticket.claim().ask.app,
                                    order_id = ticket.claim().ask.order_id,
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
                            let _ = caller.send(Told::Answer(interim));
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
                let labels = [entry.app.as_str(), entry.action.as_str(), violation.rule.as_ref()];
                self.metrics.backend_violations.with_label_values(&labels).inc();
                Delivery {
                    backend_time: delivery.backend_time,
                    recorded: delivery.recorded,
                    ..Delivery::unconfirmed(Rejection::BackendContract(violation))
                }
            }
            Finished::AlreadyDone | Finished::Duplicate => {
                if finished == Finished::Duplicate {
                    self.metrics.duplicate_confirmations.with_label_values(&[&entry.app]).inc();
                    tracing::error!(
                        app = entry.app,
                        order_id = entry.order_id,
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
        let instance_id = entry.confirmation.as_ref().and_then(|confirmation| confirmation.instance_id.clone());
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
        is_new.then(|| Receipt::new(Arc::clone(&self.journal), entry.key))
    }

    fn count(&self, ask: &Ask, outcome: &str) {
        self.metrics.deliveries.with_label_values(&[&ask.app, &ask.action, outcome]).inc();
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
                tracing::warn!(
                    app = claim.ask.app,
                    action = claim.ask.action,
                    order_id = claim.ask.order_id,
                    instance_id = claim.ask.instance_id,
                    attempt = claim.number,
                    "a delivery still runs although the process ends: it is unconfirmed now"
                );
                let code = Rejection::ShuttingDown.code().to_owned();
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
        (Ok(reply), _) => Outgoing::Confirmed { instance_id: delivery.instance_id.clone(), reply: reply.clone() },
        (Err(rejection), Outcome::Failed) => Outgoing::Failed(reason(rejection)),
        (Err(rejection), _) => Outgoing::Unconfirmed(reason(rejection)),
    }
}

/// Copies that differ in what does not count are one order; whoever looks into one should know.
fn notice_extras(ask: &Ask, entry: &Entry) {
    if ask.extras != entry.extras && ask.fingerprint == entry.fingerprint {
        tracing::info!(
            app = ask.app,
            action = ask.action,
            order_id = ask.order_id,
            delivery = entry.key.idempotency_key(),
            request_id = ask.request_id,
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
