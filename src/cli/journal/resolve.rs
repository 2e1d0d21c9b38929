//! `spigate journal resolve`: what only the operator knows of a delivery.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::Args;
use jiff::Timestamp;

use super::{Source, select};
use crate::cli::{Failure, terminal};
use crate::clock;
use crate::config::Config;
use crate::dialect::reply::{Judgement, ReplyContract};
use crate::journal::entry::{Entry, State};
use crate::journal::machine::{Resolution, Unresolvable};
use crate::journal::store::Store;
use crate::journal::vault::{Opened, Vault};

/// What the platform is told without --message.
const MESSAGE: &str = "the order failed";

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

/// A decision with what it takes.
enum Verdict {
    Retry,
    Done(Vec<u8>),
    Failed(String),
    Settled,
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
        let resolver = Resolver { config: &visit.config, store: &*visit.store, vault: &visit.vault };
        let next = resolver.resolve(&self.id, verdict, clock::now()).await?;
        terminal::say(&next);
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

struct Resolver<'a> {
    config: &'a Config,
    store: &'a dyn Store,
    vault: &'a Vault,
}

impl Resolver<'_> {
    /// Records a decision; what happens next.
    async fn resolve(&self, id: &str, verdict: Verdict, now: Timestamp) -> Result<String, Failure> {
        let entry = select::find(self.store, id).await?.entry;
        let id = entry.key.idempotency_key();
        let (resolution, next) = match verdict {
            Verdict::Retry => (Resolution::Retry, retry(&entry)),
            Verdict::Settled => {
                let next = format!(
                    "{id} is settled: it counts as answered. Should the platform come again, it gets the recorded reply."
                );
                (Resolution::Settled, next)
            }
            Verdict::Failed(message) => {
                let next = format!(
                    "{id} is closed: every copy that comes is refused with the message \"{}\". If the backend's \
                     confirmation still comes in, it counts.",
                    terminal::plain(&message)
                );
                (Resolution::Failed { message }, next)
            }
            Verdict::Done(reply) => {
                let lost_reply = self.has_lost_its_reply(&entry).await?;
                // Before the reply is looked at: a mistake in it is not the point then.
                match entry.state {
                    State::Done if !lost_reply => return Err(refusal(&id, Unresolvable::Done)),
                    State::Running => return Err(refusal(&id, Unresolvable::Running)),
                    _ => {}
                }
                let instance_id = self.judge(&entry, &reply)?;
                let reply = self.vault.seal(self.store, &entry.app, &entry.key, &reply, now).await?;
                let next = format!("{id} is done: the next copy gets this reply, and the backend is not called.");
                (Resolution::Done { instance_id, reply, lost_reply }, next)
            }
        };
        let settled = matches!(resolution, Resolution::Settled);
        match self.store.resolve(entry.key, resolution, now).await? {
            Some(Ok(_)) => {
                if settled {
                    self.store.answered(entry.key, now).await?;
                    // Comes back after what was told before it.
                    self.store.close().await?;
                }
                Ok(next)
            }
            Some(Err(unresolvable)) => Err(refusal(&id, unresolvable)),
            None => Err(Failure::negative(format!("{id}: it was removed a moment ago"))),
        }
    }

    async fn has_lost_its_reply(&self, entry: &Entry) -> Result<bool, Failure> {
        let (State::Done, Some(sealed)) = (entry.state, &entry.reply) else { return Ok(false) };
        Ok(self.vault.open(self.store, &entry.app, &entry.key, sealed).await? == Opened::Lost)
    }

    /// Whether a reply is one that the backend could have given; the instance that it names.
    fn judge(&self, entry: &Entry, reply: &[u8]) -> Result<Option<String>, Failure> {
        let instance_id = match self.contract(entry)?.judge(reply) {
            Ok(Judgement::Success { instance_id }) => instance_id,
            Ok(Judgement::Refusal) => {
                return Err(Failure::negative(
                    "the reply says success = false, which is not done; use --failed, with its message",
                ));
            }
            Err(violation) => {
                let violation = terminal::plain(&violation.to_string());
                return Err(Failure::negative(format!(
                    "the reply breaks the contract of {}: {violation}",
                    entry.action
                )));
            }
        };
        // A new reply for a confirmed delivery must not change what was confirmed.
        let confirmed = entry.confirmation.as_ref().and_then(|confirmation| confirmation.instance_id.as_ref());
        match confirmed {
            Some(confirmed) if instance_id.as_ref() != Some(confirmed) => Err(Failure::negative(format!(
                "the delivery is recorded as done with the instance id {}; the reply must name the same",
                terminal::plain(confirmed)
            ))),
            _ => Ok(instance_id),
        }
    }

    fn contract(&self, entry: &Entry) -> Result<&ReplyContract, Failure> {
        let app = self.config.apps.iter().find(|app| app.name == entry.app);
        let app = app.ok_or_else(|| {
            Failure::negative(terminal::plain(&format!(
                "the configuration has no app called {}, so it cannot be said what its replies have to be",
                entry.app
            )))
        })?;
        let action = app.dialect.action_index(&entry.action).ok_or_else(|| {
            Failure::negative(terminal::plain(&format!(
                "the dialect {} of app {} has no action called {}",
                app.dialect.name, entry.app, entry.action
            )))
        })?;
        Ok(&app.dialect.actions[action].reply)
    }
}

fn retry(entry: &Entry) -> String {
    format!(
        "{0} is open: the next copy is forwarded as attempt {1}, with the same Idempotency-Key. spigate sends nothing \
         by itself: the platform has to call again.",
        entry.key.idempotency_key(),
        entry.latest.number.saturating_add(1)
    )
}

fn refusal(id: &str, unresolvable: Unresolvable) -> Failure {
    Failure::negative(match unresolvable {
        Unresolvable::Running => format!(
            "{id}: an attempt runs; wait for its end. If its gateway is no more, the attempt ends when a gateway is \
             started on this journal, or when its lease has run out"
        ),
        Unresolvable::Done => {
            format!("{id}: is done; the backend's confirmation is recorded, and copies get its reply")
        }
        Unresolvable::NotDone => {
            format!("{id}: is not done, so there is nothing to settle; use --done with its reply, or --failed")
        }
        Unresolvable::InstanceReused => {
            format!("{id}: the instance id of the reply belongs to another order of the app")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::journal::fixture::{Shop, now, reply};
    use crate::journal::store::{Deliveries as _, Filter, Record};
    use crate::journal::view::Reply;

    impl Shop {
        async fn resolve(&self, order: &str, verdict: Verdict) -> Result<String, String> {
            let id = self.entry(order).await.key.idempotency_key();
            let resolver = Resolver { config: &self.config, store: &self.store, vault: &self.vault };
            resolver.resolve(&id[..12], verdict, now()).await.map_err(|failure| failure.message)
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
