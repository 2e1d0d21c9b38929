//! Black-box tests: the real binary between a scripted backend and a raw client.
//!
//! Each module is a capability, each test is named after what it shows. Every test has its own
//! gateway, backend and directory, so they run in any order and at once.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "all of this is tests")]

mod admin_access;
mod admin_pages;
mod at_rest;
mod backend;
mod clock;
mod companion;
mod config;
mod cycles;
mod delivery;
mod dialects;
mod disk;
mod drain;
mod examples;
mod failover;
mod forms;
mod framing;
mod headers;
mod health;
mod http2;
mod https;
mod ingress;
mod instances;
mod journal_file;
mod listeners;
mod load;
mod log_level;
mod observability;
mod observe;
mod one_processor;
mod outcomes;
mod overload;
mod peers;
#[path = "../support/ports.rs"]
mod ports;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "postgres")]
#[path = "../support/postgres.rs"]
mod postgres_server;
mod prometheus;
mod proxy_protocol;
mod query;
mod reload;
mod restart;
mod retention;
mod scan;
mod selftest;
mod signature;
mod slow;
mod stopped;
mod support;
mod systemd;
mod target_and_host;
mod tls;
mod unix_socket;
