//! `spigate explain`: what a signed URL says, whether it verifies, and if not, why.

use std::io::Read as _;
use std::path::PathBuf;

use clap::Args;

use super::signing::{DialectArgs, read_key};
use super::{Failure, load_config, terminal};
use crate::clock;
use crate::dialect::builtin;
use crate::explain::{self, Context, Key, Problem, Unusable};

/// Arguments of `spigate explain`.
#[derive(Args)]
pub struct Explain {
    /// A URL, a line of an access log, or - for standard input
    #[arg(default_value = "-")]
    url: String,
    /// File with the key; may be repeated
    #[arg(long, value_name = "FILE")]
    key_file: Vec<PathBuf>,
    #[command(flatten)]
    dialect: DialectArgs,
    /// Take keys and dialects from the apps of a configuration
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Only this app of the configuration
    #[arg(long, requires = "config")]
    app: Option<String>,
    /// The signature's header, where the signature came in one
    #[arg(long, value_name = "VALUE")]
    signature_header: Option<String>,
}

impl Explain {
    /// Runs the command.
    ///
    /// # Errors
    /// A request that the gateway would refuse, or input that holds no query.
    pub fn run(&self) -> Result<(), Failure> {
        let input = self.input()?;
        let contexts = self.contexts()?;
        let builtin = builtin::load().map_err(Failure::unusable)?;
        let explained = explain::explain(&input, &contexts, &builtin, self.signature_header.as_deref(), clock::now());
        let report = explained.map_err(|unusable| {
            Failure::unusable(match unusable {
                Unusable::NoQuery => "there is no query in the input: a URL or a log line with one is needed",
                Unusable::NoKey => "there is no key; give --key-file, or --config (and an --app of it)",
            })
        })?;
        for (topic, text) in &report.lines {
            terminal::say(&format!("{:10} {text}", topic.as_str()));
        }
        let Some(Problem { message, mistakes }) = report.problem else { return Ok(()) };
        let list = mistakes.iter().map(|mistake| format!("\n  - {mistake}")).collect::<String>();
        Err(Failure::negative(format!("{message}{list}")))
    }

    fn input(&self) -> Result<String, Failure> {
        if self.url != "-" {
            return Ok(self.url.clone());
        }
        let mut text = String::new();
        std::io::stdin()
            .take(1024 * 1024)
            .read_to_string(&mut text)
            .map_err(|error| Failure::unusable(format!("standard input: {error}")))?;
        Ok(text)
    }

    fn contexts(&self) -> Result<Vec<Context>, Failure> {
        let mut contexts = Vec::new();
        if let Some(path) = &self.config {
            let apps = load_config(path, Vec::new())?.apps;
            let chosen = apps.iter().filter(|app| self.app.as_ref().is_none_or(|name| *name == app.name));
            contexts.extend(chosen.map(|app| Context::of(app, clock::now())));
        }
        if !self.key_file.is_empty() {
            // Without a dialect given, all of them are looked at.
            let dialects = if self.dialect.is_given() {
                vec![self.dialect.load()?]
            } else {
                builtin::load().map_err(Failure::unusable)?
            };
            for dialect in dialects {
                let keys = self
                    .key_file
                    .iter()
                    .map(|path| Ok(Key { name: path.display().to_string(), secret: read_key(path)?, mistake: None }));
                contexts.push(Context { dialect, keys: keys.collect::<Result<_, Failure>>()?, app: None });
            }
        }
        Ok(contexts)
    }
}
