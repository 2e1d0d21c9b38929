//! What spigate knows of deliveries: which order a request belongs to, and what became of it.
//!
//! - `key.rs`: what makes two requests the same delivery (pure)
//! - `entry.rs`: what is recorded of one (data)
//! - `machine.rs`: what may become of it (pure)
//! - `store.rs`: what a store has to do; `memory.rs`, `sqlite.rs` and `postgres.rs` do it

pub mod entry;
pub mod key;
pub mod machine;
pub mod memory;
#[cfg(feature = "postgres")]
pub mod postgres;
pub mod running;
pub mod store;
