//! `spigate journal resolve`: what only the operator knows of a delivery.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::{Source, Visit, select};
use crate::cli::{Failure, terminal};
use crate::clock;
use crate::journal::resolve::{Author, MESSAGE, Refused, Resolver, Verdict};
use clap::Args;

/// Arguments of `spigate journal resolve`.
#[derive(Args)]
pub(super) struct Resolve {
    /// Its Idempotency-Key, or the first digits of it
    #[arg(value_name = "ID", value_parser = select::id)]
    id: String,
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    decision: Decision,
    /// With --done: the file with the reply that the backend gave or would have given; - reads
    /// standard input. Shells keep passwords in their history: prefer a file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["retry", "failed", "settled"])]
    reply: Option<PathBuf>,
    /// Who decides; kept with the delivery
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    /// Why; kept with the delivery
    #[arg(long, value_name = "TEXT")]
    why: Option<String>,
    /// With --failed: what the platform is told
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["retry", "done", "settled"])]
    message: Option<String>,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Decision {
    /// It was not executed, or may be once more: forward the next copy
    #[arg(long)]
    retry: bool,
    /// It was executed: answer the next copy with --reply, without calling the backend
    #[arg(long, requires = "reply")]
    done: bool,
    /// It failed for good: refuse every copy with --message
    #[arg(long)]
    failed: bool,
    /// It is done, and the platform or the customer was told by other means: no longer count it
    /// as unanswered
    #[arg(long)]
    settled: bool,
}

impl Resolve {
    pub(super) async fn run(&self) -> Result<(), Failure> {
        let visit = self.source.open()?;
        let verdict = match (&self.reply, self.decision.failed) {
            (Some(file), _) => Verdict::Done(read(file, visit.config.limits.reply_bytes)?),
            (None, true) => Verdict::Failed(self.message.clone().unwrap_or_else(|| MESSAGE.to_owned())),
            (None, false) if self.decision.settled => Verdict::Settled,
            (None, false) => Verdict::Retry,
        };
        let author = Author { by: self.by.clone(), why: self.why.clone() };
        terminal::say(&visit.resolve(&self.id, verdict, author).await?);
        Ok(())
    }
}

fn read(file: &Path, most: usize) -> Result<Vec<u8>, Failure> {
    let limit = u64::try_from(most).unwrap_or(u64::MAX).saturating_add(1);
    let mut bytes = Vec::new();
    let result = if file == Path::new("-") {
        std::io::stdin().take(limit).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(limit).read_to_end(&mut bytes))
    };
    result.map_err(|error| Failure::unusable(format!("--reply {}: cannot be read: {error}", file.display())))?;
    if bytes.len() > most {
        return Err(Failure::negative(format!("the reply is longer than limits.reply_bytes, {most} bytes")));
    }
    Ok(bytes.trim_ascii().to_vec())
}

