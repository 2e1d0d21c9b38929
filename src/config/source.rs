//! Where configuration comes from, and the way back from a value to its place.
//!
//! File, then `SPIGATE_…` environment, then command line: figment lays them over each other.
//! The tree is then read into [`RawConfig`]; serde stops at the first problem, so the value
//! with the problem is taken out and the rest is read again, until nothing is left to complain
//! of. Problems say where (file and line, or variable) and what, never what stood there.

use std::fmt;

use figment::error::{Actual, Kind};
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};
use serde::Deserialize as _;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::raw::RawConfig;
use super::{effective, keys};

/// Something wrong with the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where in the configuration: `apps[1].keys[0].value`; empty for the whole.
    pub path: String,
    /// Where that stands: `spigate.toml:12`, or a variable's name.
    pub place: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, place, message } = self;
        if path.is_empty() { write!(f, "{place}: {message}") } else { write!(f, "{place}: {path}: {message}") }
    }
}

/// A key's way from the top: names and list positions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A key of a table.
    Key(String),
    /// A position in a list.
    Index(usize),
}

/// The texts that a configuration is made of.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Name of the file, as problems call it.
    pub file: String,
    /// Its text.
    pub text: String,
    /// Environment variables that begin with `SPIGATE_`.
    pub environment: Vec<(String, String)>,
    /// Settings from the command line, by path: `log.level`.
    pub flags: Vec<(String, String)>,
}

impl Sources {
    /// Reads all sources into one raw configuration, with every problem of names and types; none
    /// where there is nothing to go on with.
    pub fn read(&self) -> (Option<RawConfig>, Vec<Problem>) {
        let mut problems = Vec::new();
        let file = match self.parse_file() {
            Ok(dict) => dict,
            Err(problem) => return (None, vec![problem]),
        };
        let environment = self.settings().into_iter().map(|(steps, text, _)| (steps, text)).collect::<Vec<_>>();
        let figment = Figment::from(Layer { name: "file", dict: file.clone() })
            .merge(Layer { name: "environment and flags", dict: overlay(&file, &environment) });
        let mut tree = match figment.extract::<Dict>() {
            Ok(dict) => Value::from(dict),
            Err(_) => return (None, vec![self.problem("", "the configuration cannot be read")]),
        };
        let mut masked = Vec::new();
        take_masked(&mut tree, &mut Vec::new(), &mut masked);
        let again = "is masked, as --print-config does with secrets; put it in again";
        problems.extend(masked.iter().map(|path| self.problem(path, again)));
        loop {
            match RawConfig::deserialize(&tree) {
                Ok(raw) => return (Some(raw), problems),
                Err(error) => {
                    let mut path = error.path.clone();
                    if let Kind::UnknownField(name, _) = &error.kind
                        && path.last() != Some(name)
                    {
                        path.push(name.clone());
                    }
                    problems.push(self.problem(&show_path(&path), &describe(&error.kind)));
                    // Without a place to take out there would be no end to this.
                    if path.is_empty() || !remove(&mut tree, &path) {
                        return (None, problems);
                    }
                }
            }
        }
    }

    /// A problem at a path, with its place.
    pub fn problem(&self, path: &str, message: &str) -> Problem {
        Problem { path: path.to_owned(), place: self.place(path), message: message.to_owned() }
    }

    /// Where the value at `path`, or else the nearest thing around it, was written.
    fn place(&self, path: &str) -> String {
        let steps = parse_path(path);
        let from_outside = self.settings().into_iter().rev().find(|(setting, _, _)| is_same(setting, &steps));
        if let Some((_, _, name)) = from_outside {
            return name;
        }
        match DeTable::parse(&self.text).ok().and_then(|table| offset_of(&table, &steps)) {
            Some(offset) => format!("{}:{}", self.file, line_of(&self.text, offset)),
            // Nothing of it is written there: a default, or something that is missing.
            None => self.file.clone(),
        }
    }

