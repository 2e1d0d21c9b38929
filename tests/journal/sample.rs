//! Asks and endings to test with, and short ways to send them.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use jiff::{SignedDuration, Timestamp};
use sha2::{Digest as _, Sha256};
use spigate::journal::entry::{Ask, Claimant, End, Ending, Entry, Lifecycle, Reason, Sealed, Subject};
use spigate::journal::key::{DeliveryKey, Extras, Fingerprint, Lookalike, Origin};
use spigate::journal::machine::{Claimed, Decision, Finished, Resolution};
use spigate::journal::store::{Filter, Record, Resolved};

use crate::bench::Gateway;

/// When tests begin: 2026-11-01T00:00:00Z.
pub(crate) const START: Timestamp = Timestamp::constant(1_793_491_200, 0);

pub(crate) const HOUR: SignedDuration = SignedDuration::from_hours(1);

pub(crate) fn after(seconds: i64) -> Timestamp {
    START + SignedDuration::from_secs(seconds)
}

fn hash(parts: &[&str]) -> Vec<u8> {
    Sha256::digest(parts.join("\n")).to_vec()
}

pub(crate) fn key(parts: &[&str]) -> DeliveryKey {
    DeliveryKey::from_slice(&hash(parts)).unwrap()
}

pub(crate) fn content(parts: &[&str]) -> Fingerprint {
    Fingerprint::from_slice(&hash(parts)).unwrap()
}

pub(crate) fn lookalike(parts: &[&str]) -> Lookalike {
    Lookalike::from_slice(&hash(parts)).unwrap()
}

/// The same request about something else.
pub(crate) fn about(mut ask: Ask, change: impl FnOnce(&mut Subject)) -> Ask {
    change(Arc::make_mut(&mut ask.subject));
    ask
}

/// What a claim comes to.
pub(crate) struct Told {
    pub(crate) decision: Decision,
    pub(crate) entry: Entry,
}

impl Gateway {
    fn claimant(&self) -> Claimant {
        static CLAIMS: AtomicI64 = AtomicI64::new(1);
        Claimant { gateway: self.name.as_str().into(), number: CLAIMS.fetch_add(1, Ordering::Relaxed) }
    }

    fn ask(&self, app: &str, action: &str, about: &str) -> Ask {
        let claimant = self.claimant();
        Ask {
            base: key(&[app, action, about]),
            subject: Arc::new(Subject {
                origin: Origin::from_slice(&hash(&["origin", app, action, about])).unwrap(),
                lookalike: None,
                fingerprint: content(&["content of", about]),
                extras: Extras::from_slice(&[7; 32]).unwrap(),
                app: app.into(),
                action: action.into(),
                debug: false,
                order_id: None,
                instance_id: None,
                user_id: None,
            }),
            lifecycle: Lifecycle::None,
            hold: false,
            instance_must_be_new: false,
            request_id: format!("request-{}", claimant.number).into(),
            claimant,
            now: START,
        }
    }

    /// A purchase.
    pub(crate) fn create(&self, order: &str) -> Ask {
        about(Ask { instance_must_be_new: true, ..self.ask("crm", "CreateAppInstance", order) }, |subject| {
            subject.order_id = Some(order.into());
            subject.user_id = Some("usr-1".into());
        })
    }

    /// The same purchase on trial: another delivery of the same order.
    pub(crate) fn debug_create(&self, order: &str) -> Ask {
        about(Ask { base: key(&["debug", order]), ..self.create(order) }, |subject| subject.debug = true)
    }

    pub(crate) fn renew(&self, order: &str, instance: &str) -> Ask {
        about(Ask { lifecycle: Lifecycle::Revives, ..self.ask("crm", "RenewAppInstance", order) }, |subject| {
            subject.order_id = Some(order.into());
            subject.instance_id = Some(instance.into());
        })
    }

