//! Seals the replies that the journal keeps: they hold passwords.
//!
//! A reply is sealed (AES-256-GCM-SIV) under a random data key of its app, and bound to its
//! delivery. The data key lies in the journal wrapped by `[journal] encryption_key` or, without
//! one, by every key of the app, active or retired: whoever has the journal's file alone has no
//! reply, and replacing keys one after the other loses none.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::error::Unspecified;
use bytes::Bytes;
use futures_util::future::try_join_all;
use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::Timestamp;
use sha2::Sha256;
use tokio::sync::Mutex;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::entry::Sealed;
use super::key::DeliveryKey;
use super::store::{DataKey, Keys, Unavailable, Wrap};
use crate::config::scalar::Secret;
use crate::config::{AppConfig, Config};

/// What the keys that wrap are derived for; their digit counts up if the form ever changes.
const WRAP: &[u8] = b"spigate wrap 1";
/// What the names of those keys are derived for.
const WRAPPER: &[u8] = b"spigate wrapper 1";
const WRAPPER_BYTES: usize = 16;
const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 12;
const TAG_BYTES: usize = 16;

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

/// A data key, unwrapped.
struct OpenKey {
    number: i64,
    app: String,
    bytes: Zeroizing<[u8; KEY_BYTES]>,
    aead: LessSafeKey,
}

impl OpenKey {
    fn new(number: i64, app: String, bytes: Zeroizing<[u8; KEY_BYTES]>) -> Result<Self, Unspecified> {
        let aead = sealing_key(&bytes)?;
        Ok(Self { number, app, bytes, aead })
    }
}

/// The keys that wrap data keys.
struct Wrapping {
    encryption: Option<Wrapper>,
    apps: HashMap<String, Vec<Wrapper>>,
}

impl Wrapping {
    fn new(apps: impl IntoIterator<Item = (String, Vec<Secret>)>, encryption_key: Option<&Secret>) -> Self {
        let wrappers = |secrets: Vec<Secret>| secrets.iter().filter_map(Wrapper::new).collect();
        Self {
            encryption: encryption_key.and_then(Wrapper::new),
            apps: apps.into_iter().map(|(app, secrets)| (app, wrappers(secrets))).collect(),
        }
    }

    /// What data keys of an app have to be wrapped by.
    fn current(&self, app: &str) -> &[Wrapper] {
        match &self.encryption {
            Some(wrapper) => std::slice::from_ref(wrapper),
            None => self.apps.get(app).map_or(&[], Vec::as_slice),
        }
    }

    /// Unwraps a data key with whatever key opens it: one from before `encryption_key` was given
    /// is wrapped by the app's keys.
    fn unwrap(&self, data_key: &DataKey) -> Option<OpenKey> {
        let wrappers = || self.encryption.iter().chain(self.apps.get(&data_key.app).into_iter().flatten());
        let bytes = data_key.wraps.iter().find_map(|wrap| {
            let mut fitting = wrappers().filter(|wrapper| wrapper.id.as_slice() == wrap.wrapper);
            fitting.find_map(|wrapper| wrapper.unwrap(&data_key.app, wrap))
        })?;
        OpenKey::new(data_key.id, data_key.app.clone(), bytes).ok()
    }

    /// The wraps of a data key by all current keys: those that are there and whole, and new ones.
    fn wraps(&self, app: &str, bytes: &[u8; KEY_BYTES], there: &[Wrap]) -> Result<Vec<Wrap>, Unavailable> {
        let wrap = |wrapper: &Wrapper| {
            let known = there.iter().find(|wrap| {
                wrapper.id.as_slice() == wrap.wrapper
                    && wrapper.unwrap(app, wrap).is_some_and(|wrapped| *wrapped == *bytes)
            });
            known.map_or_else(|| wrapper.wrap(app, bytes), |wrap| Ok(wrap.clone()))
        };
        self.current(app).iter().map(wrap).collect::<Result<_, _>>().map_err(unsealable)
    }
}

/// A key that wraps data keys: derived, so that it says nothing of the key it came from.
struct Wrapper {
    id: [u8; WRAPPER_BYTES],
    aead: LessSafeKey,
}

impl Wrapper {
    fn new(secret: &Secret) -> Option<Self> {
        let key = derive(secret, WRAP)?;
        let mut id = [0; WRAPPER_BYTES];
        id.copy_from_slice(&derive(secret, WRAPPER)?[..WRAPPER_BYTES]);
        Some(Self { id, aead: sealing_key(&key).ok()? })
    }

    fn wrap(&self, app: &str, bytes: &[u8; KEY_BYTES]) -> Result<Wrap, Unspecified> {
        Ok(Wrap { wrapper: self.id.to_vec(), bytes: seal(&self.aead, app.as_bytes(), bytes)? })
    }

