//! The delivery journal: which order a request belongs to, and what became of it.
//!
//! - `key.rs`: what makes two requests the same delivery (pure)
//! - `entry.rs`: what is recorded of one (data)
//! - `machine.rs`: what may become of it (pure)
//! - `outcome.rs`: between the gateway's words and the journal's (pure)
//! - `visit.rs`, `view.rs`, `redact.rs`, `select.rs`, `resolve.rs`: for those who look at it, and
//!   decide what only they know
//! - `store.rs`: what a store has to do; `memory.rs`, `sqlite.rs` and `postgres.rs` do it
//! - `answer.rs`: what comes back from one
//! - `vault.rs`: replies at rest are sealed
//! - `health.rs`: whether the journal can be used
//! - `running.rs`: the attempts that run in this process
//! - `retention.rs`: what is kept for how long
//!
//! [`Journal`] puts them together for the stop that claims (`stage/claim.rs`).

pub mod answer;
pub mod entry;
pub mod health;
pub mod key;
pub mod machine;
pub mod memory;
pub mod outcome;
#[cfg(feature = "postgres")]
pub mod postgres;
pub mod redact;
pub mod resolve;
pub mod retention;
pub mod running;
pub mod select;
pub mod sqlite;
pub mod store;
pub mod vault;
pub mod view;
pub mod visit;

use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt as _;
use jiff::Timestamp;
use prometheus::{Histogram, IntCounter, IntGaugeVec};
use tokio::sync::{Notify, watch};
use tokio_util::task::TaskTracker;

use crate::clock;
use crate::config::journal::{JournalConfig, Location};
use crate::config::{AppConfig, Config};
use crate::metrics::Metrics;
use entry::{Ask, Claimant, End, Ending, Entry, Sealed, State};
use health::Health;
use key::DeliveryKey;
use machine::{Claimed, Finished};
use memory::MemoryStore;
use resolve::{Author, Refused, Resolver, Verdict};
use running::RunningClaim;
use select::NotFound;
use sqlite::SqliteStore;
use store::{Answer, Brief, Browsed, Counts, Filter, Record, Store, Unavailable};
use vault::{LockedOut, Opened, Vault};
use view::Reply;

/// The journal of a serving process.
pub struct Journal {
    store: Arc<dyn Store>,
    vault: Vault,
    metrics: Arc<Metrics>,
    /// By operation.
    meters: [Meters; Operation::NAMES.len()],
    health: Health,
    /// This process, in claims.
    gateway: Arc<str>,
    claims: AtomicI64,
    /// The apps whose replies cannot all be opened, as they were last told of.
    locked_out: watch::Sender<Vec<LockedOut>>,
    /// Receipts that are being written.
    receipts: TaskTracker,
    /// The apps that gauges were ever set for: those of the configuration, and those that the
    /// journal still knows.
    counted: Mutex<BTreeSet<String>>,
    /// What of the configuration it keeps to.
    config: RwLock<JournalConfig>,
    /// Rung when the keys were replaced.
    rekeyed: Notify,
}

/// What is counted and timed.
#[derive(Clone, Copy)]
enum Operation {
    Claim,
    Finish,
    Answered,
    Look,
    Count,
    Probe,
    Unlock,
    Prune,
    Browse,
    Resolve,
    Close,
}

impl Operation {
    /// The names of all of them, in their order.
    const NAMES: [&str; 11] =
        ["claim", "finish", "answered", "look", "count", "probe", "unlock", "prune", "browse", "resolve", "close"];
}

/// Where an operation is counted: looked up once, and not by its name each time.
struct Meters {
    seconds: Histogram,
    errors: IntCounter,
}
/// How often old replies and deliveries are looked for.
const PRUNE_EVERY: Duration = Duration::from_secs(600);
/// How often the journal is tried while nothing is wrong.
const PROBE_EVERY: Duration = Duration::from_secs(5);
/// How often it is tried while something is.
const PROBE_AGAIN: Duration = Duration::from_millis(250);
/// How long the end of the process waits for the last receipts.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);
/// How long a journal that neither does it nor fails may take, until it counts as not available.
const PROBE_WITHIN: Duration = Duration::from_secs(5);
/// How long a scrape waits for the journal's counts.
const COUNT_WITHIN: Duration = Duration::from_secs(1);

