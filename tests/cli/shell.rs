//! Completions and man pages: made from the command line itself, and read by the real programs.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::{err, out, spigate};

const COMMANDS: [&str; 10] =
    ["serve", "demo", "sign", "call", "selftest", "explain", "journal", "check-config", "completions", "man"];

/// What a program says to this input; `None`, by name, where it is missing, but never in CI.
fn asked(program: &str, arguments: &[&str], input: &[u8]) -> Option<Output> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let Ok(mut child) = command.spawn() else {
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{program} is missing and CI must not skip");
        println!("skipped: {program} is missing");
        return None;
    };
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    Some(output)
}

#[test]
fn every_shell_has_completions_that_know_every_command() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let output = spigate(&["completions", shell]);
        assert!(output.status.success(), "{shell}: {}", err(&output));
        let script = out(&output);
        for wanted in COMMANDS.iter().chain(&["print-config", "log-level"]) {
            assert!(script.contains(wanted), "{shell}: {wanted}");
        }
    }
    assert_eq!(spigate(&["completions", "cmd.exe"]).status.code(), Some(2));
}

#[test]
fn bash_reads_the_completion_and_completes() {
    let script = spigate(&["completions", "bash"]).stdout;
    let Some(checked) = asked("bash", &["-n"], &script) else { return };
    assert!(checked.status.success() && checked.stderr.is_empty(), "{}", err(&checked));
    let ask = [
        &script[..],
        b"\nCOMP_WORDS=(spigate check-config --pr); COMP_CWORD=2; _spigate spigate --pr check-config; echo \"${COMPREPLY[@]}\"\n",
    ]
    .concat();
    let completed = asked("bash", &["--norc"], &ask).unwrap();
    assert_eq!(out(&completed).trim(), "--print-config", "{}", err(&completed));
}

#[test]
fn the_man_pages_are_there_for_every_command_and_well_formed() {
    let directory = std::env::temp_dir().join(format!("spigate-man-{}", std::process::id()));
    let written = spigate(&["man", "--dir", directory.to_str().unwrap()]);
    assert!(written.status.success(), "{}", err(&written));
    let page = |name: &str| std::fs::read(directory.join(name));
    let names = COMMANDS.map(|command| format!("spigate-{command}.1"));
    let names = names.iter().map(String::as_str).chain(["spigate.1", "spigate-journal-list.1"]);
    let pages = names.map(|name| (name, page(name).unwrap_or_else(|error| panic!("{name}: {error}"))));
    let pages = pages.collect::<Vec<_>>();
    let _ = std::fs::remove_dir_all(&directory);
    assert_eq!(out(&spigate(&["man"])).trim_end(), String::from_utf8_lossy(&page_of(&pages, "spigate.1")).trim_end());
    for (name, page) in &pages {
        let Some(read) = asked("groff", &["-man", "-Tutf8", "-ww", "-z"], page) else { return };
        assert!(read.status.success() && read.stderr.is_empty(), "{name}: {}", err(&read));
    }
    assert_eq!(spigate(&["man", "--dir", "/proc/nowhere"]).status.code(), Some(2));
    assert!(!Path::new("/proc/nowhere").exists());
}

fn page_of(pages: &[(&str, Vec<u8>)], name: &str) -> Vec<u8> {
    pages.iter().find(|(page, _)| *page == name).unwrap().1.clone()
}
