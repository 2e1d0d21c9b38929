//! Rules of the house that a reader should be able to rely on.

use std::fs;
use std::path::{Path, PathBuf};

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// A dialect is data: adding a marketplace means adding a file, not a branch in the code.
#[test]
fn no_marketplace_is_named_outside_the_list_of_built_in_dialects() {
    let mut files = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    assert!(files.len() > 20);
    let dialects = spigate::dialect::builtin::load().unwrap();
    let mut words: Vec<String> = ["aliyun", "huawei", "tencent"].map(str::to_owned).to_vec();
    for dialect in &dialects {
        words.extend(dialect.name.split('-').filter(|word| *word != "market").map(str::to_owned));
    }
    for file in files.iter().filter(|file| !file.ends_with("dialect/builtin.rs")) {
        let text = fs::read_to_string(file).unwrap().to_lowercase();
        for word in &words {
            assert!(!text.contains(word), "{}: names {word}", file.display());
        }
    }
}
