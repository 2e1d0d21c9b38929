//! Random histories of a few deliveries, with crashes, late ends and stepping clocks, against a
//! reference that knows nothing of states: it keeps what was said and done, and says from that
//! what may and what may not happen next.
//!
//! A failure tells the shortest history that leads to it, step by step.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestCaseResult, TestError, TestRunner};
use spigate::journal::entry::{Ask, Attempt, Claimant, End, Ending, Entry, Lifecycle, Reason, Sealed, State, Subject};
use spigate::journal::key::{DeliveryKey, Extras, Origin};
use spigate::journal::machine::{
    self, Change, Claimed, CycleChange, Decision, Finished, Resolution, Step, Unresolvable,
};
use spigate::journal::store::{Filter, Resolved, Which};

use crate::bench::{Bench, Gateway, Memory, Sqlite};
use crate::sample::{HOUR, START, content, key};

/// Something that happens.
#[derive(Clone, Copy, Debug)]
enum Operation {
    /// A copy comes to a gateway.
    Claim { gateway: usize, what: What, other_content: bool, hold: bool, impatient: bool },
    /// The answer to the latest claim but `back` got lost, and it is asked again.
    ClaimAgain { back: usize },
    /// The latest attempt but `back` ends, or its end is told again.
    End { back: usize, how: How },
    /// The operator decides about the delivery of the latest attempt but `back`.
    Decide { back: usize, what: Verdict },
    /// It is noted that the platform was told, by the latest final answer but `back`: maybe long
    /// after, maybe not for the first time.
    Answer { back: usize },
    /// A gateway dies, or is thought dead: its attempts may still end.
    Crash { gateway: usize },
    /// The clock jumps.
    Clock { seconds: i64 },
}

#[derive(Clone, Copy, Debug)]
enum What {
    Create { order: u8, debug: bool },
    Renew { order: u8, instance: u8 },
    Expire { instance: u8 },
    Delete { instance: u8 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Confirmed { instance: u8 },
    Refused,
    Failed,
    Unconfirmed,
}

#[derive(Clone, Copy, Debug)]
enum Verdict {
    Retry,
    Done { instance: u8, lost_reply: bool },
    Failed,
}

fn operation() -> impl Strategy<Value = Operation> {
    // Most of what happens is about few deliveries, or nothing of interest would come together.
    let what = prop_oneof![
        5 => Just(What::Create { order: 0, debug: false }),
        2 => (0..2_u8, any::<bool>()).prop_map(|(order, debug)| What::Create { order, debug }),
        2 => (0..2_u8, 0..2_u8).prop_map(|(order, instance)| What::Renew { order, instance }),
        3 => Just(What::Expire { instance: 0 }),
        1 => Just(What::Expire { instance: 1 }),
        1 => (0..2_u8).prop_map(|instance| What::Delete { instance }),
    ];
    let how = prop_oneof![
        3 => (0..3_u8).prop_map(|instance| How::Confirmed { instance }),
        1 => Just(How::Refused),
        2 => Just(How::Failed),
        2 => Just(How::Unconfirmed),
    ];
    let verdict = prop_oneof![
        2 => Just(Verdict::Retry),
        2 => (0..3_u8, any::<bool>()).prop_map(|(instance, lost_reply)| Verdict::Done { instance, lost_reply }),
        1 => Just(Verdict::Failed),
    ];
    let rarely = || prop::bool::weighted(0.1);
    let back = || prop_oneof![2 => Just(0_usize), 1 => 1..6_usize];
    prop_oneof![
        10 => (0..2_usize, what, rarely(), any::<bool>(), rarely()).prop_map(
            |(gateway, what, other_content, hold, impatient)| Operation::Claim {
                gateway, what, other_content, hold, impatient
            }
        ),
        1 => back().prop_map(|back| Operation::ClaimAgain { back }),
        9 => (back(), how).prop_map(|(back, how)| Operation::End { back, how }),
        3 => (back(), verdict).prop_map(|(back, what)| Operation::Decide { back, what }),
        3 => back().prop_map(|back| Operation::Answer { back }),
        1 => (0..2_usize).prop_map(|gateway| Operation::Crash { gateway }),
        1 => prop_oneof![Just(3_601), Just(-3_601), -30_000..30_000_i64]
            .prop_map(|seconds| Operation::Clock { seconds }),
    ]
}

/// Half of the histories are of one delivery alone, and so go deeper.
fn history(longest: usize) -> impl Strategy<Value = Vec<Operation>> {
    (any::<bool>(), prop::collection::vec(operation(), 1..longest)).prop_map(|(alone, mut operations)| {
        for operation in operations.iter_mut().filter(|_| alone) {
            match operation {
                Operation::Claim { what, other_content, .. } => {
                    *what = What::Create { order: 0, debug: false };
                    *other_content = false;
                }
                Operation::ClaimAgain { back }
                | Operation::End { back, .. }
                | Operation::Decide { back, .. }
                | Operation::Answer { back } => {
                    *back = (*back).saturating_sub(3);
                }
                Operation::Crash { .. } | Operation::Clock { .. } => {}
            }
        }
        operations
    })
}

impl What {
    /// What identifies the delivery, without its cycle.
    fn name(self) -> String {
        match self {
            Self::Create { debug: true, .. } => format!("debug {}", self.order()),
            Self::Create { .. } | Self::Renew { .. } => self.order(),
            Self::Expire { instance } => format!("expire i-{instance}"),
            Self::Delete { instance } => format!("delete i-{instance}"),
        }
    }

