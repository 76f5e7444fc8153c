//! Makes the kernel continue a stopped helper once something happens on a pipe.
//!
//! No process of a guest outlives rum. But a stopped helper sees no end of file and reaps no child:
//! a keeper that got SIGSTOP, or the [enter](super::enter) of a job stopped with Ctrl+Z. By then no
//! process of rum may be left to wake it. The kernel still can: it sends a chosen signal for each
//! event on a descriptor (`F_SETSIG` in fcntl(2)), and SIGCONT continues a process even where the
//! signal is blocked or ignored (signal(7)).
//!
//! ```text
//! rum ──lifeline──► keeper ──lifeline──► init ──`alive`──► each enter
//! ```
//! Each arrow is a pipe. Its reader is continued when the writer writes or ends, so the end of rum
//! reaches every helper, stopped or not. SIGKILL needs no such help: it ends stopped processes too.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// From linux/fcntl.h (asm-generic); libc has it for some targets only.
const F_SETSIG: i32 = 10;

/// Makes the kernel continue this process whenever `pipe`, of which it has the reading end, becomes
/// readable or loses its last writer. No other process may share that open file description: the
/// signal goes to one process.
pub fn by(pipe: impl AsFd) -> io::Result<()> {
    let fd = pipe.as_fd().as_raw_fd();
    let set = |command, value: i32| {
        // SAFETY: these commands take an integer, and the descriptor is open.
        match unsafe { libc::fcntl(fd, command, value) } {
            -1 => Err(io::Error::last_os_error()),
            told => Ok(told),
        }
    };
    set(F_SETSIG, libc::SIGCONT)?;
    // SAFETY: getpid cannot fail and touches no memory.
    set(libc::F_SETOWN, unsafe { libc::getpid() })?;
    let flags = set(libc::F_GETFL, 0)?;
    set(libc::F_SETFL, flags | libc::O_ASYNC).map(drop)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write;

    use nix::sys::signal::{SigSet, Signal};
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    use nix::unistd::{ForkResult, fork};

    use super::*;

    /// Kernel assumption: SIGCONT reaches a reader that is stopped and blocks it.
    #[test]
    fn a_stopped_reader_is_continued_by_a_byte_and_by_the_end() {
        for ends in [false, true] {
            let (reader, mut writer) = io::pipe().unwrap();
            // SAFETY: the child only makes system calls until it ends.
            let child = match unsafe { fork() }.unwrap() {
                ForkResult::Child => {
                    drop(writer);
                    let code = match by(&reader) {
                        Ok(()) => {
                            let _ = SigSet::all().thread_block();
                            let _ = nix::sys::signal::raise(Signal::SIGSTOP);
                            0
                        }
                        Err(_) => 1,
                    };
                    // SAFETY: ends the child without running exit handlers of the parent.
                    unsafe { libc::_exit(code) }
                }
                ForkResult::Parent { child } => child,
            };
            drop(reader);
            let stopped = waitpid(child, Some(WaitPidFlag::WUNTRACED)).unwrap();
            assert_eq!(stopped, WaitStatus::Stopped(child, Signal::SIGSTOP));
            if ends {
                drop(writer)
            } else {
                writer.write_all(b"T").unwrap()
            }
            assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
        }
    }
}
