//! `spigate journal`: what became of deliveries, and the decisions that only an operator can
//! make. Opens the journal beside a running gateway.

mod export;
mod list;
mod prune;
mod resolve;
mod select;
mod show;

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use super::{Failure, load_config};
use crate::config::Config;
use crate::journal::store::{Store, Unavailable};
use crate::journal::vault::Vault;
use crate::journal::visit::open_for_visit;
use crate::json;

/// Arguments of `spigate journal`.
#[derive(Args)]
pub struct Journal {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List deliveries, latest first
    List(list::List),
    /// Show everything about a delivery: its attempts, decisions and reply
    Show(show::Show),
    /// Print deliveries with their replies as JSON, one a line, latest first
    Export(export::Export),
    /// Decide what becomes of a delivery that may have been executed
    Resolve(resolve::Resolve),
    /// Remove now what is older than journal.retain_replies and journal.retain_history
    Prune(prune::Prune),
}

impl Journal {
    /// Runs the command.
    ///
    /// # Errors
    /// A journal that cannot be used, a delivery that is not there, a decision that is refused.
    pub fn run(&self) -> Result<(), Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Failure::unusable(format!("no runtime: {error}")))?;
        runtime.block_on(async {
            match &self.command {
                Command::List(command) => command.run().await,
                Command::Show(command) => command.run().await,
                Command::Export(command) => command.run().await,
                Command::Resolve(command) => command.run().await,
                Command::Prune(command) => command.run().await,
            }
        })
    }
}

/// Where the journal is.
#[derive(Args)]
struct Source {
    /// The configuration file that the gateway serves with: it names the journal, and its keys
    /// open the replies
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// An open journal.
struct Visit {
    config: Config,
    store: Arc<dyn Store>,
    vault: Vault,
}

impl Source {
    fn open(&self) -> Result<Visit, Failure> {
        let config = load_config(&self.config, Vec::new())?;
        let store = open_for_visit(&config.journal).map_err(Failure::unusable)?;
        let vault = Vault::of(&config);
        Ok(Visit { config, store, vault })
    }
}

/// The form of what is printed.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For humans
    Table,
    /// For programs: one array
    Json,
}

/// An array with an element a line.
fn to_json_array(elements: impl IntoIterator<Item = impl Serialize>) -> String {
    let lines = elements.into_iter().map(|element| json::to_text(&element)).collect::<Vec<_>>();
    if lines.is_empty() { "[]".to_owned() } else { format!("[\n{}\n]", lines.join(",\n")) }
}

impl From<Unavailable> for Failure {
    fn from(error: Unavailable) -> Self {
        Self::unusable(format!("journal: {error}"))
    }
}

#[cfg(test)]
mod fixture;