impl Visit {
    async fn resolve(&self, id: &str, verdict: Verdict, author: Author) -> Result<String, Failure> {
        let app = |name: &str| self.config.apps.iter().find(|app| app.name == name).cloned();
        let resolver = Resolver { app: &app, store: &*self.store, vault: &self.vault };
        let (_, next) = resolver.resolve(id, verdict, author, clock::now()).await?;
        Ok(next)
    }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::NotFound(error) => error.into(),
            Refused::Unavailable(unavailable) => unavailable.into(),
            refused => Self::negative(refused.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::cli::journal::fixture::{Shop, now, reply};
    use crate::journal::entry::{Ending, Entry, Reason, State};
    use crate::journal::key::Lookalike;
    use crate::journal::store::{Deliveries as _, Filter, Record, Store};
    use crate::journal::view::Reply;

    impl Shop {
        async fn resolve(&self, order: &str, verdict: Verdict) -> Result<String, String> {
            let id = self.entry(order).await.key.idempotency_key();
            let app = |name: &str| self.config.apps.iter().find(|app| app.name == name).cloned();
            let resolver = Resolver { app: &app, store: &self.store, vault: &self.vault };
            let resolved = resolver.resolve(&id[..12], verdict, Author::default(), now()).await;
            resolved.map(|(_, next)| next).map_err(|refused| refused.to_string())
        }

        async fn entry(&self, order: &str) -> Entry {
            let filter = Filter { order_id: Some(order.to_owned()), ..Filter::default() };
            let store: &dyn Store = &self.store;
            let Record { entry, .. } = store.list(filter, None, 1).await.unwrap().remove(0);
            entry
        }
    }

    fn done(instance: &str) -> Verdict {
        Verdict::Done(reply(instance).into_bytes())
    }

    #[tokio::test]
    async fn an_unconfirmed_delivery_can_be_retried_done_or_failed() {
        let shop = Shop::new();
        for order in ["o-1", "o-2", "o-3"] {
            shop.unconfirmed(order).await;
        }
        let next = shop.resolve("o-1", Verdict::Retry).await.unwrap();
        assert!(next.contains("is open: the next copy is forwarded as attempt 2"), "{next}");
        assert_eq!(shop.entry("o-1").await.state, State::Open);
        shop.resolve("o-2", done("i-2")).await.unwrap();
        let entry = shop.entry("o-2").await;
        assert_eq!(entry.state, State::Done);
        let kept = Reply::of(&shop.store, &shop.vault, &entry, true).await.unwrap();
        assert!(kept == Reply::Kept(serde_json::from_str(&reply("i-2")).unwrap()));
        let next = shop.resolve("o-3", Verdict::Failed("sold out".into())).await.unwrap();
        assert!(next.contains("refused with the message \"sold out\""), "{next}");
        // Even then the operator may think again.
        shop.resolve("o-3", Verdict::Retry).await.unwrap();
        assert_eq!(shop.entry("o-3").await.state, State::Open);
    }

    #[tokio::test]
    async fn what_runs_or_is_done_is_left_alone() {
        let shop = Shop::new();
        shop.create("o-1").await;
        shop.confirmed("o-2", "i-2").await;
        for verdict in [Verdict::Retry, done("i-1"), Verdict::Failed(String::new())] {
            let said = shop.resolve("o-1", verdict).await.unwrap_err();
            assert!(said.contains("an attempt runs"), "{said}");
        }
        for verdict in [Verdict::Retry, done("i-2"), Verdict::Failed(String::new())] {
            let said = shop.resolve("o-2", verdict).await.unwrap_err();
            assert!(said.contains("is done; the backend's confirmation is recorded"), "{said}");
        }
    }

    #[tokio::test]
    async fn what_was_told_by_other_means_is_no_longer_unanswered() {
        let shop = Shop::new();
        shop.confirmed("o-1", "i-1").await;
        shop.unconfirmed("o-2").await;
        let next = shop.resolve("o-1", Verdict::Settled).await.unwrap();
        assert!(next.contains("counts as answered"), "{next}");
        let entry = shop.entry("o-1").await;
        assert_eq!((entry.state, entry.answered_at), (State::Done, Some(now())));
        assert_eq!(entry.decision.unwrap().what, "settled");
        let said = shop.resolve("o-2", Verdict::Settled).await.unwrap_err();
        assert!(said.contains("is not done"), "{said}");
    }

    /// Nobody should wait for copies that will be taken for those of another purchase.
    #[tokio::test]
    async fn what_gives_way_to_another_purchase_says_so() {
        let shop = Shop::new();
        let claim = async |number: u8| {
            let order = format!("o-{number}");
            let mut ask = shop.ask(&[number; 32], &order);
            Arc::make_mut(&mut ask.subject).lookalike = Lookalike::from_slice(&[7; 32]);
            let entry = shop.store.claim(Arc::new(ask)).await.unwrap().entry;
            assert_eq!(entry.subject.order_id.as_deref(), Some(&*order));
            shop.finish(&entry, &order, Ending::Unconfirmed(Reason::default())).await;
            entry.key
        };
        let key = claim(1).await;
        shop.resolve("o-1", Verdict::Failed("sold out".into())).await.unwrap();
        let next = shop.resolve("o-1", Verdict::Retry).await.unwrap();
        assert!(!next.contains("another purchase"), "{next}");
        shop.resolve("o-1", Verdict::Failed("sold out".into())).await.unwrap();
        shop.store.answered(key, State::Closed, now()).await.unwrap();
        claim(2).await;
        let next = shop.resolve("o-1", Verdict::Retry).await.unwrap();
        assert!(next.contains("the platform has to call again. Since the platform was told"), "{next}");
        assert!(next.contains("another purchase that looks like it has come"), "{next}");
    }

    #[tokio::test]
    async fn a_reply_must_be_one_that_the_platform_takes() {
        let shop = Shop::new();
        shop.confirmed("o-1", "i-1").await;
        shop.unconfirmed("o-2").await;
        for (reply, said) in [
            (r#"{"success":true}"#, "instance_id_missing"),
            (r#"{"success":false,"message":"no"}"#, "use --failed"),
            ("", "empty_body"),
            ("\u{1b}[2J", "invalid_json"),
            (&*reply("i-1"), "belongs to another order"),
        ] {
            let error = shop.resolve("o-2", Verdict::Done(reply.into())).await.unwrap_err();
            assert!(error.contains(said), "{error}");
        }
        assert_eq!(shop.entry("o-2").await.state, State::Unconfirmed);
        let gone = Shop { config: Shop::configured("erp"), ..shop };
        let error = gone.resolve("o-2", done("i-2")).await.unwrap_err();
        assert!(error.contains("no app called crm"), "{error}");
    }

    #[tokio::test]
    async fn a_done_delivery_gets_a_new_reply_only_if_its_own_is_lost() {
        let shop = Shop::new();
        shop.confirmed("o-1", "i-1").await;
        let lost = Shop { vault: Shop::vault("another key"), ..shop };
        let error = lost.resolve("o-1", done("i-9")).await.unwrap_err();
        assert!(error.contains("with the instance id i-1; the reply must name the same"), "{error}");
        lost.resolve("o-1", done("i-1")).await.unwrap();
        let entry = lost.store.look(lost.entry("o-1").await.key).await.unwrap().unwrap();
        assert!(matches!(Reply::of(&lost.store, &lost.vault, &entry, true).await.unwrap(), Reply::Kept(_)));
        assert!(lost.resolve("o-1", done("i-1")).await.unwrap_err().contains("is done"));
    }
}
