//! `check-config`: everything that is wrong, where it stands, and never a secret.

use std::process::Command;

use serde_json::Value;

use crate::support::Directory;
use crate::support::backend::{Backend, CREATED};
use crate::support::gateway::{Gateway, Setup, check, without_settings};
use crate::support::order::create;

#[tokio::test]
async fn a_configuration_that_serves_is_found_fine() {
    let backend = Backend::confirming().await;
    let checked = Setup::new(&backend).check();
    assert_eq!(checked.code, 0, "{}", checked.text);
    assert!(checked.text.contains("crm"), "{}", checked.text);
}

#[test]
fn all_problems_are_reported_at_once_with_path_and_line() {
    let toml = r#"
[listen]
address = "nowhere"

[limits]
parameters = "many"
query_bytes = "1 GB"
colour = "red"

[log]
level = "loud"

[[apps]]
name = "a b"
path = "spi"
dialect = "qingcloud-appcenter"
keys = [{ id = "k", value = "s3cr3t-one", env = "s3cr3t-name" }, { id = "k", value = 12345678 }]

[apps.freshness]
max_age = "soon"

[apps.backend]
url = "ftp://user:s3cr3t-two@backend/"
send = "carrier-pigeon"
timeout = "1s"

[[apps]]
name = "b"
dialect = "unheard-of"
keys = []
"#;
    let directory = Directory::new();
    let checked = check(&directory, toml);
    assert_eq!(checked.code, 1, "{}", checked.text);
    for (line, path) in [
        (3, "listen.address"),
        (6, "limits.parameters"),
        (7, "limits.query_bytes"),
        (8, "limits.colour"),
        (11, "log.level"),
        (14, "apps[0].name"),
        (15, "apps[0].path"),
        (17, "apps[0].keys[0]"),
        (17, "apps[0].keys[1].value"),
        (20, "apps[0].freshness.max_age"),
        (23, "apps[0].backend.url"),
        (24, "apps[0].backend.send"),
        (25, "apps[0].backend.timeout"),
        (29, "apps[1].dialect"),
    ] {
        let expected = format!("spigate.toml:{line}: {path}: ");
        assert!(checked.text.contains(&expected), "{expected} is not in\n{}", checked.text);
    }
    assert!(checked.text.contains("apps[1].path") && checked.text.contains(" problems found"), "{}", checked.text);
    for secret in ["s3cr3t-one", "s3cr3t-two", "12345678"] {
        assert!(!checked.text.contains(secret), "{secret} is shown:\n{}", checked.text);
    }
}

#[test]
fn a_secret_in_the_wrong_place_is_not_shown() {
    let directory = Directory::new();
    for toml in [
        "key = \"s3cr3t\"\n",
        "[[apps]]\nkeys = \"s3cr3t\"\n",
        "[[apps]]\nkeys = [\"s3cr3t\"]\n",
        "[[apps]]\nkeys = [{ id = \"k\", value = [\"s3cr3t\"] }]\n",
        "[[apps]]\nkeys = [{ id = \"k\", state = \"s3cr3t\" }]\n",
        "[[apps]]\nkeys = [{ id = \"k\", value = \"s3cr3t }]\n",
        "[limits]\nparameters = \"s3cr3t\"\n",
        "[[apps]]\nkeys = [{ id = \"k\", value = s3cr3t }]\n",
    ] {
        let checked = check(&directory, toml);
        assert_eq!(checked.code, 1, "{toml}\n{}", checked.text);
        assert!(!checked.text.contains("s3cr3t"), "{toml}\n{}", checked.text);
    }
}

#[test]
fn a_key_that_the_dialect_cannot_use_is_a_problem_of_its_place() {
    let directory = Directory::new();
    directory.write("empty", "\n");
    let checked = check(
        &directory,
        "[[apps]]\nname = \"a\"\npath = \"/a\"\ndialect = \"qingcloud-appcenter\"\nbackend = { url = \"http://b/\" }\n\
         keys = [{ id = \"one\", file = \"empty\" },\n{ id = \"two\", file = \"absent\" },\n\
         { id = \"three\", env = \"NO_SUCH_VARIABLE_ANYWHERE\" }]\n",
    );
    assert_eq!(checked.code, 1);
    for expected in [":6: apps[0].keys[0].file: ", ":7: apps[0].keys[1].file: ", ":8: apps[0].keys[2].env: "] {
        assert!(checked.text.contains(expected), "{expected} is not in\n{}", checked.text);
    }
}

