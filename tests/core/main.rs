//! The pure core, from outside: signing vectors, test data that others wrote, and properties
//! over generated input; and how often a request asks for memory.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "clippy.toml allows them in tests, but clippy does not see that helpers here are test code"
)]

mod allocations;
mod corpora;
mod example_config;
mod house;
mod peers;
mod properties;
mod support;
mod variables;
mod vectors;
