//! Steps 5 and 6 of the data flow: how a connection is asked for, and how its bytes cross.

pub mod channel;
pub mod handover;
pub mod relay;
