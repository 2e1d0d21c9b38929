//! The dialects that are compiled in. The only place in `src/` that names a marketplace.

use super::Dialect;
use super::file;

/// Files of `config/dialects/`; the first is the one that commands fall back to.
const FILES: &[(&str, &str)] = &[
    ("qingcloud-appcenter.toml", include_str!("../../config/dialects/qingcloud-appcenter.toml")),
    ("qingcloud-market.toml", include_str!("../../config/dialects/qingcloud-market.toml")),
];

/// Loads the built-in dialects.
///
/// # Errors
/// The problems of a file, as `file.rs` words them. A test loads them all, so a release has none.
pub fn load() -> Result<Vec<Dialect>, String> {
    FILES.iter().map(|(name, text)| file::load(text).map_err(|problems| format!("{name}: {problems}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::{Lookup, Params};

    #[test]
    fn published_requests_verify() {
        let dialects = load().expect("built-in dialects load");
        assert!(dialects.iter().any(|dialect| !dialect.published.is_empty()));
        for dialect in dialects {
            for published in &dialect.published {
                let params = Params::parse(published.query.as_bytes(), 64).unwrap();
                let Lookup::Once(signature) = params.get(&dialect.signature.parameter) else { panic!("unsigned") };
                let tag = dialect.signature.output.decode(signature).unwrap();
                let key = dialect.signing_key(&published.key).unwrap();
                assert!(dialect.verify(&key, &tag, "GET", &params).unwrap(), "{}", published.title);
                let other = dialect.signing_key("another key").unwrap();
                assert!(!dialect.verify(&other, &tag, "GET", &params).unwrap());
            }
        }
    }

    #[test]
    fn samples_keep_their_own_contracts() {
        for dialect in load().unwrap() {
            for action in &dialect.actions {
                let reply = action.reply.sample.replace("{new_id}", "ins-1").replace("{password}", "p");
                assert!(action.reply.judge(reply.as_bytes()).is_ok(), "{}: {}", dialect.name, action.name);
            }
            for field in &dialect.fields {
                let sample = field.sample.as_deref().unwrap();
                assert!(field.kind.decode(&field.kind.encode(sample)).is_ok(), "{}: {}", dialect.name, field.name);
            }
        }
    }
}
