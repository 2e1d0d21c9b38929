//! What spigate knows of deliveries: which order a request belongs to, and what became of it.
//!
//! - `key.rs`: what makes two requests the same delivery (pure)
//! - `entry.rs`: what is recorded of one (data)
//! - `machine.rs`: what may become of it (pure)
//! - `vault.rs`: seals the replies that are kept
//! - `retention.rs`: what is forgotten, and when
//! - `visit.rs`, `view.rs`, `redact.rs`: for those who look at it from outside
//! - `store.rs`: what a store has to do; `memory.rs`, `sqlite.rs` and `postgres.rs` do it

pub mod entry;
pub mod key;
pub mod machine;
pub mod memory;
pub mod redact;
pub mod retention;
pub mod running;
pub mod sqlite;
pub mod store;
pub mod vault;
pub mod view;
pub mod visit;
