//! The attempts that run in this process, and who waits for them here.
//!
//! The store knows who runs what; this only saves those who wait in the same process the way
//! through it, and hands them results that cannot be recorded yet.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use tokio::sync::watch;

use super::Outgoing;
use super::entry::Ask;
use super::key::DeliveryKey;
use crate::delivery::Delivery;
use crate::rejection::Rejection;

/// The attempts that run in this process.
#[derive(Clone, Default)]
pub struct Running(Arc<Mutex<HashMap<(DeliveryKey, u32), Slot>>>);

struct Slot {
    claim: RunningClaim,
    /// How it ended, from when that is known until it is recorded.
    end: Option<Outgoing>,
    /// Made for the first who waits besides the one whose attempt it is: nearly always there is none.
    result: Option<watch::Sender<Option<Delivery>>>,
}

/// What was claimed: enough to record its end.
#[derive(Clone, Debug)]
pub struct RunningClaim {
    /// What was asked for.
    pub ask: Arc<Ask>,
    /// The delivery.
    pub key: DeliveryKey,
    /// Its cycle.
    pub cycle: u32,
    /// The attempt.
    pub number: u32,
    /// When it was claimed.
    pub began_at: Timestamp,
}

/// Where the result of a running attempt will appear.
pub type Outlet = watch::Receiver<Option<Delivery>>;

/// The duty to say how an attempt ended.
pub struct Ticket {
    running: Running,
    claim: RunningClaim,
    /// Whether it was said.
    done: bool,
}

impl Running {
    /// Begins an attempt.
    pub fn begin(&self, claim: RunningClaim) -> Ticket {
        self.slots().insert((claim.key, claim.number), Slot { claim: claim.clone(), end: None, result: None });
        Ticket { running: self.clone(), claim, done: false }
    }

    /// Where the result of an attempt will appear, if it runs here.
    pub fn outlet(&self, key: DeliveryKey, number: u32) -> Option<Outlet> {
        let mut slots = self.slots();
        let slot = slots.get_mut(&(key, number))?;
        Some(slot.result.get_or_insert_default().subscribe())
    }

    /// What runs, or has ended and is not recorded yet.
    pub fn claims(&self) -> Vec<(RunningClaim, Option<Outgoing>)> {
        self.slots().values().map(|slot| (slot.claim.clone(), slot.end.clone())).collect()
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<(DeliveryKey, u32), Slot>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    /// What was claimed.
    pub fn claim(&self) -> &RunningClaim {
        &self.claim
    }

    /// Keeps how the attempt ended at hand until that is recorded.
    pub fn ended(&self, end: Outgoing) {
        if let Some(slot) = self.running.slots().get_mut(&(self.claim.key, self.claim.number)) {
            slot.end = Some(end);
        }
    }

    /// Tells those who wait now; whoever comes later waits for the end.
    pub fn hand_out(&self, delivery: &Delivery) {
        let id = (self.claim.key, self.claim.number);
        let waited_for = self.running.slots().get_mut(&id).and_then(|slot| slot.result.take());
        if let Some(result) = waited_for {
            result.send_replace(Some(delivery.clone()));
        }
    }

    /// Ends the attempt and tells all copies that wait; says whether there were any.
    pub fn finish(mut self, delivery: &Delivery) -> bool {
        self.done = true;
        self.end(delivery)
    }

    fn end(&self, delivery: &Delivery) -> bool {
        let slot = self.running.slots().remove(&(self.claim.key, self.claim.number));
        let Some(result) = slot.and_then(|slot| slot.result) else { return false };
        // Counted before they hear: afterwards they may be gone, answered.
        let anybody = result.receiver_count() > 0;
        result.send_replace(Some(delivery.clone()));
        anybody
    }
}

/// Whoever waits must hear of an attempt that ended in a bug, too.
impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.done {
            self.end(&Delivery::unconfirmed(Rejection::Internal));
        }
    }
}
