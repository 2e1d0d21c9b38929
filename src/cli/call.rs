//! `spigate call`: calls a notify URL as the platform does, and says what the platform would
//! make of the reply.

use std::time::Duration;

use clap::Args;

use super::signing::SigningArgs;
use super::{Failure, terminal};
use crate::config::units;
use crate::platform::{self, Verdict};

/// Arguments of `spigate call`.
#[derive(Args)]
pub struct Call {
    #[command(flatten)]
    request: SigningArgs,
    /// How long to wait; the platform's documentation says 15s, its client was seen with 6s
    #[arg(long, default_value = "15s", value_parser = units::duration)]
    timeout: Duration,
}

impl Call {
    /// Runs the command.
    ///
    /// # Errors
    /// A call that failed, or a reply that the platform would not take for a success.
    pub fn run(&self) -> Result<(), Failure> {
        let prepared = self.request.prepare()?;
        let (url, header) = prepared.sign()?;
        let header = header.as_ref().map(|(name, value)| (name.as_str(), value.as_str()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Failure::unusable(format!("no runtime: {error}")))?;
        let reply = runtime.block_on(platform::call(&url, header, self.timeout)).map_err(|error| match error {
            platform::CallFailure::Url(_) => Failure::unusable(error.to_string()),
            platform::CallFailure::Call(_) => {
                Failure::negative(format!("no reply, so the platform would come again: {error}"))
            }
        })?;
        terminal::say(&terminal::plain(&String::from_utf8_lossy(&reply.raw.body)));
        let (verdict, checks) = platform::judge(&prepared.action().reply, &reply, self.timeout);
        for check in checks {
            let mark = if check.passed { "ok  " } else { "FAIL" };
            terminal::say(&terminal::plain(&format!("{mark} {:12} {}", check.what, check.detail)));
        }
        match verdict {
            Verdict::Success => {
                terminal::say("the platform takes this for a success");
                Ok(())
            }
            Verdict::Refused => Err(Failure::negative("the platform takes this for a final refusal")),
            Verdict::Retry => Err(Failure::negative("the platform takes this for no reply and comes again")),
        }
    }
}
