//! `spigate journal show`: everything about a delivery.

use std::fmt::Write as _;

use clap::Args;

use super::list::{instance, or_dash, records, time, yes_or_no};
use super::select::{self, Selection};
use super::{Format, Source, to_json_array};
use crate::cli::{Failure, terminal};
use crate::clock;
use crate::journal::entry::{Attempt, Entry, State};
use crate::journal::store::Record;
use crate::journal::view::{Reply, View, milliseconds};
use crate::json;

/// Arguments of `spigate journal show`.
#[derive(Args)]
pub(super) struct Show {
    /// Its Idempotency-Key, or the first digits of it
    #[arg(value_name = "ID", value_parser = select::id)]
    id: Option<String>,
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    selection: Selection,
    /// Most deliveries to show
    #[arg(long, default_value = "10", value_name = "NUMBER")]
    limit: usize,
    /// Show passwords, keys and tokens in replies too
    #[arg(long)]
    reveal: bool,
    /// As text, or as one JSON array for programs
    #[arg(long, value_enum, default_value = "table", hide_possible_values = true, value_name = "table|json")]
    format: Format,
}

impl Show {
    pub(super) async fn run(&self) -> Result<(), Failure> {
        if self.id.is_none() && !self.selection.is_given() {
            return Err(Failure::unusable("say which delivery: its id, or a filter like --order"));
        }
        let visit = self.source.open()?;
        let (records, more) = match &self.id {
            Some(id) => {
                let record = select::find(&*visit.store, id).await?;
                let fits = self.selection.filter(clock::now()).fits(&record);
                (Vec::from_iter(fits.then_some(record)), false)
            }
            None => records(&*visit.store, self.selection.filter(clock::now()), self.limit).await?,
        };
        if records.is_empty() {
            self.selection.hint(&visit.config);
            return Err(Failure::negative("no delivery fits"));
        }
        let mut replies = Vec::with_capacity(records.len());
        for record in &records {
            replies.push(Reply::of(&*visit.store, &visit.vault, &record.entry, self.reveal).await?);
        }
        terminal::say(&text(&records, &replies, self.format));
        if more {
            terminal::complain(&format!("these are the latest {}; --limit shows more", self.limit));
        }
        Ok(())
    }
}

fn text(records: &[Record], replies: &[Reply], format: Format) -> String {
    let both = records.iter().zip(replies);
    match format {
        Format::Json => to_json_array(both.map(|(record, reply)| View::new(record).with_reply(reply))),
        Format::Table => both.map(|(record, reply)| for_humans(record, reply)).collect::<Vec<_>>().join("\n\n"),
    }
}

fn for_humans(record: &Record, reply: &Reply) -> String {
    let (entry, subject) = (&record.entry, &*record.entry.subject);
    let mut text = String::new();
    let mut put = |name: &str, value: &str| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name:12} {value}");
    };
    put("id", &entry.key.idempotency_key());
    put("app", &terminal::plain(&subject.app));
    put("action", &terminal::plain(&subject.action));
    put("debug", yes_or_no(subject.debug));
    put("order", &or_dash(subject.order_id.as_deref()));
    put("instance", &or_dash(instance(entry)));
    put("customer", &or_dash(subject.user_id.as_deref()));
    if entry.cycle > 0 {
        put("cycle", &format!("{}, which a renewal or upgrade of the instance began", entry.cycle));
    }
    put("received", &time(entry.received_at));
    put("state", &format!("{}: {}", entry.state, meaning(entry)));
    if let Some(confirmation) = &entry.confirmation {
        let instance = confirmation.instance_id.as_ref().map(|id| format!(", instance {}", terminal::plain(id)));
        put("confirmed", &format!("{}{}", time(confirmation.at), instance.unwrap_or_default()));
        let never = "never: the platform may not know that it is done";
        put("answered", &entry.answered_at.map_or_else(|| never.to_owned(), time));
    }
    if let Some(decision) = &entry.decision {
        let message = decision.message.as_ref().map(|message| format!(": {}", terminal::plain(message)));
        let what = terminal::plain(&decision.what);
        put("operator", &format!("{what}, {}{}", time(decision.at), message.unwrap_or_default()));
        for (name, value) in [("by", &decision.by), ("why", &decision.why)] {
            if let Some(value) = value {
                put("", &format!("{name:8} {}", terminal::plain(value)));
            }
        }
    }
    for attempt in record.attempts() {
        put(&format!("attempt {}", attempt.number), &course(attempt));
        for line in details(attempt) {
            put("", &line);
        }
    }
    match reply {
        Reply::None => put("reply", "none yet"),
        Reply::Kept(reply) => put("reply", &json::to_lines(reply).replace('\n', &format!("\n{:13}", ""))),
        Reply::Removed | Reply::Lost => put("reply", reply.missing().unwrap_or_default()),
    }
    text.truncate(text.trim_end().len());
    text
}

