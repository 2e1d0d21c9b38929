//! Every situation of a delivery against everything that can happen to it, as one table, and
//! what the table has no room for.

use std::fmt::Write as _;
use std::sync::Arc;

use jiff::SignedDuration;

use super::*;
use crate::journal::entry::{Claimant, Subject};
use crate::journal::key::{Extras, Fingerprint, Origin};

const REPLAY_FOR: SignedDuration = SignedDuration::from_hours(1);

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_793_491_200 + seconds).unwrap()
}

fn key(number: u8) -> DeliveryKey {
    DeliveryKey::from_slice(&[number; 32]).unwrap()
}

/// The `number`-th request for the delivery that all tests are about.
fn ask(number: i64) -> Ask {
    Ask {
        base: key(1),
        subject: Arc::new(Subject {
            origin: Origin::from_slice(&[2; 32]).unwrap(),
            lookalike: None,
            fingerprint: Fingerprint::from_slice(&[3; 32]).unwrap(),
            extras: Extras::from_slice(&[4; 32]).unwrap(),
            app: "crm".into(),
            action: "CreateAppInstance".into(),
            debug: false,
            order_id: Some("o-1".into()),
            instance_id: None,
            user_id: Some("usr-1".into()),
        }),
        lifecycle: Lifecycle::None,
        hold: false,
        instance_must_be_new: true,
        claimant: Claimant { gateway: "gateway".into(), number },
        request_id: format!("request-{number}").into(),
        now: at(number),
    }
}

/// With another fingerprint.
fn other_content(ask: &mut Ask) {
    Arc::make_mut(&mut ask.subject).fingerprint = Fingerprint::from_slice(&[9; 32]).unwrap();
}

/// The same request about something else.
fn about(mut ask: Ask, change: impl FnOnce(&mut Subject)) -> Ask {
    change(Arc::make_mut(&mut ask.subject));
    ask
}

fn sealed(text: &str) -> Sealed {
    Sealed { data_key: 1, bytes: text.into() }
}

fn confirmed(instance: &str) -> Ending {
    Ending::Confirmed { instance_id: Some(instance.into()), reply: sealed(instance) }
}

fn refused() -> Ending {
    Ending::Refused { reply: sealed("no") }
}

fn failed() -> Ending {
    Ending::Failed(Reason { code: "backend_unreachable".into(), ..Reason::default() })
}

fn unconfirmed() -> Ending {
    Ending::Unconfirmed(Reason { code: "backend_timeout".into(), ..Reason::default() })
}

fn done(instance: &str, lost_reply: bool) -> Resolution {
    Resolution::Done { instance_id: Some(instance.into()), reply: sealed("operator"), lost_reply }
}

fn failed_for_good() -> Resolution {
    Resolution::Failed { message: "sold out".into() }
}

/// The end of the attempt that request `number` made.
fn end(number: u32, ending: Ending) -> End {
    End {
        ask: Arc::new(ask(number.into())),
        key: key(1),
        cycle: 0,
        attempt: number,
        began_at: at(number.into()),
        ending,
        now: at(i64::from(number) + 50),
    }
}

/// A delivery with all its attempts: what a store would keep.
#[derive(Clone, Debug, Default)]
struct Kept {
    entry: Option<Entry>,
    history: Vec<Attempt>,
}

impl Kept {
    fn write(&mut self, entry: &Entry, change: Change) {
        if change.entry {
            self.entry = Some(entry.clone());
        }
        if let Some(attempt) = change.history {
            self.history.retain(|known| known.number != attempt.number);
            self.history.push(attempt);
            self.history.sort_by_key(|attempt| attempt.number);
        }
    }

    fn claim(&mut self, lapsed: bool, ask: &Ask) -> (Decision, Entry, Change) {
        let Step::Decided(claimed, change) = claim(self.entry.clone(), lapsed, ask, key(1), 0) else {
            panic!("no lifecycle, no cycles")
        };
        self.write(&claimed.entry, change.clone());
        (claimed.decision, Arc::unwrap_or_clone(claimed.entry), change)
    }

    fn finish(&mut self, taken: bool, end: &End) -> (Finished, Entry, Change) {
        let earlier = self.history.iter().find(|attempt| attempt.number == end.attempt).cloned();
        let (finished, entry, change) = finish(self.entry.clone().map(Arc::new), earlier, taken, end);
        self.write(&entry, change.clone());
        (finished, Arc::unwrap_or_clone(entry), change)
    }

    fn resolve(&mut self, lapsed: bool, taken: bool, resolution: &Resolution) -> Result<Entry, Unresolvable> {
        let (entry, change) = resolve(self.entry.clone().unwrap(), lapsed, taken, &resolution.clone().into(), at(90))?;
        self.write(&entry, change);
        Ok(entry)
    }

    fn forward(mut self) -> Self {
        let number = self.entry.as_ref().map_or(1, |entry| entry.latest.number + 1);
        let (decision, entry, _) = self.claim(false, &ask(number.into()));
        assert_eq!((decision, entry.latest.number), (Decision::Forward, number));
        self
    }

