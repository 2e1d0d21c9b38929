//! What spigate knows of deliveries: which order a request belongs to, and whether it runs.
//!
//! This is the seam of the delivery journal. `key.rs` says what makes two requests the same
//! delivery (pure); `memory.rs` lets copies of a *running* delivery wait for its result. Nothing
//! is remembered once a delivery has ended: durable stores will stand behind the same calls.

pub mod key;
pub mod memory;