    fn parse_file(&self) -> Result<Dict, Problem> {
        let at = |offset: usize, message: &str| Problem {
            path: String::new(),
            place: format!("{}:{}", self.file, line_of(&self.text, offset)),
            message: format!("not valid TOML: {message}"),
        };
        // Syntax first: its messages are about characters. Messages about values quote them.
        DeTable::parse(&self.text).map_err(|error| at(error.span().map_or(0, |span| span.start), error.message()))?;
        let value: toml::Value = toml::from_str(&self.text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start);
            at(start, "a value that no type can hold; put it in quotes if it is a text")
        })?;
        match Value::serialize(value) {
            Ok(Value::Dict(_, dict)) => Ok(dict),
            _ => Err(at(0, "it holds a value that the configuration cannot use")),
        }
    }

    /// Settings from outside the file: path, text, and the name of where they come from.
    fn settings(&self) -> Vec<(Vec<Step>, String, String)> {
        let environment = self.environment.iter().filter_map(|(name, text)| {
            let rest = name.strip_prefix("SPIGATE_")?;
            Some((keys::of_variable(rest)?, text.clone(), name.clone()))
        });
        let flags =
            self.flags.iter().map(|(path, text)| (parse_path(path), text.clone(), format!("command line ({path})")));
        environment.chain(flags).collect()
    }
}

struct Layer {
    name: &'static str,
    dict: Dict,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name)
    }
    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Map::from([(Profile::Default, self.dict.clone())]))
    }
}

/// Settings over the file's tree. Lists are replaced whole by figment, so one entry changed from
/// outside means the file's list with that entry changed.
fn overlay(file: &Dict, settings: &[(Vec<Step>, String)]) -> Dict {
    let mut tree = Value::from(file.clone());
    for (steps, text) in settings {
        set(&mut tree, steps, text);
    }
    match tree {
        Value::Dict(_, dict) => dict,
        _ => Dict::new(),
    }
}

fn set(tree: &mut Value, steps: &[Step], text: &str) {
    let Some((step, rest)) = steps.split_first() else {
        *tree = Value::from(text);
        return;
    };
    match step {
        Step::Key(key) => {
            if !matches!(tree, Value::Dict(..)) {
                *tree = Value::from(Dict::new());
            }
            if let Value::Dict(_, dict) = tree {
                // Variables are in capitals mostly, also where the file has an action's name.
                let written = dict.keys().find(|written| written.eq_ignore_ascii_case(key));
                let key = written.unwrap_or(key).clone();
                set(dict.entry(key).or_insert_with(|| Value::from(Dict::new())), rest, text);
            }
        }
        Step::Index(index) => {
            if !matches!(tree, Value::Array(..)) {
                *tree = Value::from(Vec::<Value>::new());
            }
            if let Value::Array(_, list) = tree {
                // A gap would make entries nobody wrote; the next free place is meant.
                let index = (*index).min(list.len());
                if index == list.len() {
                    list.push(Value::from(Dict::new()));
                }
                set(&mut list[index], rest, text);
            }
        }
    }
}

fn remove(tree: &mut Value, path: &[String]) -> bool {
    let Some((step, rest)) = path.split_first() else { return false };
    match tree {
        Value::Dict(_, dict) if rest.is_empty() => dict.remove(step).is_some(),
        Value::Dict(_, dict) => dict.get_mut(step).is_some_and(|value| remove(value, rest)),
        Value::Array(_, list) => {
            let Some(value) = step.parse().ok().and_then(|index: usize| list.get_mut(index)) else { return false };
            if rest.is_empty() {
                // Taking it out would shift the paths of its neighbours.
                let empty = if matches!(value, Value::Dict(..)) { Value::from("") } else { Value::from(Dict::new()) };
                let changed = *value != empty;
                *value = empty;
                changed
            } else {
                remove(value, rest)
            }
        }
        _ => false,
    }
}

/// Whether two ways lead to the same key; see [`set`].
fn is_same(one: &[Step], other: &[Step]) -> bool {
    one.len() == other.len()
        && one.iter().zip(other).all(|steps| match steps {
            (Step::Key(one), Step::Key(other)) => one.eq_ignore_ascii_case(other),
            (one, other) => one == other,
        })
}

