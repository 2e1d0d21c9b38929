//! `spigate healthcheck`: asks a running gateway whether it is ready, for container images that
//! have no other program to ask with.

use std::time::Duration;

use clap::Args;

use super::{Failure, terminal};
use crate::config::units;
use crate::platform;

/// Arguments of `spigate healthcheck`.
#[derive(Args)]
pub struct Healthcheck {
    /// What to ask: /readyz or /livez of the gateway's admin listener
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9090/readyz")]
    url: String,
    /// How long to wait
    #[arg(long, default_value = "2s", value_parser = units::duration)]
    timeout: Duration,
}

impl Healthcheck {
    /// Runs the command.
    ///
    /// # Errors
    /// No answer, or one other than 200.
    pub fn run(&self) -> Result<(), Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Failure::unusable(format!("no runtime: {error}")))?;
        let answer = runtime.block_on(platform::call(&self.url, None, self.timeout));
        let answer = answer.map_err(|error| Failure::negative(error.to_string()))?.raw;
        let text = terminal::plain(String::from_utf8_lossy(&answer.body).trim_end());
        if !answer.status.is_success() {
            return Err(Failure::negative(format!("{}: {text}", answer.status)));
        }
        terminal::say(&text);
        Ok(())
    }
}
