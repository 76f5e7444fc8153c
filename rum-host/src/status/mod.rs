//! What rum knows of each port, as data: the rows that are shown, the journal that readers follow, and the copy
//! that a reader keeps.

pub mod agent;
pub mod journal;
pub(crate) mod mirror;
pub mod model;
pub mod rows;
