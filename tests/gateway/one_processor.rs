//! With one processor, as in most sidecars, requests and everything around them share one thread
//! (`src/cli/serve.rs`): nothing may wait there for something that needs it, too.

use crate::support::backend::{Backend, Gate, Step, created, json};
use crate::support::client;
use crate::support::gateway::Setup;
use crate::support::has_program;
use crate::support::order::create;

/// The first processor that this process may use.
fn processor() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim();
    allowed.split([',', '-']).next().unwrap().to_owned()
}

#[tokio::test]
async fn while_a_backend_is_slow_all_else_goes_on_and_a_stop_loses_nothing() {
    if !has_program("taskset") {
        return;
    }
    let gates = [Gate::closed(), Gate::closed()];
    let turn = |number: usize| {
        [vec![Step::Wait(gates[number].clone())], json(created(&format!("ins-{}", number + 1)))].concat()
    };
    let backend = Backend::in_turn([turn(0), turn(1)]).await;
    let setup = Setup::new(&backend).companion().top("[shutdown]\ndelay = \"0s\"\n");
    let gateway = setup.through(&["taskset", "--cpu-list", &processor()]).start().await;

    // The others join, whose answer comes by way of the journal.
    let order = create();
    let copies = [(); 3].map(|()| gateway.send(&order));
    gateway.wait_for_claims(3).await;
    let question = format!("GET /companion/ext-authz{} HTTP/1.1\r\nHost: localhost\r\n\r\n", create().target());
    assert_eq!(client::one_reply(gateway.companion(), question).await.status, 200);
    // The admin listener's own thread asks the journal through this one.
    let page = client::one_reply(gateway.admin, client::get("/api/v1/deliveries", "")).await;
    assert_eq!(page.json()["deliveries"].as_array().map(Vec::len), Some(1), "{page:?}");
    gateway.reconfigure(|text| format!("{text}\n")).await;
    gates[0].open();
    for copy in copies {
        copy.await.unwrap().assert_is(&created("ins-1"));
    }
    gateway.order(&order).await.assert_is(&created("ins-1"));

    let last = gateway.send(&create());
    backend.wait_for(2).await;
    gateway.terminate();
    gateway.wait_for_readyz(503).await;
    gates[1].open();
    last.await.unwrap().assert_is(&created("ins-2"));
    let output = gateway.ended().await;
    assert!(output.contains("\"stopped\"") && !output.contains("still runs"), "{output}");
    assert_eq!(backend.count(), 2);
}
