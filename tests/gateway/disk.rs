//! The journal's disk is full, read-only, fails or hangs while the gateway runs, and recovers: nothing is
//! forwarded that cannot be recorded, nothing that was confirmed is lost, and nobody has to
//! restart anything.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::support::backend::{Backend, CREATED, Gate, Step, json};
use crate::support::gateway::{Gateway, Setup};
use crate::support::order::{Order, create};
use crate::support::{has_program, own_mounts};

/// What happens to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// Writes end with ENOSPC.
    NoSpace,
    /// Writes end with EROFS.
    ReadOnly,
    /// Flushes end with EIO.
    Broken,
    /// Flushes do not come back.
    Hanging,
}

/// A gateway whose journal lies on a disk that fails when it is told to.
struct Faulty {
    gateway: Gateway,
    disk: Disk,
}

/// How it is told.
enum Disk {
    /// The library reads this file.
    Preloaded(PathBuf, Fault),
    /// The disk is small, and this file takes the rest of it.
    Small(PathBuf),
}

impl Disk {
    fn fail(&self) {
        match self {
            Self::Preloaded(control, fault) => fault.write(control),
            Self::Small(filler) => {
                let size = 64 * 1024 * 1024;
                let full = std::fs::write(filler, vec![0; size]).unwrap_err();
                assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
            }
        }
    }

    fn recover(&self) {
        match self {
            Self::Preloaded(file, _) | Self::Small(file) => std::fs::remove_file(file).unwrap(),
        }
    }
}

impl Fault {
    fn write(self, control: &Path) {
        let letter = match self {
            Self::NoSpace => "n",
            Self::ReadOnly => "r",
            Self::Broken => "e",
            Self::Hanging => "h",
        };
        std::fs::write(control, letter).unwrap();
    }
}

/// The library, made once for all tests.
fn library() -> &'static str {
    static LIBRARY: OnceLock<String> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let made = directory.join(format!("faults-{}.so", std::process::id()));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gateway/faults.c");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"]).arg(&made).arg(source);
        assert!(compiler.status().unwrap().success());
        // Other runs of these tests may be using the one that is there.
        let library = directory.join("faults.so");
        std::fs::rename(made, &library).unwrap();
        library.to_str().unwrap().to_owned()
    })
}

/// With the library; the file that controls it.
fn preload(setup: Setup) -> (Setup, PathBuf) {
    let control = setup.directory().path().join("fault");
    let path = control.to_str().unwrap().to_owned();
    (setup.environment("LD_PRELOAD", library()).environment("FAULTS_CONTROL", &path), control)
}

async fn failing_by(fault: Fault, setup: Setup) -> Option<Faulty> {
    if !has_program("cc") {
        return None;
    }
    let (setup, control) = preload(setup);
    Some(Faulty { gateway: setup.start().await, disk: Disk::Preloaded(control, fault) })
}

/// A real file system of one megabyte, seen by nobody but the gateway.
async fn small(setup: Setup) -> Option<Faulty> {
    let directory = setup.directory().path().join("small");
    std::fs::create_dir(&directory).unwrap();
    let directory = directory.to_str().unwrap().to_owned();
    let mount = format!("mount -t tmpfs -o size=1m none '{directory}' && exec \"$@\"");
    let through = own_mounts(&mount)?;
    let journal = format!("[journal]\nurl = \"sqlite:{directory}/spigate.db\"\n");
    let through: Vec<&str> = through.iter().map(String::as_str).collect();
    let gateway = setup.top(&journal).through(&through).start().await;
    let filler = PathBuf::from(format!("/proc/{}/root{directory}/filler", gateway.pid()));
    Some(Faulty { gateway, disk: Disk::Small(filler) })
}

async fn assert_not_ready(gateway: &Gateway, why: &str) {
    let reply = gateway.wait_for_readyz(503).await;
    let text = reply.text();
    assert!(text.starts_with("not ready: the journal is not available: ") && text.contains(why), "{text}");
}

/// Which operation fails first is chance; the probe fails for as long as the disk does.
const PROBE_ERRORS: &str = "spigate_journal_errors_total{operation=\"probe\"}";

