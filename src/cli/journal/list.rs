//! `spigate journal list`: one line for each delivery.

use clap::Args;
use comfy_table::{ContentArrangement, Table, presets};
use jiff::Timestamp;

use super::select::Selection;
use super::{Format, Source, to_json_array};
use crate::cli::{Failure, terminal};
use crate::clock;
use crate::journal::entry::{Entry, State};
use crate::journal::store::{Filter, Record, Store, Unavailable};
use crate::journal::view::View;

/// Arguments of `spigate journal list`.
#[derive(Args)]
pub(super) struct List {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    selection: Selection,
    /// Most deliveries to list
    #[arg(long, default_value = "50", value_name = "NUMBER")]
    limit: usize,
    /// As a table, or as one JSON array for programs
    #[arg(long, value_enum, default_value = "table", hide_possible_values = true, value_name = "table|json")]
    format: Format,
}

impl List {
    pub(super) async fn run(&self) -> Result<(), Failure> {
        let visit = self.source.open()?;
        let filter = self.selection.filter(clock::now());
        let (records, more) = records(&*visit.store, filter, self.limit).await?;
        if self.format == Format::Json || !records.is_empty() {
            terminal::say(&text(&records, self.format));
        }
        if records.is_empty() {
            terminal::complain("no delivery fits");
            self.selection.hint(&visit.config);
        }
        if more {
            terminal::complain(&format!("these are the latest {}; --limit shows more", self.limit));
        }
        Ok(())
    }
}

/// Records that fit, and whether there are more.
pub(super) async fn records(
    store: &dyn Store,
    filter: Filter,
    limit: usize,
) -> Result<(Vec<Record>, bool), Unavailable> {
    let mut records = store.list(filter, None, limit.saturating_add(1)).await?;
    let more = records.len() > limit;
    records.truncate(limit);
    Ok((records, more))
}

fn text(records: &[Record], format: Format) -> String {
    match format {
        Format::Table => table(records),
        Format::Json => to_json_array(records.iter().map(View::new)),
    }
}

fn table(records: &[Record]) -> String {
    let mut table = Table::new();
    // As wide as it has to be: a line that is cut cannot be searched.
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header([
        "RECEIVED", "ID", "APP", "ACTION", "DEBUG", "ORDER", "INSTANCE", "STATE", "ATTEMPTS", "LAST", "ANSWERED",
    ]);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    for Record { entry, .. } in records {
        let subject = &*entry.subject;
        table.add_row([
            time(entry.received_at),
            entry.key.idempotency_key(),
            terminal::plain(&subject.app),
            terminal::plain(&subject.action),
            yes_or_no(subject.debug).to_owned(),
            or_dash(subject.order_id.as_deref()),
            or_dash(instance(entry)),
            entry.state.to_string(),
            entry.latest.number.to_string(),
            last(entry),
            answered(entry),
        ]);
    }
    table.trim_fmt()
}

/// The instance that the delivery made, else the one that it is about.
pub(super) fn instance(entry: &Entry) -> Option<&str> {
    let made = entry.confirmation.as_ref().and_then(|confirmation| confirmation.instance_id.as_deref());
    made.or(entry.subject.instance_id.as_deref())
}

/// To the second, in UTC.
pub(super) fn time(time: Timestamp) -> String {
    format!("{time:.0}")
}

pub(super) fn yes_or_no(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}

pub(super) fn or_dash(text: Option<&str>) -> String {
    text.map_or_else(|| "-".to_owned(), terminal::plain)
}

fn last(entry: &Entry) -> String {
    let Some(ended) = &entry.latest.ended else { return "-".to_owned() };
    let code = ended.code.as_ref().map(|code| format!(" {}", terminal::plain(code)));
    format!("{}{}", ended.outcome.as_str(), code.unwrap_or_default())
}

fn answered(entry: &Entry) -> String {
    match entry.answered_at {
        Some(at) => time(at),
        None if entry.state == State::Done => "no".to_owned(),
        None => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::journal::fixture::Shop;
    use crate::journal::store::Which;

    #[tokio::test]
    async fn lists_what_became_of_deliveries_latest_first() {
        let shop = Shop::new();
        shop.confirmed("o-1", "i-1").await;
        shop.unconfirmed("o-2").await;
        shop.create("o-\u{1b}[2J\n\u{202e}").await;
        let (records, more) = records(&shop.store, Filter::default(), 50).await.unwrap();
        assert!(!more);
        insta::assert_snapshot!(text(&records, Format::Table), @r"
        RECEIVED              ID                                APP  ACTION             DEBUG  ORDER                  INSTANCE  STATE        ATTEMPTS  LAST                         ANSWERED
        2027-01-15T08:00:00Z  096f199d8da8179fa4e4a07d72867f9d  crm  CreateAppInstance  no     o-\u{1b}[2J\n\u{202e}  -         running      1         -                            -
        2027-01-15T08:00:00Z  2b6bf4c038758d4a3757320fc6af65b6  crm  CreateAppInstance  no     o-2                    -         unconfirmed  1         unconfirmed backend_timeout  -
        2027-01-15T08:00:00Z  5cbdcb742069a5823a0c64b49ce721b0  crm  CreateAppInstance  no     o-1                    i-1       done         1         confirmed                    no
        ");
        let json: serde_json::Value = serde_json::from_str(&text(&records, Format::Json)).unwrap();
        assert_eq!(json[2]["order_id"], "o-1");
        assert_eq!(json[2]["confirmation"]["instance_id"], "i-1");
        assert_eq!(json[1]["attempts"][0]["code"], "backend_timeout");
        assert_eq!(json[0]["state"], "running");
        assert_eq!(json[0]["order_id"], "o-\u{1b}[2J\n\u{202e}");
        assert!(!text(&records, Format::Json).contains(['\u{1b}', '\u{202e}']));
    }

    #[tokio::test]
    async fn says_when_there_is_more_and_lists_nothing_as_an_array() {
        let shop = Shop::new();
        for order in ["o-1", "o-2", "o-3"] {
            shop.confirmed(order, order).await;
        }
        let (two, more) = records(&shop.store, Filter::default(), 2).await.unwrap();
        assert!(more && two.len() == 2);
        let filter = Filter { which: Some(Which::Unanswered), ..Filter::default() };
        let (all, more) = records(&shop.store, filter, 3).await.unwrap();
        assert!(!more && all.len() == 3);
        let filter = Filter { order_id: Some("o-9".into()), ..Filter::default() };
        let (none, _) = records(&shop.store, filter, 3).await.unwrap();
        assert_eq!(text(&none, Format::Json), "[]");
    }
}
