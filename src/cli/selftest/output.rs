//! Report files: looked at before anything is sent, and written whole or not at all.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use clap::Args;

use crate::cli::Failure;
use crate::selftest::Language;
use crate::selftest::report::{Report, html, junit, markdown};

/// Where reports are written.
#[derive(Args)]
pub(super) struct Outputs {
    /// Write the report as one HTML page in English and Chinese, for printing and handing in
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Write it as JUnit XML, for CI
    #[arg(long, value_name = "FILE.xml")]
    junit: Option<PathBuf>,
    /// Write it as Markdown
    #[arg(long, value_name = "FILE.md")]
    markdown: Option<PathBuf>,
}

impl Outputs {
    fn files(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let files = [("--report", &self.report), ("--junit", &self.junit), ("--markdown", &self.markdown)];
        files.into_iter().filter_map(|(flag, path)| Some((flag, path.as_deref()?)))
    }

    /// Sees that every file can be written.
    ///
    /// # Errors
    /// Which one cannot, and why; or that two are one.
    pub(super) fn check(&self) -> Result<(), Failure> {
        for (index, (flag, path)) in self.files().enumerate() {
            if self.files().take(index).any(|(_, other)| other == path) {
                return Err(Failure::unusable(format!("{flag} {}: another report goes there", path.display())));
            }
            let tried = if path.is_dir() {
                Err(io::Error::from(io::ErrorKind::IsADirectory))
            } else {
                let beside = beside(path);
                std::fs::File::create(&beside).and_then(|_| std::fs::remove_file(&beside))
            };
            tried.map_err(|error| unwritable(flag, path, &error))?;
        }
        Ok(())
    }

    /// Writes them.
    ///
    /// # Errors
    /// Which one could not be written, and why.
    pub(super) fn write(&self, report: &Report, language: Language) -> Result<(), Failure> {
        for (flag, path) in self.files() {
            let text = match flag {
                "--report" => html::render(report).map_err(|error| Failure::unusable(error.to_string()))?,
                "--junit" => junit::render(report, language),
                _ => markdown::render(report, language),
            };
            replace(path, &text).map_err(|error| unwritable(flag, path, &error))?;
        }
        Ok(())
    }
}

fn unwritable(flag: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::unusable(format!("{flag} {}: cannot be written: {error}", path.display()))
}

/// Puts a text into a file at once: whoever reads it sees the old one or the new one.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let beside = beside(path);
    let written = std::fs::File::create(&beside).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    let result = written.and_then(|()| std::fs::rename(&beside, path));
    if result.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
    result
}

/// A name in the same directory that nobody else has.
fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}", std::process::id()))
}
