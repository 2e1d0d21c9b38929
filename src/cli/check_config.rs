//! `spigate check-config`: is this a configuration that can be served?

use clap::Args;

use super::{ConfigArgs, Failure, terminal};
use crate::config::raw;

/// Arguments of `spigate check-config`.
#[derive(Args)]
pub struct CheckConfig {
    #[command(flatten)]
    config: Option<ConfigArgs>,
    /// Print the JSON schema of the configuration instead
    #[arg(long, conflicts_with_all = ["config", "listen", "admin", "log_level", "log_format"])]
    schema: bool,
}

impl CheckConfig {
    /// Runs the command.
    ///
    /// # Errors
    /// Every problem of the configuration.
    pub fn run(&self) -> Result<(), Failure> {
        if self.schema {
            let schema = serde_json::to_string_pretty(&raw::schema());
            terminal::say(&schema.map_err(|error| Failure::unusable(error.to_string()))?);
            return Ok(());
        }
        let Some(arguments) = &self.config else {
            return Err(Failure::unusable("--config FILE or --schema is needed; see spigate check-config --help"));
        };
        let config = arguments.load()?;
        for warning in &config.warnings {
            terminal::complain(&format!("warning: {warning}"));
        }
        let apps = config.apps.iter().map(|app| app.name.as_str()).collect::<Vec<_>>().join(", ");
        terminal::say(&format!("the configuration is fine; apps: {apps}"));
        Ok(())
    }
}
