//! The journal in memory: for trials and tests. A restart forgets every delivery.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;

use super::entry::{Ask, Attempt, End, Ending, Entry, Lifecycle, State, Subject};
use super::key::{DeliveryKey, Origin};
use super::machine::{self, Change, Claimed, CycleChange, Finished, Resolution, Ruling, Step};
use super::store::{
    Answer, Archive, Counts, DataKey, Deliveries, Filter, Keys, Pruned, Record, Resolved, Retention, Store, Wrap,
};

/// How long a copy waits before it looks whether the attempt that it joined has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// See the module.
#[derive(Default)]
pub struct MemoryStore(Mutex<Tables>);

#[derive(Default)]
struct Tables {
    numbers: HashMap<DeliveryKey, i64>,
    aliases: HashMap<DeliveryKey, DeliveryKey>,
    records: BTreeMap<i64, Record>,
    next: i64,
    instances: HashMap<(Arc<str>, Arc<str>), (Origin, Timestamp)>,
    cycles: HashMap<(Arc<str>, Arc<str>), (u32, Timestamp)>,
    data_keys: Vec<DataKey>,
    /// When each wrap of a data key was last said to be in use.
    wraps_used: HashMap<(i64, Vec<u8>), Timestamp>,
}

impl MemoryStore {
    fn tables(&self) -> MutexGuard<'_, Tables> {
        // Every change is made by code that does not panic half-way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn at_once<'s, T>(value: T) -> Answer<'s, T> {
    Answer::known(Ok(value))
}

impl Tables {
    fn record(&self, key: &DeliveryKey) -> Option<&Record> {
        self.records.get(self.numbers.get(key)?)
    }

    fn entry(&self, key: &DeliveryKey) -> Option<Entry> {
        self.record(key).map(|record| record.entry.clone())
    }

    /// The latest entry of a copy without an order number that the platform was never told of.
    fn unanswered_lookalike(&self, ask: &Ask) -> Option<Entry> {
        let lookalike = ask.subject.lookalike?;
        let mut latest = self.records.values().rev().map(|record| &record.entry);
        latest.find(|entry| entry.subject.lookalike == Some(lookalike) && entry.answered_at.is_none()).cloned()
    }

    /// What is unanswered again leaves lookalikes to another one that is.
    fn give_way(&self, entry: &mut Entry, change: &Change) {
        let Some(lookalike) = entry.subject.lookalike.filter(|_| change.unanswered) else { return };
        let mut others = self.records.values().map(|record| &record.entry).filter(|other| other.key != entry.key);
        if others.any(|other| other.subject.lookalike == Some(lookalike) && other.answered_at.is_none()) {
            entry.give_way();
        }
    }

    fn claim(&mut self, ask: &Ask) -> Claimed {
        let instance = instance_of(&ask.subject);
        loop {
            let cycle = match (ask.lifecycle, &instance) {
                (Lifecycle::Ends { .. }, Some(instance)) => self.cycles.get(instance).map_or(0, |(cycle, _)| *cycle),
                _ => 0,
            };
            let key = ask.base.in_cycle(cycle);
            let alias = || self.entry(self.aliases.get(&key)?);
            let known = self.entry(&key).or_else(alias).or_else(|| self.unanswered_lookalike(ask));
            // One process, whose lease cannot be lost while it asks.
            match machine::claim(known, false, ask, key, cycle) {
                Step::Decided(claimed, change) => {
                    self.write(&claimed.entry, change);
                    return claimed;
                }
                Step::NextCycle => {
                    if let Some(instance) = instance.clone() {
                        self.cycles.insert(instance, (cycle.saturating_add(1), ask.now));
                    }
                }
            }
        }
    }

