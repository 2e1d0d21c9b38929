//! What the suites need of a store to test it: gateways that use it, and their sudden ends.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use spigate::journal::memory::MemoryStore;
use spigate::journal::sqlite::SqliteStore;
use spigate::journal::store::Store;

/// A serving process with its handle on the store.
#[derive(Clone)]
pub(crate) struct Gateway {
    /// What its claims are signed with ([`spigate::journal::entry::Claimant::gateway`]).
    pub(crate) name: String,
    pub(crate) store: Arc<dyn Store>,
    /// A data key that is there: sealed replies name it.
    pub(crate) data_key: i64,
}

impl Gateway {
    pub(crate) async fn new(name: impl Into<String>, store: Arc<dyn Store>) -> Self {
        let known = store.data_keys().await.unwrap().first().map(|key| key.id);
        let data_key = match known {
            Some(known) => known,
            None => store.add_data_key("crm".into(), Vec::new(), crate::sample::START).await.unwrap(),
        };
        Self { name: name.into(), store, data_key }
    }
}

/// A journal of its own for one test, empty at first and removed at the end.
pub(crate) trait Bench: Sized {
    /// Whether several gateways can serve from it at once.
    const SHARED: bool;
    /// Whether it is still there after its process has ended.
    const DURABLE: bool;
    /// Whether it takes the time from itself and not from who asks.
    const OWN_CLOCK: bool;

    /// Starts a gateway. Unless the store is shared there must not be another one.
    async fn open(&mut self) -> Gateway;

    /// The gateway dies without a word, its lease runs out, and another one starts. Of the old
    /// one no other handle may be left.
    async fn crash(&mut self, gateway: Gateway) -> Gateway;
}

static COUNTER: AtomicU32 = AtomicU32::new(1);

fn unique() -> u32 {
    COUNTER.fetch_add(1, Ordering::Relaxed)
}

pub(crate) struct Memory;

impl Memory {
    #[expect(clippy::unused_async, reason = "other benches wait for something, and may not be had")]
    pub(crate) async fn new() -> Option<Self> {
        Some(Self)
    }
}

impl Bench for Memory {
    const SHARED: bool = false;
    const DURABLE: bool = false;
    const OWN_CLOCK: bool = false;

    async fn open(&mut self) -> Gateway {
        Gateway::new(format!("gateway-{}", unique()), Arc::new(MemoryStore::default())).await
    }

    async fn crash(&mut self, gateway: Gateway) -> Gateway {
        drop(gateway);
        self.open().await
    }
}

pub(crate) struct Sqlite {
    directory: PathBuf,
    file: PathBuf,
}

impl Sqlite {
    #[expect(clippy::unused_async, reason = "other benches wait for something, and may not be had")]
    pub(crate) async fn new() -> Option<Self> {
        let directory = format!("journal-{}-{}", std::process::id(), unique());
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(directory);
        // A run that was killed may have left one of the same name.
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory).unwrap();
        let file = directory.join("1.db");
        Some(Self { directory, file })
    }
}

impl Bench for Sqlite {
    const SHARED: bool = false;
    const DURABLE: bool = true;
    const OWN_CLOCK: bool = false;

    async fn open(&mut self) -> Gateway {
        let store = SqliteStore::serve(&self.file, |_| {}).unwrap();
        Gateway::new(format!("gateway-{}", unique()), Arc::new(store)).await
    }

    /// Goes on with a copy of the files as they lie there while the old process still has them
    /// open: that is what is left after it was killed.
    async fn crash(&mut self, gateway: Gateway) -> Gateway {
        let copy = self.directory.join(format!("{}.db", unique()));
        for suffix in ["", "-wal"] {
            let with = |path: &Path| PathBuf::from(format!("{}{suffix}", path.display()));
            fs::copy(with(&self.file), with(&copy)).unwrap();
        }
        drop(gateway);
        self.file = copy;
        self.open().await
    }
}

impl Drop for Sqlite {
    fn drop(&mut self) {
        // What cannot be removed lies under target/.
        let _ = fs::remove_dir_all(&self.directory);
    }
}
