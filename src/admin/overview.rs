//! `/`: what waits for somebody first, then how it goes, then what this gateway is.
//!
//! What became of deliveries comes from the journal, so that it is the same at every gateway and
//! after a restart: the latest of the last day, so many at most. Skew and uses of keys come from
//! this process's metrics. All of it is gathered once in a while, however many look.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use askama::Template;
use axum::extract::State;
use axum::response::Response;
use jiff::{SignedDuration, Timestamp};
use prometheus::core::Metric as _;
use serde::Serialize;
use tokio::sync::Mutex;

use super::Desk;
use super::api;
use super::deliveries::{Row, short};
use super::look::{self, Look};
use super::words::Words;
use crate::clock;
use crate::journal::Journal;
use crate::journal::entry::{AttemptOutcome, State as Standing};
use crate::journal::store::{Brief, Filter, Record, Unavailable, Which};
use crate::journal::vault::LockedOut;
use crate::plain::plain;

/// Most deliveries that the numbers are of.
const SAMPLE: usize = 10_000;
/// Deliveries of each kind that waits which are shown at once.
const SHOWN: usize = 5;
/// How long what was gathered is good enough.
const FRESH: Duration = Duration::from_secs(2);
const HOURS: usize = 24;

/// What was gathered last.
#[derive(Default)]
pub(super) struct Cache(Mutex<Option<(Instant, Arc<Gathered>)>>);

/// What the journal says.
struct Gathered {
    /// What waits, by kind, with the latest of each.
    waiting: Vec<Waiting>,
    /// When the earliest delivery that the numbers are of was received, if not all of the day are.
    since: Option<Timestamp>,
    hours: [Tally; HOURS],
    apps: BTreeMap<String, Counted>,
}

struct Waiting {
    which: Which,
    /// By app.
    counts: BTreeMap<String, i64>,
    latest: Vec<Record>,
}

#[derive(Default)]
struct Counted {
    hour: Tally,
    day: Tally,
    /// Milliseconds, sorted.
    took: Vec<i64>,
}

/// How many ended how.
#[derive(Clone, Copy, Default, Serialize)]
struct Tally {
    deliveries: u64,
    confirmed: u64,
    refused: u64,
    failed: u64,
    unconfirmed: u64,
    running: u64,
}

impl Tally {
    fn count(&mut self, brief: &Brief) {
        self.deliveries += 1;
        let which = match (brief.state, brief.outcome) {
            (Standing::Done, _) => &mut self.confirmed,
            (Standing::Running, _) => &mut self.running,
            (Standing::Unconfirmed, _) => &mut self.unconfirmed,
            (Standing::Open, Some(AttemptOutcome::Refused)) => &mut self.refused,
            (Standing::Open | Standing::Closed, _) => &mut self.failed,
        };
        *which += 1;
    }

    fn add(&mut self, other: &Self) {
        self.deliveries += other.deliveries;
        self.confirmed += other.confirmed;
        self.refused += other.refused;
        self.failed += other.failed;
        self.unconfirmed += other.unconfirmed;
        self.running += other.running;
    }
}

impl Gathered {
    async fn gather(journal: &Journal, now: Timestamp) -> Result<Self, Unavailable> {
        let counts = journal.counts().await?;
        let mut waiting = Vec::new();
        for which in [Which::State(Standing::Unconfirmed), Which::Unanswered] {
            let of = |counts: &crate::journal::store::Counts| match which {
                Which::Unanswered => counts.unanswered,
                _ => counts.unconfirmed,
            };
            let counts: BTreeMap<_, _> =
                counts.iter().filter(|app| of(app) > 0).map(|app| (app.app.clone(), of(app))).collect();
            let filter = Filter { which: Some(which), ..Filter::default() };
            let latest =
                if counts.is_empty() { Vec::new() } else { journal.browse(filter, None, SHOWN).await?.records };
            waiting.push(Waiting { which, counts, latest });
        }
        let day = now - SignedDuration::from_hours(24);
        let briefs = journal.recent(day, SAMPLE).await?;
        let since = briefs.last().filter(|_| briefs.len() >= SAMPLE).map(|brief| brief.received_at);
        let mut gathered = Self { waiting, since, hours: Default::default(), apps: BTreeMap::new() };
        for brief in &briefs {
            let age = now.duration_since(brief.received_at).as_secs().max(0);
            let hour = usize::try_from(age / 3_600).unwrap_or(HOURS).min(HOURS - 1);
            gathered.hours[HOURS - 1 - hour].count(brief);
            let app = gathered.apps.entry(brief.app.clone()).or_default();
            app.day.count(brief);
            if hour == 0 {
                app.hour.count(brief);
            }
            app.took.extend(brief.took_ms);
        }
        gathered.apps.values_mut().for_each(|app| app.took.sort_unstable());
        Ok(gathered)
    }