    fn ended(mut self, number: u32, ending: Ending) -> Self {
        self.finish(false, &end(number, ending));
        self
    }

    /// The platform was told how it stands.
    fn told(mut self) -> Self {
        self.entry.as_mut().unwrap().answered_at = Some(at(80));
        self
    }

    fn decided(mut self, resolution: &Resolution) -> Self {
        self.resolve(false, false, resolution).unwrap();
        self
    }

    /// The state in a letter, with a question mark for doubt.
    fn state(&self) -> String {
        let Some(entry) = &self.entry else { return "-".into() };
        let letter = match entry.state {
            State::Running => "R",
            State::Open => "O",
            State::Unconfirmed => "U",
            State::Done => "D",
            State::Closed => "C",
        };
        format!("{letter}{}", if entry.doubt { "?" } else { "" })
    }
}

/// The situations, by the name of their column.
fn situations() -> Vec<(&'static str, Kept)> {
    let new = Kept::default();
    let running = new.clone().forward();
    let failed = running.clone().ended(1, failed());
    let unsure = running.clone().ended(1, unconfirmed());
    let second = unsure.clone().forward();
    let doubted = second.clone().ended(2, self::failed());
    let retried = unsure.clone().decided(&Resolution::Retry);
    let done = running.clone().ended(1, confirmed("i-1")).told();
    let late = second.clone().ended(1, confirmed("i-1"));
    let closed = unsure.clone().decided(&failed_for_good()).told();
    vec![
        ("new", new),
        ("running", running),
        ("second", second),
        ("failed", failed),
        ("unsure", unsure),
        ("doubted", doubted),
        ("retried", retried),
        ("done", done),
        ("late", late),
        ("closed", closed),
    ]
}

/// What happens, by the name of its row; the word for what it comes to. `None` where it cannot.
type Event = fn(&mut Kept) -> Option<&'static str>;

fn decision(kept: &mut Kept, lapsed: bool, change: impl FnOnce(&mut Ask)) -> Option<&'static str> {
    let mut ask = ask(70);
    change(&mut ask);
    Some(match kept.claim(lapsed, &ask).0 {
        Decision::Forward => "forward",
        Decision::Replay => "replay",
        Decision::Join => "join",
        Decision::Conflict => "conflict",
        Decision::Hold => "hold",
        Decision::Refuse => "refuse",
    })
}

fn finished(kept: &mut Kept, taken: bool, end: &End) -> &'static str {
    match kept.finish(taken, end).0 {
        Finished::Recorded => "ok",
        Finished::AlreadyDone => "known",
        Finished::Duplicate => "twice",
        Finished::InstanceReused => "reused",
    }
}

/// An end of the latest attempt.
fn latest(kept: &mut Kept, taken: bool, ending: Ending) -> Option<&'static str> {
    let number = kept.entry.as_ref().map_or(1, |entry| entry.latest.number);
    Some(finished(kept, taken, &end(number, ending)))
}

/// An end of the first attempt, where that is not the latest.
fn first_of_two(kept: &mut Kept, taken: bool, ending: Ending) -> Option<&'static str> {
    kept.entry.as_ref().filter(|entry| entry.latest.number > 1)?;
    Some(finished(kept, taken, &end(1, ending)))
}

/// An end of an attempt by the number of the latest, made by somebody else.
fn foreign(kept: &mut Kept, ending: Ending) -> Option<&'static str> {
    let number = kept.entry.as_ref()?.latest.number;
    let end = End { ask: Arc::new(ask(60)), ..end(number, ending) };
    Some(finished(kept, false, &end))
}

fn decided(kept: &mut Kept, lapsed: bool, taken: bool, resolution: &Resolution) -> Option<&'static str> {
    kept.entry.as_ref()?;
    Some(match kept.resolve(lapsed, taken, resolution) {
        Ok(_) => "ok",
        Err(Unresolvable::Running) => "running",
        Err(Unresolvable::Done) => "done",
        Err(Unresolvable::NotDone) => "not done",
        Err(Unresolvable::InstanceReused) => "reused",
    })
}

