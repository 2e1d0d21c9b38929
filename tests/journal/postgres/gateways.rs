//! Several gateways that serve from one database.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use spigate::config::journal::{JournalConfig, Location};
use spigate::journal::entry::{Ask, AttemptOutcome, LEASE_LOST, State};
use spigate::journal::machine::{Decision, Finished};
use spigate::journal::retention::retention;
use spigate::journal::store::{Filter, Pruned, Retention, Which, Wrap};
use tokio::sync::Barrier;

use super::{LEASE, Postgres};
use crate::bench::{Bench, Gateway};
use crate::postgres_server::{EVERYBODY, Server};
use crate::sample::{Call, START, about, content, key, lookalike, unconfirmed};

/// What is pruned if nothing is too old.
const NOTHING: Retention = Retention {
    now: START,
    replies_before: Timestamp::UNIX_EPOCH,
    history_before: Timestamp::UNIX_EPOCH,
    wraps_before: Timestamp::UNIX_EPOCH,
    batch: 100,
};

/// Claims at once from every gateway; what each was told.
async fn race(gateways: &[Gateway], ask: impl Fn(&Gateway) -> Ask) -> Vec<(Decision, Call)> {
    let start = Arc::new(Barrier::new(gateways.len()));
    let claims: Vec<_> = gateways
        .iter()
        .map(|gateway| {
            let (gateway, ask, start) = (gateway.clone(), Arc::new(ask(gateway)), Arc::clone(&start));
            tokio::spawn(async move {
                start.wait().await;
                let claimed = gateway.store.claim(Arc::clone(&ask)).await.unwrap();
                (claimed.decision, Call { ask, entry: Arc::unwrap_or_clone(claimed.entry) })
            })
        })
        .collect();
    let mut told = Vec::new();
    for claim in claims {
        told.push(claim.await.unwrap());
    }
    told
}

fn forwarded(told: &[(Decision, Call)]) -> Vec<&Call> {
    told.iter().filter(|(decision, _)| *decision == Decision::Forward).map(|(_, call)| call).collect()
}

/// The only call of a race; all the others were told of it.
fn only_call(told: &[(Decision, Call)]) -> &Call {
    let forwarded = forwarded(told);
    assert_eq!(forwarded.len(), 1, "{told:#?}");
    assert!(told.iter().all(|(_, call)| call.entry == forwarded[0].entry), "the others join it");
    forwarded[0]
}