    fn total(&self, of: impl Fn(&Counted) -> &Tally) -> Tally {
        self.apps.values().fold(Tally::default(), |mut total, app| {
            total.add(of(app));
            total
        })
    }
}

impl Cache {
    async fn get(&self, desk: &Desk) -> Result<Arc<Gathered>, Unavailable> {
        let mut known = self.0.lock().await;
        if let Some((at, gathered)) = &*known
            && at.elapsed() < FRESH
            && desk.admin.journal.health().is_well()
        {
            return Ok(Arc::clone(gathered));
        }
        let journal = Arc::clone(&desk.admin.journal);
        let gathered = Arc::new(desk.ask(async move { Gathered::gather(&journal, clock::now()).await }).await?);
        *known = Some((Instant::now(), Arc::clone(&gathered)));
        Ok(gathered)
    }
}

/// The value below which this part of a sorted list lies.
fn percentile(sorted: &[i64], percent: usize) -> Option<i64> {
    // The nearest rank: of one value, that one.
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

/// The least bound of a histogram that half of what it counted is not beyond.
fn median_bound(histogram: &prometheus::Histogram) -> Option<f64> {
    let counted = histogram.metric();
    let counted = counted.get_histogram();
    let half = counted.get_sample_count().div_ceil(2);
    let holds_half = |bucket: &&prometheus::proto::Bucket| half > 0 && bucket.cumulative_count() >= half;
    counted
        .get_bucket()
        .iter()
        .find(holds_half)
        .map(prometheus::proto::Bucket::upper_bound)
        .filter(|bound| bound.is_finite())
}

// What programs get.

#[derive(Serialize)]
struct Overview {
    version: &'static str,
    now: String,
    journal: JournalState,
    configuration: ConfigurationState,
    /// `null` while the journal is not available.
    waiting: Option<WaitingCounts>,
    traffic: Option<Traffic>,
    apps: Vec<AppState>,
}

#[derive(Serialize)]
struct JournalState {
    kind: &'static str,
    available: bool,
    cause: Option<String>,
    /// Apps whose recorded replies cannot all be opened.
    locked_out: Vec<String>,
}

#[derive(Serialize)]
struct ConfigurationState {
    loaded_at: Option<String>,
    /// Whether the files are what is served.
    current: bool,
}

#[derive(Serialize)]
struct WaitingCounts {
    unconfirmed: i64,
    unanswered: i64,
}

#[derive(Serialize)]
struct Traffic {
    /// If the numbers are not of all of the day: since when.
    sample_since: Option<String>,
    hour: Tally,
    day: Tally,
    /// The earliest first; the last is the hour up to now.
    hours: [Tally; HOURS],
}

#[derive(Serialize)]
struct AppState {
    name: String,
    enforced: bool,
    hour: Tally,
    day: Tally,
    backend_ms: Option<BackendTimes>,
    /// At most so many seconds old were half of the requests verified since the start of this process;
    /// `null` for more than the histogram tells apart, or none.
    skew_at_most_seconds: Option<f64>,
    keys: Vec<KeyState>,
}

#[derive(Clone, Copy, Serialize)]
struct BackendTimes {
    median: i64,
    percentile_95: i64,
}

#[derive(Serialize)]
struct KeyState {
    id: String,
    active: bool,
    valid_now: bool,
    /// Requests verified with it since the start of this process.
    verifications: u64,
}

impl Overview {
    fn of(desk: &Desk, gathered: &Result<Arc<Gathered>, Unavailable>, now: Timestamp) -> Self {
        let metrics = &desk.admin.metrics;
        let known = gathered.as_ref().ok();
        let waits =
            |known: &Arc<Gathered>, at: usize| known.waiting.get(at).map_or(0, |part| part.counts.values().sum());
        let loaded = metrics.config_loaded.get();
        Self {
            version: env!("CARGO_PKG_VERSION"),
            now: format!("{now:.3}"),
            journal: JournalState {
                kind: desk.admin.journal.kind(),
                available: gathered.is_ok(),
                cause: gathered.as_ref().err().map(|error| plain(&error.to_string())),
                locked_out: desk.admin.journal.locked_out().into_iter().map(|LockedOut { app, .. }| app).collect(),
            },
            configuration: ConfigurationState {
                loaded_at: Timestamp::from_second(loaded).ok().filter(|_| loaded > 0).map(|at| at.to_string()),
                // A gateway that looks at no file has nothing to be behind of.
                current: loaded == 0 || metrics.config_reload_successful.get() == 1,
            },
            waiting: known.map(|known| WaitingCounts { unconfirmed: waits(known, 0), unanswered: waits(known, 1) }),
            traffic: known.map(|known| Traffic {
                sample_since: known.since.map(|at| format!("{at:.3}")),
                hour: known.total(|app| &app.hour),
                day: known.total(|app| &app.day),
                hours: known.hours,
            }),
            apps: Self::apps(desk, known, now),
        }
    }

    fn apps(desk: &Desk, known: Option<&Arc<Gathered>>, now: Timestamp) -> Vec<AppState> {
        let served = Arc::clone(&desk.admin.served.borrow());
        let mut apps: Vec<_> = served
            .apps
            .values()
            .map(|app| {
                let counted = known.and_then(|known| known.apps.get(&app.config.name));
                let took = counted.map(|counted| counted.took.as_slice()).unwrap_or_default();
                let times = percentile(took, 50).zip(percentile(took, 95));
                let key = |(key, verified): (&crate::config::KeyConfig, &prometheus::IntCounter)| KeyState {
                    id: key.id.clone(),
                    active: key.active,
                    valid_now: key.verifies_at(now),
                    verifications: verified.get(),
                };
                AppState {
                    name: app.config.name.clone(),
                    enforced: app.config.enforce,
                    hour: counted.map(|counted| counted.hour).unwrap_or_default(),
                    day: counted.map(|counted| counted.day).unwrap_or_default(),
                    backend_ms: times.map(|(median, percentile_95)| BackendTimes { median, percentile_95 }),
                    skew_at_most_seconds: median_bound(&app.metrics.skew),
                    keys: app.config.keys.iter().zip(&app.metrics.verifications).map(key).collect(),
                }
            })
            .collect();
        apps.sort_by(|one, other| one.name.cmp(&other.name));
        apps
    }
}

/// `/api/v1/overview`.
pub(super) async fn show_json(State(desk): State<Desk>) -> Response {
    let gathered = desk.overview.get(&desk).await;
    api::answer(&Overview::of(&desk, &gathered, clock::now()))
}

// What people get.

struct Part {
    outcome: &'static str,
    count: i64,
    title: &'static str,
    meaning: &'static str,
    rows: Vec<Row>,
}

struct Tile {
    label: &'static str,
    value: String,
    note: String,
}

struct Chart {
    width: usize,
    height: u64,
    bars: Vec<Bar>,
    from: String,
}

struct Bar {
    tone: &'static str,
    x: usize,
    y: String,
    width: usize,
    height: String,
}

struct AppRow {
    name: String,
    remark: &'static str,
    hour: u64,
    day: u64,
    confirmed: String,
    refused: String,
    latency: String,
    skew: String,
    keys: Vec<KeyRow>,
}

struct KeyRow {
    id: String,
    tone: &'static str,
    state: &'static str,
    used: String,
}

struct Fact {
    name: &'static str,
    value: String,
}

#[derive(Template)]
#[template(path = "admin/overview.html")]
struct OverviewPage<'a> {
    look: &'a Look,
    problems: Vec<String>,
    journal_is_well: bool,
    waiting: Vec<Part>,
    sample: String,
    tiles: Vec<Tile>,
    chart: Chart,
    apps: Vec<AppRow>,
    facts: Vec<Fact>,
    now: String,
    now_short: String,
}

