//! Deliveries over a journal in memory, and over one that fails when it is told to.

use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::Notify;

use super::*;
use crate::config;
use crate::config::source::Sources;
use crate::dialect::mac::TagEncoding;
use crate::dialect::request::{SpiRequest, Strictness};
use crate::dialect::{ActionKind, builtin};
use crate::journal::entry::{AttemptOutcome, End, Lifecycle, Subject};
use crate::journal::key::{Extras, Fingerprint, Origin};
use crate::journal::machine::{Claimed, Resolution, Ruling};
use crate::journal::memory::MemoryStore;
use crate::journal::store::{
    self, Answer, Archive as _, Counts, DataKey, Filter, Pruned, Record, Resolved, Retention, Store, Wrap,
};
use crate::places::Places;
use crate::query::Params;

const REPLY: &str = r#"{"success":true,"instanceId":"i-1"}"#;

/// A store that fails while it is broken, and does not answer while it hangs.
#[derive(Default)]
struct Fragile {
    store: MemoryStore,
    broken: AtomicBool,
    hangs: AtomicBool,
    /// What is asked for cannot be read, and all else can.
    unreadable: AtomicBool,
    /// Only removing what is old hangs, or fails.
    prune_hangs: AtomicBool,
    prune_fails: AtomicBool,
    /// Each end takes this many milliseconds to record.
    slowness: AtomicUsize,
    probes: AtomicUsize,
}

const BIT: Duration = Duration::from_millis(10);

impl Fragile {
    fn unless_broken<'s, T: Send + 's>(&'s self, answer: impl FnOnce() -> Answer<'s, T> + Send + 's) -> Answer<'s, T> {
        if self.broken.load(Ordering::SeqCst) {
            return Answer::known(Err(Unavailable::new("no space left on device")));
        }
        Answer::work(async move {
            while self.hangs.load(Ordering::SeqCst) {
                sleep(BIT).await;
            }
            answer().await
        })
    }
}

impl store::Deliveries for Fragile {
    fn claim(&self, ask: Arc<Ask>) -> Answer<'_, Claimed> {
        if self.unreadable.load(Ordering::SeqCst) {
            return Answer::known(Err(Unavailable::local("not a state: \"runing\"")));
        }
        self.unless_broken(move || self.store.claim(ask))
    }
    fn finish(&self, end: End) -> Answer<'_, (Finished, Arc<Entry>)> {
        self.unless_broken(move || {
            Answer::work(async move {
                sleep(Duration::from_millis(self.slowness.load(Ordering::SeqCst) as u64)).await;
                self.store.finish(end).await
            })
        })
    }
    fn answered(&self, key: DeliveryKey, told: State, at: Timestamp) -> Answer<'static, ()> {
        self.store.answered(key, told, at)
    }
    fn look(&self, key: DeliveryKey) -> Answer<'_, Option<Entry>> {
        self.unless_broken(move || self.store.look(key))
    }
    fn changed(&self, key: DeliveryKey) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        self.store.changed(key)
    }
    fn probe(&self) -> Answer<'_, ()> {
        self.probes.fetch_add(1, Ordering::SeqCst);
        self.unless_broken(move || self.store.probe())
    }
    fn close(&self) -> Answer<'_, ()> {
        self.store.close()
    }
}

impl store::Archive for Fragile {
    fn list(&self, filter: Filter, cursor: Option<i64>, limit: usize) -> Answer<'_, Vec<Record>> {
        self.store.list(filter, cursor, limit)
    }
    fn resolve(&self, key: DeliveryKey, ruling: Ruling, now: Timestamp) -> Answer<'_, Option<Resolved>> {
        self.store.resolve(key, ruling, now)
    }
    fn counts(&self) -> Answer<'_, Vec<Counts>> {
        self.store.counts()
    }
    fn prune(&self, retention: Retention) -> Answer<'_, Pruned> {
        if self.prune_hangs.load(Ordering::SeqCst) {
            return Answer::work(std::future::pending());
        }
        if self.prune_fails.load(Ordering::SeqCst) {
            return Answer::known(Err(Unavailable::new("too slow")));
        }
        self.store.prune(retention)
    }
}

