//! The processes that make up a namespace guest: rum itself, re-executed in hidden modes.
//!
//! ```text
//! rum ──┬─ __rum-keeper            outside the PID namespace, inside the others
//!       │    └─ __rum-init         PID 1 of the guest
//!       │         └─ __rum-agent   the agent; started again whenever it ends
//!       └─ __rum-enter             one for each command: outside, waits
//!            └─ CMD                inside
//! ```
//!
//! Each is `/proc/self/exe` with a hidden first argument, for two reasons. First, setns(2) into a
//! user namespace, and a fork that does more than exec, need a single-threaded process: `main`
//! calls [`dispatch_internal`] before it starts any thread. Second, the exec at each step drops the
//! capabilities that an ordinary user has in their own user namespace. The agent then executes the
//! small program that rum embeds ([`crate::guest::payload::become_agent`]).
//!
//! # Nothing inside outlives rum
//! - **rum ends**, in whatever way: only rum has the other end of the keeper's standard input, the
//!   *lifeline*. At its end of file the keeper asks init to kill everything and end, and kills init
//!   with SIGKILL if it takes too long.
//! - **the keeper ends**: init's standard input is a lifeline too, which only the keeper holds; and
//!   init's parent death signal is SIGKILL.
//! - **init ends**: the kernel kills everything in its PID namespace, and the keeper sees it.
//! - **rum and the keeper end at once**: init still ends with the keeper. Only the files in the
//!   runtime directory stay, and the next guest of that name takes them over.
//! - **an enter ends**: the parent death signal of its command is SIGKILL.
//! - **one of them is stopped**: the kernel continues it for its part in this, see `waking`.
//!
//! The keeper has no parent death signal: that signal fires when the *thread* that spawned the
//! keeper ends, and a thread of an asynchronous runtime may end at any time. The lifeline depends
//! on the process.
//!
//! # And VMs
//! A VM's programs (QEMU, perhaps a vsock device) are children of a [`WARDEN`], which does for them
//! what the keeper does for init.
//!
//! Keeper, init and agent have a session of their own, so no terminal signal reaches them. The
//! lifelines also carry bytes: [`TERMINATE`], and [`KILL`] to init.
//!
//! The helpers report every problem of the user's in words, see [`status`].

use std::ffi::{CStr, OsString};
use std::fmt;
use std::process::ExitCode;

pub use crate::guest::SELF;
use crate::guest::qemu::kvm;
use crate::limits;
use crate::runtime_dir::isolation::Isolation;

pub mod enter;
mod ids;
mod init;
mod keeper;
mod mounts;
mod rights;
pub(crate) mod setup;
mod signals;
pub mod status;
mod sysv;
mod waking;
mod warden;

/// Hidden first argument of the keeper: `DIR LOCK_FD RPC_FD CHANNEL_FD ISOLATION AGENT_ARGS…`.
pub const KEEPER: &str = "__rum-keeper";
/// Hidden first argument of init: `ALIVE_FD AGENT_ARGS…`.
pub const INIT: &str = "__rum-init";
/// Hidden first argument of the agent; what follows is the agent's own command line.
pub const AGENT: &str = "__rum-agent";
/// Hidden first argument of a VM's warden: `DIR LOCK_FD (COUNT PROGRAM ARGS…)…`.
pub const WARDEN: &str = "__rum-warden";
/// Hidden first argument of the process that runs a command in the guest: `PIDFD ALIVE_FD JOB
/// ISOLATION DIR NAME CMD…`.
pub const ENTER: &str = "__rum-enter";

/// In a lifeline: send SIGTERM to every process inside, then end once they have ended.
pub const TERMINATE: u8 = b'T';

/// In a guest's pipe `alive`: the guest is being ended. No process reads the byte; writing it
/// continues the stopped ones.
pub const ENDING: u8 = b'E';

/// In init's lifeline: kill everything inside at once, then end.
pub const KILL: u8 = b'K';

/// In a warden's lifeline: start the next program.
pub const START: u8 = b'S';

/// Exit code when rum itself fails, as in env(1) and docker-run(1).
pub const EXIT_FAILED: u8 = 125;
/// Exit code when the command was found but cannot be run.
pub const EXIT_NOT_EXECUTABLE: u8 = 126;
/// Exit code when there is no such command.
pub const EXIT_NOT_FOUND: u8 = 127;

/// Why a helper process gave up, in words for the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What failed.
    pub message: String,
    /// What can be done about it.
    pub hint: Option<String>,
}

impl Failure {
    fn new(what: &str, error: impl fmt::Display) -> Self {
        Self {
            message: format!("{what}: {error}"),
            hint: None,
        }
    }

    /// Adds a hint if the error is about a limit.
    fn io(what: &str, error: &std::io::Error) -> Self {
        Self {
            hint: limits::hint(error).map(str::to_owned),
            ..Self::new(what, error)
        }
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// Runs this process in the hidden mode that the command line names, and returns its exit code;
/// None if it names none. Must be called first in `main`, while there is a single thread.
///
/// `agent` is the agent's entry point; it gets its arguments without the program's name.
pub fn dispatch_internal(agent: impl FnOnce(Vec<OsString>) -> ExitCode) -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    let mode = args.next()?;
    let args = args.collect();
    // The name is only what `ps` and `top` show.
    let show_as = |name: &CStr| {
        let _ = rustix::thread::set_name(name);
    };
    Some(match mode.to_str()? {
        KEEPER => {
            show_as(c"rum-keeper");
            keeper::run(args)
        }
        INIT => {
            show_as(c"rum-init");
            rights::guard();
            init::run(args)
        }
        AGENT => {
            show_as(c"rum-agent");
            rights::guard();
            agent(args)
        }
        kvm::MODE => {
            show_as(c"rum-kvm");
            kvm::probe()
        }
        WARDEN => {
            show_as(c"rum-warden");
            warden::run(args)
        }
        ENTER => {
            show_as(c"rum-enter");
            rights::guard();
            enter::run(args)
        }
        _ => return None,
    })
}

/// Reads one number of the hidden command line.
fn number(args: &mut impl Iterator<Item = OsString>) -> Result<i32, Failure> {
    args.next()
        .and_then(|text| text.to_str()?.parse().ok())
        .filter(|number| *number >= 0)
        .ok_or_else(bad_arguments)
}

/// The descriptors of this process other than the standard streams. Collected first: the list
/// includes the descriptor that reads the directory, which is closed on return.
fn open_descriptors() -> std::io::Result<impl Iterator<Item = i32>> {
    let open: Vec<_> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd > 2)
        .collect();
    Ok(open.into_iter())
}

/// Reads the guest's isolation.
fn isolation(args: &mut impl Iterator<Item = OsString>) -> Result<Isolation, Failure> {
    args.next()
        .and_then(|word| Isolation::parse(word.to_str()?))
        .ok_or_else(bad_arguments)
}

fn bad_arguments() -> Failure {
    Failure {
        message: "this is an internal mode of rum, not to be called by hand".to_owned(),
        hint: None,
    }
}
