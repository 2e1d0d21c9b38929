//! The journal's file: what it has to be at the start, and what happens when somebody takes it
//! away.

use std::fs::{self, Permissions};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use crate::support::backend::{Backend, CREATED};
use crate::support::gateway::{Gateway, Setup, UNANSWERED};
use crate::support::order::create;
use crate::support::{has_program, own_mounts};

const JOURNAL: &str = "spigate.db";

fn path(setup: &Setup) -> PathBuf {
    setup.directory().path().join(JOURNAL)
}

/// Where nothing is called.
fn setup() -> Setup {
    Setup::to("http://127.0.0.1:9/")
}

/// A setup with a journal that a gateway has written and closed.
async fn with_journal() -> Setup {
    let backend = Backend::confirming().await;
    let gateway = Gateway::over(&backend).await;
    gateway.order(&create()).await.assert_is(CREATED);
    let setup = setup();
    let target = path(&setup);
    let source = gateway.directory().path().join(JOURNAL);
    Connection::open(source).unwrap().execute("VACUUM INTO ?1", [target.to_str().unwrap()]).unwrap();
    let journal = Connection::open(&target).unwrap();
    journal.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(())).unwrap();
    drop(journal);
    setup
}

/// It does not start, and says what is wrong, with which file, and what to do.
#[track_caller]
fn assert_says(refusal: &crate::support::gateway::Checked, words: &[&str]) {
    println!("{}", refusal.text);
    assert_eq!(refusal.code, 2, "{}", refusal.text);
    for word in words {
        assert!(refusal.text.contains(word), "{word}: not in: {}", refusal.text);
    }
    // One line, beside what else there is to say of the configuration.
    assert_eq!(refusal.text.lines().filter(|line| !line.contains(" WARN ")).count(), 1, "{}", refusal.text);
}

#[tokio::test]
async fn a_file_of_another_kind_is_left_as_it_is() {
    let setup = setup();
    let text = "not a database, but perhaps somebody's novel\n".repeat(1000);
    fs::write(path(&setup), &text).unwrap();
    let refusal = setup.refusal().await;
    assert_says(&refusal, &["spigate.db: ", "is not a journal of spigate", "set journal.url to another file"]);
    assert_eq!(fs::read_to_string(path(&setup)).unwrap(), text);
}

#[tokio::test]
async fn another_applications_database_is_left_as_it_is() {
    let setup = setup();
    let other = Connection::open(path(&setup)).unwrap();
    other.execute_batch("CREATE TABLE invoices (number TEXT); INSERT INTO invoices VALUES ('2026-1');").unwrap();
    drop(other);
    let before = fs::read(path(&setup)).unwrap();
    let refusal = setup.refusal().await;
    assert_says(&refusal, &["spigate.db: ", "is a database, but not a journal of spigate", "journal.url"]);
    assert_eq!(fs::read(path(&setup)).unwrap(), before);
}

#[tokio::test]
async fn a_damaged_header_is_named() {
    let setup = with_journal().await;
    overwrite(&path(&setup), 0, &[0xA5; 100]);
    assert_says(&setup.refusal().await, &["spigate.db: ", "is not a journal of spigate"]);
}

#[tokio::test]
async fn a_damaged_page_is_named() {
    let setup = with_journal().await;
    // Any but the first, which holds the header.
    for page in 1..4 {
        overwrite(&path(&setup), page * 4096, &[0xA5; 4096]);
    }
    assert_says(&setup.refusal().await, &["spigate.db: ", "is damaged", "restore a backup"]);
}

#[tokio::test]
async fn a_file_that_was_cut_off_is_named() {
    let setup = with_journal().await;
    let file = fs::OpenOptions::new().write(true).open(path(&setup)).unwrap();
    file.set_len(2 * 4096).unwrap();
    assert_says(&setup.refusal().await, &["spigate.db: ", "is damaged", "restore a backup"]);
}

fn overwrite(file: &Path, at: u64, bytes: &[u8]) {
    let mut file = fs::OpenOptions::new().write(true).open(file).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(bytes).unwrap();
}

#[tokio::test]
async fn a_newer_journal_is_left_to_the_version_that_wrote_it() {
    let setup = with_journal().await;
    let journal = Connection::open(path(&setup)).unwrap();
    journal.pragma_update(None, "user_version", 99).unwrap();
    drop(journal);
    let refusal = setup.refusal().await;
    assert_says(&refusal, &["spigate.db: ", "was written by a newer spigate", "schema 99", "run that version"]);
}

