//! Step 3 of the data flow: the connection to the agent, and what may come over it.

pub mod backoff;
pub mod client;
pub(crate) mod token_bucket;
pub mod validate;
