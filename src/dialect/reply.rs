//! The reply contract: what a backend's body has to be before the platform may see it.
//!
//! One pass over the bytes, guided by the dialect's tree of members: strictness, `success`, the
//! contract and the new instance's id all come out of that pass, and the body itself is passed
//! on as it came. Transport (status, media type) is judged in `stage/validate.rs`.

use std::fmt;
use std::sync::Arc;

use crate::json::{self, JsonError, Member as Key, Seen, Walker};

/// What the dialect demands of one kind of reply.
#[derive(Clone, Debug)]
pub struct ReplyContract {
    /// Whether `success` must be present; absent and optional means success.
    pub success_required: bool,
    /// Members of the body; at most 64 in the whole tree.
    pub members: Vec<Member>,
    /// A valid reply for examples; `{new_id}` and `{password}` are filled in by whoever uses it.
    pub sample: String,
}

/// A member of the reply, with what is demanded of it.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its key.
    pub key: String,
    /// What it must be.
    pub kind: MemberKind,
    /// Whether `null` will do.
    pub nullable: bool,
    /// Whether it must be there.
    pub required: bool,
    /// Whether all this is demanded of a success only.
    pub on_success: bool,
    /// For strings: fewest and most characters (Unicode scalar values).
    pub length: Option<(usize, usize)>,
    /// Whether this is the new instance's id.
    pub is_instance_id: bool,
    /// The member's path as one word, the stem of its rule names: `app_info_front_end`.
    pub rule_stem: String,
    /// Which bit of a 64-bit set stands for it; unique in its contract.
    pub bit: u8,
    /// Members of an object.
    pub members: Vec<Member>,
}

/// The JSON types a contract can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberKind {
    /// A string.
    String,
    /// A number.
    Number,
    /// A boolean.
    Boolean,
    /// An object.
    Object,
    /// An array.
    Array,
}

/// A reply that keeps the contract.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// The backend did it.
    Success {
        /// The id of the instance, where the contract names one.
        instance_id: Option<String>,
    },
    /// The backend says no, in the protocol's words.
    Refusal,
}

/// The first rule that a reply breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Stable name, from a set that the dialect bounds: label of a metric.
    pub rule: Arc<str>,
    /// What was demanded and what came, for a human. Never a value.
    pub detail: String,
}

impl Violation {
    /// A rule with a fixed name.
    pub fn new(rule: &str, detail: impl Into<String>) -> Self {
        Self { rule: rule.into(), detail: detail.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.detail)
    }
}

impl ReplyContract {
    /// Judges a reply's body.
    ///
    /// # Errors
    /// The first rule broken, in the order: JSON, object, `success`, members.
    pub fn judge(&self, body: &[u8]) -> Result<Judgement, Violation> {
        let mut findings = Findings::default();
        json::walk(body, &mut findings, Place::Top(&self.members)).map_err(|error| match error {
            JsonError::Empty => Violation::new("empty_body", "the reply has no body"),
            JsonError::Invalid => Violation::new("invalid_json", "the reply is not valid JSON"),
            JsonError::DuplicateKey => Violation::new("duplicate_key", "a key stands twice in one object of the reply"),
        })?;
        if !findings.is_object {
            return Err(Violation::new("not_an_object", "the reply is JSON, but not an object"));
        }
        let success = match findings.success {
            Success::Is(success) => success,
            Success::Absent if self.success_required => {
                return Err(Violation::new("success_missing", "`success` is missing; it must be true or false"));
            }
            Success::Absent => true,
            Success::NotBoolean => {
                return Err(Violation::new("success_type", "`success` must be true or false, as a JSON boolean"));
            }
        };
        findings.find_missing(&self.members);
        match (findings.always, findings.on_success) {
            (Some(violation), _) => Err(violation),
            (None, Some(violation)) if success => Err(violation),
            (None, _) if success => Ok(Judgement::Success { instance_id: findings.instance_id }),
            (None, _) => Ok(Judgement::Refusal),
        }
    }

    /// The smallest success that keeps the contract and names this instance, with every required
    /// text as empty as it may be: what is left of a recorded reply once its credentials are
    /// removed.
    pub fn minimal(&self, instance_id: Option<&str>) -> String {
        let mut body = serde_json::Map::new();
        if self.success_required {
            body.insert("success".to_owned(), serde_json::Value::Bool(true));
        }
        body.extend(minimal_members(&self.members, instance_id));
        serde_json::Value::Object(body).to_string()
    }
}

fn minimal_members(members: &[Member], instance_id: Option<&str>) -> serde_json::Map<String, serde_json::Value> {
    let needed = members.iter().filter(|member| member.required || (instance_id.is_some() && names_instance(member)));
    needed.map(|member| (member.key.clone(), minimal_value(member, instance_id))).collect()
}

