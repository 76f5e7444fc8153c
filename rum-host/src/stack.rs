//! Room for the stack of a process's first thread, which has as much as RLIMIT_STACK says: the kernel kills
//! whoever needs more. All other threads have what they were made with.
//!
//! [`raise`] takes more where the hard limit allows it, and the programs of a guest get the limit back
//! ([`restore`]). Where it does not, [`with_enough`] does what the command line says on a second thread. The
//! helpers of a guest must have a single one: what they need is asked for before ([`too_small_a_limit`]).

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::OnceLock;
use std::thread;

use rum_shared::threads::STACK;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::exit;

/// More than is ever used, in unoptimised builds too (some 220 KiB), and than what the arguments and the
/// environment may have of it: a quarter of the limit, or 128 KiB (execve(2)).
const ENOUGH: u64 = 1024 * 1024;
/// The least with which a guest's helpers were seen to do, in unoptimised builds.
const LEAST: u64 = 256 * 1024;

/// The limit as it was before [`raise`].
static GIVEN: OnceLock<Rlimit> = OnceLock::new();

/// Raises a small limit.
pub fn raise() {
    let given = getrlimit(Resource::Stack);
    let raised = Rlimit {
        current: Some(given.maximum.map_or(ENOUGH, |most| most.min(ENOUGH))),
        ..given
    };
    let is_small = given.current.is_some_and(|bytes| bytes < ENOUGH);
    if is_small && setrlimit(Resource::Stack, raised).is_ok() {
        // The first call is the only one.
        let _ = GIVEN.set(given);
    }
}

/// Takes a [`raise`] back, in a child between fork and exec: one system call, and nothing else.
///
/// # Errors
/// As setrlimit(2); lowering needs no privilege.
pub fn restore() -> io::Result<()> {
    match GIVEN.get() {
        Some(given) => Ok(setrlimit(Resource::Stack, *given)?),
        None => Ok(()),
    }
}

/// How large the stack may become, if that is too little for a guest's helpers.
pub fn too_small_a_limit() -> Option<u64> {
    let limit = getrlimit(Resource::Stack);
    limit.maximum.filter(|bytes| *bytes < LEAST)
}

/// Runs `run` with enough stack.
pub fn with_enough(run: fn() -> ExitCode) -> ExitCode {
    let limit = getrlimit(Resource::Stack).current;
    if limit.is_none_or(|bytes| bytes >= ENOUGH) {
        return run();
    }
    match thread::Builder::new().stack_size(STACK).spawn(run) {
        // What a panic has to say it has said.
        Ok(thread) => thread.join().unwrap_or(ExitCode::from(exit::FAILED)),
        Err(error) => {
            let kib = limit.unwrap_or_default() / 1024;
            // Not by the usual way, which takes more stack.
            let _ = writeln!(
                io::stderr(),
                "error: the stack may have no more than {kib} KiB here (RLIMIT_STACK), and there is no \
                 second thread: {error}\nhint: `ulimit -s 8192`, if `ulimit -H -s` allows it"
            );
            ExitCode::from(exit::FAILED)
        }
    }
}
