//! The files that a configuration is made of, and whether any of them has changed.
//!
//! Every file is read here, so that one digest covers them all: a reload looks at contents, as
//! Kubernetes swaps a link instead of writing, and a touched file is not a changed one.

use std::path::{Path, PathBuf};
use std::{fs, io};

use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::scalar::Secret;

/// What a configuration was made of, contents included. Says nothing of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Of a text alone.
    pub fn of(text: &str) -> Self {
        Files::new(text).fingerprint()
    }
}

/// Reads files and remembers what was in them.
pub(super) struct Files {
    digest: Sha256,
}

impl Files {
    /// Begins with the main text.
    pub(super) fn new(text: &str) -> Self {
        let mut files = Self { digest: Sha256::new() };
        files.note(b"text", text.as_bytes());
        files
    }

    /// Reads a file.
    pub(super) fn read(&mut self, path: &Path) -> io::Result<Vec<u8>> {
        let content = fs::read(path);
        match &content {
            Ok(bytes) => self.note(path.as_os_str().as_encoded_bytes(), bytes),
            // One that cannot be read now is another state than one that can.
            Err(error) => self.note(path.as_os_str().as_encoded_bytes(), error.to_string().as_bytes()),
        }
        content
    }

    /// Reads a file that must be text.
    pub(super) fn read_text(&mut self, path: &Path) -> io::Result<String> {
        String::from_utf8(self.read(path)?)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8 text"))
    }

    /// Reads a file that holds a secret.
    pub(super) fn read_secret(&mut self, path: &Path) -> io::Result<Secret> {
        secret(&Zeroizing::new(self.read(path)?))
    }

    /// Lists the files of a directory with this extension, in order.
    pub(super) fn list(&mut self, directory: &Path, extension: &str) -> io::Result<Vec<PathBuf>> {
        let mut files =
            fs::read_dir(directory)?.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>()?;
        files.retain(|path| path.extension().is_some_and(|found| found == extension));
        files.sort();
        for file in &files {
            self.note(b"listed", file.as_os_str().as_encoded_bytes());
        }
        Ok(files)
    }

    /// What was read so far.
    pub(super) fn fingerprint(self) -> Fingerprint {
        Fingerprint(self.digest.finalize().into())
    }

    // With lengths, so that no two lists of parts share a text.
    fn note(&mut self, name: &[u8], content: &[u8]) {
        for part in [name, content] {
            self.digest.update(part.len().to_be_bytes());
            self.digest.update(part);
        }
    }
}

/// Reads a key file.
///
/// # Errors
/// The reason why the file cannot be read as text.
pub fn read_secret(path: &Path) -> io::Result<Secret> {
    secret(&Zeroizing::new(fs::read(path)?))
}

/// One trailing newline is an editor's, not the secret's.
fn secret(bytes: &[u8]) -> io::Result<Secret> {
    let text =
        std::str::from_utf8(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8 text"))?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    Ok(Secret::new(text.strip_suffix('\r').unwrap_or(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_follows_contents_and_nothing_else() {
        let folder = std::env::temp_dir().join(format!("spigate-files-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (one, two) = (folder.join("one"), folder.join("two"));
        let print = |text: &str| {
            let mut files = Files::new(text);
            let _ = files.read(&one);
            let _ = files.read_secret(&two);
            files.fingerprint()
        };
        fs::write(&one, "ab").unwrap();
        fs::write(&two, "c").unwrap();
        let first = print("x");
        assert_eq!(print("x"), first);
        assert_ne!(print("y"), first);
        // Written anew, with what it was.
        fs::write(&two, "c").unwrap();
        assert_eq!(print("x"), first);
        // The same bytes, in other files.
        fs::write(&one, "a").unwrap();
        fs::write(&two, "bc").unwrap();
        assert_ne!(print("x"), first);
        fs::remove_file(&two).unwrap();
        let without = print("x");
        assert_ne!(without, first);
        assert_eq!(print("x"), without);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn one_newline_at_the_end_is_not_part_of_a_secret() {
        for (text, expected) in [("k", "k"), ("k\n", "k"), ("k\r\n", "k"), ("k\n\n", "k\n"), (" k ", " k ")] {
            assert_eq!(secret(text.as_bytes()).unwrap().expose(), expected);
        }
        assert!(secret(&[0xff]).is_err());
    }
}