fn minimal_value(member: &Member, instance_id: Option<&str>) -> serde_json::Value {
    use serde_json::Value;
    match (member.kind, instance_id) {
        (MemberKind::String, Some(id)) if member.is_instance_id => Value::String(id.to_owned()),
        (MemberKind::Object, _) if instance_id.is_some() && names_instance(member) => {
            Value::Object(minimal_members(&member.members, instance_id))
        }
        _ if member.nullable => Value::Null,
        // What an empty text could mean, as often as characters are demanded.
        (MemberKind::String, _) => Value::String("-".repeat(member.length.map_or(0, |(fewest, _)| fewest))),
        (MemberKind::Number, _) => Value::from(0),
        (MemberKind::Boolean, _) => Value::Bool(false),
        (MemberKind::Object, _) => Value::Object(minimal_members(&member.members, instance_id)),
        (MemberKind::Array, _) => Value::Array(Vec::new()),
    }
}

/// Whether this is the instance's id, or holds it.
fn names_instance(member: &Member) -> bool {
    member.is_instance_id || member.members.iter().any(names_instance)
}

/// Where in the contract the reader stands.
#[derive(Clone, Copy)]
enum Place<'c> {
    Top(&'c [Member]),
    Success,
    Member(&'c Member),
    Unknown,
}

#[derive(Default)]
struct Findings<'c> {
    is_object: bool,
    success: Success,
    /// Members seen, by their bits.
    seen: u64,
    /// Those of them that are objects.
    objects: u64,
    always: Option<Violation>,
    on_success: Option<Violation>,
    instance_id: Option<String>,
    contract: std::marker::PhantomData<&'c Member>,
}

#[derive(Default)]
enum Success {
    #[default]
    Absent,
    Is(bool),
    NotBoolean,
}

impl<'c> Walker for Findings<'c> {
    type Place = Place<'c>;

    fn see(&mut self, place: Place<'c>, seen: Seen<'_>) {
        match place {
            Place::Unknown => {}
            Place::Top(_) => self.is_object = seen == Seen::Object,
            Place::Success => {
                self.success = match seen {
                    Seen::Bool(success) => Success::Is(success),
                    _ => Success::NotBoolean,
                };
            }
            Place::Member(member) => self.check(member, seen),
        }
    }

    fn member(&mut self, place: Place<'c>, key: &str) -> Key<Place<'c>> {
        let members = match place {
            Place::Top(_) if key == "success" => {
                let first = matches!(self.success, Success::Absent);
                return if first { Key::First(Place::Success) } else { Key::Again };
            }
            Place::Top(members) => members,
            Place::Member(member) => &member.members,
            Place::Success | Place::Unknown => return Key::Other(Place::Unknown),
        };
        match members.iter().find(|member| member.key == key) {
            // Objects that hold members of the contract stand once themselves, so each has one bit.
            Some(member) if self.seen & (1 << member.bit) == 0 => Key::First(Place::Member(member)),
            Some(_) => Key::Again,
            None => Key::Other(Place::Unknown),
        }
    }

    fn element(&mut self, _: Place<'c>) -> Place<'c> {
        Place::Unknown
    }
}

impl Findings<'_> {
    fn check(&mut self, member: &Member, seen: Seen<'_>) {
        self.seen |= 1 << member.bit;
        if seen == Seen::Object {
            self.objects |= 1 << member.bit;
        }
        match (member.kind, seen) {
            (_, Seen::Null) if member.nullable => {}
            (MemberKind::String, Seen::String(text)) => {
                if let Some((fewest, most)) = member.length {
                    // As many characters as bytes at most, and one at least if there is any byte.
                    let is_plain = text.len() <= most && fewest <= usize::from(!text.is_empty());
                    // Counting stops early: a reply may hold a megabyte here.
                    let counted = || text.chars().take(most + 1).count();
                    if !is_plain && !(fewest..=most).contains(&counted()) {
                        self.violated(member, "length", || {
                            format!("`{}` must have {fewest} to {most} characters", member.key)
                        });
                        return;
                    }
                }
                if member.is_instance_id {
                    self.instance_id = Some(text.to_owned());
                }
            }
            (MemberKind::Number, Seen::Number)
            | (MemberKind::Boolean, Seen::Bool(_))
            | (MemberKind::Object, Seen::Object)
            | (MemberKind::Array, Seen::Array) => {}
            _ => self.violated(member, "type", || {
                let or_null = if member.nullable { " or null" } else { "" };
                format!("`{}` must be {}{or_null}, and is {}", member.key, member.kind.describe(), describe(seen))
            }),
        }
    }

    /// Finds required members of objects that are there.
    fn find_missing(&mut self, members: &[Member]) {
        for member in members {
            if self.objects & (1 << member.bit) != 0 {
                self.find_missing(&member.members);
            } else if member.required && self.seen & (1 << member.bit) == 0 {
                self.violated(member, "missing", || format!("`{}` is required and missing", member.key));
            }
        }
    }

    fn violated(&mut self, member: &Member, what: &str, detail: impl FnOnce() -> String) {
        let slot = if member.on_success { &mut self.on_success } else { &mut self.always };
        slot.get_or_insert_with(|| Violation { rule: format!("{}_{what}", member.rule_stem).into(), detail: detail() });
    }
}

impl MemberKind {
    fn describe(self) -> &'static str {
        match self {
            Self::String => "a string",
            Self::Number => "a number",
            Self::Boolean => "true or false",
            Self::Object => "an object",
            Self::Array => "an array",
        }
    }
}