    /// What it is about, on trial or not.
    fn order(self) -> String {
        match self {
            Self::Create { order, .. } => format!("create {order}"),
            Self::Renew { order, instance } => format!("renew i-{instance} by {order}"),
            Self::Expire { .. } | Self::Delete { .. } => self.name(),
        }
    }

    fn instance(self) -> Option<String> {
        match self {
            Self::Create { .. } => None,
            Self::Renew { instance, .. } | Self::Expire { instance } | Self::Delete { instance } => {
                Some(format!("i-{instance}"))
            }
        }
    }

    fn is_create(self) -> bool {
        matches!(self, Self::Create { .. })
    }

    /// The instance that a reply to it names.
    fn made(self, instance: u8) -> Option<String> {
        self.is_create().then(|| format!("i-{instance}"))
    }

    fn lifecycle(self, impatient: bool) -> Lifecycle {
        match self {
            Self::Create { .. } => Lifecycle::None,
            Self::Renew { .. } => Lifecycle::Revives,
            // Less than nothing: over by any clock that does not step back.
            Self::Expire { .. } | Self::Delete { .. } if impatient => {
                Lifecycle::Ends { replay_for: SignedDuration::from_secs(-1) }
            }
            Self::Expire { .. } | Self::Delete { .. } => Lifecycle::Ends { replay_for: HOUR },
        }
    }
}

/// What is tested.
trait Journal {
    /// The name that this gateway claims with, if it serves.
    fn gateway(&self, number: usize) -> String;
    fn data_key(&self) -> i64;
    /// Whether it goes by the time that it is told.
    fn takes_our_time(&self) -> bool;
    async fn claim(&mut self, gateway: usize, ask: Arc<Ask>) -> Claimed;
    async fn finish(&mut self, end: End) -> (Finished, Entry);
    async fn look(&mut self, key: DeliveryKey) -> Option<Entry>;
    async fn resolve(&mut self, key: DeliveryKey, resolution: Resolution, now: Timestamp) -> Option<Resolved>;
    async fn answered(&mut self, key: DeliveryKey, told: State, now: Timestamp);
    /// What was never answered, by the list and by the gauge.
    async fn unanswered(&mut self) -> (HashSet<DeliveryKey>, usize);
    /// The gateway dies; says whose claims are lost, and nothing if that cannot be played.
    async fn crash(&mut self, gateway: usize) -> Vec<String>;
}

/// The state machine alone, with two gateways and leases that end when they are told to.
#[derive(Default)]
struct Bare {
    entries: HashMap<DeliveryKey, (Entry, BTreeMap<u32, Attempt>)>,
    owners: HashMap<Arc<str>, Origin>,
    cycles: HashMap<Arc<str>, u32>,
    lives: [u32; 2],
    dead: HashSet<String>,
}

impl Bare {
    fn is_lapsed(&self, entry: &Entry) -> bool {
        self.dead.contains(&*entry.latest.claimant.gateway)
    }

    fn is_taken(&self, instance: Option<&Arc<str>>, origin: Origin) -> bool {
        instance.and_then(|instance| self.owners.get(instance)).is_some_and(|owner| *owner != origin)
    }

    fn write(&mut self, entry: &Entry, change: Change) {
        if let (CycleChange::Raise, Some(instance)) = (change.cycle, &entry.subject.instance_id) {
            *self.cycles.entry(instance.clone()).or_default() += 1;
        }
        if let Some(instance) = change.instance {
            self.owners.entry(instance).or_insert(entry.subject.origin);
        }
        if change.entry {
            let kept = self.entries.entry(entry.key).or_insert_with(|| (entry.clone(), BTreeMap::new()));
            kept.0 = entry.clone();
            kept.1.extend(change.history.map(|attempt| (attempt.number, attempt)));
        }
    }
}

impl Journal for Bare {
    fn gateway(&self, number: usize) -> String {
        format!("g{number}-{}", self.lives[number])
    }

    fn data_key(&self) -> i64 {
        1
    }

    fn takes_our_time(&self) -> bool {
        true
    }