    fn unwrap(&self, app: &str, wrap: &Wrap) -> Option<Zeroizing<[u8; KEY_BYTES]>> {
        let bytes = Zeroizing::new(open(&self.aead, app.as_bytes(), &wrap.bytes)?);
        bytes.as_slice().try_into().ok().map(Zeroizing::new)
    }
}

/// HMAC-SHA256 under the secret's text. HMAC takes keys of every length.
fn derive(secret: &Secret, purpose: &[u8]) -> Option<Zeroizing<[u8; 32]>> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose().as_bytes()).ok()?;
    mac.update(purpose);
    Some(Zeroizing::new(mac.finalize().into_bytes().into()))
}

fn random_key() -> Result<Zeroizing<[u8; KEY_BYTES]>, Unavailable> {
    let mut bytes = Zeroizing::new([0; KEY_BYTES]);
    getrandom::fill(&mut *bytes).map_err(|error| Unavailable::new(format!("no random numbers: {error}")))?;
    Ok(bytes)
}

fn sealing_key(bytes: &[u8; KEY_BYTES]) -> Result<LessSafeKey, Unspecified> {
    UnboundKey::new(&AES_256_GCM_SIV, bytes).map(LessSafeKey::new)
}

/// Nonce, ciphertext and tag.
///
/// The nonce is the kernel's. The library's own random numbers begin with 30 ms of measuring the
/// processor's jitter, and would make that a part of every start.
fn seal(aead: &LessSafeKey, bound_to: &[u8], text: &[u8]) -> Result<Vec<u8>, Unspecified> {
    let mut nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut nonce).map_err(|_| Unspecified)?;
    let mut sealed = Vec::with_capacity(NONCE_BYTES + text.len() + TAG_BYTES);
    sealed.extend_from_slice(&nonce);
    sealed.extend_from_slice(text);
    let nonce = Nonce::assume_unique_for_key(nonce);
    let tag = aead.seal_in_place_separate_tag(nonce, Aad::from(bound_to), &mut sealed[NONCE_BYTES..])?;
    sealed.extend_from_slice(tag.as_ref());
    Ok(sealed)
}

/// What was sealed; `None` if it was under another key, bound to something else, or is damaged.
fn open(aead: &LessSafeKey, bound_to: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
    let (nonce, sealed) = sealed.split_at_checked(NONCE_BYTES)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
    let mut text = sealed.to_vec();
    let length = aead.open_in_place(nonce, Aad::from(bound_to), &mut text).ok()?.len();
    text.truncate(length);
    Some(text)
}

