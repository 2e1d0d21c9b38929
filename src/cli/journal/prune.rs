//! `spigate journal prune`: retention, now.

use clap::Args;
use jiff::Timestamp;

use super::Source;
use crate::cli::{Failure, terminal};
use crate::clock;
use crate::config::journal::JournalConfig;
use crate::journal::entry::State;
use crate::journal::retention::{prune, retention};
use crate::journal::store::{Filter, Store};

/// How many deliveries are looked at at once.
const PAGE: usize = 500;

/// Arguments of `spigate journal prune`.
#[derive(Args)]
pub(super) struct Prune {
    #[command(flatten)]
    source: Source,
    /// Only say how much it would be
    #[arg(long)]
    dry_run: bool,
}

impl Prune {
    pub(super) async fn run(&self) -> Result<(), Failure> {
        let visit = self.source.open()?;
        let (store, config) = (&*visit.store, &visit.config.journal);
        let said = if self.dry_run {
            dry_run(store, config, clock::now()).await?
        } else {
            run(store, config, clock::now()).await?
        };
        terminal::say(&said);
        Ok(())
    }
}

async fn run(store: &dyn Store, config: &JournalConfig, now: Timestamp) -> Result<String, Failure> {
    let pruned = prune(store, config, now).await?;
    Ok(format!(
        "removed {}, {}, and {} about instances",
        many(pruned.replies, "reply", "replies"),
        many(pruned.deliveries, "delivery", "deliveries"),
        many(pruned.instances, "row", "rows")
    ))
}

async fn dry_run(store: &dyn Store, config: &JournalConfig, now: Timestamp) -> Result<String, Failure> {
    let retention = retention(config, now);
    let (mut replies, mut deliveries) = (0, 0);
    let mut cursor = None;
    loop {
        let records = store.list(Filter::default(), cursor, PAGE).await?;
        for entry in records.iter().map(|record| &record.entry).filter(|entry| entry.state != State::Running) {
            deliveries += usize::from(entry.changed_at < retention.history_before);
            replies += usize::from(entry.changed_at < retention.replies_before && entry.reply.is_some());
        }
        if records.len() < PAGE {
            let (replies, deliveries) = (many(replies, "reply", "replies"), many(deliveries, "delivery", "deliveries"));
            return Ok(format!("would remove {replies} and {deliveries}"));
        }
        cursor = records.last().map(|record| record.cursor);
    }
}

fn many(number: usize, one: &str, more: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { more })
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;
    use crate::cli::journal::fixture::{Shop, now};
    use crate::journal::store::Archive as _;

    #[tokio::test]
    async fn replies_go_first_and_deliveries_later_in_as_many_batches_as_it_takes() {
        let shop = Shop::new();
        for number in 0..501 {
            shop.confirmed(&format!("o-{number}"), &format!("i-{number}")).await;
        }
        shop.create("o-running").await;
        let config = &shop.config.journal;
        let days = |days: i64| now() + SignedDuration::from_hours(24 * days);
        let said = async |days: Timestamp| {
            (dry_run(&shop.store, config, days).await.unwrap(), run(&shop.store, config, days).await.unwrap())
        };
        let (dry, wet) = said(days(29)).await;
        assert_eq!(dry, "would remove 0 replies and 0 deliveries");
        assert_eq!(wet, "removed 0 replies, 0 deliveries, and 0 rows about instances");
        let (dry, wet) = said(days(31)).await;
        assert_eq!(dry, "would remove 501 replies and 0 deliveries");
        assert_eq!(wet, "removed 501 replies, 0 deliveries, and 0 rows about instances");
        let (dry, wet) = said(days(401)).await;
        assert_eq!(dry, "would remove 0 replies and 501 deliveries");
        assert_eq!(wet, "removed 0 replies, 501 deliveries, and 501 rows about instances");
        let left = shop.store.list(Filter::default(), None, 9).await.unwrap();
        assert_eq!(left.len(), 1, "the running one stays");
    }
}