    async fn claim(&mut self, _: usize, ask: Arc<Ask>) -> Claimed {
        loop {
            let cycle = match (ask.lifecycle, &ask.subject.instance_id) {
                (Lifecycle::Ends { .. }, Some(instance)) => self.cycles.get(instance).copied().unwrap_or(0),
                _ => 0,
            };
            let key = ask.base.in_cycle(cycle);
            let known = self.entries.get(&key).map(|kept| kept.0.clone());
            let lapsed = known.as_ref().is_some_and(|entry| self.is_lapsed(entry));
            match machine::claim(known, lapsed, &ask, key, cycle) {
                Step::Decided(claimed, change) => {
                    self.write(&claimed.entry, change);
                    return claimed;
                }
                Step::NextCycle => *self.cycles.entry(ask.subject.instance_id.clone().unwrap()).or_default() += 1,
            }
        }
    }

    async fn finish(&mut self, end: End) -> (Finished, Entry) {
        let (known, history) = self.entries.get(&end.key).cloned().unzip();
        let earlier = history.and_then(|history| history.get(&end.attempt).cloned());
        let taken = match &end.ending {
            Ending::Confirmed { instance_id, .. } => self.is_taken(instance_id.as_ref(), end.ask.subject.origin),
            Ending::Refused { .. } | Ending::Failed(_) | Ending::Unconfirmed(_) => false,
        };
        let (finished, entry, change) = machine::finish(known.map(Arc::new), earlier, taken, &end);
        self.write(&entry, change);
        (finished, Arc::unwrap_or_clone(entry))
    }

    async fn look(&mut self, key: DeliveryKey) -> Option<Entry> {
        let mut entry = self.entries.get(&key)?.0.clone();
        if entry.state == State::Running && self.is_lapsed(&entry) {
            machine::lose(&mut entry, "lease_lost", START);
        }
        Some(entry)
    }

    async fn resolve(&mut self, key: DeliveryKey, resolution: Resolution, now: Timestamp) -> Option<Resolved> {
        let entry = self.entries.get(&key)?.0.clone();
        let taken = match &resolution {
            Resolution::Done { instance_id, .. } => self.is_taken(instance_id.as_ref(), entry.subject.origin),
            Resolution::Retry | Resolution::Failed { .. } | Resolution::Settled => false,
        };
        let lapsed = self.is_lapsed(&entry);
        Some(machine::resolve(entry, lapsed, taken, &resolution.into(), now).map(|(entry, change)| {
            self.write(&entry, change);
            entry
        }))
    }

    async fn answered(&mut self, key: DeliveryKey, told: State, now: Timestamp) {
        if let Some((entry, _)) = self.entries.get_mut(&key)
            && entry.state == told
        {
            entry.answered_at.get_or_insert(now);
        }
    }

    async fn unanswered(&mut self) -> (HashSet<DeliveryKey>, usize) {
        let entries = self.entries.values().map(|kept| &kept.0);
        let unanswered = entries.filter(|entry| entry.state == State::Done && entry.answered_at.is_none());
        let keys: HashSet<_> = unanswered.map(|entry| entry.key).collect();
        (keys.clone(), keys.len())
    }

    async fn crash(&mut self, gateway: usize) -> Vec<String> {
        let name = self.gateway(gateway);
        self.dead.insert(name.clone());
        self.lives[gateway] += 1;
        vec![name]
    }
}

/// A real store.
struct Stored<B> {
    bench: B,
    /// Empty for a moment while one of them dies.
    gateways: Vec<Option<Gateway>>,
}

impl<B: Bench> Stored<B> {
    async fn new(mut bench: B) -> Self {
        let mut gateways = vec![Some(bench.open().await)];
        if B::SHARED {
            gateways.push(Some(bench.open().await));
        }
        Self { bench, gateways }
    }

    fn at(&self, number: usize) -> &Gateway {
        self.gateways[number % self.gateways.len()].as_ref().unwrap()
    }
}

impl<B: Bench> Journal for Stored<B> {
    fn gateway(&self, number: usize) -> String {
        self.at(number).name.clone()
    }

    fn data_key(&self) -> i64 {
        self.at(0).data_key
    }

    fn takes_our_time(&self) -> bool {
        !B::OWN_CLOCK
    }

    async fn claim(&mut self, gateway: usize, ask: Arc<Ask>) -> Claimed {
        self.at(gateway).store.claim(ask).await.unwrap()
    }

    async fn finish(&mut self, end: End) -> (Finished, Entry) {
        // From wherever: a store cannot tell.
        let store = &self.at(usize::try_from(end.attempt).unwrap()).store;
        let (finished, entry) = store.finish(end).await.unwrap();
        (finished, Arc::unwrap_or_clone(entry))
    }

