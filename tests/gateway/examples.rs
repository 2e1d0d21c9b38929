//! The example backends of `examples/backends/`, each in its own language, behind the gateway:
//! the life of an instance in both dialects, and a repeated order.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::gateway::{Gateway, Setup};
use crate::support::order::{Order, dialect};
use crate::support::process::{Process, free_port};
use crate::support::{Directory, has_program};

fn example(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/backends").join(file)
}

async fn lives_a_life(command: impl Fn(u16, &Directory) -> Command) {
    let directory = Directory::new();
    let address = free_port();
    let _backend =
        Process::start(&mut command(address.port(), &directory), address, directory.path().join("log")).await;
    for (name, suffix, extra) in
        [("qingcloud-appcenter", "AppInstance", "appInfo"), ("qingcloud-market", "Instance", "instanceInfo")]
    {
        let gateway = Setup::to(format!("http://{address}/internal/spi")).dialect(name).start().await;
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
    if has_program("python3") {
        lives_a_life(|port, _| {
            let mut command = Command::new("python3");
            command.arg(example("python/backend.py")).arg(port.to_string());
            command
        })
        .await;
    }
}

#[tokio::test]
async fn node() {
    if has_program("node") {
        lives_a_life(|port, _| {
            let mut command = Command::new("node");
            command.arg(example("node/backend.mjs")).arg(port.to_string());
            command
        })
        .await;
    }
}

#[tokio::test]
async fn java() {
    if has_program("java") {
        lives_a_life(|port, _| {
            let mut command = Command::new("java");
            command.arg(example("java/Backend.java")).arg(port.to_string());
            command
        })
        .await;
    }
}

#[tokio::test]
async fn php() {
    if has_program("php") {
        lives_a_life(|port, directory| {
            let mut command = Command::new("php");
            command.args(["-S", &format!("127.0.0.1:{port}")]).arg(example("php/backend.php"));
            command.env("STATE", directory.path().join("state.json"));
            command
        })
        .await;
    }
}