/// `/`.
pub(super) async fn show(State(desk): State<Desk>, look: Look) -> Response {
    let gathered = desk.overview.get(&desk).await;
    let now = clock::now();
    let (words, overview) = (look.words, Overview::of(&desk, &gathered, now));
    let known = gathered.as_ref().ok();
    let waiting = known.map(|known| parts(&desk, words, known, now)).unwrap_or_default();
    let since = known.and_then(|known| known.since);
    look::page(&OverviewPage {
        problems: problems(words, &overview, &desk),
        journal_is_well: known.is_some(),
        waiting,
        sample: since.map(|since| format!("{} {}.", words.sample, short(since))).unwrap_or_default(),
        tiles: overview.traffic.as_ref().map(|traffic| tiles(words, traffic, known)).unwrap_or_default(),
        chart: known.map_or_else(Chart::empty, |known| Chart::of(known, words)),
        apps: overview.apps.iter().map(|app| app_row(words, app)).collect(),
        facts: facts(words, &overview, &desk),
        now: overview.now.clone(),
        now_short: short(now),
        look: &look,
    })
}

fn problems(words: &'static Words, overview: &Overview, desk: &Desk) -> Vec<String> {
    let mut problems = Vec::new();
    if let Some(cause) = &overview.journal.cause {
        problems.push(format!("{}: {cause} {}", words.journal_down, words.journal_down_hint));
    }
    if !overview.configuration.current {
        problems.push(words.config_bad.to_owned());
    }
    problems.extend(desk.admin.journal.locked_out().iter().map(|app| format!("{} {}", words.locked_out, app.app)));
    problems
}

