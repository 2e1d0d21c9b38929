//! `spigate journal export`: deliveries with their replies, a JSON object a line.

use std::io;

use clap::Args;

use super::Source;
use super::select::Selection;
use crate::cli::{Failure, terminal};
use crate::clock;
use crate::journal::store::{Filter, Store};
use crate::journal::vault::Vault;
use crate::journal::view::{Reply, View};
use crate::json;

/// How many deliveries are read at once.
const PAGE: usize = 200;

/// Arguments of `spigate journal export`.
#[derive(Args)]
pub(super) struct Export {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    selection: Selection,
    /// Most deliveries to print; all that fit if left out
    #[arg(long, value_name = "NUMBER")]
    limit: Option<usize>,
    /// Print passwords, keys and tokens in replies too
    #[arg(long)]
    reveal: bool,
}

impl Export {
    pub(super) async fn run(&self) -> Result<(), Failure> {
        let visit = self.source.open()?;
        let filter = self.selection.filter(clock::now());
        let limit = self.limit.unwrap_or(usize::MAX);
        let exporter = Exporter { store: &*visit.store, vault: &visit.vault, reveal: self.reveal };
        let printed = exporter.print(filter, limit, &mut terminal::write).await?;
        if printed == 0 {
            terminal::complain("no delivery fits");
            self.selection.hint(&visit.config);
        }
        Ok(())
    }
}

struct Exporter<'a> {
    store: &'a dyn Store,
    vault: &'a Vault,
    reveal: bool,
}

impl Exporter<'_> {
    /// Prints what fits, page by page; how many.
    async fn print(
        &self,
        filter: Filter,
        limit: usize,
        print: &mut dyn FnMut(&str) -> io::Result<()>,
    ) -> Result<usize, Failure> {
        let mut printed = 0;
        let mut cursor = None;
        while printed < limit {
            let page = PAGE.min(limit - printed);
            let records = self.store.list(filter.clone(), cursor, page).await?;
            for record in &records {
                let reply = Reply::of(self.store, self.vault, &record.entry, self.reveal).await?;
                match print(&json::to_text(&View::new(record).with_reply(&reply))) {
                    Ok(()) => printed += 1,
                    // Whoever reads has enough.
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(printed.max(1)),
                    Err(error) => return Err(Failure::unusable(format!("standard output: {error}"))),
                }
            }
            if records.len() < page {
                break;
            }
            cursor = records.last().map(|record| record.cursor);
        }
        Ok(printed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::journal::fixture::{PASSWORD, Shop};

    async fn export(shop: &Shop, limit: usize, reveal: bool) -> Vec<String> {
        let mut lines = Vec::new();
        let exporter = Exporter { store: &shop.store, vault: &shop.vault, reveal };
        let mut keep = |line: &str| {
            lines.push(line.to_owned());
            Ok(())
        };
        let printed = exporter.print(Filter::default(), limit, &mut keep).await.unwrap();
        assert_eq!(printed, lines.len());
        lines
    }

    #[tokio::test]
    async fn every_delivery_is_a_line_across_pages() {
        let shop = Shop::new();
        let orders = (0..2 * PAGE + 3).map(|number| format!("o-{number}")).collect::<Vec<_>>();
        for order in &orders {
            shop.create(order).await;
        }
        let of = |lines: &[String]| {
            let order = |line: &String| serde_json::from_str::<serde_json::Value>(line).unwrap()["order_id"].clone();
            lines.iter().map(|line| order(line).as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let latest_first = orders.iter().rev().cloned().collect::<Vec<_>>();
        assert_eq!(of(&export(&shop, usize::MAX, false).await), latest_first);
        assert_eq!(of(&export(&shop, PAGE, false).await), latest_first[..PAGE]);
        assert_eq!(of(&export(&shop, PAGE + 1, false).await), latest_first[..=PAGE]);
        assert!(export(&shop, 0, false).await.is_empty());
    }

    #[tokio::test]
    async fn passwords_are_hidden_unless_they_are_asked_for() {
        let shop = Shop::new();
        shop.confirmed("o-1", "i-1").await;
        let lines = export(&shop, usize::MAX, false).await;
        assert!(!lines[0].contains(PASSWORD) && lines[0].contains("(redacted)"), "{}", lines[0]);
        assert!(export(&shop, usize::MAX, true).await[0].contains(PASSWORD));
        let lost = Shop { vault: Vault::new([], None), ..shop };
        let line: serde_json::Value = serde_json::from_str(&export(&lost, 1, true).await[0]).unwrap();
        assert_eq!(line["reply"], serde_json::Value::Null);
        assert_eq!(line["reply_missing"], "cannot be opened by any configured key");
    }

    #[tokio::test]
    async fn ends_when_nobody_reads_and_fails_when_nothing_can_be_written() {
        let shop = Shop::new();
        shop.create("o-1").await;
        shop.create("o-2").await;
        let exporter = Exporter { store: &shop.store, vault: &shop.vault, reveal: false };
        let mut calls = 0;
        let mut closed = |_: &str| {
            calls += 1;
            Err(io::Error::from(io::ErrorKind::BrokenPipe))
        };
        assert!(exporter.print(Filter::default(), usize::MAX, &mut closed).await.is_ok());
        assert_eq!(calls, 1);
        let mut full = |_: &str| Err(io::Error::from(io::ErrorKind::StorageFull));
        let failure = exporter.print(Filter::default(), usize::MAX, &mut full).await.unwrap_err();
        assert_eq!(failure.code, 2);
    }
}
