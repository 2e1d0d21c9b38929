//! kill -9 at any moment, again and again, over one journal: what was answered with success
//! stays answered, and no order is sent on behind the journal's back (`design.md`, "Delivery
//! guarantee").
//!
//! `scripts/kill-loop 200` runs it for longer and shows what it saw.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "all of this is tests")]

/// What the end-to-end tests stand on.
#[allow(dead_code, reason = "the other tests use the rest of it")]
#[path = "../gateway"]
mod gateway {
    pub(crate) mod support;
}

mod ledger;
mod platform;
#[cfg(feature = "postgres")]
#[path = "../support/ports.rs"]
mod ports;
#[cfg(feature = "postgres")]
#[path = "../support/postgres.rs"]
mod postgres_server;

use std::time::{Duration, Instant};

use gateway::support::backend::{Backend, CREATED, Gate, Step, json, raw, reply};
use gateway::support::gateway::{Gateway, Setup};
use gateway::support::order::create;
use ledger::{Ledger, Plan};
use platform::{Kept, Platform};

/// Kills in an ordinary run of all tests.
const KILLS: usize = 25;
/// Processes that are killed while they make a journal.
const HALF_MADE: usize = 15;
/// Kills over a server, where each lets others wait for a lease.
#[cfg(feature = "postgres")]
const SERVER_KILLS: usize = 6;
/// Longest life of a process until it is killed, in milliseconds.
const LONGEST_LIFE: u64 = 500;
/// The same over a server: long enough to take over what the one before it had running.
#[cfg(feature = "postgres")]
const LONGEST_SERVER_LIFE: u64 = 5_000;
/// How many of the latest answers are asked for again after each start, and how many of all.
const LATEST: usize = 40;
const ANY: usize = 16;

/// Runs into deadlines of its own, so that answers come late, too. The call's deadline is one
/// that only a reply that never comes can miss.
const BACKEND: &str = "connect_timeout = \"300ms\"\nanswer_within = \"300ms\"\ntimeout = \"10s\"";

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_survives_being_killed_between_any_two_steps() {
    let kills = std::env::var_os("SPIGATE_KILLS").map_or(KILLS, |kills| kills.to_str().unwrap().parse().unwrap());
    let bound = Duration::from_secs(60) + Duration::from_secs(3) * u32::try_from(kills).unwrap();
    let setup = |backend: &Backend| Setup::new(backend).backend(BACKEND);
    let looped = kill_loop(kills, LONGEST_LIFE, setup, assert_done);
    tokio::time::timeout(bound, looped).await.unwrap_or_else(|_| panic!("not done within {bound:?}"));
}

#[cfg(feature = "postgres")]
#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_survives_kills_over_a_server_too() {
    let Some(server) = postgres_server::Server::shared() else { return };
    let database = server.database();
    let journal = format!("[journal]\nurl = \"{}\"\nlease = \"1s\"\n", server.url(&database));
    let setup = |backend: &Backend| Setup::new(backend).top(&journal).backend(BACKEND);
    let done = |_: &Gateway, all: &[Kept]| {
        let sql = "SELECT action || ' ' || order_id FROM spigate_deliveries WHERE state = 'done' AND order_id <> ''";
        let known = server.sql(&database, sql);
        let known: std::collections::HashSet<_> = known.lines().collect();
        for kept in all {
            let Some(order) = kept.order_id() else { continue };
            assert!(known.contains(format!("{} {order}", kept.action()).as_str()), "{order}");
        }
    };
    let looped = kill_loop(SERVER_KILLS, LONGEST_SERVER_LIFE, setup, done);
    tokio::time::timeout(Duration::from_secs(180), looped).await.expect("the end of the loop");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_was_only_half_made_is_made_whole() {
    let backend = Backend::confirming().await;
    let mut gateway = Setup::new(&backend).start().await;
    for number in 1..=HALF_MADE {
        gateway.kill();
        for ending in ["", "-wal", "-shm"] {
            std::fs::remove_file(gateway.directory().path().join(format!("spigate.db{ending}"))).unwrap();
        }
        gateway.spawn_again(None);
        tokio::time::sleep(Duration::from_millis(random(60))).await;
        gateway.kill();
        gateway.spawn_again(None);
        gateway.until_ready().await;
        let order = create();
        gateway.order(&order).await.assert_is(CREATED);
        gateway.order(&order).await.assert_is(CREATED);
        assert_eq!(backend.count(), number);
    }
}

