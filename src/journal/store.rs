//! What a store of the journal has to do. Three do it: memory, SQLite, PostgreSQL.
//!
//! A store keeps entries, their history, instances, cycles and data keys. It decides nothing:
//! it reads what is known, asks `machine.rs`, and writes the change, atomically and durably
//! before it answers. One suite of tests runs against all of them.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::entry::{Ask, Attempt, AttemptOutcome, End, Entry, State};
use super::key::DeliveryKey;
use super::machine::{Claimed, Finished, Ruling, Unresolvable};

pub use super::answer::Answer;

/// The journal cannot be read or written now: nothing is known to have changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unavailable {
    /// The cause, for the log.
    pub cause: Arc<str>,
    /// Whether it may be what was asked for that is at fault, and all else well.
    pub is_local: bool,
}

impl Unavailable {
    /// With the cause, for the log.
    pub fn new(cause: impl fmt::Display) -> Self {
        Self { cause: cause.to_string().into(), is_local: false }
    }

    /// The same, where it may be one entry's fault: others must not suffer from it.
    pub fn local(cause: impl fmt::Display) -> Self {
        Self { is_local: true, ..Self::new(cause) }
    }
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.cause)
    }
}

impl std::error::Error for Unavailable {}

/// The part of a store that deliveries need.
pub trait Deliveries: Send + Sync {
    /// Claims a delivery: [`super::machine::claim`] on the entry in the instance's current cycle
    /// (or, without one, on the entry that its key is an alias of, or else on the latest unanswered
    /// entry with the same lookalike).
    fn claim(&self, ask: Arc<Ask>) -> Answer<'_, Claimed>;

    /// Records the end of an attempt: [`super::machine::finish`].
    fn finish(&self, end: End) -> Answer<'_, (Finished, Arc<Entry>)>;

    /// Records that the platform was told how it ended: `told` is the state that says so, done or
    /// closed. In another one by now, nothing is recorded: that one it was not told of. The first
    /// time stays. Nobody waits for it to be durable: it comes before everything that is asked
    /// afterwards and for which it matters, and before a [`probe`](Self::probe). The answer outlives
    /// whoever asks for it.
    fn answered(&self, key: DeliveryKey, told: State, at: Timestamp) -> Answer<'static, ()>;

    /// Reads an entry. A running attempt that a claim would take for lost is read as lost
    /// ([`super::machine::lose`]); reading records nothing.
    fn look(&self, key: DeliveryKey) -> Answer<'_, Option<Entry>>;

    /// Comes back when the entry may have changed, or when it is time to look again anyway.
    fn changed(&self, key: DeliveryKey) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;

    /// Whether the journal can be written: tries, and keeps the lease of this process.
    fn probe(&self) -> Answer<'_, ()>;

    /// Gives the lease up: what this process claimed and has not ended is open to others.
    fn close(&self) -> Answer<'_, ()>;
}

/// The part that operators and housekeeping need.
pub trait Archive: Send + Sync {
    /// Entries that fit, latest first, with their history: at most `limit`, from before `cursor`.
    fn list(&self, filter: Filter, cursor: Option<i64>, limit: usize) -> Answer<'_, Vec<Record>>;

    /// The same in bounded time, whatever is asked for: where little fits, it looks at so many entries
    /// only, and says where it stopped. Times are found by the order in which entries came, so one
    /// recorded while a clock was wrong by minutes may not be found by its time.
    fn browse(&self, filter: Filter, cursor: Option<i64>, limit: usize) -> Answer<'_, Browsed> {
        Answer::work(async move {
            let records = self.list(filter, cursor, limit.saturating_add(1)).await?;
            Ok(Browsed::full(records, limit))
        })
    }

    /// What became of the latest deliveries since a time: at most `most`, latest first.
    fn recent(&self, since: Timestamp, most: usize) -> Answer<'_, Vec<Brief>> {
        Answer::work(async move {
            let filter = Filter { since: Some(since), ..Filter::default() };
            Ok(self.list(filter, None, most).await?.iter().map(|record| Brief::of(&record.entry)).collect())
        })
    }

    /// Decides about a delivery: [`super::machine::resolve`]. `None` if there is no such entry.
    fn resolve(&self, key: DeliveryKey, ruling: Ruling, now: Timestamp) -> Answer<'_, Option<Resolved>>;

    /// How many deliveries of each app wait for something.
    fn counts(&self) -> Answer<'_, Vec<Counts>>;

    /// Removes a batch of what is too old. Running deliveries stay.
    fn prune(&self, retention: Retention) -> Answer<'_, Pruned>;
}

/// The part that keeps the data keys that seal replies.
pub trait Keys: Send + Sync {
    /// All data keys, oldest first.
    fn data_keys(&self) -> Answer<'_, Vec<DataKey>>;

    /// Adds a data key; its number.
    fn add_data_key(&self, app: String, wraps: Vec<Wrap>, now: Timestamp) -> Answer<'_, i64>;

    /// Adds wraps, or says that these are still in use.
    fn put_wraps(&self, data_key: i64, wraps: Vec<Wrap>, now: Timestamp) -> Answer<'_, ()>;
}

/// A store of the journal.
pub trait Store: Deliveries + Archive + Keys {
    /// How long a claim outlives its silent process; `None` where there can be only one process.
    fn lease(&self) -> Option<Duration>;
}

/// The outcome of an operator's decision.
pub type Resolved = Result<Entry, Unresolvable>;

