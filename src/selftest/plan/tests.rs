//! What dialects come to.

use std::collections::HashSet;

use super::*;
use crate::dialect::{builtin, file};

fn options() -> Options {
    Options {
        own: Vec::new(),
        strict: false,
        window: (Duration::from_secs(300), Duration::from_secs(60)),
        can_hold: false,
    }
}

fn ids(cases: &[Case]) -> Vec<&str> {
    cases.iter().map(|case| case.id.as_str()).collect()
}

#[test]
fn every_action_of_every_dialect_is_played_and_no_name_is_taken_twice() {
    for dialect in builtin::load().unwrap() {
        let cases = plan(&dialect, &options());
        let played: HashSet<_> = cases.iter().flat_map(|case| &case.steps).map(|step| step.call.action).collect();
        assert_eq!(played.len(), dialect.actions.len(), "{}", dialect.name);
        let names: HashSet<_> = ids(&cases).into_iter().collect();
        assert_eq!(names.len(), cases.len());
    }
}

#[test]
fn trials_come_before_real_orders_and_only_the_real_group_is_real() {
    for dialect in builtin::load().unwrap() {
        let cases = plan(&dialect, &options());
        assert!(cases.iter().all(|case| case.real == (case.group == Group::Real)));
        let real = cases.iter().position(|case| case.real).unwrap();
        assert!(cases[..real].iter().any(|case| case.id == "create"));
        let steps = cases.iter().filter(|case| !case.real).flat_map(|case| &case.steps);
        assert!(steps.into_iter().all(|step| step.call.trial));
    }
}

#[test]
fn cases_follow_what_the_dialect_has() {
    let dialects = builtin::load().unwrap();
    let [center, market] = &dialects[..] else { panic!() };
    let (center, market) = (plan(center, &options()), plan(market, &options()));
    let (center, market) = (ids(&center), ids(&market));
    let only_there: Vec<_> = center.iter().filter(|id| !market.contains(id)).collect();
    assert_eq!(
        only_there,
        [&"required-only", &"without-order-number", &"signature-in-header", &"signature-in-both", &"other-method"]
    );
    assert!(market.iter().all(|id| center.contains(id)));
}

#[test]
fn a_strict_gateway_is_not_asked_for_what_it_refuses() {
    let dialect = &builtin::load().unwrap()[0];
    let cases = plan(dialect, &Options { strict: true, ..options() });
    assert!(!ids(&cases).contains(&"required-only") && !ids(&cases).contains(&"without-order-number"));
}

#[test]
fn the_users_own_values_are_left_alone() {
    let dialect = &builtin::load().unwrap()[0];
    let own = vec![("spec".to_owned(), "gold".to_owned()), ("period".to_owned(), "1_day".to_owned())];
    let cases = plan(dialect, &Options { own, ..options() });
    let changed = cases.iter().flat_map(|case| &case.steps).flat_map(|step| &step.call.fields);
    assert!(changed.into_iter().all(|(name, _)| name != "spec" && name != "period"));
    assert!(!ids(&cases).contains(&"periods"));
    assert!(ids(&cases).contains(&"chinese"));
}

#[test]
fn forged_times_lie_beyond_any_known_window() {
    let dialect = &builtin::load().unwrap()[0];
    let day = Duration::from_secs(86_400);
    for (window, expected) in [(Duration::from_secs(300), 3_600), (day, 86_460)] {
        let cases = plan(dialect, &Options { window: (window, window), ..options() });
        let seconds = |id: &str| cases.iter().find(|case| case.id == id).unwrap().steps[0].call.seconds;
        assert_eq!((seconds("time-expired"), seconds("time-in-future")), (-expected, expected));
    }
}

/// A dialect with two actions of a kind, one of none, and no mark of trials.
const BARE: &str = r#"
name = "bare"
title = "Bare"
[signature]
parameter = "s"
mac = "hmac-sha256"
output = "hex"
key = "text"
[canonical]
prefix = ""
encoding = "rfc3986"
[protocol]
action = "event"
instance = "tenant"
[[fields]]
name = "tenant"
type = "text"
sample = "t"
[actions.gone]
kind = "delete"
required = ["tenant"]
dedupe = "tenant"
reply = "done"
[actions.opened]
kind = "create"
reply = "opened"
[actions.pinged]
kind = "other"
reply = "done"
[actions.reopened]
kind = "create"
reply = "opened"
[replies.done]
success = "required"
sample = '{"success":true}'
[replies.opened]
success = "required"
instance_id = "tenant"
sample = '{"success":true,"tenant":"{new_id}"}'
[replies.opened.on_success]
tenant = { type = "string", required = true }
"#;

#[test]
fn a_dialect_without_trials_numbers_and_times_has_fewer_cases_and_all_orders_are_real() {
    let dialect = file::load(BARE).unwrap();
    let cases = plan(&dialect, &options());
    assert!(cases.iter().all(|case| case.real));
    let ids = ids(&cases);
    for there in ["create", "delete-twice", "action-pinged", "action-reopened", "retry-identical", "changed-value"] {
        assert!(ids.contains(&there), "{there} not in {ids:?}");
    }
    for not_there in ["test", "renew", "retry-resigned", "two-purchases", "time-expired", "real-create", "periods"] {
        assert!(!ids.contains(&not_there), "{not_there} in {ids:?}");
    }
}