#[tokio::test]
async fn a_locked_journal_is_named() {
    for mode in ["NORMAL", "EXCLUSIVE"] {
        let setup = with_journal().await;
        let holder = Connection::open(path(&setup)).unwrap();
        holder.pragma_update(None, "locking_mode", mode).unwrap();
        holder.execute_batch("BEGIN EXCLUSIVE; UPDATE probes SET at = at;").unwrap();
        let refusal = setup.refusal().await;
        assert_says(&refusal, &["spigate.db: ", "is locked by another process", "end the"]);
    }
}

#[tokio::test]
async fn a_second_gateway_on_the_same_journal_does_not_start() {
    let backend = Backend::confirming().await;
    let first = Gateway::over(&backend).await;
    let journal = first.directory().path().join(JOURNAL);
    let second = Setup::new(&backend).top(&format!("[journal]\nurl = \"sqlite:{}\"\n", journal.display()));
    let owner = format!("another spigate (process {})", first.pid());
    assert_says(&second.refusal().await, &[&journal.display().to_string(), &owner, "postgres://"]);
    // Which harms nobody.
    first.order(&create()).await.assert_is(CREATED);
}

#[tokio::test]
async fn a_directory_that_is_not_there_is_named() {
    let setup = setup().top("[journal]\nurl = \"sqlite:no/such/spigate.db\"\n");
    assert_says(&setup.refusal().await, &["no/such/spigate.db", "the directory must exist", "writable"]);
    let setup = Setup::to("http://127.0.0.1:9/").top("[journal]\nurl = \"sqlite:here\"\n");
    fs::create_dir(setup.directory().path().join("here")).unwrap();
    assert_says(&setup.refusal().await, &["here: ", "Is a directory", "must name a file"]);
}

/// Words that run a program without the right to write everywhere.
fn as_somebody() -> Option<Vec<&'static str>> {
    if !rustix::process::geteuid().is_root() {
        return Some(vec!["env"]);
    }
    has_program("setpriv").then(|| vec!["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"])
}

#[tokio::test]
async fn what_may_not_be_written_is_named() {
    let Some(somebody) = as_somebody() else { return };
    // The directory, the file, and one of the files that SQLite keeps beside it.
    for (directory, file, beside) in [(0o555, 0o666, 0o666), (0o777, 0o444, 0o666), (0o777, 0o666, 0o444)] {
        let setup = with_journal().await.through(&somebody);
        let (path, mode) = (path(&setup), Permissions::from_mode);
        for ending in ["-wal", "-shm", "-lock"] {
            let beside_it = PathBuf::from(format!("{}{ending}", path.display()));
            fs::write(&beside_it, "").unwrap();
            fs::set_permissions(&beside_it, mode(if ending == "-wal" { beside } else { 0o666 })).unwrap();
        }
        fs::set_permissions(&path, mode(file)).unwrap();
        if (directory, file) == (0o555, 0o666) {
            fs::remove_file(format!("{}-lock", path.display())).unwrap();
        }
        // Also puts the configuration where nothing can be put any more.
        assert_eq!(setup.check().code, 0);
        fs::set_permissions(setup.directory().path(), mode(directory)).unwrap();
        let refusal = setup.refusal().await;
        fs::set_permissions(setup.directory().path(), mode(0o755)).unwrap();
        assert_says(&refusal, &["spigate.db", "writable for this user"]);
    }
}

#[tokio::test]
async fn a_read_only_file_system_is_named() {
    let setup = with_journal().await;
    let directory = setup.directory().path().to_str().unwrap().to_owned();
    let mount =
        format!("mount --bind '{directory}' '{directory}' && mount -o remount,ro,bind '{directory}' && exec \"$@\"");
    let Some(through) = own_mounts(&mount) else { return };
    let through: Vec<&str> = through.iter().map(String::as_str).collect();
    let refusal = setup.through(&through).refusal().await;
    assert_says(&refusal, &["spigate.db", "ead-only file system", "writable"]);
}

