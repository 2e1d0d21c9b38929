//! Running deliveries, in memory: the first copy of an order runs, later copies wait for it.
//!
//! Nothing outlives the delivery: once it has ended, the next copy is a new delivery.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::key::{DeliveryKey, Fingerprint};
use crate::delivery::Delivery;
use crate::rejection::Rejection;

/// The running deliveries of this process.
#[derive(Clone, Default)]
pub struct Claims(Arc<Mutex<HashMap<DeliveryKey, Running>>>);

struct Running {
    fingerprint: Fingerprint,
    result: Outlet,
}

/// Where the result of a running delivery will appear.
pub type Outlet = watch::Receiver<Option<Delivery>>;

/// What a copy of an order is told.
pub enum Claim {
    /// It is the first: deliver it, then [`Ticket::finish`].
    First(Ticket, Outlet),
    /// The first still runs: wait here.
    Joined(Outlet),
    /// The running one has other content.
    Conflict,
}

/// The right, and the duty, to deliver.
pub struct Ticket {
    claims: Claims,
    key: DeliveryKey,
    result: watch::Sender<Option<Delivery>>,
}

impl Claims {
    /// Claims a delivery.
    pub fn claim(&self, key: DeliveryKey, fingerprint: Fingerprint) -> Claim {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(key) {
            Entry::Occupied(entry) if entry.get().fingerprint != fingerprint => Claim::Conflict,
            Entry::Occupied(entry) => Claim::Joined(entry.get().result.clone()),
            Entry::Vacant(entry) => {
                let (result, outlet) = watch::channel(None);
                entry.insert(Running { fingerprint, result: outlet.clone() });
                Claim::First(Ticket { claims: self.clone(), key, result }, outlet)
            }
        }
    }

    /// How many deliveries run.
    pub fn running(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl Ticket {
    /// Ends the delivery and tells everybody who waits; says whether anybody did.
    pub fn finish(self, delivery: Delivery) -> bool {
        // One receiver belongs to the list of running deliveries. Counted before the others hear:
        // afterwards they may be gone, answered.
        let anybody = self.result.receiver_count() > 1;
        self.result.send_replace(Some(delivery));
        anybody
    }
}

/// A delivery that ends without a result ended in a panic; those who wait must hear of it.
impl Drop for Ticket {
    fn drop(&mut self) {
        self.claims.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
        self.result.send_if_modified(|result| {
            let unfinished = result.is_none();
            if unfinished {
                *result = Some(Delivery::unconfirmed(Rejection::Internal));
            }
            unfinished
        });
    }
}
