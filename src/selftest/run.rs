//! Runs cases, one after the other, and removes what they have made: also after a failure, when the
//! time is up, and when the user wants to end.

use std::time::Duration;

use futures_util::future::join_all;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Text;
use super::advice::{self, Finding};
use super::case::{Call, Case, Expect, Group, Instance, Manner, Step};
use super::evidence::{Exchange, Witness};
use super::instances::Instances;
use super::mask::Mask;
use super::plan;
use super::relay::Passed;
use super::report::{Entry, Verdict};
use super::request::{Material, Request, Standing};
use super::target::Target;
use super::verdict::{Fault, Found, Measure, Note, Outcome};
use crate::clock;
use crate::dialect::ActionKind;
use crate::platform::{self, CallFailure, PATIENCE, Reply};

/// Whether the user wants to end: how often that was said.
#[derive(Clone)]
pub struct Stop(watch::Receiver<u8>);

impl Stop {
    /// Listens to a count of signals.
    pub fn new(signals: watch::Receiver<u8>) -> Self {
        Self(signals)
    }

    fn is_wanted(&self) -> bool {
        *self.0.borrow() > 0
    }

    /// Waits until it was said so often.
    async fn wanted(&self, times: u8) {
        if self.0.clone().wait_for(|count| *count >= times).await.is_err() {
            // Nobody can say it any more.
            std::future::pending::<()>().await;
        }
    }
}

/// How a run goes.
pub struct Run<'a> {
    /// What is tested.
    pub target: &'a Target,
    /// Values that the user gave instead of samples.
    pub own: &'a [(String, String)],
    /// How long cases may take together.
    pub limit: Option<Duration>,
    /// Whether the first failure ends it.
    pub fail_fast: bool,
    /// Whether the user wants to end it.
    pub stop: Stop,
    /// Told of each case that begins: its number, how many there are, and the case.
    pub progress: &'a dyn Fn(usize, usize, &Text),
}

/// What a run came to.
pub struct Played {
    /// Every case.
    pub entries: Vec<Entry>,
    /// Whether the user has ended it.
    pub interrupted: bool,
}

/// After this the caller of a step has hung up.
const HANG_UP: Duration = Duration::from_millis(100);
/// Beyond the gateway's patience.
const BEYOND: Duration = Duration::from_secs(1);
/// How long a call may still take once the user wants to end.
const LAST_CALL: Duration = Duration::from_secs(3);
/// How long cleaning up may take where there is a limit of time.
const CLEANING: Duration = Duration::from_secs(10);

impl Run<'_> {
    /// Plays the cases.
    pub async fn play(self, cases: &[Case], word: &str) -> Played {
        let target = self.target;
        let mask = Mask::new(&target.secret);
        let mut player = Player {
            material: Material {
                dialect: &target.dialect,
                url: &target.url,
                key: &target.key,
                own: self.own,
                strict: target.strict,
                run: word,
            },
            witness: Witness { dialect: &target.dialect, mask: &mask },
            target,
            stop: &self.stop,
            deadline: self.limit.map(|limit| Instant::now() + limit),
            instances: Instances::default(),
            accepted: false,
        };
        let mut entries = Vec::new();
        let mut failed = false;
        for (number, case) in cases.iter().enumerate() {
            (self.progress)(number + 1, cases.len(), &case.title);
            let entry = if failed && self.fail_fast {
                Entry::not_run(case, why_not::failed())
            } else {
                player.case(number + 1, case).await
            };
            failed |= entry.verdict == Verdict::Failed;
            entries.push(entry);
        }
        let interrupted = self.stop.is_wanted();
        if !player.instances.there().is_empty() {
            let title = Group::Cleanup.title();
            (self.progress)(cases.len(), cases.len(), &title);
            entries.push(player.clean_up(self.limit.map(|_| CLEANING)).await);
        }
        Played { entries, interrupted }
    }
}

/// Why a case was not run.
mod why_not {
    use crate::selftest::Text;

    pub(super) fn stopped() -> Text {
        Text::new("the run was ended by the user", "运行被用户中止")
    }

