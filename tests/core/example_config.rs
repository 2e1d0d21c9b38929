//! `config/*.toml` against the code: the example names every key with its real default, and
//! both files can be served.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use spigate::config::raw::{
    self, RawApp, RawBackend, RawCertificate, RawConfig, RawFreshness, RawKey, RawProbe, RawRoute, RawSecret,
};
use spigate::config::source::Sources;

fn config_directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config")
}

fn parse(text: &str) -> Value {
    serde_json::to_value(toml::from_str::<toml::Value>(text).unwrap()).unwrap()
}

/// The example with its commented-out keys and tables switched on.
fn with_everything(text: &str) -> String {
    let is_code = |rest: &str| {
        let name = rest.split(['=', ' ', '.']).next().unwrap_or("");
        let is_name =
            |name: &str| !name.is_empty() && name.chars().all(|char| char.is_ascii_alphanumeric() || char == '_');
        rest.starts_with('[') || (is_name(name) && rest[name.len()..].trim_start().starts_with('='))
    };
    let lines = text.lines().map(|line| line.strip_prefix("# ").filter(|rest| is_code(rest)).unwrap_or(line));
    lines.collect::<Vec<_>>().join("\n")
}

/// Every key of the example as `path = default`, `apps` and `keys` as their only element.
fn leaves(value: &Value, path: &str, found: &mut Map<String, Value>) {
    match value {
        Value::Object(object) => {
            for (name, value) in object {
                leaves(value, &format!("{path}.{name}"), found);
            }
        }
        Value::Array(list) if list.iter().any(Value::is_object) => {
            for value in list {
                leaves(value, path, found);
            }
        }
        value => {
            found.insert(path.to_owned(), value.clone());
        }
    }
}

/// Every key that the code knows, with its default; `null` where it has none.
fn known() -> Map<String, Value> {
    let key = json!(serde_json::to_value(RawKey::default()).unwrap());
    let mut route = Map::new();
    route.insert("RenewAppInstance".into(), serde_json::to_value(RawRoute::default()).unwrap());
    let mut app = serde_json::to_value(RawApp::default()).unwrap();
    app["keys"] = json!([key]);
    app["freshness"] = serde_json::to_value(RawFreshness::default()).unwrap();
    app["backend"] = serde_json::to_value(RawBackend::default()).unwrap();
    app["backend"]["routes"] = Value::Object(route);
    app["backend"]["probe"] = serde_json::to_value(RawProbe::default()).unwrap();
    let mut config = serde_json::to_value(RawConfig::default()).unwrap();
    config["apps"] = json!([app]);
    config["listen"]["tls"] = serde_json::to_value(RawCertificate::default()).unwrap();
    // The keys of `[listen]` again.
    config.as_object_mut().unwrap().remove("listeners");
    config["admin"]["token"] = serde_json::to_value(RawSecret::default()).unwrap();
    config["journal"]["encryption_key"] = serde_json::to_value(RawSecret::default()).unwrap();
    let mut found = Map::new();
    leaves(&config, "", &mut found);
    found
}

#[test]
fn the_example_has_every_key_with_its_default() {
    let text = fs::read_to_string(config_directory().join("spigate.example.toml")).unwrap();
    let (mut written, mut all) = (Map::new(), Map::new());
    leaves(&parse(&text), "", &mut written);
    leaves(&parse(&with_everything(&text)), "", &mut all);
    let known = known();
    assert!(known.len() >= 40, "{}", known.len());
    let is_route = |path: &str| path.starts_with(".apps.backend.routes.");
    for path in known.keys().filter(|path| !is_route(path)) {
        assert!(all.contains_key(path), "{path} is not in the example");
    }
    assert!(all.keys().any(|path| is_route(path)), "there is no example of a route");
    assert!(all.contains_key(".listeners.address"), "there is no example of a further listener");
    for (path, value) in written.iter().filter(|(path, _)| !is_route(path)) {
        let default = known.get(path).unwrap_or_else(|| panic!("{path} is not known to the code"));
        // What an app cannot do without has no default.
        assert!(default.is_null() || default == value, "{path} = {value}, but the default is {default}");
    }
}

#[test]
fn the_shipped_configurations_can_be_served() {
    for name in ["spigate.example.toml", "quick-start.toml"] {
        let text = fs::read_to_string(config_directory().join(name)).unwrap();
        let sources = Sources { file: name.into(), text, ..Sources::default() };
        let config = spigate::config::load(&sources, &config_directory());
        let config = config.unwrap_or_else(|problems| panic!("{name}: {problems:#?}"));
        assert_eq!(config.apps.len(), 1, "{name}");
    }
}

#[test]
fn the_schema_accepts_the_examples_and_refuses_unknown_keys() {
    let schema = jsonschema::validator_for(&raw::schema()).unwrap();
    for name in ["spigate.example.toml", "quick-start.toml"] {
        let text = fs::read_to_string(config_directory().join(name)).unwrap();
        let errors = schema.iter_errors(&parse(&text)).map(|error| error.to_string()).collect::<Vec<_>>();
        assert!(errors.is_empty(), "{name}: {errors:?}");
    }
    assert!(!schema.is_valid(&json!({ "limits": { "colour": 1 } })));
    assert!(!schema.is_valid(&json!({ "log": { "level": "loud" } })));
}

#[test]
fn the_schema_shows_defaults() {
    let schema = raw::schema();
    assert_eq!(schema["$defs"]["RawLimits"]["properties"]["parameters"]["default"], json!(64));
    assert_eq!(schema["$defs"]["RawBackend"]["properties"]["answer_within"]["default"], json!("13s"));
}