    async fn look(&mut self, key: DeliveryKey) -> Option<Entry> {
        self.at(0).store.look(key).await.unwrap()
    }

    async fn resolve(&mut self, key: DeliveryKey, resolution: Resolution, now: Timestamp) -> Option<Resolved> {
        self.at(0).store.resolve(key, resolution.into(), now).await.unwrap()
    }

    async fn answered(&mut self, key: DeliveryKey, told: State, now: Timestamp) {
        let store = &self.at(0).store;
        store.answered(key, told, now).await.unwrap();
        // It is written by now, although nobody waited for that.
        store.probe().await.unwrap();
    }

    async fn unanswered(&mut self) -> (HashSet<DeliveryKey>, usize) {
        let filter = Filter { which: Some(Which::Unanswered), ..Filter::default() };
        let store = &self.at(0).store;
        let listed = store.list(filter, None, 1000).await.unwrap();
        let counted: i64 = store.counts().await.unwrap().iter().map(|app| app.unanswered).sum();
        (listed.iter().map(|record| record.entry.key).collect(), usize::try_from(counted).unwrap())
    }

    async fn crash(&mut self, gateway: usize) -> Vec<String> {
        if !B::DURABLE {
            return Vec::new();
        }
        let place = gateway % self.gateways.len();
        let gateway = self.gateways[place].take().unwrap();
        let name = gateway.name.clone();
        self.gateways[place] = Some(self.bench.crash(gateway).await);
        vec![name]
    }
}

/// A delivery as the reference knows it: what was said of it.
#[derive(Debug)]
struct Facts {
    key: DeliveryKey,
    other_content: bool,
    /// What became of each of its attempts.
    attempts: Vec<Fate>,
    /// Attempts before this one are no longer anybody's doubt: the operator had it forwarded
    /// again, or the backend refused the latest.
    settled: usize,
    /// The answer.
    confirmed: Option<Confirmed>,
    /// The operator said that it failed.
    closed: bool,
    /// The platform was told that it failed, since the operator said so.
    heard_no: bool,
    /// The platform was told that it is done.
    heard_done: bool,
}

#[derive(Debug)]
struct Confirmed {
    reply: String,
    instance: Option<String>,
    at: Timestamp,
}

/// What is known of an attempt.
#[derive(Debug, Default)]
struct Fate {
    gateway: String,
    lost: bool,
    told: Option<How>,
    /// A confirmation that names another order's instance is none.
    reused: bool,
    /// Whether it was in doubt at any time.
    was_doubtful: bool,
}

impl Fate {
    fn runs(&self) -> bool {
        self.told.is_none() && !self.lost
    }

    /// Whether it may have been executed, as far as anybody knows.
    fn is_doubtful(&self) -> bool {
        match self.told {
            None => self.lost,
            Some(How::Unconfirmed) => true,
            Some(How::Confirmed { .. }) => self.reused,
            Some(How::Refused | How::Failed) => false,
        }
    }
}

impl Facts {
    fn latest_runs(&self) -> bool {
        self.attempts.last().is_some_and(Fate::runs)
    }

    fn must_hold(&self) -> bool {
        self.attempts[self.settled..].iter().any(Fate::is_doubtful)
    }

    fn may_hold(&self) -> bool {
        self.attempts[self.settled..].iter().any(|fate| fate.was_doubtful)
    }

    /// What a copy may come to.
    fn allowed(&self, other_content: bool, hold: bool) -> Vec<Decision> {
        if other_content != self.other_content {
            vec![Decision::Conflict]
        } else if self.confirmed.is_some() {
            vec![Decision::Replay]
        } else if self.closed {
            vec![Decision::Refuse]
        } else if self.latest_runs() {
            vec![Decision::Join]
        } else if hold && self.must_hold() {
            vec![Decision::Hold]
        } else if hold && self.may_hold() {
            // An earlier attempt turned out to have done nothing. To ask the operator all the
            // same is not wrong.
            vec![Decision::Forward, Decision::Hold]
        } else {
            vec![Decision::Forward]
        }
    }

    /// Whether the platform knows how it ended.
    fn is_answered(&self) -> bool {
        if self.confirmed.is_some() { self.heard_done } else { self.closed && self.heard_no }
    }