const EVENTS: &[(&str, Event)] = &[
    ("claim", |kept| decision(kept, false, |_| {})),
    ("claim,held", |kept| decision(kept, false, |ask| ask.hold = true)),
    ("claim,other", |kept| decision(kept, false, other_content)),
    ("claim,again", |kept| {
        let claimant = kept.entry.as_ref()?.latest.claimant.clone();
        decision(kept, false, |ask| ask.claimant = claimant)
    }),
    ("lapsed,claim", |kept| decision(kept, true, |_| {})),
    ("lapsed,claim,held", |kept| decision(kept, true, |ask| ask.hold = true)),
    ("lapsed,claim,other", |kept| decision(kept, true, other_content)),
    ("confirmed", |kept| latest(kept, false, confirmed("i-1"))),
    ("confirmed,other", |kept| latest(kept, false, confirmed("i-2"))),
    ("confirmed,taken", |kept| latest(kept, true, confirmed("i-9"))),
    ("refused", |kept| latest(kept, false, refused())),
    ("failed", |kept| latest(kept, false, failed())),
    ("unconfirmed", |kept| latest(kept, false, unconfirmed())),
    ("first,confirmed", |kept| first_of_two(kept, false, confirmed("i-1"))),
    ("first,other", |kept| first_of_two(kept, false, confirmed("i-2"))),
    ("first,taken", |kept| first_of_two(kept, true, confirmed("i-9"))),
    ("first,refused", |kept| first_of_two(kept, false, refused())),
    ("first,failed", |kept| first_of_two(kept, false, failed())),
    ("first,unconfirmed", |kept| first_of_two(kept, false, unconfirmed())),
    ("foreign,confirmed", |kept| foreign(kept, confirmed("i-1"))),
    ("foreign,refused", |kept| foreign(kept, refused())),
    ("foreign,failed", |kept| foreign(kept, failed())),
    ("foreign,unconfirmed", |kept| foreign(kept, unconfirmed())),
    ("op,retry", |kept| decided(kept, false, false, &Resolution::Retry)),
    ("op,done", |kept| decided(kept, false, false, &done("i-1", false))),
    ("op,done,taken", |kept| decided(kept, false, true, &done("i-9", false))),
    ("op,done,lost", |kept| decided(kept, false, false, &done("i-1", true))),
    ("op,other,lost", |kept| decided(kept, false, false, &done("i-2", true))),
    ("op,failed", |kept| decided(kept, false, false, &failed_for_good())),
    ("lapsed,op,retry", |kept| decided(kept, true, false, &Resolution::Retry)),
    ("lapsed,op,done", |kept| decided(kept, true, false, &done("i-1", false))),
    ("lapsed,op,failed", |kept| decided(kept, true, false, &failed_for_good())),
];

/// What happens (rows) in which situation (columns): what it comes to, and the state afterwards
/// (running, open, unconfirmed, done, closed; with a question mark: in doubt).
///
/// `second` is a second attempt after an unconfirmed one, `doubted` the same after it failed,
/// `retried` is unsure and the operator wants it forwarded, `late` is done by the first attempt
/// while the second still runs.
const TABLE: &str = "
                             new     running      second      failed      unsure     doubted     retried        done        late      closed
claim                  forward:R      join:R     join:R?   forward:R  forward:R?  forward:R?   forward:R    replay:D    replay:D    refuse:C
claim,held             forward:R      join:R     join:R?   forward:R      hold:U     hold:U?   forward:R    replay:D    replay:D    refuse:C
claim,other            forward:R  conflict:R conflict:R?  conflict:O  conflict:U conflict:U?  conflict:O  conflict:D  conflict:D  conflict:C
claim,again                    -   forward:R  forward:R?   forward:R  forward:R?  forward:R?   forward:R    replay:D    replay:D    refuse:C
lapsed,claim           forward:R  forward:R?  forward:R?   forward:R  forward:R?  forward:R?   forward:R    replay:D    replay:D    refuse:C
lapsed,claim,held      forward:R      hold:U     hold:U?   forward:R      hold:U     hold:U?   forward:R    replay:D    replay:D    refuse:C
lapsed,claim,other     forward:R  conflict:R conflict:R?  conflict:O  conflict:U conflict:U?  conflict:O  conflict:D  conflict:D  conflict:C
confirmed                   ok:D        ok:D        ok:D        ok:D        ok:D        ok:D        ok:D        ok:D     known:D        ok:D
confirmed,other             ok:D        ok:D        ok:D        ok:D        ok:D        ok:D        ok:D     twice:D     twice:D        ok:D
confirmed,taken         reused:U    reused:U   reused:U?    reused:U    reused:U   reused:U?    reused:O     known:D     known:D    reused:C
refused                     ok:O        ok:O        ok:O        ok:O        ok:O        ok:O        ok:O     known:D     known:D        ok:C
failed                      ok:O        ok:O       ok:U?        ok:O        ok:O       ok:U?        ok:O     known:D     known:D        ok:C
unconfirmed                 ok:U        ok:U       ok:U?        ok:U        ok:U       ok:U?        ok:O     known:D     known:D        ok:C
first,confirmed                -           -        ok:D           -           -        ok:D           -           -        ok:D           -
first,other                    -           -        ok:D           -           -        ok:D           -           -     twice:D           -
first,taken                    -           -   reused:R?           -           -   reused:U?           -           -     known:D           -
first,refused                  -           -       ok:R?           -           -       ok:U?           -           -     known:D           -
first,failed                   -           -       ok:R?           -           -       ok:U?           -           -     known:D           -
first,unconfirmed              -           -       ok:R?           -           -       ok:U?           -           -     known:D           -
foreign,confirmed              -        ok:D        ok:D        ok:D        ok:D        ok:D        ok:D     known:D     known:D        ok:D
foreign,refused                -        ok:R       ok:R?        ok:O        ok:U       ok:U?        ok:O     known:D     known:D        ok:C
foreign,failed                 -        ok:R       ok:R?        ok:O        ok:U       ok:U?        ok:O     known:D     known:D        ok:C
foreign,unconfirmed            -       ok:R?       ok:R?        ok:U       ok:U?       ok:U?        ok:U     known:D     known:D        ok:C
op,retry                       -   running:R  running:R?        ok:O        ok:O        ok:O        ok:O      done:D      done:D        ok:O
op,done                        -   running:R  running:R?        ok:D        ok:D        ok:D        ok:D      done:D      done:D        ok:D
op,done,taken                  -   running:R  running:R?    reused:O    reused:U   reused:U?    reused:O      done:D      done:D    reused:C
op,done,lost                   -   running:R  running:R?        ok:D        ok:D        ok:D        ok:D        ok:D        ok:D        ok:D
op,other,lost                  -   running:R  running:R?        ok:D        ok:D        ok:D        ok:D      done:D      done:D        ok:D
op,failed                      -   running:R  running:R?        ok:C        ok:C       ok:C?        ok:C      done:D      done:D        ok:C
lapsed,op,retry                -        ok:O        ok:O        ok:O        ok:O        ok:O        ok:O      done:D      done:D        ok:O
lapsed,op,done                 -        ok:D        ok:D        ok:D        ok:D        ok:D        ok:D      done:D      done:D        ok:D
lapsed,op,failed               -        ok:C       ok:C?        ok:C        ok:C       ok:C?        ok:C      done:D      done:D        ok:C
";

