//! What only the operator knows of a delivery: whether it was executed, may be once more, failed
//! for good, or was told by other means. `spigate journal resolve` and the journal page ask here.

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;

use super::entry::{Entry, State, Subject};
use super::machine::{Resolution, Ruling, Unresolvable};
use super::select::{self, NotFound};
use super::store::{Store, Unavailable};
use super::vault::{Opened, Vault};
use crate::config::AppConfig;
use crate::dialect::reply::{Judgement, ReplyContract};
use crate::plain::plain;

/// What the platform is told of a failed delivery if nothing else is given.
pub const MESSAGE: &str = "the order failed";

/// What is added where an order without a number is no longer the one that lookalikes join.
const GAVE_WAY: &str = " Since the platform was told that it failed, another purchase that looks like it has come and \
                        is not answered yet: what looks like both is a copy of that one. Only byte-identical copies \
                        of the requests that came before are copies of this one.";

/// A decision with what it takes.
#[derive(Clone)]
pub enum Verdict {
    /// It was not executed, or may be once more.
    Retry,
    /// It was executed, and this is its reply.
    Done(Vec<u8>),
    /// It failed for good; this is what the platform is told.
    Failed(String),
    /// The platform or the customer was told by other means.
    Settled,
}

/// Who decides, as they call themselves, and why.
#[derive(Clone, Debug, Default)]
pub struct Author {
    /// Who.
    pub by: Option<String>,
    /// Why.
    pub why: Option<String>,
}

/// Why a decision is not taken.
#[derive(Debug)]
pub enum Refused {
    /// There is not just one such delivery.
    NotFound(NotFound),
    /// Where the delivery stands does not allow it.
    Unresolvable {
        /// The delivery.
        id: String,
        /// Why.
        why: Unresolvable,
    },
    /// The reply for a done delivery is a refusal.
    SaysNo,
    /// The reply breaks the contract.
    Broken {
        /// Of this action.
        action: String,
        /// In this way.
        violation: String,
    },
    /// The reply names another instance than what is recorded.
    OtherInstance {
        /// The recorded one.
        confirmed: String,
    },
    /// The configuration has no such app any more.
    UnknownApp {
        /// Its name.
        app: String,
    },
    /// The app's dialect has no such action any more.
    UnknownAction {
        /// The dialect.
        dialect: String,
        /// The app.
        app: String,
        /// The action.
        action: String,
    },
    /// Retention was faster.
    Removed {
        /// The delivery.
        id: String,
    },
    /// The journal cannot be read or written.
    Unavailable(Unavailable),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound(error) => error.fmt(f),
            Self::Unresolvable { id, why: Unresolvable::Running } => write!(
                f,
                "{id}: an attempt runs; wait for its end. If its gateway is no more, the attempt ends when a gateway is \
                 started on this journal, or when its lease has run out"
            ),
            Self::Unresolvable { id, why: Unresolvable::Done } => {
                write!(f, "{id}: is done; the backend's confirmation is recorded, and copies get its reply")
            }
            Self::Unresolvable { id, why: Unresolvable::NotDone } => {
                write!(f, "{id}: is not done, so there is nothing to settle; use --done with its reply, or --failed")
            }
            Self::Unresolvable { id, why: Unresolvable::InstanceReused } => {
                write!(f, "{id}: the instance id of the reply belongs to another order of the app")
            }
            Self::SaysNo => {
                f.write_str("the reply says success = false, which is not done; use --failed, with its message")
            }
            Self::Broken { action, violation } => {
                write!(f, "the reply breaks the contract of {}: {}", plain(action), plain(violation))
            }
            Self::OtherInstance { confirmed } => write!(
                f,
                "the delivery is recorded as done with the instance id {}; the reply must name the same",
                plain(confirmed)
            ),
            Self::UnknownApp { app } => write!(
                f,
                "the configuration has no app called {}, so it cannot be said what its replies have to be",
                plain(app)
            ),
            Self::UnknownAction { dialect, app, action } => {
                write!(f, "the dialect {dialect} of app {} has no action called {}", plain(app), plain(action))
            }
            Self::Removed { id } => write!(f, "{id}: it was removed a moment ago"),
            Self::Unavailable(unavailable) => write!(f, "journal: {unavailable}"),
        }
    }
}

impl std::error::Error for Refused {}

impl From<Unavailable> for Refused {
    fn from(unavailable: Unavailable) -> Self {
        Self::Unavailable(unavailable)
    }
}

/// Takes decisions.
pub struct Resolver<'a> {
    /// The app of this name, if there is one.
    pub app: &'a (dyn Fn(&str) -> Option<AppConfig> + Send + Sync),
    /// The journal.
    pub store: &'a dyn Store,
    /// What seals replies.
    pub vault: &'a Vault,
}

