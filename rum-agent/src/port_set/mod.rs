//! Step 2 of the data flow: the set of listeners, from complete dumps of the kernel.

pub mod reach;
pub mod schedule;
pub mod socket_table;
pub mod source;
pub mod watcher;
