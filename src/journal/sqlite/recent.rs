//! What was written a moment ago, so that it need not be read again.
//!
//! A delivery is claimed, ends and is answered within moments: three operations on one row. This
//! remembers the row between them. It may be wrong (a transaction was undone, somebody else has
//! changed the row), so whoever uses it writes on the condition that the row still is as it is
//! remembered, and else reads it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::rows::Numbered;
use crate::journal::entry::{End, Entry};
use crate::journal::key::DeliveryKey;

/// How many of either kind are remembered. More are in flight only while nothing can be recorded.
const MOST: usize = 4096;

/// See the module.
#[derive(Default)]
pub(super) struct Recent {
    claimed: Mutex<HashMap<DeliveryKey, Numbered>>,
    ended: Mutex<HashMap<DeliveryKey, i64>>,
}

impl Recent {
    /// A claim was written.
    pub(super) fn claimed(&self, row: i64, entry: &Entry) {
        put(&self.claimed, entry.key, (row, entry.clone()));
    }

    /// The claim that this is the end of; only once.
    pub(super) fn claim_of(&self, end: &End) -> Option<Numbered> {
        let (row, entry) = lock(&self.claimed).remove(&end.key)?;
        let latest = &entry.latest;
        (latest.number == end.attempt && latest.claimant == end.ask.claimant).then_some((row, entry))
    }

    /// An end was written.
    pub(super) fn ended(&self, row: i64, key: DeliveryKey) {
        put(&self.ended, key, row);
    }

    /// The row of a delivery that has ended; only once.
    pub(super) fn row_of(&self, key: &DeliveryKey) -> Option<i64> {
        lock(&self.ended).remove(key)
    }
}

fn put<T>(into: &Mutex<HashMap<DeliveryKey, T>>, key: DeliveryKey, value: T) {
    let mut known = lock(into);
    if known.len() >= MOST {
        known.clear();
    }
    known.insert(key, value);
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
