//! Other people's programs: started on loopback for one test, stopped by their own handle.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::within_deadline;

/// A running program.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` and waits until `address` accepts a connection. `log` gets its output.
    pub(crate) async fn start(command: &mut Command, address: SocketAddr, log: PathBuf) -> Self {
        let file = std::fs::File::create(&log).unwrap();
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let mut process = Self { child, log };
        let accepts = async {
            while tokio::net::TcpStream::connect(address).await.is_err() {
                assert!(process.child.try_wait().unwrap().is_none(), "{command:?} ended: {}", process.output());
                tokio::time::sleep(std::time::Duration::from_millis(3)).await;
            }
        };
        within_deadline("the program's port", accepts).await;
        process
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it printed.
    pub(crate) fn output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
