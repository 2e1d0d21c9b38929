//! The keys that a configuration can have, by its schema: what a variable's name means, and
//! which key may hold what. Nothing here knows a single key by name.

use std::sync::LazyLock;

use serde_json::Value;

use super::raw;
use super::source::Step;

static SCHEMA: LazyLock<Value> = LazyLock::new(raw::schema);

/// What stands under a key.
#[derive(Clone, Copy)]
pub struct Node<'s>(&'s Value);

impl Node<'static> {
    /// The whole configuration.
    pub fn root() -> Self {
        Self(&SCHEMA).resolved()
    }

    /// What a reference, or a value that may be missing, stands for.
    fn resolved(self) -> Self {
        let mut node = self.0;
        loop {
            let next = if let Some(name) = node["$ref"].as_str() {
                name.strip_prefix("#/").and_then(|pointer| SCHEMA.pointer(&format!("/{pointer}")))
            } else {
                node["anyOf"].as_array().and_then(|kinds| kinds.iter().find(|kind| kind["type"] != "null"))
            };
            match next {
                Some(next) => node = next,
                None => return Self(node),
            }
        }
    }

    /// What stands under this name, if it is a table with such a key.
    pub fn key(self, name: &str) -> Option<Self> {
        Some(Self(self.0.get("properties")?.get(name)?).resolved())
    }

    /// The names of its keys, if it is a table with keys of its own.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        self.0.get("properties").and_then(Value::as_object).into_iter().flatten().map(|(name, _)| name.as_str())
    }

    /// What stands under every name, if it is a table whose keys are the user's.
    pub fn value(self) -> Option<Self> {
        self.0.get("additionalProperties").filter(|value| value.is_object()).map(|value| Self(value).resolved())
    }

    /// What its entries are, if it is a list.
    pub fn item(self) -> Option<Self> {
        self.0.get("items").map(|item| Self(item).resolved())
    }

    /// Its JSON schema, references followed.
    pub fn schema(self) -> &'static Value {
        self.0
    }

    /// Whether one text can be all of it.
    pub fn is_single(self) -> bool {
        let has_keys = |node: Self| node.0.get("properties").is_some() || node.value().is_some();
        !has_keys(self) && !self.item().is_some_and(has_keys)
    }
}

/// The key that a variable names, `APPS__0__BACKEND__URL` for `apps[0].backend.url`, `SPIGATE_`
/// taken off; `None` if it is none: a single word belongs to the tools around spigate, unless a
/// key of the top has that name.
///
/// Parts become small letters, except where the user chooses the name: an action has capitals.
pub fn of_variable(name: &str) -> Option<Vec<Step>> {
    let is_top = || Node::root().key(&name.to_ascii_lowercase()).is_some_and(Node::is_single);
    if !name.contains("__") && !is_top() {
        return None;
    }
    let mut node = Some(Node::root());
    let steps = name.split("__").map(|part| {
        if let Some(value) = node.and_then(Node::value) {
            node = Some(value);
            return Step::Key(part.to_owned());
        }
        if let Ok(index) = part.parse() {
            node = node.and_then(Node::item);
            return Step::Index(index);
        }
        let key = part.to_ascii_lowercase();
        node = node.and_then(|node| node.key(&key));
        Step::Key(key)
    });
    Some(steps.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_small_letters_unless_they_are_the_users() {
        let key = |name: &str| Step::Key(name.into());
        assert_eq!(of_variable("LOG__LEVEL"), Some(vec![key("log"), key("level")]));
        let routes = [key("apps"), Step::Index(1), key("backend"), key("routes")];
        let route = of_variable("APPS__1__BACKEND__ROUTES__RenewAppInstance__PATH").unwrap();
        assert_eq!(route[..4], routes);
        assert_eq!(route[4..], [key("RenewAppInstance"), key("path")]);
        // Problems name what is not known.
        assert_eq!(of_variable("LISTN__ADDRESS"), Some(vec![key("listn"), key("address")]));
        assert_eq!(of_variable("DIALECT_DIR"), Some(vec![key("dialect_dir")]));
        for tool in ["CORPORA", "LOG", "APPS", "LISTEN"] {
            assert_eq!(of_variable(tool), None, "{tool}");
        }
    }
}