    /// Which states an entry may be in.
    fn states(&self) -> Vec<State> {
        if self.confirmed.is_some() {
            vec![State::Done]
        } else if self.closed {
            vec![State::Closed]
        } else if self.latest_runs() {
            vec![State::Running]
        } else if self.must_hold() {
            vec![State::Unconfirmed]
        } else if self.may_hold() {
            vec![State::Unconfirmed, State::Open]
        } else {
            vec![State::Open]
        }
    }
}

/// A delivery's name and cycle.
type Name = (String, u32);

/// An attempt that was forwarded.
#[derive(Clone)]
struct Call {
    name: Name,
    /// Position among its delivery's attempts.
    place: usize,
    what: What,
    gateway: usize,
    ask: Arc<Ask>,
    entry: Entry,
}

/// The history of one test, and everything that is known from it.
struct History<S> {
    journal: S,
    now: Timestamp,
    deliveries: BTreeMap<Name, Facts>,
    cycles: HashMap<String, u32>,
    /// Which order an instance belongs to.
    owners: HashMap<String, String>,
    calls: Vec<Call>,
    /// What the platform was told for good, of which delivery: whether that it is done.
    answers: Vec<(Name, bool)>,
    told: Vec<String>,
}

type Checked = Result<(), String>;

/// Fails the test with a sentence unless it holds.
macro_rules! ensure {
    ($holds:expr, $($sentence:tt)+) => {
        if !$holds {
            return Err(format!($($sentence)+));
        }
    };
}

impl<S: Journal> History<S> {
    fn new(journal: S) -> Self {
        Self {
            journal,
            now: START,
            deliveries: BTreeMap::new(),
            cycles: HashMap::new(),
            owners: HashMap::new(),
            calls: Vec::new(),
            answers: Vec::new(),
            told: Vec::new(),
        }
    }

    async fn play(mut self, operations: &[Operation]) -> TestCaseResult {
        for operation in operations {
            let mut result = self.step(*operation).await;
            if result.is_ok() {
                result = self.look_at_all().await;
            }
            if let Err(sentence) = result {
                let steps = self.told.join("\n  ");
                return Err(TestCaseError::fail(format!("after\n  {steps}\n{sentence}\n")));
            }
        }
        Ok(())
    }

    async fn step(&mut self, operation: Operation) -> Checked {
        match operation {
            Operation::Claim { gateway, what, other_content, hold, impatient } => {
                let ask = self.ask(gateway, what, other_content, hold, impatient);
                self.claim(gateway, what, ask, other_content).await
            }
            Operation::ClaimAgain { back } => match self.call(back) {
                Some(call) => self.claim_again(call).await,
                None => Ok(()),
            },
            Operation::End { back, how } => match self.call(back) {
                Some(call) => self.end(call, how).await,
                None => Ok(()),
            },
            Operation::Decide { back, what } => match self.call(back) {
                Some(call) => self.decide(call, what).await,
                None => Ok(()),
            },
            Operation::Answer { back } => {
                if let Some((name, is_done)) = self.answers.iter().rev().nth(back).cloned() {
                    self.answer(name, is_done).await;
                }
                Ok(())
            }
            Operation::Crash { gateway } => {
                let dead = self.journal.crash(gateway).await;
                self.tell(format_args!("{dead:?} is dead"));
                let attempts = self.deliveries.values_mut().flat_map(|facts| &mut facts.attempts);
                for fate in attempts.filter(|fate| fate.runs() && dead.contains(&fate.gateway)) {
                    fate.lost = true;
                    fate.was_doubtful = true;
                }
                Ok(())
            }
            Operation::Clock { seconds } => {
                if self.journal.takes_our_time() {
                    self.now += SignedDuration::from_secs(seconds);
                    self.tell(format_args!("the clock jumps by {seconds} s"));
                }
                Ok(())
            }
        }
    }

    fn tell(&mut self, what: impl fmt::Display) {
        self.told.push(what.to_string());
    }

    fn call(&self, back: usize) -> Option<Call> {
        self.calls.iter().rev().nth(back).cloned()
    }

    fn sealed(&self, text: &str) -> Sealed {
        Sealed { data_key: self.journal.data_key(), bytes: text.into() }
    }

    fn ask(&self, gateway: usize, what: What, other_content: bool, hold: bool, impatient: bool) -> Ask {
        let number = i64::try_from(self.told.len()).unwrap();
        Ask {
            base: key(&[&what.name()]),
            subject: Arc::new(Subject {
                origin: Origin::from_slice(key(&["origin", &what.order()]).as_bytes()).unwrap(),
                lookalike: None,
                fingerprint: content(&[&what.order(), if other_content { "other" } else { "same" }]),
                extras: Extras::from_slice(&[7; 32]).unwrap(),
                app: "crm".into(),
                action: "Action".into(),
                debug: matches!(what, What::Create { debug: true, .. }),
                order_id: Some(what.order().into()),
                instance_id: what.instance().map(Arc::from),
                user_id: None,
            }),
            lifecycle: what.lifecycle(impatient),
            hold,
            instance_must_be_new: what.is_create(),
            claimant: Claimant { gateway: self.journal.gateway(gateway).into(), number },
            request_id: format!("request-{number}").into(),
            now: self.now,
        }
    }