    pub(super) fn failed() -> Text {
        Text::new("a case before it failed (--fail-fast)", "前面的用例失败（--fail-fast）")
    }

    pub(super) fn no_time() -> Text {
        Text::new("no time was left; --slow has no limit", "时间已用完；使用 --slow 则不限时")
    }

    pub(super) fn no_instance() -> Text {
        Text::new("it needs an instance, and none could be made", "需要一个实例，但未能创建")
    }

    pub(super) fn nothing_genuine() -> Text {
        Text::new(
            "no genuine request was accepted, so that a refusal shows nothing",
            "没有任何真实请求被接受，因此拒绝说明不了问题",
        )
    }

    pub(super) fn unsignable(error: &str) -> Text {
        Text::new(format!("the request cannot be signed: {error}"), format!("请求无法签名：{error}"))
    }
}

struct Player<'a> {
    target: &'a Target,
    material: Material<'a>,
    witness: Witness<'a>,
    stop: &'a Stop,
    deadline: Option<Instant>,
    instances: Instances,
    /// Whether a genuine request was ever accepted.
    accepted: bool,
}

/// What happened in a case so far.
#[derive(Default)]
struct Story {
    /// The request before.
    last: Option<Request>,
    /// The instance that was told before.
    before: Option<String>,
    /// The shared instance that the case is about, also when it is gone by now.
    about: Option<String>,
    findings: Vec<Finding>,
    notes: Vec<Text>,
    exchanges: Vec<Exchange>,
}

/// A request that was sent, and what came.
struct Sent {
    request: Request,
    at: Timestamp,
    reply: Result<Reply, CallFailure>,
    took: Duration,
}