async fn nothing_is_forwarded_until_it_recovers(backend: &Backend, faulty: Option<Faulty>, why: &str) {
    let Some(Faulty { mut gateway, disk }) = faulty else { return };
    let (before, during) = (create(), create());
    gateway.order(&before).await.assert_is(CREATED);
    disk.fail();
    for _ in 0..3 {
        gateway.order(&during).await.assert_rejected(503, "journal_unavailable");
    }
    gateway.order(&create()).await.assert_rejected(503, "journal_unavailable");
    assert_not_ready(&gateway, why).await;
    // What was done before can wait; it is not done again, and not denied.
    gateway.order(&before).await.assert_rejected(503, "journal_unavailable");
    gateway.wait_for_metric(PROBE_ERRORS, |errors| errors >= 2.0).await;
    assert_eq!(backend.count(), 1);
    let line = gateway.line("the failure", |line| line["message"].as_str().is_some_and(|text| text.contains("503")));
    let line = line.await;
    assert_eq!(line["level"], "ERROR");
    assert!(line["cause"].as_str().is_some_and(|cause| cause.contains(why)), "{line}");

    disk.recover();
    gateway.wait_for_readyz(200).await;
    gateway.order(&before).await.assert_is(CREATED);
    assert_eq!(backend.count(), 1);
    let after = Order::clone(&during);
    gateway.order(&after).await.assert_rejected(502, "backend_contract");
    assert_eq!(backend.count(), 2);
    gateway.line("the recovery", |line| line["message"] == "the journal is available").await;
    assert!(gateway.lives());
}

/// Confirms the first create; an instance that belongs to an order cannot be another's, so that
/// whatever else is forwarded is known by its answer.
async fn backend() -> Backend {
    Backend::confirming().await
}

#[tokio::test]
async fn while_the_disk_is_full_nothing_is_forwarded() {
    let backend = backend().await;
    let faulty = failing_by(Fault::NoSpace, Setup::new(&backend)).await;
    nothing_is_forwarded_until_it_recovers(&backend, faulty, "database or disk is full").await;
}

/// The kernel does so to one that has errors. By hand it refuses while files are open to be written.
#[tokio::test]
async fn while_the_file_system_is_read_only_nothing_is_forwarded() {
    let backend = backend().await;
    let faulty = failing_by(Fault::ReadOnly, Setup::new(&backend)).await;
    nothing_is_forwarded_until_it_recovers(&backend, faulty, "disk I/O error").await;
}

#[tokio::test]
async fn while_flushes_fail_nothing_is_forwarded() {
    let backend = backend().await;
    let faulty = failing_by(Fault::Broken, Setup::new(&backend)).await;
    nothing_is_forwarded_until_it_recovers(&backend, faulty, "disk I/O error").await;
}

#[tokio::test]
async fn while_a_real_file_system_is_full_nothing_is_forwarded() {
    let backend = backend().await;
    let faulty = small(Setup::new(&backend)).await;
    nothing_is_forwarded_until_it_recovers(&backend, faulty, "database or disk is full").await;
}

/// A backend that confirms when the gate opens.
async fn gated() -> (Backend, Gate) {
    let gate = Gate::closed();
    let wait = gate.clone();
    let backend = Backend::start(move |_| [vec![Step::Wait(wait.clone())], json(CREATED)].concat()).await;
    (backend, gate)
}

async fn a_confirmation_is_kept_until_it_recovers(backend: &Backend, gate: Gate, faulty: Option<Faulty>) {
    let Some(Faulty { gateway, disk }) = faulty else { return };
    let gateway = std::sync::Arc::new(gateway);
    let order = create();
    let first = tokio::spawn({
        let (gateway, order) = (std::sync::Arc::clone(&gateway), order.clone());
        async move { gateway.order(&order).await }
    });
    backend.wait_for(1).await;
    disk.fail();
    gate.open();
    // It is done, but nobody may be told what a crash could still make undone.
    first.await.unwrap().assert_rejected(503, "journal_unavailable");
    let kept = "a confirmation cannot be recorded: it is kept in memory until it can";
    gateway.line("the confirmation", |line| line["message"] == kept).await;
    for _ in 0..3 {
        gateway.order(&order).await.assert_rejected(503, "journal_unavailable");
    }
    gateway.wait_for_metric(PROBE_ERRORS, |errors| errors >= 1.0).await;

    disk.recover();
    gateway.wait_for_readyz(200).await;
    gateway.order(&order).await.assert_is(CREATED);
    let mut gateway = std::sync::Arc::into_inner(gateway).unwrap();
    // The file has it, too.
    if let Disk::Preloaded(..) = disk {
        gateway.restart().await;
        gateway.order(&order).await.assert_is(CREATED);
    }
    assert_eq!(backend.count(), 1);
}

