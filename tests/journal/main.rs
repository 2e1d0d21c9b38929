//! The journal, from outside: one suite that every store has to pass (`contract.rs`), and random
//! histories that must keep the delivery guarantee (`model.rs`).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "clippy.toml allows them in tests, but clippy does not see that helpers here are test code"
)]

mod bench;
mod contract;
mod model;
#[cfg(feature = "postgres")]
#[path = "../support/ports.rs"]
mod ports;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "postgres")]
#[path = "../support/postgres.rs"]
mod postgres_server;
mod sample;

mod memory {
    crate::contract::contract!(crate::bench::Memory::new());
}

mod sqlite {
    crate::contract::contract!(crate::bench::Sqlite::new());
}
