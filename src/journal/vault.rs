//! Seals the replies that the journal keeps: they hold passwords.
//!
//! A reply is sealed (AES-256-GCM-SIV) under a random data key of its app, and bound to its
//! delivery. The data key lies in the journal wrapped by `[journal] encryption_key` or, without
//! one, by every key of the app, active or retired: whoever has the journal's file alone has no
//! reply, and replacing keys one after the other loses none.
//!
//! Here is what is kept in memory and what is asked of the journal; `vault/wrap.rs` has the keys.

mod wrap;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::try_join_all;
use jiff::Timestamp;
use tokio::sync::Mutex;
use tokio::time::Instant;

use self::wrap::{OpenKey, Wrapping, open, random_key, seal, unsealable};
use super::entry::Sealed;
use super::key::DeliveryKey;
use super::store::{DataKey, Keys, Unavailable};
use crate::config::scalar::Secret;
use crate::config::{AppConfig, Config};

/// Data keys that are written together: a store may make all of them durable by one flush, and a start
/// with hundreds of apps would else wait for as many.
const TOGETHER: usize = 64;

/// How long a data key that cannot be opened is taken for lost without another look. Another
/// gateway may wrap it anew in the meantime; thousands of lost replies must not be as many reads.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Seals and opens replies. Shared by whoever does.
pub struct Vault {
    state: RwLock<State>,
    /// Held by whoever reads the journal's data keys, so that ten who miss one read once.
    turn: Mutex<()>,
}

struct State {
    wrapping: Arc<Wrapping>,
    /// Data keys that could be opened, by their numbers.
    opened: HashMap<i64, Arc<OpenKey>>,
    /// The data key that seals, by app.
    sealing: HashMap<String, Arc<OpenKey>>,
    /// Data keys that could not be opened, and when that was tried.
    missed: HashMap<i64, Instant>,
}

/// A reply that was kept, as far as it can be read.
#[derive(Clone, PartialEq, Eq)]
pub enum Opened {
    /// The reply.
    Reply(Bytes),
    /// No configured key opens it, or it is damaged.
    Lost,
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reply(_) => "Reply(…)",
            Self::Lost => "Lost",
        })
    }
}

/// An app with data keys that no configured key opens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockedOut {
    /// The app.
    pub app: String,
    /// How many of its data keys.
    pub data_keys: usize,
    /// Whether `[journal] encryption_key` is given.
    pub with_encryption_key: bool,
}

/// What is wrong, and what to do.
impl fmt::Display for LockedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { app, data_keys, with_encryption_key } = self;
        let (keys, are) = if *data_keys == 1 { ("key", "is") } else { ("keys", "are") };
        let other = if *with_encryption_key {
            "or give [journal] encryption_key the value it had"
        } else {
            "or give [journal] encryption_key again if there was one"
        };
        write!(
            f,
            "{data_keys} data {keys} of app {app} {are} opened by none of the configured keys, so the replies sealed \
             with them cannot be replayed: put an earlier key of the app back with state = \"retired\", {other}; \
             `spigate journal resolve` can give a delivery a new reply"
        )
    }
}

impl Vault {
    /// A vault for these apps and their keys, retired ones included.
    pub fn new(apps: impl IntoIterator<Item = (String, Vec<Secret>)>, encryption_key: Option<&Secret>) -> Self {
        let state = State {
            wrapping: Arc::new(Wrapping::new(apps, encryption_key)),
            opened: HashMap::new(),
            sealing: HashMap::new(),
            missed: HashMap::new(),
        };
        Self { state: RwLock::new(state), turn: Mutex::new(()) }
    }

    /// A vault for the apps and keys of a configuration.
    pub fn of(config: &Config) -> Self {
        let secrets = |app: &AppConfig| app.keys.iter().map(|key| key.secret.clone()).collect();
        let apps = config.apps.iter().map(|app| (app.name.clone(), secrets(app)));
        Self::new(apps, config.journal.encryption_key.as_ref())
    }

    /// Replaces the apps' keys. Data keys that are open stay so: even when every key of an app
    /// is replaced at once, the next [`unlock`](Self::unlock) or [`seal`](Self::seal) wraps them
    /// by the new ones.
    pub fn rekey(&self, apps: impl IntoIterator<Item = (String, Vec<Secret>)>, encryption_key: Option<&Secret>) {
        let wrapping = Arc::new(Wrapping::new(apps, encryption_key));
        let mut state = self.write();
        // An app that is configured no more may have deliveries that still run; their replies are sealed
        // as before.
        state.sealing.retain(|app, _| !wrapping.apps.contains_key(app));
        state.wrapping = wrapping;
        state.missed.clear();
    }

