//! What people and scripts see of the ports: tables, lines, JSON, and the live view.
//!
//! All of them are made of a [`Mirror`], the reader's copy of what a `rum up` tells. Making text of
//! it is pure: time zone, width and colour come in as arguments.

pub mod changes;
mod columns;
pub mod json;
pub mod lines;
pub mod live;
#[cfg(test)]
pub(crate) mod samples;
pub mod table;
mod words;

pub use crate::status::mirror::Mirror;
