//! Hints for errors that a limit of the system causes.

use std::io;

use rustix::io::Errno;

use crate::error::RumError;

/// What the user can do about `error`, if a limit causes it.
pub(crate) fn hint(error: &io::Error) -> Option<&'static str> {
    let hint = match Errno::from_io_error(error)? {
        Errno::MFILE => {
            "a process may have too few files open: `ulimit -n 1024`, if `ulimit -H -n` allows it"
        }
        Errno::NFILE => "this machine may have too few files open: see the sysctl fs.file-max",
        Errno::AGAIN => {
            "there are as many processes and threads as this user may have (`ulimit -u`, pids.max of the \
             cgroup), or no memory for one (`ulimit -d`, `ulimit -v`)"
        }
        Errno::NOMEM => "see how much memory there is, and `ulimit -v` and `ulimit -d`",
        Errno::NOSPC | Errno::DQUOT => {
            "the file system of rum's runtime directory is full: make room, or have RUM_RUNTIME_DIR \
             name another directory"
        }
        _ => return None,
    };
    Some(hint)
}

/// Makes an error "cannot `action`", with a hint if a limit causes it.
pub(crate) fn failed(action: &str) -> impl FnOnce(io::Error) -> RumError {
    let message = format!("cannot {action}");
    move |error| {
        let hint = hint(&error);
        let failed = RumError::new(message).caused_by(error);
        match hint {
            Some(hint) => failed.hint(hint),
            None => failed,
        }
    }
}
