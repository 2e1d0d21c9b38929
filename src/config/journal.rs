//! `[journal]`: where deliveries are remembered, under which key, and for how long.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::SignedDuration;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

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

impl Location {
    /// Whether both are the same place, named the same way.
    pub fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Memory, Self::Memory) => true,
            (Self::Sqlite(one), Self::Sqlite(two)) => one == two,
            (Self::Postgres(one), Self::Postgres(two)) => one.expose() == two.expose(),
            _ => false,
        }
    }
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

    /// Warns of a journal that does not last. Not asked where nothing is delivered.
    pub(super) fn doubt_journal(&mut self, journal: &JournalConfig) {
        if matches!(journal.location, Location::Memory) {
            self.warn(
                "journal.url",
                "memory: forgets every delivery when the process ends; an order that comes again after that is \
                 delivered again",
            );
        }
    }

    fn age(&mut self, path: &str, text: &str) -> SignedDuration {
        let age = self.positive_duration(path, text);
        SignedDuration::try_from(age).unwrap_or(SignedDuration::MAX)
    }

    fn location(&mut self, url: &str) -> Location {
        if url == "memory:" {
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
            let url = Secret::new(with_roots_in(self.base, url));
            if let Err(problem) = check_postgres(&url) {
                self.problem("journal.url", &problem);
            }
            return Location::Postgres(url);
        }
        self.problem("journal.url", "must begin with sqlite: or postgres://, or be memory:");
        Location::Memory
    }
}

/// The URL of a server with the file of its `sslrootcert` in `base`, where it is named from there.
fn with_roots_in(base: &Path, url: &str) -> String {
    let Some((server, options)) = url.split_once('?') else { return url.to_owned() };
    let options = options.split('&').map(|option| {
        let file = option.strip_prefix("sslrootcert=").filter(|file| !file.is_empty() && *file != "system");
        // One that is not UTF-8 is refused later, with all else that can be wrong.
        let Some(Ok(file)) = file.map(|file| percent_decode_str(file).decode_utf8()) else { return option.into() };
        let file = base.join(&*file);
        match file.to_str() {
            Some(file) => format!("sslrootcert={}", utf8_percent_encode(file, NON_ALPHANUMERIC)),
            None => option.to_owned(),
        }
    });
    format!("{server}?{}", options.collect::<Vec<_>>().join("&"))
}

/// What is wrong with a URL; never a part of it.
#[cfg(feature = "postgres")]
fn check_postgres(url: &Secret) -> Result<(), String> {
    crate::journal::postgres::PostgresStore::new(url, "", SHORTEST_LEASE).map(drop)
}

#[cfg(not(feature = "postgres"))]
fn check_postgres(_: &Secret) -> Result<(), String> {
    Err("this spigate was built without the feature postgres".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::source::Sources;
    use crate::config::{self, Config};
    use crate::dialect::builtin;

    fn load(journal: &str) -> Result<Config, Vec<String>> {
        let text = format!(
            "[journal]\n{journal}\n[[apps]]\nname = \"crm\"\npath = \"/spi\"\ndialect = \"{}\"\n\
             keys = [{{ id = \"k\", value = \"secret\" }}]\n[apps.backend]\nurl = \"http://127.0.0.1:1/\"\n",
            builtin::load().unwrap()[0].name
        );
        let sources = Sources { file: "test".into(), text, ..Sources::default() };
        let config = config::load(&sources, Path::new("/etc/spigate"));
        config.map_err(|problems| problems.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_url_names_one_of_three_places() {
        let location = |url: &str| load(&format!("url = \"{url}\"")).unwrap().journal.location;
        for (url, path) in [
            ("sqlite:./a.db", "/etc/spigate/./a.db"),
            ("sqlite:/var/lib/a.db", "/var/lib/a.db"),
            ("sqlite:///var/lib/a.db", "/var/lib/a.db"),
        ] {
            assert!(matches!(location(url), Location::Sqlite(known) if known == Path::new(path)), "{url}");
        }
        assert!(matches!(location("memory:"), Location::Memory));
        assert!(matches!(load("").unwrap().journal.location, Location::Sqlite(_)));
        #[cfg(feature = "postgres")]
        assert!(matches!(location("postgres://u:hush@db/x"), Location::Postgres(_)));
    }

    #[test]
    fn the_authority_of_a_server_is_named_from_the_configurations_directory() {
        let base = Path::new("/etc/spigate");
        for (url, expected) in [
            ("postgres://u@db/x", "postgres://u@db/x"),
            ("postgres://u@db/x?sslmode=require", "postgres://u@db/x?sslmode=require"),
            ("postgres://u@db/x?sslrootcert=system", "postgres://u@db/x?sslrootcert=system"),
            (
                "postgres://u:a%26b@db/x?sslrootcert=my%20ca.pem&sslmode=require",
                "postgres://u:a%26b@db/x?sslrootcert=%2Fetc%2Fspigate%2Fmy%20ca%2Epem&sslmode=require",
            ),
            ("postgres://u@db/x?sslrootcert=/ca.pem", "postgres://u@db/x?sslrootcert=%2Fca%2Epem"),
        ] {
            assert_eq!(with_roots_in(base, url), expected);
        }
        #[cfg(feature = "postgres")]
        assert!(
            load("url = \"postgres://u:hush@db/x?sslrootcert=./no%20ca.pem\"").unwrap_err()[0]
                .contains("sslrootcert /etc/spigate/./no ca.pem cannot be read")
        );
    }

    #[test]
    fn memory_is_warned_of_and_a_file_is_not() {
        let warned =
            |config: &Config| config.warnings.iter().any(|warning| warning.to_string().contains("journal.url"));
        assert!(warned(&load("url = \"memory:\"").unwrap()));
        assert!(!warned(&load("").unwrap()));
    }

    #[test]
    fn what_cannot_work_is_said_with_its_place() {
        for (journal, expected) in [
            ("url = \"mysql://x\"", "journal.url: must begin with"),
            ("url = \"memory:x\"", "journal.url: must begin with"),
            ("url = \"sqlite:\"", "journal.url: must name a file"),
            ("url = \"sqlite::memory:\"", "journal.url: must name a file"),
            ("url = \"sqlite:a.db?mode=ro\"", "journal.url: must name a file"),
            #[cfg(feature = "postgres")]
            ("url = \"postgres://u:hush@db:port/x\"", "journal.url: "),
            #[cfg(feature = "postgres")]
            ("url = \"postgres://u:hush@db/x?sslmode=perhaps\"", "journal.url: "),
            ("lease = \"10\"", "journal.lease: is not a duration"),
            ("lease = \"200ms\"", "journal.lease: must be at least 1s"),
            ("retain_replies = \"0s\"", "journal.retain_replies: must be more than zero"),
            ("retain_history = \"1d\"", "journal.retain_history: must not be shorter"),
            ("lifecycle_replay = \"soon\"", "journal.lifecycle_replay: is not a duration"),
            ("encryption_key = { value = \"short\" }", "journal.encryption_key.value: must have at least 32"),
            ("encryption_key = { file = \"/none\" }", "journal.encryption_key.file: cannot be read"),
            ("encryption_key = {}", "journal.encryption_key: must have exactly one"),
        ] {
            let problems = load(journal).unwrap_err().join("\n");
            assert!(problems.contains(expected), "{journal}: {problems}");
            assert!(!problems.contains("short\"") && !problems.contains("hush"), "{problems}");
        }
    }
}
