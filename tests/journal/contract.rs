//! What every store has to do, whatever it keeps its rows in. A test here is written once and
//! runs against each of them.
//!
//! A store that takes the time from itself ([`Bench::OWN_CLOCK`]) is asked nothing that depends
//! on the times given here.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use spigate::journal::entry::{
    Ask, Attempt, AttemptOutcome, Ended, Ending, Entry, Lifecycle, Reason, Sealed, State, Subject,
};
use spigate::journal::key::{DeliveryKey, Origin};
use spigate::journal::machine::{Decision, Finished, INSTANCE_REUSED, Resolution, Unresolvable};
use spigate::journal::store::{Counts, Filter, Pruned, Record, Retention, Which, Wrap};

use crate::bench::{Bench, Gateway};
use crate::sample::{Call, START, about, after, content, failed, key, lookalike, unconfirmed};

/// Runs the suite against the bench that an expression makes, anew for each test. It may make
/// none, where what it needs cannot be had: `contract!(crate::bench::Memory::new())`.
macro_rules! contract {
    ($bench:expr) => {
        $crate::contract::contract! {
            $bench =>
            the_first_copy_is_forwarded_and_recorded,
            copies_join_the_running_attempt,
            a_confirmation_is_replayed,
            a_refusal_opens_the_key_again,
            a_failure_opens_the_key_again,
            unconfirmed_is_forwarded_again_or_held,
            doubt_is_remembered,
            reasons_are_kept_word_for_word,
            values_of_every_script_and_length_are_kept,
            other_content_conflicts_in_every_state,
            a_late_confirmation_counts,
            a_late_failure_changes_nothing_but_its_own_attempt,
            the_first_confirmation_stays,
            an_end_can_be_recorded_twice,
            an_end_without_an_entry_is_recorded,
            an_instance_belongs_to_one_order,
            concurrent_copies_make_one_attempt,
            concurrent_orders_win_an_instance_once,
            concurrent_ends_confirm_once,
            the_first_answer_is_noted,
            waiting_for_a_change_comes_back,
            it_can_be_written,
            closing_gives_the_lease_up,
            what_a_dead_gateway_had_running_is_unconfirmed,
            what_was_recorded_survives_a_crash,
            a_lost_lease_is_seen_by_readers,
            lists_filter,
            lists_go_page_by_page,
            lists_show_every_attempt,
            the_operator_lets_it_be_forwarded,
            the_operator_knows_that_it_was_done,
            the_operator_knows_that_it_failed,
            the_operator_cannot_decide_everything,
            what_was_closed_and_is_not_any_more_is_unanswered,
            an_answer_counts_for_what_it_told,
            the_operator_replaces_a_lost_reply,
            counts_what_waits,
            old_replies_are_removed,
            old_deliveries_are_removed,
            old_ones_are_removed_in_batches,
            running_ones_are_never_removed,
            old_instances_and_cycles_are_removed,
            data_keys_are_kept,
            unused_wraps_are_removed,
            lookalikes_share_a_delivery_until_it_is_answered,
            lookalikes_share_the_instance_that_one_of_them_made,
            lookalikes_find_what_the_operator_opens_again,
            what_is_opened_again_leaves_lookalikes_to_a_later_purchase,
            a_renewal_begins_a_new_cycle,
            a_late_end_closes_its_own_cycle,
            an_expiry_is_replayed_for_a_while,
            an_expiry_without_an_instance_has_no_cycles,
            the_clock_may_step,
        }
    };
    ($bench:expr => $($test:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                if let Some(bench) = $bench.await {
                    $crate::contract::$test(bench).await;
                }
            }
        )*
    };
}
pub(crate) use contract;

pub(crate) async fn the_first_copy_is_forwarded_and_recorded<B: Bench>(mut bench: B) {
    let gateway = bench.open().await;
    let ask = about(Ask { now: after(7), ..gateway.create("o-1") }, |subject| {
        subject.debug = true;
        subject.instance_id = Some("i-1".into());
        subject.lookalike = Some(lookalike(&["alike"]));
    });
    let Call { ask, entry } = gateway.forward(ask).await;
    let now = if B::OWN_CLOCK { entry.received_at } else { after(7) };
    let expected = Entry {
        key: ask.base,
        cycle: 0,
        subject: Arc::new(Subject {
            app: "crm".into(),
            action: "CreateAppInstance".into(),
            debug: true,
            order_id: Some("o-1".into()),
            instance_id: Some("i-1".into()),
            user_id: Some("usr-1".into()),
            ..(*ask.subject).clone()
        }),
        received_at: now,
        changed_at: now,
        state: State::Running,
        doubt: false,
        latest: Attempt {
            number: 1,
            claimant: ask.claimant.clone(),
            request_id: ask.request_id.clone(),
            began_at: now,
            ended_at: None,
            ended: None,
        },
        confirmation: None,
        reply: None,
        answered_at: None,
        decision: None,
    };
    assert_eq!(entry, expected);
    assert_eq!(gateway.look(entry.key).await, expected);
    let record = gateway.record(entry.key).await;
    assert_eq!((record.entry, record.history), (expected, vec![]));
    assert_eq!(gateway.store.look(key(&["unknown"])).await.unwrap(), None);
}

pub(crate) async fn copies_join_the_running_attempt<B: Bench>(mut bench: B) {
    let gateway = bench.open().await;
    let call = gateway.forward(gateway.create("o-1")).await;
    for _ in 0..2 {
        let copy = gateway.claim(gateway.create("o-1")).await;
        assert_eq!((copy.decision, copy.entry), (Decision::Join, call.entry.clone()));
    }
    assert_eq!(gateway.look(call.key()).await, call.entry);
    // Others have nothing to do with it.
    gateway.forward(gateway.create("o-2")).await;
    gateway.forward(gateway.debug_create("o-1")).await;
}

pub(crate) async fn a_confirmation_is_replayed<B: Bench>(mut bench: B) {
    let gateway = bench.open().await;
    let call = gateway.forward(gateway.create("o-1")).await;
    let (finished, entry) = gateway.finish(call.end_at(gateway.confirmed("i-1"), after(3))).await;
    assert_eq!(finished, Finished::Recorded);
    assert_eq!(entry.state, State::Done);
    assert_eq!(entry.reply, Some(gateway.sealed("made i-1")));
    let confirmation = entry.confirmation.clone().unwrap();
    assert_eq!(confirmation.instance_id.as_deref(), Some("i-1"));
    let ended = entry.latest.ended.clone().unwrap();
    let expected = Ended {
        outcome: AttemptOutcome::Confirmed,
        code: None,
        rule: None,
        detail: None,
        instance_id: Some("i-1".into()),
    };
    assert_eq!(ended, expected);
    if !B::OWN_CLOCK {
        assert_eq!([confirmation.at, entry.latest.ended_at.unwrap(), entry.changed_at], [after(3); 3]);
    }
    assert_eq!(gateway.look(call.key()).await, entry);
    for _ in 0..2 {
        let copy = gateway.claim(Ask { now: after(4), ..gateway.create("o-1") }).await;
        assert_eq!((copy.decision, copy.entry), (Decision::Replay, entry.clone()));
    }
}

/// Ends the first attempt and returns the second one, which must be of the same delivery.
async fn second_attempt(gateway: &Gateway, ending: Ending, state: State) -> Call {
    let first = gateway.forward(gateway.create("o-1")).await;
    let (finished, entry) = gateway.finish(first.end(ending)).await;
    assert_eq!((finished, entry.state), (Finished::Recorded, state));
    assert_eq!(gateway.look(first.key()).await, entry);
    let second = gateway.forward(Ask { now: after(2), ..gateway.create("o-1") }).await;
    assert_eq!(second.key(), first.key());
    assert_eq!((second.entry.state, second.entry.latest.number), (State::Running, 2));
    assert_eq!(second.entry.latest.claimant, second.ask.claimant);
    assert_eq!(second.entry.latest.request_id, second.ask.request_id);
    assert_eq!(second.entry.latest.ended, None);
    assert_eq!(second.entry.received_at, first.entry.received_at);
    let record = gateway.record(first.key()).await;
    assert_eq!(record.entry, second.entry);
    assert_eq!(record.history, [entry.latest]);
    second
}

pub(crate) async fn a_refusal_opens_the_key_again<B: Bench>(mut bench: B) {
    let gateway = bench.open().await;
    let second = second_attempt(&gateway, gateway.refused(), State::Open).await;
    assert!(!second.entry.doubt);
    assert_eq!(second.entry.confirmation, None);
    assert_eq!(second.entry.reply, Some(gateway.sealed("refused")), "the last refusal can be read");
    let (_, entry) = gateway.finish(second.end(gateway.confirmed("i-1"))).await;
    assert_eq!((entry.state, entry.reply), (State::Done, Some(gateway.sealed("made i-1"))));
}

pub(crate) async fn a_failure_opens_the_key_again<B: Bench>(mut bench: B) {
    let gateway = bench.open().await;
    let second = second_attempt(&gateway, failed(), State::Open).await;
    assert!(!second.entry.doubt);
    assert_eq!((second.entry.confirmation, second.entry.reply), (None, None));
}

pub(crate) async fn unconfirmed_is_forwarded_again_or_held<B: Bench>(mut bench: B) {
    let gateway = bench.open().await;
    let second = second_attempt(&gateway, unconfirmed(), State::Unconfirmed).await;
    assert!(second.entry.doubt);
    let (_, entry) = gateway.finish(second.end(unconfirmed())).await;
    let held = gateway.claim(Ask { hold: true, ..gateway.create("o-1") }).await;
    assert_eq!((held.decision, held.entry), (Decision::Hold, entry.clone()));
    assert_eq!(gateway.look(second.key()).await, entry);
}

