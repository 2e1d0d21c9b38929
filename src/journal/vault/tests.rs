use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::journal::memory::MemoryStore;
use crate::journal::store::{Answer, Wrap};

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