    fn finish(&mut self, end: &End) -> (Finished, Arc<Entry>) {
        let known = self.record(&end.key);
        let earlier =
            known.and_then(|record| record.history.iter().find(|attempt| attempt.number == end.attempt).cloned());
        let taken = match &end.ending {
            Ending::Confirmed { instance_id: Some(id), .. } => {
                // Copies without an order number have origins of their own; the delivery has its first's.
                let subject = known.map_or(&end.ask.subject, |record| &record.entry.subject);
                self.is_taken(subject, id)
            }
            _ => false,
        };
        let known = known.map(|record| Arc::new(record.entry.clone()));
        let (finished, mut entry, change) = machine::finish(known, earlier, taken, end);
        self.give_way(Arc::make_mut(&mut entry), &change);
        self.write(&entry, change);
        (finished, entry)
    }

    /// Whether an instance belongs to another order.
    fn is_taken(&self, subject: &Subject, instance: &Arc<str>) -> bool {
        let owner = self.instances.get(&(Arc::clone(&subject.app), Arc::clone(instance)));
        owner.is_some_and(|(owner, _)| *owner != subject.origin)
    }

    fn write(&mut self, entry: &Entry, change: Change) {
        if let Some(instance) = instance_of(&entry.subject)
            && change.cycle != CycleChange::None
        {
            let (cycle, touched) = self.cycles.entry(instance).or_insert((0, entry.changed_at));
            *cycle = cycle.saturating_add(u32::from(change.cycle == CycleChange::Raise));
            *touched = entry.changed_at;
        }
        if let Some(instance) = change.instance {
            let owner = (entry.subject.origin, entry.changed_at);
            self.instances.entry((Arc::clone(&entry.subject.app), instance)).or_insert(owner);
        }
        if let Some(alias) = change.alias {
            self.aliases.insert(alias, entry.key);
        }
        if !change.entry {
            return;
        }
        let cursor = *self.numbers.entry(entry.key).or_insert_with(|| {
            self.next += 1;
            self.next
        });
        let record =
            self.records.entry(cursor).or_insert_with(|| Record { cursor, entry: entry.clone(), history: Vec::new() });
        record.entry = entry.clone();
        if let Some(attempt) = change.history {
            put_attempt(&mut record.history, attempt);
        }
    }

    fn put_wraps(&mut self, data_key: i64, wraps: Vec<Wrap>, now: Timestamp) {
        let Some(key) = self.data_keys.iter_mut().find(|key| key.id == data_key) else { return };
        for wrap in wraps {
            self.wraps_used.insert((data_key, wrap.wrapper.clone()), now);
            key.wraps.retain(|known| known.wrapper != wrap.wrapper);
            key.wraps.push(wrap);
        }
    }
}

/// The instance that something is about, by its app.
fn instance_of(subject: &Subject) -> Option<(Arc<str>, Arc<str>)> {
    subject.instance_id.clone().map(|instance| (Arc::clone(&subject.app), instance))
}

fn put_attempt(history: &mut Vec<Attempt>, attempt: Attempt) {
    match history.binary_search_by_key(&attempt.number, |known| known.number) {
        Ok(at) => history[at] = attempt,
        Err(at) => history.insert(at, attempt),
    }
}

impl Deliveries for MemoryStore {
    fn claim(&self, ask: Arc<Ask>) -> Answer<'_, Claimed> {
        at_once(self.tables().claim(&ask))
    }

    fn finish(&self, end: End) -> Answer<'_, (Finished, Arc<Entry>)> {
        at_once(self.tables().finish(&end))
    }

    fn answered(&self, key: DeliveryKey, told: State, at: Timestamp) -> Answer<'static, ()> {
        let mut tables = self.tables();
        if let Some(number) = tables.numbers.get(&key).copied()
            && let Some(record) = tables.records.get_mut(&number)
            && record.entry.state == told
        {
            record.entry.answered_at.get_or_insert(at);
        }
        at_once(())
    }

    fn look(&self, key: DeliveryKey) -> Answer<'_, Option<Entry>> {
        at_once(self.tables().entry(&key))
    }

    fn changed(&self, _: DeliveryKey) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(tokio::time::sleep(LOOK_AGAIN))
    }

    fn probe(&self) -> Answer<'_, ()> {
        at_once(())
    }

    fn close(&self) -> Answer<'_, ()> {
        at_once(())
    }
}