pub(crate) async fn doubt_is_remembered<B: Bench>(mut bench: B) {
    let gateway = bench.open().await;
    let second = second_attempt(&gateway, unconfirmed(), State::Unconfirmed).await;
    let (_, entry) = gateway.finish(second.end(failed())).await;
    assert_eq!((entry.state, entry.doubt), (State::Unconfirmed, true), "the first attempt may have been executed");
    assert_eq!(entry.latest.ended.unwrap().outcome, AttemptOutcome::Failed);
    let held = gateway.claim(Ask { hold: true, ..gateway.create("o-1") }).await;
    assert_eq!(held.decision, Decision::Hold);
    let third = gateway.forward(gateway.create("o-1")).await;
    // The backend had the last word, and it was no.
    let (_, entry) = gateway.finish(third.end(gateway.refused())).await;
    assert_eq!((entry.state, entry.doubt, entry.latest.number), (State::Open, false, 3));
}

pub(crate) async fn reasons_are_kept_word_for_word<B: Bench>(mut bench: B) {
    let gateway = bench.open().await;
    let reason = Reason {
        code: "backend_contract".into(),
        rule: Some("media_type".into()),
        detail: Some("Content-Type “text/html; 套” 😀\n\t'--".into()),
    };
    let endings = [
        (Ending::Failed(reason.clone()), AttemptOutcome::Failed),
        (Ending::Unconfirmed(reason.clone()), AttemptOutcome::Unconfirmed),
        (unconfirmed(), AttemptOutcome::Unconfirmed),
        (failed(), AttemptOutcome::Failed),
    ];
    for (ending, outcome) in endings {
        let expected = match &ending {
            Ending::Failed(reason) | Ending::Unconfirmed(reason) => reason.clone(),
            Ending::Confirmed { .. } | Ending::Refused { .. } => unreachable!(),
        };
        let call = gateway.forward(gateway.create("o-1")).await;
        let (_, entry) = gateway.finish(call.end(ending)).await;
        let Reason { code, rule, detail } = expected;
        let ended = Some(Ended { outcome, code: Some(code), rule, detail, instance_id: None });
        assert_eq!(entry.latest.ended, ended);
        assert_eq!(gateway.look(call.key()).await.latest.ended, ended);
    }
    let outcomes: Vec<_> = gateway.record(gateway.create("o-1").base).await.history;
    assert_eq!(outcomes[0].ended.as_ref().unwrap().detail, reason.detail, "in the history too");
    assert_eq!(outcomes[1].ended.as_ref().unwrap().rule, reason.rule);
}

pub(crate) async fn values_of_every_script_and_length_are_kept<B: Bench>(mut bench: B) {
    let gateway = bench.open().await;
    let long = "长😀é\u{301}\u{feff}'\"\\%_ ".repeat(2000);
    for text in [String::new(), " ".into(), "NULL".into(), "'; --".into(), "\u{1}\t\u{7f}".into(), long] {
        let instance = format!("instance {text}");
        let ask = about(
            Ask { base: key(&["text", &text]), request_id: text.as_str().into(), ..gateway.create(&text) },
            |subject| {
                subject.fingerprint = content(&["text", &text]);
                subject.app = format!("app {text}").into();
                subject.action = format!("action {text}").into();
                subject.user_id = Some(text.as_str().into());
                subject.instance_id = Some(text.as_str().into());
            },
        );
        let call = gateway.forward(ask).await;
        assert_eq!(call.entry.subject.order_id.as_deref(), Some(&*text));
        let bytes: Vec<u8> = (0..=255).chain(text.bytes()).collect();
        let reply = Sealed { data_key: gateway.data_key, bytes };
        let ending = Ending::Confirmed { instance_id: Some(instance.as_str().into()), reply };
        let (_, entry) = gateway.finish(call.end(ending)).await;
        let looked = gateway.look(call.key()).await;
        assert_eq!(looked, entry);
        let expected = Entry {
            changed_at: looked.changed_at,
            state: State::Done,
            latest: looked.latest.clone(),
            confirmation: looked.confirmation.clone(),
            reply: looked.reply.clone(),
            ..call.entry.clone()
        };
        assert_eq!(looked, expected, "and nothing else has changed");
        let filter = Filter {
            app: Some(format!("app {text}")),
            action: Some(format!("action {text}")),
            order_id: Some(text.clone()),
            instance_id: Some(instance),
            user_id: Some(text.clone()),
            ..Filter::default()
        };
        let found = gateway.list(filter).await;
        assert_eq!(found.iter().map(|record| &record.entry).collect::<Vec<_>>(), [&looked]);
    }
}

pub(crate) async fn other_content_conflicts_in_every_state<B: Bench>(mut bench: B) {
    let gateway = bench.open().await;
    let conflicts = async || {
        let other = about(gateway.create("o-1"), |subject| subject.fingerprint = content(&["another"]));
        let before = gateway.look(other.base).await;
        let claimed = gateway.claim(other).await;
        assert_eq!((claimed.decision, &claimed.entry), (Decision::Conflict, &before));
        assert_eq!(gateway.look(before.key).await, before);
        before.state
    };
    let call = gateway.forward(gateway.create("o-1")).await;
    assert_eq!(conflicts().await, State::Running);
    gateway.finish(call.end(failed())).await;
    assert_eq!(conflicts().await, State::Open);
    let call = gateway.forward(gateway.create("o-1")).await;
    gateway.finish(call.end(unconfirmed())).await;
    assert_eq!(conflicts().await, State::Unconfirmed);
    gateway.resolve(call.key(), Resolution::Failed { message: "no".into() }).await.unwrap();
    assert_eq!(conflicts().await, State::Closed);
    gateway.resolve(call.key(), gateway.done("i-1", false)).await.unwrap();
    assert_eq!(conflicts().await, State::Done);
}

pub(crate) async fn a_late_confirmation_counts<B: Bench>(mut bench: B) {
    let gateway = bench.open().await;
    let first = gateway.forward(gateway.create("o-1")).await;
    gateway.finish(first.end(unconfirmed())).await;
    let second = gateway.forward(gateway.create("o-1")).await;
    let (finished, entry) = gateway.finish(first.end_at(gateway.confirmed("i-1"), after(30))).await;
    assert_eq!((finished, entry.state, entry.doubt), (Finished::Recorded, State::Done, false));
    let copy = gateway.claim(gateway.create("o-1")).await;
    assert_eq!((copy.decision, &copy.entry), (Decision::Replay, &entry));
    let record = gateway.record(first.key()).await;
    assert_eq!(record.history.len(), 1);
    assert_eq!(record.history[0].number, 1);
    assert_eq!(record.history[0].claimant, first.ask.claimant);
    assert_eq!(record.history[0].ended.as_ref().unwrap().outcome, AttemptOutcome::Confirmed);
    // The other attempt's end adds to the history, and to nothing else.
    let (finished, after_all) = gateway.finish(second.end(gateway.refused())).await;
    assert_eq!(finished, Finished::AlreadyDone);
    assert_eq!((after_all.state, &after_all.reply), (State::Done, &entry.reply));
    assert_eq!(after_all.confirmation, entry.confirmation);
    assert_eq!(after_all.latest.ended.unwrap().outcome, AttemptOutcome::Refused);
}

pub(crate) async fn a_late_failure_changes_nothing_but_its_own_attempt<B: Bench>(mut bench: B) {
    let gateway = bench.open().await;
    let first = gateway.forward(gateway.create("o-1")).await;
    gateway.finish(first.end(unconfirmed())).await;
    let second = gateway.forward(gateway.create("o-1")).await;
    for (ending, outcome) in [
        (failed(), AttemptOutcome::Failed),
        (unconfirmed(), AttemptOutcome::Unconfirmed),
        (gateway.refused(), AttemptOutcome::Refused),
    ] {
        let (finished, entry) = gateway.finish(first.end(ending)).await;
        assert_eq!(finished, Finished::Recorded);
        assert_eq!((entry.state, entry.reply), (State::Running, None));
        assert_eq!(entry.latest, second.entry.latest);
        let history = gateway.record(first.key()).await.history;
        let outcomes: Vec<_> = history.iter().map(|attempt| attempt.ended.as_ref().unwrap().outcome).collect();
        assert_eq!(outcomes, [outcome]);
        assert_eq!(gateway.claim(gateway.create("o-1")).await.decision, Decision::Join);
    }
}

pub(crate) async fn the_first_confirmation_stays<B: Bench>(mut bench: B) {
    let gateway = bench.open().await;
    let first = gateway.forward(gateway.create("o-1")).await;
    gateway.finish(first.end(unconfirmed())).await;
    let second = gateway.forward(gateway.create("o-1")).await;
    let (_, done) = gateway.finish(second.end(gateway.confirmed("i-2"))).await;
    let (finished, entry) = gateway.finish(first.end_at(gateway.confirmed("i-1"), after(60))).await;
    assert_eq!(finished, Finished::Duplicate);
    assert_eq!((entry.state, &entry.confirmation, &entry.reply), (State::Done, &done.confirmation, &done.reply));
    let copy = gateway.claim(gateway.create("o-1")).await;
    assert_eq!((copy.decision, copy.entry.reply), (Decision::Replay, Some(gateway.sealed("made i-2"))));
    let record = gateway.record(first.key()).await;
    let ended = record.history[0].ended.as_ref().unwrap();
    assert_eq!((ended.outcome, ended.instance_id.as_deref()), (AttemptOutcome::Duplicate, Some("i-1")));
    let duplicates = Filter { which: Some(Which::Attempt(AttemptOutcome::Duplicate)), ..Filter::default() };
    assert_eq!(gateway.list(duplicates).await.len(), 1);
    // Both instances are of this order now.
    let other = gateway.forward(gateway.create("o-2")).await;
    let (finished, _) = gateway.finish(other.end(gateway.confirmed("i-1"))).await;
    assert_eq!(finished, Finished::InstanceReused);
}

pub(crate) async fn an_end_can_be_recorded_twice<B: Bench>(mut bench: B) {
    let gateway = bench.open().await;
    let endings = [gateway.confirmed("i-1"), gateway.refused(), failed(), unconfirmed()];
    for (number, ending) in endings.into_iter().enumerate() {
        let call = gateway.forward(gateway.create(&format!("o-{number}"))).await;
        let (_, once) = gateway.finish(call.end(ending.clone())).await;
        let (finished, mut twice) = gateway.finish(call.end(ending)).await;
        assert!(matches!(finished, Finished::Recorded | Finished::AlreadyDone), "{finished:?}");
        if B::OWN_CLOCK {
            twice.changed_at = once.changed_at;
            twice.latest.ended_at = once.latest.ended_at;
        }
        assert_eq!(twice, once);
        assert_eq!(gateway.record(call.key()).await.history, []);
    }
}

