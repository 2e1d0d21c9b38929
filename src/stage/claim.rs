//! Seventh stop: is this order running already? The named seam of the delivery journal.
//!
//! The first copy of an order gets a ticket and is delivered in a task of its own: whoever
//! hangs up or runs into a deadline, the call to the backend goes on and its result reaches
//! those who wait. Later copies join it and never start another attempt.

use std::future::Future;

use tokio::time::{Instant, timeout_at};
use tokio_util::task::TaskTracker;

use crate::delivery::{Delivery, Outcome};
use crate::journal::key::{DeliveryKey, Fingerprint};
use crate::journal::running::{Claim, Claims, Outlet};
use crate::rejection::Rejection;

/// Running deliveries and the tasks that run them.
#[derive(Clone, Default)]
pub struct Deliveries {
    claims: Claims,
    tasks: TaskTracker,
}

impl Deliveries {
    /// Runs `attempt` if this is the first copy of its order, else waits for the one that runs,
    /// until `deadline`. `unheard` learns of a delivery that ended when nobody waited any more.
    ///
    /// # Errors
    /// `order_conflict` for a running delivery with other content, `shutting_down` when nobody
    /// would wait for this one's end.
    pub async fn once<F>(
        &self,
        key: DeliveryKey,
        fingerprint: Fingerprint,
        deadline: Instant,
        attempt: impl FnOnce() -> F,
        unheard: impl FnOnce(&Delivery) + Send + 'static,
    ) -> Result<Delivery, Rejection>
    where
        F: Future<Output = Delivery> + Send + 'static,
    {
        if self.tasks.is_closed() {
            return Err(Rejection::ShuttingDown);
        }
        match self.claims.claim(key, fingerprint) {
            Claim::Conflict => Err(Rejection::OrderConflict),
            Claim::First(ticket, outlet) => {
                let attempt = attempt();
                self.tasks.spawn(async move {
                    let delivery = attempt.await;
                    if !ticket.finish(delivery.clone()) {
                        unheard(&delivery);
                    }
                });
                Ok(wait(outlet, deadline).await.unwrap_or_else(|| Delivery::unconfirmed(Rejection::BackendTimeout)))
            }
            Claim::Joined(outlet) => {
                let joined = wait(outlet, deadline).await;
                let delivery = joined.unwrap_or_else(|| Delivery::unconfirmed(Rejection::DeliveryInProgress));
                Ok(Delivery { outcome: Outcome::Joined, ..delivery })
            }
        }
    }

