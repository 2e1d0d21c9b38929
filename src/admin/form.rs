//! Named values of a query or a form.

/// More than any form or query of ours has. Each costs many times what it takes to send.
const MOST: usize = 64;

/// In the order in which they came.
#[derive(Clone, Debug, Default)]
pub(super) struct Fields(Vec<(String, String)>);

impl Fields {
    /// Reads `name=value` pairs as forms send them; those beyond [`MOST`] are left out.
    pub(super) fn parse(text: &[u8]) -> Self {
        Self(form_urlencoded::parse(text).into_owned().take(MOST).collect())
    }

    /// Those of a query, if there is one.
    pub(super) fn of_query(query: Option<&str>) -> Self {
        Self::parse(query.unwrap_or_default().as_bytes())
    }

    /// The first value of this name that is not empty: forms send every field.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let mut values = self.0.iter().filter(|(known, _)| known == name).map(|(_, value)| value.trim());
        values.find(|value| !value.is_empty())
    }

    /// The same as a text of its own.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        self.get(name).map(str::to_owned)
    }

    /// The first value of this name to the byte.
    pub(super) fn raw(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// A name that is none of these.
    pub(super) fn unknown(&self, known: &[&str]) -> Option<&str> {
        self.0.iter().map(|(name, _)| name.as_str()).find(|name| !known.contains(name))
    }

    /// As a query, with other values for some names; without those that are empty.
    pub(super) fn query_with(&self, changes: &[(&str, &str)]) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        let kept = self.0.iter().filter(|(name, _)| !changes.iter().any(|(changed, _)| changed == name));
        let pairs = kept.map(|(name, value)| (name.as_str(), value.as_str())).chain(changes.iter().copied());
        pairs.filter(|(_, value)| !value.is_empty()).for_each(|(name, value)| {
            query.append_pair(name, value);
        });
        query.finish()
    }
}

/// A path of ours to go to, from a query or form that anybody may have written; `/` for any other
/// address.
pub(super) fn local(path: Option<&str>) -> &str {
    // `//host` and `/\host` are other hosts to a browser.
    let is_local = |path: &&str| {
        path.starts_with('/')
            && !path.starts_with("//")
            && path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\')
    };
    path.filter(is_local).unwrap_or("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_of_ours_are_gone_to() {
        for (path, expected) in [
            ("/deliveries?app=a%20b", "/deliveries?app=a%20b"),
            ("//evil.example/", "/"),
            ("/\\evil.example", "/"),
            ("https://evil.example/", "/"),
            ("/a\r\nSet-Cookie: x", "/"),
            ("", "/"),
        ] {
            assert_eq!(local(Some(path)), expected, "{path}");
        }
        assert_eq!(local(None), "/");
    }

    #[test]
    fn empty_fields_are_none() {
        let fields = Fields::of_query(Some("app=&order_id=+o+1+&app=crm&x"));
        assert_eq!((fields.get("app"), fields.get("order_id"), fields.get("x")), (Some("crm"), Some("o 1"), None));
        assert_eq!(fields.raw("order_id"), Some(" o 1 "));
        assert_eq!(fields.unknown(&["app", "order_id"]), Some("x"));
        assert_eq!(fields.query_with(&[("app", "erp"), ("x", "")]), "order_id=+o+1+&app=erp");
    }

    #[test]
    fn many_fields_are_not_all_kept() {
        let fields = Fields::parse("a&".repeat(1_000_000).as_bytes());
        assert_eq!(fields.0.len(), MOST);
    }
}