#[test]
fn everything_that_can_happen() {
    let mut actual = String::new();
    write!(actual, "{:20}", "").unwrap();
    for (name, _) in situations() {
        write!(actual, "{name:>12}").unwrap();
    }
    for (name, event) in EVENTS {
        write!(actual, "\n{name:20}").unwrap();
        for (_, mut kept) in situations() {
            let before = kept.clone();
            let cell = event(&mut kept).map_or_else(|| "-".to_owned(), |word| format!("{word}:{}", kept.state()));
            write!(actual, "{cell:>12}").unwrap();
            holds(&before, &kept, &format!("{name} while {cell}"));
        }
    }
    assert_eq!(actual, TABLE.trim_matches('\n'), "what happens now:\n{actual}\n");
}

/// What no event may do in any situation.
fn holds(before: &Kept, after: &Kept, what: &str) {
    let Some(now) = &after.entry else { return };
    let confirmed = now.confirmation.is_some() && now.reply.is_some();
    assert_eq!(now.state == State::Done, confirmed, "{what}: done is what is confirmed");
    assert!(now.state != State::Done || !now.doubt, "{what}: nothing is in doubt any more");
    assert!(now.state != State::Running || now.latest.ended.is_none(), "{what}: what has ended does not run");
    assert!(after.history.iter().all(|attempt| attempt.number < now.latest.number), "{what}: {:#?}", after.history);
    let Some(known) = &before.entry else { return };
    assert_eq!(
        (now.key, now.cycle, now.received_at, &now.subject),
        (known.key, known.cycle, known.received_at, &known.subject),
        "{what}"
    );
    // What it was told, it was told of done and of closed.
    let answered = known.answered_at.filter(|_| [State::Done, State::Closed].contains(&now.state));
    let answered = answered.filter(|_| now.state == known.state);
    assert_eq!(now.answered_at, answered, "{what}: that is not what the platform was told");
    assert!(now.latest.number == known.latest.number || now.latest.number == known.latest.number + 1, "{what}");
    assert!(after.history.len() >= before.history.len(), "{what}");
    if known.state == State::Done {
        assert_eq!((now.state, &now.confirmation), (State::Done, &known.confirmation), "{what}");
        if !what.contains("lost") {
            assert_eq!(now.reply, known.reply, "{what}");
        }
    }
}

#[test]
fn a_refusal_and_a_failure_leave_the_same_behind_but_the_reply() {
    for ending in [refused(), failed()] {
        let kept = Kept::default().forward().ended(1, ending).forward().ended(2, failed());
        let entry = kept.entry.unwrap();
        assert_eq!((entry.state, entry.doubt), (State::Open, false));
        assert_eq!(kept.history.len(), 1);
    }
}

#[test]
fn doubt_lasts_until_somebody_knows() {
    let mut kept = Kept::default().forward().ended(1, unconfirmed());
    for number in 2..6 {
        kept = kept.forward().ended(number, failed());
        assert_eq!(kept.state(), "U?", "after attempt {number}");
    }
    assert_eq!(kept.clone().forward().ended(6, refused()).state(), "O");
    assert_eq!(kept.clone().forward().ended(6, confirmed("i-1")).state(), "D");
    let kept = kept.decided(&Resolution::Retry);
    assert_eq!(kept.state(), "O");
    let kept = kept.forward();
    assert_eq!(kept.state(), "R");
    assert_eq!(kept.clone().ended(6, failed()).state(), "O");
    assert_eq!(kept.ended(6, unconfirmed()).state(), "U");
}

