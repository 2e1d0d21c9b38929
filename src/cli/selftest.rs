//! `spigate selftest`: plays the platform against a vendor's backend, and writes down what it would
//! have made of it.

mod choice;
mod output;

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use self::choice::{Choice, Chosen};
use self::output::Outputs;
use super::journal::Format;
use super::signing::{DialectArgs, read_key};
use super::{Failure, load_config, terminal};
use crate::clock;
use crate::config::{Config, Send};
use crate::dialect::Dialect;
use crate::dialect::time::iso8601;
use crate::selftest::case::Case;
use crate::selftest::mask::Mask;
use crate::selftest::plan::{self, Options};
use crate::selftest::report::{self, Environment, Overall, Report, Summary, Tested, table};
use crate::selftest::request;
use crate::selftest::run::{Played, Run, Stop};
use crate::selftest::target::{Own, Target};
use crate::selftest::{Language, Text};

/// Arguments of `spigate selftest`.
#[derive(Args)]
pub struct Selftest {
    /// The notify URL, as the platform calls it
    #[arg(long, requires = "key_file", conflicts_with = "config", required_unless_present_any = ["config", "list"])]
    url: Option<String>,
    /// File with the key from the platform's console; one trailing newline is ignored
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    key_file: Option<PathBuf>,
    #[command(flatten)]
    dialect: DialectArgs,
    /// A gateway's configuration, instead of a URL: tests the app's backend behind a gateway of its
    /// own, with a journal in memory
    #[arg(long, value_name = "FILE", conflicts_with_all = ["dialect", "dialect_file"])]
    config: Option<PathBuf>,
    /// Which app of the configuration, if it has several
    #[arg(long, requires = "config")]
    app: Option<String>,
    /// A field's value instead of the dialect's sample, in plain text: a plan or product of your own.
    /// May be repeated
    #[arg(long = "field", value_name = "NAME=VALUE", value_parser = super::signing::name_and_value)]
    fields: Vec<(String, String)>,
    #[command(flatten)]
    choice: Choice,
    /// End at the first case that fails; what was made is removed all the same
    #[arg(long)]
    fail_fast: bool,
    /// Print the cases, and end
    #[arg(long)]
    list: bool,
    /// As a table, or as JSON for programs
    #[arg(long, value_enum, default_value = "table", hide_possible_values = true, value_name = "table|json")]
    format: Format,
    /// The language of table, JUnit and Markdown; else that of the terminal [possible values: en, zh]
    #[arg(long, value_enum, hide_possible_values = true)]
    language: Option<Language>,
    #[command(flatten)]
    outputs: Outputs,
}

/// How long cases may take together without --slow. With the look whether anybody is there,
/// the last call and cleaning up it stays within a minute.
const LIMIT: Duration = Duration::from_secs(30);

