//! What the gateway tells a service manager (`Type=notify`).

use tokio::net::UnixDatagram;

use crate::support::backend::Backend;
use crate::support::gateway::{Gateway, Setup};
use crate::support::{Directory, within_deadline};

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
            let path = gateway.directory().path().join("spigate.toml");
            let text = std::fs::read_to_string(&path).unwrap();
            let rest = text.split_once("[shutdown]").unwrap().1;
            std::fs::write(path, format!("{change}[shutdown]{rest}")).unwrap();
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
