//! Signals read through a signalfd.

use nix::sys::signal::{self, SigHandler, SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::Failure;

/// Blocks `signals` and returns a signalfd for them. Restores the default of SIGCHLD: if a parent
/// left it ignored, the kernel would discard the children's exit codes (sigaction(2)).
pub fn watch(signals: &SigSet) -> Result<SignalFd, Failure> {
    let failed = |error| Failure::new("cannot watch signals", error);
    // SAFETY: no handler is installed.
    unsafe { signal::signal(Signal::SIGCHLD, SigHandler::SigDfl) }.map_err(failed)?;
    signals.thread_block().map_err(failed)?;
    SignalFd::with_flags(signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).map_err(failed)
}