impl Selftest {
    /// Runs the command.
    ///
    /// # Errors
    /// A case that failed or was not run; what cannot be tested or written.
    pub fn run(&self) -> Result<(), Failure> {
        let language = self.language.unwrap_or_else(language_of_terminal);
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Failure::unusable(format!("no runtime: {error}")))?;
        let result = runtime.block_on(self.test(language));
        // A call that was given up must not hold up the end.
        runtime.shutdown_background();
        result
    }

    async fn test(&self, language: Language) -> Result<(), Failure> {
        if self.list {
            return self.print_list(language);
        }
        // Before anything is sent: a run whose report cannot be written is not repeated lightly.
        self.outputs.check()?;
        let source = self.source()?;
        let (cases, chosen) = self.chosen(source.dialect()?, &source)?;
        let real = chosen.confirm(&cases, &self.choice, language)?;
        let slow = self.choice.slow || chosen.has_slow(&cases);
        let (cases, left_out) = chosen.split(cases, real);
        let (signals, stop) = watch::channel(0);
        watch_signals(signals)?;
        let target = source.open().await.map_err(Failure::unusable)?;

        let started = clock::now();
        let progress = progress(language);
        let run = Run {
            target: &target,
            own: &self.fields,
            limit: (!slow).then_some(LIMIT),
            fail_fast: self.fail_fast,
            stop: Stop::new(stop),
            progress: &progress,
        };
        let played = run.play(&cases, &word()?).await;
        clear_progress();
        let report = self.report(&target, played, left_out, started);
        target.stop().await;

        let text = match self.format {
            Format::Table => table::render(&report, language),
            Format::Json => report.to_json().map_err(|error| Failure::unusable(error.to_string()))?,
        };
        terminal::say(&text);
        self.outputs.write(&report, language)?;
        verdict(&report)
    }

    /// The target's configuration, without calling anybody.
    fn source(&self) -> Result<Source, Failure> {
        match (&self.config, &self.url, &self.key_file) {
            (Some(path), ..) => {
                // Whatever is wrong with it, no case failed.
                let config = load_config(path, Vec::new()).map_err(|failure| Failure { code: 2, ..failure })?;
                Ok(Source::Config { config: Box::new(config), app: self.app.clone() })
            }
            (None, Some(url), Some(file)) => {
                let dialect = Box::new(self.dialect.load()?);
                Ok(Source::Url { url: url.clone(), secret: read_key(file)?, dialect })
            }
            // The command line is read so that one of the two is there.
            _ => Err(Failure::unusable("--url with --key-file, or --config")),
        }
    }

    fn chosen(&self, dialect: &Dialect, source: &Source) -> Result<(Vec<Case>, Chosen), Failure> {
        choice::check_fields(dialect, &self.fields)?;
        let lacking = request::without_value(dialect, &self.fields);
        if !lacking.is_empty() {
            let names = lacking.join(", ");
            return Err(Failure::unusable(format!("the dialect has no sample for {names}: give --field NAME=VALUE")));
        }
        let cases = plan::plan(dialect, &source.options(&self.fields));
        let chosen = self.choice.of(&cases)?;
        Ok((cases, chosen))
    }

    fn print_list(&self, language: Language) -> Result<(), Failure> {
        let (dialect, options) = match (&self.config, &self.url) {
            (None, None) => (self.dialect.load()?, Source::options_of_url(&self.fields)),
            (None, Some(_)) if self.key_file.is_none() => (self.dialect.load()?, Source::options_of_url(&self.fields)),
            _ => {
                let source = self.source()?;
                (source.dialect()?.clone(), source.options(&self.fields))
            }
        };
        let cases = plan::plan(&dialect, &options);
        terminal::say(&choice::list(&cases, language));
        Ok(())
    }

    fn report(&self, target: &Target, played: Played, left_out: Vec<report::LeftOut>, started: Timestamp) -> Report {
        let summary = Summary::of(&played.entries);
        let finished = clock::now();
        let own = target.own.as_ref();
        Report {
            format: report::FORMAT,
            spigate: env!("CARGO_PKG_VERSION"),
            verdict: summary.verdict(),
            interrupted: played.interrupted,
            started: iso8601(started),
            finished: iso8601(finished),
            target: Tested {
                mode: if own.is_some() { "config" } else { "url" },
                url: Mask::new(&target.secret).url(&target.url, ""),
                app: own.map(|own| own.app.clone()),
                send: own.map(|own| match own.send {
                    Send::Json => "json",
                    Send::Headers => "headers",
                    Send::Query => "query",
                    Send::Raw => "raw",
                }),
                dialect: target.dialect.name.clone(),
                dialect_title: terminal::plain(&target.dialect.title),
                remarks: own.map(remarks).unwrap_or_default(),
            },
            environment: environment(),
            summary,
            left_out,
            cases: played.entries,
        }
    }
}

/// What is going to be tested.
enum Source {
    Url { url: String, secret: crate::config::scalar::Secret, dialect: Box<Dialect> },
    Config { config: Box<Config>, app: Option<String> },
}

impl Source {
    fn dialect(&self) -> Result<&Dialect, Failure> {
        match self {
            Self::Url { dialect, .. } => Ok(dialect),
            Self::Config { config, app } => {
                let mut apps = config.apps.iter().filter(|known| app.as_ref().is_none_or(|app| known.name == *app));
                let names = || config.apps.iter().map(|app| app.name.as_str()).collect::<Vec<_>>().join(", ");
                match (apps.next(), apps.next()) {
                    (Some(app), None) => Ok(&app.dialect),
                    (None, _) => Err(Failure::unusable(format!("--app: not known; there are {}", names()))),
                    (Some(_), Some(_)) => Err(Failure::unusable(format!("--app: say which; there are {}", names()))),
                }
            }
        }
    }

