//! `[journal]`: where deliveries are remembered, under which key, and for how long.

use std::path::PathBuf;
use std::time::Duration;

use jiff::SignedDuration;

use super::raw::RawJournal;
use super::scalar::Secret;
use super::validate::Validator;

/// What remembers deliveries.
#[derive(Clone, Debug)]
pub struct JournalConfig {
    /// Where.
    pub location: Location,
    /// How long a claim outlives its silent process.
    pub lease: Duration,
    /// What wraps the keys that seal replies, instead of the apps' keys.
    pub encryption_key: Option<Secret>,
    /// How long replies are kept whole.
    pub retain_replies: SignedDuration,
    /// How long deliveries are remembered.
    pub retain_history: SignedDuration,
    /// How long a recorded expire or delete is replayed.
    pub lifecycle_replay: SignedDuration,
}

/// Where deliveries are remembered.
#[derive(Clone, Debug)]
pub enum Location {
    /// Nowhere: until the process ends.
    Memory,
    /// A file.
    Sqlite(PathBuf),
    /// A database server; the URL may hold a password.
    Postgres(Secret),
}

/// Shortest lease: renewals three times as often must not be a load.
const SHORTEST_LEASE: Duration = Duration::from_secs(1);
/// Fewest characters of a key that others must not guess.
const SHORTEST_KEY: usize = 32;

impl Validator<'_> {
    pub(super) fn journal(&mut self, raw: &RawJournal) -> JournalConfig {
        let location = self.location(&raw.url);
        let lease = self.duration("journal.lease", &raw.lease);
        if lease < SHORTEST_LEASE {
            self.problem("journal.lease", "must be at least 1s");
        }
        let encryption_key = raw.encryption_key.as_ref().and_then(|key| {
            let (place, key) = self.secret("journal.encryption_key", &key.file, &key.env, &key.value)?;
            if key.expose().len() < SHORTEST_KEY {
                self.problem(&place, "must have at least 32 characters; make one with `openssl rand -base64 32`");
            }
            Some(key)
        });
        let retain_replies = self.age("journal.retain_replies", &raw.retain_replies);
        let retain_history = self.age("journal.retain_history", &raw.retain_history);
        if retain_history < retain_replies {
            self.problem("journal.retain_history", "must not be shorter than retain_replies");
        }
        let lifecycle_replay = self.age("journal.lifecycle_replay", &raw.lifecycle_replay);
        JournalConfig { location, lease, encryption_key, retain_replies, retain_history, lifecycle_replay }
    }

    fn age(&mut self, path: &str, text: &str) -> SignedDuration {
        let age = self.positive_duration(path, text);
        SignedDuration::try_from(age).unwrap_or(SignedDuration::MAX)
    }

    fn location(&mut self, url: &str) -> Location {
        if url == "memory:" {
            self.warn(
                "journal.url",
                "memory: forgets every delivery when the process ends; an order that comes again after that is \
                 delivered again",
            );
            return Location::Memory;
        }
        if let Some(path) = url.strip_prefix("sqlite:") {
            // sqlite://PATH is how other programs write it.
            let path = path.strip_prefix("//").unwrap_or(path);
            if path.is_empty() || path.starts_with(':') || path.contains(['?', '\0']) {
                self.problem("journal.url", "must name a file after sqlite:, without parameters");
            }
            // Without the `.` of `./spigate.db`, which would only be in the way of who reads it.
            return Location::Sqlite(self.base.join(path).components().collect());
        }
        if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            if !cfg!(feature = "postgres") {
                self.problem("journal.url", "this spigate was built without the feature postgres");
            }
            return Location::Postgres(Secret::new(url));
        }
        self.problem("journal.url", "must begin with sqlite: or postgres://, or be memory:");
        Location::Memory
    }
}
