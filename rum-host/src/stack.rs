//! Stack size of a process's first thread, which RLIMIT_STACK bounds: the kernel kills a process
//! that exceeds it. The stacks of all other threads have the size given at their creation.
//!
//! [`raise`] raises a small soft limit as far as the hard limit allows, and [`restore`] gives the
//! programs of a guest the original limit back. Where the hard limit is too small, [`with_enough`]
//! runs the command line on a second thread. The helpers of a guest must be single-threaded, so
//! their need is checked before they start ([`too_small_a_limit`]).

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::OnceLock;
use std::thread;

use rum_shared::threads::STACK;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::exit;

/// More than rum ever uses, in unoptimised builds too (some 220 KiB), plus the arguments and the
/// environment, which may take a quarter of the limit, or 128 KiB (execve(2)).
const ENOUGH: u64 = 1024 * 1024;
/// The smallest limit under which a guest's helpers were seen to work, in unoptimised builds.
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
        // `raise` runs once.
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

/// The stack's hard limit, if it is too small for a guest's helpers.
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
        // A panic has already printed its message.
        Ok(thread) => thread.join().unwrap_or(ExitCode::from(exit::FAILED)),
        Err(error) => {
            let kib = limit.unwrap_or_default() / 1024;
            // The usual way to print an error takes more stack.
            let _ = writeln!(
                io::stderr(),
                "error: the stack may have no more than {kib} KiB here (RLIMIT_STACK), and there is no \
                 second thread: {error}\nhint: `ulimit -s 8192`, if `ulimit -H -s` allows it"
            );
            ExitCode::from(exit::FAILED)
        }
    }
}