    /// Which delivery a copy is of: of the cycle that its instance is in.
    fn name(&mut self, what: What, ask: &Ask, other_content: bool) -> Name {
        let (Lifecycle::Ends { replay_for }, Some(instance)) = (ask.lifecycle, what.instance()) else {
            return (what.name(), 0);
        };
        let takes_our_time = self.journal.takes_our_time();
        let cycle = self.cycles.entry(instance).or_default();
        let facts = self.deliveries.get(&(what.name(), *cycle));
        let same = facts.filter(|facts| facts.other_content == other_content);
        let is_over = same.and_then(|facts| facts.confirmed.as_ref()).is_some_and(|confirmed| {
            let elapsed = if takes_our_time { self.now.duration_since(confirmed.at) } else { SignedDuration::ZERO };
            elapsed > replay_for
        });
        *cycle += u32::from(is_over);
        (what.name(), *cycle)
    }

    async fn claim(&mut self, gateway: usize, what: What, ask: Ask, other_content: bool) -> Checked {
        let name = self.name(what, &ask, other_content);
        let ask = Arc::new(ask);
        let Claimed { decision, entry } = self.journal.claim(gateway, Arc::clone(&ask)).await;
        let (by, hold) = (&ask.claimant.gateway, if ask.hold { ", held if in doubt" } else { "" });
        let number = entry.latest.number;
        let other = if other_content { ", other content" } else { "" };
        self.told.push(format!("{by}: a copy of {name:?}{hold}{other}: {decision:?}, attempt {number}"));

        let known = self.deliveries.get(&name);
        let allowed = known.map_or(vec![Decision::Forward], |facts| facts.allowed(other_content, ask.hold));
        ensure!(allowed.contains(&decision), "it should be {allowed:?}; known is {known:#?}");
        if let Some(facts) = known {
            ensure!(entry.key == facts.key, "the same delivery in the same cycle has another key");
        } else {
            let reused = self.deliveries.iter().find(|(_, facts)| facts.key == entry.key);
            ensure!(reused.is_none(), "its key is that of {:?}", reused.map(|(name, _)| name));
        }
        if decision == Decision::Replay {
            let recorded = known.and_then(|facts| facts.confirmed.as_ref()).map(|confirmed| confirmed.reply.as_bytes());
            let replayed = entry.reply.as_ref().map(|reply| reply.bytes.as_slice());
            ensure!(replayed == recorded, "the reply is not the one that was recorded first");
        }
        if let Decision::Replay | Decision::Refuse = decision {
            self.answers.push((name.clone(), decision == Decision::Replay));
        }
        if decision != Decision::Forward {
            return Ok(());
        }

        let facts = self.deliveries.entry(name.clone()).or_insert_with(|| Facts {
            key: entry.key,
            other_content,
            attempts: Vec::new(),
            settled: 0,
            confirmed: None,
            closed: false,
            heard_no: false,
            heard_done: false,
        });
        facts.attempts.push(Fate { gateway: ask.claimant.gateway.to_string(), ..Fate::default() });
        let expected = facts.attempts.len();
        ensure!(usize::try_from(number).unwrap() == expected, "it should be attempt {expected}");
        ensure!(entry.latest.claimant == ask.claimant, "the attempt is somebody else's: {entry:#?}");
        if let Lifecycle::Revives = ask.lifecycle {
            *self.cycles.entry(what.instance().unwrap()).or_default() += 1;
        }
        self.calls.push(Call { name, place: expected - 1, what, gateway, ask, entry: Arc::unwrap_or_clone(entry) });
        Ok(())
    }

    /// Asks for a claim again that was made and that runs.
    async fn claim_again(&mut self, call: Call) -> Checked {
        let facts = &self.deliveries[&call.name];
        let is_latest = call.place + 1 == facts.attempts.len();
        let cycle = call.what.instance().and_then(|instance| self.cycles.get(&instance).copied()).unwrap_or(0);
        let is_current = matches!(call.ask.lifecycle, Lifecycle::None | Lifecycle::Revives) || cycle == call.name.1;
        if !is_latest || !is_current || !facts.latest_runs() || facts.confirmed.is_some() {
            return Ok(());
        }
        let Claimed { decision, entry } = self.journal.claim(call.gateway, Arc::clone(&call.ask)).await;
        self.tell(format_args!(
            "{}: attempt {} of {:?} claimed again: {decision:?}",
            call.ask.claimant.gateway,
            call.place + 1,
            call.name
        ));
        ensure!(decision == Decision::Forward, "its own claim is its own");
        ensure!(entry.latest == call.entry.latest, "it should be the same claim: {entry:#?}");
        Ok(())
    }

