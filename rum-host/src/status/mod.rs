//! The status of each port as data: the displayed rows, the journal that readers follow, and a
//! reader's copy.

pub mod agent;
pub mod journal;
pub(crate) mod mirror;
pub mod model;
pub mod rows;
