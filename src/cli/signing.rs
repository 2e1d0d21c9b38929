//! What `sign` and `call` share: dialect, key, action and fields from the command line.

use std::path::PathBuf;

use clap::Args;
use jiff::Timestamp;

use super::{Failure, terminal};
use crate::clock;
use crate::config::Endpoint;
use crate::config::files::read_secret;
use crate::config::scalar::Secret;
use crate::dialect::mac::SigningKey;
use crate::dialect::{Action, Dialect, builtin, file};
use crate::platform::{self, Order, Placement, Signed};

/// A request to sign.
#[derive(Args)]
pub struct SigningArgs {
    /// The notify URL; parameters in it are signed too
    #[arg(long)]
    url: String,
    /// File with the key from the platform's console; one trailing newline is ignored
    #[arg(long, value_name = "FILE")]
    key_file: PathBuf,
    #[command(flatten)]
    dialect: DialectArgs,
    /// The action, as the platform calls it
    #[arg(long)]
    action: String,
    /// A field in plain text; base64 is done where the dialect wants it. May be repeated
    #[arg(long = "field", value_name = "NAME=VALUE", value_parser = name_and_value)]
    fields: Vec<(String, String)>,
    /// Fill in the dialect's sample values for what is not given
    #[arg(long)]
    sample: bool,
    /// The signed time as the dialect writes it, instead of now
    #[arg(long)]
    time: Option<String>,
    /// Where the signature travels
    #[arg(long, value_enum, default_value = "query")]
    signature_in: Placement,
}

/// Which dialect, built-in or from a file.
#[derive(Args)]
pub struct DialectArgs {
    /// Name of a built-in dialect; left out: the first one, or for explain the one that fits
    #[arg(long, value_name = "NAME")]
    dialect: Option<String>,
    /// A dialect file instead of a built-in one
    #[arg(long, value_name = "FILE", conflicts_with = "dialect")]
    dialect_file: Option<PathBuf>,
}

impl DialectArgs {
    /// Whether the user chose one.
    pub fn is_given(&self) -> bool {
        self.dialect.is_some() || self.dialect_file.is_some()
    }

    /// Loads the dialect.
    ///
    /// # Errors
    /// A name that is not known, a file that is no dialect.
    pub fn load(&self) -> Result<Dialect, Failure> {
        if let Some(path) = &self.dialect_file {
            let at = path.display();
            let text = std::fs::read_to_string(path)
                .map_err(|error| Failure::unusable(format!("{at}: cannot be read: {error}")))?;
            return file::load(&text).map_err(|problems| Failure::unusable(format!("{at}: {problems}")));
        }
        let dialects = builtin::load().map_err(Failure::unusable)?;
        let names = dialects.iter().map(|dialect| dialect.name.clone()).collect::<Vec<_>>().join(", ");
        let mut dialects = dialects.into_iter();
        match &self.dialect {
            Some(name) => dialects.find(|dialect| dialect.name == *name),
            None => dialects.next(),
        }
        .ok_or_else(|| Failure::unusable(format!("--dialect: not known; there are {names}")))
    }
}

/// A loaded request to sign.
pub struct Prepared {
    /// Its dialect.
    pub dialect: Dialect,
    action: usize,
    key: SigningKey,
    fields: Vec<(String, String)>,
    url: String,
    placement: Placement,
}

impl SigningArgs {
    /// Loads everything, and tells on standard error what the request lacks.
    ///
    /// # Errors
    /// What cannot be loaded, or is not known.
    pub fn prepare(&self) -> Result<Prepared, Failure> {
        Endpoint::parse(&self.url).map_err(|what| Failure::unusable(format!("--url: {what}")))?;
        let dialect = self.dialect.load()?;
        let Some(action) = dialect.action_index(&self.action) else {
            let names = dialect.actions.iter().map(|action| action.name.as_str()).collect::<Vec<_>>().join(", ");
            return Err(Failure::unusable(format!("--action: {} has {names}", dialect.name)));
        };
        let key = read_key(&self.key_file)?;
        let key = dialect
            .signing_key(key.expose())
            .map_err(|error| Failure::unusable(format!("{}: {error}", self.key_file.display())))?;
        let mut fields = self.fields.clone();
        if self.sample {
            fields.extend(platform::samples(&dialect, &dialect.actions[action], &fields));
        }
        if let Some(time) = &self.time {
            let rule = dialect.time.as_ref();
            let rule = rule.ok_or_else(|| Failure::unusable("--time: requests of this dialect carry no time"))?;
            if rule.format.parse(time).is_none() {
                terminal::complain(&format!("note: the time is not {}", rule.format.describe()));
            }
            fields.push((rule.parameter.clone(), time.clone()));
        }
        let prepared = Prepared { dialect, action, key, fields, url: self.url.clone(), placement: self.signature_in };
        let order = prepared.order(clock::now());
        if !order.lacking().is_empty() {
            let names = order.lacking().join(", ");
            terminal::complain(&format!("note: {} also wants {names}; --sample fills them in", self.action));
        }
        Ok(prepared)
    }
}

impl Prepared {
    /// The action.
    pub fn action(&self) -> &Action {
        &self.dialect.actions[self.action]
    }

    /// Signs it; gives the URL and the header to send.
    ///
    /// # Errors
    /// What cannot be signed.
    pub fn sign(&self) -> Result<(String, Option<(String, String)>), Failure> {
        let signed = self.order(clock::now()).sign(&self.key).map_err(|error| Failure::unusable(error.to_string()))?;
        let header = signed.header(self.placement).map(|(name, value)| (name.to_owned(), value.to_owned()));
        if header.is_none() && self.placement != Placement::Query {
            return Err(Failure::unusable("--signature-in: this dialect has no signature header"));
        }
        Ok((signed.url(self.placement), header))
    }

    fn order(&self, time: Timestamp) -> Order<'_> {
        Order { dialect: &self.dialect, url: &self.url, action: self.action(), fields: &self.fields, time }
    }
}

/// A command line for curl, quoted for a POSIX shell.
pub fn curl(url: &str, header: Option<(&str, &str)>) -> String {
    let quote = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    let header = header.map_or_else(String::new, |(name, value)| format!("-H {} ", quote(&format!("{name}: {value}"))));
    format!("curl -i {header}{}", quote(url))
}

/// The URL and curl line of a signed request.
pub fn curl_of(signed: &Signed, placement: Placement) -> String {
    curl(&signed.url(placement), signed.header(placement))
}

/// Reads a key file.
///
/// # Errors
/// That it cannot be read.
pub fn read_key(path: &std::path::Path) -> Result<Secret, Failure> {
    read_secret(path).map_err(|error| Failure::unusable(format!("{}: cannot be read: {error}", path.display())))
}

pub(super) fn name_and_value(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("must be NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}
