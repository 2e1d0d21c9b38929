//! A judged reply is what serde_json says it is, and dropping white space changes no verdict.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use spigate::dialect::builtin;
use spigate::dialect::reply::{Judgement, ReplyContract};
use spigate::json::{self, Member, Seen, Walker};

static CONTRACTS: LazyLock<Vec<ReplyContract>> = LazyLock::new(|| {
    let dialects = builtin::load().expect("built-in dialects load");
    dialects.into_iter().flat_map(|dialect| dialect.actions).map(|action| action.reply).collect()
});

/// Counts keys as they stand in the document.
struct Keys(usize);

impl Walker for Keys {
    type Place = ();
    fn see(&mut self, (): (), _: Seen<'_>) {}
    fn member(&mut self, (): (), _: &str) -> Member<()> {
        self.0 += 1;
        Member::Other(())
    }
    fn element(&mut self, (): ()) {}
}

/// Counts keys as a lenient reader keeps them: the last of two equal ones.
fn kept(value: &Value) -> usize {
    match value {
        Value::Object(members) => members.len() + members.values().map(kept).sum::<usize>(),
        Value::Array(items) => items.iter().map(kept).sum(),
        _ => 0,
    }
}

fuzz_target!(|body: &[u8]| {
    let verdict = json::is_object(body);
    // Ours is stricter than serde_json, never more lenient.
    let value = serde_json::from_slice::<Value>(body).ok();
    if let Ok(is_object) = verdict {
        assert_eq!(value.as_ref().map(Value::is_object), Some(is_object));
        let mut keys = Keys(0);
        json::walk(body, &mut keys, ()).expect("was read before");
        assert_eq!(Some(keys.0), value.as_ref().map(kept), "a key stands twice");
        let text = std::str::from_utf8(body).expect("JSON is UTF-8");
        let compact = json::compact(text);
        for compacted in [json::ascii(&compact).into_owned(), compact] {
            assert_eq!(serde_json::from_str::<Value>(&compacted).ok(), value);
            assert_eq!(json::is_object(compacted.as_bytes()), verdict);
        }
    }
    for contract in CONTRACTS.iter() {
        let judgement = contract.judge(body);
        if verdict != Ok(true) {
            assert!(judgement.is_err());
            continue;
        }
        let (Ok(text), Some(value)) = (std::str::from_utf8(body), &value) else { unreachable!("checked above") };
        assert_eq!(contract.judge(json::compact(text).as_bytes()), judgement);
        let success = match &value["success"] {
            Value::Bool(success) => Some(*success),
            _ => None,
        };
        match judgement {
            Ok(Judgement::Success { instance_id }) => {
                assert!(success.unwrap_or(!contract.success_required && value.get("success").is_none()));
                if let Some(id) = instance_id {
                    assert_eq!(value["instanceId"], Value::String(id.clone()));
                    assert!((1..=128).contains(&id.chars().count()));
                }
            }
            Ok(Judgement::Refusal) => assert_eq!(success, Some(false)),
            Err(violation) => assert!(!violation.rule.is_empty() && !violation.detail.is_empty()),
        }
    }
});