#[tokio::test]
async fn keys_may_come_from_a_file_or_the_environment() {
    let backend = Backend::confirming().await;
    let app = |name: &str, key: &str| {
        format!(
            "[[apps]]\nname = \"{name}\"\npath = \"/{name}\"\ndialect = \"qingcloud-appcenter\"\nkeys = [{key}]\n\
             backend = {{ url = \"{}\" }}\n",
            backend.url("/")
        )
    };
    let apps = app("file", "{ id = \"f\", file = \"secrets/key\" }") + &app("env", "{ id = \"e\", env = \"THE_KEY\" }");
    let setup =
        Setup::new(&backend).more(&apps).file("secrets/key", "key of the file\n").environment("THE_KEY", "key=2");
    let gateway = setup.start().await;
    gateway.order(&create().path("/file").key("key of the file")).await.assert_is(CREATED);
    gateway.order(&create().path("/env").key("key=2")).await.assert_is(CREATED);
}

#[tokio::test]
async fn what_cannot_be_served_does_not_start() {
    let backend = Backend::confirming().await;
    let running = Gateway::over(&backend).await;
    let serve = |toml: &str| {
        let config = running.directory().write("second.toml", toml);
        let mut command = Command::new(env!("CARGO_BIN_EXE_spigate"));
        let output = without_settings(&mut command).args(["serve", "--config"]).arg(config).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    };
    let (code, text) = serve("[[apps]]\nkeys = [{ value = \"s3cr3t\", colour = 1 }]\n");
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("apps[0].keys[0].colour") && !text.contains("s3cr3t"), "{text}");
    // An address that is taken.
    let taken = format!(
        "[journal]\nurl = \"sqlite:./second.db\"\n[listen]\naddress = \"{}\"\n[admin]\naddress = \"127.0.0.1:0\"\n[[apps]]\nname = \"a\"\npath = \"/a\"\n\
         dialect = \"qingcloud-appcenter\"\nkeys = [{{ id = \"k\", value = \"s3cr3t\" }}]\n\
         backend = {{ url = \"http://127.0.0.1:1/\" }}\n",
        running.listen
    );
    let (code, text) = serve(&taken);
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("listen.address") && !text.contains("s3cr3t"), "{text}");
}

#[test]
fn the_schema_is_a_valid_json_schema_and_accepts_the_example() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_spigate"));
    let output = without_settings(&mut command).args(["check-config", "--schema"]).output().unwrap();
    assert!(output.status.success());
    let schema: Value = serde_json::from_slice(&output.stdout).unwrap();
    jsonschema::meta::validate(&schema).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/config/spigate.example.toml");
    let Ok(example) = std::fs::read_to_string(example) else {
        println!("skipped: config/spigate.example.toml is absent");
        return;
    };
    let mut example = serde_json::to_value(toml::from_str::<toml::Value>(&example).unwrap()).unwrap();
    let errors: Vec<_> = validator.iter_errors(&example).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{errors:#?}");
    // It is no schema that accepts everything.
    example["limits"]["colour"] = "red".into();
    assert!(!validator.is_valid(&example));
}

#[test]
fn what_would_fail_every_request_is_found_before_it_is_served() {
    let app = |dialect: &str, url: &str, more: &str| {
        format!(
            "[[apps]]\nname = \"crm\"\npath = \"/spi\"\ndialect = \"{dialect}\"\nkeys = []\n\
             [apps.backend]\nurl = \"{url}\"\n{more}"
        )
    };
    let known = "qingcloud-appcenter";
    for (toml, wanted) in [
        (app(known, "http://127.0.0.1:99999/x", ""), "apps[0].backend.url: must have a port"),
        (app(known, "http://127.0.0.1:0/x", ""), "apps[0].backend.url: must have a port"),
        (app(known, "http://[::1]:x/", ""), "apps[0].backend.url: "),
        (
            app(known, "http://h", "routes.RenewAppInstance = { path = \"/a<b>\" }"),
            "apps[0].backend.routes.RenewAppInstance.path: must begin with /",
        ),
        // One problem does not hide the others of its app.
        (app("nowhere", "ftp://h", "answer_within = \"soon\""), "apps[0].dialect: is not known"),
        (app("nowhere", "ftp://h", "answer_within = \"soon\""), "apps[0].backend.url: must begin with http"),
        (app("nowhere", "ftp://h", "answer_within = \"soon\""), "apps[0].backend.answer_within: is not a duration"),
        (app("nowhere", "ftp://h", ""), "apps[0].keys: there is no active key"),
    ] {
        let checked = check(&Directory::new(), &toml);
        assert_eq!(checked.code, 1, "{toml}\n{}", checked.text);
        assert!(checked.text.contains(wanted), "{wanted} not in\n{}", checked.text);
    }
    let checked = check(&Directory::new(), "listen = {\n");
    assert!(checked.text.contains("1 problem found"), "{}", checked.text);
}
