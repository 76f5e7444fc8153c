//! Step 2 of the data flow: the set of listeners, from complete dumps of the kernel.

pub mod hub;
pub mod reach;
pub mod socket_table;
pub mod source;
pub mod watcher;