/// Takes out what stands for a secret that was not shown; returns the paths.
fn take_masked(value: &mut Value, path: &mut Vec<String>, found: &mut Vec<String>) {
    let is_masked = |value: &Value| value.as_str().is_some_and(effective::is_masked);
    match value {
        Value::Dict(_, dict) => {
            for (name, value) in dict.iter_mut() {
                path.push(name.clone());
                if is_masked(value) {
                    found.push(show_path(path));
                } else {
                    take_masked(value, path, found);
                }
                path.pop();
            }
            dict.retain(|_, value| !is_masked(value));
        }
        Value::Array(_, list) => {
            for (index, value) in list.iter_mut().enumerate() {
                path.push(index.to_string());
                take_masked(value, path, found);
                path.pop();
            }
        }
        _ => {}
    }
}

fn parse_path(path: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    for part in path.split('.').filter(|part| !part.is_empty()) {
        let mut pieces = part.split('[');
        steps.extend(pieces.next().map(|key| Step::Key(key.to_owned())));
        steps.extend(pieces.filter_map(|piece| piece.trim_end_matches(']').parse().ok().map(Step::Index)));
    }
    steps
}

fn show_path(path: &[String]) -> String {
    path.iter().fold(String::new(), |shown, step| match step.parse::<usize>() {
        Ok(index) => format!("{shown}[{index}]"),
        Err(_) if shown.is_empty() => step.clone(),
        Err(_) => format!("{shown}.{step}"),
    })
}

fn offset_of(table: &Spanned<DeTable<'_>>, steps: &[Step]) -> Option<usize> {
    let mut offset = None;
    let mut tables = Some(table.get_ref());
    let mut value: Option<&Spanned<DeValue<'_>>> = None;
    for step in steps {
        let next = match step {
            Step::Key(name) => tables.and_then(|table| {
                table.iter().find(|(key, _)| key.get_ref() == name).map(|(key, value)| (key.span().start, value))
            }),
            Step::Index(index) => value
                .and_then(|value| value.get_ref().as_array())
                .and_then(|list| list.get(*index))
                .map(|value| (value.span().start, value)),
        };
        let Some((start, found)) = next else { break };
        offset = Some(start);
        value = Some(found);
        tables = found.get_ref().as_table();
    }
    offset
}

fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes()[..offset.min(text.len())].iter().filter(|&&byte| byte == b'\n').count() + 1
}

/// What is wrong, without the value: it may be a secret at the wrong place.
fn describe(kind: &Kind) -> String {
    match kind {
        Kind::UnknownField(_, expected) => format!("unknown key; known here: {}", expected.join(", ")),
        Kind::UnknownVariant(_, expected) => format!("must be one of {}", expected.join(", ")),
        Kind::InvalidType(actual, expected) | Kind::InvalidValue(actual, expected) => {
            let expected = if expected.starts_with("struct ") { "a table" } else { expected };
            format!("expected {}, found {}", expected.replace("a sequence", "a list"), describe_actual(actual))
        }
        Kind::DuplicateField(_) => "is given twice".into(),
        Kind::MissingField(name) => format!("{name} is missing"),
        _ => "has a value that cannot be used here".into(),
    }
}

