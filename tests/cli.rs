//! The command line as a user types it: exit codes, what is printed where, and that nothing
//! secret is printed at all.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

const KEY: &str = "m7Zt+Q4vX/0nWc8yRk1LhJpE2sDgUaFb";
const PUBLISHED_KEY: &str = "2UNHjKQE9u6A4np4kI++o5iXPcn3cA6yZjDEdHN3iXfDFwCRaKtCQHSLT9HdeF+1";
const PUBLISHED_QUERY: &str = "user_id=usr-xx1xx&signature=puc6rZedSRTUTgSWoIX63eYb9ZM3QRuBWS1Jows9I5E%3D&action=CreateAppInstance&time_stamp=2021-06-23T07%3A26%3A13Z&spec=5aWX6aSQ5ZCN56ewMQ%3D%3D&cloud_info=eyJhcGlfc2VydmVyIjogImFwaS5xaW5nY2xvdWQuY29tOjc3NzciLCAic3NvX3NlcnZlciI6ICJzc28ucWluZ2Nsb3VkLmNvbSJ9&period=1_day&app_id=app-xxxxx";

fn spigate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_spigate")).args(arguments).output().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A file that is gone after the test.
struct Temporary(PathBuf);

impl Temporary {
    fn new(text: &str) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("spigate-cli-{}-{number}.toml", std::process::id()));
        std::fs::write(&path, text).unwrap();
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn the_demo_plays_every_step_and_ends_with_once() {
    for dialect in ["qingcloud-appcenter", "qingcloud-market"] {
        let output = spigate(&["demo", "--once", "--dialect", dialect]);
        assert!(output.status.success(), "{dialect}: {}", err(&output));
        let table = out(&output);
        for wanted in ["signature_invalid", "timestamp_expired", "field_missing", "backend_contract", "Deletion"] {
            assert!(table.contains(wanted), "{dialect}: {wanted} not in\n{table}");
        }
        assert!(!table.contains("WRONG"));
        let widest = table.lines().map(|line| line.chars().count()).max();
        assert!(widest <= Some(100), "{widest:?}");
    }
    // The published request needs a dialect that has one.
    let table = out(&spigate(&["demo", "--once"]));
    assert!(table.contains("套餐名称1") && table.contains("user_id: \"usr-xx1xx\""), "{table}");
}

#[test]
fn sign_prints_a_url_that_explain_verifies() {
    let key = Temporary::new(&format!("{KEY}\n"));
    for (dialect, action) in [("qingcloud-appcenter", "CreateAppInstance"), ("qingcloud-market", "CreateInstance")] {
        let signed = spigate(&[
            "sign",
            "--url",
            "https://shop.example/spi?platform=a%20b",
            "--key-file",
            key.path(),
            "--dialect",
            dialect,
            "--action",
            action,
            "--sample",
            "--field",
            "note=it's ~*+/ 套",
        ]);
        assert!(signed.status.success(), "{}", err(&signed));
        let text = out(&signed);
        let (url, curl) = text.trim_end().split_once('\n').unwrap();
        assert!(url.starts_with("https://shop.example/spi?platform=a+b&"), "{url}");
        assert!(curl.starts_with("curl -i '"), "{curl}");
        let explained = spigate(&["explain", url, "--key-file", key.path()]);
        assert!(explained.status.success(), "{}", err(&explained));
        let text = out(&explained);
        for wanted in [dialect, "signature  verifies", "标准版 2核/4G", "contract   kept", "it's ~*+/ 套"] {
            assert!(text.contains(wanted), "{wanted} not in\n{text}");
        }
        assert!(!text.contains(KEY));
    }
}