pub(crate) async fn an_end_without_an_entry_is_recorded<B: Bench>(mut bench: B) {
    let gateway = bench.open().await;
    let ghost = |order: &str, attempt: u32| {
        let ask = Arc::new(gateway.create(order));
        move |ending| spigate::journal::entry::End {
            key: ask.base,
            cycle: 0,
            attempt,
            began_at: START,
            ending,
            now: after(5),
            ask: Arc::clone(&ask),
        }
    };
    let end = ghost("o-1", 3);
    let (finished, entry) = gateway.finish(end(gateway.confirmed("i-1"))).await;
    assert_eq!((finished, entry.state, entry.latest.number), (Finished::Recorded, State::Done, 3));
    assert_eq!(gateway.look(entry.key).await, entry);
    let copy = gateway.claim(gateway.create("o-1")).await;
    assert_eq!((copy.decision, copy.entry.reply), (Decision::Replay, Some(gateway.sealed("made i-1"))));
    assert_eq!(gateway.record(entry.key).await.history, []);
    // The instance is known as well.
    let (finished, entry) = gateway.finish(ghost("o-2", 1)(gateway.confirmed("i-1"))).await;
    assert_eq!((finished, entry.state), (Finished::InstanceReused, State::Unconfirmed));
    let (finished, entry) = gateway.finish(ghost("o-3", 2)(failed())).await;
    assert_eq!((finished, entry.state), (Finished::Recorded, State::Open));
    let next = gateway.forward(gateway.create("o-3")).await;
    assert_eq!(next.entry.latest.number, 3);
}

pub(crate) async fn an_instance_belongs_to_one_order<B: Bench>(mut bench: B) {
    let gateway = bench.open().await;
    let confirm = async |ask: Ask, instance: &str| {
        let call = gateway.forward(ask).await;
        gateway.finish(call.end(gateway.confirmed(instance))).await
    };
    // A trial run and the real one may share it.
    assert_eq!(confirm(gateway.debug_create("o-1"), "i-1").await.0, Finished::Recorded);
    assert_eq!(confirm(gateway.create("o-1"), "i-1").await.0, Finished::Recorded);

    let (finished, entry) = confirm(gateway.create("o-2"), "i-1").await;
    assert_eq!((finished, entry.state), (Finished::InstanceReused, State::Unconfirmed));
    assert_eq!((&entry.confirmation, &entry.reply), (&None, &None));
    let ended = entry.latest.ended.clone().unwrap();
    assert_eq!(ended.outcome, AttemptOutcome::Unconfirmed);
    assert_eq!((ended.code.as_deref(), ended.rule.as_deref()), (Some("backend_contract"), Some(INSTANCE_REUSED)));
    assert_eq!(ended.instance_id.as_deref(), Some("i-1"));
    assert_eq!(gateway.look(entry.key).await, entry);
    // With an id of its own it goes through, and the first order's stays the first order's.
    assert_eq!(confirm(gateway.create("o-2"), "i-2").await.0, Finished::Recorded);
    assert_eq!(confirm(gateway.create("o-3"), "i-1").await.0, Finished::InstanceReused);

    // Where the app does not care, and in another app.
    assert_eq!(confirm(gateway.renew("o-4", "i-1"), "i-1").await.0, Finished::Recorded);
    let elsewhere =
        about(Ask { base: key(&["erp", "o-5"]), ..gateway.create("o-5") }, |subject| subject.app = "erp".into());
    assert_eq!(confirm(elsewhere, "i-1").await.0, Finished::Recorded);
    // Names are compared to the last byte.
    assert_eq!(confirm(gateway.create("o-6"), "I-1").await.0, Finished::Recorded);
    assert_eq!(confirm(gateway.create("o-7"), "i-1 ").await.0, Finished::Recorded);
}

pub(crate) async fn concurrent_copies_make_one_attempt<B: Bench>(mut bench: B) {
    let gateway = bench.open().await;
    let other = if B::SHARED { bench.open().await } else { gateway.clone() };
    for round in 1..=3 {
        let copies: Vec<_> = (0..16)
            .map(|copy| {
                let gateway = if copy % 2 == 0 { gateway.clone() } else { other.clone() };
                let ask = Arc::new(gateway.create("o-1"));
                tokio::spawn(async move { (gateway.claim(Ask::clone(&ask)).await, ask) })
            })
            .collect();
        let mut forwarded = Vec::new();
        for copy in copies {
            let (claimed, ask) = copy.await.unwrap();
            assert_eq!(claimed.entry.latest.number, round);
            match claimed.decision {
                Decision::Forward => forwarded.push(Call { ask, entry: claimed.entry }),
                decision => assert_eq!(decision, Decision::Join),
            }
        }
        assert_eq!(forwarded.len(), 1);
        gateway.finish(forwarded[0].end(failed())).await;
    }
}

pub(crate) async fn concurrent_orders_win_an_instance_once<B: Bench>(mut bench: B) {
    let gateway = bench.open().await;
    let other = if B::SHARED { bench.open().await } else { gateway.clone() };
    let mut calls = Vec::new();
    for order in 0..8 {
        let gateway = if order % 2 == 0 { gateway.clone() } else { other.clone() };
        calls.push((gateway.forward(gateway.create(&format!("o-{order}"))).await, gateway));
    }
    let keys: Vec<_> = calls.iter().map(|(call, _)| call.key()).collect();
    let ends: Vec<_> = calls
        .into_iter()
        .map(|(call, gateway)| tokio::spawn(async move { gateway.finish(call.end(gateway.confirmed("i-1"))).await.0 }))
        .collect();
    let mut finished = Vec::new();
    for end in ends {
        finished.push(end.await.unwrap());
    }
    let count = |what| finished.iter().filter(|finished| **finished == what).count();
    assert_eq!((count(Finished::Recorded), count(Finished::InstanceReused)), (1, 7));
    for (key, finished) in keys.iter().zip(&finished) {
        let expected = if *finished == Finished::Recorded { State::Done } else { State::Unconfirmed };
        assert_eq!(gateway.look(*key).await.state, expected);
    }
}

pub(crate) async fn concurrent_ends_confirm_once<B: Bench>(mut bench: B) {
    let gateway = bench.open().await;
    let mut calls = Vec::new();
    for _ in 0..8 {
        let call = gateway.forward(gateway.create("o-1")).await;
        gateway.finish(call.end(unconfirmed())).await;
        calls.push(call);
    }
    let ends: Vec<_> = calls
        .into_iter()
        .map(|call| {
            let gateway = gateway.clone();
            let instance = format!("i-{}", call.entry.latest.number);
            tokio::spawn(
                async move { (instance.clone(), gateway.finish(call.end(gateway.confirmed(&instance))).await.0) },
            )
        })
        .collect();
    let mut first = Vec::new();
    for end in ends {
        let (instance, finished) = end.await.unwrap();
        match finished {
            Finished::Recorded => first.push(instance),
            finished => assert_eq!(finished, Finished::Duplicate),
        }
    }
    assert_eq!(first.len(), 1);
    let record = gateway.record(gateway.create("o-1").base).await;
    assert_eq!(record.entry.confirmation.as_ref().unwrap().instance_id.as_deref(), Some(&*first[0]));
    assert_eq!(record.entry.reply, Some(gateway.sealed(&format!("made {}", first[0]))));
    let outcomes = || record.attempts().map(|attempt| attempt.ended.as_ref().unwrap().outcome);
    assert_eq!(outcomes().filter(|outcome| *outcome == AttemptOutcome::Confirmed).count(), 1);
    assert_eq!(outcomes().filter(|outcome| *outcome == AttemptOutcome::Duplicate).count(), 7);
}

pub(crate) async fn the_first_answer_is_noted<B: Bench>(mut bench: B) {
    let gateway = bench.open().await;
    let call = gateway.forward(gateway.create("o-1")).await;
    let (_, entry) = gateway.finish(call.end(gateway.confirmed("i-1"))).await;
    assert_eq!(entry.answered_at, None);
    gateway.store.answered(call.key(), State::Done, after(10)).await.unwrap();
    gateway.store.answered(call.key(), State::Done, after(20)).await.unwrap();
    gateway.store.answered(key(&["unknown"]), State::Done, after(20)).await.unwrap();
    // Nobody waits for it to be durable: what is written afterwards is written after it.
    gateway.store.probe().await.unwrap();
    let answered = gateway.look(call.key()).await;
    assert!(answered.answered_at.is_some());
    if !B::OWN_CLOCK {
        assert_eq!(answered.answered_at, Some(after(10)));
    }
    assert_eq!(Entry { answered_at: None, ..answered.clone() }, entry);
    let copy = gateway.claim(gateway.create("o-1")).await;
    assert_eq!((copy.decision, copy.entry), (Decision::Replay, answered));
}

pub(crate) async fn waiting_for_a_change_comes_back<B: Bench>(mut bench: B) {
    let gateway = bench.open().await;
    let call = gateway.forward(gateway.create("o-1")).await;
    let waiting = {
        let (gateway, key) = (gateway.clone(), call.key());
        tokio::spawn(async move {
            loop {
                let change = gateway.store.changed(key);
                let entry = gateway.look(key).await;
                if entry.state != State::Running {
                    return entry.state;
                }
                change.await;
            }
        })
    };
    gateway.finish(call.end(gateway.confirmed("i-1"))).await;
    assert_eq!(waiting.await.unwrap(), State::Done);
    // And for those who began to wait after it.
    gateway.store.changed(call.key()).await;
    gateway.store.changed(key(&["unknown"])).await;
}

pub(crate) async fn it_can_be_written<B: Bench>(mut bench: B) {
    let gateway = bench.open().await;
    let call = gateway.forward(gateway.create("o-1")).await;
    gateway.store.probe().await.unwrap();
    gateway.store.probe().await.unwrap();
    assert_eq!(gateway.look(call.key()).await, call.entry);
}