fn describe(seen: Seen<'_>) -> &'static str {
    match seen {
        Seen::Null => "null",
        Seen::Bool(_) => "a boolean",
        Seen::Number => "a number",
        Seen::String(_) => "a string",
        Seen::Array => "an array",
        Seen::Object => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn string(key: &str, bit: u8) -> Member {
        Member {
            key: key.to_owned(),
            kind: MemberKind::String,
            nullable: false,
            required: true,
            on_success: false,
            length: None,
            is_instance_id: false,
            rule_stem: key.to_owned(),
            bit,
            members: Vec::new(),
        }
    }

    #[test]
    fn null_for_a_nullable_object_lacks_none_of_its_members() {
        let info =
            Member { kind: MemberKind::Object, nullable: true, members: vec![string("url", 1)], ..string("info", 0) };
        let contract = ReplyContract { success_required: false, members: vec![info], sample: String::new() };
        let rule = |body: &str| contract.judge(body.as_bytes()).err().map(|violation| violation.rule.to_string());
        assert_eq!(rule(r#"{"info":null}"#), None);
        assert_eq!(rule(r#"{"info":{"url":"x"}}"#), None);
        assert_eq!(rule(r#"{"info":{}}"#).as_deref(), Some("url_missing"));
        assert_eq!(rule(r#"{"info":[]}"#).as_deref(), Some("info_type"));
        assert_eq!(rule("{}").as_deref(), Some("info_missing"));
    }

    #[test]
    fn no_key_stands_twice_whether_the_contract_knows_it_or_not() {
        let info = Member { kind: MemberKind::Object, members: vec![string("url", 1)], ..string("info", 0) };
        let contract = ReplyContract { success_required: false, members: vec![info], sample: String::new() };
        let rule = |body: &str| contract.judge(body.as_bytes()).err().map(|violation| violation.rule.to_string());
        for twice in [
            r#"{"success":true,"success":true}"#,
            r#"{"success":null,"info":{"url":"x"},"succes\u0073":true}"#,
            r#"{"info":{"url":"x"},"info":{"url":"x"}}"#,
            r#"{"info":7,"info":{"url":"x"}}"#,
            r#"{"info":{"url":"x","u\u0072l":"y"}}"#,
            r#"{"info":{"url":null,"more":1,"url":"y"}}"#,
            r#"{"info":{"url":"x","success":1,"success":1}}"#,
            r#"{"other":1,"info":{"url":"x"},"other":1}"#,
            r#"{"other":{"url":1,"url":1},"info":{"url":"x"}}"#,
            r#"{"other":[{"info":1},{"info":1,"info":1}],"info":{"url":"x"}}"#,
        ] {
            assert_eq!(rule(twice).as_deref(), Some("duplicate_key"), "{twice}");
        }
        for once in [
            r#"{"info":{"url":"x","info":{"url":1},"success":1},"url":1,"success":true}"#,
            r#"{"other":[{"info":1},{"info":1}],"info":{"url":"x","other":1}}"#,
        ] {
            assert_eq!(rule(once), None, "{once}");
        }
    }

    #[test]
    fn the_smallest_reply_is_a_success_of_every_action_and_names_the_instance() {
        for dialect in crate::dialect::builtin::load().unwrap() {
            for action in &dialect.actions {
                let names_instance = action.reply.members.iter().any(names_instance);
                let body = action.reply.minimal(Some("i-\"1\""));
                let instance_id = names_instance.then(|| "i-\"1\"".to_owned());
                assert_eq!(action.reply.judge(body.as_bytes()), Ok(Judgement::Success { instance_id }), "{body}");
                let body = action.reply.minimal(None);
                assert!(matches!(action.reply.judge(body.as_bytes()), Ok(Judgement::Success { .. })), "{body}");
            }
        }
    }

    #[test]
    fn the_smallest_reply_has_what_is_required_at_any_depth_and_nothing_else() {
        let id = Member { required: false, is_instance_id: true, ..string("id", 1) };
        let password = Member { required: false, ..string("password", 2) };
        let token = Member { length: Some((3, 9)), ..string("token", 3) };
        let info = Member {
            kind: MemberKind::Object,
            nullable: true,
            members: vec![id, password, token],
            ..string("info", 0)
        };
        let state = Member { nullable: true, ..string("state", 4) };
        let contract = ReplyContract { success_required: true, members: vec![info, state], sample: String::new() };
        let body = contract.minimal(Some("i"));
        assert_eq!(body, r#"{"success":true,"info":{"id":"i","token":"---"},"state":null}"#);
        assert_eq!(contract.judge(body.as_bytes()), Ok(Judgement::Success { instance_id: Some("i".into()) }));
        assert_eq!(contract.minimal(None), r#"{"success":true,"info":null,"state":null}"#);
    }
}