#[test]
fn the_operators_retry_lets_one_attempt_through() {
    let held = |kept: &mut Kept, number| kept.claim(false, &Ask { hold: true, ..ask(number) }).0;
    let mut kept = Kept::default().forward().ended(1, unconfirmed());
    assert_eq!(held(&mut kept, 60), Decision::Hold);
    let mut kept = kept.decided(&Resolution::Retry);
    // The attempt that was in doubt ends in doubt: the operator knew that.
    kept.finish(false, &end(1, Ending::Unconfirmed(Reason { code: "shutting_down".into(), ..Reason::default() })));
    assert_eq!(held(&mut kept, 2), Decision::Forward);
    assert_eq!(held(&mut kept, 61), Decision::Join);
    let mut kept = kept.ended(2, unconfirmed());
    assert_eq!(held(&mut kept, 62), Decision::Hold);
}

#[test]
fn a_new_delivery_is_what_was_asked_for() {
    let asked = about(ask(1), |subject| {
        subject.debug = true;
        subject.instance_id = Some("i-1".into());
    });
    let Step::Decided(claimed, change) = claim(None, false, &asked, key(7), 3) else { panic!() };
    assert_eq!(change, Change { entry: true, ..Change::default() });
    let entry = Arc::unwrap_or_clone(claimed.entry);
    assert_eq!((claimed.decision, entry.key, entry.cycle), (Decision::Forward, key(7), 3));
    assert!(Arc::ptr_eq(&entry.subject, &asked.subject), "nothing is copied");
    assert_eq!((entry.received_at, entry.changed_at, entry.latest.began_at), (at(1), at(1), at(1)));
    assert_eq!((entry.latest.claimant, entry.latest.request_id), (asked.claimant, asked.request_id));
}

#[test]
fn every_attempt_is_kept_as_it_was() {
    let mut kept = Kept::default().forward();
    let reason = Reason { code: "c".into(), rule: Some("r".into()), detail: Some("d".into()) };
    kept.finish(false, &end(1, Ending::Unconfirmed(reason)));
    let first = kept.entry.clone().unwrap().latest;
    let ended = first.ended.clone().unwrap();
    assert_eq!((ended.outcome, ended.instance_id), (AttemptOutcome::Unconfirmed, None));
    let told = [ended.code.as_deref(), ended.rule.as_deref(), ended.detail.as_deref()];
    assert_eq!(told, ["c", "r", "d"].map(Some));
    assert_eq!((first.began_at, first.ended_at), (at(1), Some(at(51))));

    let (_, entry, change) = kept.claim(false, &ask(2));
    assert_eq!(change.history.as_ref(), Some(&first));
    assert_eq!((entry.latest.number, entry.latest.began_at, entry.latest.ended), (2, at(2), None));
    assert_eq!((entry.received_at, entry.changed_at), (at(1), at(2)));

    // The late end of the first one takes its place in the history, and only that.
    let (_, entry, change) = kept.finish(false, &end(1, refused()));
    let late = change.history.unwrap();
    assert_eq!((late.number, &late.claimant, late.began_at), (1, &first.claimant, first.began_at));
    assert_eq!(late.ended.unwrap().outcome, AttemptOutcome::Refused);
    assert_eq!((entry.latest.number, entry.latest.ended, entry.reply), (2, None, None));
}

#[test]
fn a_second_confirmation_is_noted_and_is_not_the_answer() {
    let mut kept = Kept::default().forward().ended(1, unconfirmed()).forward().ended(2, confirmed("i-2"));
    let known = kept.entry.clone().unwrap();
    for (instance, finished, outcome) in [
        ("i-2", Finished::AlreadyDone, AttemptOutcome::Confirmed),
        ("i-1", Finished::Duplicate, AttemptOutcome::Duplicate),
    ] {
        let reply = sealed("in other words");
        let end = End { now: at(500), ..end(1, Ending::Confirmed { instance_id: Some(instance.into()), reply }) };
        let (result, entry, change) = kept.finish(false, &end);
        assert_eq!(result, finished);
        assert_eq!((&entry.confirmation, &entry.reply), (&known.confirmation, &known.reply));
        let ended = kept.history[0].ended.clone().unwrap();
        assert_eq!((ended.outcome, ended.instance_id.as_deref()), (outcome, Some(instance)));
        let is_new = outcome == AttemptOutcome::Duplicate;
        assert_eq!(change.instance.as_deref(), is_new.then_some("i-1"), "it made that one too");
        // Told again, it is no second alarm but the same one.
        assert_eq!(kept.finish(false, &end).0, finished);
    }
}