pub(crate) async fn closing_gives_the_lease_up<B: Bench>(mut bench: B) {
    let gateway = bench.open().await;
    let running = gateway.forward(gateway.create("o-1")).await;
    let ended = gateway.forward(gateway.create("o-2")).await;
    gateway.finish(ended.end(gateway.confirmed("i-2"))).await;
    if !B::SHARED {
        gateway.store.close().await.unwrap();
        return;
    }
    let other = bench.open().await;
    assert_eq!(other.claim(other.create("o-1")).await.decision, Decision::Join);
    gateway.store.close().await.unwrap();
    let second = other.forward(other.create("o-1")).await;
    assert_eq!((second.key(), second.entry.latest.number, second.entry.doubt), (running.key(), 2, true));
    assert_eq!(other.claim(other.create("o-2")).await.decision, Decision::Replay);
}

pub(crate) async fn what_a_dead_gateway_had_running_is_unconfirmed<B: Bench>(mut bench: B) {
    let gateway = bench.open().await;
    let first = gateway.forward(gateway.create("o-1")).await;
    let held = gateway.forward(gateway.create("o-2")).await;
    let decided = gateway.forward(gateway.create("o-3")).await;
    gateway.finish(decided.end(failed())).await;
    let decided = gateway.forward(gateway.create("o-3")).await;
    let gateway = bench.crash(gateway).await;
    if !B::DURABLE {
        assert_eq!(gateway.store.look(first.key()).await.unwrap(), None, "it said that it forgets");
        return;
    }
    let lost = gateway.look(first.key()).await;
    assert_eq!(lost.state, State::Unconfirmed);
    let ended = lost.latest.ended.clone().unwrap();
    assert_eq!(ended.outcome, AttemptOutcome::Unconfirmed);
    assert!(ended.code.is_some(), "{ended:?}");
    let second = gateway.forward(gateway.create("o-1")).await;
    assert_eq!((second.key(), second.entry.latest.number, second.entry.doubt), (first.key(), 2, true));
    let history = gateway.record(first.key()).await.history;
    assert_eq!(history.len(), 1);
    assert_eq!(history[0].claimant, first.ask.claimant);
    assert_eq!(history[0].ended.as_ref().unwrap().outcome, AttemptOutcome::Unconfirmed);

    let copy = gateway.claim(Ask { hold: true, ..gateway.create("o-2") }).await;
    assert_eq!((copy.decision, copy.entry.state), (Decision::Hold, State::Unconfirmed));
    assert_eq!(gateway.look(held.key()).await, copy.entry);
    let entry = gateway.resolve(decided.key(), gateway.done("i-3", false)).await.unwrap();
    assert_eq!((entry.state, entry.latest.number), (State::Done, 2));
    assert_eq!(entry.latest.ended.unwrap().outcome, AttemptOutcome::Unconfirmed);
}

pub(crate) async fn what_was_recorded_survives_a_crash<B: Bench>(mut bench: B) {
    if !B::DURABLE {
        return;
    }
    let mut gateway = bench.open().await;
    let data_key = gateway.store.add_data_key("crm".into(), vec![wrap("a", "1")], START).await.unwrap();
    let done = gateway.forward(gateway.create("o-1")).await;
    gateway.finish(done.end(failed())).await;
    let done = gateway.forward(gateway.create("o-1")).await;
    gateway.finish(done.end(gateway.confirmed("i-1"))).await;
    let refused = gateway.forward(gateway.create("o-2")).await;
    gateway.finish(refused.end(gateway.refused())).await;
    let closed = gateway.forward(gateway.create("o-3")).await;
    gateway.finish(closed.end(unconfirmed())).await;
    gateway.resolve(closed.key(), Resolution::Failed { message: "不行".into() }).await.unwrap();
    let expired = gateway.forward(gateway.expire("i-1")).await;
    gateway.finish(expired.end(gateway.carried_out())).await;
    let renewed = gateway.forward(gateway.renew("o-4", "i-1")).await;
    gateway.finish(renewed.end(gateway.carried_out())).await;

    let all = async |gateway: &Gateway| {
        let records = gateway.list(Filter::default()).await;
        records.into_iter().map(|Record { cursor, entry, history }| (cursor, entry, history)).collect::<Vec<_>>()
    };
    let before = all(&gateway).await;
    assert_eq!(before.len(), 5);
    for _ in 0..2 {
        gateway = bench.crash(gateway).await;
        assert_eq!(all(&gateway).await, before);
        let keys = gateway.store.data_keys().await.unwrap();
        let key = keys.iter().find(|key| key.id == data_key).unwrap();
        assert_eq!((key.app.as_str(), &key.wraps), ("crm", &vec![wrap("a", "1")]));
    }
    assert_eq!(gateway.claim(gateway.create("o-1")).await.decision, Decision::Replay);
    assert_eq!(gateway.claim(gateway.create("o-3")).await.decision, Decision::Refuse);
    assert_eq!(gateway.forward(gateway.create("o-2")).await.entry.latest.number, 2);
    let next = gateway.forward(gateway.expire("i-1")).await;
    assert_eq!(next.entry.cycle, 1);
    let thief = gateway.forward(gateway.create("o-5")).await;
    assert_eq!(gateway.finish(thief.end(gateway.confirmed("i-1"))).await.0, Finished::InstanceReused);
}

pub(crate) async fn a_lost_lease_is_seen_by_readers<B: Bench>(mut bench: B) {
    if !B::SHARED {
        return;
    }
    let gateway = bench.open().await;
    let witness = bench.open().await;
    let call = gateway.forward(gateway.create("o-1")).await;
    assert_eq!(witness.look(call.key()).await.state, State::Running);
    let (old, end) = (gateway.name.clone(), call.end(gateway.confirmed("i-1")));
    let gateway = bench.crash(gateway).await;
    assert_ne!(gateway.name, old);
    assert_eq!(witness.look(call.key()).await.state, State::Unconfirmed);
    // Somebody was only slow: what the backend said is what counts.
    let (finished, entry) = gateway.finish(end).await;
    assert_eq!((finished, entry.state), (Finished::Recorded, State::Done));
    assert_eq!(witness.claim(witness.create("o-1")).await.decision, Decision::Replay);
}

/// Some deliveries in every state, oldest first, a second apart.
async fn archive(gateway: &Gateway) -> Vec<Entry> {
    let at = |number: i64, ask: Ask| Ask { now: after(number), ..ask };
    let mut keys = Vec::new();
    let running = gateway.forward(at(1, gateway.create("o-1"))).await;
    keys.push(running.key());
    let open = gateway.forward(at(2, gateway.create("o-2"))).await;
    gateway.finish(open.end(gateway.refused())).await;
    keys.push(open.key());
    let unsure =
        gateway.forward(at(3, about(gateway.create("o-3"), |subject| subject.user_id = Some("usr-2".into())))).await;
    gateway.finish(unsure.end(unconfirmed())).await;
    keys.push(unsure.key());
    let done = gateway.forward(at(4, gateway.create("o-4"))).await;
    gateway.finish(done.end(gateway.confirmed("i-4"))).await;
    keys.push(done.key());
    let closed = gateway.forward(at(5, about(gateway.create("o-5"), |subject| subject.app = "erp".into()))).await;
    gateway.finish(closed.end(failed())).await;
    gateway.resolve(closed.key(), Resolution::Failed { message: "no".into() }).await.unwrap();
    keys.push(closed.key());
    let renewed = gateway.forward(at(6, gateway.renew("o-4", "i-4"))).await;
    gateway.finish(renewed.end(gateway.carried_out())).await;
    gateway.store.answered(renewed.key(), State::Done, after(7)).await.unwrap();
    gateway.store.probe().await.unwrap();
    keys.push(renewed.key());
    let mut entries = Vec::new();
    for key in keys {
        entries.push(gateway.look(key).await);
    }
    entries
}

/// Which of `entries` fit, by their place.
async fn fitting(gateway: &Gateway, entries: &[Entry], filter: Filter) -> Vec<usize> {
    let found = gateway.list(filter.clone()).await;
    // A page asks in bounded time, and finds the same, in however small parts.
    let (mut browsed, mut cursor) = (Vec::new(), None);
    loop {
        let part = gateway.store.browse(filter.clone(), cursor, 1).await.unwrap();
        browsed.extend(part.records);
        cursor = part.next;
        if cursor.is_none() {
            break;
        }
    }
    let keys = |records: &[Record]| records.iter().map(|record| record.entry.key).collect::<Vec<_>>();
    assert_eq!(keys(&browsed), keys(&found), "{filter:?}");
    found.iter().map(|record| entries.iter().position(|entry| *entry == record.entry).unwrap()).collect()
}

