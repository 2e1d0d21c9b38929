//! `spigate man`: the man pages, made from the same words as `--help`.

use std::path::PathBuf;

use clap::{Args, CommandFactory as _};
use clap_mangen::Man as Page;

use super::{Cli, Failure, terminal};

/// Arguments of `spigate man`.
#[derive(Args)]
pub struct Man {
    /// Write spigate.1 and a page for each command into this directory instead
    #[arg(long, value_name = "DIRECTORY")]
    dir: Option<PathBuf>,
}

impl Man {
    /// Runs the command.
    ///
    /// # Errors
    /// A directory, or standard output, that cannot be written.
    pub fn run(&self) -> Result<(), Failure> {
        match &self.dir {
            Some(dir) => std::fs::create_dir_all(dir)
                .and_then(|()| clap_mangen::generate_to(Cli::command(), dir))
                .map_err(|error| Failure::unusable(format!("{}: cannot be written: {error}", dir.display()))),
            None => {
                let mut page = Vec::new();
                // As the pages in files are: `help` has none.
                Page::new(Cli::command().disable_help_subcommand(true))
                    .render(&mut page)
                    .and_then(|()| terminal::write(String::from_utf8_lossy(&page).trim_end()))
                    .map_err(|error| Failure::unusable(format!("standard output: {error}")))
            }
        }
    }
}