fn unsealable(_: Unspecified) -> Unavailable {
    Unavailable::new("the cryptographic library failed")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::journal::memory::MemoryStore;
    use crate::journal::store::Answer;

    const REPLY: &[u8] = br#"{"success":true,"appInfo":{"admin":{"password":"hunter2"}}}"#;

    fn now() -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap()
    }

    fn key(number: u8) -> DeliveryKey {
        DeliveryKey::from_slice(&[number; 32]).unwrap()
    }

    fn vault(keys: &[&str], encryption_key: Option<&str>) -> Vault {
        let keys = keys.iter().copied().map(Secret::new).collect();
        Vault::new([("crm".to_owned(), keys)], encryption_key.map(Secret::new).as_ref())
    }

    async fn seal(vault: &Vault, store: &dyn Keys) -> Sealed {
        vault.seal(store, "crm", &key(1), REPLY, now()).await.unwrap()
    }

    async fn opens(vault: &Vault, store: &dyn Keys, sealed: &Sealed) -> bool {
        match vault.open(store, "crm", &key(1), sealed).await.unwrap() {
            Opened::Reply(reply) => {
                assert_eq!(&reply[..], REPLY);
                true
            }
            Opened::Lost => false,
        }
    }

    /// Counts reads, and lets others in before it answers.
    #[derive(Default)]
    struct Counting {
        store: MemoryStore,
        reads: AtomicUsize,
        /// Writes that wait now, and the most that ever did.
        writes: AtomicUsize,
        most_writes: AtomicUsize,
    }

    impl Counting {
        /// Takes as long as a flush of the disk: others have a turn meanwhile.
        async fn write<T>(&self, write: Answer<'_, T>) -> Result<T, Unavailable> {
            let writes = self.writes.fetch_add(1, Ordering::Relaxed) + 1;
            self.most_writes.fetch_max(writes, Ordering::Relaxed);
            tokio::task::yield_now().await;
            self.writes.fetch_sub(1, Ordering::Relaxed);
            write.await
        }
    }

    impl Keys for Counting {
        fn data_keys(&self) -> Answer<'_, Vec<DataKey>> {
            self.reads.fetch_add(1, Ordering::Relaxed);
            Answer::work(async {
                let keys = self.store.data_keys().await;
                tokio::task::yield_now().await;
                keys
            })
        }
        fn add_data_key(&self, app: String, wraps: Vec<Wrap>, now: Timestamp) -> Answer<'_, i64> {
            Answer::work(self.write(self.store.add_data_key(app, wraps, now)))
        }
        fn put_wraps(&self, data_key: i64, wraps: Vec<Wrap>, now: Timestamp) -> Answer<'_, ()> {
            Answer::work(self.write(self.store.put_wraps(data_key, wraps, now)))
        }
    }

    #[tokio::test]
    async fn every_key_of_the_app_opens_what_was_sealed_and_no_other_does() {
        let store = MemoryStore::default();
        let sealed = seal(&vault(&["new", "old"], None), &store).await;
        assert!(!sealed.bytes.windows(7).any(|window| window == b"hunter2"));
        for keys in [&["new"][..], &["old"], &["other", "old"]] {
            assert!(opens(&vault(keys, None), &store, &sealed).await, "{keys:?}");
        }
        for keys in [&["other"][..], &["crm"], &[""], &[]] {
            assert!(!opens(&vault(keys, None), &store, &sealed).await, "{keys:?}");
        }
    }

    #[tokio::test]
    async fn keys_are_rotated_without_losing_a_reply() {
        let store = MemoryStore::default();
        let first = seal(&vault(&["a"], None), &store).await;
        assert!(!opens(&vault(&["b"], None), &store, &first).await);
        let both = vault(&["b", "a"], None);
        assert_eq!(both.unlock(&store, now()).await.unwrap(), []);
        let second = seal(&both, &store).await;
        assert_eq!(first.data_key, second.data_key);
        for sealed in [&first, &second] {
            assert!(opens(&vault(&["b"], None), &store, sealed).await);
        }
    }

    #[tokio::test]
    async fn replaced_keys_lose_old_replies_and_seal_new_ones() {
        let store = MemoryStore::default();
        let lost = seal(&vault(&["a"], None), &store).await;
        let other = vault(&["b"], None);
        let locked = other.unlock(&store, now()).await.unwrap();
        assert_eq!(locked, [LockedOut { app: "crm".into(), data_keys: 1, with_encryption_key: false }]);
        assert!(locked[0].to_string().contains("1 data key of app crm is opened by none"), "{}", locked[0]);
        assert!(!opens(&other, &store, &lost).await);
        let sealed = seal(&other, &store).await;
        assert!(opens(&other, &store, &sealed).await);
        // The key is back: both open, and what is sealed next everybody opens.
        let back = vault(&["b", "a"], None);
        assert_eq!(back.unlock(&store, now()).await.unwrap(), []);
        assert!(opens(&back, &store, &lost).await && opens(&back, &store, &sealed).await);
        assert_eq!(store.data_keys().await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn an_encryption_key_takes_the_place_of_the_apps_keys() {
        let store = MemoryStore::default();
        let before = seal(&vault(&["a"], None), &store).await;
        let with = vault(&["a"], Some("e"));
        assert_eq!(with.unlock(&store, now()).await.unwrap(), []);
        assert!(opens(&vault(&["other"], Some("e")), &store, &before).await);

        let store = MemoryStore::default();
        let sealed = seal(&with_new(&store).await, &store).await;
        assert!(opens(&vault(&["other"], Some("e")), &store, &sealed).await);
        let without = vault(&["a"], None);
        let locked = without.unlock(&store, now()).await.unwrap();
        assert_eq!(locked.len(), 1, "the app's key never wrapped it");
        assert!(!opens(&without, &store, &sealed).await);
        let sealed = seal(&without, &store).await;
        assert!(opens(&without, &store, &sealed).await);
    }

    async fn with_new(store: &dyn Keys) -> Vault {
        let vault = vault(&["a"], Some("e"));
        vault.unlock(store, now()).await.unwrap();
        vault
    }

    #[tokio::test]
    async fn keys_replaced_while_running_lose_nothing() {
        let store = MemoryStore::default();
        let vault_here = vault(&["a"], None);
        let before = seal(&vault_here, &store).await;
        vault_here.rekey([("crm".to_owned(), vec![Secret::new("b")])], None);
        let after = seal(&vault_here, &store).await;
        for sealed in [&before, &after] {
            assert!(opens(&vault_here, &store, sealed).await);
            assert!(opens(&vault(&["b"], None), &store, sealed).await);
        }
    }

    #[tokio::test]
    async fn a_sealed_reply_belongs_to_its_delivery_and_app_and_cannot_be_changed() {
        let store = MemoryStore::default();
        let secret = || vec![Secret::new("a")];
        let vault = Vault::new([("crm".to_owned(), secret()), ("erp".to_owned(), secret())], None);
        let sealed = seal(&vault, &store).await;
        let open = async |app: &str, number: u8, sealed: &Sealed| {
            vault.open(&store, app, &key(number), sealed).await.unwrap() != Opened::Lost
        };
        assert!(open("crm", 1, &sealed).await);
        assert!(!open("crm", 2, &sealed).await);
        assert!(!open("erp", 1, &sealed).await);
        let other = vault.seal(&store, "erp", &key(1), REPLY, now()).await.unwrap();
        assert_ne!(other.data_key, sealed.data_key);
        assert!(!open("crm", 1, &Sealed { data_key: other.data_key, ..sealed.clone() }).await);
        for bit in 0..sealed.bytes.len() * 8 {
            let mut damaged = sealed.clone();
            damaged.bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(!open("crm", 1, &damaged).await, "bit {bit}");
        }
        for length in [0, 1, 11, 12, 13, 27, 28, sealed.bytes.len() - 1] {
            let mut damaged = sealed.clone();
            damaged.bytes.truncate(length);
            assert!(!open("crm", 1, &damaged).await, "{length} bytes");
        }
    }

    #[tokio::test]
    async fn a_damaged_wrap_is_made_anew() {
        let store = MemoryStore::default();
        let sealed = seal(&vault(&["a", "b"], None), &store).await;
        let mut wrap = store.data_keys().await.unwrap()[0].wraps[0].clone();
        wrap.bytes[20] ^= 1;
        store.put_wraps(sealed.data_key, vec![wrap], now()).await.unwrap();
        assert!(!opens(&vault(&["a"], None), &store, &sealed).await);
        vault(&["a", "b"], None).unlock(&store, now()).await.unwrap();
        assert!(opens(&vault(&["a"], None), &store, &sealed).await);
    }

    #[tokio::test]
    async fn two_gateways_that_start_at_once_open_each_others_replies() {
        let store = Counting::default();
        let (one, two) = (vault(&["a"], None), vault(&["a"], None));
        let (first, second) = tokio::join!(seal(&one, &store), seal(&two, &store));
        assert_ne!(first.data_key, second.data_key, "the test wants both to make one");
        for vault in [&one, &two, &vault(&["a"], None)] {
            assert!(opens(vault, &store, &first).await && opens(vault, &store, &second).await);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn data_keys_are_read_once_however_many_replies_miss_one() {
        let store = Counting::default();
        let sealed = seal(&vault(&["other"], None), &store).await;
        let unknown = Sealed { data_key: 77, ..sealed.clone() };
        let vault = vault(&["a"], None);
        let reads = || store.reads.swap(0, Ordering::Relaxed);
        reads();
        let (one, two) = tokio::join!(opens(&vault, &store, &unknown), opens(&vault, &store, &unknown));
        assert!(!one && !two);
        for sealed in [&unknown, &sealed, &unknown, &sealed] {
            assert!(!opens(&vault, &store, sealed).await);
        }
        assert_eq!(reads(), 1);
        // Another gateway knows both keys, and wraps the data key for this one.
        let both = self::vault(&["a", "other"], None);
        both.unlock(&store, now()).await.unwrap();
        tokio::time::advance(LOOK_AGAIN).await;
        assert!(opens(&vault, &store, &sealed).await);
        let ours = seal(&vault, &store).await;
        reads();
        for _ in 0..3 {
            seal(&vault, &store).await;
            assert!(opens(&vault, &store, &ours).await);
        }
        assert_eq!(reads(), 0);
    }

    #[tokio::test]
    async fn the_data_keys_of_many_apps_are_written_together() {
        let store = Counting::default();
        let apps = || (0..2 * TOGETHER).map(|number| (format!("app-{number}"), vec![Secret::new("a")]));
        for when in ["made", "said to be in use"] {
            let locked = Vault::new(apps(), None).unlock(&store, now()).await.unwrap();
            assert_eq!(locked, [], "{when}");
            assert_eq!(store.most_writes.swap(0, Ordering::Relaxed), TOGETHER, "{when}");
            assert_eq!(store.data_keys().await.unwrap().len(), 2 * TOGETHER, "{when}");
        }
    }

    #[tokio::test]
    async fn an_app_without_a_key_seals_nothing() {
        let store = MemoryStore::default();
        let nobody = vault(&[], None);
        assert!(nobody.seal(&store, "crm", &key(1), REPLY, now()).await.is_err());
        assert!(nobody.seal(&store, "erp", &key(1), REPLY, now()).await.is_err());
        assert_eq!(store.data_keys().await.unwrap(), []);
    }

    #[tokio::test]
    async fn nothing_is_shown() {
        let store = MemoryStore::default();
        let vault = vault(&["a"], None);
        let sealed = seal(&vault, &store).await;
        let opened = vault.open(&store, "crm", &key(1), &sealed).await.unwrap();
        assert_eq!(format!("{vault:?} {opened:?}"), "Vault(…) Reply(…)");
    }
}
