//! The real binary between a scripted backend and a raw client.

pub(crate) mod authority;
pub(crate) mod backend;
pub(crate) mod client;
pub(crate) mod corpora;
pub(crate) mod gateway;
pub(crate) mod order;
pub(crate) mod process;
pub(crate) mod tls_client;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How long anything may take before a test gives up on it. Far above what a loaded machine
/// needs, and below the gateway's own timeouts as [`gateway::Setup`] sets them.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// The future's result, or a panic that says what was waited for.
pub(crate) async fn within_deadline<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("{what}: nothing within {DEADLINE:?}"))
}

/// A number that no other test of this run has.
pub(crate) fn unique() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A directory of one test, gone with it.
pub(crate) struct Directory(PathBuf);

impl Directory {
    pub(crate) fn new() -> Self {
        // A run that was killed may have left one behind, and its number may come again.
        loop {
            let path = std::env::temp_dir().join(format!("spigate-test-{}-{}", std::process::id(), unique()));
            match std::fs::create_dir(&path) {
                Ok(()) => return Self(path),
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists, "{}", path.display()),
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What is left over lies in the system's temporary directory.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Whether a program can be run. Without it a test is skipped by name, but never in CI.
pub(crate) fn has_program(name: &str) -> bool {
    let found = std::process::Command::new(name).arg("--version").output().is_ok();
    if !found {
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{name} is missing and CI must not skip");
        println!("skipped: {name} is missing");
    }
    found
}

/// The words that run a program (after them) in a mount namespace of its own, after `mount`, a
/// shell command that ends with `exec "$@"`. Without the right to do that a test is skipped by
/// name.
pub(crate) fn own_mounts(mount: &str) -> Option<Vec<String>> {
    let mut words = vec!["unshare".to_owned(), "--mount".into()];
    if !rustix::process::geteuid().is_root() {
        words.push("--map-root-user".into());
    }
    words.extend(["sh", "-c", mount, "sh"].map(str::to_owned));
    let tried = std::process::Command::new(&words[0]).args(&words[1..]).arg("true").output();
    if tried.is_ok_and(|tried| tried.status.success()) {
        return Some(words);
    }
    println!("skipped: file systems cannot be mounted here");
    None
}
