//! The command line as a user types it: exit codes, what is printed where, and that nothing
//! secret is printed at all.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on must stop, and one that is skipped says so"
)]

mod effective;
mod shell;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use spigate::config::scalar::Secret;
use spigate::journal::entry::{Ask, Claimant, End, Ending, Lifecycle, Reason, Subject};
use spigate::journal::key::{DeliveryKey, Fingerprint, Origin};
use spigate::journal::sqlite::SqliteStore;
use spigate::journal::store::{Archive as _, Deliveries as _, Filter};
use spigate::journal::vault::{Opened, Vault};

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
    for command in ["serve", "demo", "sign", "call", "selftest", "explain", "journal", "check-config"] {
        assert!(text.contains(command), "{text}");
    }
}

/// A journal in a file, its configuration, and what a gateway recorded in it.
struct JournalFile {
    directory: PathBuf,
    config: Temporary,
    /// Serves from the file for as long as the test looks at it.
    store: SqliteStore,
    vault: Vault,
    runtime: tokio::runtime::Runtime,
}

const PASSWORD: &str = "hunter2";

impl JournalFile {
    fn new(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("spigate-cli-{}-journal-{name}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let file = directory.join("spigate.db");
        let config = Temporary::new(&format!(
            "[journal]\nurl = \"sqlite:{}\"\n[[apps]]\nname = \"crm\"\npath = \"/spi\"\n\
             dialect = \"qingcloud-appcenter\"\nkeys = [{{ id = \"k\", value = \"{KEY}\" }}]\n\
             [apps.backend]\nurl = \"http://127.0.0.1:9\"\n",
            file.display()
        ));
        Self {
            store: SqliteStore::serve(&file, |_| {}).unwrap(),
            vault: Vault::new([("crm".to_owned(), vec![Secret::new(KEY)])], None),
            runtime: tokio::runtime::Runtime::new().unwrap(),
            directory,
            config,
        }
    }

    fn reply(instance: &str) -> String {
        let password = format!(r#"{{"admin":{{"password":"{PASSWORD}"}}}}"#);
        format!(r#"{{"success":true,"instanceId":"{instance}","appInfo":{password}}}"#)
    }

    /// Delivers a purchase; confirmed if it makes an instance, else unconfirmed. Its id.
    fn deliver(&self, number: u16, order: &str, instance: Option<&str>) -> String {
        let mut bytes = [0; 32];
        bytes[..2].copy_from_slice(&number.to_be_bytes());
        let now = spigate::clock::now();
        let ask = Arc::new(Ask {
            base: DeliveryKey::from_slice(&bytes).unwrap(),
            subject: Arc::new(Subject {
                origin: Origin::from_slice(&bytes).unwrap(),
                lookalike: None,
                fingerprint: Fingerprint::from_slice(&bytes).unwrap(),
                extras: spigate::journal::key::Extras::from_slice(&[0; 32]).unwrap(),
                app: "crm".into(),
                action: "CreateAppInstance".into(),
                debug: false,
                order_id: Some(order.into()),
                instance_id: None,
                user_id: None,
            }),
            lifecycle: Lifecycle::None,
            hold: true,
            instance_must_be_new: true,
            claimant: Claimant { gateway: "gw".into(), number: i64::from(number) },
            request_id: "r".into(),
            now,
        });
        self.runtime.block_on(async {
            let entry = self.store.claim(Arc::clone(&ask)).await.unwrap().entry;
            let ending = match instance {
                Some(instance) => {
                    let reply = Self::reply(instance);
                    let reply = self.vault.seal(&self.store, "crm", &entry.key, reply.as_bytes(), now).await.unwrap();
                    Ending::Confirmed { instance_id: Some(instance.into()), reply }
                }
                None => Ending::Unconfirmed(Reason { code: "backend_timeout".into(), ..Reason::default() }),
            };
            let end = End { ask, key: entry.key, cycle: 0, attempt: 1, began_at: now, ending, now };
            self.store.finish(end).await.unwrap();
            entry.key.idempotency_key()
        })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spigate"));
        command.arg("journal").args(arguments).args(["--config", self.config.path()]);
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }
}

impl Drop for JournalFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

#[test]
fn the_journal_is_looked_at_beside_its_gateway() {
    let journal = JournalFile::new("look");
    let done = journal.deliver(1, "o-1", Some("i-1"));
    let doubt = journal.deliver(2, "o-2", None);
    let listed = out(&journal.run(&["list"]));
    assert!(listed.lines().count() == 3 && listed.contains(&done) && listed.contains(&doubt), "{listed}");
    let listed = out(&journal.run(&["list", "--outcome", "unanswered", "--since", "1h", "--format", "json"]));
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 1);
    assert_eq!(listed[0]["id"], done.as_str());
    let none = journal.run(&["list", "--until", "1h", "--app", "erp"]);
    assert!(none.status.success() && none.stdout.is_empty());
    assert!(err(&none).contains("no app called erp"), "{}", err(&none));

    let shown = out(&journal.run(&["show", &done[..8]]));
    assert!(shown.contains("\"password\": \"(redacted)\"") && !shown.contains(PASSWORD), "{shown}");
    assert!(out(&journal.run(&["show", "--order", "o-1", "--reveal"])).contains(PASSWORD));
    assert_eq!(journal.run(&["show", "--order", "o-9"]).status.code(), Some(1));
    assert_eq!(journal.run(&["show", "0123456789"]).status.code(), Some(1));
    assert_eq!(journal.run(&["show"]).status.code(), Some(2));
    assert_eq!(journal.run(&["show", "%"]).status.code(), Some(2));
    assert_eq!(journal.run(&["list", "--outcome", "lost"]).status.code(), Some(2));

    let exported = out(&journal.run(&["export"]));
    assert!(exported.lines().count() == 2 && !exported.contains(PASSWORD), "{exported}");
    assert!(exported.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()));
    let pruned = journal.run(&["prune"]);
    assert_eq!(out(&pruned), "removed 0 replies, 0 deliveries, and 0 rows about instances\n");
}

#[test]
fn an_operator_decides_about_a_delivery_in_doubt() {
    let journal = JournalFile::new("resolve");
    let done = journal.deliver(1, "o-1", Some("i-1"));
    let doubt = journal.deliver(2, "o-2", None);
    let resolve = |id: &str, decision: &[&str], input: &str| {
        let mut command = journal.command(&["resolve", id]);
        let mut child =
            command.args(decision).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // A command that is refused may not read it.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    };
    for (arguments, code, said) in [
        (&["--retry", "--failed"][..], 2, "cannot be used with"),
        (&[], 2, "required"),
        (&["--done"], 2, "--reply"),
        (&["--retry", "--message", "x"], 2, "cannot be used with"),
        (&["--retry", "--reply", "-"], 2, "cannot be used with"),
        (&["--done", "--reply", "/nonexistent"], 2, "cannot be read"),
        (&["--done", "--reply", "-"], 1, "instance_id_missing"),
    ] {
        let output = resolve(&doubt, arguments, r#"{"success":true}"#);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", err(&output));
        assert!(err(&output).contains(said), "{arguments:?}: {}", err(&output));
    }
    let output = resolve(&done, &["--retry"], "");
    assert_eq!(output.status.code(), Some(1));
    assert!(err(&output).contains("is done"), "{}", err(&output));

    let output = resolve(&doubt[..10], &["--done", "--reply", "-"], &JournalFile::reply("i-2"));
    assert!(output.status.success(), "{}", err(&output));
    assert!(out(&output).contains("the next copy gets this reply"), "{}", out(&output));
    // The gateway that serves from the file sees it, and can open the reply.
    let replayed = journal.runtime.block_on(async {
        let filter = Filter { order_id: Some("o-2".into()), ..Filter::default() };
        let entry = journal.store.list(filter, None, 1).await.unwrap().remove(0).entry;
        assert_eq!(entry.confirmation.as_ref().unwrap().instance_id.as_deref(), Some("i-2"));
        journal.vault.open(&journal.store, "crm", &entry.key, entry.reply.as_ref().unwrap()).await.unwrap()
    });
    assert!(replayed == Opened::Reply(JournalFile::reply("i-2").into()));
}

#[test]
fn a_journal_that_nobody_can_look_at_is_explained() {
    let app = "[[apps]]\nname = \"crm\"\npath = \"/spi\"\ndialect = \"qingcloud-appcenter\"\n\
               keys = [{ id = \"k\", value = \"v\" }]\n[apps.backend]\nurl = \"http://127.0.0.1:9\"\n";
    for (url, said) in [
        ("memory:", "cannot be looked at from outside"),
        ("sqlite:/nonexistent/spigate.db", "there is no such journal"),
    ] {
        let config = Temporary::new(&format!("[journal]\nurl = \"{url}\"\n{app}"));
        for command in [&["list"][..], &["export"], &["prune"], &["show", "012345"], &["resolve", "012345", "--retry"]]
        {
            let output = spigate(&[&["journal"], command, &["--config", config.path()]].concat());
            assert_eq!(output.status.code(), Some(2), "{command:?}");
            assert!(err(&output).contains(said), "{command:?}: {}", err(&output));
        }
    }
}

#[test]
fn a_reader_that_has_seen_enough_ends_an_export_in_peace() {
    let journal = JournalFile::new("pipe");
    // More than any pipe holds.
    for number in 0..300 {
        journal.deliver(number, &"o".repeat(1_000), Some(&format!("i-{number}")));
    }
    for command in ["export", "list"] {
        let mut child = journal.command(&[command]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", err(&output));
        assert!(!err(&output).contains("panicked"), "{}", err(&output));
    }
}

#[test]
fn journal_help_says_what_can_be_asked_and_decided() {
    let help = |command: &[&str]| {
        let mut spigate = Command::new(env!("CARGO_BIN_EXE_spigate"));
        out(&spigate.env("COLUMNS", "100").arg("journal").args(command).arg("--help").output().unwrap())
    };
    insta::assert_snapshot!(help(&[]), @r"
    See what became of deliveries, and decide about those in doubt

    Usage: spigate journal <COMMAND>

    Commands:
      list     List deliveries, latest first
      show     Show everything about a delivery: its attempts, decisions and reply
      export   Print deliveries with their replies as JSON, one a line, latest first
      resolve  Decide what becomes of a delivery that may have been executed
      prune    Remove now what is older than journal.retain_replies and journal.retain_history
      help     Print this message or the help of the given subcommand(s)

    Options:
      -h, --help  Print help
    ");
    insta::assert_snapshot!(help(&["list"]), @r"
    List deliveries, latest first

    Usage: spigate journal list [OPTIONS] --config <FILE>

    Options:
          --config <FILE>        The configuration file that the gateway serves with: it names the
                                 journal, and its keys open the replies
          --app <APP>            Of this app
          --action <ACTION>      With this action, as the platform calls it
          --order <NUMBER>       With this order number
          --instance <ID>        About this instance, or that made it
          --user <ID>            Of this customer
          --outcome <OUTCOME>    What became of them: where they stand (running, open, unconfirmed,
                                 done, closed), how any attempt ended (confirmed, refused, failed,
                                 duplicate_confirmed), or unanswered: confirmed by the backend, never
                                 answered to the platform
          --since <TIME>         Received at or after this time: RFC 3339, or a duration like 2h or 7d
                                 for so long ago
          --until <TIME>         Received before this time
          --limit <NUMBER>       Most deliveries to list [default: 50]
          --format <table|json>  As a table, or as one JSON array for programs [default: table]
      -h, --help                 Print help
    ");
    insta::assert_snapshot!(help(&["resolve"]), @r"
    Decide what becomes of a delivery that may have been executed

    Usage: spigate journal resolve [OPTIONS] --config <FILE> <--retry|--done|--failed|--settled> <ID>

    Arguments:
      <ID>  Its Idempotency-Key, or the first digits of it

    Options:
          --config <FILE>   The configuration file that the gateway serves with: it names the journal,
                            and its keys open the replies
          --retry           It was not executed, or may be once more: forward the next copy
          --done            It was executed: answer the next copy with --reply, without calling the
                            backend
          --failed          It failed for good: refuse every copy with --message
          --settled         It is done, and the platform or the customer was told by other means: no
                            longer count it as unanswered
          --reply <FILE>    With --done: the file with the reply that the backend gave or would have
                            given; - reads standard input. Shells keep passwords in their history:
                            prefer a file
          --by <NAME>       Who decides; kept with the delivery
          --why <TEXT>      Why; kept with the delivery
          --message <TEXT>  With --failed: what the platform is told
      -h, --help            Print help
    ");
}