/// Which entries are asked for. Everything given must fit.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// The first characters of the `Idempotency-Key`, which is the first half of the key.
    pub id: Option<String>,
    /// The app.
    pub app: Option<String>,
    /// The action's name.
    pub action: Option<String>,
    /// The order's number.
    pub order_id: Option<String>,
    /// The instance that it is about or that it made.
    pub instance_id: Option<String>,
    /// The customer.
    pub user_id: Option<String>,
    /// What became of it.
    pub which: Option<Which>,
    /// Received at or after.
    pub since: Option<Timestamp>,
    /// Received before.
    pub until: Option<Timestamp>,
}

/// What became of a delivery, as one asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// By its state.
    State(State),
    /// By the outcome of any of its attempts.
    Attempt(AttemptOutcome),
    /// Confirmed by the backend, never answered to the platform.
    Unanswered,
}

impl Filter {
    /// Whether a record fits.
    pub fn fits(&self, record: &Record) -> bool {
        let (entry, subject) = (&record.entry, &*record.entry.subject);
        let is = |wanted: &Option<String>, value: Option<&str>| wanted.is_none() || wanted.as_deref() == value;
        let made = entry.confirmation.as_ref().and_then(|confirmation| confirmation.instance_id.as_deref());
        let outcomes = || record.attempts().filter_map(|attempt| Some(attempt.ended.as_ref()?.outcome));
        self.id.as_ref().is_none_or(|id| entry.key.idempotency_key().starts_with(id.as_str()))
            && is(&self.app, Some(&subject.app))
            && is(&self.action, Some(&subject.action))
            && is(&self.order_id, subject.order_id.as_deref())
            && (is(&self.instance_id, subject.instance_id.as_deref()) || is(&self.instance_id, made))
            && is(&self.user_id, subject.user_id.as_deref())
            && self.since.is_none_or(|since| entry.received_at >= since)
            && self.until.is_none_or(|until| entry.received_at < until)
            && match self.which {
                None => true,
                Some(Which::State(state)) => entry.state == state,
                Some(Which::Attempt(outcome)) => outcomes().any(|known| known == outcome),
                Some(Which::Unanswered) => entry.state == State::Done && entry.answered_at.is_none(),
            }
    }
}

/// An entry with its history.
#[derive(Clone, Debug)]
pub struct Record {
    /// Where a listing goes on after it.
    pub cursor: i64,
    /// The entry.
    pub entry: Entry,
    /// Attempts before the latest, in order.
    pub history: Vec<Attempt>,
}

impl Record {
    /// All attempts, in order.
    pub fn attempts(&self) -> impl Iterator<Item = &Attempt> {
        self.history.iter().chain([&self.entry.latest])
    }
}

/// A part of a listing.
#[derive(Clone, Debug)]
pub struct Browsed {
    /// What fits, latest first.
    pub records: Vec<Record>,
    /// Where the listing goes on, if it may.
    pub next: Option<i64>,
    /// When the last entry that was looked at was received, if the search stopped before it had all
    /// that it may return.
    pub stopped_at: Option<Timestamp>,
}

impl Browsed {
    /// What was found when one more than `limit` was looked for among all.
    pub fn full(mut records: Vec<Record>, limit: usize) -> Self {
        let is_more = records.len() > limit;
        records.truncate(limit);
        let next = records.last().filter(|_| is_more).map(|record| record.cursor);
        Self { records, next, stopped_at: None }
    }
}

/// What became of a delivery, for statistics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Brief {
    /// The app.
    pub app: String,
    /// When it was received.
    pub received_at: Timestamp,
    /// What may happen next.
    pub state: State,
    /// How its latest attempt ended, if it did.
    pub outcome: Option<AttemptOutcome>,
    /// How long that took, in milliseconds.
    pub took_ms: Option<i64>,
}

impl Brief {
    /// Of an entry.
    pub fn of(entry: &Entry) -> Self {
        Self {
            app: entry.subject.app.to_string(),
            received_at: entry.received_at,
            state: entry.state,
            outcome: entry.latest.ended.as_ref().map(|ended| ended.outcome),
            took_ms: super::view::milliseconds(&entry.latest),
        }
    }
}

/// What waits for something, of one app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    /// The app.
    pub app: String,
    /// Deliveries that may have been executed.
    pub unconfirmed: i64,
    /// Deliveries confirmed by the backend and never answered to the platform.
    pub unanswered: i64,
}

/// What is too old.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// The time that the limits were made from; a store with a clock of its own goes by how long
    /// before this they are.
    pub now: Timestamp,
    /// Replies recorded before this are removed; what they said of success stays.
    pub replies_before: Timestamp,
    /// Deliveries (and instances, cycles) that last changed before this are removed.
    pub history_before: Timestamp,
    /// Wraps of data keys that nobody used since then are removed, if a later one is there.
    pub wraps_before: Timestamp,
    /// Most rows of each kind in one go.
    pub batch: usize,
}

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Replies.
    pub replies: usize,
    /// Deliveries.
    pub deliveries: usize,
    /// Rows about instances and cycles.
    pub instances: usize,
}

impl Pruned {
    /// Whether there may be more to remove than one batch held.
    pub fn is_full(&self, batch: usize) -> bool {
        self.replies >= batch || self.deliveries >= batch || self.instances >= batch
    }
}

/// A data key, wrapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataKey {
    /// Its number.
    pub id: i64,
    /// The app whose replies it seals.
    pub app: String,
    /// The data key under each key that opens it.
    pub wraps: Vec<Wrap>,
}

/// A data key under one key that opens it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrap {
    /// Which key opens it: a hash, not the key.
    pub wrapper: Vec<u8>,
    /// Nonce and ciphertext.
    pub bytes: Vec<u8>,
}