impl store::Keys for Fragile {
    fn data_keys(&self) -> Answer<'_, Vec<DataKey>> {
        self.store.data_keys()
    }
    fn add_data_key(&self, app: String, wraps: Vec<Wrap>, now: Timestamp) -> Answer<'_, i64> {
        self.store.add_data_key(app, wraps, now)
    }
    fn put_wraps(&self, data_key: i64, wraps: Vec<Wrap>, now: Timestamp) -> Answer<'_, ()> {
        self.store.put_wraps(data_key, wraps, now)
    }
}

impl Store for Fragile {
    fn lease(&self) -> Option<Duration> {
        None
    }
}

/// Deliveries of one app, and what makes its orders.
struct Bench {
    store: Arc<Fragile>,
    deliveries: Deliveries,
    dialect: Arc<Dialect>,
}

impl Bench {
    fn new() -> Self {
        let text = format!(
            "journal.url = \"memory:\"\n[[apps]]\nname = \"crm\"\npath = \"/spi\"\ndialect = \"{}\"\n\
             keys = [{{ id = \"k\", value = \"secret\" }}]\n[apps.backend]\nurl = \"http://127.0.0.1:1/\"\n",
            builtin::load().unwrap()[1].name
        );
        let sources = Sources { file: "test".into(), text, ..Sources::default() };
        let config = config::load(&sources, Path::new(".")).unwrap();
        let (store, metrics) = (Arc::new(Fragile::default()), Arc::new(Metrics::new().unwrap()));
        let journal = Journal::over(Arc::clone(&store) as _, "g".into(), &config, Arc::clone(&metrics));
        let dialect = Arc::clone(&config.apps[0].dialect);
        Self { store, deliveries: Deliveries::new(journal, metrics), dialect }
    }

    fn order(&self, spec: &str, deadline: Instant) -> Order {
        self.order_called("o-1", spec, deadline)
    }

    fn order_called(&self, order_id: &str, spec: &str, deadline: Instant) -> Order {
        let dialect = &self.dialect;
        let action = dialect.actions.iter().position(|action| action.kind == ActionKind::Create).unwrap();
        let mut pairs = vec![(dialect.action_parameter.as_str(), dialect.actions[action].name.as_str())];
        for field in &dialect.fields {
            let value = match &*field.name {
                "spec" => spec,
                "order_id" => order_id,
                _ => field.sample.as_deref().unwrap(),
            };
            pairs.push((&field.name, value));
        }
        let request: SpiRequest = dialect.check_request(Params::from_pairs(pairs), None, Strictness::Strict).unwrap();
        let tag = TagEncoding::Hex.decode("00").unwrap();
        let ask = Ask {
            base: DeliveryKey::of("crm", dialect, &request, &tag),
            subject: Arc::new(Subject {
                origin: Origin::of("crm", dialect, &request, &tag),
                lookalike: None,
                fingerprint: Fingerprint::of(dialect, &request),
                extras: Extras::of(dialect, &request),
                app: "crm".into(),
                action: "CreateInstance".into(),
                debug: false,
                order_id: Some(order_id.into()),
                instance_id: None,
                user_id: None,
            }),
            lifecycle: Lifecycle::None,
            hold: false,
            instance_must_be_new: true,
            claimant: self.deliveries.journal().claimant(),
            request_id: "r".into(),
            now: crate::clock::now(),
        };
        Order {
            ask: Arc::new(ask),
            dialect: Arc::clone(dialect),
            action,
            deadline,
            slot: Places::default().take(1).unwrap(),
        }
    }

    async fn entry(&self) -> Entry {
        self.store.store.list(Filter::default(), None, 1).await.unwrap().remove(0).entry
    }
}