impl Journal {
    /// Opens the journal that the configuration names.
    ///
    /// # Errors
    /// What is wrong with it and what to do about it.
    pub async fn open(config: &Config, metrics: Arc<Metrics>) -> Result<Arc<Self>, String> {
        let gateway = random_name()?;
        #[cfg_attr(not(feature = "postgres"), allow(unused_mut, reason = "only a server can be out of reach"))]
        let mut trouble = None;
        let store: Arc<dyn Store> = match &config.journal.location {
            Location::Memory => Arc::new(MemoryStore::default()),
            Location::Sqlite(path) => {
                let sizes = metrics.journal_batch_size.clone();
                #[allow(clippy::cast_precision_loss, reason = "batches are small")]
                let store = SqliteStore::serve(path, move |size| sizes.observe(size as f64))?;
                if store.taken_over() > 0 {
                    tracing::warn!(
                        deliveries = store.taken_over(),
                        "the process before this one ended while deliveries ran: they are unconfirmed now"
                    );
                }
                Arc::new(store)
            }
            #[cfg(feature = "postgres")]
            Location::Postgres(url) => {
                let store = postgres::PostgresStore::new(url, Arc::clone(&gateway), config.journal.lease)
                    .map_err(|error| format!("journal.url: {error}"))?;
                match store.open().await {
                    Ok(warnings) => warnings.iter().for_each(|warning| tracing::warn!("journal.url: {warning}")),
                    Err(postgres::OpenError::Refused(error)) => return Err(format!("journal.url: {error}")),
                    // A server that is not there yet is no reason not to start: /readyz tells.
                    Err(postgres::OpenError::Unreachable(error)) => trouble = Some(Unavailable::new(error)),
                }
                Arc::new(store)
            }
            #[cfg(not(feature = "postgres"))]
            Location::Postgres(_) => return Err("this spigate was built without the feature postgres".to_owned()),
        };
        let journal = Self::over(store, gateway, config, metrics);
        let unlocked = match trouble {
            Some(trouble) => Err(trouble),
            None => journal.unlock().await,
        };
        if let Err(unavailable) = unlocked {
            journal.health.failed(&unavailable);
        }
        Ok(journal)
    }

    /// A journal over a store that is open.
    pub fn over(store: Arc<dyn Store>, gateway: Arc<str>, config: &Config, metrics: Arc<Metrics>) -> Arc<Self> {
        // From zero, so that an alert sees the first one rise.
        for app in &config.apps {
            metrics.duplicate_confirmations.with_label_values(&[&app.name]);
        }
        let meters = Operation::NAMES.map(|operation| Meters {
            seconds: metrics.journal_seconds.with_label_values(&[operation]),
            errors: metrics.journal_errors.with_label_values(&[operation]),
        });
        Arc::new(Self {
            store,
            vault: Vault::of(config),
            metrics,
            meters,
            health: Health::default(),
            gateway,
            claims: AtomicI64::new(0),
            locked_out: watch::Sender::default(),
            receipts: TaskTracker::new(),
            counted: Mutex::new(config.apps.iter().map(|app| app.name.clone()).collect()),
            config: RwLock::new(config.journal.clone()),
            rekeyed: Notify::new(),
        })
    }

    /// Keeps to another configuration from now on: its apps, keys and retention. Where it lies and
    /// its lease stay as they were at the start.
    pub fn reconfigure(&self, config: &Config) {
        let secrets = |app: &AppConfig| app.keys.iter().map(|key| key.secret.clone()).collect();
        let apps = config.apps.iter().map(|app| (app.name.clone(), secrets(app)));
        self.vault.rekey(apps, config.journal.encryption_key.as_ref());
        for app in &config.apps {
            self.metrics.duplicate_confirmations.with_label_values(&[&app.name]);
        }
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        counted.extend(config.apps.iter().map(|app| app.name.clone()));
        drop(counted);
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = config.journal.clone();
        // Data keys are wrapped by the new keys before the old ones are gone from everywhere.
        self.rekeyed.notify_one();
    }

