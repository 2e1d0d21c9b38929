//! A real PostgreSQL for tests: started by hand in a temporary directory, stopped with it.
//!
//! Included by more than one test target, with `#[path]`. Its programs are Debian's
//! `postgresql`; where they are missing, tests that need them are skipped by name, but never in CI.

#![allow(dead_code, reason = "not every target uses all of it")]

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use crate::ports::free_port;

/// Who owns and runs it if the tests are run by root, as whom it refuses to run.
const USER: &str = "postgres";
/// How often a server is asked whether it is up, a twentieth of a second apart.
const ASKED: u32 = 1200;
/// Runs the server until its own input says how to stop it. If that ends without a word, so did
/// the process that started it: nobody needs its directory any more.
const KEEPER: &str = r#"
    directory=$1; shift
    "$@" & server=$!
    if read -r signal; then
        kill -s "$signal" "$server"
        wait "$server"
    else
        kill -s QUIT "$server"
        wait "$server"
        rm -rf "$directory"
    fi
"#;

/// A rule that lets everybody in.
pub(crate) const EVERYBODY: &str = "host all all 127.0.0.1/32 trust";

/// The directory of its programs.
pub(crate) fn programs() -> Option<&'static Path> {
    static PROGRAMS: OnceLock<Option<PathBuf>> = OnceLock::new();
    let programs = PROGRAMS.get_or_init(|| {
        let versions = fs::read_dir("/usr/lib/postgresql").ok()?;
        let mut found: Vec<_> = versions.map(|version| version.unwrap().path().join("bin")).collect();
        found.retain(|programs| programs.join("postgres").exists() && programs.join("initdb").exists());
        found.sort();
        found.pop()
    });
    if programs.is_none() {
        let ci = std::env::var_os("CI").is_some_and(|ci| ci == "true");
        assert!(!ci, "postgresql is missing and CI must not skip");
        println!("skipped: postgresql is missing");
    }
    programs.as_deref()
}

/// A server.
pub(crate) struct Server {
    programs: PathBuf,
    directory: PathBuf,
    port: u16,
    settings: Vec<String>,
    keeper: Mutex<Option<Child>>,
}

