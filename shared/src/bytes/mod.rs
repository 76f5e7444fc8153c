//! Steps 5 and 6 of the data flow: how a connection is requested, and how its bytes are relayed.

pub mod channel;
pub mod handover;
mod header;
pub mod relay;
