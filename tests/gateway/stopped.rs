//! A backend whose process stands still: its kernel takes connections and requests, and nothing
//! answers.

use std::process::Command;

use crate::ports::free_port;
use crate::support::backend::CREATED;
use crate::support::gateway::Setup;
use crate::support::order::create;
use crate::support::process::Process;
use crate::support::{Directory, has_program};

/// Confirms every POST, and says how many there were.
const SERVER: &str = r#"
import http.server, sys
class Backend(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        body = sys.argv[2].encode()
        print("call", self.headers["X-Spi-Attempt"], flush=True)
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *arguments):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Backend).serve_forever()
"#;

fn signal(process: &Process, name: &str) {
    let sent = Command::new("kill").arg(format!("-{name}")).arg(process.pid().to_string()).status();
    assert!(sent.unwrap().success());
}

#[tokio::test]
async fn a_stopped_backend_is_a_504_and_what_it_says_when_it_goes_on_is_the_answer() {
    if !has_program("python3") {
        return;
    }
    let directory = Directory::new();
    let (address, log) = (free_port(), directory.path().join("log"));
    let mut server = Command::new("python3");
    server.args(["-c", SERVER, &address.port().to_string(), CREATED]);
    let backend = Process::start(&mut server, address, log).await;
    // Long enough for two flushes of a slow disk.
    let times = "connect_timeout = \"2s\"\nanswer_within = \"2s\"";
    let mut gateway = Setup::to(format!("http://{address}/spi")).backend(times).start().await;

    signal(&backend, "STOP");
    let order = create();
    gateway.order(&order).await.assert_rejected(504, "backend_timeout");
    gateway.order(&order).await.assert_rejected(503, "delivery_in_progress");
    gateway.hurry_no_more().await;
    signal(&backend, "CONT");
    let late = "spigate_deliveries_total{action=\"CreateAppInstance\",app=\"crm\",outcome=\"late\"}";
    gateway.wait_for_metric(late, |late| late == 1.0).await;
    gateway.order(&order).await.assert_is(CREATED);
    gateway.restart().await;
    gateway.order(&order).await.assert_is(CREATED);
    assert_eq!(backend.output(), "call 1\n");
}
