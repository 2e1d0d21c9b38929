//! What the gateway tells a service manager (`Type=notify`).

use tokio::net::{TcpStream, UnixDatagram, UnixStream};

use crate::ports::free_port;
use crate::support::backend::{Backend, CREATED};
use crate::support::client::{Connection, get};
use crate::support::gateway::{Gateway, Setup};
use crate::support::order::create;
use crate::support::{Directory, has_program, within_deadline};

/// The manager's end of `NOTIFY_SOCKET`.
struct Manager {
    socket: UnixDatagram,
    directory: Directory,
}

impl Manager {
    fn new() -> Self {
        let directory = Directory::new();
        Self { socket: UnixDatagram::bind(directory.path().join("notify")).unwrap(), directory }
    }

    async fn starts(&self, setup: Setup) -> Gateway {
        let path = self.directory.path().join("notify");
        setup.environment("NOTIFY_SOCKET", path.to_str().unwrap()).start().await
    }

    /// The next message: its lines.
    async fn next(&self) -> Vec<String> {
        let mut buffer = [0; 1_024];
        let length = within_deadline("a message to the manager", self.socket.recv(&mut buffer)).await.unwrap();
        String::from_utf8_lossy(&buffer[..length]).lines().map(str::to_owned).collect()
    }
}

fn setup(backend: &Backend) -> Setup {
    Setup::new(backend).top("[shutdown]\ndelay = \"0s\"\n")
}

/// Microseconds of the clock that systemd compares with.
fn monotonic() -> i128 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1_000
}

#[tokio::test]
async fn it_says_when_it_serves_reloads_and_stops() {
    let (backend, manager) = (Backend::confirming().await, Manager::new());
    let gateway = manager.starts(setup(&backend)).await;
    assert_eq!(manager.next().await, ["READY=1".to_owned(), format!("STATUS=serving on {}", gateway.listen)]);
    // A reload ends whatever comes of it: nothing has changed, it cannot be used, it is used.
    for (change, status) in [
        (None, None),
        (Some("[log]\nlevel = \"loud\"\n"), Some("STATUS=serving by the configuration before: ")),
        (Some("[log]\nlevel = \"warn\"\n"), Some("STATUS=serving by a configuration that was reloaded")),
    ] {
        if let Some(change) = change {
            gateway.rewrite(|text| format!("{change}[shutdown]{}", text.split_once("[shutdown]").unwrap().1));
        }
        let asked_at = monotonic();
        gateway.signal("HUP");
        // What a look by itself says of the change may come before or after.
        let mut statuses = Vec::new();
        let mut next = async || loop {
            let message = manager.next().await;
            match &message[..] {
                [only] if only.starts_with("STATUS=") => statuses.push(only.clone()),
                _ => return message,
            }
        };
        let reloading = next().await;
        assert_eq!(reloading[0], "RELOADING=1", "{reloading:?}");
        let at: i128 = reloading[1].strip_prefix("MONOTONIC_USEC=").unwrap().parse().unwrap();
        assert!((asked_at..=monotonic()).contains(&at), "{asked_at} {at}");
        assert_eq!(next().await, ["READY=1"]);
        assert_eq!(statuses.is_empty(), status.is_none(), "{statuses:?}");
        assert!(statuses.iter().all(|text| status.is_some_and(|status| text.starts_with(status))), "{statuses:?}");
    }
    gateway.signal("TERM");
    assert_eq!(manager.next().await[0], "STOPPING=1");
    gateway.stop().await;
}

#[tokio::test]
async fn it_says_that_it_is_alive_only_to_who_watches_it() {
    let (backend, manager) = (Backend::confirming().await, Manager::new());
    let watched = setup(&backend).environment("WATCHDOG_USEC", "100000");
    let gateway = manager.starts(watched).await;
    assert_eq!(manager.next().await[0], "READY=1");
    for _ in 0..3 {
        assert_eq!(manager.next().await, ["WATCHDOG=1"]);
    }
    drop(gateway);
    // The variables of another process, inherited: nobody watches this one.
    let manager = Manager::new();
    let inherited = setup(&backend).environment("WATCHDOG_USEC", "100000").environment("WATCHDOG_PID", "1");
    let gateway = manager.starts(inherited).await;
    assert_eq!(manager.next().await[0], "READY=1");
    gateway.signal("TERM");
    assert_eq!(manager.next().await[0], "STOPPING=1");
    gateway.stop().await;
}