fn confirmed() -> Delivery {
    Delivery::answered(Outcome::Delivered, Bytes::from_static(REPLY.as_bytes()), Some("i-1".into()))
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

async fn unused(_: Go) -> Delivery {
    unreachable!("must not run")
}

#[tokio::test]
async fn copies_join_the_first_and_share_its_result() {
    let bench = Arc::new(Bench::new());
    let (gate, calls) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
    let copy = || {
        let (bench, gate, calls) = (Arc::clone(&bench), Arc::clone(&gate), Arc::clone(&calls));
        tokio::spawn(async move {
            let attempt = |_| async move {
                calls.fetch_add(1, Ordering::SeqCst);
                gate.notified().await;
                confirmed()
            };
            bench.deliveries.once(bench.order("a", soon()), attempt, |_, _| {}).await.unwrap()
        })
    };
    let copies: Vec<_> = (0..50).map(|_| copy()).collect();
    while calls.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    let conflict = bench.deliveries.once(bench.order("b", soon()), unused, |_, _| {}).await.unwrap();
    assert!(matches!(conflict.answer, Err(Rejection::OrderConflict)));
    gate.notify_one();
    let mut outcomes = Vec::new();
    for copy in copies {
        let delivery = copy.await.unwrap();
        assert_eq!(delivery.answer.unwrap(), REPLY);
        outcomes.push(delivery.outcome);
    }
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    assert_eq!(outcomes.iter().filter(|&&outcome| outcome == Outcome::Delivered).count(), 1);
    assert!(bench.deliveries.running.claims().is_empty());
}

#[tokio::test(start_paused = true)]
async fn deadlines_answer_the_caller_and_leave_the_delivery_running() {
    let bench = Bench::new();
    let attempt = |_| async {
        tokio::time::sleep(Duration::from_secs(30)).await;
        confirmed()
    };
    let until = |seconds| bench.order("a", Instant::now() + Duration::from_secs(seconds));
    let first = bench.deliveries.once(until(13), attempt, |_, _| {}).await.unwrap();
    assert!(matches!(first.answer, Err(Rejection::BackendTimeout)));
    let second = bench.deliveries.once(until(1), unused, |_, _| {}).await.unwrap();
    assert!(matches!(second.answer, Err(Rejection::DeliveryInProgress)));
    let third = bench.deliveries.once(until(60), unused, |_, _| {}).await.unwrap();
    assert_eq!((third.outcome, third.answer.unwrap()), (Outcome::Joined, Bytes::from_static(REPLY.as_bytes())));
    let fourth = bench.deliveries.once(until(60), unused, |_, _| {}).await.unwrap();
    assert_eq!((fourth.outcome, fourth.answer.unwrap()), (Outcome::Replayed, Bytes::from_static(REPLY.as_bytes())));
    bench.deliveries.drained().await;
    let refused = bench.deliveries.once(until(60), unused, |_, _| {}).await;
    assert!(matches!(refused, Err(Rejection::ShuttingDown)));
}

#[tokio::test(start_paused = true)]
async fn a_delivery_that_nobody_waits_for_any_more_is_told_of() {
    let bench = Bench::new();
    let (tell, told) = tokio::sync::oneshot::channel();
    let attempt = |_| async {
        tokio::time::sleep(Duration::from_secs(30)).await;
        confirmed()
    };
    let unheard = |_: &Ask, delivery: &Delivery| tell.send(delivery.outcome).unwrap();
    let order = bench.order("a", Instant::now() + Duration::from_secs(13));
    let first = bench.deliveries.once(order, attempt, unheard).await.unwrap();
    assert!(matches!(first.answer, Err(Rejection::BackendTimeout)));
    assert_eq!(told.await, Ok(Outcome::Delivered));
}

/// The one who waits may be gone again, answered, before the delivery's task goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delivery_that_somebody_waits_for_is_never_called_unheard() {
    let bench = Bench::new();
    let unheard = Arc::new(AtomicUsize::new(0));
    for _ in 0..3_000 {
        let attempt = |_| async {
            tokio::task::yield_now().await;
            // A refusal: the key opens again each time.
            Delivery::answered(Outcome::Refused, Bytes::new(), None)
        };
        let count = Arc::clone(&unheard);
        let tell = move |_: &Ask, _: &Delivery| {
            count.fetch_add(1, Ordering::SeqCst);
        };
        bench.deliveries.once(bench.order("a", soon()), attempt, tell).await.unwrap();
    }
    bench.deliveries.drained().await;
    assert_eq!(unheard.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_bug_in_an_attempt_ends_it_for_everybody_and_leaves_it_unconfirmed() {
    let bench = Bench::new();
    let attempt = |_| async { panic!("a bug") };
    let delivery = bench.deliveries.once(bench.order("a", soon()), attempt, |_, _| {}).await.unwrap();
    assert!(matches!(delivery.answer, Err(Rejection::Internal)));
    assert!(bench.deliveries.running.claims().is_empty());
    let entry = bench.entry().await;
    assert_eq!(entry.state, State::Unconfirmed);
    let next = |go: Go| async move {
        assert_eq!(go.number, 2);
        confirmed()
    };
    let delivery = bench.deliveries.once(bench.order("a", soon()), next, |_, _| {}).await.unwrap();
    assert_eq!(delivery.outcome, Outcome::Delivered);
}

#[tokio::test(start_paused = true)]
async fn a_confirmation_that_cannot_be_recorded_is_kept_until_it_can() {
    let bench = Bench::new();
    let store = Arc::clone(&bench.store);
    let attempt = |_| async move {
        store.broken.store(true, Ordering::SeqCst);
        confirmed()
    };
    let first = bench.deliveries.once(bench.order("a", soon()), attempt, |_, _| {}).await.unwrap();
    assert!(matches!(first.answer, Err(Rejection::JournalUnavailable { .. })), "{first:?}");
    // While it is down nothing is forwarded, whatever it is.
    let second = bench.deliveries.once(bench.order("a", soon()), unused, |_, _| {}).await.unwrap();
    assert!(matches!(second.answer, Err(Rejection::JournalUnavailable { .. })));
    let third = bench.deliveries.once(bench.order("b", soon()), unused, |_, _| {}).await.unwrap();
    assert!(matches!(third.answer, Err(Rejection::JournalUnavailable { .. })));
    assert_eq!(bench.entry().await.state, State::Running);

    bench.store.broken.store(false, Ordering::SeqCst);
    tokio::spawn(Arc::clone(bench.deliveries.journal()).keep());
    bench.deliveries.journal().health().wellness().await;
    let fourth = bench.deliveries.once(bench.order("a", soon()), unused, |_, _| {}).await.unwrap();
    assert_eq!(fourth.answer.unwrap(), REPLY);
    let entry = bench.entry().await;
    assert_eq!((entry.state, entry.latest.number), (State::Done, 1));
}

#[tokio::test(start_paused = true)]
async fn what_runs_when_the_process_must_end_is_unconfirmed() {
    let bench = Bench::new();
    let attempt = |_| async { std::future::pending().await };
    let order = bench.order("a", Instant::now() + Duration::from_secs(1));
    let first = bench.deliveries.once(order, attempt, |_, _| {}).await.unwrap();
    assert!(matches!(first.answer, Err(Rejection::BackendTimeout)));
    bench.deliveries.abandon().await;
    let entry = bench.entry().await;
    assert_eq!(entry.state, State::Unconfirmed);
    let ended = entry.latest.ended.unwrap();
    assert_eq!((ended.outcome, ended.code.as_deref()), (AttemptOutcome::Unconfirmed, Some("shutting_down")));
}

#[tokio::test]
async fn a_receipt_marks_the_delivery_as_answered_once() {
    let bench = Bench::new();
    let attempt = |_| async { confirmed() };
    let first = bench.deliveries.once(bench.order("a", soon()), attempt, |_, _| {}).await.unwrap();
    assert_eq!(bench.entry().await.answered_at, None);
    first.receipt.unwrap().given();
    bench.deliveries.journal().close().await;
    assert!(bench.entry().await.answered_at.is_some());
    let again = bench.deliveries.once(bench.order("a", soon()), unused, |_, _| {}).await.unwrap();
    assert!(again.receipt.is_none());
}

/// Two copies were told no; one is only noted when the operator has thought again.
#[tokio::test]
async fn a_receipt_for_the_operators_no_is_none_for_what_comes_after_it() {
    let bench = Bench::new();
    let unsure = |_| async { Delivery::unconfirmed(Rejection::BackendTimeout) };
    bench.deliveries.once(bench.order("a", soon()), unsure, |_, _| {}).await.unwrap();
    let decide = async |resolution: Resolution| {
        let key = bench.entry().await.key;
        bench.store.store.resolve(key, resolution.into(), crate::clock::now()).await.unwrap().unwrap().unwrap();
    };
    let copy = || bench.deliveries.once(bench.order("a", soon()), unused, |_, _| {});
    decide(Resolution::Failed { message: "no".into() }).await;
    let (one, late) = (copy().await.unwrap(), copy().await.unwrap());
    assert_eq!((one.outcome, late.outcome), (Outcome::Refused, Outcome::Refused));
    one.receipt.unwrap().given();
    bench.deliveries.journal().close().await;
    assert!(bench.entry().await.answered_at.is_some());
    decide(Resolution::Retry).await;
    let done = bench.deliveries.once(bench.order("a", soon()), |_| async { confirmed() }, |_, _| {}).await.unwrap();
    late.receipt.unwrap().given();
    bench.deliveries.journal().close().await;
    let entry = bench.entry().await;
    assert_eq!((entry.state, entry.answered_at), (State::Done, None));
    done.receipt.unwrap().given();
    bench.deliveries.journal().close().await;
    assert!(bench.entry().await.answered_at.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_journal_that_does_not_answer_is_down_until_it_does() {
    let bench = Bench::new();
    let journal = Arc::clone(bench.deliveries.journal());
    tokio::spawn(Arc::clone(&journal).keep());
    bench.store.hangs.store(true, Ordering::SeqCst);
    sleep(Duration::from_secs(20)).await;
    assert!(!journal.health().is_well());
    let before = Instant::now();
    let refused = bench.deliveries.once(bench.order("a", soon()), unused, |_, _| {}).await.unwrap();
    assert!(matches!(refused.answer, Err(Rejection::JournalUnavailable { .. })));
    assert_eq!(before.elapsed(), Duration::ZERO);
    bench.store.hangs.store(false, Ordering::SeqCst);
    journal.health().wellness().await;
    let attempt = |_| async { confirmed() };
    let delivery = bench.deliveries.once(bench.order("a", soon()), attempt, |_, _| {}).await.unwrap();
    assert_eq!(delivery.outcome, Outcome::Delivered);
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_comes_after_its_deadline_is_not_forwarded() {
    let bench = Bench::new();
    bench.store.hangs.store(true, Ordering::SeqCst);
    let order = bench.order("a", Instant::now() + Duration::from_secs(13));
    let refused = bench.deliveries.once(order, unused, |_, _| {}).await;
    assert!(matches!(refused, Err(Rejection::JournalUnavailable { .. })));
    bench.store.hangs.store(false, Ordering::SeqCst);
    bench.deliveries.drained().await;
    let entry = bench.entry().await;
    let code = entry.latest.ended.as_ref().and_then(|ended| ended.code.as_deref());
    assert_eq!((entry.state, code), (State::Open, Some("journal_unavailable")));
}

#[tokio::test(start_paused = true)]
async fn a_copy_is_answered_at_its_deadline_even_if_the_journal_hangs_while_it_waits() {
    let bench = Bench::new();
    // Claimed by another process: what becomes of it is only in the journal.
    let elsewhere = bench.order("a", soon());
    store::Deliveries::claim(&bench.store.store, Arc::clone(&elsewhere.ask)).await.unwrap();
    let until = Instant::now() + Duration::from_secs(13);
    let copy = bench.deliveries.once(bench.order("a", until), unused, |_, _| {});
    let hang = async {
        sleep(Duration::from_secs(1)).await;
        bench.store.hangs.store(true, Ordering::SeqCst);
    };
    let (copy, ()) = tokio::join!(tokio::time::timeout(Duration::from_secs(60), copy), hang);
    assert!(matches!(copy.unwrap().unwrap().answer, Err(Rejection::DeliveryInProgress)));
    assert_eq!(Instant::now(), until);
}

/// A lease that lapses while housekeeping takes its time would have others forward the same.
#[tokio::test(start_paused = true)]
async fn removing_what_is_old_does_not_hold_up_the_lease() {
    let bench = Bench::new();
    bench.store.prune_hangs.store(true, Ordering::SeqCst);
    tokio::spawn(Arc::clone(bench.deliveries.journal()).keep());
    sleep(Duration::from_secs(100)).await;
    assert!(bench.store.probes.load(Ordering::SeqCst) >= 19);
}

/// An entry that cannot be read, and old ones that cannot be removed, are no reason to refuse others.
#[tokio::test(start_paused = true)]
async fn what_fails_for_itself_stops_no_delivery() {
    let bench = Bench::new();
    let journal = Arc::clone(bench.deliveries.journal());
    bench.store.prune_fails.store(true, Ordering::SeqCst);
    tokio::spawn(Arc::clone(&journal).keep());
    bench.store.unreadable.store(true, Ordering::SeqCst);
    let refused = bench.deliveries.once(bench.order("a", soon()), unused, |_, _| {}).await.unwrap();
    assert!(matches!(refused.answer, Err(Rejection::JournalUnavailable { .. })));
    bench.store.unreadable.store(false, Ordering::SeqCst);
    assert!(journal.health().is_well());
    sleep(Duration::from_secs(1)).await;
    let text = String::from_utf8(bench.deliveries.metrics.render().unwrap()).unwrap();
    assert!(text.contains(r#"spigate_journal_errors_total{operation="prune"} 1"#), "{text}");
    assert!(journal.health().is_well());
}

#[tokio::test(start_paused = true)]
async fn whatever_runs_at_the_end_is_recorded_at_once_and_what_has_ended_as_it_did() {
    let bench = Bench::new();
    for number in 0..10 {
        let attempt = |_| async { std::future::pending().await };
        let order = bench.order_called(&format!("o-{number}"), "a", Instant::now() + BIT);
        let first = bench.deliveries.once(order, attempt, |_, _| {}).await.unwrap();
        assert!(matches!(first.answer, Err(Rejection::BackendTimeout)));
    }
    let store = Arc::clone(&bench.store);
    let attempt = |_| async move {
        store.broken.store(true, Ordering::SeqCst);
        confirmed()
    };
    let kept = bench.deliveries.once(bench.order_called("kept", "a", soon()), attempt, |_, _| {}).await.unwrap();
    assert!(matches!(kept.answer, Err(Rejection::JournalUnavailable { .. })));
    bench.store.broken.store(false, Ordering::SeqCst);
    bench.store.slowness.store(1_000, Ordering::SeqCst);
    bench.deliveries.abandon().await;
    let records = bench.store.store.list(Filter::default(), None, 20).await.unwrap();
    assert_eq!(records.len(), 11);
    for Record { entry, .. } in records {
        let order = entry.subject.order_id.as_deref();
        let expected = if order == Some("kept") { State::Done } else { State::Unconfirmed };
        assert_eq!(entry.state, expected, "{order:?}");
    }
    let refused = bench.deliveries.once(bench.order("a", soon()), unused, |_, _| {}).await;
    assert!(matches!(refused, Err(Rejection::ShuttingDown)));
}
