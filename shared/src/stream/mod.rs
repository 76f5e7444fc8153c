//! Step 3 of the data flow: the RPC between host and agent, its sessions and their frames.

pub mod link;
pub mod rpc;
pub mod session;