#[test]
fn the_same_end_told_again_changes_nothing() {
    let endings = [
        (false, confirmed("i-1")),
        (true, confirmed("i-1")),
        (false, refused()),
        (false, failed()),
        (false, unconfirmed()),
    ];
    for (taken, ending) in endings {
        let mut kept = Kept::default().forward();
        let (first, entry, _) = kept.finish(taken, &end(1, ending.clone()));
        let (again, same, change) = kept.finish(taken, &End { now: at(999), ..end(1, ending.clone()) });
        assert_eq!((again, same, change), (first, entry, Change::default()), "{ending:?}");
        // Nor does it undo what came after it.
        if kept.entry.as_ref().unwrap().state == State::Done {
            continue;
        }
        for resolution in [Resolution::Retry, done("i-5", false), failed_for_good()] {
            let mut decided = kept.clone().decided(&resolution);
            let before = decided.entry.clone();
            decided.finish(taken, &end(1, ending.clone()));
            if !matches!((resolution, &ending), (Resolution::Done { .. }, Ending::Confirmed { .. })) {
                assert_eq!(decided.entry, before, "{ending:?}");
            }
        }
        let mut next = kept.clone().forward();
        let before = next.entry.clone();
        next.finish(taken, &end(1, ending));
        assert_eq!(next.entry, before);
    }
}

#[test]
fn a_lost_attempt_may_still_end() {
    for (ending, state) in [(confirmed("i-1"), "D"), (refused(), "O"), (failed(), "O"), (unconfirmed(), "U")] {
        let mut kept = Kept::default().forward();
        assert_eq!(decision(&mut kept, true, |ask| ask.hold = true), Some("hold"));
        let lost = kept.entry.clone().unwrap().latest;
        assert_eq!(lost.ended_at, Some(at(70)));
        let ended = lost.ended.unwrap();
        assert_eq!((ended.outcome, ended.code.as_deref()), (AttemptOutcome::Unconfirmed, Some(LEASE_LOST)));
        assert_eq!(kept.ended(1, ending).state(), state);
    }
}

#[test]
fn what_a_loss_leads_to_is_written_with_it() {
    let mut kept = Kept::default().forward();
    let (decision, _, change) = kept.claim(true, &ask(2));
    assert_eq!(decision, Decision::Forward);
    let lost = change.history.unwrap();
    assert_eq!(lost.ended.unwrap().code.as_deref(), Some(LEASE_LOST));

    let mut kept = Kept::default().forward();
    let (decision, _, change) = kept.claim(true, &Ask { hold: true, ..ask(2) });
    assert_eq!((decision, change), (Decision::Hold, Change { entry: true, ..Change::default() }));
}

#[test]
fn a_claim_asked_again_is_the_same_claim() {
    let mut kept = Kept::default().forward();
    let known = kept.entry.clone().unwrap();
    let (decision, entry, change) = kept.claim(false, &ask(1));
    assert_eq!((decision, entry, change), (Decision::Forward, known, Change::default()));
    // Unless it has come to something: then it is a copy like any other.
    let mut kept = kept.ended(1, confirmed("i-1"));
    assert_eq!(kept.claim(false, &ask(1)).0, Decision::Replay);
}

#[test]
fn an_end_outlives_its_entry() {
    for (ending, state) in [(confirmed("i-1"), "D"), (refused(), "O"), (failed(), "O"), (unconfirmed(), "U")] {
        let mut kept = Kept::default();
        let ended = End { key: key(5), cycle: 4, ..end(3, ending) };
        let (finished, entry, change) = kept.finish(false, &ended);
        assert_eq!((finished, kept.state().as_str()), (Finished::Recorded, state));
        assert_eq!((entry.key, entry.cycle, entry.latest.number), (key(5), 4, 3));
        assert_eq!((entry.latest.began_at, &entry.latest.claimant), (at(3), &ended.ask.claimant));
        assert!(change.entry);
        assert_eq!(change.history, None);
    }
}

#[test]
fn an_end_that_the_store_forgot_still_counts() {
    // The store knows of one attempt; the process that ends the third one knows better.
    let mut kept = Kept::default().forward().ended(1, failed());
    kept.finish(false, &end(3, unconfirmed()));
    assert_eq!(kept.state(), "U");
    let mut kept = Kept::default().forward();
    kept.finish(false, &end(3, unconfirmed()));
    assert_eq!(kept.state(), "R?", "the first one still runs, and copies join it");
    kept.finish(false, &end(3, failed()));
    assert_eq!(kept.state(), "R?");
    kept.finish(false, &end(3, confirmed("i-1")));
    assert_eq!(kept.state(), "D");
}