    async fn end(&mut self, call: Call, how: How) -> Checked {
        let attempt = call.place + 1;
        let facts = self.deliveries.get_mut(&call.name).unwrap();
        // A process says one thing of an attempt, and says it again if nobody seems to have
        // heard; when it has to give up waiting it says so, and may still learn more.
        let fate = &mut facts.attempts[call.place];
        let how = fate.told.filter(|told| *told != How::Unconfirmed).unwrap_or(how);
        fate.told = Some(how);
        let reply = format!("reply to attempt {attempt} of {:?}", call.name);
        let reason = Reason { code: "some_reason".into(), ..Reason::default() };
        let (ending, instance) = match how {
            How::Confirmed { instance } => {
                let instance_id = call.what.made(instance);
                let reply = Sealed { data_key: self.journal.data_key(), bytes: reply.clone().into() };
                (Ending::Confirmed { instance_id: instance_id.as_deref().map(Arc::from), reply }, instance_id)
            }
            How::Refused => (
                Ending::Refused { reply: Sealed { data_key: self.journal.data_key(), bytes: reply.clone().into() } },
                None,
            ),
            How::Failed => (Ending::Failed(reason), None),
            How::Unconfirmed => (Ending::Unconfirmed(reason), None),
        };
        let end = End {
            ask: Arc::clone(&call.ask),
            key: call.entry.key,
            cycle: call.entry.cycle,
            attempt: call.entry.latest.number,
            began_at: call.entry.latest.began_at,
            ending,
            now: self.now,
        };

        let order = call.what.order();
        let owner = instance.as_ref().and_then(|instance| self.owners.get(instance));
        let is_taken = owner.is_some_and(|owner| *owner != order);
        fate.reused |= matches!(how, How::Confirmed { .. }) && is_taken;
        fate.was_doubtful |= fate.is_doubtful();
        let known = facts.confirmed.as_ref().map(|confirmed| confirmed.instance.clone());
        let is_latest = attempt == facts.attempts.len();
        let expected = match (how, known) {
            (How::Confirmed { .. }, Some(known)) if !is_taken && known != instance => vec![Finished::Duplicate],
            // Its own confirmation told again, or another of the same.
            (How::Confirmed { .. }, Some(_)) => vec![Finished::AlreadyDone, Finished::Recorded],
            (_, Some(_)) => vec![Finished::AlreadyDone],
            (How::Confirmed { .. }, None) if is_taken => vec![Finished::InstanceReused],
            (_, None) => vec![Finished::Recorded],
        };
        if let (How::Confirmed { .. }, false) = (how, is_taken) {
            let at = self.now;
            facts.confirmed.get_or_insert(Confirmed { reply, instance: instance.clone(), at });
            if let Some(instance) = instance {
                self.owners.entry(instance).or_insert(order);
            }
        }
        if facts.confirmed.is_some() {
            // Whoever waits for this attempt is told what is recorded.
            self.answers.push((call.name.clone(), true));
        }
        if how == How::Refused && is_latest {
            facts.settled = attempt;
        }
        self.tell(format_args!("attempt {attempt} of {:?} ends: {how:?}", call.name));
        let (finished, entry) = self.journal.finish(end).await;
        ensure!(expected.contains(&finished), "it should be {expected:?} and is {finished:?}: {entry:#?}");
        ensure!(entry.key == call.entry.key, "another delivery was ended: {entry:#?}");
        Ok(())
    }

    async fn decide(&mut self, call: Call, what: Verdict) -> Checked {
        let reply = format!("the operator's reply {}", self.told.len());
        let resolution = match what {
            Verdict::Retry => Resolution::Retry,
            Verdict::Done { instance, lost_reply } => Resolution::Done {
                instance_id: call.what.made(instance).map(Arc::from),
                reply: self.sealed(&reply),
                lost_reply,
            },
            Verdict::Failed => Resolution::Failed { message: "no".into() },
        };
        let order = call.what.order();
        let facts = self.deliveries.get_mut(&call.name).unwrap();
        let made = match what {
            Verdict::Done { instance, .. } => call.what.made(instance),
            Verdict::Retry | Verdict::Failed => None,
        };
        let is_taken = made.as_ref().and_then(|made| self.owners.get(made)).is_some_and(|owner| *owner != order);
        let expected = match (&facts.confirmed, what) {
            (Some(known), Verdict::Done { lost_reply: true, .. }) if known.instance == made => Ok(()),
            (Some(_), _) => Err(Unresolvable::Done),
            (None, _) if facts.latest_runs() => Err(Unresolvable::Running),
            (None, _) if is_taken => Err(Unresolvable::InstanceReused),
            (None, _) => Ok(()),
        };
        if expected.is_ok() {
            match what {
                Verdict::Retry => {
                    facts.closed = false;
                    facts.heard_no = false;
                    facts.settled = facts.attempts.len();
                }
                Verdict::Done { .. } => {
                    // Over a lost reply, the confirmation and its time stay.
                    let at = facts.confirmed.as_ref().map_or(self.now, |known| known.at);
                    facts.confirmed = Some(Confirmed { reply, instance: made.clone(), at });
                    if let Some(made) = made {
                        self.owners.entry(made).or_insert(order);
                    }
                }
                Verdict::Failed => facts.closed = true,
            }
        }
        self.tell(format_args!("the operator decides about {:?}: {what:?}", call.name));
        let resolved = self.journal.resolve(call.entry.key, resolution, self.now).await;
        let Some(resolved) = resolved else { return Err("the delivery is gone".into()) };
        let is = resolved.as_ref().map(drop).map_err(|unresolvable| *unresolvable);
        ensure!(is == expected, "it should be {expected:?} and is {is:?}");
        Ok(())
    }

