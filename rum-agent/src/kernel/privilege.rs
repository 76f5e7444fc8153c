//! Step 1: holds CAP_SYS_ADMIN as briefly as possible.
//!
//! perf_event_open(2) needs CAP_PERFMON. Linux before 5.8 does not have it, and Debian's kernel
//! requires CAP_SYS_ADMIN all the same while `kernel.perf_event_paranoid` is above 2, its default
//! there (tested with 6.1). So the agent's unit grants both, and an agent that is not root holds
//! the larger one back:
//!
//! - [`hold_back`], first thing in the process, makes it ineffective;
//! - [`open`] tries without it. If that succeeds it is dropped for good; if not, it is effective
//!   for a second try and for nothing else.
//!
//! Invariants: between two calls of this module CAP_SYS_ADMIN is not effective; once dropped it
//! never comes back. Capabilities belong to threads: the agent opens events on the thread that
//! started it, and later threads inherit its capabilities.

use std::io;

use rustix::process::geteuid;
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

const ADMIN: CapabilitySet = CapabilitySet::SYS_ADMIN;

/// Makes CAP_SYS_ADMIN ineffective, for a process that is not root. Must come before other threads.
///
/// # Errors
/// As capset(2).
pub fn hold_back() -> io::Result<()> {
    if geteuid().is_root() {
        return Ok(());
    }
    change(|sets| sets.effective -= ADMIN)
}

/// Opens something for which CAP_PERFMON may suffice, and CAP_SYS_ADMIN does.
///
/// # Errors
/// The error of `open`, of its second try if there was one.
pub fn open<T>(mut open: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let first = open();
    if geteuid().is_root() || !capabilities(None)?.permitted.contains(ADMIN) {
        return first;
    }
    match first {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            change(|sets| sets.effective |= ADMIN)?;
            let second = open();
            change(|sets| sets.effective -= ADMIN)?;
            second
        }
        Ok(opened) => {
            // The ambient set shrinks accordingly (capabilities(7)).
            change(|sets| {
                sets.permitted -= ADMIN;
                sets.inheritable -= ADMIN;
            })?;
            Ok(opened)
        }
        Err(error) => Err(error),
    }
}

fn change(change: impl FnOnce(&mut CapabilitySets)) -> io::Result<()> {
    let mut sets = capabilities(None)?;
    let before = sets;
    change(&mut sets);
    if sets == before {
        Ok(())
    } else {
        Ok(set_capabilities(None, sets)?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use rustix::io::Errno;
    use rustix::process::Uid;
    use rustix::thread::{set_keep_capabilities, set_thread_uid};

    /// Runs `test` on a thread that is an ordinary user with CAP_SYS_ADMIN held back.
    fn as_user(test: impl FnOnce() + Send + 'static) {
        let thread = std::thread::spawn(|| {
            set_keep_capabilities(true).unwrap();
            // Affects only this thread.
            set_thread_uid(Uid::from_raw(65534)).unwrap();
            let both = ADMIN | CapabilitySet::PERFMON;
            let sets = CapabilitySets {
                effective: both,
                permitted: both,
                inheritable: CapabilitySet::empty(),
            };
            set_capabilities(None, sets).unwrap();
            hold_back().unwrap();
            assert!(!is_effective() && is_permitted());
            test();
        });
        thread.join().unwrap();
    }

    fn is_effective() -> bool {
        capabilities(None).unwrap().effective.contains(ADMIN)
    }

    fn is_permitted() -> bool {
        capabilities(None).unwrap().permitted.contains(ADMIN)
    }

    fn refused<T>() -> io::Result<T> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    #[test]
    fn where_it_is_needed_it_is_effective_for_that_moment() {
        as_user(|| {
            let needs_it = || if is_effective() { Ok(()) } else { refused() };
            for _ in 0..2 {
                open(needs_it).unwrap();
                assert!(!is_effective() && is_permitted());
            }
            // Not even CAP_SYS_ADMIN helps: it is held back all the same.
            open(refused::<()>).unwrap_err();
            assert!(!is_effective());
        });
    }

    #[test]
    fn where_it_is_not_needed_it_is_given_up() {
        as_user(|| {
            let mut tries = 0;
            let gone = open(|| {
                tries += 1;
                Err::<(), _>(Errno::NODEV.into())
            });
            gone.unwrap_err();
            assert_eq!(tries, 1, "it was not refused");
            let effective = open(|| Ok(is_effective())).unwrap();
            assert!(!effective);
            assert!(!is_permitted());
            change(|sets| {
                sets.permitted |= ADMIN;
                sets.effective |= ADMIN;
            })
            .unwrap_err();
        });
    }
}