impl Player<'_> {
    async fn case(&mut self, number: usize, case: &Case) -> Entry {
        let begun = Instant::now();
        let mut story = Story::default();
        let ended = self.steps(number, case, &mut story).await;
        let verdict = match (&ended, story.findings.is_empty()) {
            (_, false) => Verdict::Failed,
            (Err(_), true) => Verdict::NotRun,
            (Ok(()), true) => Verdict::Passed,
        };
        Entry {
            verdict,
            reason: ended.err(),
            findings: story.findings,
            notes: story.notes,
            exchanges: story.exchanges,
            seconds: begun.elapsed().as_secs_f64(),
            ..Entry::of(case)
        }
    }

    /// # Errors
    /// Why it was not played to its end.
    async fn steps(&mut self, number: usize, case: &Case, story: &mut Story) -> Result<(), Text> {
        if self.stop.is_wanted() {
            return Err(why_not::stopped());
        }
        if case.group == Group::Refusals && !self.accepted {
            let genuine = plan::genuine(self.material.dialect).ok_or_else(why_not::nothing_genuine)?;
            self.prepare(number, &genuine, story).await?;
            if !self.accepted {
                return Err(why_not::nothing_genuine());
            }
        }
        let wanted = case.steps.iter().find(|step| step.call.instance == Some(Instance::Shared));
        if let Some(step) = wanted.filter(|step| self.instances.shared(step.call.trial).is_none()) {
            let trial = step.call.trial;
            let preparation = plan::preparation(self.material.dialect, trial).ok_or_else(why_not::no_instance)?;
            self.prepare(number, &preparation, story).await?;
            if self.instances.shared(trial).is_none() {
                return Err(why_not::no_instance());
            }
        }
        for step in &case.steps {
            let found = self.step(number, step, story).await?;
            // Later steps are about what this one did; forgeries stand each for itself.
            if !found.acted && !found.faults.is_empty() && step.expect != Expect::Refusal {
                break;
            }
        }
        Ok(())
    }

    /// Takes a step that the case is not about: what is wrong with it is another case's business.
    async fn prepare(&mut self, number: usize, step: &Step, story: &mut Story) -> Result<(), Text> {
        let mut aside = Story::default();
        let result = self.step(number, step, &mut aside).await;
        story.exchanges.append(&mut aside.exchanges);
        result.map(drop)
    }

    async fn step(&mut self, number: usize, step: &Step, story: &mut Story) -> Result<Found, Text> {
        if !step.pause.is_zero() {
            tokio::select! {
                () = tokio::time::sleep(step.pause) => {}
                () = self.stop.wanted(1) => {}
            }
        }
        if self.stop.is_wanted() {
            return Err(why_not::stopped());
        }
        if self.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Err(why_not::no_time());
        }
        let call = &step.call;
        if story.about.is_none() {
            story.about = self.instances.shared(call.trial).map(str::to_owned);
        }
        let requests = self.requests(number, step, story.last.as_ref(), story.about.as_deref())?;
        story.last = requests.first().cloned();
        let sent = self.send(requests, call.manner).await?;
        let passed = self.target.own.as_ref().map(|own| own.relay.take()).unwrap_or_default();
        let found = self.judge(step, &sent, &passed, story.before.as_deref());
        self.learn(call, &found, story.about.as_deref(), step.expect);
        if found.instance.is_some() {
            story.before.clone_from(&found.instance);
        }
        self.testify(step, &sent, &passed, &found, story);
        Ok(found)
    }

    fn requests(
        &self,
        case: usize,
        step: &Step,
        last: Option<&Request>,
        instance: Option<&str>,
    ) -> Result<Vec<Request>, Text> {
        let copies = u32::try_from(step.copies).unwrap_or(u32::MAX);
        if let (Manner::Identical, Some(last)) = (step.call.manner, last) {
            return Ok(vec![last.clone(); step.copies]);
        }
        let now = clock::now();
        let request = |copy| self.material.request(&step.call, Standing { case, copy, instance, now });
        (0..copies).map(request).collect::<Result<_, _>>().map_err(|error| why_not::unsignable(&error))
    }

    async fn send(&self, requests: Vec<Request>, manner: Manner) -> Result<Vec<Sent>, Text> {
        let patience = if manner == Manner::HangUp { HANG_UP } else { PATIENCE };
        if let Some(own) = &self.target.own {
            own.relay.hold((manner == Manner::Held).then(|| own.answer_within + BEYOND));
        }
        let calls = requests.into_iter().map(|request| async move {
            let header = request.header.as_ref().map(|(name, value)| (name.as_str(), value.as_str()));
            let (at, begun) = (clock::now(), Instant::now());
            let reply = platform::call(&request.url, header, patience).await;
            Sent { at, took: begun.elapsed(), reply, request }
        });
        tokio::select! {
            sent = join_all(calls) => Ok(sent),
            () = self.given_up() => Err(why_not::stopped()),
        }
    }

    /// A little after the user wanted to end, so that what is being made is known and removed.
    async fn given_up(&self) {
        self.stop.wanted(1).await;
        tokio::select! {
            () = tokio::time::sleep(LAST_CALL) => {}
            () = self.stop.wanted(2) => {}
        }
    }

    fn judge(&self, step: &Step, sent: &[Sent], passed: &[Passed], before: Option<&str>) -> Found {
        let contract = &self.material.dialect.actions[step.call.action].reply;
        let behind = passed.last().map(|passed| passed.reply.as_ref());
        let measure = Measure {
            contract,
            creates: self.material.dialect.actions[step.call.action].kind == ActionKind::Create,
            expect: step.expect,
            forgery: step.call.forgery,
            before,
            known: self.instances.known(),
        };
        let outcomes: Vec<_> = sent.iter().map(|sent| Outcome { reply: sent.reply.as_ref(), behind }).collect();
        match (&outcomes[..], step.call.manner) {
            ([outcome], _) => measure.judge(outcome),
            (_, Manner::Crowd) => measure.judge_crowd(&outcomes),
            _ => measure.judge_copies(&outcomes),
        }
    }

    /// What the step has changed.
    fn learn(&mut self, call: &Call, found: &Found, instance: Option<&str>, expect: Expect) {
        let kind = self.material.dialect.actions[call.action].kind;
        self.accepted |= found.acted && call.forgery.is_none();
        for id in found.instance.iter().chain(&found.others) {
            self.instances.made(id, call.trial);
        }
        if let (Expect::Shared | Expect::Either, Some(id)) = (expect, &found.instance) {
            self.instances.share(id, call.trial);
        }
        if let (ActionKind::Delete, Some(id), true) = (kind, instance, found.acted) {
            self.instances.gone(id);
        }
    }

    fn testify(&self, step: &Step, sent: &[Sent], passed: &[Passed], found: &Found, story: &mut Story) {
        let action = &self.material.dialect.actions[step.call.action];
        for (index, Sent { request, at, reply, took }) in sent.iter().enumerate() {
            let mut exchange = self.witness.exchange(step.label.clone(), *at, action, request, reply, *took);
            if index == 0 {
                exchange.backend =
                    passed.iter().map(|passed| self.witness.behind(passed, &request.signature)).collect();
            }
            story.exchanges.push(exchange);
        }
        let about = advice::About { gateway: self.target.own.is_some(), action: &action.name, expect: step.expect };
        let signature = sent.first().map_or("", |sent| &sent.request.signature);
        for fault in &found.faults {
            let finding = advice::finding(fault, &about).map(|text| self.witness.mask.text(text, signature));
            if !story.findings.contains(&finding) {
                story.findings.push(finding);
            }
        }
        for note in &found.notes {
            let note = advice::note(note);
            if !story.notes.contains(&note) {
                story.notes.push(note);
            }
        }
    }

    /// Removes every instance that is there.
    async fn clean_up(&mut self, limit: Option<Duration>) -> Entry {
        let begun = Instant::now();
        let mut story = Story::default();
        let there = self.instances.there().to_vec();
        let can_remove = self.material.dialect.action_of(ActionKind::Delete).is_some();
        for made in there.iter().filter(|_| can_remove) {
            let left = limit.map_or(PATIENCE, |limit| limit.saturating_sub(begun.elapsed()).min(PATIENCE));
            for step in plan::removal(self.material.dialect, made.trial) {
                let standing = Standing { case: 0, copy: 0, instance: Some(&made.id), now: clock::now() };
                let Ok(request) = self.material.request(&step.call, standing) else { continue };
                let header = request.header.as_ref().map(|(name, value)| (name.as_str(), value.as_str()));
                let (at, sent_at) = (clock::now(), Instant::now());
                let reply = tokio::select! {
                    reply = platform::call(&request.url, header, left) => reply,
                    () = self.stop.wanted(2) => break,
                };
                let took = sent_at.elapsed();
                let sent = [Sent { at, took, reply, request }];
                let passed = self.target.own.as_ref().map(|own| own.relay.take()).unwrap_or_default();
                let found = self.judge(&step, &sent, &passed, None);
                self.learn(&step.call, &found, Some(&made.id), step.expect);
                // What is wrong with the replies was found before; here it matters what is left.
                let found = Found { notes: found.notes, ..Found::default() };
                self.testify(&step, &sent, &passed, &found, &mut story);
            }
        }
        let left = self.instances.there().iter().map(|made| made.id.clone()).collect::<Vec<_>>();
        let about = advice::About { gateway: self.target.own.is_some(), action: "", expect: Expect::Success };
        let mask = |text: &str| self.witness.mask.text(text, "");
        match (left.is_empty(), can_remove) {
            (true, _) => {}
            (false, true) => story.findings.push(advice::finding(&Fault::LeftOver(left), &about).map(mask)),
            (false, false) => {
                let note = advice::note(&Note::CannotRemove(left));
                story.notes.push(Text::new(mask(&note.en), mask(&note.zh)));
            }
        }
        let case = Case {
            id: "cleanup".to_owned(),
            group: Group::Cleanup,
            title: Text::new("Everything that was made is removed", "清除测试中创建的全部实例"),
            real: there.iter().any(|made| !made.trial),
            steps: Vec::new(),
        };
        Entry {
            verdict: if story.findings.is_empty() { Verdict::Passed } else { Verdict::Failed },
            findings: story.findings,
            notes: story.notes,
            exchanges: story.exchanges,
            seconds: begun.elapsed().as_secs_f64(),
            ..Entry::of(&case)
        }
    }
}