    pub(crate) fn expire(&self, instance: &str) -> Ask {
        about(
            Ask { lifecycle: Lifecycle::Ends { replay_for: HOUR }, ..self.ask("crm", "ExpireAppInstance", instance) },
            |subject| subject.instance_id = Some(instance.into()),
        )
    }

    pub(crate) async fn claim(&self, ask: Ask) -> Told {
        let Claimed { decision, entry } = self.store.claim(Arc::new(ask)).await.unwrap();
        Told { decision, entry: Arc::unwrap_or_clone(entry) }
    }

    /// Claims, and must be told to call the backend.
    #[track_caller]
    pub(crate) fn forward(&self, ask: Ask) -> impl Future<Output = Call> {
        let caller = std::panic::Location::caller();
        async move {
            let ask = Arc::new(ask);
            let Claimed { decision, entry } = self.store.claim(Arc::clone(&ask)).await.unwrap();
            assert_eq!(decision, Decision::Forward, "{caller}: {entry:#?}");
            Call { ask, entry: Arc::unwrap_or_clone(entry) }
        }
    }

    pub(crate) async fn finish(&self, end: End) -> (Finished, Entry) {
        let (finished, entry) = self.store.finish(end).await.unwrap();
        (finished, Arc::unwrap_or_clone(entry))
    }

    pub(crate) async fn look(&self, key: DeliveryKey) -> Entry {
        self.store.look(key).await.unwrap().expect("an entry")
    }

    pub(crate) async fn resolve(&self, key: DeliveryKey, resolution: Resolution) -> Resolved {
        self.store.resolve(key, resolution.into(), after(500)).await.unwrap().expect("an entry")
    }

    pub(crate) async fn list(&self, filter: Filter) -> Vec<Record> {
        self.store.list(filter, None, 100).await.unwrap()
    }

    pub(crate) async fn record(&self, key: DeliveryKey) -> Record {
        let id = Some(key.idempotency_key());
        let mut found = self.list(Filter { id, ..Filter::default() }).await;
        assert_eq!(found.len(), 1, "{found:#?}");
        found.remove(0)
    }

    pub(crate) fn sealed(&self, text: &str) -> Sealed {
        Sealed { data_key: self.data_key, bytes: text.into() }
    }

    pub(crate) fn confirmed(&self, instance: &str) -> Ending {
        Ending::Confirmed { instance_id: Some(instance.into()), reply: self.sealed(&format!("made {instance}")) }
    }

    /// What the backend says of an action that makes no instance.
    pub(crate) fn carried_out(&self) -> Ending {
        Ending::Confirmed { instance_id: None, reply: self.sealed("carried out") }
    }

    pub(crate) fn refused(&self) -> Ending {
        Ending::Refused { reply: self.sealed("refused") }
    }

    /// The operator's word that it was executed.
    pub(crate) fn done(&self, instance: &str, lost_reply: bool) -> Resolution {
        let reply = self.sealed(&format!("operator: {instance}"));
        Resolution::Done { instance_id: Some(instance.into()), reply, lost_reply }
    }
}

pub(crate) fn failed() -> Ending {
    Ending::Failed(Reason { code: "backend_unreachable".into(), ..Reason::default() })
}

pub(crate) fn unconfirmed() -> Ending {
    Ending::Unconfirmed(Reason { code: "backend_timeout".into(), ..Reason::default() })
}

/// A call of the backend that runs.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) ask: Arc<Ask>,
    pub(crate) entry: Entry,
}

impl Call {
    pub(crate) fn key(&self) -> DeliveryKey {
        self.entry.key
    }

    pub(crate) fn end_at(&self, ending: Ending, now: Timestamp) -> End {
        End {
            ask: Arc::clone(&self.ask),
            key: self.entry.key,
            cycle: self.entry.cycle,
            attempt: self.entry.latest.number,
            began_at: self.entry.latest.began_at,
            ending,
            now,
        }
    }

    pub(crate) fn end(&self, ending: Ending) -> End {
        self.end_at(ending, after(1))
    }
}
