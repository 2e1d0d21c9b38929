//! Claims: by comparing and swapping, and never in doubt of their own outcome.
//!
//! A connection that breaks while a claim is written leaves open whether it was. Two things
//! settle it: the claimant's name, which no other claim has, and the version, which lets at most
//! one of several writes through. So a claim that does not know looks again; and one that has
//! nobody to tell any more is followed up until it is known not to run.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, sleep};

use super::Shared;
use super::failure::Failure;
use super::rows::{self, Stored, get};
use super::statement::{Statement, text};
use super::write::{self, Base};
use crate::journal::entry::{Ask, End, Ending, Entry, Lifecycle, Reason};
use crate::journal::key::DeliveryKey;
use crate::journal::machine::{self, Claimed, Decision, Step};
use crate::journal::store::Unavailable;

/// The code of an attempt that was claimed while the journal did not answer: nothing was sent.
const JOURNAL_UNAVAILABLE: &str = "journal_unavailable";
/// Longest pause between two tries to follow up a claim.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// What is known when a claim is decided.
struct Seen {
    now: Timestamp,
    /// Whether this gateway's lease lasts for long enough.
    leased: bool,
    lapsed: bool,
    /// Whether an alias led to what is known.
    aliased: bool,
    known: Option<Stored>,
}

/// Claims a delivery.
pub(super) async fn claim(shared: &Arc<Shared>, ask: &Arc<Ask>) -> Result<Claimed, Unavailable> {
    if shared.given_up().contains(&ask.claimant.number) {
        return Err(Unavailable::new("this claim was given up and is being released"));
    }
    let began = Instant::now();
    let mut deadline = began + shared.database.patience().statement;
    let mut doubtful: Option<Doubtful> = None;
    while Instant::now() < deadline {
        let cycle = cycle(shared, ask, deadline).await?;
        let key = ask.base.in_cycle(cycle);
        let seen = see(shared, ask, &key, deadline).await?;
        if let Some(doubt) = doubtful.take_if(|doubt| doubt.is_settled_by(seen.known.as_ref()))
            && let Some(entry) = doubt.forget(seen.known.as_ref())
        {
            return Ok(Claimed { decision: Decision::Forward, entry: Arc::new(entry) });
        }
        if !seen.leased {
            shared.keep_lease(deadline).await?;
            continue;
        }
        let ask = Arc::new(Ask { now: seen.now, ..(**ask).clone() });
        let version = seen.known.as_ref().map_or(0, |stored| stored.version);
        let awaited = seen.known.as_ref().is_some_and(|stored| stored.awaited);
        let row = seen.known.as_ref().map(|stored| stored.id);
        let (claimed, mut change) =
            match machine::claim(seen.known.map(|stored| stored.entry), seen.lapsed, &ask, key, cycle) {
                Step::Decided(claimed, change) => (claimed, change),
                Step::NextCycle => {
                    let instance = ask.subject.instance_id.as_deref().unwrap_or_default();
                    match shared.database.run(write::raise(&ask.subject.app, instance, cycle, ask.now), deadline).await
                    {
                        // Whoever raised it: it is looked at again.
                        Ok(_) | Err(Failure::Race(_) | Failure::Unknown(_)) => continue,
                        Err(failure) => return Err(failure.into()),
                    }
                }
            };
        if seen.aliased {
            change.alias = None;
        }
        if !change.entry {
            if let (Some(alias), Some(row)) = (&change.alias, row) {
                match shared.database.run(write::alias(alias, row), deadline).await {
                    Ok(rows) if !rows.is_empty() => {}
                    // It was answered by now, or led to by another copy: that decides.
                    Ok(_) | Err(Failure::Race(_) | Failure::Unknown(_)) => continue,
                    Err(failure) => return Err(failure.into()),
                }
            }
            if claimed.decision == Decision::Join && !awaited && !wait_for(shared, row, version, deadline).await {
                continue;
            }
            return Ok(claimed);
        }
        let forward = claimed.decision == Decision::Forward;
        let leased = forward.then_some(&*shared.gateway);
        let statement = write::write(&claimed.entry, &Base { version, cycle, leased }, &change);
        let mut written = forward.then(|| Doubtful::new(shared, &ask, &claimed.entry, version));
        let before = doubtful.take();
        if let (Some(before), Some(written)) = (before, &mut written) {
            written.replace(before);
        }
        match shared.database.run(statement, deadline).await {
            Ok(rows) if !rows.is_empty() => {
                written.map(|written| written.forget(None));
                return Ok(claimed);
            }
            Ok(_) | Err(Failure::Race(_)) => doubtful = written.and_then(Doubtful::not_written),
            Err(Failure::Unwritten(cause) | Failure::Unreadable(cause)) => {
                // What an earlier write has left open is followed up when it is dropped.
                let _earlier = written.and_then(Doubtful::not_written);
                return Err(Unavailable::new(cause));
            }
            Err(Failure::Unknown(_)) => {
                doubtful = written.map(Doubtful::in_doubt);
                deadline = began + shared.database.patience().settle;
            }
        }
    }
    Err(Unavailable::new("no decision in time"))
}

