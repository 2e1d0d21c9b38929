//! The example backends of `examples/backends/`, each in its own language, behind the gateway:
//! the life of an instance in both dialects, and a repeated order.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::ports::free_port;
use crate::support::gateway::{Gateway, Setup};
use crate::support::order::{Order, dialect};
use crate::support::process::Process;
use crate::support::{Directory, has_program};

/// A file of the examples.
pub(crate) fn example(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/backends").join(file)
}

/// A backend of the examples.
#[derive(Clone, Copy)]
pub(crate) enum Example {
    Python,
    Node,
    Java,
    Php,
}

impl Example {
    /// Starts it: the program, and its URL. `None`, by name, where its language is missing.
    pub(crate) async fn start(self) -> Option<(Running, String)> {
        let program = match self {
            Self::Python => "python3",
            Self::Node => "node",
            Self::Java => "java",
            Self::Php => "php",
        };
        if !has_program(program) {
            return None;
        }
        let (directory, address) = (Directory::new(), free_port());
        let mut command = Command::new(program);
        match self {
            Self::Python => command.arg(example("python/backend.py")).arg(address.port().to_string()),
            Self::Node => command.arg(example("node/backend.mjs")).arg(address.port().to_string()),
            Self::Java => command.arg(example("java/Backend.java")).arg(address.port().to_string()),
            Self::Php => command
                .args(["-S", &address.to_string()])
                .arg(example("php/backend.php"))
                .env("STATE", directory.path().join("state.json")),
        };
        let process = Process::start(&mut command, address, directory.path().join("log")).await;
        Some((Running { _process: process, _directory: directory }, format!("http://{address}/internal/spi")))
    }
}

/// A running example and where it keeps its files.
pub(crate) struct Running {
    _process: Process,
    _directory: Directory,
}

async fn lives_a_life(example: Example) {
    let Some((_running, url)) = example.start().await else { return };
    for (name, suffix, extra) in
        [("qingcloud-appcenter", "AppInstance", "appInfo"), ("qingcloud-market", "Instance", "instanceInfo")]
    {
        let gateway = Setup::to(url.clone()).dialect(name).start().await;
        let create = Order::of(dialect(name), &format!("Create{suffix}"));
        let created = succeed(&gateway, &create).await;
        let instance = created["instanceId"].as_str().unwrap();
        assert!(created[extra].is_object(), "{created}");
        // The same order again, signed anew: the backend knows it by its Idempotency-Key.
        let again = succeed(&gateway, &create.clone().seconds_from_now(1)).await;
        assert_eq!(again["instanceId"], instance);
        let another = succeed(&gateway, &Order::of(dialect(name), &format!("Create{suffix}"))).await;
        assert_ne!(another["instanceId"], instance);

        succeed(&gateway, &Order::of(dialect(name), "TestConnection")).await;
        for action in ["Renew", "Upgrade", "Expire", "Renew", "Expire", "Delete"] {
            let order = Order::of(dialect(name), &format!("{action}{suffix}"));
            succeed(&gateway, &order.with("instance_id", instance)).await;
        }
        let gone = Order::of(dialect(name), &format!("Renew{suffix}")).with("instance_id", instance);
        let refused = gateway.order(&gone).await;
        assert_eq!((refused.status, refused.json()["success"].as_bool()), (200, Some(false)));
    }
}

async fn succeed(gateway: &Gateway, order: &Order<'_>) -> Value {
    let reply = gateway.order(order).await;
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/json")), "{}", reply.text());
    assert_eq!(reply.json()["success"], true, "{}", reply.text());
    reply.json()
}

#[tokio::test]
async fn python() {
    lives_a_life(Example::Python).await;
}

#[tokio::test]
async fn node() {
    lives_a_life(Example::Node).await;
}

#[tokio::test]
async fn java() {
    lives_a_life(Example::Java).await;
}

#[tokio::test]
async fn php() {
    lives_a_life(Example::Php).await;
}