    /// Whether the journal can be used, and since when not.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// A claimant that nobody else is.
    pub fn claimant(&self) -> Claimant {
        Claimant { gateway: Arc::clone(&self.gateway), number: self.claims.fetch_add(1, Ordering::Relaxed) + 1 }
    }

    /// Claims a delivery; durable once it comes back.
    ///
    /// # Errors
    /// The journal is down: nothing may be forwarded.
    pub async fn claim(&self, ask: Arc<Ask>) -> Result<Claimed, Unavailable> {
        self.health.check()?;
        self.vital(Operation::Claim, self.store.claim(ask)).await
    }

    /// Records the end of an attempt; durable once it comes back. Tries it even while the journal is
    /// known to be down: whoever has time asks its health before.
    ///
    /// # Errors
    /// The journal is down: keep the end and try again.
    pub async fn finish(&self, claim: &RunningClaim, end: &Outgoing) -> Result<(Finished, Arc<Entry>), Unavailable> {
        let now = clock::now();
        let ending = match end {
            Outgoing::Confirmed { instance_id, reply } => {
                Ending::Confirmed { instance_id: instance_id.clone(), reply: self.seal(claim, reply, now).await? }
            }
            Outgoing::Refused { reply } => Ending::Refused { reply: self.seal(claim, reply, now).await? },
            Outgoing::Failed(reason) => Ending::Failed(reason.clone()),
            Outgoing::Unconfirmed(reason) => Ending::Unconfirmed(reason.clone()),
        };
        let end = End {
            ask: Arc::clone(&claim.ask),
            key: claim.key,
            cycle: claim.cycle,
            attempt: claim.number,
            began_at: claim.began_at,
            ending,
            now,
        };
        self.vital(Operation::Finish, self.store.finish(end)).await
    }

    async fn seal(&self, claim: &RunningClaim, reply: &[u8], now: Timestamp) -> Result<Sealed, Unavailable> {
        self.vault.seal(&*self.store, &claim.ask.subject.app, &claim.key, reply, now).await
    }

    /// Opens a recorded reply.
    ///
    /// # Errors
    /// The journal is down.
    pub async fn open_reply(&self, entry: &Entry, sealed: &Sealed) -> Result<Option<Bytes>, Unavailable> {
        Ok(match self.vault.open(&*self.store, &entry.subject.app, &entry.key, sealed).await? {
            Opened::Reply(reply) => Some(reply),
            Opened::Lost => None,
        })
    }

    /// Reads an entry.
    ///
    /// # Errors
    /// The journal is down.
    pub async fn look(&self, key: DeliveryKey) -> Result<Option<Entry>, Unavailable> {
        self.health.check()?;
        self.vital(Operation::Look, self.store.look(key)).await
    }

    /// Comes back when an entry may have changed.
    pub async fn changed(&self, key: DeliveryKey) {
        self.store.changed(key).await;
    }

    /// Updates what waits for somebody; for as long as the journal is down, the last numbers stay.
    pub async fn count(&self) {
        if !self.health.is_well() {
            return;
        }
        let counted = tokio::time::timeout(COUNT_WITHIN, self.timed(Operation::Count, self.store.counts())).await;
        let Ok(Ok(counts)) = counted else { return };
        let mut apps = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        apps.extend(counts.iter().map(|counts| counts.app.clone()));
        for app in apps.iter() {
            let known = counts.iter().find(|counts| counts.app == *app);
            let set = |gauge: &IntGaugeVec, value: Option<i64>| gauge.with_label_values(&[app]).set(value.unwrap_or(0));
            set(&self.metrics.unconfirmed_deliveries, known.map(|counts| counts.unconfirmed));
            set(&self.metrics.unanswered_deliveries, known.map(|counts| counts.unanswered));
        }
    }

    /// How many deliveries of each app wait for something.
    ///
    /// # Errors
    /// The journal is down.
    pub async fn counts(&self) -> Result<Vec<Counts>, Unavailable> {
        self.health.check()?;
        self.timed(Operation::Count, self.store.counts()).await
    }

    /// Lists what fits, in bounded time.
    ///
    /// # Errors
    /// The journal is down.
    pub async fn browse(&self, filter: Filter, cursor: Option<i64>, limit: usize) -> Result<Browsed, Unavailable> {
        self.health.check()?;
        self.timed(Operation::Browse, self.store.browse(filter, cursor, limit)).await
    }