/// The cycle that the request's instance is in.
async fn cycle(shared: &Shared, ask: &Ask, deadline: Instant) -> Result<u32, Failure> {
    let (Lifecycle::Ends { .. }, Some(instance)) = (ask.lifecycle, &ask.subject.instance_id) else { return Ok(0) };
    let mut sql = Statement::new("SELECT cycle FROM spigate_cycles WHERE hash = ");
    sql.bind(write::instance_hash(&ask.subject.app, instance));
    let rows = shared.database.read(sql, deadline).await?;
    rows.first().map_or(Ok(0), |row| rows::count(row, "cycle"))
}

/// The entry at `key`, or the one that it is an alias of, or the latest unanswered one with the same
/// lookalike.
async fn see(shared: &Shared, ask: &Ask, key: &DeliveryKey, deadline: Instant) -> Result<Seen, Failure> {
    let mut sql = Statement::new("SELECT clock_timestamp() AS now, EXISTS (SELECT 1 FROM spigate_gateways WHERE id = ");
    sql.bind(text(&shared.gateway)).push(" AND lease_until > clock_timestamp() + interval '1 second' * ");
    sql.bind(shared.lease.as_secs_f64() / 2.0).push(") AS leased, ");
    push_lapsed(&mut sql, shared, Judge::Gateway);
    match &ask.subject.lookalike {
        None => sql.push(", false"),
        Some(_) => {
            sql.push(", EXISTS (SELECT 1 FROM spigate_aliases WHERE key = ").bind(key.as_bytes().to_vec()).push(")")
        }
    };
    sql.push(&format!(" AS aliased, {} FROM (SELECT 1) AS one LEFT JOIN spigate_deliveries AS d ON ", rows::ENTRY));
    let bytes = key.as_bytes().to_vec();
    match &ask.subject.lookalike {
        None => {
            sql.push("d.key = ").bind(bytes);
        }
        Some(lookalike) => {
            sql.push("d.id = coalesce((SELECT id FROM spigate_deliveries WHERE key = ").bind(bytes.clone());
            sql.push("), (SELECT delivery FROM spigate_aliases WHERE key = ").bind(bytes);
            sql.push("), (SELECT id FROM spigate_deliveries WHERE lookalike = ").bind(lookalike.as_bytes().to_vec());
            sql.push(" AND answered_at IS NULL ORDER BY id DESC LIMIT 1))");
        }
    }
    let rows = shared.database.read(sql, deadline).await?;
    let row = rows.first().ok_or_else(|| Failure::Unwritten("the server answered without a row".into()))?;
    Ok(Seen {
        now: get(row, "now")?,
        leased: get(row, "leased")?,
        lapsed: get::<Option<bool>>(row, "lapsed")?.unwrap_or(false),
        aliased: get(row, "aliased")?,
        known: rows::stored(row)?,
    })
}

/// On whose behalf it is asked whether a gateway is gone.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Judge {
    /// On that of another gateway, which acts on it. One that has just started, or that was cut off
    /// itself, cannot tell a gateway that is gone from one that has not come back yet.
    Gateway,
    /// On that of somebody from outside, who has no lease.
    Visitor,
}

/// Whether the gateway that made the latest attempt of `d` has lost its lease. Not this one: it
/// lives, and knows of its own attempts.
pub(super) fn push_lapsed(sql: &mut Statement, shared: &Shared, judge: Judge) {
    sql.push("(d.state = 'running' AND d.gateway <> ").bind(text(&shared.gateway));
    sql.push(
        " AND NOT EXISTS (SELECT 1 FROM spigate_gateways AS g WHERE g.id = d.gateway AND g.lease_until > \
         clock_timestamp())",
    );
    if judge == Judge::Gateway {
        sql.push(" AND EXISTS (SELECT 1 FROM spigate_gateways AS g WHERE g.id = ").bind(text(&shared.gateway));
        sql.push(" AND g.lease_until > clock_timestamp() AND g.since + interval '1 second' * ");
        sql.bind(shared.lease.as_secs_f64()).push(" <= clock_timestamp())");
    }
    sql.push(") AS lapsed");
}

/// Asks to be notified of the end of the attempt that runs; `false` if it has ended.
async fn wait_for(shared: &Shared, row: Option<i64>, version: i64, deadline: Instant) -> bool {
    let running = |mut sql: Statement| {
        sql.bind(row).push(" AND version = ").bind(version);
        sql
    };
    let mut ask = running(Statement::new("UPDATE spigate_deliveries SET awaited = true WHERE id = "));
    // Of many copies one does it, and the others wait for no flush.
    ask.push(" AND NOT awaited RETURNING id");
    // Nothing depends on it: a copy can wait although nothing can be written or read.
    if !shared.database.run(ask, deadline).await.is_ok_and(|rows| rows.is_empty()) {
        return true;
    }
    let asked = running(Statement::new("SELECT id FROM spigate_deliveries WHERE awaited AND id = "));
    !shared.database.read(asked, deadline).await.is_ok_and(|rows| rows.is_empty())
}