#[test]
fn sign_says_what_is_missing_and_refuses_what_it_does_not_know() {
    let key = Temporary::new(KEY);
    let sign = |action: &str, more: &[&str]| {
        let mut arguments = vec!["sign", "--url", "http://h/spi", "--key-file", key.path(), "--action", action];
        arguments.extend(more);
        spigate(&arguments)
    };
    let output = sign("CreateAppInstance", &[]);
    assert!(output.status.success());
    assert!(err(&output).contains("user_id, app_id, spec"), "{}", err(&output));
    assert_eq!(sign("CreateAppInstence", &[]).status.code(), Some(2));
    assert_eq!(sign("TestConnection", &["--dialect", "nowhere"]).status.code(), Some(2));
    assert_eq!(sign("TestConnection", &["--field", "action=x"]).status.code(), Some(2));
    let output = spigate(&["sign", "--url", "http://h", "--key-file", "/nonexistent", "--action", "TestConnection"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(err(&output).contains("/nonexistent: cannot be read"));
}

#[test]
fn explain_reads_log_lines_from_standard_input() {
    let key = Temporary::new(PUBLISHED_KEY);
    let mut child = Command::new(env!("CARGO_BIN_EXE_spigate"))
        .args(["explain", "--key-file", key.path()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let line = format!("10.0.0.1 - - [23/Jun/2021:07:26:14 +0000] \"GET /spi?{PUBLISHED_QUERY} HTTP/1.1\" 401 134\n");
    child.stdin.take().unwrap().write_all(line.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", err(&output));
    assert!(out(&output).contains("套餐名称1"));
    assert!(out(&output).contains("GET\\naction=CreateAppInstance&"));
}

#[test]
fn explain_names_the_mistake() {
    let (key, other) = (Temporary::new(KEY), Temporary::new("another key"));
    // 'method line missing' of the signing vectors.
    let query = "action=TestConnection&time_stamp=2026-01-02T03%3A04%3A05Z&signature=vMgw6ThyhGMY6wthxHuYdEbTNKA%2Fk08SDvNzbVWeuyo%3D";
    let output = spigate(&["explain", query, "--key-file", key.path()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(err(&output).contains("the method line is missing"), "{}", err(&output));
    let output = spigate(&["explain", query, "--key-file", other.path()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(err(&output).contains("no known mistake explains it"), "{}", err(&output));
    // Two files of one name are two keys.
    let directories =
        ["a", "b"].map(|name| std::env::temp_dir().join(format!("spigate-cli-{}-{name}", std::process::id())));
    let files = directories.each_ref().map(|directory| {
        std::fs::create_dir_all(directory).unwrap();
        directory.join("app_key")
    });
    std::fs::write(&files[0], "another key").unwrap();
    std::fs::write(&files[1], KEY).unwrap();
    let [first, second] = files.each_ref().map(|file| file.to_str().unwrap());
    let output = spigate(&["explain", query, "--key-file", first, "--key-file", second]);
    for directory in directories {
        std::fs::remove_dir_all(directory).unwrap();
    }
    assert!(err(&output).contains("the method line is missing"), "{}", err(&output));
    let output = spigate(&["explain", "action=TestConnection", "--key-file", key.path()]);
    assert!(err(&output).contains("underscores_in_headers"), "{}", err(&output));
    assert_eq!(spigate(&["explain", "hello", "--key-file", key.path()]).status.code(), Some(2));
    // Genuine as far as the signature goes, but the gateway would not take its time.
    let signed = spigate(&[
        "sign",
        "--url",
        "http://h/spi",
        "--key-file",
        key.path(),
        "--action",
        "TestConnection",
        "--time",
        "yesterday",
    ]);
    let output = spigate(&["explain", out(&signed).lines().next().unwrap(), "--key-file", key.path()]);
    assert!(out(&output).contains("timestamp_invalid"), "{}", out(&output));
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn explain_takes_the_keys_of_a_configuration() {
    let config = Temporary::new(&format!(
        "[[apps]]\nname = \"crm\"\npath = \"/spi\"\ndialect = \"qingcloud-appcenter\"\n\
         keys = [{{ id = \"new\", value = \"n\" }}, {{ id = \"old\", value = \"{PUBLISHED_KEY}\", state = \"retired\" }}]\n\
         [apps.backend]\nurl = \"http://127.0.0.1:9\"\n"
    ));
    let output = spigate(&["explain", PUBLISHED_QUERY, "--config", config.path()]);
    assert_eq!(output.status.code(), Some(1), "the gateway would refuse it");
    let said = err(&output);
    assert!(said.contains("old of app crm") && said.contains("signed with a retired key of the app"), "{said}");
    assert!(!(out(&output) + &said).contains(PUBLISHED_KEY));

    // The app at the request's path is the one that it is judged for.
    let app = |name: &str, key: &str| {
        format!(
            "[[apps]]\nname = \"{name}\"\npath = \"/{name}\"\ndialect = \"qingcloud-appcenter\"\n\
             keys = [{{ id = \"k\", value = \"{key}\" }}]\n[apps.backend]\nurl = \"http://127.0.0.1:9\"\n"
        )
    };
    let config = Temporary::new(&(app("crm", "n") + &app("erp", PUBLISHED_KEY)));
    let explain = |path: &str| {
        let url = format!("https://shop.example{path}?{PUBLISHED_QUERY}");
        let output = spigate(&["explain", &url, "--config", config.path()]);
        (output.status.code(), out(&output) + &err(&output))
    };
    let (code, said) = explain("/crm");
    assert!(code == Some(1) && said.contains("signed with a key of another app"), "{said}");
    // Genuine, but years old.
    let (code, said) = explain("/erp");
    assert!(code == Some(1) && said.contains("verifies with key k of app erp"), "{said}");
    assert!(said.contains("timestamp_expired"), "{said}");
}

#[test]
fn explain_shows_control_characters_as_text() {
    let key = Temporary::new(KEY);
    let query = "action=TestConnection&x=%1b%5b2J%e2%80%ae&time_stamp=1&signature=a";
    let text = out(&spigate(&["explain", query, "--key-file", key.path()]));
    assert!(text.contains("\\u{1b}[2J\\u{202e}"), "{text}");
    assert!(!text.contains('\u{1b}'));
}

#[test]
fn call_fails_where_the_platform_would_come_again() {
    let key = Temporary::new(KEY);
    let call = |url: &str| {
        spigate(&["call", "--url", url, "--key-file", key.path(), "--action", "TestConnection", "--timeout", "5s"])
    };
    let output = call("http://127.0.0.1:1/spi");
    assert_eq!(output.status.code(), Some(1));
    assert!(err(&output).contains("the platform would come again"), "{}", err(&output));
    assert_eq!(call("ftp://h/spi").status.code(), Some(2));
}

#[test]
fn help_names_every_command() {
    let text = out(&spigate(&["--help"]));
    for command in ["serve", "demo", "sign", "call", "explain", "check-config"] {
        assert!(text.contains(command), "{text}");
    }
}
