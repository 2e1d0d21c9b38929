//! `spigate completions`: what makes a shell complete this command line.

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::{Cli, Failure, terminal};

/// Arguments of `spigate completions`.
#[derive(Args)]
pub struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    /// Runs the command.
    ///
    /// # Errors
    /// Standard output that cannot be written.
    pub fn run(&self) -> Result<(), Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "spigate", &mut script);
        terminal::write(String::from_utf8_lossy(&script).trim_end())
            .map_err(|error| Failure::unusable(format!("standard output: {error}")))
    }
}
