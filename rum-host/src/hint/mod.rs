//! Step 1 of the data flow, on the host's side: reports the `listen()` calls in an ordinary user's
//! guest, through seccomp notifications.

pub mod holder;
pub mod seccomp;
pub(crate) mod socket;
