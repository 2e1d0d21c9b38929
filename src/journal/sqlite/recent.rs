//! What was written a moment ago, so that it need not be read again.
//!
//! A delivery is claimed and ends within moments: two operations on one row. This remembers the row
//! between them. It may be wrong (a transaction was undone, somebody else has changed the row), so
//! whoever uses it writes on the condition that the row still is as it is remembered, and else reads
//! it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use crate::journal::entry::{End, Entry};
use crate::journal::key::DeliveryKey;

/// How many are remembered. More are in flight only while nothing can be recorded.
const MOST: usize = 4096;

/// See the module.
#[derive(Default)]
pub(super) struct Recent {
    claimed: RefCell<HashMap<DeliveryKey, (i64, Arc<Entry>)>>,
}

impl Recent {
    /// A claim was written.
    pub(super) fn claimed(&self, row: i64, entry: &Arc<Entry>) {
        let mut claimed = self.claimed.borrow_mut();
        if claimed.len() >= MOST {
            claimed.clear();
        }
        claimed.insert(entry.key, (row, Arc::clone(entry)));
    }

    /// The claim that this is the end of; only once.
    pub(super) fn claim_of(&self, end: &End) -> Option<(i64, Arc<Entry>)> {
        let (row, entry) = self.claimed.borrow_mut().remove(&end.key)?;
        let latest = &entry.latest;
        (latest.number == end.attempt && latest.claimant == end.ask.claimant).then_some((row, entry))
    }
}
