//! What lies on the disk: everything needed to know an order again, and nothing that opens a
//! customer's door.

use std::path::Path;

use crate::support::Directory;
use crate::support::backend::{Backend, json, reply};
use crate::support::gateway::{Setup, UNCONFIRMED};
use crate::support::order::{KEY, create};

const PASSWORD: &str = "hunter2-of-the-customer";
const TOKEN: &str = "t0ken-of-the-login-page";

/// All bytes of the journal: the file, its log, its index.
fn journal(directory: &Directory) -> Vec<(String, Vec<u8>)> {
    let files = std::fs::read_dir(directory.path()).unwrap().map(|file| file.unwrap().path());
    files.filter(|path| path.is_file()).map(|path| (name(&path), std::fs::read(&path).unwrap())).collect()
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

fn assert_sealed(directory: &Directory, order: &str, moment: &str) {
    let files = journal(directory);
    for (name, bytes) in &files {
        for secret in [PASSWORD, TOKEN, KEY, "appInfo", "frontEnd"] {
            assert!(!holds(bytes, secret), "{secret} is in {name} {moment}");
        }
    }
    // It looks where orders are.
    assert!(files.iter().any(|(_, bytes)| holds(bytes, order)), "{order} is in no file {moment}");
}

#[tokio::test]
async fn no_reply_is_in_the_journal_in_clear() {
    for more in ["", "encryption_key = { value = \"a-key-of-no-fewer-than-32-characters\" }\n"] {
        let directory = Directory::new();
        let body = format!(
            r#"{{"success":true,"instanceId":"i-1","message":"{PASSWORD}","appInfo":{{"frontEnd":{{"url":"https://a/","username":"u","password":"{PASSWORD}"}},"authUrl":"https://a/?t={TOKEN}"}}}}"#
        );
        let refusal = format!(r#"{{"success":false,"message":"{PASSWORD}"}}"#);
        let turns = [
            json(&body),
            json(&refusal),
            json(body.replace("true", "false")),
            json(body.replace("\"i-1\"", "7")),
            reply("500 Oops", "", &body),
        ];
        let backend = Backend::in_turn(turns).await;
        let setup = || Setup::new(&backend).journal_in(&directory).top(more).top("[shutdown]\ndelay = \"0s\"\n");
        let gateway = setup().environment("SPIGATE_LOG__LEVEL", "trace").start().await;
        let order = create();
        gateway.order(&order).await.assert_is(&body);
        assert_sealed(&directory, order.value("order_id"), "while it runs");
        gateway.order(&create()).await.assert_is(&refusal);
        for _ in 0..3 {
            gateway.order(&create()).await;
        }
        gateway.wait_for_metric(UNCONFIRMED, |number| number == 1.0).await;
        gateway.order(&order).await.assert_is(&body);
        assert_sealed(&directory, order.value("order_id"), "while it runs");
        let output = gateway.stop().await;
        assert_sealed(&directory, order.value("order_id"), "after its end");
        for secret in [PASSWORD, TOKEN, KEY, "a-key-of-no-fewer-than-32-characters"] {
            assert!(!output.contains(secret), "{secret} is in the output");
        }
        assert!(output.contains(order.value("order_id")));
        // Neither does opening it leave anything behind.
        let gateway = setup().start().await;
        gateway.order(&order).await.assert_is(&body);
        assert_sealed(&directory, order.value("order_id"), "after a replay");
        drop(gateway);
        assert_sealed(&directory, order.value("order_id"), "after a crash");
        assert_eq!(backend.count(), 5);
    }
}

#[cfg(unix)]
#[tokio::test]
async fn the_journal_is_readable_by_its_owner_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = Directory::new();
    let backend = Backend::in_turn([]).await;
    let gateway = Setup::new(&backend).journal_in(&directory).start().await;
    gateway.order(&create()).await.assert_is(&crate::support::backend::created("ins-1"));
    let files: Vec<_> = std::fs::read_dir(directory.path()).unwrap().map(|file| file.unwrap().path()).collect();
    let held = files.iter().filter(|path| name(path).contains(".db") && !name(path).contains("lock"));
    let modes: Vec<_> =
        held.map(|path| (name(path), std::fs::metadata(path).unwrap().permissions().mode() & 0o077)).collect();
    assert!(modes.len() >= 2 && modes.iter().all(|(_, others)| *others == 0), "{modes:?}");
}