#[test]
fn instances_are_noted_where_they_must_be_new() {
    let instance = |ask: &Ask, ending: Ending, taken: bool| {
        let mut kept = Kept::default();
        kept.claim(false, ask);
        let end = End { ask: Arc::new(ask.clone()), ..end(1, ending) };
        let (finished, _, change) = kept.finish(taken, &end);
        (finished, change.instance)
    };
    let create = ask(1);
    let renew =
        about(Ask { instance_must_be_new: false, ..ask(1) }, |subject| subject.instance_id = Some("i-1".into()));
    let named = Some("i-1".into());
    let nameless = Ending::Confirmed { instance_id: None, reply: sealed("ok") };
    assert_eq!(instance(&create, confirmed("i-1"), false), (Finished::Recorded, named));
    assert_eq!(instance(&create, confirmed("i-1"), true), (Finished::InstanceReused, None));
    assert_eq!(instance(&create, nameless.clone(), false), (Finished::Recorded, None));
    assert_eq!(instance(&renew, confirmed("i-1"), true), (Finished::Recorded, None));
    assert_eq!(instance(&renew, nameless, true), (Finished::Recorded, None));
}

#[test]
fn a_reused_instance_is_not_a_confirmation() {
    let mut kept = Kept::default().forward();
    let (finished, entry, _) = kept.finish(true, &end(1, confirmed("i-9")));
    assert_eq!((finished, entry.state), (Finished::InstanceReused, State::Unconfirmed));
    assert_eq!((entry.confirmation, entry.reply), (None, None));
    let ended = entry.latest.ended.unwrap();
    assert_eq!((ended.outcome, ended.code.as_deref()), (AttemptOutcome::Unconfirmed, Some("backend_contract")));
    assert_eq!((ended.rule.as_deref(), ended.instance_id.as_deref()), (Some(INSTANCE_REUSED), Some("i-9")));
    // Where it is done already, it stays done.
    let mut kept = Kept::default().forward().ended(1, unconfirmed()).forward().ended(2, confirmed("i-1"));
    let done = kept.entry.clone().unwrap();
    let (finished, entry, change) = kept.finish(true, &end(1, confirmed("i-9")));
    assert_eq!((finished, change.instance), (Finished::AlreadyDone, None));
    assert_eq!((entry.state, entry.confirmation, entry.reply), (State::Done, done.confirmation, done.reply));
}

#[test]
fn decisions_are_noted() {
    let unsure = Kept::default().forward().ended(1, unconfirmed());
    let cases = [
        (Resolution::Retry, "retry", None),
        (done("i-1", false), "done", None),
        (failed_for_good(), "failed", Some("sold out".to_owned())),
    ];
    for (resolution, what, message) in cases {
        let entry = unsure.clone().decided(&resolution).entry.unwrap();
        assert_eq!(
            entry.decision,
            Some(OperatorDecision { what: what.into(), at: at(90), message, by: None, why: None })
        );
        assert_eq!(entry.changed_at, at(90));
        assert_eq!(entry.latest, unsure.entry.as_ref().unwrap().latest, "it says nothing of the attempt");
    }
    let entry = unsure.decided(&done("i-1", false)).entry.unwrap();
    assert_eq!(entry.confirmation, Some(Confirmation { at: at(90), instance_id: Some("i-1".into()) }));
    assert_eq!(entry.reply, Some(sealed("operator")));
}

/// What the platform was told is final only as long as it is true.
#[test]
fn whatever_was_closed_and_is_not_any_more_is_unanswered() {
    let closed = Kept::default().forward().ended(1, unconfirmed()).decided(&failed_for_good());
    for kept in [closed.clone(), closed.told()] {
        let known = kept.entry.unwrap();
        for (resolution, state) in [(Resolution::Retry, State::Open), (done("i-1", false), State::Done)] {
            let (entry, change) = resolve(known.clone(), false, false, &resolution.into(), at(90)).unwrap();
            assert_eq!((entry.state, entry.answered_at, change.unanswered), (state, None, true));
        }
        let late = finish(Some(Arc::new(known.clone())), None, false, &end(1, confirmed("i-1")));
        assert_eq!((late.1.state, late.1.answered_at, late.2.unanswered), (State::Done, None, true));
        // Closed it stays, whatever else comes, and so does what was told.
        let (entry, change) = resolve(known.clone(), false, false, &failed_for_good().into(), at(90)).unwrap();
        assert_eq!((entry.state, entry.answered_at, change.unanswered), (State::Closed, known.answered_at, false));
        for (taken, ending) in [(true, confirmed("i-9")), (false, refused()), (false, failed()), (false, unconfirmed())]
        {
            let (_, entry, change) = finish(Some(Arc::new(known.clone())), None, taken, &end(1, ending));
            assert_eq!((entry.answered_at, change.unanswered), (known.answered_at, false));
        }
    }
    let (entry, change) = {
        let known = Kept::default().forward().ended(1, confirmed("i-1")).told().entry.unwrap();
        resolve(known, false, false, &done("i-1", true).into(), at(90)).unwrap()
    };
    assert_eq!((entry.answered_at, change.unanswered), (Some(at(80)), false), "done is done");
}

