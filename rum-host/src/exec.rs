//! `rum exec` and `rum shell`: a command in the guest of a `rum up` that runs elsewhere.
//!
//! The guest is found in the runtime directory. Its first process is known there by its id and
//! the time of its start, and from the moment it is opened as a pidfd no other can take its place.
//! Then this process turns into the one that enters ([`crate::sandbox::enter`]).

use std::convert::Infallible;
use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;

use crate::guest::namespace::enter_command;
use crate::guest::{GuestError, NAMESPACE};
use crate::runtime_dir::{self, RunningGuest, check_name};
use crate::sandbox::enter::Job;

/// Runs `command` in the running guest `name`, or in the only one there is. Returns only if that
/// cannot be tried: this process becomes another, whose exit code is the command's (128 + N after
/// signal N, 125 if rum failed, 126 if it is not executable, 127 if it is not there).
pub fn exec(name: Option<&str>, command: &[OsString]) -> GuestError {
    match try_exec(name, command) {
        Err(error) => error,
        Ok(never) => match never {},
    }
}

/// Runs the user's shell, `$SHELL` or else /bin/sh, as [`exec`] does it.
pub fn shell(name: Option<&str>) -> GuestError {
    let shell = std::env::var_os("SHELL").filter(|shell| !shell.is_empty());
    exec(name, &[shell.unwrap_or_else(|| "/bin/sh".into())])
}

fn try_exec(name: Option<&str>, command: &[OsString]) -> Result<Infallible, GuestError> {
    if let Some(name) = name {
        check_name(name)?;
    }
    let guest = pick(name, runtime_dir::list()?)?;
    let pidfd = open(&guest)?;
    let source = enter_command(pidfd.as_fd(), Job::Own, &guest.name, command)?.exec();
    Err(GuestError::Io {
        action: "enter the guest",
        source,
    })
}

/// A pidfd of the first process in `guest`.
fn open(guest: &RunningGuest) -> Result<OwnedFd, GuestError> {
    match (guest.kind.as_deref(), guest.init) {
        (Some(NAMESPACE), Some(init)) => init.open().ok(),
        (Some(NAMESPACE) | None, _) => None,
        (Some(kind), _) => {
            let kind = kind.to_owned();
            return Err(GuestError::NoCommands { kind });
        }
    }
    .ok_or_else(|| GuestError::NotReady {
        name: guest.name.clone(),
    })
}

/// The guest that is meant.
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
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::runtime_dir::ProcessId;

    fn guests(names: &[&str]) -> Vec<RunningGuest> {
        let guest = |name: &&str| RunningGuest {
            name: (*name).to_owned(),
            path: "/nowhere".into(),
            rum: None,
            kind: None,
            init: None,
        };
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

    #[test]
    fn opens_only_what_can_be_entered() {
        let mut guest = guests(&["a"]).remove(0);
        let me = ProcessId::current().unwrap();
        assert!(matches!(open(&guest), Err(GuestError::NotReady { .. })));
        guest.kind = Some(NAMESPACE.to_owned());
        assert!(matches!(open(&guest), Err(GuestError::NotReady { .. })));
        guest.init = Some(me);
        assert!(open(&guest).is_ok());
        // The id was reused.
        guest.init = Some(format!("{} 1", me.pid()).parse().unwrap());
        assert!(matches!(open(&guest), Err(GuestError::NotReady { .. })));
        guest.kind = Some("vsock".to_owned());
        let error = open(&guest).unwrap_err();
        assert!(error.to_string().contains("`vsock`"), "{error}");
        assert!(error.hint().unwrap().contains("ssh"));
    }
}
