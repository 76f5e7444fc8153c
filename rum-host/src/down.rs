//! `rum down`: ends the `rum up` of a guest, and returns when it is gone.

use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::control::client::Control;
use crate::control::find;
use crate::error::RumError;

/// Asks the `rum up` that holds the guest `name`, or the only one, to end; with `force` at once.
/// Returns a pidfd of it, unless it is gone already.
///
/// # Errors
/// No such guest runs, or its `rum up` does not answer.
pub async fn ask(name: Option<&str>, force: bool) -> Result<Option<OwnedFd>, RumError> {
    let guest = find(name)?;
    // Opened first, so that it is this very process whose end is waited for.
    let process = guest.rum.and_then(|rum| rum.open().ok());
    Control::connect(&guest).await?.stop(force).await?;
    Ok(process)
}

/// Waits for the end of the process behind a pidfd, for as long as that takes: `rum up` gives its
/// connections and its guest time to end.
///
/// # Errors
/// As poll(2).
pub fn wait(process: &OwnedFd) -> Result<(), RumError> {
    loop {
        // Readable once the process has ended (pidfd_open(2)).
        match poll(&mut [PollFd::new(process, PollFlags::IN)], None) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => {
                return Err(RumError::new("cannot wait for `rum up`").caused_by(error));
            }
        }
    }
}
