//! Every key of the schema can be set by its variable.

use serde_json::{Value, json};
use spigate::config::keys::Node;
use spigate::config::source::Sources;

/// Name of a map's key that has letters of both cases, as actions have.
const CHOSEN: &str = "RenewAppInstance";

/// Every key that takes one text: its variable without `SPIGATE_`, its place in JSON, and its
/// schema.
fn leaves(node: Node<'static>, variable: &str, place: &str, found: &mut Vec<(String, String, Value)>) {
    let join = |variable: &str, part: &str| {
        if variable.is_empty() { part.to_owned() } else { format!("{variable}__{part}") }
    };
    if node.is_single() {
        found.push((variable.to_owned(), place.to_owned(), node.schema().clone()));
    } else if let Some(item) = node.item() {
        leaves(item, &join(variable, "0"), &format!("{place}/0"), found);
    } else if let Some(value) = node.value() {
        leaves(value, &join(variable, CHOSEN), &format!("{place}/{CHOSEN}"), found);
    } else {
        for name in node.names() {
            let below = node.key(name).unwrap();
            leaves(below, &join(variable, &name.to_ascii_uppercase()), &format!("{place}/{name}"), found);
        }
    }
}

/// A text that sets a key to something that is not its default, and what it is then.
fn other_than(default: &Value, schema: &Value) -> (String, Value) {
    let choices = schema["oneOf"].as_array().map(|kinds| kinds.iter().map(|kind| kind["const"].clone()).collect());
    if let Some(choices) = choices.or_else(|| schema["enum"].as_array().cloned()) {
        let choice = choices.into_iter().find(|choice| choice != default && !choice.is_null()).unwrap();
        return (choice.as_str().unwrap().to_owned(), choice);
    }
    let kind = schema["type"].as_str().or_else(|| schema["type"][0].as_str()).unwrap_or_default();
    match kind {
        "boolean" => {
            let other = !default.as_bool().unwrap_or_default();
            (other.to_string(), json!(other))
        }
        "integer" => {
            let other = default.as_u64().unwrap_or_default() + 1;
            (other.to_string(), json!(other))
        }
        "array" => ("one, two".into(), json!(["one", "two"])),
        "string" if schema["writeOnly"] == true => ("a secret".into(), json!("…")),
        "string" => ("12345".into(), json!("12345")),
        _ => panic!("no text for {schema}"),
    }
}

#[test]
fn every_key_can_be_set_by_its_variable() {
    let mut keys = Vec::new();
    leaves(Node::root(), "", "", &mut keys);
    assert!(keys.len() >= 45, "{}", keys.len());
    let route = format!("APPS__0__BACKEND__ROUTES__{CHOSEN}__PATH");
    for expected in ["DIALECT_DIR", "LOG__LEVEL", "JOURNAL__ENCRYPTION_KEY__VALUE", &route] {
        assert!(keys.iter().any(|(variable, _, _)| variable == expected), "{expected} is not in {keys:#?}");
    }
    let read = |environment: &[(String, String)]| {
        let sources = Sources { environment: environment.to_vec(), ..Sources::default() };
        let (raw, problems) = sources.read();
        assert_eq!(problems, [], "{environment:?}");
        serde_json::to_value(raw.unwrap()).unwrap()
    };
    let none = read(&[]);
    let mut all = Vec::new();
    for (variable, place, schema) in &keys {
        let default = none.pointer(place).unwrap_or(&schema["default"]);
        let (text, value) = other_than(default, schema);
        let setting = (format!("SPIGATE_{variable}"), text);
        let with = read(std::slice::from_ref(&setting));
        assert_eq!(with.pointer(place), Some(&value), "{variable}");
        all.push((setting, place, value));
    }
    // And none is in the way of another.
    let settings = all.iter().map(|(setting, _, _)| setting.clone()).collect::<Vec<_>>();
    let with = read(&settings);
    for (setting, place, value) in all {
        assert_eq!(with.pointer(place), Some(&value), "{}", setting.0);
    }
}