    /// Reads the data keys and opens what can be opened. Wraps them by every current key that
    /// does not wrap them yet, tells the store which wraps are in use, and makes a data key for
    /// each app without one. Gives the apps with data keys that stay locked.
    ///
    /// # Errors
    /// A journal that cannot be read or written.
    pub async fn unlock(&self, store: &dyn Keys, now: Timestamp) -> Result<Vec<LockedOut>, Unavailable> {
        let _turn = self.turn.lock().await;
        let stored = self.look(store).await?;
        let (wrapping, opened) = {
            let state = self.read();
            (Arc::clone(&state.wrapping), state.opened.clone())
        };
        let mut in_use = Vec::new();
        let mut locked = BTreeMap::new();
        for data_key in &stored {
            match opened.get(&data_key.id) {
                Some(key) => {
                    let wraps = wrapping.wraps(&data_key.app, &key.bytes, &data_key.wraps)?;
                    if !wraps.is_empty() {
                        in_use.push((Arc::clone(key), wraps));
                    }
                }
                None if wrapping.apps.contains_key(&data_key.app) => {
                    *locked.entry(data_key.app.clone()).or_default() += 1;
                }
                // Nobody asks for the replies of an app that is no longer configured.
                None => {}
            }
        }
        for some in in_use.chunks(TOGETHER) {
            try_join_all(some.iter().map(|(key, wraps)| store.put_wraps(key.number, wraps.clone(), now))).await?;
        }
        let mut newest: HashMap<_, _> = in_use.into_iter().map(|(key, _)| (key.app.clone(), key)).collect();
        let without = wrapping.apps.keys().filter(|&app| !newest.contains_key(app)).cloned().collect::<Vec<_>>();
        for some in without.chunks(TOGETHER) {
            let mut made = Vec::new();
            for app in some {
                let bytes = random_key()?;
                let wraps = wrapping.wraps(app, &bytes, &[])?;
                if !wraps.is_empty() {
                    made.push((app, bytes, store.add_data_key(app.clone(), wraps, now)));
                }
            }
            let made = made.into_iter().map(|(app, bytes, added)| async move {
                let number = added.await?;
                OpenKey::new(number, app.clone(), bytes).map_err(unsealable)
            });
            let made = try_join_all(made).await?;
            newest.extend(made.into_iter().map(|key| (key.app.clone(), Arc::new(key))));
        }
        let mut state = self.write();
        for key in newest.values() {
            state.opened.insert(key.number, Arc::clone(key));
        }
        // Keys that were replaced meanwhile wrap none of these yet.
        if Arc::ptr_eq(&state.wrapping, &wrapping) {
            state.sealing.extend(newest);
        }
        let with_encryption_key = wrapping.encryption.is_some();
        let locked = locked.into_iter();
        Ok(locked.map(|(app, data_keys)| LockedOut { app, data_keys, with_encryption_key }).collect())
    }

    /// Seals the reply of a delivery. Waits for nothing if the app's data key is at hand.
    ///
    /// # Errors
    /// A journal that cannot be read or written, and an app without keys.
    pub async fn seal(
        &self,
        store: &dyn Keys,
        app: &str,
        key: &DeliveryKey,
        reply: &[u8],
        now: Timestamp,
    ) -> Result<Sealed, Unavailable> {
        let data_key = match self.sealing(app) {
            Some(data_key) => data_key,
            None => {
                // Rare, and large: it must not be part of every delivery's future.
                Box::pin(self.unlock(store, now)).await?;
                let found = self.sealing(app);
                found
                    .ok_or_else(|| Unavailable::new(format!("no key is configured that seals replies of app {app}")))?
            }
        };
        let bytes = seal(&data_key.aead, key.as_bytes(), reply).map_err(unsealable)?;
        Ok(Sealed { data_key: data_key.number, bytes })
    }

    /// Opens the reply of a delivery. Waits for nothing if its data key is at hand; one that is
    /// not may be another gateway's, and is looked for once.
    ///
    /// # Errors
    /// A journal that cannot be read.
    pub async fn open(
        &self,
        store: &dyn Keys,
        app: &str,
        key: &DeliveryKey,
        sealed: &Sealed,
    ) -> Result<Opened, Unavailable> {
        let data_key = match self.at_hand(sealed.data_key) {
            Found::Open(data_key) => data_key,
            Found::Missed => return Ok(Opened::Lost),
            Found::Unknown => match Box::pin(self.search(store, sealed.data_key)).await? {
                Some(data_key) => data_key,
                None => return Ok(Opened::Lost),
            },
        };
        if data_key.app != app {
            return Ok(Opened::Lost);
        }
        let opened = open(&data_key.aead, key.as_bytes(), &sealed.bytes);
        Ok(opened.map_or(Opened::Lost, |reply| Opened::Reply(reply.into())))
    }

    /// Looks for a data key in the journal, unless somebody just did.
    async fn search(&self, store: &dyn Keys, number: i64) -> Result<Option<Arc<OpenKey>>, Unavailable> {
        let _turn = self.turn.lock().await;
        match self.at_hand(number) {
            Found::Open(key) => return Ok(Some(key)),
            Found::Missed => return Ok(None),
            Found::Unknown => {}
        }
        self.look(store).await?;
        let mut state = self.write();
        let found = state.opened.get(&number).cloned();
        if found.is_none() {
            state.missed.insert(number, Instant::now());
        }
        Ok(found)
    }

    /// Reads the journal's data keys and opens what can be opened. Writes nothing.
    async fn look(&self, store: &dyn Keys) -> Result<Vec<DataKey>, Unavailable> {
        let stored = store.data_keys().await?;
        let mut state = self.write();
        for data_key in &stored {
            if state.opened.contains_key(&data_key.id) {
                continue;
            }
            match state.wrapping.unwrap(data_key) {
                Some(key) => {
                    state.missed.remove(&data_key.id);
                    state.opened.insert(data_key.id, Arc::new(key));
                }
                None => {
                    state.missed.insert(data_key.id, Instant::now());
                }
            }
        }
        Ok(stored)
    }

    fn at_hand(&self, number: i64) -> Found {
        let state = self.read();
        match (state.opened.get(&number), state.missed.get(&number)) {
            (Some(key), _) => Found::Open(Arc::clone(key)),
            (None, Some(tried)) if tried.elapsed() < LOOK_AGAIN => Found::Missed,
            (None, _) => Found::Unknown,
        }
    }

    fn sealing(&self, app: &str) -> Option<Arc<OpenKey>> {
        self.read().sealing.get(app).cloned()
    }

    // Every change is made by code that does not panic half-way.

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Shows that there is a vault, nothing more.
impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Vault(…)")
    }
}

enum Found {
    Open(Arc<OpenKey>),
    Missed,
    Unknown,
}

#[cfg(test)]
mod tests;
