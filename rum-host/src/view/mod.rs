//! The views of the ports for people and scripts: tables, lines, JSON, and the live view.
//!
//! All are made from a [`Mirror`], the reader's copy of the state of a `rum up`. Rendering is pure:
//! time zone, width and colour come in as arguments.

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
