//! Replies, and what is found wrong with them.

use bytes::Bytes;
use http::{HeaderValue, StatusCode};

use super::*;
use crate::dialect::{ActionKind, Dialect, builtin};

const JSON: Option<&str> = Some("application/json");
const MADE: &str = r#"{"success":true,"instanceId":"i-1"}"#;
const NO: &str = r#"{"success":false,"message":"no"}"#;

fn raw(status: u16, content_type: Option<&'static str>, body: &str) -> RawReply {
    RawReply {
        status: StatusCode::from_u16(status).unwrap(),
        content_type: content_type.map(HeaderValue::from_static),
        content_encoding: None,
        body: Bytes::copy_from_slice(body.as_bytes()),
    }
}

fn reply(status: u16, content_type: Option<&'static str>, body: &str) -> Reply {
    Reply { raw: raw(status, content_type, body), took: Duration::from_millis(5) }
}

struct Judge {
    dialect: Dialect,
    known: HashSet<String>,
}

impl Judge {
    fn new(known: &[&str]) -> Self {
        let known = known.iter().map(ToString::to_string).collect();
        Self { dialect: builtin::load().unwrap().remove(0), known }
    }

    fn measure<'a>(&'a self, expect: Expect, before: Option<&'a str>) -> Measure<'a> {
        let forgery = (expect == Expect::Refusal).then_some(Forgery::Flipped);
        let contract = &self.dialect.action_of(ActionKind::Create).unwrap().reply;
        Measure { contract, creates: true, expect, forgery, before, known: &self.known }
    }

    fn faults(&self, expect: Expect, before: Option<&str>, reply: &Reply) -> Vec<Fault> {
        self.measure(expect, before).judge(&Outcome { reply: Ok(reply), behind: None }).faults
    }
}

#[test]
fn a_success_is_what_the_platform_takes_for_one() {
    let judge = Judge::new(&[]);
    let faults = |reply| judge.faults(Expect::Success, None, &reply);
    assert_eq!(faults(reply(200, JSON, MADE)), []);
    assert_eq!(faults(reply(200, JSON, NO)), [Fault::Refused]);
    assert_eq!(faults(reply(201, JSON, MADE)), [Fault::Status(201)]);
    assert_eq!(faults(reply(500, Some("text/html"), "oops")), [Fault::Status(500)]);
    assert_eq!(faults(reply(401, JSON, NO)), [Fault::Unauthorized(401)]);
    assert_eq!(faults(reply(200, None, MADE)), [Fault::ContentType(None)]);
    let charset = "application/json; charset=utf-8";
    assert_eq!(faults(reply(200, Some(charset), MADE)), [Fault::ContentType(Some(charset.into()))]);
    let both = faults(reply(200, Some("text/html"), "oops"));
    assert!(
        matches!(&both[..], [Fault::ContentType(_), Fault::Body(body)] if &*body.rule == "invalid_json"),
        "{both:?}"
    );
    let late = Reply { took: Duration::from_secs(16), ..reply(200, JSON, MADE) };
    assert_eq!(faults(late), [Fault::Late(Duration::from_secs(16))]);
}

#[test]
fn a_slow_answer_is_remarked() {
    let judge = Judge::new(&[]);
    let slow = Reply { took: Duration::from_secs(7), ..reply(200, JSON, MADE) };
    let found = judge.measure(Expect::Success, None).judge(&Outcome { reply: Ok(&slow), behind: None });
    assert_eq!((found.faults, found.notes), (vec![], vec![Note::Slow(Duration::from_secs(7))]));
}

#[test]
fn instances_are_compared_even_where_the_media_type_is_wrong() {
    let judge = Judge::new(&["i-1"]);
    let html = reply(200, Some("text/html"), MADE);
    let wrong = Fault::ContentType(Some("text/html".into()));
    assert_eq!(judge.faults(Expect::Same, Some("i-0"), &html), [wrong.clone(), Fault::SecondInstance]);
    assert_eq!(judge.faults(Expect::Same, Some("i-1"), &html), std::slice::from_ref(&wrong));
    assert_eq!(judge.faults(Expect::Success, None, &html), [wrong, Fault::InstanceReused]);
    // Nothing was told before, so that this is a new order as far as anybody knows.
    assert_eq!(judge.faults(Expect::Same, None, &reply(200, JSON, MADE)), [Fault::InstanceReused]);
}

#[test]
fn a_real_order_may_have_the_instance_of_its_trial_and_of_nobody_else() {
    let judge = Judge::new(&["i-1"]);
    let made = reply(200, JSON, MADE);
    let found = judge.measure(Expect::Either, Some("i-1")).judge(&Outcome { reply: Ok(&made), behind: None });
    assert_eq!((found.faults, found.notes), (vec![], vec![Note::TrialForReal]));
    assert_eq!(judge.faults(Expect::Either, Some("i-0"), &made), [Fault::InstanceReused]);
}