async fn kill_loop(
    kills: usize,
    longest_life: u64,
    setup: impl FnOnce(&Backend) -> Setup,
    assert_done: impl FnOnce(&Gateway, &[Kept]),
) {
    let begun = Instant::now();
    let ledger = Ledger::default();
    let asked = ledger.clone();
    let backend = Backend::start(move |request| perform(&asked.called(request))).await;
    let mut gateway = setup(&backend).start().await;
    let platform = Platform::new(ledger.clone());
    let mut seen = Seen::default();
    platform.work();

    for number in 1..=kills {
        platform.reach(Some(gateway.listen));
        platform.ask_again(&ledger.sample(LATEST, ANY));
        tokio::time::sleep(Duration::from_millis(random(longest_life))).await;
        gateway.kill();
        platform.reach(None);
        // All that it sent has come; what it said is not needed any more.
        backend.forget();
        let dead = Instant::now();
        if number % 6 == 0 {
            // This one does not even come up.
            start(&mut gateway, &backend, &ledger);
            tokio::time::sleep(Duration::from_millis(random(seen.longest_start.max(50)))).await;
            gateway.kill();
            seen.killed_at_start += 1;
        }
        start(&mut gateway, &backend, &ledger);
        gateway.until_ready().await;
        seen.started(dead.elapsed(), &gateway.output());
        ledger.assert_kept();
    }

    platform.reach(Some(gateway.listen));
    // A run in which nothing happened shows nothing.
    while ledger.answers().len() < kills * 5 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    platform.stop().await;
    // Everything that was ever answered, from a process that knows it from the file alone.
    gateway.kill();
    start(&mut gateway, &backend, &ledger);
    gateway.until_ready().await;
    platform.reach(Some(gateway.listen));
    let all = ledger.answers();
    platform.all_again(all.clone()).await;
    ledger.assert_kept();
    gateway.kill();
    assert_done(&gateway, &all);
    let rate = u128::try_from(all.len()).unwrap() * 1000 / begun.elapsed().as_millis();
    let at_start = seen.killed_at_start;
    println!(
        "{kills} kills of a serving process and {at_start} of one that was just starting in {:.1?}",
        begun.elapsed()
    );
    println!("{} found deliveries running, {} at most", seen.interrupted, seen.most_running);
    println!("down for {:?} at most, {:?} on average", seen.longest_down, seen.down / u32::try_from(kills).unwrap());
    println!("{} answers of success, {rate} a second; each asked for again at the end", all.len());
    println!("{ledger}");
    if let Ok(file) = std::fs::metadata(gateway.directory().path().join("spigate.db")) {
        println!("{} KiB of journal", file.len() / 1024);
    }
}

/// The next process calls the backend at a path of its own, so that the calls of one that is
/// dead can be told from those of the living.
fn start(gateway: &mut Gateway, backend: &Backend, ledger: &Ledger) {
    let url = backend.url(&format!("/{}", ledger.next_process()));
    gateway.spawn_again(Some(("SPIGATE_APPS__0__BACKEND__URL", &url)));
}

/// What the backend does, as bytes.
fn perform(plan: &Plan) -> Vec<Step> {
    match plan {
        Plan::Answer(body) => json(body),
        Plan::Late(body, by) => {
            let gate = Gate::closed();
            let (opened, by) = (gate.clone(), *by);
            tokio::spawn(async move {
                tokio::time::sleep(by).await;
                opened.open();
            });
            [vec![Step::Wait(gate)], json(body)].concat()
        }
        Plan::Fail => reply("500 Internal Server Error", "", "{}"),
        Plan::Reset => vec![Step::Reset],
        Plan::Break(body) => {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", 9999);
            [raw(head + body), vec![Step::Reset]].concat()
        }
        Plan::Stall => vec![Step::Stall],
    }
}

/// A number up to `most`, evenly.
fn random(most: u64) -> u64 {
    getrandom::u64().unwrap() % (most + 1)
}

/// The file itself, when nobody has it open.
fn assert_done(gateway: &Gateway, all: &[Kept]) {
    let file = rusqlite::Connection::open(gateway.directory().path().join("spigate.db")).unwrap();
    let verdict: String = file.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(verdict, "ok");
    let mut orders = file.prepare("SELECT state FROM deliveries WHERE action = ?1 AND order_id = ?2").unwrap();
    for kept in all {
        let Some(order) = kept.order_id() else { continue };
        let state: String = orders.query_row((kept.action(), order), |row| row.get(0)).unwrap();
        assert_eq!(state, "done", "{order}");
    }
}

/// What the kills met.
#[derive(Default)]
struct Seen {
    killed_at_start: usize,
    interrupted: usize,
    most_running: u64,
    down: Duration,
    longest_down: Duration,
    /// Milliseconds.
    longest_start: u64,
}

impl Seen {
    fn started(&mut self, down: Duration, output: &str) {
        self.down += down;
        self.longest_down = self.longest_down.max(down);
        self.longest_start = self.longest_start.max(u64::try_from(down.as_millis()).unwrap());
        let lines = output.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let running = lines.filter_map(|line| line["deliveries"].as_u64()).next();
        self.interrupted += usize::from(running.is_some());
        self.most_running = self.most_running.max(running.unwrap_or(0));
    }
}
