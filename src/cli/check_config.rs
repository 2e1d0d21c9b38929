//! `spigate check-config`: is this a configuration that can be served?

use std::path::PathBuf;

use clap::Args;

use super::{Failure, Overrides, load_config, print_config, terminal};
use crate::config::raw;

/// Arguments of `spigate check-config`.
#[derive(Args)]
pub struct CheckConfig {
    /// The configuration file; - for standard input
    #[arg(long, value_name = "FILE", required_unless_present = "schema")]
    config: Option<PathBuf>,
    #[command(flatten)]
    overrides: Overrides,
    /// Print the JSON schema of the configuration instead
    #[arg(long, conflicts_with = "config")]
    schema: bool,
    /// Print the configuration with variables, flags and defaults, secrets masked, instead
    #[arg(long, conflicts_with = "schema")]
    print_config: bool,
}

impl CheckConfig {
    /// Runs the command.
    ///
    /// # Errors
    /// Every problem of the configuration.
    pub fn run(&self) -> Result<(), Failure> {
        let Some(path) = &self.config else {
            let schema = serde_json::to_string_pretty(&raw::schema());
            terminal::say(&schema.map_err(|error| Failure::unusable(error.to_string()))?);
            return Ok(());
        };
        if self.print_config {
            return print_config(path, self.overrides.settings());
        }
        let config = load_config(path, self.overrides.settings())?;
        for warning in &config.warnings {
            terminal::complain(&format!("warning: {warning}"));
        }
        let apps = config.apps.iter().map(|app| app.name.as_str()).collect::<Vec<_>>().join(", ");
        terminal::say(&format!("the configuration is fine; apps: {apps}"));
        Ok(())
    }
}