#[tokio::test]
async fn a_manager_that_cannot_be_told_is_no_reason_not_to_serve() {
    let backend = Backend::confirming().await;
    let gateway = setup(&backend).environment("NOTIFY_SOCKET", "/nonexistent/notify").start().await;
    let line = gateway.line("a warning", |line| line["level"] == "WARN" && line["error"].is_string()).await;
    assert!(line["message"].as_str().unwrap().contains("NOTIFY_SOCKET"), "{line}");
    gateway.stop().await;
}

/// Listens as systemd does for a socket unit, and starts the service again when it has ended.
const SOCKET_UNIT: &str = r#"
import os, signal, socket, subprocess, sys
listener = socket.create_server(("127.0.0.1", 0), backlog=64)
os.dup2(listener.fileno(), 3, inheritable=True)
environment = {**os.environ, "LISTEN_FDS": "1", "SPIGATE_LISTEN__ADDRESS": "127.0.0.1:%d" % listener.getsockname()[1]}
runs, asked = [], []
def end(*_):
    asked.append(1)
    if len(runs) >= len(asked):
        runs[-1].send_signal(signal.SIGTERM)
signal.signal(signal.SIGTERM, end)
for turn in (1, 2):
    runs.append(subprocess.Popen(sys.argv[1:], env=environment, pass_fds=[3]))
    # It may have been asked to end before it was known.
    if len(asked) >= turn:
        runs[-1].send_signal(signal.SIGTERM)
    if runs[-1].wait() != 0:
        sys.exit(1)
"#;

#[tokio::test]
async fn a_socket_of_the_manager_outlives_the_service() {
    if !has_program("python3") {
        return;
    }
    let backend = Backend::confirming().await;
    let setup = setup(&backend).forwarding_all().through(&["python3", "-c", SOCKET_UNIT]);
    let gateway = setup.start().await;
    let mut before = Connection::open(gateway.listen).await;
    before.send(get(&create().target(), "")).await;
    before.reply().await.unwrap().assert_is(CREATED);
    gateway.terminate();
    assert!(before.until_closed().await.is_empty());
    // Nobody is refused while the one ends and the next begins.
    let (mut answered, is_there_again) = (0, |output: &str| output.matches("\"ready\"").count() == 2);
    while answered < 10 || !is_there_again(&gateway.output()) {
        gateway.order(&create()).await.assert_is(CREATED);
        answered += 1;
    }
    gateway.stop().await;
}

#[tokio::test]
async fn systemd_hands_over_sockets_of_each_kind() {
    if !has_program("systemd-socket-activate") {
        return;
    }
    let (backend, directory) = (Backend::confirming().await, Directory::new());
    let (listen, admin, unix) = (free_port(), free_port(), directory.path().join("spi.sock"));
    let settings = [
        format!("SPIGATE_LISTEN__ADDRESS={listen}"),
        format!("SPIGATE_ADMIN__ADDRESS={admin}"),
        format!("SPIGATE_LISTENERS__0__ADDRESS=unix:{}", unix.display()),
    ];
    let sockets = [listen.to_string(), admin.to_string(), unix.display().to_string()];
    let mut words = vec!["systemd-socket-activate"];
    sockets.iter().for_each(|socket| words.extend(["-l", socket]));
    settings.iter().for_each(|setting| words.extend(["-E", setting]));
    let setup = setup(&backend).forwarding_all().through(&words);
    // The first connection starts it, and is served.
    let first = tokio::spawn(async move {
        loop {
            if let Ok(stream) = TcpStream::connect(listen).await {
                let mut connection = Connection::over(stream);
                connection.send(get(&create().target(), "")).await;
                return connection.reply().await;
            }
            tokio::task::yield_now().await;
        }
    });
    let gateway = setup.start().await;
    assert_eq!((gateway.listen, gateway.admin), (listen, admin));
    within_deadline("the first answer", first).await.unwrap().unwrap().assert_is(CREATED);
    let mut local = Connection::over(UnixStream::connect(&unix).await.unwrap());
    local.send(get(&create().target(), "")).await;
    local.reply().await.unwrap().assert_is(CREATED);
    assert_eq!(gateway.readyz().await.status, 200);
    // Not its own, so it stays.
    drop(local);
    gateway.stop().await;
    assert!(unix.exists());
}

#[tokio::test]
async fn a_socket_that_nobody_asked_for_is_refused_with_what_to_do() {
    if !has_program("python3") {
        return;
    }
    let backend = Backend::confirming().await;
    let other = SOCKET_UNIT.replace("\"SPIGATE_LISTEN__ADDRESS\"", "\"IGNORED\"");
    let refused = setup(&backend).through(&["python3", "-c", &other]).refusal().await;
    assert_eq!(refused.code, 1);
    assert!(
        refused.text.contains("handed over a socket") && refused.text.contains("ListenStream="),
        "{}",
        refused.text
    );
}