/// What a state means for the next copy.
fn meaning(entry: &Entry) -> &'static str {
    match entry.state {
        State::Running => "an attempt runs, and copies wait for it",
        State::Open => "the next copy is forwarded",
        State::Unconfirmed => {
            "it may have been executed; the next copy is forwarded or, with on_unconfirmed = \"hold\", waits for \
             `spigate journal resolve`"
        }
        State::Done => "copies get the recorded reply",
        State::Closed => "copies are refused, as the operator decided",
    }
}

/// `2026-11-22T18:00:00Z, 0.532 s: failed, backend_error`
fn course(attempt: &Attempt) -> String {
    let began = format!("{:.3}", attempt.began_at);
    let Some(ended) = &attempt.ended else { return format!("{began}: runs") };
    let took = milliseconds(attempt).map(|took| format!(", {}.{:03} s", took / 1000, (took % 1000).abs()));
    let code = ended.code.as_ref().map(|code| format!(", {}", terminal::plain(code)));
    format!("{began}{}: {}{}", took.unwrap_or_default(), ended.outcome.as_str(), code.unwrap_or_default())
}

fn details(attempt: &Attempt) -> Vec<String> {
    let ended = attempt.ended.as_ref();
    let of_end = [
        ("rule", ended.and_then(|ended| ended.rule.as_deref())),
        ("cause", ended.and_then(|ended| ended.detail.as_deref())),
        ("instance", ended.and_then(|ended| ended.instance_id.as_deref())),
        ("request", Some(&*attempt.request_id)),
        ("gateway", Some(&*attempt.claimant.gateway)),
    ];
    let given = of_end.into_iter().filter_map(|(name, value)| Some((name, value?)));
    given.map(|(name, value)| format!("{name:8} {}", terminal::plain(value))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::cli::journal::fixture::{PASSWORD, Shop};
    use crate::journal::store::Filter;
    use crate::journal::vault::Vault;

    async fn show(shop: &Shop, reveal: bool, format: Format) -> String {
        let (records, _) = records(&shop.store, Filter::default(), 9).await.unwrap();
        let mut replies = Vec::new();
        for record in &records {
            replies.push(Reply::of(&shop.store, &shop.vault, &record.entry, reveal).await.unwrap());
        }
        text(&records, &replies, format)
    }

    #[tokio::test]
    async fn shows_every_attempt_and_the_reply_without_its_password() {
        let shop = Shop::new();
        shop.unconfirmed("o-1").await;
        shop.confirmed("o-1", "i-1").await;
        let text = show(&shop, false, Format::Table).await;
        assert!(!text.contains(PASSWORD));
        insta::assert_snapshot!(text, @r#"
        id           5cbdcb742069a5823a0c64b49ce721b0
        app          crm
        action       CreateAppInstance
        debug        no
        order        o-1
        instance     i-1
        customer     usr-1
        received     2027-01-15T08:00:00Z
        state        done: copies get the recorded reply
        confirmed    2027-01-15T08:00:01Z, instance i-1
        answered     never: the platform may not know that it is done
        attempt 1    2027-01-15T08:00:00.000Z, 1.532 s: unconfirmed, backend_timeout
                     cause    no complete reply within 60s
                     request  req-1
                     gateway  gw-1
        attempt 2    2027-01-15T08:00:00.000Z, 1.532 s: confirmed
                     instance i-1
                     request  req-1
                     gateway  gw-1
        reply        {
                       "success": true,
                       "instanceId": "i-1",
                       "appInfo": {
                         "admin": {
                           "username": "admin",
                           "password": "(redacted)"
                         }
                       }
                     }
        "#);
        let json: Value = serde_json::from_str(&show(&shop, false, Format::Json).await).unwrap();
        assert_eq!(json[0]["attempts"][1]["outcome"], "confirmed");
        assert_eq!(json[0]["reply"]["appInfo"]["admin"]["password"], "(redacted)");
        for format in [Format::Table, Format::Json] {
            assert!(show(&shop, true, format).await.contains(PASSWORD));
        }
    }

    #[tokio::test]
    async fn says_why_there_is_no_reply_and_what_the_operator_decided() {
        let shop = Shop::new();
        shop.unconfirmed("o-1").await;
        assert!(show(&shop, false, Format::Table).await.ends_with("reply        none yet"));
        shop.decide("o-1", "sold\u{1b}[1m out").await;
        let text = show(&shop, false, Format::Table).await;
        assert!(text.contains("failed, 2027-01-15T08:00:00Z: sold\\u{1b}[1m out"), "{text}");
        shop.confirmed("o-2", "i-2").await;
        let lost = Shop { vault: Vault::new([], None), ..shop };
        assert!(show(&lost, true, Format::Table).await.contains("reply        cannot be opened by any"));
        assert!(show(&lost, true, Format::Json).await.contains(r#""reply":null,"reply_missing":"cannot be opened"#));
    }
}
