//! The command line: one file per subcommand, and what they share.
//!
//! Exit codes: 0 all is well, 1 a check or a call failed, 2 it could not be run.

pub mod call;
pub mod check_config;
pub mod completions;
pub mod demo;
pub mod explain;
pub mod healthcheck;
pub mod journal;
pub mod man;
pub mod selftest;
pub mod serve;
pub mod sign;
pub mod signing;
pub mod terminal;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::files::Fingerprint;
use crate::config::raw::{LogFormat, LogLevel};
use crate::config::source::{Problem, Sources};
use crate::config::{self, Config, effective};
use crate::reload::Loaded;

/// A gateway that makes cloud-marketplace SPI calls arrive verified, decoded and once.
#[derive(Parser)]
#[command(name = "spigate", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the gateway
    Serve(serve::Serve),
    /// See it work: a sample backend, the gateway and the platform on loopback
    Demo(demo::Demo),
    /// Print a signed URL and a curl line, as the platform would call
    Sign(sign::Sign),
    /// Call a notify URL as the platform does, and judge the reply as the platform does
    Call(call::Call),
    /// Play the platform against a backend, case by case, and report what it would have made of it
    Selftest(selftest::Selftest),
    /// Show what a signed URL says, whether it verifies, and if not, why
    Explain(explain::Explain),
    /// See what became of deliveries, and decide about those in doubt
    Journal(journal::Journal),
    /// Ask a running gateway whether it is ready
    Healthcheck(healthcheck::Healthcheck),
    /// Report every problem of a configuration, or print it or its JSON schema
    CheckConfig(check_config::CheckConfig),
    /// Print what completes this command line in a shell
    Completions(completions::Completions),
    /// Print the man page, or write those of all commands
    Man(man::Man),
}

/// Why a command did not succeed: what to print, and the exit code.
#[derive(Debug)]
pub struct Failure {
    message: String,
    code: u8,
}

impl Failure {
    /// What was checked or called is not as it should be.
    pub fn negative(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: 1 }
    }

    /// The command could not be run.
    pub fn unusable(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: 2 }
    }
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Serve(command) => command.run(),
        Command::CheckConfig(command) => command.run(),
        Command::Completions(command) => command.run(),
        Command::Man(command) => command.run(),
        Command::Demo(command) => command.run(),
        Command::Sign(command) => command.run(),
        Command::Call(command) => command.run(),
        Command::Selftest(command) => command.run(),
        Command::Explain(command) => command.run(),
        Command::Journal(command) => command.run(),
        Command::Healthcheck(command) => command.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.message.is_empty() {
                terminal::complain(&failure.message);
            }
            ExitCode::from(failure.code)
        }
    }
}

/// What the command line changes of a configuration.
#[derive(Args)]
pub struct Overrides {
    /// Override listen.address
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Override admin.address
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<String>,
    /// Override log.level
    #[arg(long, value_enum)]
    log_level: Option<LogLevel>,
    /// Override log.format
    #[arg(long, value_enum)]
    log_format: Option<LogFormat>,
}

impl Overrides {
    /// They as settings: path and text.
    pub fn settings(&self) -> Vec<(String, String)> {
        use clap::ValueEnum as _;
        let level = self.log_level.and_then(|level| Some(level.to_possible_value()?.get_name().to_owned()));
        let format = self.log_format.and_then(|format| Some(format.to_possible_value()?.get_name().to_owned()));
        let settings = [
            ("listen.address", self.listen.clone()),
            ("admin.address", self.admin.clone()),
            ("log.level", level),
            ("log.format", format),
        ];
        settings.into_iter().filter_map(|(path, value)| Some((path.to_owned(), value?))).collect()
    }
}

/// Loads a configuration: the file, `SPIGATE_…` variables over it, `flags` over both.
///
/// # Errors
/// A file that cannot be read, or every problem, one a line.
pub fn load_config(path: &Path, flags: Vec<(String, String)>) -> Result<Config, Failure> {
    load_config_with_fingerprint(path, flags).map(|(config, _, _)| config)
}

/// The same, with what it was made of.
fn load_config_with_fingerprint(
    path: &Path,
    flags: Vec<(String, String)>,
) -> Result<(Config, Fingerprint, Sources), Failure> {
    let (sources, base) = read_sources(path, flags)?;
    let (config, fingerprint) = config::load_with_fingerprint(&sources, base);
    Ok((config.map_err(|problems| Failure::negative(list(&problems)))?, fingerprint, sources))
}