#[test]
fn a_forgery_is_accepted_by_any_2xx_that_does_not_say_no() {
    let judge = Judge::new(&[]);
    let faults = |reply| judge.faults(Expect::Refusal, None, &reply);
    let accepted = [Fault::Accepted(Forgery::Flipped)];
    assert_eq!(faults(reply(200, JSON, MADE)), accepted);
    assert_eq!(faults(reply(200, Some("text/html"), MADE)), accepted);
    assert_eq!(faults(reply(204, None, "")), accepted);
    assert_eq!(faults(reply(200, JSON, NO)), []);
    assert_eq!(faults(reply(200, Some("text/html"), NO)), []);
    assert_eq!(faults(reply(401, None, "")), []);
    assert_eq!(faults(reply(500, None, "")), [Fault::Crashed(500)]);
}

#[test]
fn an_answer_may_be_yes_or_no_but_not_an_error_page() {
    let judge = Judge::new(&[]);
    let found = |reply| judge.measure(Expect::Answer, None).judge(&Outcome { reply: Ok(&reply), behind: None });
    assert_eq!(found(reply(200, JSON, NO)).faults, []);
    assert_eq!(found(reply(200, JSON, MADE)).notes, [Note::UnknownAccepted]);
    assert_eq!(found(reply(404, JSON, NO)).faults, [Fault::Status(404)]);
}

#[test]
fn no_reply_is_told_by_how_it_failed() {
    let judge = Judge::new(&[]);
    let fault = |error| {
        let failure = CallFailure::Call(error);
        judge.measure(Expect::Success, None).judge(&Outcome { reply: Err(&failure), behind: None }).faults
    };
    assert_eq!(fault(CallError::TimedOut), [Fault::TimedOut]);
    assert_eq!(fault(CallError::Broken("x".into())), [Fault::Broken("x".into())]);
    assert_eq!(fault(CallError::Unreachable("x".into())), [Fault::Unreachable("x".into())]);
    let failure = CallFailure::Call(CallError::TimedOut);
    let gone = judge.measure(Expect::Nothing, None).judge(&Outcome { reply: Err(&failure), behind: None });
    assert_eq!(gone, Found::default());
}

#[test]
fn behind_our_gateway_the_backends_reply_is_what_is_wrong() {
    let judge = Judge::new(&[]);
    let gateway = reply(502, JSON, r#"{"success":false,"message":"m","code":"backend_contract"}"#);
    let faults = |behind: Result<&RawReply, &CallError>| {
        judge.measure(Expect::Success, None).judge(&Outcome { reply: Ok(&gateway), behind: Some(behind) }).faults
    };
    assert_eq!(faults(Ok(&raw(200, Some("text/html"), MADE))), [Fault::ContentType(Some("text/html".into()))]);
    assert_eq!(faults(Ok(&raw(500, JSON, MADE))), [Fault::Status(500)]);
    assert_eq!(faults(Ok(&raw(302, JSON, MADE))), [Fault::Status(302)]);
    assert_eq!(faults(Ok(&raw(400, JSON, "{}"))), [Fault::Status(400)]);
    assert!(matches!(&faults(Ok(&raw(200, JSON, "{")))[..], [Fault::Body(body)] if &*body.rule == "invalid_json"));
    assert_eq!(faults(Err(&CallError::TimedOut)), [Fault::TimedOut]);
    // The backend's reply was fine: what is wrong is our gateway's.
    assert_eq!(faults(Ok(&raw(200, JSON, MADE))), [Fault::Status(502)]);
}

#[test]
fn copies_at_once_make_one_instance_and_may_be_told_to_come_again() {
    let judge = Judge::new(&[]);
    let found = |replies: &[Reply]| {
        let outcomes: Vec<_> = replies.iter().map(|reply| Outcome { reply: Ok(reply), behind: None }).collect();
        judge.measure(Expect::Success, None).judge_copies(&outcomes)
    };
    let (one, two) = (reply(200, JSON, MADE), reply(200, JSON, r#"{"success":true,"instanceId":"i-2"}"#));
    let busy = || reply(503, JSON, NO);
    let all = found(&[busy(), reply(200, JSON, MADE), reply(200, JSON, MADE)]);
    assert_eq!((all.faults, all.notes, all.instance), (vec![], vec![Note::ToldToComeAgain(1)], Some("i-1".into())));
    assert_eq!(found(&[one, two]).faults, [Fault::SecondInstance]);
    assert_eq!(found(&[busy(), busy()]).faults, [Fault::Status(503)]);
    assert_eq!(found(&[reply(200, JSON, MADE), reply(200, JSON, NO)]).faults, [Fault::Refused]);
}
