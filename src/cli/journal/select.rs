//! Which deliveries: filters, and ids that may be abbreviated.

use std::time::Duration;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use jiff::{SignedDuration, Timestamp};

use crate::cli::{Failure, terminal};
use crate::config::{Config, units};
use crate::journal::entry::{AttemptOutcome, State};
use crate::journal::store::{Filter, Record, Store, Which};

/// Fewest digits of an id that may stand for it, and all of them.
const DIGITS: std::ops::RangeInclusive<usize> = 6..=32;

/// What deliveries have to be to be shown.
#[derive(Args)]
pub(super) struct Selection {
    /// Of this app
    #[arg(long)]
    app: Option<String>,
    /// With this action, as the platform calls it
    #[arg(long)]
    action: Option<String>,
    /// With this order number
    #[arg(long, value_name = "NUMBER")]
    order: Option<String>,
    /// About this instance, or that made it
    #[arg(long, value_name = "ID")]
    instance: Option<String>,
    /// Of this customer
    #[arg(long, value_name = "ID")]
    user: Option<String>,
    /// What became of them: where they stand (running, open, unconfirmed, done, closed), how any
    /// attempt ended (confirmed, refused, failed, duplicate_confirmed), or unanswered: confirmed
    /// by the backend, never answered to the platform
    #[arg(long, value_parser = outcomes(), hide_possible_values = true)]
    outcome: Option<Which>,
    /// Received at or after this time: RFC 3339, or a duration like 2h or 7d for so long ago
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<Moment>,
    /// Received before this time
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<Moment>,
}

impl Selection {
    /// As stores are asked.
    pub(super) fn filter(&self, now: Timestamp) -> Filter {
        Filter {
            id: None,
            app: self.app.clone(),
            action: self.action.clone(),
            order_id: self.order.clone(),
            instance_id: self.instance.clone(),
            user_id: self.user.clone(),
            which: self.outcome,
            since: self.since.map(|moment| moment.at(now)),
            until: self.until.map(|moment| moment.at(now)),
        }
    }

    /// Whether anything is asked for.
    pub(super) fn is_given(&self) -> bool {
        let texts = [&self.app, &self.action, &self.order, &self.instance, &self.user];
        texts.iter().any(|text| text.is_some())
            || self.outcome.is_some()
            || self.since.is_some()
            || self.until.is_some()
    }

    /// Tells on standard error what may be mistyped: the journal also knows apps of the past, so
    /// it is no mistake for sure.
    pub(super) fn hint(&self, config: &Config) {
        if let Some(name) = &self.app
            && !config.apps.iter().any(|app| app.name == *name)
        {
            terminal::complain(&terminal::plain(&format!("note: the configuration has no app called {name}")));
        }
    }
}

/// A time as it is typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    At(Timestamp),
    Ago(Duration),
}

impl Moment {
    fn at(self, now: Timestamp) -> Timestamp {
        match self {
            Self::At(time) => time,
            Self::Ago(age) => {
                SignedDuration::try_from(age).ok().and_then(|age| now.checked_sub(age).ok()).unwrap_or(Timestamp::MIN)
            }
        }
    }
}

fn moment(text: &str) -> Result<Moment, String> {
    if let Ok(age) = units::duration(text) {
        return Ok(Moment::Ago(age));
    }
    text.parse().map(Moment::At).map_err(|_| {
        "is neither a time like 2026-11-22T18:00:00Z or 2026-11-23T02:00:00+08:00 nor a duration like 30m, 2h or 7d"
            .to_owned()
    })
}

fn outcomes() -> impl TypedValueParser<Value = Which> {
    let attempts = AttemptOutcome::ALL.map(AttemptOutcome::as_str);
    let names = State::ALL.map(State::as_str).into_iter().chain(["unanswered"]);
    // An attempt's "unconfirmed" is the delivery's, until somebody decides.
    let names = names.chain(attempts.into_iter().filter(|name| State::named(name).is_none()));
    PossibleValuesParser::new(names.collect::<Vec<_>>()).map(|name| {
        State::named(&name)
            .map(Which::State)
            .or_else(|| AttemptOutcome::named(&name).map(Which::Attempt))
            .unwrap_or(Which::Unanswered)
    })
}

/// Reads an id, whole or abbreviated.
pub(super) fn id(text: &str) -> Result<String, String> {
    if DIGITS.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(text.to_ascii_lowercase());
    }
    Err("must be an Idempotency-Key, or at least its first 6 digits (0-9, a-f); `spigate journal list` shows them"
        .to_owned())
}

/// The one delivery whose id begins so.
pub(super) async fn find(store: &dyn Store, id: &str) -> Result<Record, Failure> {
    let filter = Filter { id: Some(id.to_owned()), ..Filter::default() };
    let mut found = store.list(filter, None, 5).await?;
    if found.len() > 1 {
        let ids = found.iter().map(|record| format!("\n{}", record.entry.key.idempotency_key())).collect::<String>();
        return Err(Failure::negative(format!("{id}: more than one delivery has an id that begins so:{ids}")));
    }
    found.pop().ok_or_else(|| Failure::negative(format!("{id}: no delivery has an id that begins so")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::journal::fixture::{Shop, now};

    #[test]
    fn times_are_read_as_people_write_them() {
        let at = |text: &str| moment(text).map(|moment| moment.at(now()).to_string());
        assert_eq!(at("2026-11-22T18:00:00Z").unwrap(), "2026-11-22T18:00:00Z");
        assert_eq!(at("2026-11-23T02:00:00+08:00").unwrap(), "2026-11-22T18:00:00Z");
        assert_eq!(at("2h").unwrap(), (now() - SignedDuration::from_hours(2)).to_string());
        assert_eq!(moment("213503982334d").unwrap().at(now()), Timestamp::MIN);
        for wrong in ["", "yesterday", "2026-11-22", "-2h", "2 h"] {
            assert!(moment(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn ids_are_read_whole_or_abbreviated() {
        assert_eq!(id("ABCDEF").unwrap(), "abcdef");
        assert!(id(&"0".repeat(32)).is_ok());
        for wrong in ["", "abcde", "abcdeg", "%abcdef", &"0".repeat(33)] {
            assert!(id(wrong).is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn an_abbreviated_id_must_be_the_only_one() {
        let shop = Shop::new();
        let entries = [shop.create_with_key(&[0xaa; 4], "o-1").await, shop.create_with_key(&[0xaa; 3], "o-2").await];
        let whole = entries[0].key.idempotency_key();
        let found = find(&shop.store, &whole).await.unwrap();
        assert_eq!(found.entry.order_id.as_deref(), Some("o-1"));
        assert!(find(&shop.store, "aaaaaaaa").await.is_ok());
        for (id, said) in [("aaaaaa", "more than one"), ("bbbbbb", "no delivery")] {
            let failure = find(&shop.store, id).await.unwrap_err();
            assert!(failure.message.contains(said) && failure.code == 1, "{}", failure.message);
        }
    }
}