/// Loads anew what was made of `sources` and is served: a file that cannot be read is a problem like
/// any other.
fn reload_config(path: &Path, sources: &Sources) -> Loaded {
    // What came from standard input comes only once; the files that it names may still change.
    let is_file = path != Path::new(STANDARD_INPUT);
    let text = if is_file { std::fs::read_to_string(path) } else { Ok(sources.text.clone()) };
    match text {
        Ok(text) => config::load_with_fingerprint(&Sources { text, ..sources.clone() }, base_of(path)),
        Err(error) => {
            let message = format!("cannot be read: {error}");
            let fingerprint = Fingerprint::of(&message);
            (Err(vec![Problem { path: String::new(), place: sources.file.clone(), message }]), fingerprint)
        }
    }
}

/// Where relative file names in a configuration start from: its own directory, or the one that
/// spigate was started in if it comes from standard input.
fn base_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("."))
}

/// Prints the configuration that these sources come to, if it can be served.
///
/// # Errors
/// Like [`load_config`].
pub fn print_config(path: &Path, flags: Vec<(String, String)>) -> Result<(), Failure> {
    let (sources, base) = read_sources(path, flags)?;
    let loaded = config::load(&sources, base).and_then(|config| Ok((config, effective::show(&sources)?)));
    let (config, text) = loaded.map_err(|problems| Failure::negative(list(&problems)))?;
    for warning in &config.warnings {
        terminal::complain(&format!("warning: {warning}"));
    }
    let file = terminal::plain(&sources.file);
    terminal::say(&format!(
        "# spigate {}: {file}, SPIGATE_ variables, flags, and defaults for everything else. A secret is\n# shown as … \
         and has to be put in again. Names of files are relative, as they were.\n\n{}",
        env!("CARGO_PKG_VERSION"),
        text.trim_end()
    ));
    Ok(())
}

/// The name of standard input where a file is asked for.
const STANDARD_INPUT: &str = "-";

/// What a configuration is made of, and the directory that names of files in it start from.
fn read_sources(path: &Path, flags: Vec<(String, String)>) -> Result<(Sources, &Path), Failure> {
    let (file, text) = if path == Path::new(STANDARD_INPUT) {
        ("standard input".to_owned(), std::io::read_to_string(std::io::stdin()))
    } else {
        (path.display().to_string(), std::fs::read_to_string(path))
    };
    let text = text.map_err(|error| Failure::unusable(format!("{file}: cannot be read: {error}")))?;
    Ok((Sources { file, text, environment: spigate_variables(std::env::vars_os()), flags }, base_of(path)))
}

/// The environment variables that may set configuration keys.
fn spigate_variables(all: impl Iterator<Item = (OsString, OsString)>) -> Vec<(String, String)> {
    let texts = all.filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let mut variables: Vec<_> = texts.filter(|(name, _)| name.starts_with("SPIGATE_")).collect();
    // Position 0 of a list comes before position 1, and that before position 10.
    let place =
        |name: &str| name.split("__").map(|part| (part.parse::<u64>().ok(), part.to_owned())).collect::<Vec<_>>();
    variables.sort_by_cached_key(|(name, _)| place(name));
    variables
}

/// Problems, one a line, and their number.
fn list(problems: &[Problem]) -> String {
    let lines = problems.iter().map(|problem| format!("{problem}\n")).collect::<String>();
    let count = problems.len();
    format!("{lines}{count} problem{} found", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_come_in_the_order_of_their_places() {
        let given = ["SPIGATE_A__10__X", "PATH", "SPIGATE_A__9__X", "SPIGATE_A__1__X", "SPIGATE_A__1__KEYS__2__X"];
        let variables = spigate_variables(given.into_iter().map(|name| (name.into(), "1".into())));
        let names: Vec<_> = variables.iter().map(|(name, _)| name.as_str()).collect();
        let expected = ["SPIGATE_A__1__KEYS__2__X", "SPIGATE_A__1__X", "SPIGATE_A__9__X", "SPIGATE_A__10__X"];
        assert_eq!(names, expected);
    }
}