    /// What became of the latest deliveries since a time.
    ///
    /// # Errors
    /// The journal is down.
    pub async fn recent(&self, since: Timestamp, most: usize) -> Result<Vec<Brief>, Unavailable> {
        self.health.check()?;
        self.timed(Operation::Browse, self.store.recent(since, most)).await
    }

    /// The one delivery whose id begins so, and its reply without credentials.
    ///
    /// # Errors
    /// There is none, or more than one; or the journal is down.
    pub async fn find(&self, id: &str) -> Result<(Record, Reply), NotFound> {
        self.health.check()?;
        let found = Box::pin(async {
            match select::find(&*self.store, id).await {
                Err(NotFound::Unavailable(unavailable)) => Err(unavailable),
                Err(error) => Ok(Err(error)),
                Ok(record) => {
                    let reply = Reply::of(&*self.store, &self.vault, &record.entry, false).await?;
                    Ok(Ok((record, reply)))
                }
            }
        });
        self.timed(Operation::Browse, found).await?
    }

    /// Records what an operator decided; says what happens next.
    ///
    /// # Errors
    /// See [`Refused`].
    pub async fn resolve(
        &self,
        app: &(dyn Fn(&str) -> Option<AppConfig> + Send + Sync),
        id: &str,
        verdict: Verdict,
        author: Author,
    ) -> Result<(Entry, String), Refused> {
        self.health.check()?;
        let resolver = Resolver { app, store: &*self.store, vault: &self.vault };
        let resolved = Box::pin(async {
            match resolver.resolve(id, verdict, author, clock::now()).await {
                Err(Refused::Unavailable(unavailable)) => Err(unavailable),
                resolved => Ok(resolved),
            }
        });
        self.timed(Operation::Resolve, resolved).await?
    }

    /// What keeps it: `memory`, `sqlite` or `postgres`.
    pub fn kind(&self) -> &'static str {
        match self.config.read().unwrap_or_else(PoisonError::into_inner).location {
            Location::Memory => "memory",
            Location::Sqlite(_) => "sqlite",
            Location::Postgres(_) => "postgres",
        }
    }

    /// The apps whose replies cannot all be opened.
    pub fn locked_out(&self) -> Vec<LockedOut> {
        self.locked_out.borrow().clone()
    }

    /// Keeps the journal in order for as long as the process lives: tries it, keeps the lease,
    /// removes what is too old.
    pub async fn keep(self: Arc<Self>) {
        loop {
            // Side by side: a lease that ran out while old deliveries are removed would have others
            // forward what still runs here.
            let kept = async { tokio::join!(self.watch(), self.sweep()) };
            if std::panic::AssertUnwindSafe(kept).catch_unwind().await.is_err() {
                // A bug must cost neither the lease nor the way back to health.
                self.metrics.panics.inc();
            }
            tokio::time::sleep(PROBE_AGAIN).await;
        }
    }

    /// Tries the journal again and again, and with it keeps the lease.
    async fn watch(&self) {
        loop {
            let probe = Box::pin(async {
                let probed = tokio::time::timeout(PROBE_WITHIN, self.store.probe()).await;
                probed.unwrap_or_else(|_| Err(Unavailable::new(format_args!("no answer within {PROBE_WITHIN:?}"))))
            });
            match self.timed(Operation::Probe, probe).await {
                Ok(()) => self.health.is_well_again(),
                Err(unavailable) => self.health.failed(&unavailable),
            }
            let every = self.store.lease().map_or(PROBE_EVERY, |lease| (lease / 3).min(PROBE_EVERY));
            let wait = if self.health.is_well() { every } else { PROBE_AGAIN };
            // A failure is looked into at once: it may have been one delivery's alone.
            let _ = tokio::time::timeout(wait, self.health.failure()).await;
        }
    }

    /// Removes what is too old, at the start and from time to time. No delivery depends on it.
    async fn sweep(&self) {
        loop {
            self.health.wellness().await;
            // Says that the keys are still in use, and wraps what others have added.
            let unlocked = self.unlock().await;
            let config = self.config.read().unwrap_or_else(PoisonError::into_inner).clone();
            let pruned = retention::prune(&*self.store, &config, clock::now());
            let pruned = self.timed(Operation::Prune, Box::pin(pruned)).await;
            // What failed is counted by `timed`.
            let is_done = unlocked.is_ok() && pruned.is_ok();
            let pause = if is_done { PRUNE_EVERY } else { PROBE_EVERY };
            let _ = tokio::time::timeout(pause, self.rekeyed.notified()).await;
        }
    }

    async fn unlock(&self) -> Result<(), Unavailable> {
        let unlocked = self.vault.unlock(&*self.store, clock::now());
        let locked_out = self.timed(Operation::Unlock, Box::pin(unlocked)).await?;
        // Said once, and again when it changes: it may stay so for as long as the history.
        if self.locked_out.send_if_modified(|known| std::mem::replace(known, locked_out.clone()) != locked_out) {
            for app in &locked_out {
                tracing::error!(app = app.app, "{app}");
            }
        }
        Ok(())
    }

    /// Gives up what this process holds.
    pub async fn close(&self) {
        self.receipts.close();
        let _ = tokio::time::timeout(CLOSE_WITHIN, self.receipts.wait()).await;
        // What it could not give up, others take when its lease has passed.
        let _ = self.timed(Operation::Close, self.store.close()).await;
    }

    async fn timed<T>(
        &self,
        operation: Operation,
        answer: impl Future<Output = Result<T, Unavailable>>,
    ) -> Result<T, Unavailable> {
        let begun = Instant::now();
        let result = answer.await;
        self.note(operation, begun, &result);
        result
    }

    /// Counts what an operation came to, and how long it took.
    fn note<T>(&self, operation: Operation, begun: Instant, result: &Result<T, Unavailable>) {
        let meters = &self.meters[operation as usize];
        meters.seconds.observe(begun.elapsed().as_secs_f64());
        if result.is_err() {
            meters.errors.inc();
        }
    }

    /// The same, for what deliveries depend on: unless it may be this one's own fault, the journal
    /// is down for all of them.
    async fn vital<T>(&self, operation: Operation, answer: Answer<'_, T>) -> Result<T, Unavailable> {
        let result = self.timed(operation, answer).await;
        if let Err(unavailable) = &result
            && !unavailable.is_local
        {
            self.health.failed(unavailable);
        }
        result
    }
}

