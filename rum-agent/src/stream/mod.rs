//! Step 3 of the data flow: what the host is told.

pub mod knock;
pub mod service;
