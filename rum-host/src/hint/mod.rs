//! Step 1 of the data flow, on the host's side: the `listen()` calls in the guest of an ordinary user, by seccomp
//! notifications.

pub mod holder;
pub mod seccomp;
pub(crate) mod socket;
