//! The channel's read side, which also notices the channel's end while its data cannot be written.
//!
//! If a program reads nothing, the relay waits to write and so does not read the channel, in which
//! a reset frame is behind the data. After [`STUCK`] the relay also waits for the hang-up of the
//! channel. Then no more bytes can come, and the remaining ones are searched. Data without an end
//! frame behind it means that the connection is broken, so TCP is reset at once. Data with an end
//! frame is kept and delivered, however long that takes.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, Interest};

use super::Outcome;
use super::buffer::{Buffer, read_some};
use super::parts::{Part, Parts};

/// How long a write waits before the channel is watched, which costs a descriptor.
pub(super) const STUCK: Duration = Duration::from_secs(1);
/// Most bytes that are read ahead into user space from a channel that has hung up: more than the
/// buffers of one socket hold by default. The rest of a fuller one stays in the kernel.
const AHEAD: usize = 512 * 1024;

pub(super) struct Incoming<'a, R> {
    channel: R,
    /// The same channel, to be watched.
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

    /// The next bytes; empty at the end.
    pub(super) async fn read(&mut self) -> io::Result<Buffer> {
        if self.ahead.is_empty() {
            return read_some(&mut self.channel, 0).await;
        }
        Ok(Buffer::from(std::mem::take(&mut self.ahead)))
    }

    /// Completes when the channel has ended and what is left of it, the rest of `chunk` (split by
    /// `parts`) and the bytes behind it, holds a reset or no end frame. Cancel-safe.
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

    /// Reads what is left. Returns whether that is all.
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
    // READABLE subscribes to EPOLLRDHUP; PRIORITY waits for that and not for bytes.
    let interest = Interest::READABLE | Interest::PRIORITY;
    let own = channel.try_clone_to_owned()?;
    // SAFETY: an OwnedFd stays the same open descriptor until it is dropped, and nothing else has
    // it.
    let channel = unsafe { AsyncFd::register_with_interest(own, interest) }?;
    let _ = channel.ready(Interest::PRIORITY | Interest::ERROR).await?;
    Ok(())
}