#[tokio::test]
async fn a_confirmation_that_finds_the_disk_full_is_kept() {
    let (backend, gate) = gated().await;
    let faulty = failing_by(Fault::NoSpace, Setup::new(&backend)).await;
    a_confirmation_is_kept_until_it_recovers(&backend, gate, faulty).await;
}

#[tokio::test]
async fn a_confirmation_that_finds_the_file_system_read_only_is_kept() {
    let (backend, gate) = gated().await;
    let faulty = failing_by(Fault::ReadOnly, Setup::new(&backend)).await;
    a_confirmation_is_kept_until_it_recovers(&backend, gate, faulty).await;
}

#[tokio::test]
async fn a_confirmation_that_cannot_be_flushed_is_kept() {
    let (backend, gate) = gated().await;
    let faulty = failing_by(Fault::Broken, Setup::new(&backend)).await;
    a_confirmation_is_kept_until_it_recovers(&backend, gate, faulty).await;
}

#[tokio::test]
async fn a_confirmation_that_finds_a_real_file_system_full_is_kept() {
    let (backend, gate) = gated().await;
    let faulty = small(Setup::new(&backend)).await;
    a_confirmation_is_kept_until_it_recovers(&backend, gate, faulty).await;
}

#[tokio::test]
async fn a_disk_that_hangs_holds_nobody_for_longer_than_the_platform_waits() {
    let backend = Backend::confirming().await;
    let setup = Setup::new(&backend).backend("connect_timeout = \"300ms\"\nanswer_within = \"300ms\"");
    let Some(Faulty { gateway, disk }) = failing_by(Fault::Hanging, setup).await else { return };
    disk.fail();
    let order = create();
    gateway.order(&order).await.assert_rejected(503, "journal_unavailable");
    assert_not_ready(&gateway, "no answer within").await;
    // From now on nobody waits at all.
    gateway.order(&order).await.assert_rejected(503, "journal_unavailable");
    assert_eq!(backend.count(), 0);
    disk.recover();
    gateway.wait_for_readyz(200).await;
    // The claim that hung was told that nothing is forwarded: it ends as it was told. A copy that
    // comes while it does hears the same or that it is in progress, and a later one is forwarded.
    gateway.hurry_no_more().await;
    let delivered = loop {
        let reply = gateway.order(&order).await;
        if reply.status != 503 {
            break reply;
        }
        assert!(["journal_unavailable", "delivery_in_progress"].contains(&reply.json()["code"].as_str().unwrap()));
    };
    delivered.assert_is(CREATED);
    assert_eq!(backend.only_request().header("x-spi-attempt"), Some("2"));
}

#[tokio::test]
async fn a_disk_that_is_full_or_broken_at_the_start_is_named() {
    if !has_program("cc") {
        return;
    }
    for (fault, says) in [(Fault::NoSpace, "the disk is full"), (Fault::Broken, "the disk reports errors")] {
        let backend = Backend::confirming().await;
        let (setup, control) = preload(Setup::new(&backend));
        fault.write(&control);
        let refusal = setup.refusal().await;
        assert_eq!(refusal.code, 2, "{}", refusal.text);
        assert!(refusal.text.contains("spigate.db: ") && refusal.text.contains(says), "{}", refusal.text);
    }
}

#[tokio::test]
async fn a_journal_that_another_process_locks_is_waited_for_and_then_not_available() {
    let backend = Backend::confirming().await;
    let gateway = Gateway::over(&backend).await;
    let order = create();
    let holder = rusqlite::Connection::open(gateway.directory().path().join("spigate.db")).unwrap();
    holder.execute_batch("BEGIN IMMEDIATE").unwrap();
    gateway.order(&order).await.assert_rejected(503, "journal_unavailable");
    assert_not_ready(&gateway, "database is locked").await;
    assert_eq!(backend.count(), 0);
    holder.execute_batch("COMMIT").unwrap();
    gateway.wait_for_readyz(200).await;
    gateway.order(&order).await.assert_is(CREATED);
}
