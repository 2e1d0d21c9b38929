//! A journal to look at.

use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use crate::config::scalar::Secret;
use crate::config::source::Sources;
use crate::config::{self, Config};
use crate::dialect::{ActionKind, builtin};
use crate::journal::entry::{Ask, Claimant, End, Ending, Entry, Lifecycle, Reason, Subject};
use crate::journal::key::{DeliveryKey, Extras, Fingerprint, Origin};
use crate::journal::machine::Resolution;
use crate::journal::memory::MemoryStore;
use crate::journal::store::{Archive as _, Deliveries as _};
use crate::journal::vault::Vault;

/// What no output may show.
pub(super) const PASSWORD: &str = "hunter2";
const KEY: &str = "m7Zt+Q4vX/0nWc8yRk1LhJpE2sDgUaFb";

/// An app called crm, with deliveries.
pub(super) struct Shop {
    pub(super) store: MemoryStore,
    pub(super) vault: Vault,
    pub(super) config: Config,
}

/// 2027-01-15T08:00:00Z.
pub(super) fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

/// A backend's confirmation.
pub(super) fn reply(instance: &str) -> String {
    format!(
        r#"{{"success":true,"instanceId":"{instance}","appInfo":{{"admin":{{"username":"admin","password":"{PASSWORD}"}}}}}}"#
    )
}

impl Shop {
    pub(super) fn new() -> Self {
        Self { store: MemoryStore::default(), vault: Self::vault(KEY), config: Self::configured("crm") }
    }

    pub(super) fn vault(key: &str) -> Vault {
        Vault::new([("crm".to_owned(), vec![Secret::new(key)])], None)
    }

    pub(super) fn configured(app: &str) -> Config {
        let dialect = &builtin::load().unwrap()[0].name;
        let text = format!(
            "[journal]\nurl = \"memory:\"\n[[apps]]\nname = \"{app}\"\npath = \"/spi\"\ndialect = \"{dialect}\"\n\
             keys = [{{ id = \"k\", value = \"{KEY}\" }}]\n[apps.backend]\nurl = \"http://127.0.0.1:9\"\n"
        );
        config::load(&Sources { file: "test".into(), text, ..Sources::default() }, Path::new(".")).unwrap()
    }

    /// A purchase whose attempt runs.
    pub(super) async fn create(&self, order: &str) -> Entry {
        self.create_with_key(&Sha256::digest(order), order).await
    }

    /// The same with a key that begins like this.
    pub(super) async fn create_with_key(&self, key: &[u8], order: &str) -> Entry {
        let claimed = self.store.claim(Arc::new(self.ask(key, order))).await.unwrap();
        Arc::unwrap_or_clone(claimed.entry)
    }

    pub(super) async fn confirmed(&self, order: &str, instance: &str) {
        let entry = self.create(order).await;
        let text = reply(instance);
        let reply = self.vault.seal(&self.store, "crm", &entry.key, text.as_bytes(), now()).await.unwrap();
        self.finish(&entry, order, Ending::Confirmed { instance_id: Some(instance.into()), reply }).await;
    }

    pub(super) async fn unconfirmed(&self, order: &str) {
        let entry = self.create(order).await;
        let detail = Some("no complete reply within 60s".to_owned());
        let reason = Reason { code: "backend_timeout".into(), rule: None, detail };
        self.finish(&entry, order, Ending::Unconfirmed(reason)).await;
    }

    pub(super) async fn decide(&self, order: &str, message: &str) {
        let key = self.ask(&Sha256::digest(order), order).base;
        let resolution = Resolution::Failed { message: message.to_owned() };
        self.store.resolve(key, resolution.into(), now()).await.unwrap().unwrap().unwrap();
    }

    pub(super) async fn finish(&self, entry: &Entry, order: &str, ending: Ending) {
        let end = End {
            ask: Arc::new(self.ask(entry.key.as_bytes(), order)),
            key: entry.key,
            cycle: 0,
            attempt: entry.latest.number,
            began_at: entry.latest.began_at,
            ending,
            now: now() + jiff::SignedDuration::from_millis(1_532),
        };
        self.store.finish(end).await.unwrap();
    }

    pub(super) fn ask(&self, key: &[u8], order: &str) -> Ask {
        let mut bytes = [0; 32];
        bytes[..key.len()].copy_from_slice(key);
        Ask {
            base: DeliveryKey::from_slice(&bytes).unwrap(),
            subject: Arc::new(Subject {
                origin: Origin::from_slice(&bytes).unwrap(),
                lookalike: None,
                fingerprint: Fingerprint::from_slice(&[0; 32]).unwrap(),
                extras: Extras::from_slice(&[0; 32]).unwrap(),
                app: "crm".into(),
                action: self.config.apps[0].dialect.action_of(ActionKind::Create).unwrap().name.as_str().into(),
                debug: false,
                order_id: Some(order.into()),
                instance_id: None,
                user_id: Some("usr-1".into()),
            }),
            lifecycle: Lifecycle::None,
            hold: false,
            instance_must_be_new: true,
            claimant: Claimant { gateway: "gw-1".into(), number: 1 },
            request_id: "req-1".into(),
            now: now(),
        }
    }
}