impl Archive for MemoryStore {
    fn list(&self, filter: Filter, cursor: Option<i64>, limit: usize) -> Answer<'_, Vec<Record>> {
        let tables = self.tables();
        let before = tables.records.range(..cursor.unwrap_or(i64::MAX)).rev().map(|(_, record)| record);
        at_once(before.filter(|record| filter.fits(record)).take(limit).cloned().collect())
    }

    fn resolve(&self, key: DeliveryKey, ruling: Ruling, now: Timestamp) -> Answer<'_, Option<Resolved>> {
        let mut tables = self.tables();
        let Some(entry) = tables.entry(&key) else { return at_once(None) };
        let taken = match &ruling.resolution {
            Resolution::Done { instance_id: Some(id), .. } => tables.is_taken(&entry.subject, id),
            _ => false,
        };
        at_once(Some(machine::resolve(entry, false, taken, &ruling, now).map(|(mut entry, change)| {
            tables.give_way(&mut entry, &change);
            tables.write(&entry, change);
            entry
        })))
    }

    fn counts(&self) -> Answer<'_, Vec<Counts>> {
        let tables = self.tables();
        let mut counts = BTreeMap::<&str, Counts>::new();
        for Record { entry, .. } in tables.records.values() {
            let app = counts.entry(&entry.subject.app).or_insert_with(|| Counts {
                app: entry.subject.app.to_string(),
                unconfirmed: 0,
                unanswered: 0,
            });
            app.unconfirmed += i64::from(entry.state == State::Unconfirmed);
            app.unanswered += i64::from(entry.state == State::Done && entry.answered_at.is_none());
        }
        at_once(counts.into_values().collect())
    }

    fn prune(&self, retention: Retention) -> Answer<'_, Pruned> {
        let mut tables = self.tables();
        let tables = &mut *tables;
        let mut pruned = Pruned::default();
        let old: Vec<_> = tables
            .records
            .iter()
            .filter(|(_, Record { entry, .. })| {
                entry.state != State::Running && entry.changed_at < retention.history_before
            })
            .map(|(&number, record)| (number, record.entry.key))
            .take(retention.batch)
            .collect();
        pruned.deliveries = old.len();
        for (number, key) in old {
            tables.records.remove(&number);
            tables.numbers.remove(&key);
            tables.aliases.retain(|_, of| *of != key);
        }
        for record in tables.records.values_mut() {
            let entry = &mut record.entry;
            if pruned.replies < retention.batch
                && entry.state != State::Running
                && entry.changed_at < retention.replies_before
                && entry.reply.take().is_some()
            {
                pruned.replies += 1;
            }
        }
        let before = tables.instances.len() + tables.cycles.len();
        tables.instances.retain(|_, (_, at)| *at >= retention.history_before);
        tables.cycles.retain(|_, (_, at)| *at >= retention.history_before);
        pruned.instances = before - tables.instances.len() - tables.cycles.len();
        for key in &mut tables.data_keys {
            let used = &tables.wraps_used;
            let is_used = |wrap: &Wrap| used.get(&(key.id, wrap.wrapper.clone())) >= Some(&retention.wraps_before);
            if key.wraps.iter().any(is_used) {
                key.wraps.retain(is_used);
            }
        }
        at_once(pruned)
    }
}

impl Keys for MemoryStore {
    fn data_keys(&self) -> Answer<'_, Vec<DataKey>> {
        at_once(self.tables().data_keys.clone())
    }

    fn add_data_key(&self, app: String, wraps: Vec<Wrap>, now: Timestamp) -> Answer<'_, i64> {
        let mut tables = self.tables();
        let id = i64::try_from(tables.data_keys.len()).unwrap_or(i64::MAX - 1) + 1;
        tables.data_keys.push(DataKey { id, app, wraps: Vec::new() });
        tables.put_wraps(id, wraps, now);
        at_once(id)
    }

    fn put_wraps(&self, data_key: i64, wraps: Vec<Wrap>, now: Timestamp) -> Answer<'_, ()> {
        self.tables().put_wraps(data_key, wraps, now);
        at_once(())
    }
}

impl Store for MemoryStore {
    fn lease(&self) -> Option<Duration> {
        None
    }
}