pub(crate) async fn lists_filter<B: Bench>(mut bench: B) {
    let gateway = bench.open().await;
    let entries = archive(&gateway).await;
    let text = |text: &str| Some(text.to_owned());
    let none = Filter::default;
    let which = |which| Filter { which: Some(which), ..none() };
    let id = entries[2].key.idempotency_key();
    let cases = [
        (none(), vec![5, 4, 3, 2, 1, 0]),
        (Filter { id: Some(id.clone()), ..none() }, vec![2]),
        (Filter { id: Some(id[..12].to_owned()), ..none() }, vec![2]),
        (Filter { id: text(""), ..none() }, vec![5, 4, 3, 2, 1, 0]),
        (Filter { id: Some(format!("{id}0")), ..none() }, vec![]),
        (Filter { id: text("%"), ..none() }, vec![]),
        (Filter { app: text("crm"), ..none() }, vec![5, 3, 2, 1, 0]),
        (Filter { app: text("erp"), ..none() }, vec![4]),
        (Filter { app: text("CRM"), ..none() }, vec![]),
        (Filter { action: text("RenewAppInstance"), ..none() }, vec![5]),
        (Filter { order_id: text("o-4"), ..none() }, vec![5, 3]),
        (Filter { order_id: text("o-%"), ..none() }, vec![]),
        (Filter { instance_id: text("i-4"), ..none() }, vec![5, 3]),
        (Filter { user_id: text("usr-2"), ..none() }, vec![2]),
        (
            Filter { order_id: text("o-4"), instance_id: text("i-4"), action: text("CreateAppInstance"), ..none() },
            vec![3],
        ),
        (Filter { app: text("erp"), order_id: text("o-4"), ..none() }, vec![]),
        (which(Which::State(State::Running)), vec![0]),
        (which(Which::State(State::Open)), vec![1]),
        (which(Which::State(State::Unconfirmed)), vec![2]),
        (which(Which::State(State::Done)), vec![5, 3]),
        (which(Which::State(State::Closed)), vec![4]),
        (which(Which::Attempt(AttemptOutcome::Refused)), vec![1]),
        (which(Which::Attempt(AttemptOutcome::Failed)), vec![4]),
        (which(Which::Attempt(AttemptOutcome::Unconfirmed)), vec![2]),
        (which(Which::Attempt(AttemptOutcome::Confirmed)), vec![5, 3]),
        (which(Which::Attempt(AttemptOutcome::Duplicate)), vec![]),
        (which(Which::Unanswered), vec![3]),
        (Filter { app: text("erp"), ..which(Which::Unanswered) }, vec![]),
    ];
    for (filter, expected) in cases {
        assert_eq!(fitting(&gateway, &entries, filter.clone()).await, expected, "{filter:?}");
    }
    let recent = gateway.store.recent(entries[0].received_at, 100).await.unwrap();
    assert!(recent.iter().map(|brief| brief.state).eq(entries.iter().rev().map(|entry| entry.state)), "{recent:?}");
    assert_eq!(gateway.store.recent(entries[0].received_at, 2).await.unwrap(), recent[..2]);
    for entry in &entries {
        let at = entry.received_at;
        let since = gateway.list(Filter { since: Some(at), ..none() }).await;
        let until = gateway.list(Filter { until: Some(at), ..none() }).await;
        assert!(since.iter().all(|record| record.entry.received_at >= at));
        assert!(until.iter().all(|record| record.entry.received_at < at));
        assert!(since.iter().any(|record| record.entry == *entry));
        assert_eq!(since.len() + until.len(), entries.len());
    }
    if !B::OWN_CLOCK {
        let between = Filter { since: Some(after(2)), until: Some(after(4)), ..none() };
        assert_eq!(fitting(&gateway, &entries, between).await, [2, 1]);
    }
}

pub(crate) async fn lists_go_page_by_page<B: Bench>(mut bench: B) {
    let gateway = bench.open().await;
    let mut expected = Vec::new();
    for number in 0..25 {
        let app = if number % 5 == 0 { "erp" } else { "crm" };
        let call =
            gateway.forward(about(gateway.create(&format!("o-{number}")), |subject| subject.app = app.into())).await;
        gateway.finish(call.end(failed())).await;
        expected.insert(0, call.key());
    }
    // Later changes do not move a delivery.
    gateway.forward(gateway.create("o-3")).await;
    let pages = async |filter: Filter, limit: usize| {
        let (mut found, mut cursor) = (Vec::new(), None);
        loop {
            let page = gateway.store.list(filter.clone(), cursor, limit).await.unwrap();
            assert!(page.len() <= limit);
            let Some(last) = page.last() else { return found };
            cursor = Some(last.cursor);
            found.extend(page.iter().map(|record| record.entry.key));
        }
    };
    for limit in [1, 7, 25, 100] {
        assert_eq!(pages(Filter::default(), limit).await, expected);
    }
    let erp = Filter { app: Some("erp".into()), ..Filter::default() };
    let fitting: Vec<_> = expected.iter().copied().skip(4).step_by(5).collect();
    assert_eq!(pages(erp, 2).await, fitting);
    assert_eq!(gateway.store.list(Filter::default(), None, 0).await.unwrap().len(), 0);

    // What comes in between pages does not shift them.
    let first = gateway.store.list(Filter::default(), None, 5).await.unwrap();
    gateway.forward(gateway.create("another")).await;
    let second = gateway.store.list(Filter::default(), Some(first[4].cursor), 5).await.unwrap();
    assert_eq!(second.iter().map(|record| record.entry.key).collect::<Vec<_>>(), expected[5..10]);
}

pub(crate) async fn lists_show_every_attempt<B: Bench>(mut bench: B) {
    let gateway = bench.open().await;
    let mut attempts = Vec::new();
    for round in 0..12 {
        let call = gateway.forward(Ask { now: after(round), ..gateway.create("o-1") }).await;
        let ending = if round % 2 == 0 { failed() } else { unconfirmed() };
        let (_, entry) = gateway.finish(call.end_at(ending, after(round))).await;
        attempts.push(entry.latest);
        // Another delivery's attempts stay its own.
        let other = gateway.forward(gateway.create("o-2")).await;
        gateway.finish(other.end(failed())).await;
    }
    let record = gateway.record(gateway.create("o-1").base).await;
    assert_eq!(record.attempts().cloned().collect::<Vec<_>>(), attempts);
    assert_eq!(attempts.iter().map(|attempt| attempt.number).collect::<Vec<_>>(), (1..=12).collect::<Vec<_>>());
    let past = Filter {
        which: Some(Which::Attempt(AttemptOutcome::Unconfirmed)),
        order_id: Some("o-1".into()),
        ..Filter::default()
    };
    assert_eq!(gateway.list(past).await.len(), 1);
}

pub(crate) async fn the_operator_lets_it_be_forwarded<B: Bench>(mut bench: B) {
    let gateway = bench.open().await;
    let hold = || Ask { hold: true, ..gateway.create("o-1") };
    let call = gateway.forward(hold()).await;
    gateway.finish(call.end(unconfirmed())).await;
    assert_eq!(gateway.claim(hold()).await.decision, Decision::Hold);
    let entry = gateway.resolve(call.key(), Resolution::Retry).await.unwrap();
    assert_eq!((entry.state, entry.doubt), (State::Open, false));
    let decision = entry.decision.clone().unwrap();
    assert_eq!((decision.what.as_str(), decision.message), ("retry", None));
    assert_eq!(gateway.look(call.key()).await, entry);
    let second = gateway.forward(hold()).await;
    assert_eq!((second.entry.latest.number, second.entry.doubt), (2, false));
    assert_eq!(second.entry.decision, entry.decision);
    // Once.
    gateway.finish(second.end(unconfirmed())).await;
    assert_eq!(gateway.claim(hold()).await.decision, Decision::Hold);
}

pub(crate) async fn the_operator_knows_that_it_was_done<B: Bench>(mut bench: B) {
    let gateway = bench.open().await;
    for (order, ending) in [("o-1", unconfirmed()), ("o-2", failed()), ("o-3", gateway.refused())] {
        let instance = format!("instance of {order}");
        let call = gateway.forward(gateway.create(order)).await;
        gateway.finish(call.end(ending)).await;
        let entry = gateway.resolve(call.key(), gateway.done(&instance, false)).await.unwrap();
        assert_eq!((entry.state, entry.doubt), (State::Done, false));
        assert_eq!(entry.reply, Some(gateway.sealed(&format!("operator: {instance}"))));
        assert_eq!(entry.confirmation.as_ref().unwrap().instance_id.as_deref(), Some(&*instance));
        assert_eq!(entry.decision.as_ref().unwrap().what, "done");
        if !B::OWN_CLOCK {
            assert_eq!(entry.confirmation.as_ref().unwrap().at, after(500));
            assert_eq!(entry.decision.as_ref().unwrap().at, after(500));
        }
        assert_eq!(gateway.look(call.key()).await, entry);
        let copy = gateway.claim(gateway.create(order)).await;
        assert_eq!((copy.decision, copy.entry), (Decision::Replay, entry));
        // The instance is this order's from now on.
        let thief = gateway.forward(gateway.create(&format!("not {order}"))).await;
        let (finished, _) = gateway.finish(thief.end(gateway.confirmed(&instance))).await;
        assert_eq!(finished, Finished::InstanceReused);
        // And a late confirmation of the backend does not undo it.
        let (finished, late) = gateway.finish(call.end(gateway.confirmed(&format!("another of {order}")))).await;
        assert_eq!(finished, Finished::Duplicate);
        assert_eq!(late.confirmation.unwrap().instance_id, Some(instance.into()));
    }
}

pub(crate) async fn the_operator_knows_that_it_failed<B: Bench>(mut bench: B) {
    let gateway = bench.open().await;
    let call = gateway.forward(gateway.create("o-1")).await;
    gateway.finish(call.end(unconfirmed())).await;
    let message = "Ваш заказ отменён 套";
    let entry = gateway.resolve(call.key(), Resolution::Failed { message: message.into() }).await.unwrap();
    assert_eq!(entry.state, State::Closed);
    let decision = entry.decision.clone().unwrap();
    assert_eq!((decision.what.as_str(), decision.message.as_deref()), ("failed", Some(message)));
    let copy = gateway.claim(gateway.create("o-1")).await;
    assert_eq!((copy.decision, copy.entry), (Decision::Refuse, entry.clone()));
    // Late news of the attempt is kept, and changes nothing.
    for ending in [failed(), unconfirmed(), gateway.refused()] {
        assert_eq!(gateway.finish(call.end(ending)).await.1.state, State::Closed);
    }
    // Decisions can be taken back.
    let entry = gateway.resolve(call.key(), Resolution::Retry).await.unwrap();
    assert_eq!((entry.state, entry.decision.unwrap().message), (State::Open, None));
    gateway.resolve(call.key(), Resolution::Failed { message: message.into() }).await.unwrap();
    // But what the backend did, it did.
    let (finished, entry) = gateway.finish(call.end(gateway.confirmed("i-1"))).await;
    assert_eq!((finished, entry.state), (Finished::Recorded, State::Done));
    assert_eq!(gateway.claim(gateway.create("o-1")).await.decision, Decision::Replay);
}