/// The end of an attempt before its reply is sealed.
#[derive(Clone, Debug)]
pub enum Outgoing {
    /// The backend did it.
    Confirmed {
        /// The instance id that the reply names.
        instance_id: Option<Arc<str>>,
        /// The reply.
        reply: Bytes,
    },
    /// The backend says no.
    Refused {
        /// The reply.
        reply: Bytes,
    },
    /// Nothing was done.
    Failed(entry::Reason),
    /// It may have been done.
    Unconfirmed(entry::Reason),
}

/// An end that is recorded, and that the platform has not been told of yet.
#[derive(Clone)]
pub struct Receipt {
    journal: Arc<Journal>,
    key: DeliveryKey,
    told: State,
}

impl Receipt {
    /// For an entry, as it is told: done, or closed.
    pub fn new(journal: Arc<Journal>, entry: &Entry) -> Self {
        Self { journal, key: entry.key, told: entry.state }
    }

    /// The platform is being answered with success, or with the operator's no.
    pub fn given(&self) {
        let begun = Instant::now();
        let mut answered = self.journal.store.answered(self.key, self.told, clock::now());
        // On its way before the answer is: whoever has that may ask for the same once more at
        // once, and must not be taken for somebody who was never answered.
        // Not knowing costs an alarm, not an order.
        match (&mut answered).now_or_never() {
            Some(result) => self.journal.note(Operation::Answered, begun, &result),
            None => {
                let journal = Arc::clone(&self.journal);
                let rest = async move { journal.note(Operation::Answered, begun, &answered.await) };
                self.journal.receipts.spawn(rest);
            }
        }
    }
}

impl fmt::Debug for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Receipt({:?})", self.key)
    }
}

fn random_name() -> Result<Arc<str>, String> {
    let bytes = getrandom::u64().map_err(|error| format!("no random numbers: {error}"))?;
    Ok(format!("{bytes:016x}").into())
}
