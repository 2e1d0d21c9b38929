//! The least level of events: the configuration's, or for a while another one.
//!
//! Only events of spigate itself are let through, at whatever level: what a library says of its
//! inner workings may hold a query or a header.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tracing_subscriber::Registry;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::reload;

use crate::clock;
use crate::config::raw::LogLevel;
use crate::config::units;

/// Whose events are logged: this crate's.
const OURS: &str = env!("CARGO_CRATE_NAME");

/// The filter of events, as [`Levels`] changes it.
pub type Filter = reload::Layer<Targets, Registry>;

/// The level and who may change it. A copy changes the same level.
#[derive(Clone)]
pub struct Levels {
    state: Arc<Mutex<State>>,
    filter: reload::Handle<Targets, Registry>,
}

struct State {
    configured: LogLevel,
    current: LogLevel,
    reverts_at: Option<Timestamp>,
    /// Changes so far: a return that was planned before the last one does not come.
    changes: u64,
}

/// What [`Levels::get`] tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The level that counts.
    pub level: LogLevel,
    /// The level of the configuration.
    pub configured: LogLevel,
    /// When the configuration's level counts again, if that is planned.
    pub reverts_at: Option<Timestamp>,
}

impl Levels {
    /// The level of a configuration, and the filter that keeps it.
    pub fn new(configured: LogLevel) -> (Self, Filter) {
        let (filter, handle) = reload::Layer::new(targets(configured));
        let state = State { configured, current: configured, reverts_at: None, changes: 0 };
        (Self { state: Arc::new(Mutex::new(state)), filter: handle }, filter)
    }

    /// The level that counts now.
    pub fn get(&self) -> Shown {
        let state = self.state();
        Shown { level: state.current, configured: state.configured, reverts_at: state.reverts_at }
    }

    /// Another level, until the process ends or, with `lasts`, for so long. `who` is named in the
    /// log. Must be called in a runtime.
    pub fn set(&self, level: LogLevel, lasts: Option<Duration>, who: &str) -> Shown {
        let changes = {
            let mut state = self.state();
            state.changes += 1;
            state.reverts_at = lasts.and_then(|lasts| clock::now().checked_add(lasts).ok());
            self.apply(&mut state, level, who, lasts);
            state.changes
        };
        if let Some(lasts) = lasts {
            let levels = self.clone();
            tokio::spawn(async move {
                tokio::time::sleep(lasts).await;
                let mut state = levels.state();
                if state.changes == changes {
                    state.reverts_at = None;
                    let configured = state.configured;
                    levels.apply(&mut state, configured, "the end of the time that was asked for", None);
                }
            });
        }
        self.get()
    }

    /// The level of a new configuration. One that was set by [`Levels::set`] stays until its time
    /// is over, or, if it has none, gives way if the configuration's level changed.
    pub fn configure(&self, configured: LogLevel) {
        let mut state = self.state();
        let changed = state.configured != configured;
        state.configured = configured;
        if changed && state.reverts_at.is_none() {
            self.apply(&mut state, configured, "the configuration", None);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply(&self, state: &mut State, level: LogLevel, who: &str, lasts: Option<Duration>) {
        let before = state.current;
        state.current = level;
        let tell = || {
            let (from, to, lasts) = (name(before), name(level), lasts.map(units::show_duration));
            tracing::warn!(from, to, lasts, by = who, "the log level has changed");
        };
        // Told while the more talkative of both counts, or the change would hide itself.
        let is_quieter = targets_level(level) < targets_level(before);
        if is_quieter {
            tell();
        }
        // Fails only where logging was never set up.
        let _ = self.filter.reload(targets(level));
        if !is_quieter {
            tell();
        }
    }
}

/// A level's name, as it is written in a configuration.
pub fn name(level: LogLevel) -> &'static str {
    match level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    }
}

/// The level with this name.
pub fn parse(text: &str) -> Option<LogLevel> {
    use LogLevel::{Debug, Error, Info, Trace, Warn};
    [Error, Warn, Info, Debug, Trace].into_iter().find(|level| name(*level) == text)
}

fn targets(level: LogLevel) -> Targets {
    Targets::new().with_target(OURS, targets_level(level))
}

fn targets_level(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_level_for_a_while_goes_back_unless_another_came() {
        let (levels, _filter) = Levels::new(LogLevel::Info);
        let minute = Duration::from_secs(60);
        assert!(levels.set(LogLevel::Debug, Some(minute), "a test").reverts_at.is_some());
        tokio::time::sleep(minute / 2).await;
        levels.set(LogLevel::Trace, Some(minute), "a test");
        tokio::time::sleep(minute * 3 / 4).await;
        assert_eq!(levels.get().level, LogLevel::Trace);
        tokio::time::sleep(minute / 2).await;
        let back = Shown { level: LogLevel::Info, configured: LogLevel::Info, reverts_at: None };
        assert_eq!(levels.get(), back);
        levels.set(LogLevel::Error, None, "a test");
        tokio::time::sleep(minute * 60).await;
        assert_eq!(levels.get(), Shown { level: LogLevel::Error, ..back });
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_configuration_counts_where_nobody_asked_for_a_while() {
        let (levels, _filter) = Levels::new(LogLevel::Info);
        levels.configure(LogLevel::Warn);
        assert_eq!(levels.get().level, LogLevel::Warn);
        levels.set(LogLevel::Debug, None, "a test");
        levels.configure(LogLevel::Warn);
        assert_eq!(levels.get().level, LogLevel::Debug);
        levels.configure(LogLevel::Error);
        assert_eq!(levels.get().level, LogLevel::Error);
        levels.set(LogLevel::Trace, Some(Duration::from_secs(60)), "a test");
        levels.configure(LogLevel::Info);
        assert_eq!(levels.get().level, LogLevel::Trace);
        tokio::time::sleep(Duration::from_secs(61)).await;
        assert_eq!(levels.get().level, LogLevel::Info);
    }

    #[test]
    fn names() {
        for level in ["error", "warn", "info", "debug", "trace"] {
            assert_eq!(parse(level).map(name), Some(level));
        }
        assert_eq!(parse("INFO"), None);
    }
}
