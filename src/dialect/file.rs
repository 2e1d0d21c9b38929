//! The file format of dialects: raw TOML in, a compiled [`Dialect`] out, or all its problems.
//!
//! `docs/dialects.md` explains every key. A problem names its place in the file.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use http::HeaderName;
use serde::Deserialize;

use super::canonical::{CanonicalForm, Encoding, PrefixPart};
use super::field::FieldType;
use super::mac::{KeyTransform, MacAlgorithm, TagEncoding};
use super::reply::{Member, MemberKind, ReplyContract};
use super::time::TimeFormat;
use super::{Action, ActionKind, Dialect, Field, Presence, Published, SignatureRule, TimeRule};
use crate::query::Names;

/// Everything wrong with a dialect file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(Vec<String>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

impl std::error::Error for Problems {}

/// Loads a dialect from the text of its file.
///
/// # Errors
/// All problems of its content, or the first of its syntax.
pub fn load(text: &str) -> Result<Dialect, Problems> {
    let raw: RawDialect = toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        Problems(vec![format!("line {line}: {}", error.message())])
    })?;
    Compiler::default().compile(raw)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDialect {
    name: String,
    title: String,
    signature: RawSignature,
    canonical: RawCanonical,
    time: Option<RawTime>,
    protocol: RawProtocol,
    #[serde(default)]
    fields: Vec<RawField>,
    actions: BTreeMap<String, RawAction>,
    replies: BTreeMap<String, RawReply>,
    #[serde(default)]
    published: Vec<RawPublished>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSignature {
    parameter: String,
    header: Option<String>,
    mac: RawMac,
    output: RawOutput,
    key: RawKey,
}

#[derive(Deserialize)]
enum RawMac {
    #[serde(rename = "hmac-sha256")]
    HmacSha256,
    #[serde(rename = "hmac-sha512")]
    HmacSha512,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawOutput {
    Base64,
    Hex,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawKey {
    Text,
    Base64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCanonical {
    #[serde(default)]
    prefix: String,
    encoding: RawEncoding,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawEncoding {
    Rfc3986,
    Form,
    Plain,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTime {
    parameter: String,
    format: RawTimeFormat,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum RawTimeFormat {
    Iso8601,
    UnixSeconds,
    UnixMilliseconds,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawProtocol {
    action: String,
    debug: Option<String>,
    order: Option<String>,
    instance: Option<String>,
    user: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawField {
    name: String,
    #[serde(rename = "type")]
    kind: RawFieldType,
    #[serde(default = "yes")]
    fingerprint: bool,
    sample: Option<String>,
}

fn yes() -> bool {
    true
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum RawFieldType {
    Text,
    Base64Text,
    Base64Json,
    Boolean,
    Period,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAction {
    #[serde(default)]
    kind: RawActionKind,
    #[serde(default)]
    required: Vec<String>,
    #[serde(default)]
    expected: Vec<String>,
    #[serde(default)]
    optional: Vec<String>,
    dedupe: Option<String>,
    reply: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "lowercase")]
enum RawActionKind {
    Create,
    Renew,
    Upgrade,
    Expire,
    Delete,
    Test,
    #[default]
    Other,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawReply {
    success: RawSuccess,
    sample: String,
    instance_id: Option<String>,
    #[serde(default)]
    always: BTreeMap<String, RawMember>,
    #[serde(default)]
    on_success: BTreeMap<String, RawMember>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawSuccess {
    Required,
    Optional,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMember {
    #[serde(rename = "type")]
    kind: RawMemberKind,
    #[serde(default)]
    required: bool,
    #[serde(default)]
    nullable: bool,
    min_length: Option<usize>,
    max_length: Option<usize>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawMemberKind {
    String,
    Number,
    Boolean,
    Object,
    Array,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPublished {
    title: String,
    key: String,
    query: String,
}

/// Collects problems while it compiles.
#[derive(Default)]
struct Compiler {
    problems: Vec<String>,
}

impl Compiler {
    fn compile(mut self, raw: RawDialect) -> Result<Dialect, Problems> {
        let fields = self.fields(&raw);
        let field_index = |name: &str| fields.iter().position(|field: &Field| field.name == name);
        let header = raw.signature.header.as_deref().and_then(|name| {
            let header = HeaderName::from_bytes(name.as_bytes()).ok();
            if header.is_none() {
                self.problem("signature.header", "is not a header name");
            }
            header
        });
        let debug = raw.protocol.debug.as_deref().and_then(|name| {
            let index = field_index(name).filter(|&index| fields[index].kind == FieldType::Boolean);
            if index.is_none() {
                self.problem("protocol.debug", "must name a boolean of [[fields]]");
            }
            index
        });
        let mut role = |key: &str, name: Option<&String>| {
            let index = name.and_then(|name| field_index(name));
            if name.is_some() && index.is_none() {
                self.problem(key, "must name one of [[fields]]");
            }
            index
        };
        let order = role("protocol.order", raw.protocol.order.as_ref());
        let instance = role("protocol.instance", raw.protocol.instance.as_ref());
        let user = role("protocol.user", raw.protocol.user.as_ref());
        let mut replies = BTreeMap::new();
        for (name, reply) in raw.replies {
            let contract = self.reply(&format!("replies.{name}"), reply);
            replies.insert(name, contract);
        }
        let mut actions = Vec::with_capacity(raw.actions.len());
        for (name, action) in raw.actions {
            let at = format!("actions.{name}");
            if name.is_empty() || name == "unknown" {
                self.problem(&at, "an action cannot be called this");
            }
            let presence = self.presence(&at, &fields, &action);
            let dedupe = action.dedupe.as_deref().and_then(|field| {
                let index = field_index(field);
                if index.is_none() {
                    self.problem(&format!("{at}.dedupe"), "must name one of [[fields]]");
                }
                index
            });
            let Some(reply) = replies.get(&action.reply) else {
                self.problem(&format!("{at}.reply"), "must name one of [replies]");
                continue;
            };
            let kind = action.kind.compiled();
            actions.push(Action { name, kind, presence, dedupe, reply: reply.clone() });
        }
        if actions.is_empty() {
            self.problem("actions", "there must be at least one");
        }
        let time = raw.time.as_ref().map(|time| &time.parameter);
        let names = fields.iter().map(|field| &field.name);
        let names = names.chain([&raw.protocol.action, &raw.signature.parameter]).chain(time);
        let dialect = Dialect {
            names: Names::new(names.map(String::as_str)),
            name: raw.name,
            title: raw.title,
            signature: SignatureRule {
                parameter: raw.signature.parameter,
                header,
                mac: match raw.signature.mac {
                    RawMac::HmacSha256 => MacAlgorithm::HmacSha256,
                    RawMac::HmacSha512 => MacAlgorithm::HmacSha512,
                },
                output: match raw.signature.output {
                    RawOutput::Base64 => TagEncoding::Base64,
                    RawOutput::Hex => TagEncoding::Hex,
                },
                key: match raw.signature.key {
                    RawKey::Text => KeyTransform::Text,
                    RawKey::Base64 => KeyTransform::Base64,
                },
            },
            canonical: CanonicalForm {
                prefix: prefix(&raw.canonical.prefix),
                encoding: match raw.canonical.encoding {
                    RawEncoding::Rfc3986 => Encoding::Rfc3986,
                    RawEncoding::Form => Encoding::Form,
                    RawEncoding::Plain => Encoding::Plain,
                },
            },
            time: raw.time.map(|time| TimeRule {
                parameter: time.parameter,
                format: match time.format {
                    RawTimeFormat::Iso8601 => TimeFormat::Iso8601,
                    RawTimeFormat::UnixSeconds => TimeFormat::UnixSeconds,
                    RawTimeFormat::UnixMilliseconds => TimeFormat::UnixMilliseconds,
                },
            }),
            action_parameter: raw.protocol.action,
            debug,
            order,
            instance,
            user,
            fields,
            actions,
            published: raw
                .published
                .into_iter()
                .map(|published| Published { title: published.title, key: published.key, query: published.query })
                .collect(),
        };
        if self.problems.is_empty() { Ok(dialect) } else { Err(Problems(self.problems)) }
    }

    fn problem(&mut self, at: &str, what: &str) {
        self.problems.push(format!("{at}: {what}"));
    }

    fn fields(&mut self, raw: &RawDialect) -> Vec<Field> {
        let mut taken = vec![raw.protocol.action.as_str(), raw.signature.parameter.as_str()];
        taken.extend(raw.time.as_ref().map(|time| time.parameter.as_str()));
        for (index, field) in raw.fields.iter().enumerate() {
            if field.name.is_empty() || taken.contains(&field.name.as_str()) {
                self.problem(&format!("fields[{index}].name"), "is empty or used twice");
            }
            taken.push(&field.name);
        }
        let compiled = raw.fields.iter().map(|field| Field {
            name: field.name.clone(),
            kind: match field.kind {
                RawFieldType::Text => FieldType::Text,
                RawFieldType::Base64Text => FieldType::Base64Text,
                RawFieldType::Base64Json => FieldType::Base64Json,
                RawFieldType::Boolean => FieldType::Boolean,
                RawFieldType::Period => FieldType::Period,
            },
            in_fingerprint: field.fingerprint,
            sample: field.sample.clone(),
        });
        compiled.collect()
    }

    fn presence(&mut self, at: &str, fields: &[Field], action: &RawAction) -> Vec<Presence> {
        let mut presence = vec![Presence::Undocumented; fields.len()];
        let lists = [
            ("required", &action.required, Presence::Required),
            ("expected", &action.expected, Presence::Expected),
            ("optional", &action.optional, Presence::Optional),
        ];
        for (list, names, kind) in lists {
            for name in names {
                match fields.iter().position(|field| field.name == *name) {
                    Some(index) if presence[index] == Presence::Undocumented => presence[index] = kind,
                    Some(_) => self.problem(&format!("{at}.{list}"), &format!("names {name} twice")),
                    None => self.problem(&format!("{at}.{list}"), &format!("{name} is not one of [[fields]]")),
                }
            }
        }
        presence
    }

    fn reply(&mut self, at: &str, raw: RawReply) -> ReplyContract {
        let lists = [("always", raw.always, false), ("on_success", raw.on_success, true)];
        let mut flat: Vec<(String, Member)> = Vec::new();
        for (list, members, on_success) in lists {
            for (path, member) in members {
                let bit = u8::try_from(flat.len()).unwrap_or(u8::MAX);
                if bit >= 64 {
                    self.problem(at, "has more than 64 members");
                    break;
                }
                if path.split('.').any(str::is_empty) || path == "success" {
                    self.problem(&format!("{at}.{list}"), &format!("`{path}` is not a path of a member"));
                    continue;
                }
                let (fewest, most) = (member.min_length.unwrap_or(0), member.max_length.unwrap_or(usize::MAX - 1));
                if fewest > most {
                    self.problem(&format!("{at}.{list}.{path}"), "min_length is above max_length");
                }
                let limited = member.min_length.is_some() || member.max_length.is_some();
                flat.push((
                    path.clone(),
                    Member {
                        key: path.rsplit('.').next().unwrap_or(&path).to_owned(),
                        kind: match member.kind {
                            RawMemberKind::String => MemberKind::String,
                            RawMemberKind::Number => MemberKind::Number,
                            RawMemberKind::Boolean => MemberKind::Boolean,
                            RawMemberKind::Object => MemberKind::Object,
                            RawMemberKind::Array => MemberKind::Array,
                        },
                        nullable: member.nullable,
                        required: member.required,
                        on_success,
                        length: limited.then_some((fewest, most)),
                        is_instance_id: raw.instance_id.as_deref() == Some(path.as_str()),
                        rule_stem: rule_stem(&path),
                        bit,
                        members: Vec::new(),
                    },
                ));
            }
        }
        if let Some(path) = &raw.instance_id
            && !flat.iter().any(|(known, member)| known == path && member.kind == MemberKind::String)
        {
            self.problem(&format!("{at}.instance_id"), "must name a string of this reply");
        }
        let members = self.tree(at, flat);
        ReplyContract { success_required: matches!(raw.success, RawSuccess::Required), members, sample: raw.sample }
    }

    /// Hangs every member below its object. Sorted by path, an object comes before its members.
    fn tree(&mut self, at: &str, mut flat: Vec<(String, Member)>) -> Vec<Member> {
        flat.sort_by(|(a, _), (b, _)| a.cmp(b));
        let mut top: Vec<Member> = Vec::new();
        for (path, member) in flat {
            let mut parents = path.split('.').collect::<Vec<_>>();
            parents.pop();
            let mut place = Some(&mut top);
            for key in parents {
                place = place
                    .and_then(|members| members.iter_mut().find(|known| known.key == key))
                    .filter(|known| known.kind == MemberKind::Object)
                    .map(|known| &mut known.members);
            }
            match place {
                Some(members) if members.iter().any(|known| known.key == member.key) => {
                    self.problem(at, &format!("`{path}` stands twice"));
                }
                Some(members) => members.push(member),
                None => self.problem(at, &format!("`{path}` needs an object above it in the same reply")),
            }
        }
        top
    }
}

impl RawActionKind {
    fn compiled(&self) -> ActionKind {
        match self {
            Self::Create => ActionKind::Create,
            Self::Renew => ActionKind::Renew,
            Self::Upgrade => ActionKind::Upgrade,
            Self::Expire => ActionKind::Expire,
            Self::Delete => ActionKind::Delete,
            Self::Test => ActionKind::Test,
            Self::Other => ActionKind::Other,
        }
    }
}

fn prefix(template: &str) -> Vec<PrefixPart> {
    let mut parts = Vec::new();
    for (index, literal) in template.split("{method}").enumerate() {
        if index > 0 {
            parts.push(PrefixPart::Method);
        }
        if !literal.is_empty() {
            parts.push(PrefixPart::Literal(literal.to_owned()));
        }
    }
    parts
}

/// `appInfo.frontEnd` becomes `app_info_front_end`.
fn rule_stem(path: &str) -> String {
    path.chars().fold(String::new(), |mut stem, char| {
        match char {
            '.' | '-' => stem.push('_'),
            char if char.is_ascii_uppercase() => {
                // Writing to a String cannot fail.
                let _ = write!(stem, "_{}", char.to_ascii_lowercase());
            }
            char => stem.push(char),
        }
        stem
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = r#"
name = "small"
title = "Small"
[signature]
parameter = "sig"
mac = "hmac-sha256"
output = "hex"
key = "text"
[canonical]
encoding = "form"
[protocol]
action = "do"
[[fields]]
name = "order"
type = "text"
[actions.Buy]
required = ["order"]
dedupe = "order"
reply = "done"
[replies.done]
success = "required"
sample = '{"success":true}'
"#;

    fn problems(text: &str) -> String {
        load(text).expect_err("has problems").to_string()
    }

    #[test]
    fn a_small_file_is_enough() {
        let dialect = load(SMALL).unwrap();
        assert_eq!(dialect.actions[0].kind, ActionKind::Other);
        assert!(dialect.time.is_none());
        assert!(dialect.canonical.prefix.is_empty());
    }

    #[test]
    fn every_problem_is_named_with_its_place() {
        let broken = SMALL
            .replace("required = [\"order\"]", "required = [\"order\", \"colour\"]\noptional = [\"order\"]")
            .replace("dedupe = \"order\"", "dedupe = \"size\"")
            .replace("action = \"do\"", "action = \"do\"\ndebug = \"order\"")
            .replace("sample = '{", "instance_id = \"id\"\nalways = { \"a.b\" = { type = \"string\" } }\nsample = '{");
        let text = problems(&broken);
        for problem in [
            "actions.Buy.required: colour is not one of [[fields]]",
            "actions.Buy.optional: names order twice",
            "actions.Buy.dedupe: must name one of [[fields]]",
            "protocol.debug: must name a boolean",
            "replies.done.instance_id: must name a string",
            "replies.done: `a.b` needs an object above it",
        ] {
            assert!(text.contains(problem), "{problem} not in: {text}");
        }
        assert!(problems(&SMALL.replace("[protocol]", "[protocol]\ncolour = 1")).starts_with("line 12: unknown field"));
        assert!(problems(&SMALL.replace("name = \"order\"", "name = \"sig\"")).contains("fields[0].name"));
    }

    #[test]
    fn rules_are_named_after_paths() {
        assert_eq!(rule_stem("instanceId"), "instance_id");
        assert_eq!(rule_stem("appInfo.frontEnd.url"), "app_info_front_end_url");
    }
}
