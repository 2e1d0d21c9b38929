//! Test data that others wrote, where `SPIGATE_CORPORA` says it is.

use std::path::PathBuf;

use serde_json::Value;

/// A path in the corpora; `None`, with a line that says so, where there are none.
pub(crate) fn path(name: &str) -> Option<PathBuf> {
    let Some(root) = std::env::var_os("SPIGATE_CORPORA") else {
        println!("skipped: corpora (SPIGATE_CORPORA is not set)");
        return None;
    };
    let path = PathBuf::from(root).join(name);
    if !path.exists() {
        println!("skipped: corpora ({} is absent)", path.display());
        return None;
    }
    Some(path)
}

/// The cases of a corpus that is one JSON file.
pub(crate) fn cases(name: &str) -> Option<Vec<Value>> {
    let text = std::fs::read_to_string(path(name)?).unwrap();
    let corpus: Value = serde_json::from_str(&text).unwrap();
    Some(corpus["tests"].as_array().unwrap().clone())
}