fn describe_actual(actual: &Actual) -> &'static str {
    match actual {
        Actual::Bool(_) => "true or false",
        Actual::Unsigned(_) | Actual::Signed(_) => "a number",
        Actual::Float(_) => "a fraction",
        Actual::Str(_) | Actual::Char(_) => "a text",
        Actual::Seq => "a list",
        Actual::Map => "a table",
        _ => "something else",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(text: &str) -> Sources {
        Sources { file: "t.toml".into(), text: text.into(), ..Sources::default() }
    }

    fn problems(text: &str) -> Vec<String> {
        sources(text).read().1.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_problem_at_once_with_path_and_line() {
        let found = problems(
            "[limits]\nparameters = \"many\"\ncolour = 1\n\n[log]\naccess = 3\nlevel = \"loud\"\n\n[[apps]]\nname = \"a\"\n[[apps]]\nkeys = [{ id = 7 },\n  { value = 12345678, oops = 1 }]\ncontract = \"harsh\"\n",
        );
        for expected in [
            "t.toml:2: limits.parameters: expected a whole number, found a text",
            "t.toml:3: limits.colour: unknown key; known here: parameters, ",
            "t.toml:6: log.access: expected true or false, found a number",
            "t.toml:7: log.level: must be one of error, warn, info, debug, trace",
            "t.toml:12: apps[1].keys[0].id: expected a string, found a number",
            "t.toml:13: apps[1].keys[1].value: expected a text in quotes, found a number",
            "t.toml:13: apps[1].keys[1].oops: unknown key",
            "t.toml:14: apps[1].contract: must be one of lenient, strict",
        ] {
            assert!(found.iter().any(|problem| problem.starts_with(expected)), "{expected}\nnot in {found:#?}");
        }
        assert_eq!(found.len(), 8, "{found:#?}");
        assert!(!found.concat().contains("12345678"));
    }

    #[test]
    fn a_table_where_a_text_belongs_and_the_other_way_round() {
        let found = problems("listen = 3\napps = [1, { name = [] }]\n[admin]\naddress = { x = 1 }\n");
        assert_eq!(found.len(), 4, "{found:#?}");
        assert!(
            found.iter().any(|problem| problem == "t.toml:1: listen: expected a table, found a number"),
            "{found:#?}"
        );
    }

    #[test]
    fn a_number_that_is_too_large_is_not_shown() {
        for number in ["99999999999999999999999", "0xFFFFFFFFFFFFFFFFFFFFFF", "18446744073709551615"] {
            let found = problems(&format!("[[apps]]\nkeys = [{{ id = \"a\",\n value = {number} }}]\n"));
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].starts_with("t.toml:") && !found[0].contains(number), "{}", found[0]);
        }
    }

    #[test]
    fn bad_toml_names_the_line_and_shows_no_content() {
        let found = problems("[listen]\nvalue = \"hunter2\n");
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("t.toml:2: not valid TOML: "), "{}", found[0]);
        assert!(!found[0].contains("hunter2"));
    }

    #[test]
    fn environment_over_file_and_flags_over_both() {
        let mut sources =
            sources("[limits]\nparameters = 3\n[[apps]]\nname = \"a\"\npath = \"/a\"\n[[apps]]\nname = \"b\"\n");
        sources.environment = [
            ("SPIGATE_LIMITS__PARAMETERS", "7"),
            ("SPIGATE_APPS__1__PATH", "/b"),
            ("SPIGATE_APPS__0__KEYS__0__VALUE", "12345678"),
            ("SPIGATE_LISTEN__TRUSTED_PROXIES", "10.0.0.0/8, ::1"),
            ("SPIGATE_LOG__LEVEL", "debug"),
            ("SPIGATE_CORPORA", "/elsewhere"),
        ]
        .map(|(name, text)| (name.to_owned(), text.to_owned()))
        .to_vec();
        sources.flags = vec![("log.level".into(), "warn".into())];
        let (raw, problems) = sources.read();
        let raw = raw.unwrap();
        assert_eq!(problems, []);
        assert_eq!(raw.limits.parameters, Int(7));
        assert_eq!(raw.apps[0].path.as_deref(), Some("/a"));
        assert_eq!(raw.apps[1].path.as_deref(), Some("/b"));
        assert_eq!(raw.apps[0].keys[0].value.as_ref().unwrap().expose(), "12345678");
        assert_eq!(raw.listen.trusted_proxies.0, ["10.0.0.0/8", "::1"]);
        assert_eq!(raw.log.level, super::super::raw::LogLevel::Warn);
    }

    #[test]
    fn a_variable_is_named_as_the_place_of_its_problem() {
        let mut sources = sources("");
        sources.environment =
            vec![("SPIGATE_LISTN__ADDRESS".into(), "x".into()), ("SPIGATE_LIMITS__IN_FLIGHT".into(), "few".into())];
        let found = sources.read().1.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert!(found.iter().any(|problem| problem.starts_with("SPIGATE_LIMITS__IN_FLIGHT: limits.in_flight: ")));
        assert!(found.iter().any(|problem| problem.contains("listn: unknown key")));
    }

    use super::super::scalar::Int;
}
