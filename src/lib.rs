//! spigate: a reverse-proxy signature gateway for cloud-marketplace SPI calls.
//!
//! `docs/architecture.md` follows a request through the code; [`gateway`] is the whole way on
//! one screen. The pure core ([`query`], [`dialect`], [`json`], [`journal::key`]) does no I/O
//! and reads no clock.

pub mod access_log;
pub mod admin;
pub mod app;
pub mod backend;
pub mod cli;
pub mod clock;
pub mod companion;
pub mod config;
pub mod delivery;
pub mod detach;
pub mod diagnosis;
pub mod dialect;
pub mod exchange;
pub mod explain;
pub mod failures;
pub mod gateway;
pub mod journal;
pub mod json;
pub mod live;
pub mod metrics;
pub mod observe;
pub mod panics;
pub mod peer;
pub mod percent;
pub mod places;
pub mod plain;
pub mod platform;
pub mod query;
pub mod rejection;
pub mod reload;
pub mod run;
pub mod selftest;
pub mod served;
pub mod server;
pub mod stage;
pub mod systemd;
pub mod telemetry;
pub mod throttle;
pub mod tls;