async fn gateways<const COUNT: usize>(bench: &mut Postgres) -> Vec<Gateway> {
    let mut gateways = Vec::new();
    for _ in 0..COUNT {
        gateways.push(bench.open().await);
    }
    gateways
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_attempt_is_claimed_by_one_of_them() {
    let Some(mut bench) = Postgres::new().await else { return };
    let gateways = gateways::<4>(&mut bench).await;
    for order in 0..20 {
        let order = format!("o-{order}");
        // The first claim inserts; those after it update.
        for attempt in 1..=3 {
            let told = race(&gateways, |gateway| gateway.create(&order)).await;
            let call = only_call(&told);
            assert_eq!(call.entry.latest.number, attempt);
            gateways[0].finish(call.end(unconfirmed())).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lookalikes_at_one_moment_are_one_delivery() {
    let Some(mut bench) = Postgres::new().await else { return };
    let gateways = gateways::<4>(&mut bench).await;
    for order in 0..20 {
        let order = format!("i-{order}");
        let told = race(&gateways, |gateway| {
            about(Ask { base: key(&[&order, &gateway.name]), ..gateway.renew("", &order) }, |subject| {
                subject.order_id = None;
                subject.lookalike = Some(lookalike(&[&order]));
                subject.fingerprint = content(&[&order]);
            })
        })
        .await;
        only_call(&told);
    }
}

/// What a copy was told stays true for its like to the byte, also at another gateway, and for as
/// long as the delivery is known.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_was_one_delivery_stays_so_at_every_gateway() {
    let Some(mut bench) = Postgres::new().await else { return };
    let (one, other) = (bench.open().await, bench.open().await);
    let copy = |signature: &str| {
        about(Ask { base: key(&["signature", signature]), ..one.renew("", "i-1") }, |subject| {
            subject.order_id = None;
            subject.lookalike = Some(lookalike(&["i-1"]));
            subject.fingerprint = content(&["i-1"]);
        })
    };
    let first = one.forward(copy("1")).await;
    assert_eq!(other.claim(copy("2")).await.decision, Decision::Join);
    one.finish(first.end(one.carried_out())).await;
    one.store.answered(first.key(), State::Done, START).await.unwrap();
    for gateway in [&one, &other] {
        let replayed = gateway.claim(copy("2")).await;
        assert_eq!((replayed.decision, replayed.entry.key), (Decision::Replay, first.key()));
    }
    assert_eq!(bench.sql("SELECT count(*) FROM spigate_aliases"), "1");
    bench.sql("DELETE FROM spigate_deliveries");
    assert_eq!(bench.sql("SELECT count(*) FROM spigate_aliases"), "0");
    assert_eq!(other.forward(copy("2")).await.entry.latest.number, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renewals_and_expiries_at_one_moment_agree_on_the_cycle() {
    let Some(mut bench) = Postgres::new().await else { return };
    let gateways = gateways::<4>(&mut bench).await;
    for round in 0..20 {
        // Two renew, two expire: each renewal raises the cycle once, each cycle is ended once.
        let instance = format!("i-{round}");
        let told = race(&gateways, |gateway| match gateways.iter().position(|other| other.name == gateway.name) {
            Some(number @ 0..2) => gateway.renew(&format!("o-{round}-{number}"), &instance),
            _ => gateway.expire(&instance),
        })
        .await;
        let forwarded = forwarded(&told);
        let expiries: Vec<_> =
            forwarded.iter().filter(|call| call.entry.subject.action.starts_with("Expire")).collect();
        assert_eq!(forwarded.len() - expiries.len(), 2);
        let mut cycles: Vec<_> = expiries.iter().map(|call| call.entry.cycle).collect();
        cycles.dedup();
        assert_eq!(cycles.len(), expiries.len(), "{told:#?}");
        let next = gateways[0].claim(gateways[0].expire(&instance)).await;
        assert_eq!(next.entry.cycle, 2, "after two renewals: {:#?}", next.entry);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_is_won_by_one_order_across_gateways() {
    let Some(mut bench) = Postgres::new().await else { return };
    let gateways = gateways::<4>(&mut bench).await;
    for round in 0..20 {
        let start = Arc::new(Barrier::new(gateways.len()));
        let mut ends = Vec::new();
        for (number, gateway) in gateways.iter().enumerate() {
            let call = gateway.forward(gateway.create(&format!("o-{round}-{number}"))).await;
            let (gateway, start) = (gateway.clone(), Arc::clone(&start));
            ends.push(tokio::spawn(async move {
                let end = call.end(gateway.confirmed(&format!("i-{round}")));
                start.wait().await;
                gateway.finish(end).await
            }));
        }
        let mut states = Vec::new();
        for end in ends {
            let (finished, entry) = end.await.unwrap();
            assert_eq!(finished == Finished::Recorded, entry.state == State::Done);
            states.push(entry.state);
        }
        assert_eq!(states.iter().filter(|state| **state == State::Done).count(), 1);
        assert_eq!(states.iter().filter(|state| **state == State::Unconfirmed).count(), 3);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_hears_of_the_end_in_another_gateway() {
    let Some(mut bench) = Postgres::new().await else { return };
    let (one, other) = (bench.open().await, bench.open().await);
    let call = one.forward(one.create("o-1")).await;
    assert_eq!(other.claim(other.create("o-1")).await.decision, Decision::Join);
    assert_eq!(bench.sql("SELECT awaited FROM spigate_deliveries"), "t");
    let key = call.key();
    let waiting = tokio::spawn(async move {
        loop {
            let entry = other.look(key).await;
            if entry.state != State::Running {
                return entry;
            }
            other.store.changed(key).await;
        }
    });
    let (_, entry) = one.finish(call.end(one.confirmed("i-1"))).await;
    assert_eq!(waiting.await.unwrap(), entry);
}

/// Where notifications are lost, those who wait look for themselves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_notifications_a_copy_hears_of_it_too() {
    let Some(mut bench) = Postgres::new().await else { return };
    let (one, other) = (bench.open().await, bench.open().await);
    let call = one.forward(one.create("o-1")).await;
    assert_eq!(other.claim(other.create("o-1")).await.decision, Decision::Join);
    bench.sql("UPDATE spigate_deliveries SET awaited = false");
    one.finish(call.end(one.confirmed("i-1"))).await;
    while other.look(call.key()).await.state == State::Running {
        other.store.changed(call.key()).await;
    }
    // Also for somebody for whom nothing changes at all.
    other.store.changed(key(&["unknown"])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_notification_names_the_delivery() {
    let Some(mut bench) = Postgres::new().await else { return };
    let (one, other) = (bench.open().await, bench.open().await);
    let (client, mut connection) =
        tokio_postgres::connect(&bench.server.url(&bench.database), tokio_postgres::NoTls).await.unwrap();
    let (heard, mut notifications) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(message)) = std::future::poll_fn(|context| connection.poll_message(context)).await {
            if let tokio_postgres::AsyncMessage::Notification(notification) = message {
                heard.send(notification.payload().to_owned()).unwrap();
            }
        }
    });
    client.batch_execute("LISTEN spigate_ended").await.unwrap();
    // Nobody waits for the first one, so nobody is told.
    let alone = one.forward(one.create("o-1")).await;
    one.finish(alone.end(one.confirmed("i-1"))).await;
    let joined = one.forward(one.create("o-2")).await;
    other.claim(other.create("o-2")).await;
    one.finish(joined.end(one.confirmed("i-2"))).await;
    let heard = notifications.recv().await.unwrap();
    assert!(heard.starts_with(&joined.key().idempotency_key()), "{heard}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_confirmation_of_a_lost_attempt_wins_or_is_a_duplicate() {
    let Some(mut bench) = Postgres::new().await else { return };
    for (first_is_faster, order) in [(true, "o-1"), (false, "o-2")] {
        let (one, other) = (bench.open().await, bench.open().await);
        let first = one.forward(one.create(order)).await;
        assert_eq!(other.claim(other.create(order)).await.decision, Decision::Join);
        bench.end_lease(&one.name);
        let second = other.forward(other.create(order)).await;
        assert_eq!((second.entry.latest.number, second.entry.doubt), (2, true));
        let lost = &other.record(second.key()).await.history[0];
        assert_eq!(lost.ended.as_ref().unwrap().code.as_deref(), Some(LEASE_LOST));

        let (ends, outcomes) = if first_is_faster {
            ([&first, &second], [AttemptOutcome::Confirmed, AttemptOutcome::Duplicate])
        } else {
            ([&second, &first], [AttemptOutcome::Duplicate, AttemptOutcome::Confirmed])
        };
        let instance = |call: &Call| format!("i-{order}-{}", call.entry.latest.number);
        let (finished, done) = one.finish(ends[0].end(one.confirmed(&instance(ends[0])))).await;
        assert_eq!((finished, done.state), (Finished::Recorded, State::Done));
        let (finished, still) = other.finish(ends[1].end(other.confirmed(&instance(ends[1])))).await;
        assert_eq!(
            (finished, &still.confirmation, &still.reply),
            (Finished::Duplicate, &done.confirmation, &done.reply)
        );
        let record = one.record(first.key()).await;
        let attempts: Vec<_> = record.attempts().map(|attempt| attempt.ended.as_ref().unwrap().outcome).collect();
        assert_eq!(attempts, outcomes);
        assert_eq!(one.claim(one.create(order)).await.decision, Decision::Replay);
    }
}

/// A gateway that the server has not heard of for long goes on as soon as it is heard again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_ended_is_taken_again() {
    let Some(mut bench) = Postgres::new().await else { return };
    let (one, other) = (bench.open().await, bench.open().await);
    for renewed_by_a_claim in [false, true] {
        let order = format!("o-{renewed_by_a_claim}");
        let call = one.forward(one.create(&order)).await;
        bench.end_lease(&one.name);
        assert_eq!(other.look(call.key()).await.state, State::Unconfirmed);
        assert_eq!(one.look(call.key()).await.state, State::Running, "it knows better of its own");
        if renewed_by_a_claim {
            assert_eq!(one.claim(one.create(&order)).await.decision, Decision::Join);
        } else {
            one.store.probe().await.unwrap();
        }
        assert_eq!(other.claim(other.create(&order)).await.decision, Decision::Join);
    }
    // Not even a probe is needed before the first claim.
    let name = super::name();
    let silent = Gateway::new(name.clone(), Arc::new(bench.store(&name))).await;
    let call = silent.forward(silent.create("o-3")).await;
    assert_eq!(other.claim(other.create("o-3")).await.decision, Decision::Join);
    silent.store.close().await.unwrap();
    assert_eq!(other.look(call.key()).await.state, State::Unconfirmed);
}

/// An outage of the server for longer than a lease ends the leases of all, although all live and
/// may hold confirmations that they could not record.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_an_outage_nobody_is_taken_for_gone() {
    let Some(server) = Server::start(&[], EVERYBODY).map(Arc::new) else { return };
    let mut bench = Postgres::on(Arc::clone(&server));
    let (one, other) = (bench.open().await, bench.open().await);
    let calls = [one.forward(one.create("o-1")).await, one.forward(one.create("o-2")).await];
    tokio::task::spawn_blocking(move || server.restart()).await.unwrap();
    // It took longer than it did.
    bench.end_lease(&one.name);
    bench.end_lease(&other.name);
    for _ in 0..2 {
        for (call, order) in calls.iter().zip(["o-1", "o-2"]) {
            assert_eq!(other.claim(other.create(order)).await.decision, Decision::Join);
            assert_eq!(other.look(call.key()).await.state, State::Running, "who waits waits on");
        }
        other.store.prune(NOTHING).await.unwrap();
        assert_eq!(bench.sql("SELECT count(*) FROM spigate_deliveries WHERE state = 'running'"), "2");
        // A probe does not shorten it.
        other.store.probe().await.unwrap();
    }
    // Whoever looks from outside is told as it is.
    let unconfirmed = Filter { which: Some(Which::State(State::Unconfirmed)), ..Filter::default() };
    assert_eq!(other.list(unconfirmed).await.len(), 2);
    // One that comes back can tell what it has kept,
    one.store.probe().await.unwrap();
    one.finish(calls[0].end(one.confirmed("i-1"))).await;
    assert_eq!(other.claim(other.create("o-1")).await.decision, Decision::Replay);
    // and one that does not is gone after another lease.
    bench.end_lease(&one.name);
    assert_eq!(other.claim(other.create("o-2")).await.decision, Decision::Join);
    bench.settle(&other.name);
    other.store.probe().await.unwrap();
    let taken = other.forward(other.create("o-2")).await;
    assert_eq!((taken.key(), taken.entry.latest.number, taken.entry.doubt), (calls[1].key(), 2, true));
}

/// The same where the outage was a little shorter, and so ended the lease only of the one that had
/// renewed it longer ago.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_late_too_takes_nobody_for_gone() {
    let Some(mut bench) = Postgres::new().await else { return };
    let (one, other) = (bench.open().await, bench.open().await);
    let call = one.forward(one.create("o-1")).await;
    bench.end_lease(&one.name);
    bench.sql(&format!(
        "UPDATE spigate_gateways SET lease_until = clock_timestamp() + interval '{} seconds' WHERE id = '{}'",
        LEASE.as_secs() / 3,
        other.name
    ));
    other.store.probe().await.unwrap();
    assert_eq!(other.claim(other.create("o-1")).await.decision, Decision::Join);
    bench.settle(&other.name);
    let taken = other.forward(other.create("o-1")).await;
    assert_eq!((taken.key(), taken.entry.latest.number), (call.key(), 2));
}

/// The operator hears of it although no copy comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_gateway_that_is_gone_had_running_is_counted_listed_and_recorded() {
    let Some(mut bench) = Postgres::new().await else { return };
    let (one, other) = (bench.open().await, bench.open().await);
    let call = one.forward(one.create("o-1")).await;
    one.forward(one.create("o-2")).await;
    other.forward(other.create("o-3")).await;
    let waits = async || other.store.counts().await.unwrap().iter().map(|counts| counts.unconfirmed).sum::<i64>();
    let listed = async |which| other.list(Filter { which: Some(which), ..Filter::default() }).await.len();
    assert_eq!(waits().await, 0);
    one.store.close().await.unwrap();
    for recorded in [false, true] {
        let running = bench.sql("SELECT count(*) FROM spigate_deliveries WHERE state = 'running'");
        assert_eq!(running, if recorded { "1" } else { "3" });
        assert_eq!(waits().await, 2);
        assert_eq!(listed(Which::State(State::Unconfirmed)).await, 2);
        assert_eq!(listed(Which::State(State::Running)).await, 1);
        assert_eq!(listed(Which::Attempt(AttemptOutcome::Unconfirmed)).await, 2);
        other.store.prune(NOTHING).await.unwrap();
    }
    let ended = other.look(call.key()).await.latest.ended.unwrap();
    assert_eq!(ended.code.as_deref(), Some(LEASE_LOST));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_that_ended_long_ago_are_removed() {
    let Some(mut bench) = Postgres::new().await else { return };
    let (one, other) = (bench.open().await, bench.open().await);
    bench.sql(&format!(
        "UPDATE spigate_gateways SET lease_until = clock_timestamp() - interval '2 hours' WHERE id = '{}'",
        one.name
    ));
    other.store.prune(NOTHING).await.unwrap();
    assert_eq!(bench.sql("SELECT id FROM spigate_gateways"), other.name);
}

/// What gateways have to agree on goes by the clock of the server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clock_of_a_gateway_changes_nothing() {
    let Some(mut bench) = Postgres::new().await else { return };
    let (one, other) = (bench.open().await, bench.open().await);
    let now = spigate::clock::now();
    for hours in [-1, 1] {
        let wrong = now + jiff::SignedDuration::from_hours(hours);
        let order = format!("o-{hours}");
        let call = one.forward(Ask { now: wrong, ..one.create(&order) }).await;
        let apart = |time: jiff::Timestamp| time.duration_since(now).abs();
        let minutes = jiff::SignedDuration::from_mins(30);
        assert!(apart(call.entry.received_at) < minutes && apart(call.entry.latest.began_at) < minutes);
        let copy = other.claim(Ask { now: wrong, ..other.create(&order) }).await;
        assert_eq!(copy.decision, Decision::Join);
        let (_, entry) = one.finish(call.end_at(one.confirmed(&order), wrong)).await;
        assert!(apart(entry.confirmation.unwrap().at) < minutes && apart(entry.changed_at) < minutes);
        one.store.answered(entry.key, State::Done, wrong).await.unwrap();
        assert!(apart(one.look(entry.key).await.answered_at.unwrap()) < minutes);
        // An expiry of an hour ago is replayed by that clock too.
        let expiry = one.forward(Ask { now: wrong, ..one.expire(&order) }).await;
        one.finish(expiry.end_at(one.carried_out(), wrong)).await;
        let later = wrong + jiff::SignedDuration::from_hours(2);
        assert_eq!(other.claim(Ask { now: later, ..other.expire(&order) }).await.decision, Decision::Replay);
    }
}

/// One gateway whose clock is wrong must not remove what belongs to all, nor keep it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_old_is_so_by_the_clock_of_the_server() {
    let Some(mut bench) = Postgres::new().await else { return };
    let gateway = bench.open().await;
    let days = |days: i64| SignedDuration::from_hours(24 * days);
    let config = JournalConfig {
        location: Location::Memory,
        lease: LEASE,
        encryption_key: None,
        retain_replies: days(30),
        retain_history: days(400),
        lifecycle_replay: days(1),
    };
    let wrap = |name: &str| Wrap { wrapper: name.into(), bytes: name.into() };
    let now = spigate::clock::now();
    let (behind, ahead) = (now - days(500), now + days(500));
    let call = gateway.forward(Ask { now: ahead, ..gateway.create("o-1") }).await;
    let (_, entry) = gateway.finish(call.end_at(gateway.confirmed("i-1"), ahead)).await;
    let key = gateway.store.add_data_key("crm".into(), vec![wrap("a")], ahead).await.unwrap();
    gateway.store.put_wraps(key, vec![wrap("b")], behind).await.unwrap();
    let wraps = async || {
        let keys = gateway.store.data_keys().await.unwrap();
        keys.into_iter().find(|known| known.id == key).unwrap().wraps
    };
    for wrong in [behind, ahead] {
        assert_eq!(gateway.store.prune(retention(&config, wrong)).await.unwrap(), Pruned::default());
        assert_eq!(gateway.look(entry.key).await, entry);
        assert_eq!(wraps().await.len(), 2);
    }
    let age = |column: &str, days: u32| format!("{column} = {column} - interval '{days} days'");
    let age_delivery = |days| {
        let (received, changed) = (age("received_at", days), age("changed_at", days));
        bench.sql(&format!("UPDATE spigate_deliveries SET {received}, {changed}"))
    };
    bench.sql(&format!("UPDATE spigate_wraps SET {} WHERE wrapper = 'a'", age("touched_at", 3)));
    age_delivery(31);
    let pruned = gateway.store.prune(retention(&config, behind)).await.unwrap();
    assert_eq!(pruned, Pruned { replies: 1, ..Pruned::default() });
    assert_eq!(wraps().await, [wrap("b")]);
    age_delivery(370);
    let pruned = gateway.store.prune(retention(&config, ahead)).await.unwrap();
    assert_eq!(pruned, Pruned { deliveries: 1, ..Pruned::default() });
    // The longest that can be configured.
    let config = JournalConfig { retain_replies: SignedDuration::MAX, retain_history: SignedDuration::MAX, ..config };
    gateway.store.prune(retention(&config, now)).await.unwrap();
}