fn parts(desk: &Desk, words: &'static Words, known: &Gathered, now: Timestamp) -> Vec<Part> {
    let part = |waiting: &Waiting| {
        let count = waiting.counts.values().sum();
        let holds = waiting.counts.keys().any(|app| desk.app(app).is_some_and(|app| app.hold_unconfirmed));
        let (outcome, title, meaning) = match waiting.which {
            Which::Unanswered => ("unanswered", words.unanswered, words.unanswered_means),
            _ if holds => ("unconfirmed", words.held, words.held_means),
            _ => ("unconfirmed", words.unconfirmed, words.unconfirmed_means),
        };
        let rows = waiting.latest.iter().map(|record| Row::new(desk, words, &record.entry, now)).collect();
        Part { outcome, count, title, meaning, rows }
    };
    known.waiting.iter().filter(|waiting| !waiting.counts.is_empty()).map(part).collect()
}

fn tiles(words: &'static Words, traffic: &Traffic, known: Option<&Arc<Gathered>>) -> Vec<Tile> {
    let ended = |tally: &Tally| tally.deliveries - tally.running;
    let of = |part: u64, tally: &Tally| share(part, ended(tally));
    let mut took: Vec<_> =
        known.into_iter().flat_map(|known| known.apps.values()).flat_map(|app| &app.took).copied().collect();
    took.sort_unstable();
    let (hour, day) = (&traffic.hour, &traffic.day);
    vec![
        Tile {
            label: words.last_hour,
            value: hour.deliveries.to_string(),
            note: format!("{} {}", of(hour.confirmed, hour), words.confirmed),
        },
        Tile {
            label: words.last_day,
            value: day.deliveries.to_string(),
            note: format!("{} {}", of(day.confirmed, day), words.confirmed),
        },
        Tile { label: words.success_rate, value: of(day.confirmed, day), note: words.of_day.to_owned() },
        Tile { label: words.refusal_rate, value: of(day.refused, day), note: words.of_day.to_owned() },
        Tile { label: words.latency, value: latency(percentile(&took, 50)), note: latency(percentile(&took, 95)) },
    ]
}

/// A part of a whole in percent.
fn share(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "–".to_owned();
    }
    // In tenths, and never rounded up to all of it.
    let tenths = if part == whole { 1_000 } else { (part * 1_000 / whole).min(999) };
    format!("{}.{} %", tenths / 10, tenths % 10)
}

fn latency(milliseconds: Option<i64>) -> String {
    match milliseconds {
        None => "–".to_owned(),
        Some(took @ ..10_000) => format!("{took} ms"),
        Some(took) => format!("{}.{} s", took / 1_000, took % 1_000 / 100),
    }
}

impl Chart {
    const STEP: usize = 10;
    const HEIGHT: u64 = 60;

    fn empty() -> Self {
        Self { width: HOURS * Self::STEP, height: Self::HEIGHT, bars: Vec::new(), from: String::new() }
    }

