//! What is kept for how long, and the sweep that removes the rest.

use jiff::{SignedDuration, Timestamp};

use super::store::{Pruned, Retention, Store, Unavailable};
use crate::config::journal::JournalConfig;

/// Rows of each kind in one transaction: deliveries wait for no more than that.
const BATCH: usize = 500;
/// A data key's wrap is refreshed far more often than this by whoever still uses it.
const WRAPS_UNUSED_FOR: SignedDuration = SignedDuration::from_hours(48);

/// What is too old at `now`.
pub fn retention(config: &JournalConfig, now: Timestamp) -> Retention {
    let before = |age| now.checked_sub(age).unwrap_or(Timestamp::MIN);
    Retention {
        replies_before: before(config.retain_replies),
        history_before: before(config.retain_history),
        wraps_before: before(WRAPS_UNUSED_FOR),
        batch: BATCH,
    }
}

/// Removes what is too old, in batches until nothing is left. Says how much it was.
///
/// # Errors
/// The journal is down; what was removed before stays removed.
pub async fn prune(store: &dyn Store, config: &JournalConfig, now: Timestamp) -> Result<Pruned, Unavailable> {
    let retention = retention(config, now);
    let mut total = Pruned::default();
    loop {
        let pruned = store.prune(retention).await?;
        total.replies += pruned.replies;
        total.deliveries += pruned.deliveries;
        total.instances += pruned.instances;
        if !pruned.is_full(BATCH) {
            return Ok(total);
        }
    }
}