    /// It is noted that the platform was told. It may have heard it before, and what it heard may no
    /// longer be true.
    async fn answer(&mut self, name: Name, is_done: bool) {
        let facts = self.deliveries.get_mut(&name).unwrap();
        if is_done {
            facts.heard_done = true;
        } else {
            facts.heard_no |= facts.closed && facts.confirmed.is_none();
        }
        let (key, told) = (facts.key, if is_done { State::Done } else { State::Closed });
        self.tell(format_args!("it is noted that the platform was told that {name:?} is {told}"));
        self.journal.answered(key, told, self.now).await;
    }

    /// Compares what is recorded of every delivery with what is known of it.
    async fn look_at_all(&mut self) -> Checked {
        for (name, facts) in &self.deliveries {
            let Some(entry) = self.journal.look(facts.key).await else { return Err(format!("{name:?} is gone")) };
            let states = facts.states();
            ensure!(states.contains(&entry.state), "{name:?} should be {states:?}: {facts:#?} {entry:#?}");
            let attempts = usize::try_from(entry.latest.number).unwrap();
            ensure!(attempts == facts.attempts.len(), "{name:?} has another number of attempts: {facts:#?} {entry:#?}");
            ensure!(entry.cycle == name.1, "{name:?} is in cycle {}", entry.cycle);
            ensure!(
                entry.answered_at.is_some() == facts.is_answered(),
                "whether {name:?} was answered is recorded wrongly: {facts:#?} {entry:#?}"
            );
            let Some(known) = &facts.confirmed else {
                ensure!(entry.confirmation.is_none(), "{name:?} is not confirmed: {facts:#?} {entry:#?}");
                continue;
            };
            let (Some(confirmation), Some(reply)) = (&entry.confirmation, &entry.reply) else {
                return Err(format!("the confirmation of {name:?} is lost: {facts:#?} {entry:#?}"));
            };
            ensure!(reply.bytes == known.reply.as_bytes(), "{name:?} has another reply: {facts:#?} {entry:#?}");
            ensure!(
                confirmation.instance_id.as_deref() == known.instance.as_deref(),
                "{name:?} has another instance: {facts:#?} {entry:#?}"
            );
        }
        let waiting = self.deliveries.values().filter(|facts| facts.confirmed.is_some() && !facts.heard_done);
        let waiting: HashSet<_> = waiting.map(|facts| facts.key).collect();
        let (listed, counted) = self.journal.unanswered().await;
        ensure!(listed == waiting, "what nobody was told of is {waiting:?}, and listed is {listed:?}");
        ensure!(counted == waiting.len(), "what nobody was told of is {waiting:?}, and {counted} are counted");
        Ok(())
    }
}

/// Plays random histories against what `journal` makes.
fn histories<S: Journal>(cases: u32, longest: usize, journal: impl AsyncFn() -> Option<S>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 20_000, ..Config::default() };
    let played = TestRunner::new(config).run(&history(longest), |operations| {
        runtime.block_on(async {
            match journal().await {
                Some(journal) => History::new(journal).play(&operations).await,
                None => Ok(()),
            }
        })
    });
    match played {
        Ok(()) => {}
        // The steps say more than the operations that they were made from.
        Err(TestError::Fail(reason, _)) => panic!("{reason}"),
        Err(TestError::Abort(reason)) => panic!("no histories: {reason}"),
    }
}

/// Plays them against a store. It may be that there is none to be had.
pub(crate) fn a_store_keeps_the_guarantee<B: Bench>(cases: u32, bench: impl AsyncFn() -> Option<B>) {
    histories(cases, 40, async || Some(Stored::new(bench().await?).await));
}

#[test]
fn the_machine_keeps_the_guarantee() {
    histories(1500, 50, async || Some(Bare::default()));
}

#[test]
fn memory_keeps_the_guarantee() {
    a_store_keeps_the_guarantee(300, Memory::new);
}

#[test]
fn sqlite_keeps_the_guarantee() {
    a_store_keeps_the_guarantee(60, Sqlite::new);
}
