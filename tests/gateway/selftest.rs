//! `spigate selftest` against backends that are right, wrong and hostile, bare and behind a gateway.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;
use spigate::config::scalar::Secret;
use spigate::selftest::plan::{Options, plan};
use spigate::selftest::report::{Overall, Summary, Verdict};
use spigate::selftest::run::{Run, Stop};
use spigate::selftest::target::Target;

use crate::dialects::BAZAAR;
use crate::examples::{Example, example};
use crate::ports::free_port;
use crate::support::backend::{Backend, Seen, Step, json, raw, reply};
use crate::support::gateway::{Gateway, Setup, without_settings};
use crate::support::order::{KEY, dialect};
use crate::support::process::Process;
use crate::support::{Directory, has_program, within_deadline};

const CENTER: &str = "qingcloud-appcenter";
const MARKET: &str = "qingcloud-market";

/// What a run of the command printed, and how it ended.
struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Ran {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|_| panic!("no JSON: {}{}", self.out, self.err))
    }

    /// Names of the cases that came to this.
    fn cases(&self, verdict: &str) -> Vec<String> {
        let json = self.json();
        let cases = json["cases"].as_array().unwrap().iter().filter(|case| case["verdict"] == verdict);
        cases.map(|case| case["id"].as_str().unwrap().to_owned()).collect()
    }

    /// Names of the rules that a case breaks.
    fn rules(&self, id: &str) -> Vec<String> {
        let json = self.json();
        let case = json["cases"].as_array().unwrap().iter().find(|case| case["id"] == id);
        let findings = case.unwrap_or_else(|| panic!("no case {id}"))["findings"].as_array().unwrap().clone();
        findings.iter().map(|finding| finding["rule"].as_str().unwrap().to_owned()).collect()
    }

    #[track_caller]
    fn assert_all_passed(&self) {
        assert_eq!(self.code, 0, "{}{}", self.out, self.err);
        let summary = &self.json()["summary"];
        assert_eq!(summary["passed"], summary["total"], "{summary}");
    }
}

/// A run of the command in a directory with a key and perhaps a configuration.
struct Bench {
    directory: Directory,
}

impl Bench {
    fn new() -> Self {
        let directory = Directory::new();
        directory.write("key", &format!("{KEY}\n"));
        Self { directory }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spigate"));
        without_settings(&mut command).env("LC_ALL", "C").current_dir(self.directory.path()).arg("selftest");
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    async fn run(&self, arguments: &[&str]) -> Ran {
        let child = self.command(arguments).spawn().unwrap();
        ended(child).await
    }

    /// Tests a notify URL with every case that is not slow.
    async fn url(&self, url: &str, more: &[&str]) -> Ran {
        self.run(&[&["--url", url, "--key-file", "key", "--format", "json"], more].concat()).await
    }

    /// Tests a backend behind a gateway.
    async fn config(&self, backend: &str, dialect: &str, app: &str, more: &[&str]) -> Ran {
        self.directory.write("spigate.toml", &configuration(backend, dialect, app));
        self.run(&[&["--config", "spigate.toml", "--format", "json"], more].concat()).await
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.directory.path().join(name)).unwrap()
    }
}

