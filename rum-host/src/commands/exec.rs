//! `rum exec` and `rum shell`: a command in the guest of a running `rum up`.
//!
//! The guest is found in the runtime directory, which has the id and the start time of its first
//! process. Once opened as a pidfd, no other process can take its place. Then this process becomes
//! the one that enters ([`crate::guest::process::enter`]).

use std::convert::Infallible;
use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;

use crate::control;
use crate::guest::namespace::Entrance;
use crate::guest::process::enter::Job;
use crate::guest::{GuestError, NAMESPACE};
use crate::runtime_dir::RunningGuest;

/// Runs `command` in the running guest `name`, or in the only one, in the directory `workdir`
/// (empty: ours). Returns only on failure: otherwise this process is replaced by another, whose
/// exit code is the command's (128 + N after signal N, 125 if rum failed, 126 if the command is not
/// executable, 127 if it does not exist).
pub fn exec(name: Option<&str>, workdir: &Path, command: &[OsString]) -> GuestError {
    match try_exec(name, workdir, command) {
        Err(error) => error,
        Ok(never) => match never {},
    }
}

/// Runs the user's shell, `$SHELL` or else /bin/sh, as [`exec`] does.
pub fn shell(name: Option<&str>, workdir: &Path) -> GuestError {
    let shell = std::env::var_os("SHELL").filter(|shell| !shell.is_empty());
    exec(name, workdir, &[shell.unwrap_or_else(|| "/bin/sh".into())])
}

fn try_exec(
    name: Option<&str>,
    workdir: &Path,
    command: &[OsString],
) -> Result<Infallible, GuestError> {
    let guest = control::find(name)?;
    let init = open(&guest)?;
    let entrance = Entrance {
        name: &guest.name,
        dir: &guest.path,
        init: init.as_fd(),
        isolation: guest.isolation,
    };
    let source = entrance.command(Job::Own, workdir, command)?.exec();
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::runtime_dir::ProcessId;

    #[test]
    fn opens_only_what_can_be_entered() {
        let mut guest = RunningGuest::starting("a", "/nowhere");
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