impl Server {
    /// The one that tests share, each with databases of its own. `None` if there is no PostgreSQL.
    pub(crate) fn shared() -> Option<Arc<Self>> {
        static SHARED: OnceLock<Option<Arc<Server>>> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(&[], EVERYBODY).map(Arc::new)).clone()
    }

    /// Starts one with settings (`name=value`) and rules for who may connect; the user postgres
    /// may always, over the socket. `None` if there is no PostgreSQL.
    pub(crate) fn start(settings: &[&str], rules: &str) -> Option<Self> {
        static COUNTER: AtomicU32 = AtomicU32::new(1);
        let programs = programs()?.to_owned();
        // Not below target/: the user postgres may not be let there. One that a killed run left behind may
        // have the same number.
        let directory = loop {
            let name = format!("spigate-pg-{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
            let directory = std::env::temp_dir().join(name);
            match fs::create_dir(&directory) {
                Ok(()) => break directory,
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::AlreadyExists, "{}", directory.display()),
            }
        };
        give(&directory);
        let server = Self {
            programs,
            port: free_port().port(),
            settings: settings.iter().map(|&setting| setting.to_owned()).collect(),
            directory,
            keeper: Mutex::new(None),
        };
        let data = server.data();
        let made = as_user(&server.programs.join("initdb"))
            .args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "--pgdata"])
            .arg(&data)
            .output()
            .unwrap();
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        fs::write(data.join("pg_hba.conf"), format!("local all postgres trust\n{rules}\n")).unwrap();
        server.resume();
        Some(server)
    }

    fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The address of a database for the user postgres, without a password.
    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}?sslmode=disable", self.port)
    }

    /// A new database, and its name.
    pub(crate) fn database(&self) -> String {
        static COUNTER: AtomicU32 = AtomicU32::new(1);
        let name = format!("journal_{}", COUNTER.fetch_add(1, Ordering::Relaxed));
        self.sql("postgres", &format!("CREATE DATABASE {name}"));
        name
    }

    /// Runs statements as the user postgres; what they return, unaligned.
    pub(crate) fn sql(&self, database: &str, statements: &str) -> String {
        self.try_sql(database, statements).unwrap_or_else(|error| panic!("{statements}: {error}"))
    }

    fn try_sql(&self, database: &str, statements: &str) -> Result<String, String> {
        let mut psql = Command::new(self.programs.join("psql"));
        psql.args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1"]);
        psql.args(["--username=postgres", "--port", &self.port.to_string(), "--host"]).arg(&self.directory);
        let output = psql.args(["--dbname", database, "--command", statements]).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// Starts it (again), and comes back when it is up.
    #[expect(clippy::disallowed_methods, reason = "waits for a program; who must not be held up calls it apart")]
    pub(crate) fn resume(&self) {
        let mut keeper = self.keeper.lock().unwrap();
        assert!(keeper.is_none(), "it runs");
        let log = fs::OpenOptions::new().create(true).append(true).open(self.directory.join("log")).unwrap();
        let server = as_user(&self.programs.join("postgres"));
        let mut command = Command::new("sh");
        command.args(["-c", KEEPER, "sh"]).arg(&self.directory).arg(server.get_program()).args(server.get_args());
        command.arg("-D").arg(self.data());
        let own = [
            format!("port={}", self.port),
            "listen_addresses=127.0.0.1".into(),
            format!("unix_socket_directories={}", self.directory.display()),
            "max_connections=400".into(),
            "shared_buffers=32MB".into(),
            "autovacuum=off".into(),
        ];
        for setting in own.iter().chain(&self.settings) {
            command.args(["-c", setting]);
        }
        command.stdin(Stdio::piped()).stdout(log.try_clone().unwrap()).stderr(log);
        // What interrupts the tests must not interrupt who cleans up after them.
        *keeper = Some(command.process_group(0).spawn().unwrap());
        drop(keeper);
        for _ in 0..ASKED {
            if self.try_sql("postgres", "SELECT 1").is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        panic!("it does not come up: {}", fs::read_to_string(self.directory.join("log")).unwrap());
    }

    /// Ends it in an orderly way: connections are broken off, what is committed is written.
    pub(crate) fn stop(&self) {
        self.end("INT");
    }

    /// Ends it at once, as a crash of its machine does (but for what the machine had not written).
    pub(crate) fn kill(&self) {
        self.end("QUIT");
    }

    pub(crate) fn restart(&self) {
        self.stop();
        self.resume();
    }

    fn end(&self, signal: &str) {
        let Some(mut keeper) = self.keeper.lock().unwrap().take() else { return };
        let mut input = keeper.stdin.take().unwrap();
        // A keeper that is gone has nothing left to end.
        let _ = writeln!(input, "{signal}");
        drop(input);
        keeper.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        // What cannot be removed lies in the system's temporary directory.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A command that the server's user runs.
fn as_user(program: &Path) -> Command {
    if owner().is_none() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid", USER, "--regid", USER, "--clear-groups"]).arg(program).current_dir("/");
    command
}

/// Makes a file or directory the server's own, and readable for nobody else.
pub(crate) fn give(path: &Path) {
    let mode = if path.is_dir() { 0o700 } else { 0o600 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    if let Some((user, group)) = owner() {
        chown(path, Some(user), Some(group)).unwrap();
    }
}

/// The ids of the server's user; `None` if the tests are not run by root.
fn owner() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let user = users.lines().find(|line| line.split(':').next() == Some(USER)).unwrap();
    let id = |at| user.split(':').nth(at).unwrap().parse().unwrap();
    Some((id(2), id(3)))
}
