//! `rum down`: ends the `rum up` of a guest, and returns when it is gone.
//!
//! It asks through the control socket. A `rum up` that is stopped, hangs, has another version, or
//! has no place for one more client does not answer there; with `--force` it gets signals instead.
//! The signals reach exactly that process: its lock file has its id and start time, and from then
//! on a pidfd identifies it.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};

use crate::control::client::Control;
use crate::control::find;
use crate::error::RumError;
use crate::runtime_dir::RunningGuest;

/// With `--force`: time for an answer, which takes milliseconds.
const ANSWER: Duration = Duration::from_secs(2);
/// With `--force`: time for a `rum up` that agreed to end. It kills everything in the guest, and
/// waits at most 10 s for what does not end even then.
const FORCED: Duration = Duration::from_secs(15);
/// Pause between two SIGTERM, which together mean "at once". Without it the kernel would merge
/// them.
const AGAIN: Duration = Duration::from_millis(500);
/// Time to end after that, before SIGKILL.
const TERMINATED: Duration = Duration::from_secs(3);
/// Time for the helpers to end after `rum up` was killed: its keeper needs a second if init hangs.
const LEFT: Duration = Duration::from_secs(5);
/// Interval of checking whether the name is free.
const LOOK: Duration = Duration::from_millis(20);

/// Ends the `rum up` that holds the guest `name`, or the only one; with `force` at once, whether it
/// answers or not. Returns a note on how it ended, if there is one.
///
/// # Errors
/// No such guest runs, its `rum up` does not answer, or something of it is left.
pub async fn down(name: Option<&str>, force: bool) -> Result<Option<String>, RumError> {
    let guest = find(name)?;
    // Opened first, so that the pidfd is of this very process.
    let process = guest.rum.and_then(|rum| rum.open().ok());
    let asked = async { Control::connect(&guest).await?.stop(force).await };
    let asked = if force {
        tokio::time::timeout(ANSWER, asked).await
    } else {
        Ok(asked.await)
    };
    let Some(process) = process else {
        return match asked {
            Ok(asked) => Ok(asked.map(|()| None)?),
            // It was gone before it could be opened.
            Err(_) => Ok(None),
        };
    };
    match asked {
        Ok(Ok(())) if !force => wait(&process, None).map(|_| None),
        Ok(Ok(())) if wait(&process, Some(FORCED))? => Ok(None),
        Ok(Err(error)) if !force => Err(error.into()),
        _ => end_by_signals(&guest, &process).map(Some),
    }
}

fn end_by_signals(guest: &RunningGuest, process: &OwnedFd) -> Result<String, RumError> {
    let send = |signal| match pidfd_send_signal(process, signal) {
        // It is ending just now.
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(error) => Err(RumError::new("cannot send a signal to `rum up`").caused_by(error)),
    };
    let who = match guest.rum {
        Some(rum) => format!(
            "the `rum up` of guest `{}` (process {})",
            guest.name,
            rum.pid()
        ),
        None => format!("the `rum up` of guest `{}`", guest.name),
    };
    for limit in [AGAIN, TERMINATED] {
        send(Signal::TERM)?;
        // A stopped process reacts to nothing else.
        send(Signal::CONT)?;
        if wait(process, Some(limit))? {
            until_free(guest)?;
            return Ok(format!("{who} did not answer, and ended on SIGTERM"));
        }
    }
    send(Signal::KILL)?;
    if !wait(process, Some(LEFT))? {
        return Err(RumError::new(format!(
            "{who} does not even end when killed"
        )));
    }
    until_free(guest)?;
    Ok(format!(
        "{who} did not answer, nor end on SIGTERM, and was killed"
    ))
}

/// Waits until the helpers of an ended `rum up` are gone, too.
fn until_free(guest: &RunningGuest) -> Result<(), RumError> {
    let deadline = Instant::now() + LEFT;
    while guest.is_held() {
        if Instant::now() >= deadline {
            return Err(RumError::new(format!(
                "`rum up` has ended, but something of guest `{}` has not",
                guest.name
            )));
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// Waits for the end of the process behind a pidfd: without a limit, since `rum up` gives its
/// connections and its guest time to end, or for `limit`. Returns whether it has ended.
fn wait(process: &OwnedFd, limit: Option<Duration>) -> Result<bool, RumError> {
    let deadline = limit.map(|limit| Instant::now() + limit);
    loop {
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        // Some seconds.
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        // Readable once the process has ended (pidfd_open(2)).
        match poll(&mut [PollFd::new(process, PollFlags::IN)], left.as_ref()) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => {
                return Err(RumError::new("cannot wait for `rum up`").caused_by(error));
            }
        }
    }
}
