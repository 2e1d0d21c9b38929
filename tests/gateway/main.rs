//! Black-box tests: the real binary between a scripted backend and a raw client.
//!
//! Each module is a capability, each test is named after what it shows. Every test has its own
//! gateway, backend and directory, so they run in any order and at once.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "all of this is tests")]

mod at_rest;
mod backend;
mod clock;
mod config;
mod cycles;
mod delivery;
mod dialects;
mod disk;
mod examples;
mod forms;
mod framing;
mod headers;
mod instances;
mod journal_file;
mod load;
mod observability;
mod outcomes;
mod overload;
mod peers;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "postgres")]
#[path = "../support/postgres.rs"]
mod postgres_server;
mod prometheus;
mod proxy_protocol;
mod query;
mod restart;
mod retention;
mod signature;
mod slow;
mod stopped;
mod support;
mod target_and_host;
mod tls;