/// A claim that is being written, or of which nobody knows whether it was.
///
/// Dropped in this state, because the claim is given up or nobody waits for it any more, it is
/// followed up in the background: a claim that nobody acts on must not stay running.
struct Doubtful {
    shared: Arc<Shared>,
    ask: Arc<Ask>,
    entry: Arc<Entry>,
    /// The version that it was written on.
    version: i64,
    /// Whether an earlier write of the same claim is in doubt.
    earlier: bool,
    armed: bool,
}

impl Doubtful {
    /// Before the statement is sent.
    fn new(shared: &Arc<Shared>, ask: &Arc<Ask>, entry: &Arc<Entry>, version: i64) -> Self {
        Self {
            shared: Arc::clone(shared),
            ask: Arc::clone(ask),
            entry: Arc::clone(entry),
            version,
            earlier: false,
            armed: true,
        }
    }

    /// Takes over from an earlier write at the same key: at most one of the two gets through, and
    /// what settles one settles the other. One at another key is followed up on its own.
    fn replace(&mut self, mut before: Self) {
        if before.entry.key == self.entry.key {
            before.armed = false;
            self.earlier = true;
        }
    }

    /// The statement has told that it wrote nothing.
    fn not_written(mut self) -> Option<Self> {
        self.armed = self.earlier;
        self.earlier.then_some(self)
    }

    /// The statement has told nothing.
    fn in_doubt(mut self) -> Self {
        self.earlier = true;
        self
    }

    /// Whether what was read afterwards tells what became of it.
    fn is_settled_by(&self, known: Option<&Stored>) -> bool {
        known.is_some_and(|stored| stored.entry.key == self.entry.key && stored.version != self.version)
    }

    /// It is settled: the entry if it is the one that was written.
    fn forget(mut self, known: Option<&Stored>) -> Option<Entry> {
        self.armed = false;
        let entry = &known?.entry;
        (entry.latest.claimant == self.ask.claimant && entry.latest.ended.is_none()).then(|| entry.clone())
    }
}

impl Drop for Doubtful {
    fn drop(&mut self) {
        if self.armed
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let (shared, ask) = (Arc::clone(&self.shared), Arc::clone(&self.ask));
            let (entry, version) = (Arc::clone(&self.entry), self.version);
            shared.given_up().insert(ask.claimant.number);
            runtime.spawn(async move { follow_up(&shared, ask, entry, version).await });
        }
    }
}

/// Sees to it that a claim that nobody acts on does not run, now or later.
async fn follow_up(shared: &Arc<Shared>, ask: Arc<Ask>, entry: Arc<Entry>, version: i64) {
    let end = End {
        ask,
        key: entry.key,
        cycle: entry.cycle,
        attempt: entry.latest.number,
        began_at: entry.latest.began_at,
        ending: Ending::Failed(Reason {
            code: JOURNAL_UNAVAILABLE.into(),
            rule: None,
            detail: Some("the journal did not say in time whether this attempt was claimed; nothing was sent".into()),
        }),
        now: entry.changed_at,
    };
    let mut pause = Duration::from_millis(100);
    while !release(shared, &end, &entry, version).await.unwrap_or(false) {
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    shared.given_up().remove(&end.ask.claimant.number);
}

/// One try of it; `true` if it is known not to run.
async fn release(shared: &Arc<Shared>, end: &End, entry: &Arc<Entry>, version: i64) -> Result<bool, Unavailable> {
    let deadline = shared.database.deadline();
    let statement = match shared.stored_at(&end.key, deadline).await? {
        Some(stored) if stored.version != version => {
            let latest = &stored.entry.latest;
            if latest.claimant == end.ask.claimant && latest.ended.is_none() {
                super::finish::finish(shared, end).await?;
            }
            return Ok(true);
        }
        // It was not written, and still may be: the server may not have come to the statement yet.
        // That is over once something else is written on the same version.
        Some(stored) => {
            let mut sql = Statement::new("UPDATE spigate_deliveries SET version = version + 1 WHERE id = ");
            sql.bind(stored.id).push(" AND version = ").bind(version).push(" RETURNING id");
            sql
        }
        // Where there is nothing, that has to be what would stand there if it had been written.
        None => {
            let (_, entry, change) = machine::finish(Some(Arc::clone(entry)), None, false, end);
            write::write(&entry, &Base { version, cycle: entry.cycle, leased: None }, &change)
        }
    };
    Ok(!shared.database.run(statement, deadline).await?.is_empty())
}