impl Resolver<'_> {
    /// Records a decision about the delivery whose id begins so, and whose it is; says what happens
    /// next.
    ///
    /// # Errors
    /// See [`Refused`].
    pub async fn resolve(
        &self,
        id: &str,
        verdict: Verdict,
        Author { by, why }: Author,
        now: Timestamp,
    ) -> Result<(Entry, String), Refused> {
        let entry = match select::find(self.store, id).await {
            Ok(record) => record.entry,
            Err(NotFound::Unavailable(unavailable)) => return Err(unavailable.into()),
            Err(error) => return Err(Refused::NotFound(error)),
        };
        let id = entry.key.idempotency_key();
        let unresolvable = |why| Refused::Unresolvable { id: id.clone(), why };
        let had_lookalike = entry.subject.lookalike.is_some();
        let (resolution, mut next) = match verdict {
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
                    plain(&message)
                );
                (Resolution::Failed { message }, next)
            }
            Verdict::Done(reply) => {
                let lost_reply = self.has_lost_its_reply(&entry).await?;
                // Before the reply is looked at: a mistake in it is not the point then.
                match entry.state {
                    State::Done if !lost_reply => return Err(unresolvable(Unresolvable::Done)),
                    State::Running => return Err(unresolvable(Unresolvable::Running)),
                    _ => {}
                }
                let instance_id = self.judge(&entry, &reply)?;
                let reply = self.vault.seal(self.store, &entry.subject.app, &entry.key, &reply, now).await?;
                let next = format!("{id} is done: the next copy gets this reply, and the backend is not called.");
                (Resolution::Done { instance_id, reply, lost_reply }, next)
            }
        };
        let settled = matches!(resolution, Resolution::Settled);
        match self.store.resolve(entry.key, Ruling { resolution, by, why }, now).await? {
            Some(Ok(entry)) => {
                if had_lookalike && entry.subject.lookalike.is_none() {
                    next.push_str(GAVE_WAY);
                }
                if settled {
                    // Some stores keep this beside what they write of an entry.
                    self.store.answered(entry.key, State::Done, now).await?;
                }
                Ok((entry, next))
            }
            Some(Err(why)) => Err(unresolvable(why)),
            None => Err(Refused::Removed { id }),
        }
    }

    async fn has_lost_its_reply(&self, entry: &Entry) -> Result<bool, Unavailable> {
        let (State::Done, Some(sealed)) = (entry.state, &entry.reply) else { return Ok(false) };
        Ok(self.vault.open(self.store, &entry.subject.app, &entry.key, sealed).await? == Opened::Lost)
    }

    /// Whether a reply is one that the backend could have given; the instance that it names.
    fn judge(&self, entry: &Entry, reply: &[u8]) -> Result<Option<Arc<str>>, Refused> {
        let Subject { app, action, .. } = &*entry.subject;
        let app = (self.app)(app).ok_or_else(|| Refused::UnknownApp { app: app.to_string() })?;
        let instance_id = match contract(&app, entry)?.judge(reply) {
            Ok(Judgement::Success { instance_id }) => instance_id.map(Arc::from),
            Ok(Judgement::Refusal) => return Err(Refused::SaysNo),
            Err(violation) => {
                return Err(Refused::Broken { action: action.to_string(), violation: violation.to_string() });
            }
        };
        // A new reply for a confirmed delivery must not change what was confirmed.
        let confirmed = entry.confirmation.as_ref().and_then(|confirmation| confirmation.instance_id.as_ref());
        match confirmed {
            Some(confirmed) if instance_id.as_ref() != Some(confirmed) => {
                Err(Refused::OtherInstance { confirmed: confirmed.to_string() })
            }
            _ => Ok(instance_id),
        }
    }
}

fn contract<'a>(app: &'a AppConfig, entry: &Entry) -> Result<&'a ReplyContract, Refused> {
    let subject = &*entry.subject;
    let action = app.dialect.action_index(&subject.action).ok_or_else(|| Refused::UnknownAction {
        dialect: app.dialect.name.clone(),
        app: subject.app.to_string(),
        action: subject.action.to_string(),
    })?;
    Ok(&app.dialect.actions[action].reply)
}

fn retry(entry: &Entry) -> String {
    format!(
        "{0} is open: the next copy is forwarded as attempt {1}, with the same Idempotency-Key. spigate sends nothing \
         by itself: the platform has to call again.",
        entry.key.idempotency_key(),
        entry.latest.number.saturating_add(1)
    )
}
