//! The edge: what is said to the user, and how it is written.

pub mod notice;
pub mod output;
