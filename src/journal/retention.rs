//! What the journal forgets, and when: `retain_replies` and `retain_history`.

use jiff::{SignedDuration, Timestamp};

use super::store::{Pruned, Retention, Store, Unavailable};
use crate::config::journal::JournalConfig;

/// Most rows of a kind in one transaction, so that no delivery waits long for it.
const BATCH: usize = 500;

/// Whoever still uses a wrap says so far more often than this.
const WRAPS_UNUSED_FOR: SignedDuration = SignedDuration::from_hours(48);

/// What is too old now.
pub fn retention(config: &JournalConfig, now: Timestamp) -> Retention {
    let before = |age: SignedDuration| now.checked_sub(age).unwrap_or(Timestamp::MIN);
    Retention {
        now,
        replies_before: before(config.retain_replies),
        history_before: before(config.retain_history),
        // A key that leaked and was replaced must soon open nothing any more.
        wraps_before: before(WRAPS_UNUSED_FOR),
        batch: BATCH,
    }
}

/// Removes everything that is too old now, batch by batch. What was removed.
///
/// # Errors
/// A journal that cannot be written; what was removed until then stays removed.
pub async fn prune(store: &dyn Store, config: &JournalConfig, now: Timestamp) -> Result<Pruned, Unavailable> {
    let retention = retention(config, now);
    let mut all = Pruned::default();
    loop {
        let pruned = store.prune(retention).await?;
        all.replies += pruned.replies;
        all.deliveries += pruned.deliveries;
        all.instances += pruned.instances;
        if !pruned.is_full(retention.batch) {
            return Ok(all);
        }
    }
}
