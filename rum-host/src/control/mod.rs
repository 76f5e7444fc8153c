//! The control socket: what `rum up` reports to other `rum` processes of this user, and what they
//! may ask it to do.
//!
//! The supervisor publishes in the [`crate::status::journal`]. The [`server`] lets any number of
//! readers follow it, each at its own pace; the [`client`] is the reader's end. [`streams`] has a
//! second socket, for connections into the guest.

pub mod client;
pub mod offline;
mod peer;
mod places;
pub mod server;
mod service;
mod socket;
pub mod streams;

use crate::guest::GuestError;
use crate::runtime_dir::{self, RunningGuest, check_name};

/// The running guest `name`, or the only running one.
///
/// # Errors
/// No guest is running, or several are and `name` is missing.
pub fn find(name: Option<&str>) -> Result<RunningGuest, GuestError> {
    if let Some(name) = name {
        check_name(name)?;
    }
    pick(name, runtime_dir::list()?).map_err(|error| match (runtime_dir::inside(), error) {
        (Some(guest), GuestError::NotRunning { .. } | GuestError::NoneRunning) => {
            GuestError::Inside { guest }
        }
        (_, error) => error,
    })
}

/// Picks the guest that the caller means.
fn pick(name: Option<&str>, mut running: Vec<RunningGuest>) -> Result<RunningGuest, GuestError> {
    let names = |running: &[RunningGuest]| running.iter().map(|guest| guest.name.clone()).collect();
    match name {
        Some(name) => match running.iter().position(|guest| guest.name == name) {
            Some(at) => Ok(running.swap_remove(at)),
            None => Err(GuestError::NotRunning {
                name: name.to_owned(),
                running: names(&running),
            }),
        },
        None if running.len() > 1 => Err(GuestError::Ambiguous {
            running: names(&running),
        }),
        None => running.pop().ok_or(GuestError::NoneRunning),
    }
}

#[cfg(test)]
mod timers_tests;
#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn guests(names: &[&str]) -> Vec<RunningGuest> {
        let guest = |name: &&str| RunningGuest::starting(name, "/nowhere");
        names.iter().map(guest).collect()
    }

    #[test]
    fn picks_the_named_or_the_only_one() {
        assert_eq!(pick(None, guests(&["a"])).unwrap().name, "a");
        assert_eq!(pick(Some("b"), guests(&["a", "b"])).unwrap().name, "b");
    }

    #[test]
    fn says_which_there_are() {
        let error = pick(Some("c"), guests(&["a", "b"])).unwrap_err();
        assert_eq!(error.to_string(), "no guest `c` is running (running: a, b)");
        let error = pick(None, guests(&["a", "b"])).unwrap_err();
        assert_eq!(error.to_string(), "more than one guest is running: a, b");
        assert!(error.hint().unwrap().contains("--name a"));
        let error = pick(None, guests(&[])).unwrap_err();
        assert_eq!(error.to_string(), "no guest is running");
        assert!(error.hint().unwrap().contains("rum up"));
    }
}
