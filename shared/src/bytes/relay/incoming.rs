//! The channel's read side, which also notices that its other end has gone while nobody takes what
//! is in it.
//!
//! A program that reads nothing makes the relay wait to write, and so nothing is read from the
//! channel, where the news of a reset is behind the data. After [`STUCK`] the hang-up of the channel is waited
//! for as well. Then no more can come, and what is there is looked through: data without an end frame
//! behind it means that the connection is broken, and TCP is reset at once. Data with one is kept
//! and delivered, however long that takes.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, Interest};

use super::Outcome;
use super::buffer::{Buffer, read_some};
use super::parts::{Part, Parts};

/// How long a write waits before the channel is watched: that costs a descriptor.
pub(super) const STUCK: Duration = Duration::from_secs(1);
/// Most bytes that are read ahead, in user space instead of the kernel's memory, from a channel that has hung up: more than the buffers of one socket
/// hold by default. The rest of a fuller one waits there.
const AHEAD: usize = 512 * 1024;

pub(super) struct Incoming<'a, R> {
    channel: R,
    /// The same, to be watched.
    watched: BorrowedFd<'a>,
    ahead: Vec<u8>,
}

impl<'a, R: AsyncRead + Unpin> Incoming<'a, R> {
    pub(super) fn new(channel: R, watched: BorrowedFd<'a>) -> Self {
        Self {
            channel,
            watched,
            ahead: Vec::new(),
        }
    }

    /// What comes next; nothing at the end.
    pub(super) async fn read(&mut self) -> io::Result<Buffer> {
        if self.ahead.is_empty() {
            return read_some(&mut self.channel, 0).await;
        }
        Ok(Buffer::from(std::mem::take(&mut self.ahead)))
    }

    /// Completes when the channel has ended without an end frame in what is left of it: in `chunk`, which
    /// `parts` takes apart, and behind that. Cancel-safe.
    pub(super) async fn lost(&mut self, parts: &Parts, chunk: &[u8]) -> Outcome {
        tokio::time::sleep(STUCK).await;
        if hung_up(self.watched).await.is_err() || !self.read_ahead().await {
            return std::future::pending().await;
        }
        let mut left = [chunk, &self.ahead].concat();
        let mut parts = parts.clone();
        let mut ended = false;
        loop {
            match parts.next(&mut left) {
                Ok(Some(Part::Bytes(_))) => {}
                Ok(Some(Part::End)) => ended = true,
                Ok(Some(Part::Reset)) => return Outcome::ChannelReset,
                Ok(None) if ended => return std::future::pending().await,
                Ok(None) | Err(_) => return Outcome::ChannelLost,
            }
        }
    }

    /// Reads what is left. Whether that is all.
    async fn read_ahead(&mut self) -> bool {
        while self.ahead.len() < AHEAD {
            if let Ok(0) | Err(_) = self.channel.read_buf(&mut self.ahead).await {
                return true;
            }
        }
        false
    }
}

/// Completes when nothing more will come on `channel`.
async fn hung_up(channel: BorrowedFd<'_>) -> io::Result<()> {
    // READABLE has the kernel say it (EPOLLRDHUP); PRIORITY waits for that and not for bytes.
    let interest = Interest::READABLE | Interest::PRIORITY;
    let own = channel.try_clone_to_owned()?;
    // SAFETY: an OwnedFd is open and the same until it is dropped, and nobody else has it.
    let channel = unsafe { AsyncFd::register_with_interest(own, interest) }?;
    let _ = channel.ready(Interest::PRIORITY | Interest::ERROR).await?;
    Ok(())
}
