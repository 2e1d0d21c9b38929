//! `spigate sign`: a signed URL, as the platform would call it.

use clap::Args;

use super::signing::{SigningArgs, curl};
use super::{Failure, terminal};

/// Arguments of `spigate sign`.
#[derive(Args)]
pub struct Sign {
    #[command(flatten)]
    request: SigningArgs,
}

impl Sign {
    /// Runs the command.
    ///
    /// # Errors
    /// What cannot be signed.
    pub fn run(&self) -> Result<(), Failure> {
        let (url, header) = self.request.prepare()?.sign()?;
        terminal::say(&terminal::plain(&url));
        let header = header.as_ref().map(|(name, value)| (name.as_str(), value.as_str()));
        terminal::say(&terminal::plain(&curl(&url, header)));
        Ok(())
    }
}
