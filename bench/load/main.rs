//! The benchmark's two ends: `load client` asks and checks every answer, `load backend` answers.
//!
//! Both are single-threaded loops on epoll, lean enough to share one core while the proxy between
//! them is the one that has none left. Neither uses spigate's code: an error in it would else be
//! on both sides.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark that cannot go on must stop")]
#![allow(clippy::print_stdout, reason = "the script that starts this reads it there")]

mod backend;
mod client;
mod histogram;
mod reply;
mod requests;
mod wire;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("client") => client::main(&Options(&arguments[1..])),
        Some("backend") => backend::main(&Options(&arguments[1..])),
        _ => panic!("load client|backend --NAME VALUE…; see bench/load/client.rs and backend.rs"),
    }
}

/// `--NAME VALUE` pairs.
struct Options<'a>(&'a [String]);

impl<'a> Options<'a> {
    fn get(&self, name: &str) -> Option<&'a str> {
        let pair = self.0.chunks_exact(2).find(|pair| pair[0].strip_prefix("--") == Some(name));
        pair.map(|pair| pair[1].as_str())
    }

    fn number(&self, name: &str, default: u64) -> u64 {
        self.get(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("--{name} {text}: no number")))
    }
}