pub(crate) async fn the_operator_cannot_decide_everything<B: Bench>(mut bench: B) {
    let gateway = bench.open().await;
    let decisions = || [Resolution::Retry, gateway.done("i-9", false), Resolution::Failed { message: "no".into() }];
    for resolution in decisions() {
        assert!(gateway.store.resolve(key(&["unknown"]), resolution.into(), START).await.unwrap().is_none());
    }
    let call = gateway.forward(gateway.create("o-1")).await;
    for resolution in decisions() {
        assert_eq!(gateway.resolve(call.key(), resolution).await, Err(Unresolvable::Running));
    }
    assert_eq!(gateway.look(call.key()).await, call.entry);
    let (_, done) = gateway.finish(call.end(gateway.confirmed("i-1"))).await;
    for resolution in decisions() {
        assert_eq!(gateway.resolve(call.key(), resolution).await, Err(Unresolvable::Done));
    }
    assert_eq!(gateway.look(call.key()).await, done);
    let other = gateway.forward(gateway.create("o-2")).await;
    let (_, unsure) = gateway.finish(other.end(unconfirmed())).await;
    let resolved = gateway.resolve(other.key(), gateway.done("i-1", false)).await;
    assert_eq!(resolved, Err(Unresolvable::InstanceReused));
    assert_eq!(gateway.look(other.key()).await, unsure);
}

/// What waits for the platform, by the list and by the gauge.
async fn unanswered(gateway: &Gateway) -> (Vec<DeliveryKey>, i64) {
    // What was told, and nobody waited for, is written by now.
    gateway.store.probe().await.unwrap();
    let listed = gateway.list(Filter { which: Some(Which::Unanswered), ..Filter::default() }).await;
    let counted = gateway.store.counts().await.unwrap().iter().map(|app| app.unanswered).sum();
    (listed.iter().map(|record| record.entry.key).collect(), counted)
}

/// A delivery that the operator closed, and the platform was told so.
async fn refused_for_good(gateway: &Gateway, ask: Ask) -> Call {
    let call = gateway.forward(ask).await;
    gateway.finish(call.end(unconfirmed())).await;
    gateway.resolve(call.key(), Resolution::Failed { message: "no".into() }).await.unwrap();
    gateway.store.answered(call.key(), State::Closed, after(600)).await.unwrap();
    assert_eq!(unanswered(gateway).await, (vec![], 0));
    assert!(gateway.look(call.key()).await.answered_at.is_some());
    call
}

/// The platform has heard no, and not that it was done after all.
pub(crate) async fn what_was_closed_and_is_not_any_more_is_unanswered<B: Bench>(mut bench: B) {
    let gateway = bench.open().await;
    for order in ["done", "retried", "late"] {
        let call = refused_for_good(&gateway, gateway.create(order)).await;
        let instance = format!("instance of {order}");
        let entry = match order {
            "done" => gateway.resolve(call.key(), gateway.done(&instance, false)).await.unwrap(),
            "retried" => {
                let entry = gateway.resolve(call.key(), Resolution::Retry).await.unwrap();
                assert_eq!((entry.state, entry.answered_at), (State::Open, None));
                assert_eq!(gateway.look(call.key()).await, entry);
                let second = gateway.forward(gateway.create(order)).await;
                assert_eq!((second.key(), second.entry.latest.number), (call.key(), 2));
                gateway.finish(second.end(gateway.confirmed(&instance))).await.1
            }
            _ => gateway.finish(call.end(gateway.confirmed(&instance))).await.1,
        };
        assert_eq!((entry.state, entry.answered_at), (State::Done, None), "{order}");
        assert_eq!(gateway.look(call.key()).await, entry, "{order}");
        assert_eq!(unanswered(&gateway).await, (vec![call.key()], 1), "{order}");
        gateway.store.answered(call.key(), State::Done, after(700)).await.unwrap();
        assert_eq!(unanswered(&gateway).await, (vec![], 0), "{order}");
    }
}

/// An answer may be noted late, when the delivery is no longer what the platform was told.
pub(crate) async fn an_answer_counts_for_what_it_told<B: Bench>(mut bench: B) {
    let gateway = bench.open().await;
    let told_no = async |call: &Call| gateway.store.answered(call.key(), State::Closed, after(600)).await.unwrap();
    let call = gateway.forward(gateway.create("o-1")).await;
    gateway.finish(call.end(unconfirmed())).await;
    gateway.resolve(call.key(), Resolution::Failed { message: "no".into() }).await.unwrap();
    gateway.resolve(call.key(), Resolution::Retry).await.unwrap();
    let second = gateway.forward(gateway.create("o-1")).await;
    told_no(&call).await;
    gateway.store.probe().await.unwrap();
    assert_eq!(gateway.look(call.key()).await, second.entry);
    gateway.finish(second.end(gateway.confirmed("i-1"))).await;
    told_no(&call).await;
    assert_eq!(unanswered(&gateway).await, (vec![call.key()], 1));
    gateway.store.answered(call.key(), State::Done, after(700)).await.unwrap();
    assert_eq!(unanswered(&gateway).await, (vec![], 0));
}

pub(crate) async fn the_operator_replaces_a_lost_reply<B: Bench>(mut bench: B) {
    let gateway = bench.open().await;
    let call = gateway.forward(gateway.create("o-1")).await;
    let (_, done) = gateway.finish(call.end(gateway.confirmed("i-1"))).await;
    let entry = gateway.resolve(call.key(), gateway.done("i-1", true)).await.unwrap();
    assert_eq!(entry.state, State::Done);
    assert_eq!(entry.reply, Some(gateway.sealed("operator: i-1")));
    assert_eq!(entry.confirmation.as_ref().unwrap().instance_id, done.confirmation.unwrap().instance_id);
    assert_eq!(gateway.look(call.key()).await, entry);
    let copy = gateway.claim(gateway.create("o-1")).await;
    assert_eq!((copy.decision, copy.entry), (Decision::Replay, entry));
}

pub(crate) async fn counts_what_waits<B: Bench>(mut bench: B) {
    let gateway = bench.open().await;
    // An app for which nothing waits may be named or not.
    let counts = async || {
        let mut counts = gateway.store.counts().await.unwrap();
        counts.retain(|app| app.unconfirmed != 0 || app.unanswered != 0);
        counts.sort_by(|a, b| a.app.cmp(&b.app));
        counts
    };
    let app = |app: &str, unconfirmed, unanswered| Counts { app: app.into(), unconfirmed, unanswered };
    assert_eq!(counts().await, []);
    let entries = archive(&gateway).await;
    assert_eq!(counts().await, [app("crm", 1, 1)]);
    let elsewhere = gateway.forward(about(gateway.create("o-6"), |subject| subject.app = "erp".into())).await;
    gateway.finish(elsewhere.end(gateway.confirmed("i-6"))).await;
    assert_eq!(counts().await, [app("crm", 1, 1), app("erp", 0, 1)]);
    gateway.store.answered(entries[3].key, State::Done, after(9)).await.unwrap();
    gateway.resolve(entries[2].key, gateway.done("i-3", false)).await.unwrap();
    gateway.store.answered(elsewhere.key(), State::Done, after(9)).await.unwrap();
    gateway.store.probe().await.unwrap();
    assert_eq!(counts().await, [app("crm", 0, 1)]);
    gateway.store.answered(entries[2].key, State::Done, after(9)).await.unwrap();
    gateway.store.probe().await.unwrap();
    assert_eq!(counts().await, []);
}

/// Before everything here, and after everything here, by any clock.
const PAST: Timestamp = Timestamp::constant(0, 0);
const FUTURE: Timestamp = Timestamp::constant(7_258_118_400, 0);
const NOTHING: Retention =
    Retention { now: START, replies_before: PAST, history_before: PAST, wraps_before: PAST, batch: 100 };

pub(crate) async fn old_replies_are_removed<B: Bench>(mut bench: B) {
    let gateway = bench.open().await;
    let entries = archive(&gateway).await;
    assert_eq!(gateway.store.prune(NOTHING).await.unwrap(), Pruned::default());
    let pruned = gateway.store.prune(Retention { replies_before: FUTURE, ..NOTHING }).await.unwrap();
    assert_eq!(pruned, Pruned { replies: 3, ..Pruned::default() });
    for entry in &entries {
        // All but the reply stays: success and the instance id can still be told.
        assert_eq!(gateway.look(entry.key).await, Entry { reply: None, ..entry.clone() });
    }
    assert_eq!(gateway.claim(gateway.create("o-4")).await.decision, Decision::Replay);
    // The operator can give it another one.
    let entry = gateway.resolve(entries[3].key, gateway.done("i-4", true)).await.unwrap();
    assert_eq!(entry.reply, Some(gateway.sealed("operator: i-4")));
    if !B::OWN_CLOCK {
        let call = gateway.forward(gateway.create("o-8")).await;
        gateway.finish(call.end_at(gateway.confirmed("i-8"), after(600))).await;
        let bound = |seconds| Retention { replies_before: after(seconds), ..NOTHING };
        assert_eq!(gateway.store.prune(bound(600)).await.unwrap().replies, 1, "the operator's");
        assert_eq!(gateway.store.prune(bound(600)).await.unwrap().replies, 0);
        assert_eq!(gateway.store.prune(bound(601)).await.unwrap().replies, 1);
    }
}

pub(crate) async fn old_deliveries_are_removed<B: Bench>(mut bench: B) {
    let gateway = bench.open().await;
    if !B::OWN_CLOCK {
        let calls = [10, 20].map(|number| (number, format!("o-{number}")));
        for (number, order) in &calls {
            let call = gateway.forward(Ask { now: after(*number), ..gateway.create(order) }).await;
            gateway.finish(call.end_at(failed(), after(*number))).await;
        }
        let bound = |seconds| Retention { history_before: after(seconds), ..NOTHING };
        assert_eq!(gateway.store.prune(bound(10)).await.unwrap().deliveries, 0);
        assert_eq!(gateway.store.prune(bound(20)).await.unwrap().deliveries, 1);
        assert_eq!(gateway.store.look(gateway.create("o-10").base).await.unwrap(), None);
        assert_eq!(gateway.look(gateway.create("o-20").base).await.state, State::Open);
        assert_eq!(gateway.store.prune(bound(21)).await.unwrap().deliveries, 1);
    }
    let call = gateway.forward(gateway.create("o-1")).await;
    gateway.finish(call.end(failed())).await;
    let call = gateway.forward(gateway.create("o-1")).await;
    gateway.finish(call.end(gateway.confirmed("i-1"))).await;
    let pruned = gateway.store.prune(Retention { history_before: FUTURE, ..NOTHING }).await.unwrap();
    assert_eq!(pruned.deliveries, 1);
    assert_eq!(gateway.store.look(call.key()).await.unwrap(), None);
    assert_eq!(gateway.list(Filter::default()).await.len(), 0);
    // It comes back as something new, without a past.
    let anew = gateway.forward(gateway.create("o-1")).await;
    assert_eq!((anew.key(), anew.entry.latest.number), (call.key(), 1));
    gateway.finish(anew.end(failed())).await;
    let second = gateway.forward(gateway.create("o-1")).await;
    assert_eq!(gateway.record(call.key()).await.history.len(), 1);
    assert_eq!(second.entry.latest.number, 2);
}