    fn options(&self, own: &[(String, String)]) -> Options {
        match self {
            Self::Url { .. } => Self::options_of_url(own),
            Self::Config { config, app } => {
                let app = config.apps.iter().find(|known| app.as_ref().is_none_or(|app| known.name == *app));
                let window = app.map(|app| (app.freshness.max_age, app.freshness.max_future)).unwrap_or_default();
                let strict = app.is_some_and(|app| app.strictness == crate::dialect::request::Strictness::Strict);
                Options { own: own.to_vec(), strict, window, can_hold: true }
            }
        }
    }

    fn options_of_url(own: &[(String, String)]) -> Options {
        Options { own: own.to_vec(), strict: false, window: (Duration::ZERO, Duration::ZERO), can_hold: false }
    }

    async fn open(self) -> Result<Target, String> {
        match self {
            Self::Url { url, secret, dialect } => Target::at(&url, *dialect, secret).await,
            Self::Config { config, app } => Target::of(*config, app.as_deref()).await,
        }
    }
}

/// What a report says of a configuration that does not do everything.
fn remarks(own: &Own) -> Vec<Text> {
    let mut remarks = Vec::new();
    if !own.deliver_once {
        remarks.push(Text::new(
            "deliver_once = false: copies of an order reach the backend, which has to tell them apart itself.",
            "deliver_once = false：订单副本会到达后端，须由后端自行去重。",
        ));
    }
    if !own.enforce {
        remarks.push(Text::new(
            "enforce = false: the gateway only observes and refuses nothing.",
            "enforce = false：网关仅观察，不拒绝任何请求。",
        ));
    }
    remarks
}

fn environment() -> Environment {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    let system = name.map_or_else(|| std::env::consts::OS.to_owned(), |name| terminal::plain(name.trim_matches('"')));
    Environment { system, platform: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH) }
}

/// A word that no other run has.
fn word() -> Result<String, Failure> {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes).map_err(|error| Failure::unusable(format!("no random numbers: {error}")))?;
    Ok(format!("{:08x}", u32::from_be_bytes(bytes)))
}

fn verdict(report: &Report) -> Result<(), Failure> {
    if report.interrupted {
        return Err(Failure::unusable("ended by the user; what was made has been removed, as far as the report says"));
    }
    let nothing_genuine =
        report.cases.iter().flat_map(|entry| &entry.findings).any(|finding| finding.rule == "unauthorized");
    match report.verdict {
        Overall::Passed => Ok(()),
        Overall::Failed | Overall::Incomplete if nothing_genuine => Err(Failure::negative(
            "Genuine requests were answered as if their signature were wrong: is it the key of this app? If it is, \
             `spigate explain` shows what has to be signed.",
        )),
        Overall::Failed | Overall::Incomplete => Err(Failure::negative("")),
    }
}

/// The language of the user's terminal.
fn language_of_terminal() -> Language {
    let names = ["LC_ALL", "LC_MESSAGES", "LANG"];
    let set = names.iter().find_map(|name| std::env::var_os(name).filter(|value| !value.is_empty()));
    match set {
        Some(value) if value.to_string_lossy().starts_with("zh") => Language::Zh,
        _ => Language::En,
    }
}

/// Shows on a terminal which case runs.
fn progress(language: Language) -> impl Fn(usize, usize, &Text) {
    let shown = std::io::stderr().is_terminal();
    move |number, count, title| {
        if shown {
            // Clears the line before.
            let _ = write!(anstream::stderr(), "\r\x1b[2K[{number}/{count}] {}", title.get(language));
            let _ = anstream::stderr().flush();
        }
    }
}

fn clear_progress() {
    if std::io::stderr().is_terminal() {
        let _ = write!(anstream::stderr(), "\r\x1b[2K");
    }
}

/// Counts the user's wishes to end.
fn watch_signals(count: watch::Sender<u8>) -> Result<(), Failure> {
    let listen = |kind| signal(kind).map_err(|error| Failure::unusable(format!("signals: {error}")));
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            count.send_modify(|count| *count = count.saturating_add(1));
            if *count.borrow() == 1 {
                terminal::complain("\nending: removing what was made (once more ends at once)");
            }
        }
    });
    Ok(())
}