#[test]
fn a_lost_reply_is_replaced_and_its_confirmation_stays() {
    let kept = Kept::default().forward().ended(1, confirmed("i-1"));
    let known = kept.entry.clone().unwrap();
    let entry = kept.clone().decided(&done("i-1", true)).entry.unwrap();
    assert_eq!((entry.state, &entry.confirmation), (State::Done, &known.confirmation));
    assert_eq!(entry.reply, Some(sealed("operator")));
    let mut kept = kept;
    assert_eq!(kept.resolve(false, false, &done("i-2", true)), Err(Unresolvable::Done));
    assert_eq!(kept.entry, Some(known));
}

/// What a copy of an expiry comes to, so many seconds after its confirmation.
fn copy_of_expiry(seconds: i64, change: impl FnOnce(&mut Ask)) -> Option<Decision> {
    let lifecycle = Lifecycle::Ends { replay_for: REPLAY_FOR };
    let mut asked = about(Ask { lifecycle, instance_must_be_new: false, ..ask(1) }, |subject| {
        subject.instance_id = Some("i-1".into());
    });
    let mut kept = Kept::default();
    let (_, _, claimed) = kept.claim(false, &asked);
    assert_eq!(claimed.cycle, CycleChange::Touch);
    let confirmed = Ending::Confirmed { instance_id: None, reply: sealed("ok") };
    let end = End { now: at(0), ask: Arc::new(asked.clone()), ..end(1, confirmed) };
    let (_, _, finished) = kept.finish(false, &end);
    assert_eq!(finished.cycle, CycleChange::None);
    asked.now = at(seconds);
    change(&mut asked);
    match claim(kept.entry, false, &asked, key(1), 0) {
        Step::Decided(claimed, change) => {
            assert_eq!(change, Change::default());
            Some(claimed.decision)
        }
        Step::NextCycle => None,
    }
}

#[test]
fn an_expiry_is_replayed_for_its_time() {
    for seconds in [-1_000_000, -3600, 0, 3599, 3600] {
        assert_eq!(copy_of_expiry(seconds, |_| {}), Some(Decision::Replay), "after {seconds} s");
    }
    for seconds in [3601, 7200, 1_000_000] {
        assert_eq!(copy_of_expiry(seconds, |_| {}), None, "after {seconds} s");
    }
    let other = other_content;
    assert_eq!(copy_of_expiry(7200, other), Some(Decision::Conflict));
    assert_eq!(copy_of_expiry(7200, |ask| Arc::make_mut(&mut ask.subject).instance_id = None), Some(Decision::Replay));
    assert_eq!(copy_of_expiry(7200, |ask| ask.lifecycle = Lifecycle::None), Some(Decision::Replay));
    let at_once = Lifecycle::Ends { replay_for: SignedDuration::ZERO };
    assert_eq!(copy_of_expiry(0, |ask| ask.lifecycle = at_once), Some(Decision::Replay));
    assert_eq!(copy_of_expiry(1, |ask| ask.lifecycle = at_once), None);
}

#[test]
fn only_a_confirmation_gets_too_old() {
    for (name, mut kept) in situations() {
        let lifecycle = Lifecycle::Ends { replay_for: REPLAY_FOR };
        let asked =
            about(Ask { lifecycle, now: at(1_000_000), ..ask(70) }, |subject| subject.instance_id = Some("i-1".into()));
        let step = claim(kept.entry.clone(), false, &asked, key(1), 0);
        let is_done = kept.entry.as_ref().is_some_and(|entry| entry.state == State::Done);
        assert_eq!(matches!(step, Step::NextCycle), is_done, "{name}");
        // And an order never does.
        if is_done {
            assert_eq!(kept.claim(false, &Ask { now: at(1_000_000_000), ..ask(71) }).0, Decision::Replay);
        }
    }
}

#[test]
fn whatever_is_forwarded_moves_the_cycle_and_nothing_else_does() {
    let lifecycles = [
        (Lifecycle::None, CycleChange::None),
        (Lifecycle::Ends { replay_for: REPLAY_FOR }, CycleChange::Touch),
        (Lifecycle::Revives, CycleChange::Raise),
    ];
    for (lifecycle, moved) in lifecycles {
        for (name, kept) in situations() {
            for hold in [false, true] {
                let asked =
                    about(Ask { lifecycle, hold, ..ask(70) }, |subject| subject.instance_id = Some("i-1".into()));
                let (decision, _, change) = kept.clone().claim(false, &asked);
                let expected = if decision == Decision::Forward { moved } else { CycleChange::None };
                assert_eq!(change.cycle, expected, "{name}");
            }
            for ending in [confirmed("i-1"), refused(), failed(), unconfirmed()] {
                let asked = about(Ask { lifecycle, ..ask(1) }, |subject| subject.instance_id = Some("i-1".into()));
                let end = End { ask: Arc::new(asked), ..end(1, ending) };
                assert_eq!(kept.clone().finish(false, &end).2.cycle, CycleChange::None, "{name}");
            }
        }
    }
}