pub(crate) async fn old_ones_are_removed_in_batches<B: Bench>(mut bench: B) {
    let gateway = bench.open().await;
    for number in 0..7 {
        let call = gateway.forward(gateway.create(&format!("o-{number}"))).await;
        gateway.finish(call.end(gateway.confirmed(&format!("i-{number}")))).await;
    }
    let mut removed = Vec::new();
    loop {
        let retention = Retention { replies_before: FUTURE, batch: 3, ..NOTHING };
        let pruned = gateway.store.prune(retention).await.unwrap();
        removed.push(pruned.replies);
        if !pruned.is_full(3) {
            break;
        }
    }
    assert_eq!(removed, [3, 3, 1]);
    let (mut deliveries, mut instances) = (Vec::new(), 0);
    loop {
        let pruned = gateway.store.prune(Retention { history_before: FUTURE, batch: 3, ..NOTHING }).await.unwrap();
        deliveries.push(pruned.deliveries);
        instances += pruned.instances;
        assert!(deliveries.len() < 10, "it comes to an end");
        if !pruned.is_full(3) {
            break;
        }
    }
    assert_eq!(deliveries.iter().sum::<usize>(), 7);
    assert!(deliveries.iter().all(|deliveries| *deliveries <= 3), "{deliveries:?}");
    assert_eq!(instances, 7);
}

pub(crate) async fn running_ones_are_never_removed<B: Bench>(mut bench: B) {
    let gateway = bench.open().await;
    let refused = gateway.forward(gateway.create("o-1")).await;
    gateway.finish(refused.end(gateway.refused())).await;
    let call = gateway.forward(gateway.create("o-1")).await;
    let all = Retention { replies_before: FUTURE, history_before: FUTURE, wraps_before: FUTURE, ..NOTHING };
    gateway.store.prune(all).await.unwrap();
    assert_eq!(gateway.look(call.key()).await, call.entry);
    assert_eq!(gateway.record(call.key()).await.history.len(), 1);
    let (finished, entry) = gateway.finish(call.end(gateway.confirmed("i-1"))).await;
    assert_eq!((finished, entry.latest.number), (Finished::Recorded, 2));
}

pub(crate) async fn old_instances_and_cycles_are_removed<B: Bench>(mut bench: B) {
    let gateway = bench.open().await;
    let call = gateway.forward(gateway.create("o-1")).await;
    gateway.finish(call.end(gateway.confirmed("i-1"))).await;
    let renewal = gateway.forward(gateway.renew("o-2", "i-1")).await;
    gateway.finish(renewal.end(gateway.carried_out())).await;
    assert_eq!(gateway.store.prune(NOTHING).await.unwrap(), Pruned::default());
    let pruned = gateway.store.prune(Retention { history_before: FUTURE, ..NOTHING }).await.unwrap();
    assert_eq!((pruned.deliveries, pruned.instances), (2, 2));
    assert_eq!(gateway.forward(gateway.expire("i-1")).await.entry.cycle, 0);
    let other = gateway.forward(gateway.create("o-3")).await;
    assert_eq!(gateway.finish(other.end(gateway.confirmed("i-1"))).await.0, Finished::Recorded);
}

fn wrap(wrapper: &str, bytes: &str) -> Wrap {
    Wrap { wrapper: wrapper.into(), bytes: bytes.into() }
}

/// The wraps of a data key, in the order of their names.
async fn wraps(gateway: &Gateway, id: i64) -> Vec<Wrap> {
    let keys = gateway.store.data_keys().await.unwrap();
    let mut wraps = keys.into_iter().find(|key| key.id == id).unwrap().wraps;
    wraps.sort_by(|a, b| a.wrapper.cmp(&b.wrapper));
    wraps
}

pub(crate) async fn data_keys_are_kept<B: Bench>(mut bench: B) {
    let gateway = bench.open().await;
    let before = gateway.store.data_keys().await.unwrap();
    let add = async |app: &str, wraps| gateway.store.add_data_key(app.into(), wraps, START).await.unwrap();
    let first = add("crm", vec![wrap("a", "1"), wrap("b", "2")]).await;
    let second = add("erp", vec![wrap("a", "3")]).await;
    let third = add("crm", vec![]).await;
    let keys = gateway.store.data_keys().await.unwrap();
    let ids: Vec<_> = keys.iter().map(|key| (key.id, key.app.as_str())).collect();
    assert_eq!(ids[before.len()..], [(first, "crm"), (second, "erp"), (third, "crm")]);
    assert_eq!(keys.iter().map(|key| key.id).collect::<BTreeSet<_>>().len(), keys.len());
    assert_eq!(wraps(&gateway, first).await, [wrap("a", "1"), wrap("b", "2")]);

    // One more, one anew, one as it was.
    gateway.store.put_wraps(first, vec![wrap("c", "5"), wrap("b", "4")], after(5)).await.unwrap();
    assert_eq!(wraps(&gateway, first).await, [wrap("a", "1"), wrap("b", "4"), wrap("c", "5")]);
    assert_eq!(wraps(&gateway, second).await, [wrap("a", "3")]);
    assert_eq!(wraps(&gateway, third).await, []);
    let binary = Wrap { wrapper: vec![0, 255, 39], bytes: (0..=255).collect() };
    gateway.store.put_wraps(third, vec![binary.clone()], after(5)).await.unwrap();
    gateway.store.put_wraps(third, vec![], after(6)).await.unwrap();
    assert_eq!(wraps(&gateway, third).await, [binary]);
}

pub(crate) async fn unused_wraps_are_removed<B: Bench>(mut bench: B) {
    let gateway = bench.open().await;
    let old = gateway.store.add_data_key("crm".into(), vec![wrap("a", "1"), wrap("b", "2")], START).await.unwrap();
    let kept = gateway.store.add_data_key("crm".into(), vec![wrap("a", "1")], START).await.unwrap();
    gateway.store.put_wraps(old, vec![wrap("b", "2"), wrap("c", "3")], after(10)).await.unwrap();
    let before = |time| Retention { wraps_before: time, ..NOTHING };
    // Without a later one a wrap stays, however old it is: nothing else opens the data key.
    gateway.store.prune(before(FUTURE)).await.unwrap();
    assert_eq!(wraps(&gateway, old).await.len(), 3);
    if B::OWN_CLOCK {
        return;
    }
    gateway.store.prune(before(START)).await.unwrap();
    assert_eq!(wraps(&gateway, old).await.len(), 3);
    gateway.store.prune(before(after(10))).await.unwrap();
    assert_eq!(wraps(&gateway, old).await, [wrap("b", "2"), wrap("c", "3")]);
    assert_eq!(wraps(&gateway, kept).await, [wrap("a", "1")]);
}

pub(crate) async fn lookalikes_share_a_delivery_until_it_is_answered<B: Bench>(mut bench: B) {
    let gateway = bench.open().await;
    // Each copy has a signature, and so a key, of its own.
    let copy = |signature: &str| {
        about(Ask { base: key(&["signature", signature]), ..gateway.renew("", "i-1") }, |subject| {
            subject.order_id = None;
            subject.lookalike = Some(lookalike(&["i-1", "1_year"]));
            subject.fingerprint = content(&["i-1", "1_year"]);
        })
    };
    let first = gateway.forward(copy("1")).await;
    let joined = gateway.claim(copy("2")).await;
    assert_eq!((joined.decision, joined.entry), (Decision::Join, first.entry.clone()));
    gateway.finish(first.end(unconfirmed())).await;
    let second = gateway.forward(copy("3")).await;
    assert_eq!((second.key(), second.entry.latest.number), (first.key(), 2));
    let (_, done) = gateway.finish(second.end(gateway.carried_out())).await;
    let replayed = gateway.claim(copy("4")).await;
    assert_eq!((replayed.decision, replayed.entry), (Decision::Replay, done));
    gateway.store.answered(first.key(), State::Done, after(9)).await.unwrap();

    let genuine = gateway.forward(copy("5")).await;
    assert_ne!(genuine.key(), first.key());
    assert_eq!(genuine.entry.latest.number, 1);
    assert_eq!(gateway.claim(copy("6")).await.entry.key, genuine.key());
    // A copy to the byte is still the answered one.
    for byte_identical in ["1", "2", "3", "4"] {
        let replayed = gateway.claim(copy(byte_identical)).await;
        assert_eq!((replayed.decision, replayed.entry.key), (Decision::Replay, first.key()), "{byte_identical}");
    }
    // Others are others, and without the app's wish nothing is shared.
    let other = about(copy("7"), |subject| {
        subject.lookalike = Some(lookalike(&["i-2"]));
        subject.fingerprint = content(&["i-2"]);
    });
    assert_eq!(gateway.forward(other).await.entry.latest.number, 1);
    assert_eq!(gateway.forward(about(copy("8"), |subject| subject.lookalike = None)).await.entry.latest.number, 1);
}

pub(crate) async fn lookalikes_share_the_instance_that_one_of_them_made<B: Bench>(mut bench: B) {
    let gateway = bench.open().await;
    let copy = |number: u8| {
        about(Ask { base: key(&["signature", &number.to_string()]), ..gateway.create("") }, |subject| {
            subject.origin = Origin::from_slice(&[number; 32]).unwrap();
            subject.order_id = None;
            subject.lookalike = Some(lookalike(&["alike"]));
            subject.fingerprint = content(&["alike"]);
        })
    };
    let first = gateway.forward(copy(1)).await;
    gateway.finish(first.end(unconfirmed())).await;
    let second = gateway.forward(copy(2)).await;
    assert_eq!(gateway.finish(first.end(gateway.confirmed("i-1"))).await.0, Finished::Recorded);
    assert_eq!(gateway.finish(second.end(gateway.confirmed("i-1"))).await.0, Finished::AlreadyDone);
    let latest = gateway.record(first.key()).await.entry.latest;
    assert_eq!((latest.number, latest.ended.unwrap().outcome), (2, AttemptOutcome::Confirmed));
}

