//! The stops of a request, one file each, in the order in which `gateway.rs` calls them.
//!
//! Each takes what the one before made and makes what the next one needs, so that a step left
//! out does not compile. Only `claim.rs` and `forward.rs` wait for anything.

pub mod answer;
pub mod claim;
pub mod contract;
pub mod forward;
pub mod freshness;
pub mod normalize;
pub mod parse;
pub mod receive;
pub mod route;
pub mod validate;
pub mod verify;