    fn of(known: &Gathered, words: &'static Words) -> Self {
        let highest = known.hours.iter().map(|hour| hour.deliveries).max().unwrap_or(0).max(1);
        let mut bars = Vec::new();
        for (at, hour) in known.hours.iter().enumerate() {
            let (x, width) = (at * Self::STEP + 1, Self::STEP - 2);
            bars.push(Bar { tone: "base", x, y: (Self::HEIGHT - 1).to_string(), width, height: "1".to_owned() });
            let mut below = 0;
            for (tone, count) in
                [("good", hour.confirmed), ("plain", hour.refused), ("bad", hour.failed + hour.unconfirmed)]
            {
                if count > 0 {
                    // In thousandths, so that no rounding lets a bar stand out or vanish.
                    let scale = |count: u64| count * (Self::HEIGHT - 1) * 1_000 / highest;
                    let (bottom, top) = (scale(below), scale(below + count));
                    let y = (Self::HEIGHT - 1) * 1_000 - top;
                    bars.push(Bar { tone, x, y: thousandths(y), width, height: thousandths(top - bottom) });
                    below += count;
                }
            }
        }
        Self { bars, from: words.ago(24 * 3_600), ..Self::empty() }
    }
}

fn thousandths(number: u64) -> String {
    format!("{}.{:03}", number / 1_000, number % 1_000)
}

fn app_row(words: &'static Words, app: &AppState) -> AppRow {
    let ended = app.day.deliveries - app.day.running;
    let key = |key: &KeyState| KeyRow {
        id: plain(&key.id),
        tone: if key.valid_now { "good" } else { "plain" },
        state: match (key.active, key.valid_now) {
            (false, _) => words.key_retired,
            (true, true) => words.key_active,
            (true, false) => words.key_not_now,
        },
        used: format!("{} {}×", words.key_used, key.verifications),
    };
    let latency_of =
        |times: BackendTimes| format!("{} / {}", latency(Some(times.median)), latency(Some(times.percentile_95)));
    AppRow {
        name: app.name.clone(),
        remark: if app.enforced { "" } else { words.only_observed },
        hour: app.hour.deliveries,
        day: app.day.deliveries,
        confirmed: share(app.day.confirmed, ended),
        refused: share(app.day.refused, ended),
        latency: app.backend_ms.map_or_else(|| "–".to_owned(), latency_of),
        skew: app.skew_at_most_seconds.map_or_else(|| "–".to_owned(), |skew| format!("≤ {skew} s")),
        keys: app.keys.iter().map(key).collect(),
    }
}

fn facts(words: &'static Words, overview: &Overview, desk: &Desk) -> Vec<Fact> {
    let journal = if overview.journal.available { words.journal_well } else { words.journal_down };
    let kind = if overview.journal.kind == "memory" { words.memory } else { overview.journal.kind };
    let loaded = overview.configuration.loaded_at.as_deref().map(|at| at.replace('T', " ").replace('Z', ""));
    let mut facts = vec![
        Fact { name: words.version, value: overview.version.to_owned() },
        Fact { name: words.journal, value: format!("{kind}: {journal}") },
        Fact { name: words.connections, value: desk.admin.metrics.connections.get().to_string() },
    ];
    facts.extend(loaded.map(|value| Fact { name: words.config_loaded, value }));
    facts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::words::ENGLISH;

    #[test]
    fn parts_of_a_whole_are_never_rounded_up_to_all() {
        for (part, whole, expected) in
            [(0, 0, "–"), (0, 5, "0.0 %"), (1, 3, "33.3 %"), (9_999, 10_000, "99.9 %"), (7, 7, "100.0 %")]
        {
            assert_eq!(share(part, whole), expected);
        }
    }

    #[test]
    fn percentiles_are_values_that_were_there() {
        let sorted: Vec<_> = (1..=200).collect();
        assert_eq!((percentile(&sorted, 50), percentile(&sorted, 95)), (Some(100), Some(190)));
        assert_eq!((percentile(&[7], 50), percentile(&[7], 95), percentile(&[], 50)), (Some(7), Some(7), None));
    }

    #[test]
    fn bars_stand_on_each_other_and_reach_the_top_only_where_there_is_most() {
        let mut hours = [Tally::default(); HOURS];
        hours[3] = Tally { deliveries: 10, confirmed: 6, refused: 3, failed: 1, ..Tally::default() };
        let known = Gathered { waiting: Vec::new(), since: None, hours, apps: BTreeMap::new() };
        let chart = Chart::of(&known, &ENGLISH);
        let bars: Vec<_> = chart.bars.iter().filter(|bar| bar.tone != "base").collect();
        let heights: Vec<_> = bars.iter().map(|bar| (bar.tone, bar.y.as_str(), bar.height.as_str())).collect();
        assert_eq!(heights, [("good", "23.600", "35.400"), ("plain", "5.900", "17.700"), ("bad", "0.000", "5.900")]);
    }
}