/// A purchase without a number, whose copies are recognised by what they look like.
fn alike(gateway: &Gateway, looks: &str, copy: u8) -> Ask {
    let signature = key(&["signature", looks, &copy.to_string()]);
    about(Ask { base: signature, ..gateway.create("") }, |subject| {
        subject.origin = Origin::from_slice(signature.as_bytes()).unwrap();
        subject.order_id = None;
        subject.lookalike = Some(lookalike(&[looks]));
        subject.fingerprint = content(&[looks]);
    })
}

pub(crate) async fn lookalikes_find_what_the_operator_opens_again<B: Bench>(mut bench: B) {
    let gateway = bench.open().await;
    let first = refused_for_good(&gateway, alike(&gateway, "a", 1)).await;
    let entry = gateway.resolve(first.key(), Resolution::Retry).await.unwrap();
    assert_eq!(entry.subject, first.entry.subject);
    let second = gateway.forward(alike(&gateway, "a", 2)).await;
    assert_eq!((second.key(), second.entry.latest.number), (first.key(), 2));
    let done = refused_for_good(&gateway, alike(&gateway, "b", 1)).await;
    gateway.resolve(done.key(), gateway.done("i-1", false)).await.unwrap();
    let replayed = gateway.claim(alike(&gateway, "b", 2)).await;
    assert_eq!((replayed.decision, replayed.entry.key), (Decision::Replay, done.key()));
}

/// Told that the first one failed, the platform has come with another. Whose the next copies are,
/// nobody can tell but by their keys.
pub(crate) async fn what_is_opened_again_leaves_lookalikes_to_a_later_purchase<B: Bench>(mut bench: B) {
    let gateway = bench.open().await;
    for way in ["retry", "done", "late"] {
        let copy = |number: u8| alike(&gateway, way, number);
        let call = gateway.forward(copy(1)).await;
        let earlier = call.key();
        gateway.finish(call.end(unconfirmed())).await;
        gateway.resolve(earlier, Resolution::Failed { message: "no".into() }).await.unwrap();
        gateway.store.answered(earlier, State::Closed, after(600)).await.unwrap();
        let later = gateway.forward(copy(2)).await;
        assert_ne!(later.key(), earlier, "{way}");
        let entry = match way {
            "retry" => gateway.resolve(earlier, Resolution::Retry).await.unwrap(),
            "done" => gateway.resolve(earlier, gateway.done(way, false)).await.unwrap(),
            _ => gateway.finish(call.end(gateway.confirmed(way))).await.1,
        };
        assert_eq!((entry.subject.lookalike, entry.answered_at), (None, None), "{way}");
        assert_eq!(gateway.look(earlier).await, entry, "{way}");
        let joined = gateway.claim(copy(3)).await;
        assert_eq!((joined.decision, joined.entry.key), (Decision::Join, later.key()), "{way}");
        let same = gateway.claim(copy(1)).await;
        let decision = if way == "retry" { Decision::Forward } else { Decision::Replay };
        assert_eq!((same.decision, same.entry.key), (decision, earlier), "{way}");
        // And for good: it may be answered long after the later one.
        gateway.finish(later.end(gateway.confirmed(&format!("later than {way}")))).await;
        gateway.store.answered(later.key(), State::Done, after(700)).await.unwrap();
        assert_ne!(gateway.forward(copy(4)).await.key(), earlier, "{way}");
    }
}

pub(crate) async fn a_renewal_begins_a_new_cycle<B: Bench>(mut bench: B) {
    let gateway = bench.open().await;
    let first = gateway.forward(gateway.expire("i-1")).await;
    let (_, done) = gateway.finish(first.end(gateway.carried_out())).await;
    assert_eq!((done.cycle, done.state), (0, State::Done));
    assert_eq!(gateway.claim(gateway.expire("i-1")).await.decision, Decision::Replay);
    // Of another instance, and of an instance of this name in another app.
    gateway.forward(gateway.renew("o-1", "i-2")).await;
    gateway
        .forward(about(Ask { base: key(&["erp"]), ..gateway.renew("o-1", "i-1") }, |subject| {
            subject.app = "erp".into();
        }))
        .await;
    assert_eq!(gateway.claim(gateway.expire("i-1")).await.decision, Decision::Replay);

    let renewal = gateway.forward(gateway.renew("o-2", "i-1")).await;
    assert_eq!(renewal.entry.cycle, 0);
    // Copies that are not forwarded begin nothing.
    assert_eq!(gateway.claim(gateway.renew("o-2", "i-1")).await.decision, Decision::Join);
    let conflicting = about(gateway.renew("o-2", "i-1"), |subject| subject.fingerprint = content(&["other"]));
    assert_eq!(gateway.claim(conflicting).await.decision, Decision::Conflict);
    let second = gateway.forward(gateway.expire("i-1")).await;
    assert_eq!((second.entry.cycle, second.entry.latest.number), (1, 1));
    assert_ne!(second.key().idempotency_key(), first.key().idempotency_key());
    assert_eq!(gateway.claim(gateway.expire("i-1")).await.decision, Decision::Join);

    // Whatever its outcome: it was forwarded, and forwarded again.
    gateway.finish(renewal.end(failed())).await;
    gateway.forward(gateway.renew("o-2", "i-1")).await;
    assert_eq!(gateway.forward(gateway.expire("i-1")).await.entry.cycle, 2);
    let delete = about(Ask { base: key(&["delete"]), ..gateway.expire("i-1") }, |subject| {
        subject.action = "DeleteAppInstance".into();
    });
    assert_eq!(gateway.forward(delete).await.entry.cycle, 2);
}

pub(crate) async fn a_late_end_closes_its_own_cycle<B: Bench>(mut bench: B) {
    let gateway = bench.open().await;
    let first = gateway.forward(gateway.expire("i-1")).await;
    gateway.forward(gateway.renew("o-1", "i-1")).await;
    let (finished, entry) = gateway.finish(first.end(gateway.carried_out())).await;
    assert_eq!((finished, entry.cycle, entry.state), (Finished::Recorded, 0, State::Done));
    let second = gateway.forward(gateway.expire("i-1")).await;
    assert_eq!(second.entry.cycle, 1);
    gateway.finish(first.end(gateway.carried_out())).await;
    assert_eq!(gateway.look(second.key()).await.state, State::Running);
    assert_eq!(gateway.look(first.key()).await.state, State::Done);
}

pub(crate) async fn an_expiry_is_replayed_for_a_while<B: Bench>(mut bench: B) {
    let gateway = bench.open().await;
    let first = gateway.forward(gateway.expire("i-1")).await;
    gateway.finish(first.end(gateway.carried_out())).await;
    let at_once = || Ask {
        // Less than nothing: over by any clock.
        lifecycle: Lifecycle::Ends { replay_for: SignedDuration::from_secs(-1) },
        now: after(1),
        ..gateway.expire("i-1")
    };
    assert_eq!(gateway.claim(Ask { now: after(1), ..gateway.expire("i-1") }).await.decision, Decision::Replay);
    let second = gateway.forward(at_once()).await;
    assert_eq!((second.entry.cycle, second.entry.latest.number), (1, 1));
    assert_ne!(second.key(), first.key());
    assert_eq!(gateway.claim(at_once()).await.decision, Decision::Join, "it runs, whatever was before");
    gateway.finish(second.end(failed())).await;
    let again = gateway.forward(at_once()).await;
    assert_eq!((again.key(), again.entry.latest.number), (second.key(), 2), "only a confirmation ends a cycle");
    gateway.finish(again.end(gateway.carried_out())).await;
    assert_eq!(gateway.forward(at_once()).await.entry.cycle, 2);
    assert_eq!(gateway.look(first.key()).await.state, State::Done);
}

pub(crate) async fn an_expiry_without_an_instance_has_no_cycles<B: Bench>(mut bench: B) {
    let gateway = bench.open().await;
    let nameless = |number: &str| {
        about(
            Ask {
                lifecycle: Lifecycle::Ends { replay_for: SignedDuration::from_secs(-1) },
                now: after(1),
                ..gateway.expire(number)
            },
            |subject| subject.instance_id = None,
        )
    };
    for number in ["1", "2"] {
        let call = gateway.forward(nameless(number)).await;
        gateway.finish(call.end(gateway.carried_out())).await;
        let copy = gateway.claim(nameless(number)).await;
        assert_eq!((copy.decision, copy.entry.key), (Decision::Replay, call.key()));
    }
    assert_eq!(gateway.claim(nameless("1")).await.decision, Decision::Replay);
}

pub(crate) async fn the_clock_may_step<B: Bench>(mut bench: B) {
    if B::OWN_CLOCK {
        return;
    }
    let gateway = bench.open().await;
    let first = gateway.forward(Ask { now: after(10_000), ..gateway.expire("i-1") }).await;
    let (_, done) = gateway.finish(first.end_at(gateway.carried_out(), after(9_000))).await;
    assert_eq!(done.confirmation.unwrap().at, after(9_000));
    for seconds in [0, 9_000, 9_000 + 3_600] {
        let copy = gateway.claim(Ask { now: after(seconds), ..gateway.expire("i-1") }).await;
        assert_eq!(copy.decision, Decision::Replay, "after {seconds} s");
    }
    let second = gateway.forward(Ask { now: after(9_000 + 3_601), ..gateway.expire("i-1") }).await;
    assert_eq!(second.entry.cycle, 1);
    // An order is the same order at any time.
    let call = gateway.forward(Ask { now: after(50), ..gateway.create("o-1") }).await;
    gateway.finish(call.end_at(gateway.confirmed("i-9"), after(-7_200))).await;
    for seconds in [-100_000, 0, 100_000_000] {
        let copy = gateway.claim(Ask { now: after(seconds), ..gateway.create("o-1") }).await;
        assert_eq!(copy.decision, Decision::Replay);
    }
}
