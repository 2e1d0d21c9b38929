//! Which deliveries: filters, and ids that may be abbreviated.

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use jiff::Timestamp;

use crate::cli::{Failure, terminal};
use crate::config::Config;
use crate::journal::select::{self, Moment, NotFound};
use crate::journal::store::{Filter, Record, Store, Which};

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
    #[arg(long, value_name = "TIME", value_parser = Moment::parse)]
    since: Option<Moment>,
    /// Received before this time
    #[arg(long, value_name = "TIME", value_parser = Moment::parse)]
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

fn outcomes() -> impl TypedValueParser<Value = Which> {
    PossibleValuesParser::new(Which::names().collect::<Vec<_>>())
        // It is one of those names.
        .map(|name| Which::named(&name).unwrap_or(Which::Unanswered))
}

pub(super) use crate::journal::select::id;

/// The one delivery whose id begins so.
pub(super) async fn find(store: &dyn Store, id: &str) -> Result<Record, Failure> {
    Ok(select::find(store, id).await?)
}

impl From<NotFound> for Failure {
    fn from(error: NotFound) -> Self {
        match error {
            NotFound::Unavailable(unavailable) => unavailable.into(),
            NotFound::None { .. } | NotFound::Several { .. } => Self::negative(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::journal::fixture::Shop;

    #[tokio::test]
    async fn an_abbreviated_id_must_be_the_only_one() {
        let shop = Shop::new();
        let entries = [shop.create_with_key(&[0xaa; 4], "o-1").await, shop.create_with_key(&[0xaa; 3], "o-2").await];
        let whole = entries[0].key.idempotency_key();
        let found = find(&shop.store, &whole).await.unwrap();
        assert_eq!(found.entry.subject.order_id.as_deref(), Some("o-1"));
        assert!(find(&shop.store, "aaaaaaaa").await.is_ok());
        for (id, said) in [("aaaaaa", "more than one"), ("bbbbbb", "no delivery")] {
            let failure = find(&shop.store, id).await.unwrap_err();
            assert!(failure.message.contains(said) && failure.code == 1, "{}", failure.message);
        }
    }
}