#[tokio::test]
async fn a_file_that_is_removed_or_replaced_is_not_written_any_more() {
    for ending in ["", "-wal"] {
        for replace in [false, true] {
            let backend = Backend::confirming().await;
            let gateway = Gateway::over(&backend).await;
            let order = create();
            gateway.order(&order).await.assert_is(CREATED);
            let file = gateway.directory().path().join(format!("{JOURNAL}{ending}"));
            let away = file.with_extension("away");
            fs::rename(&file, &away).unwrap();
            if replace {
                fs::write(&file, "").unwrap();
            }
            // No time passes in which a delivery would be recorded where nobody finds it.
            gateway.order(&create()).await.assert_rejected(503, "journal_unavailable");
            let reply = gateway.wait_for_readyz(503).await;
            let says = format!("{} was removed or replaced while it was in use", file.display());
            assert!(reply.status == 503 && reply.text().contains(&says), "{}", reply.text());
            gateway.line("the loss", |line| line["cause"].as_str().is_some_and(|cause| cause.contains(&says))).await;
            assert_eq!(backend.count(), 1);

            fs::rename(&away, &file).unwrap();
            gateway.wait_for_readyz(200).await;
            gateway.order(&order).await.assert_is(CREATED);
            assert_eq!(backend.count(), 1);
        }
    }
}

#[tokio::test]
async fn a_file_that_is_removed_is_noticed_though_nobody_orders_anything() {
    let gateway = setup().start().await;
    fs::remove_file(gateway.directory().path().join(JOURNAL)).unwrap();
    let reply = gateway.wait_for_readyz(503).await;
    assert!(reply.text().contains("was removed or replaced while it was in use"), "{}", reply.text());
}

#[tokio::test]
async fn what_a_removed_write_ahead_log_held_is_saved() {
    let backend = Backend::confirming().await;
    let mut gateway = Gateway::over(&backend).await;
    let order = create();
    gateway.order(&order).await.assert_is(CREATED);
    fs::remove_file(gateway.directory().path().join("spigate.db-wal")).unwrap();
    gateway.wait_for_readyz(503).await;
    gateway.restart().await;
    gateway.order(&order).await.assert_is(CREATED);
    assert_eq!(backend.count(), 1);
}

/// Until it is mended, and although nobody orders anything.
async fn assert_tells(gateway: &Gateway, words: &[&str]) {
    let reply = gateway.wait_for_readyz(503).await;
    for word in words {
        assert!(reply.text().contains(word), "{word}: not in: {}", reply.text());
    }
    let says = |line: &serde_json::Value| {
        let cause = line["cause"].as_str().unwrap_or_default();
        line["level"] == "ERROR" && words.iter().all(|word| cause.contains(word))
    };
    gateway.line("the damage", says).await;
    gateway.wait_for_metric("spigate_journal_errors_total{operation=\"probe\"}", |errors| errors >= 2.0).await;
    gateway.order(&create()).await.assert_rejected(503, "journal_unavailable");
}

#[tokio::test]
async fn a_file_that_is_damaged_while_it_is_served_is_noticed_though_nobody_orders_anything() {
    let backend = Backend::confirming().await;
    let gateway = Gateway::over(&backend).await;
    let order = create();
    gateway.order(&order).await.assert_is(CREATED);
    // A log that gets its receipt later would have the page, whole.
    gateway.wait_for_metric(UNANSWERED, |unanswered| unanswered == 0.0).await;
    let file = gateway.directory().path().join(JOURNAL);
    let other = Connection::open(&file).unwrap();
    let busy = "PRAGMA wal_checkpoint(TRUNCATE)";
    assert!(!other.query_row(busy, [], |row| row.get::<_, bool>(0)).unwrap());
    let page = "SELECT rootpage FROM sqlite_schema WHERE name = 'deliveries'";
    let page: usize = other.query_row(page, [], |row| row.get::<_, u32>(0)).unwrap().try_into().unwrap();
    let (page, whole) = ((page - 1) * 4096, fs::read(&file).unwrap());
    overwrite(&file, page as u64, &[0xA5; 4096]);
    assert_tells(&gateway, &["spigate.db: is damaged", "restore a backup"]).await;
    overwrite(&file, page as u64, &whole[page..page + 4096]);
    gateway.wait_for_readyz(200).await;
    gateway.order(&order).await.assert_is(CREATED);
    assert_eq!(backend.count(), 1);

    other.execute_batch("ALTER TABLE keys RENAME TO away").unwrap();
    assert_tells(&gateway, &["spigate.db: is not as spigate made it", "restore a backup", "no such table"]).await;
    other.execute_batch("ALTER TABLE away RENAME TO keys").unwrap();
    gateway.wait_for_readyz(200).await;
    gateway.order(&order).await.assert_is(CREATED);
    assert_eq!(backend.count(), 1);
}
