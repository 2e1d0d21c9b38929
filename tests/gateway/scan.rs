//! What a scanner of TLS servers has to say of the public listener.

use std::process::Command;

use crate::support::authority::Authority;
use crate::support::backend::Backend;
use crate::support::gateway::Setup;
use crate::support::has_program;
use crate::support::order::now;

/// How long the scan may take, in seconds: it tries hundreds of handshakes.
const PATIENCE: &str = "400";

/// What the scanner finds and the tests cannot have: an authority of theirs publishes no
/// revocations.
const OF_THE_TESTS: [&str; 1] = ["cert_revocation"];

#[tokio::test]
async fn testssl_finds_no_vulnerability_and_nothing_weak() {
    if !has_program("testssl") {
        return;
    }
    let (authority, backend, now) = (Authority::new(), Backend::confirming().await, now().as_second());
    let certified = authority.certify_for(&["localhost"], now - 3_600, now + 90 * 86_400);
    let gateway = Setup::new(&backend).tls(&certified).file("ca.pem", &authority.pem).start().await;
    let directory = gateway.directory().path();
    let findings = directory.join("findings.json");
    let mut scan = Command::new("timeout");
    scan.args([PATIENCE, "testssl", "--quiet", "--color", "0", "--warnings", "batch", "--fast"])
        // Nothing but this machine.
        .args(["--nodns", "none", "--ip", "127.0.0.1", "--add-ca"])
        .arg(directory.join("ca.pem"))
        .arg("--jsonfile")
        .arg(&findings)
        .args(["--protocols", "--std", "--pfs", "--server-preference", "--server-defaults", "--vulnerable"])
        .arg(format!("localhost:{}", gateway.listen.port()));
    let output = tokio::task::spawn_blocking(move || scan.output().unwrap()).await.unwrap();
    let output = String::from_utf8_lossy(&output.stdout).into_owned();
    let findings = std::fs::read(findings).unwrap_or_else(|_| panic!("no findings: {output}"));
    let findings: Vec<serde_json::Value> = serde_json::from_slice(&findings).unwrap();
    let text = |finding: &serde_json::Value, field: &str| finding[field].as_str().unwrap().to_owned();
    // It came to its end, and looked at what it was asked to look at.
    let of = |id: &str| {
        let found = findings.iter().find(|finding| finding["id"] == id);
        text(found.unwrap_or_else(|| panic!("{id} is not in {output}")), "severity")
    };
    let wanted = ["SSLv2", "SSLv3", "TLS1", "TLS1_1", "TLS1_2", "TLS1_3", "ALPN_HTTP2", "cipher_order", "heartbleed"];
    for id in wanted.into_iter().chain(["CCS", "ticketbleed", "ROBOT", "secure_renego", "POODLE_SSL", "LUCKY13"]) {
        assert!(["OK", "INFO"].contains(&of(id).as_str()), "{id}: {}: {output}", of(id));
    }
    let bad: Vec<String> = findings
        .iter()
        .filter(|finding| ["LOW", "MEDIUM", "HIGH", "CRITICAL"].contains(&text(finding, "severity").as_str()))
        .filter(|finding| !OF_THE_TESTS.contains(&text(finding, "id").as_str()))
        .map(|finding| format!("{} {}: {}", text(finding, "severity"), text(finding, "id"), text(finding, "finding")))
        .collect();
    assert!(bad.is_empty(), "{bad:#?}");
}
