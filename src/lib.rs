//! spigate: a reverse-proxy signature gateway for cloud-marketplace SPI calls.
//!
//! `docs/architecture.md` follows a request through the code; [`gateway`] is the whole way on
//! one screen. The pure core ([`query`], [`dialect`], [`json`]) does no I/O and reads no clock.

pub mod dialect;
pub mod json;
pub mod query;
