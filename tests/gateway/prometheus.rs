//! The metrics as monitoring sees them: the checker's verdict, and a real Prometheus that
//! scrapes a run and answers questions about it.

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::ports::free_port;
use crate::support::backend::Backend;
use crate::support::client::{self, Reply};
use crate::support::gateway::Gateway;
use crate::support::order::{Order, dialect};
use crate::support::process::Process;
use crate::support::{Directory, has_program, within_deadline};

/// A run with a delivery, a refusal and a backend that breaks the contract.
async fn run(backend: &Backend) -> Gateway {
    let gateway = Gateway::over(backend).await;
    let dialect = dialect("qingcloud-appcenter");
    let create = Order::of(dialect, "CreateAppInstance");
    assert_eq!(gateway.order(&create).await.status, 200);
    gateway.order(&create.clone().key("another key")).await.assert_rejected(401, "signature_invalid");
    let renew = Order::of(dialect, "RenewAppInstance").without("order_id");
    gateway.order(&renew).await.assert_rejected(502, "backend_contract");
    gateway
}

async fn backend() -> Backend {
    Backend::start(|request| {
        let is_create = request.json()["action"] == "CreateAppInstance";
        let body = if is_create { r#"{"success":true,"instanceId":"i-1"}"# } else { r#"{"success":"yes"}"# };
        crate::support::backend::json(body)
    })
    .await
}

#[tokio::test]
async fn the_checker_has_nothing_to_say() {
    if !has_program("promtool") {
        return;
    }
    let backend = backend().await;
    let gateway = run(&backend).await;
    let mut checker = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    checker.stdin.take().unwrap().write_all(gateway.metrics().await.as_bytes()).unwrap();
    let verdict = checker.wait_with_output().unwrap();
    let said = [verdict.stdout, verdict.stderr].concat();
    assert!(verdict.status.success() && said.is_empty(), "{}", String::from_utf8_lossy(&said));
}

#[tokio::test]
async fn a_real_prometheus_scrapes_every_metric() {
    if !has_program("prometheus") {
        return;
    }
    let backend = backend().await;
    let gateway = run(&backend).await;
    let directory = Directory::new();
    let config = directory.write(
        "prometheus.yml",
        &format!(
            "scrape_configs:\n- job_name: spigate\n  scrape_interval: 200ms\n  scrape_timeout: 200ms\n  \
             static_configs:\n  - targets: [\"{}\"]\n",
            gateway.admin
        ),
    );
    let address = free_port();
    let mut command = Command::new("prometheus");
    command
        .arg(format!("--config.file={}", config.display()))
        .arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()))
        .arg(format!("--web.listen-address={address}"));
    let _prometheus = Process::start(&mut command, address, directory.path().join("log")).await;

    let ask = async |query: &str| -> Vec<Value> {
        let reply: Reply = client::one_reply(address, client::get(&format!("/api/v1/query?query={query}"), "")).await;
        // While it starts it answers in other words.
        if reply.status == 200 {
            reply.json()["data"]["result"].as_array().cloned().unwrap_or_default()
        } else {
            vec![]
        }
    };
    let scraped = async {
        while ask("up==1").await.is_empty() || ask("spigate_requests_total").await.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    within_deadline("a scrape", scraped).await;
    for (query, expected) in [
        (r#"spigate_requests_total{app="crm",action="CreateAppInstance",outcome="delivered"}"#, "1"),
        (r#"spigate_requests_total{app="crm",action="RenewAppInstance",outcome="unconfirmed"}"#, "1"),
        (r#"spigate_requests_total{app="crm",action="unknown",outcome="rejected"}"#, "1"),
        (r#"spigate_rejections_total{app="crm",code="signature_invalid"}"#, "1"),
        (r#"spigate_request_seconds_count{app="crm",action="CreateAppInstance"}"#, "1"),
        (r#"spigate_backend_seconds_count{app="crm",action="CreateAppInstance",outcome="delivered"}"#, "1"),
        (r#"spigate_clock_skew_seconds_count{app="crm"}"#, "2"),
        (r#"spigate_key_verifications_total{app="crm",key="k-2026"}"#, "2"),
        (r#"spigate_contract_warnings_total{app="crm",action="RenewAppInstance",field="order_id"}"#, "1"),
        (r#"spigate_backend_violations_total{app="crm",action="RenewAppInstance",rule="success_type"}"#, "1"),
        (r#"spigate_in_flight_requests{app="crm"}"#, "0"),
        (r#"spigate_build_info"#, "1"),
    ] {
        let encoded = query.replace('{', "%7B").replace('}', "%7D").replace('"', "%22").replace('=', "%3D");
        // A scrape that takes too long leaves none for a while.
        let found = async {
            while !matches!(&ask(&encoded).await[..], [only] if only["value"][1] == expected) {
                tokio::task::yield_now().await;
            }
        };
        within_deadline(query, found).await;
    }
    let resident = async {
        while ask("process_resident_memory_bytes").await.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    within_deadline("the metrics of the process", resident).await;
}