async fn ended(child: std::process::Child) -> Ran {
    let output = tokio::task::spawn_blocking(|| child.wait_with_output().unwrap()).await.unwrap();
    Ran {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// `app` are lines for the app, before and after `[apps.backend]`.
fn configuration(backend: &str, dialect: &str, app: &str) -> String {
    let (app, more) = app.split_once("---").unwrap_or((app, ""));
    format!(
        "[[apps]]\nname = \"crm\"\npath = \"/spi\"\nhost = \"shop.example\"\nallow_from = [\"192.0.2.0/24\"]\n\
         dialect = \"{dialect}\"\nkeys = [{{ id = \"k\", value = \"{KEY}\" }}]\n{app}\n\
         [apps.backend]\nurl = \"{backend}\"\n{more}"
    )
}

/// The body of a good answer: a new instance for each create, success for everything else.
fn good(number: usize, seen: &Seen) -> String {
    if action(seen).starts_with("Create") {
        format!(
            r#"{{"success":true,"instanceId":"ins-{number}","appInfo":{{"admin":{{"password":"hunter2"}}}},"instanceInfo":{{}}}}"#
        )
    } else {
        r#"{"success":true}"#.to_owned()
    }
}

/// The action of a request in any form.
fn action(seen: &Seen) -> String {
    let query = seen.target.split_once('?').map_or("", |(_, query)| query);
    let parameter = query.split('&').find_map(|pair| pair.strip_prefix("action="));
    parameter.or(seen.header("x-spi-action")).unwrap_or_default().to_owned()
}

/// A backend behind spigate that does everything right, as long as spigate tells copies apart.
async fn right() -> Backend {
    answering(good).await
}

async fn answering(answer: impl Fn(usize, &Seen) -> String + Send + Sync + 'static) -> Backend {
    scripted(move |number, seen| json(answer(number, seen))).await
}

async fn scripted(script: impl Fn(usize, &Seen) -> Vec<Step> + Send + Sync + 'static) -> Backend {
    let count = AtomicUsize::new(0);
    Backend::start(move |seen| script(count.fetch_add(1, Ordering::SeqCst), seen)).await
}

/// Runs an example backend behind spigate, in every form of requests and both dialects.
async fn passes(example: Example) {
    let Some((_process, url)) = example.start().await else { return };
    let bench = Bench::new();
    for send in ["json", "headers", "query", "raw"] {
        for dialect in [CENTER, MARKET] {
            let ran = bench.config(&url, dialect, &format!("---send = \"{send}\"\n"), &["--yes"]).await;
            assert_eq!(ran.code, 0, "{send} {dialect}: {}{}", ran.out, ran.err);
            ran.assert_all_passed();
            assert_eq!(ran.json()["target"]["send"], send);
        }
    }
}

#[tokio::test]
async fn the_python_example_passes_in_every_form() {
    passes(Example::Python).await;
}

#[tokio::test]
async fn the_node_example_passes_in_every_form() {
    passes(Example::Node).await;
}

#[tokio::test]
async fn the_java_example_passes_in_every_form() {
    passes(Example::Java).await;
}

#[tokio::test]
async fn the_php_example_passes_in_every_form() {
    passes(Example::Php).await;
}

/// Starts the naive backend, bare if it is given a key.
async fn naive(key: Option<&str>, directory: &Directory) -> Option<(Process, String)> {
    if !has_program("python3") {
        return None;
    }
    let address = free_port();
    let mut command = Command::new("python3");
    command.arg(example("naive/naive.py")).arg(address.port().to_string()).args(key);
    let process = Process::start(&mut command, address, directory.path().join("log")).await;
    Some((process, format!("http://{address}/spi")))
}

#[tokio::test]
async fn the_naive_backend_behind_spigate_still_refuses_what_it_does_not_know() {
    let bench = Bench::new();
    let Some((_process, url)) = naive(None, &bench.directory).await else { return };
    let ran = bench.config(&url, CENTER, "", &["--yes"]).await;
    assert_eq!(ran.code, 1, "{}", ran.err);
    let failed = [
        "test",
        "expire-twice",
        "expire-renew-expire",
        "delete-after-expire",
        "delete-twice",
        "real-expire",
        "real-delete",
        "cleanup",
    ];
    assert_eq!(ran.cases("failed"), failed);
    assert!(failed[..7].iter().all(|id| ran.rules(id) == ["status"]));
    assert_eq!(ran.rules("cleanup"), ["left_over"]);
    // What the backend itself said, which the platform never sees.
    let json = ran.json();
    let test = &json["cases"][0];
    assert_eq!(test["exchanges"][0]["backend"][0]["reply"]["status"], 400);
    assert_eq!(test["exchanges"][0]["reply"]["status"], 502);
    let fix = test["findings"][0]["fix"]["en"].as_str().unwrap();
    assert!(fix.contains("Answer TestConnection with 200"), "{fix}");
    let unknown = json["cases"].as_array().unwrap().iter().find(|case| case["id"] == "unknown-instance").unwrap();
    assert!(unknown["notes"][0]["en"].as_str().unwrap().contains("nobody made"), "{unknown}");
}

#[tokio::test]
async fn the_naive_backend_as_a_notify_url_accepts_what_it_must_not() {
    let bench = Bench::new();
    let Some((_process, url)) = naive(Some(KEY), &bench.directory).await else { return };
    let ran = bench.url(&url, &["--yes"]).await;
    assert_eq!(ran.code, 1, "{}", ran.err);
    let passed = [
        "signature-flipped",
        "signature-of-other-key",
        "changed-value",
        "unsigned-parameter",
        "other-method",
        "time-expired",
    ];
    assert_eq!(ran.cases("passed"), passed);
    assert_eq!(ran.cases("not_run"), [""; 0]);
    for (id, rules) in [
        ("create", &["content_type"][..]),
        ("test", &["status"]),
        ("delete-twice", &["status"]),
        ("retry-identical", &["content_type", "second_instance"]),
        ("retry-resigned", &["content_type", "second_instance"]),
        ("simultaneous", &["second_instance", "content_type"]),
        ("two-purchases", &["content_type"]),
        ("signature-missing", &["accepts_missing_signature"]),
        ("repeated-parameter", &["accepts_repeated_parameter"]),
        ("time-in-future", &["accepts_future_time"]),
        ("time-missing", &["broken_reply"]),
        ("time-malformed", &["broken_reply"]),
        ("cleanup", &["left_over"]),
    ] {
        assert_eq!(ran.rules(id), rules, "{id}");
    }
    let json = ran.json();
    let finding = &json["cases"][1]["findings"][0];
    assert_eq!(finding["came"]["en"], "Content-Type: application/json; charset=utf-8");
    assert!(finding["snippets"][0]["code"].as_str().unwrap().contains("header('Content-Type: application/json')"));
    assert!(!ran.out.contains("changeme1") && !ran.out.contains("t0k3n"));
}

#[tokio::test]
async fn a_notify_url_that_behaves_passes() {
    for dialect in [CENTER, MARKET] {
        let backend = right().await;
        let gateway = Setup::new(&backend).dialect(dialect).start().await;
        let url = format!("http://{}/spi?shop=a%20b", gateway.listen);
        let ran = Bench::new().url(&url, &["--yes", "--dialect", dialect]).await;
        // The gateway knows the path, and the query is a part of what is signed.
        ran.assert_all_passed();
        assert_eq!(ran.json()["target"]["mode"], "url");
        // Everything that was made is gone.
        let bodies: Vec<_> = backend.requests().iter().map(Seen::json).collect();
        let deleted = bodies.iter().filter(|body| body["action"].as_str().unwrap().starts_with("Delete"));
        let deleted: BTreeSet<_> = deleted.map(|body| body["instance_id"].as_str().unwrap().to_owned()).collect();
        let made = backend.requests().iter().enumerate().filter(|(_, seen)| action(seen).starts_with("Create")).count();
        assert_eq!(deleted.len(), made);
    }
}

#[tokio::test]
async fn without_once_only_delivery_the_backend_has_to_tell_copies_apart() {
    let backend = right().await;
    let ran = Bench::new().config(&backend.url("/"), CENTER, "deliver_once = false\n", &["--yes"]).await;
    let failed = ran.cases("failed");
    assert_eq!(failed, ["without-order-number", "retry-identical", "retry-resigned", "simultaneous"]);
    assert!(failed.iter().all(|id| ran.rules(id) == ["second_instance"]));
    assert!(ran.out.contains("HTTP_IDEMPOTENCY_KEY") && ran.out.contains("deliver_once = false"));
}

#[tokio::test]
async fn a_gateway_that_only_observes_is_found_to_refuse_nothing() {
    let backend = right().await;
    let ran = Bench::new().config(&backend.url("/"), CENTER, "enforce = false\n", &["--only", "refusals"]).await;
    assert_eq!(ran.code, 1, "{}", ran.err);
    let failed: BTreeSet<_> = ran.cases("failed").into_iter().collect();
    assert!(failed.contains("signature-flipped") && failed.contains("time-expired"), "{failed:?}");
    assert_eq!(ran.rules("signature-flipped"), ["accepts_flipped_signature"]);
    assert!(ran.json()["target"]["remarks"][0]["en"].as_str().unwrap().contains("enforce = false"));
}

#[tokio::test]
async fn a_strict_contract_and_a_narrow_window_are_taken_into_account() {
    let backend = right().await;
    let app = "contract = \"strict\"\nfreshness = { max_age = \"20s\", max_future = \"1m\" }\n";
    let ran = Bench::new().config(&backend.url("/"), CENTER, app, &["--yes"]).await;
    assert_eq!(ran.cases("failed"), ["signed-30s-ago"]);
    assert_eq!(ran.rules("signed-30s-ago"), ["unauthorized"]);
    let ids = ran.cases("passed");
    assert!(!ids.iter().any(|id| id == "without-order-number" || id == "required-only"), "{ids:?}");
}

#[tokio::test]
async fn a_marketplace_in_a_file_is_played_like_any_other() {
    const BAZAAR_KEY: &str = "c2VjcmV0IGtleQ==";
    let backend = answering(|number, seen| match seen.header("x-spi-action") {
        Some("opened") => format!(r#"{{"tenant":"t-{number}"}}"#),
        _ => "{}".to_owned(),
    })
    .await;
    let bench = Bench::new();
    bench.directory.write("dialects/bazaar.toml", BAZAAR);
    let app = configuration(&backend.url("/"), "bazaar", "").replace(KEY, BAZAAR_KEY);
    bench.directory.write("spigate.toml", &format!("dialect_dir = \"dialects\"\n{app}"));
    let ran = bench.run(&["--config", "spigate.toml", "--format", "json", "--yes"]).await;
    ran.assert_all_passed();
    let ids = ran.cases("passed");
    for there in ["create", "delete-twice", "retry-resigned", "other-method", "punctuation", "real-create"] {
        assert!(ids.iter().any(|id| id == there), "{there} not in {ids:?}");
    }
    assert!(!ids.iter().any(|id| id == "renew" || id == "test"), "{ids:?}");
    // The same file, for a notify URL.
    let listed = bench.run(&["--list", "--dialect-file", "dialects/bazaar.toml"]).await;
    assert!(listed.out.contains("other-method") && !listed.out.contains("renew"), "{}", listed.out);
}

#[tokio::test]
async fn real_orders_are_asked_for_and_left_out_on_request() {
    let backend = right().await;
    let gateway = Gateway::over(&backend).await;
    let url = format!("http://{}/spi", gateway.listen);
    let bench = Bench::new();
    let refused = bench.url(&url, &[]).await;
    assert_eq!(refused.code, 2);
    assert!(refused.err.contains("--yes") && refused.err.contains("--debug-only"), "{}", refused.err);
    assert_eq!(backend.count(), 0, "nothing is sent before that is decided");
    let ran = bench.url(&url, &["--debug-only"]).await;
    ran.assert_all_passed();
    assert!(backend.requests().iter().all(|seen| seen.header("x-spi-debug") == Some("true")));
    let json = ran.json();
    let left_out = json["left_out"].as_array().unwrap().iter().map(|out| out["id"].as_str().unwrap());
    assert!(left_out.into_iter().any(|id| id == "real-create"));
}

#[tokio::test]
async fn cases_are_listed_chosen_and_ended_at_the_first_failure() {
    let bench = Bench::new();
    let listed = bench.run(&["--list", "--language", "zh"]).await;
    assert!(listed.out.contains("retry-identical") && listed.out.contains("逐字节相同"), "{}", listed.out);
    let backend = answering(|number, seen| {
        let body = good(number, seen);
        if action(seen).starts_with("Renew") { r#"{"success":"yes"}"#.to_owned() } else { body }
    })
    .await;
    let url = backend.url("/");
    let unknown = bench.config(&url, CENTER, "", &["--only", "crate"]).await;
    assert_eq!((unknown.code, backend.count()), (2, 0));
    let only = bench.config(&url, CENTER, "", &["--only", "upgrade,connection"]).await;
    assert_eq!(only.cases("passed"), ["test", "upgrade", "cleanup"]);
    backend.forget();
    let ran = bench.config(&url, CENTER, "", &["--fail-fast", "--debug-only"]).await;
    assert_eq!(ran.code, 1);
    assert_eq!(ran.cases("failed"), ["renew"]);
    assert_eq!(ran.rules("renew"), ["success_type"]);
    assert_eq!(ran.cases("passed"), ["test", "create", "cleanup"]);
    let actions: Vec<_> = backend.requests().iter().map(action).collect();
    assert_eq!(actions, ["TestConnection", "CreateAppInstance", "RenewAppInstance", "DeleteAppInstance"]);
}

#[tokio::test]
async fn who_wants_to_end_leaves_nothing_behind() {
    let backend = scripted(|number, seen| match action(seen).starts_with("Renew") {
        true => vec![Step::Stall],
        false => json(good(number, seen)),
    })
    .await;
    let bench = Bench::new();
    bench.directory.write("spigate.toml", &configuration(&backend.url("/"), CENTER, ""));
    let child = bench.command(&["--config", "spigate.toml", "--debug-only", "--report", "r.html"]).spawn().unwrap();
    let process = rustix::process::Pid::from_child(&child);
    let running = tokio::spawn(ended(child));
    backend.wait_for(3).await;
    rustix::process::kill_process(process, rustix::process::Signal::INT).unwrap();
    let ran = within_deadline("the end", running).await.unwrap();
    assert_eq!(ran.code, 2, "{}{}", ran.out, ran.err);
    assert!(ran.err.contains("ended by the user"), "{}", ran.err);
    let actions: Vec<_> = backend.requests().iter().map(action).collect();
    assert_eq!(actions, ["TestConnection", "CreateAppInstance", "RenewAppInstance", "DeleteAppInstance"]);
    assert!(bench.read("r.html").contains("The run was ended by the user"));
}

#[tokio::test]
async fn what_cannot_be_called_is_said_before_anything_else() {
    let bench = Bench::new();
    let closed = Backend::closed();
    let ran = bench.url(&closed.url("/spi"), &["--yes"]).await;
    assert_eq!(ran.code, 2, "{}", ran.out);
    assert!(ran.err.contains("the notify URL cannot be called: no connection"), "{}", ran.err);
    let ran = bench.config(&closed.url("/spi"), CENTER, "", &["--yes"]).await;
    assert_eq!(ran.code, 2, "{}", ran.out);
    assert!(ran.err.contains("the backend of app crm cannot be called"), "{}", ran.err);
    bench.directory.write("broken.toml", &format!("[limits]\ncolour = 1\n{}", configuration("http://h/", CENTER, "")));
    for (arguments, said) in [
        (&["--url", "ftp://h/spi", "--key-file", "key", "--yes"][..], "must begin with http"),
        (&["--url", "http://h/spi", "--key-file", "nokey", "--yes"], "nokey: cannot be read"),
        (&["--url", "http://h/spi"], "--key-file"),
        (&["--config", "spigate.toml", "--app", "erp", "--yes"], "--app: not known; there are crm"),
        (&["--config", "broken.toml", "--yes"], "colour"),
        (&["--config", "nowhere.toml", "--yes"], "nowhere.toml"),
        (&["--config", "spigate.toml", "--field", "order_id=1"], "values of their own"),
        (&["--config", "spigate.toml", "--field", "spce=1"], "--field spce"),
    ] {
        let ran = bench.run(arguments).await;
        assert_eq!(ran.code, 2, "{arguments:?}: {}", ran.out);
        assert!(ran.err.contains(said), "{arguments:?}: {}", ran.err);
    }
}

#[tokio::test]
async fn a_wrong_key_is_told_and_refusals_show_nothing_then() {
    let backend = right().await;
    let gateway = Gateway::over(&backend).await;
    let bench = Bench::new();
    bench.directory.write("key", "the key of another app");
    let ran = bench.url(&format!("http://{}/spi", gateway.listen), &["--yes"]).await;
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("is it the key of this app?"), "{}", ran.err);
    assert_eq!(ran.rules("create"), ["unauthorized"]);
    assert_eq!(ran.cases("passed"), [""; 0]);
    assert!(ran.cases("not_run").iter().any(|id| id == "signature-flipped"));
}

#[tokio::test]
async fn a_report_that_cannot_be_written_is_said_before_anything_is_sent() {
    let backend = right().await;
    let bench = Bench::new();
    std::fs::create_dir(bench.directory.path().join("taken.html")).unwrap();
    for more in
        [&["--report", "nowhere/r.html"][..], &["--junit", "taken.html"], &["--markdown", "a.md", "--report", "a.md"]]
    {
        let ran = bench.config(&backend.url("/"), CENTER, "", &[&["--yes"], more].concat()).await;
        assert_eq!(ran.code, 2, "{more:?}: {}", ran.out);
        assert!(ran.err.contains(more[0]) || ran.err.contains("another report"), "{}", ran.err);
    }
    assert_eq!(backend.count(), 0);
}

/// Control sequences, markup, credentials in what only looks like JSON, and a megabyte of it.
fn hostile() -> Vec<Step> {
    let text = "\x1b[2J\u{202e}</pre><script>alert(1)</script>]]>\r\n| ``` {\"password\":\"hunter2\",\"authUrl\":\
                \"https://h/sso?token=hunter2\"";
    let body = format!("{text}{}", "x".repeat(1 << 20));
    reply("200 OK", "Content-Type: text/html\u{9b}; <script>\r\n", body)
}

#[tokio::test]
async fn what_a_hostile_backend_says_is_shown_as_text_in_every_form() {
    let backend = scripted(|_, _| hostile()).await;
    let bench = Bench::new();
    let files = ["--report", "r.html", "--junit", "r.xml", "--markdown", "r.md"];
    let ran = bench
        .url(&backend.url("/spi"), &[&["--yes", "--only", "connection,create,chinese"], &files[..]].concat())
        .await;
    assert_eq!(ran.code, 1);
    assert_eq!(ran.rules("test"), ["content_type", "invalid_json"]);
    let table = bench.run(&["--url", &backend.url("/spi"), "--key-file", "key", "--only", "create"]).await;
    let (html, xml, markdown) = (bench.read("r.html"), bench.read("r.xml"), bench.read("r.md"));
    for (name, text) in
        [("json", &ran.out), ("table", &table.out), ("html", &html), ("xml", &xml), ("markdown", &markdown)]
    {
        assert!(!text.contains(['\x1b', '\u{9b}', '\u{202e}']), "{name}");
        assert!(!text.contains("hunter2") && !text.contains(KEY), "{name}");
        assert!(text.len() < 200_000, "{name}: {} bytes", text.len());
    }
    assert!(!html.contains("<script") && !xml.contains("<script") && html.contains("alert(1)"));
    assert_eq!(ran.json()["cases"][0]["exchanges"][0]["reply"]["cut"], true);
    assert!(html.contains("1024 KiB") && html.contains("cut"));
    well_formed(&bench.directory.path().join("r.xml"));
    // Nothing half-written is left beside them.
    let left: Vec<_> =
        std::fs::read_dir(bench.directory.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(left.len(), 4, "{left:?}");
}

/// Reads XML with a real parser, where there is one.
fn well_formed(file: &Path) {
    if has_program("python3") {
        let parse = "import sys, xml.dom.minidom as dom; dom.parse(sys.argv[1])";
        let parsed = Command::new("python3").args(["-c", parse]).arg(file).output().unwrap();
        assert!(parsed.status.success(), "{}", String::from_utf8_lossy(&parsed.stderr));
    }
}

#[tokio::test]
async fn no_secret_is_in_any_output() {
    let backend = right().await;
    let bench = Bench::new();
    let files = ["--yes", "--report", "r.html", "--junit", "r.xml", "--markdown", "r.md"];
    let ran = bench.config(&backend.url("/?token=hunter2"), CENTER, "", &files).await;
    ran.assert_all_passed();
    // Every signature that was sent, as the gateway's own backend never sees one.
    let signed = Bench::new();
    let echo = answering(|number, seen| {
        let body = good(number, seen);
        format!("{},\"echo\":{}}}", &body[..body.len() - 1], Value::from(seen.target.clone()))
    })
    .await;
    let echoed = signed.url(&echo.url("/spi"), &files).await;
    let signatures: Vec<_> = echo
        .requests()
        .iter()
        .filter_map(|seen| Some(seen.target.split_once("&signature=")?.1.split('&').next()?.to_owned()))
        .filter(|signature| !signature.is_empty())
        .collect();
    assert!(signatures.len() > 30);
    let outputs = [&bench, &signed].map(|bench| ["r.html", "r.xml", "r.md"].map(|name| bench.read(name)));
    let outputs = outputs.as_flattened().iter().chain([&ran.out, &ran.err, &echoed.out, &echoed.err]);
    for output in outputs {
        assert!(!output.contains("hunter2") && !output.contains(KEY));
        assert!(signatures.iter().all(|signature| !output.contains(signature)));
    }
    well_formed(&bench.directory.path().join("r.xml"));
}

#[tokio::test]
async fn a_crowd_is_served_and_a_slow_answer_is_kept_for_the_retry() {
    let created =
        |backend: &Backend| backend.requests().iter().filter(|seen| action(seen).starts_with("Create")).count();
    let backend = right().await;
    Bench::new().config(&backend.url("/"), CENTER, "", &["--only", "busy"]).await.assert_all_passed();
    assert_eq!(created(&backend), 20);

    let backend = right().await;
    // Also the retry has to be answered within that time.
    let times = "---answer_within = \"3s\"\nconnect_timeout = \"3s\"\n";
    let ran = Bench::new().config(&backend.url("/"), CENTER, times, &["--only", "slow-answer"]).await;
    ran.assert_all_passed();
    let json = ran.json();
    let slow = &json["cases"][0];
    assert_eq!(slow["exchanges"][0]["reply"]["status"], 504, "{slow}");
    assert_eq!(slow["exchanges"][1]["platform"], "success");
    // One call for the order, however often it came.
    assert_eq!(created(&backend), 1);
}

#[tokio::test]
async fn broken_answers_are_told_apart() {
    let empty = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{";
    for (steps, rule) in [
        (json(r#"{"success":true}"#), "instance_id_missing"),
        (json(r#"{"success":true,"instanceId":7}"#), "instance_id_type"),
        (json(""), "empty_body"),
        (json(r#"{"success":false,"message":"no such plan"}"#), "refused"),
        (reply("500 Oops", "", "x"), "status"),
        (reply("302 Found", "Location: /login\r\n", ""), "status"),
        ([raw(empty), vec![Step::Close]].concat(), "broken_reply"),
        (json(r#"{"success":true,"instanceId":"always-the-same"}"#), ""),
    ] {
        let answer = steps.clone();
        let backend = scripted(move |_, _| answer.clone()).await;
        let ran = Bench::new().config(&backend.url("/"), CENTER, "", &["--only", "create,two-purchases"]).await;
        match rule {
            // The gateway itself does not let a second order have the instance of the first.
            "" => assert_eq!(ran.cases("failed"), ["two-purchases"]),
            _ => assert_eq!(ran.rules("create"), [rule], "{}", ran.out),
        }
        assert_eq!(ran.code, 1);
        let bare = Bench::new().url(&backend.url("/"), &["--only", "create"]).await;
        let expected = if rule.is_empty() { vec![] } else { vec![rule] };
        assert_eq!(bare.rules("create"), expected, "bare");
    }
    let backend = Arc::new(answering(|_, _| r#"{"success":true,"instanceId":"always-the-same"}"#.to_owned()).await);
    let ran = Bench::new().url(&backend.url("/"), &["--only", "two-purchases"]).await;
    assert_eq!(ran.rules("two-purchases"), ["instance_id_reused"]);
}

#[tokio::test]
async fn what_no_time_is_left_for_is_reported_as_not_run() {
    let backend = right().await;
    let gateway = Gateway::over(&backend).await;
    let dialect = dialect(CENTER).clone();
    let url = format!("http://{}/spi", gateway.listen);
    let target = Target::at(&url, dialect, Secret::new(KEY)).await.unwrap();
    let window = (Duration::ZERO, Duration::ZERO);
    let cases = plan(&target.dialect, &Options { own: Vec::new(), strict: false, window, can_hold: false });
    let (_signals, stop) = tokio::sync::watch::channel(0);
    let (stop, limit) = (Stop::new(stop), Some(Duration::ZERO));
    let run = Run { target: &target, own: &[], limit, fail_fast: false, stop, progress: &|_, _, _| {} };
    let played = run.play(&cases, "word").await;
    assert_eq!(backend.count(), 0);
    assert_eq!(played.entries.len(), cases.len());
    assert!(played.entries.iter().all(|entry| entry.verdict == Verdict::NotRun));
    assert!(played.entries[0].reason.as_ref().unwrap().en.contains("no time was left"));
    assert_eq!(Summary::of(&played.entries).verdict(), Overall::Incomplete);
}