    /// Waits until no delivery runs any more. Call it when no request can begin one.
    pub async fn drained(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// How many deliveries run.
    pub fn running(&self) -> usize {
        self.claims.running()
    }
}

async fn wait(mut outlet: Outlet, deadline: Instant) -> Option<Delivery> {
    let result = timeout_at(deadline, outlet.wait_for(Option::is_some)).await;
    // The ticket sends a result even when it is dropped by a panic, so there always is one.
    result.ok()?.ok()?.clone()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use bytes::Bytes;
    use tokio::sync::Notify;

    use super::*;
    use crate::dialect::builtin;
    use crate::dialect::mac::TagEncoding;
    use crate::dialect::request::Strictness;
    use crate::query::Params;

    fn order(spec: &str) -> (DeliveryKey, Fingerprint) {
        let dialect = &builtin::load().unwrap()[1];
        let action = dialect.actions.iter().find(|action| action.dedupe == dialect.order).unwrap();
        let mut pairs = vec![(dialect.action_parameter.clone(), action.name.clone())];
        for field in &dialect.fields {
            let value = if field.name == "spec" { spec } else { field.sample.as_deref().unwrap() };
            pairs.push((field.name.clone(), value.to_owned()));
        }
        let params = Params::from_pairs(pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let request = dialect.check_request(params, None, Strictness::Strict).unwrap();
        let tag = TagEncoding::Hex.decode("00").unwrap();
        (DeliveryKey::of("crm", dialect, &request, &tag), Fingerprint::of(dialect, &request))
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[tokio::test]
    async fn copies_join_the_first_and_share_its_result() {
        let deliveries = Deliveries::default();
        let (gate, calls) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
        let (key, print) = order("a");
        let copy = || {
            let (deliveries, gate, calls) = (deliveries.clone(), Arc::clone(&gate), Arc::clone(&calls));
            tokio::spawn(async move {
                let attempt = || async move {
                    calls.fetch_add(1, Ordering::SeqCst);
                    gate.notified().await;
                    Delivery::answered(Outcome::Delivered, Bytes::from_static(b"{}"), None)
                };
                deliveries.once(key, print, soon(), attempt, |_| {}).await.unwrap()
            })
        };
        let copies: Vec<_> = (0..50).map(|_| copy()).collect();
        while calls.load(Ordering::SeqCst) == 0 || deliveries.running() == 0 {
            tokio::task::yield_now().await;
        }
        let (_, other) = order("b");
        let conflict = deliveries.once(key, other, soon(), || async { unreachable!("must not run") }, |_| {}).await;
        assert!(matches!(conflict, Err(Rejection::OrderConflict)));
        gate.notify_one();
        let mut outcomes = Vec::new();
        for copy in copies {
            let delivery = copy.await.unwrap();
            assert_eq!(delivery.answer.unwrap(), "{}");
            outcomes.push(delivery.outcome);
        }
        assert_eq!(calls.load(Ordering::SeqCst), 1);
        assert_eq!(outcomes.iter().filter(|&&outcome| outcome == Outcome::Delivered).count(), 1);
        assert_eq!(deliveries.running(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn deadlines_answer_the_caller_and_leave_the_delivery_running() {
        let deliveries = Deliveries::default();
        let (key, print) = order("a");
        let attempt = || async {
            tokio::time::sleep(Duration::from_secs(30)).await;
            Delivery::answered(Outcome::Delivered, Bytes::from_static(b"late"), None)
        };
        let first =
            deliveries.once(key, print, Instant::now() + Duration::from_secs(13), attempt, |_| {}).await.unwrap();
        assert!(matches!(first.answer, Err(Rejection::BackendTimeout)));
        let unused = || async { unreachable!("must not run") };
        let second =
            deliveries.once(key, print, Instant::now() + Duration::from_secs(1), unused, |_| {}).await.unwrap();
        assert!(matches!(second.answer, Err(Rejection::DeliveryInProgress)));
        let third =
            deliveries.once(key, print, Instant::now() + Duration::from_secs(60), unused, |_| {}).await.unwrap();
        assert_eq!(third.answer.unwrap(), "late");
        deliveries.drained().await;
        assert_eq!(deliveries.running(), 0);
        let refused = deliveries.once(key, print, soon(), unused, |_| {}).await;
        assert!(matches!(refused, Err(Rejection::ShuttingDown)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_delivery_that_nobody_waits_for_any_more_is_told_of() {
        let deliveries = Deliveries::default();
        let (key, print) = order("a");
        let (tell, told) = tokio::sync::oneshot::channel();
        let attempt = || async {
            tokio::time::sleep(Duration::from_secs(30)).await;
            Delivery::answered(Outcome::Delivered, Bytes::from_static(b"late"), None)
        };
        let unheard = |delivery: &Delivery| tell.send(delivery.outcome).unwrap();
        let soon = Instant::now() + Duration::from_secs(13);
        let first = deliveries.once(key, print, soon, attempt, unheard).await.unwrap();
        assert!(matches!(first.answer, Err(Rejection::BackendTimeout)));
        assert_eq!(told.await, Ok(Outcome::Delivered));
    }

    /// The one who waits may be gone again, answered, before the delivery's task goes on.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_delivery_that_somebody_waits_for_is_never_called_unheard() {
        let deliveries = Deliveries::default();
        let (key, print) = order("a");
        let unheard = Arc::new(AtomicUsize::new(0));
        for _ in 0..5_000 {
            let attempt = || async {
                tokio::task::yield_now().await;
                Delivery::answered(Outcome::Delivered, Bytes::new(), None)
            };
            let count = Arc::clone(&unheard);
            let tell = move |_: &Delivery| {
                count.fetch_add(1, Ordering::SeqCst);
            };
            deliveries.once(key, print, soon(), attempt, tell).await.unwrap();
        }
        deliveries.drained().await;
        assert_eq!(unheard.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn a_panic_ends_the_delivery_for_everybody() {
        let deliveries = Deliveries::default();
        let (key, print) = order("a");
        let attempt = || async { panic!("a bug") };
        let delivery = deliveries.once(key, print, soon(), attempt, |_| {}).await.unwrap();
        assert!(matches!(delivery.answer, Err(Rejection::Internal)));
        assert_eq!(deliveries.running(), 0);
    }
}
