//! `--print-config` and `--config -`: what a configuration comes to, and from where.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use crate::{KEY, Temporary, err, out};

/// Runs spigate with this on standard input.
fn fed(arguments: &[&str], input: &str, variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_spigate"));
    command.args(arguments).envs(variables.iter().copied());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// A configuration that can be served, with its key in this way.
fn configuration(key: &str) -> String {
    format!(
        "[journal]\nurl = \"postgres://spigate:hunter2@db/spigate?sslmode=require\"\n\
         [[apps]]\nname = \"crm\"\npath = \"/spi\"\ndialect = \"qingcloud-appcenter\"\nkeys = [{{ id = \"k\", {key} }}]\n\
         [apps.backend]\nurl = \"http://crm:9000/spi?token=hunter3\"\n\
         [apps.backend.routes.RenewAppInstance]\npath = \"/renew\"\n"
    )
}

#[test]
fn the_effective_configuration_has_every_source_and_every_default_and_no_secret() {
    let file = Temporary::new(&configuration(&format!("value = \"{KEY}\"")));
    for command in ["check-config", "serve"] {
        let output = fed(
            &[command, "--config", file.path(), "--print-config", "--log-level", "warn"],
            "",
            &[
                ("SPIGATE_LIMITS__PARAMETERS", "77"),
                ("SPIGATE_LOG__LEVEL", "debug"),
                ("SPIGATE_APPS__0__BACKEND__ROUTES__RENEWAPPINSTANCE__METHOD", "PUT"),
                ("SPIGATE_APPS__0__BACKEND__ROUTES__DeleteAppInstance__PATH", "/delete"),
            ],
        );
        assert!(output.status.success(), "{}", err(&output));
        let text = out(&output);
        let shown: toml::Table = text.parse().unwrap();
        assert_eq!(shown["limits"]["parameters"].as_integer(), Some(77));
        assert_eq!(shown["log"]["level"].as_str(), Some("warn"));
        assert_eq!(shown["listen"]["address"].as_str(), Some("0.0.0.0:8080"));
        assert_eq!(shown["shutdown"]["grace"].as_str(), Some("25s"));
        let app = &shown["apps"][0];
        assert_eq!(app["backend"]["answer_within"].as_str(), Some("13s"));
        let route = &app["backend"]["routes"]["RenewAppInstance"];
        assert_eq!((route["path"].as_str(), route["method"].as_str()), (Some("/renew"), Some("PUT")));
        assert_eq!(app["backend"]["routes"]["DeleteAppInstance"]["path"].as_str(), Some("/delete"));
        assert_eq!(app["keys"][0]["value"].as_str(), Some("…"));
        assert_eq!(shown["journal"]["url"].as_str(), Some("postgres://spigate:…@db/spigate?sslmode=require"));
        assert_eq!(app["backend"]["url"].as_str(), Some("http://crm:9000/spi?token=…"));
        for secret in [KEY, "hunter2", "hunter3"] {
            assert!(!text.contains(secret) && !err(&output).contains(secret), "{secret} in\n{text}");
        }
    }
}

#[test]
fn what_is_printed_can_be_loaded_again_once_its_secrets_are_put_in() {
    let file = Temporary::new(&configuration(&format!("value = \"{KEY}\"")));
    let print = ["check-config", "--print-config", "--config"];
    let printed = out(&fed(&[&print[..], &[file.path()]].concat(), "", &[]));
    let masked = fed(&["check-config", "--config", "-"], &printed, &[]);
    assert_eq!(masked.status.code(), Some(1));
    for path in ["journal.url", "apps[0].keys[0].value", "apps[0].backend.url"] {
        let line = err(&masked).lines().find(|line| line.contains(&format!(": {path}: is masked"))).map(str::to_owned);
        assert!(line.is_some_and(|line| line.starts_with("standard input:")), "{path} in\n{}", err(&masked));
    }
    assert!(err(&masked).contains("3 problems found"), "{}", err(&masked));
    let secrets = [
        ("SPIGATE_JOURNAL__URL", "postgres://spigate:hunter2@db/spigate?sslmode=require"),
        ("SPIGATE_APPS__0__KEYS__0__VALUE", KEY),
        ("SPIGATE_APPS__0__BACKEND__URL", "http://crm:9000/spi?token=hunter3"),
    ];
    let again = fed(&[&print[..], &["-"]].concat(), &printed, &secrets);
    assert!(again.status.success(), "{}", err(&again));
    let without_head = |text: &str| text.split_once("\n\n").unwrap().1.to_owned();
    assert_eq!(without_head(&out(&again)), without_head(&printed));
}

#[test]
fn standard_input_is_a_configuration_whose_files_are_where_spigate_was_started() {
    let key = Temporary::new(KEY);
    let (directory, name) = key.path().rsplit_once('/').unwrap();
    let check = |directory: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spigate"));
        command.args(["check-config", "--config", "-"]).current_dir(directory);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let text = configuration(&format!("file = \"{name}\""));
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    let found = check(directory);
    assert!(found.status.success(), "{}", err(&found));
    let lost = check("/");
    assert_eq!(lost.status.code(), Some(1));
    let expected = "standard input:7: apps[0].keys[0].file: cannot be read";
    assert!(err(&lost).contains(expected), "{}", err(&lost));
}

#[test]
fn a_configuration_with_problems_is_not_printed() {
    let output = fed(&["check-config", "--config", "-", "--print-config"], "[log]\nlevel = \"loud\"\n", &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(out(&output).is_empty() && err(&output).contains("standard input:2: log.level: "), "{}", err(&output));
}

#[test]
fn an_action_that_is_written_in_two_ways_has_no_two_routes() {
    let text = configuration(&format!("value = \"{KEY}\"")) + "[apps.backend.routes.renewappinstance]\npath = \"/x\"\n";
    let output = fed(&["check-config", "--config", "-"], &text, &[]);
    assert_eq!(output.status.code(), Some(1));
    let expected = "apps[0].backend.routes.renewappinstance: the action has another route, in other letters";
    assert!(err(&output).contains(expected), "{}", err(&output));
}
