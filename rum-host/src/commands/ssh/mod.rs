//! `rum ssh` and `rum ssh-config`: a shell in a VM without configuration, through the system's
//! ssh(1).
//!
//! This process becomes ssh, which starts `rum ssh-proxy` as its ProxyCommand. The proxy gets a
//! connection to the guest's sshd from the running `rum up` ([`crate::control::streams`]). So it
//! needs neither a forward nor an address, and works for VMs of every kind.
//!
//! For a VM whose image rum seeds, rum has its own key pair ([`crate::guest::qemu::login`]), which
//! the seed authorizes for the image's usual user; the guest reports that user's name ([`user`]).
//! For other VMs ssh uses the caller's own keys.
//!
//! Invariant: nothing in the caller's `~/.ssh` is written; host keys are stored next to rum's key.

mod options;
mod proxy;
mod user;

use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use self::options::Options;
pub use self::proxy::proxy;
use crate::cli::ssh::{SshArgs, SshConfigArgs};
use crate::control;
use crate::error::RumError;
use crate::exit;
use crate::guest::NAMESPACE;
use crate::guest::qemu::StateDir;
use crate::guest::qemu::login::Files;
use crate::guest::qemu::login::User;
use crate::runtime_dir::RunningGuest;

/// The usual port of an sshd.
const PORT: u16 = 22;
/// Time for a `rum up` to start its guest; its processes run within a second, and a loaded machine
/// gets more.
const START: Duration = Duration::from_secs(60);
/// Pause between two tries.
const AGAIN: Duration = Duration::from_millis(500);

/// Becomes ssh, connected to the guest `name` or the only one; returns why that failed.
pub fn ssh(name: Option<&str>, args: &SshArgs) -> RumError {
    let command = || {
        let target = Target::find(name)?;
        let user = target.user(args.user.as_ref())?;
        let mut ssh = target.options.ssh();
        if args.tty {
            ssh.arg("-t");
        }
        if let Some(user) = &user {
            ssh.args(["-l", user.as_str()]);
        }
        ssh.arg("--").arg(target.options.host()).args(&args.command);
        Ok(ssh)
    };
    match command() {
        Ok(mut ssh) => not_started(ssh.exec()),
        Err(error) => error,
    }
    .exit(exit::SSH)
}

/// The entry of `~/.ssh/config` with which ssh reaches the guest `name`, or the only one.
///
/// # Errors
/// There is no such guest, or it does not report a user.
pub fn config(name: Option<&str>, args: &SshConfigArgs) -> Result<String, RumError> {
    let target = Target::find(name)?;
    let user = target.user(args.user.as_ref())?;
    Ok(target.options.block(user.as_ref()))
}

/// A guest that can be reached by ssh.
struct Target {
    guest: RunningGuest,
    files: Files,
    options: Options,
}

impl Target {
    fn find(name: Option<&str>) -> Result<Self, RumError> {
        let guest = find(name)?;
        let files = StateDir::open(&guest.name)?.ssh();
        let options = Options::new(&guest, &files)?;
        Ok(Self {
            guest,
            files,
            options,
        })
    }

    /// The user for the login; `None`: ssh's default.
    fn user(&self, given: Option<&User>) -> Result<Option<User>, RumError> {
        if given.is_some() || !self.options.has_key() {
            return Ok(given.cloned());
        }
        if let Some(user) = self.files.user() {
            return Ok(Some(user));
        }
        let user = user::ask(&self.guest.name, self.options.ssh(), self.options.host())?;
        self.files.remember(&user);
        Ok(Some(user))
    }
}

/// The guest `name`, or the only one, once it has been started.
///
/// # Errors
/// There is none, or it is reached in another way.
pub fn find(name: Option<&str>) -> Result<RunningGuest, RumError> {
    let deadline = Instant::now() + START;
    loop {
        let guest = control::find(name)?;
        if guest.kind.is_some() || Instant::now() >= deadline {
            check(&guest)?;
            return Ok(guest);
        }
        std::thread::sleep(AGAIN);
    }
}

/// Whether a guest is reached by ssh.
fn check(guest: &RunningGuest) -> Result<(), RumError> {
    let name = &guest.name;
    match guest.kind.as_deref() {
        None => Err(
            RumError::new(format!("the guest `{name}` has not been started yet"))
                .hint("its `rum up` says what it waits for"),
        ),
        Some(NAMESPACE) => Err(RumError::new(format!(
            "`{name}` is a namespace guest, which needs no ssh"
        ))
        .hint(format!("`rum shell --name {name}` opens a shell in it"))),
        Some(_) => Ok(()),
    }
}

fn not_started(error: std::io::Error) -> RumError {
    let hint = match error.kind() {
        std::io::ErrorKind::NotFound => {
            "install it: `apt install openssh-client`, or `dnf install openssh-clients`"
        }
        _ => "rum runs the `ssh` of the PATH",
    };
    RumError::new("cannot run ssh").caused_by(error).hint(hint)
}

/// An `ssh` to be given arguments.
fn program() -> Command {
    Command::new("ssh")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_a_vm_that_runs_is_reached_by_ssh() {
        let mut guest = RunningGuest::starting("a", "/nowhere");
        let hint = |guest: &RunningGuest| check(guest).unwrap_err().one_line_hint().unwrap();
        assert!(hint(&guest).contains("`rum up` says"));
        guest.kind = Some(NAMESPACE.to_owned());
        assert!(hint(&guest).contains("rum shell --name a"));
        for kind in ["qemu", "libvirt", "vsock", "unix"] {
            guest.kind = Some(kind.to_owned());
            assert!(check(&guest).is_ok(), "{kind}");
        }
    }
}
