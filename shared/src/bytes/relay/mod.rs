//! Step 6 of the data flow: relays bytes both ways, with half-close.
//!
//! Host and agent run the same relay between a TCP socket (of a client, or to the guest program)
//! and the framed channel. Two directions, *up* from TCP into the channel and *down* from the
//! channel to TCP, are polled concurrently in one future. Each ends on its own:
//!
//! | event | reaction |
//! |---|---|
//! | end of TCP | end frame; down continues |
//! | end frame | TCP's write side is shut down; up continues |
//! | TCP was reset | reset frame |
//! | reset frame, or the channel ends or breaks before its end frame | TCP is reset |
//!
//! Invariants:
//! - TCP sees a clean end only after an end frame. The socket is armed (SO_LINGER 0) so that every
//!   other close is a reset, also when the future is dropped or the process is killed; only
//!   [`Outcome::Finished`] disarms it;
//! - a reset is seen while a direction waits for a reader that does not read: of TCP because its
//!   socket is watched, of the channel because its hang-up is (`incoming`). The bytes held for
//!   that reader are then lost;
//! - a relay that moves much data yields to others (`turn`);
//! - a side that can no longer write still reads to the end, so data under way before a failure is
//!   delivered. Data that the kernel has not delivered when a reset follows is lost, as with every
//!   TCP reset;
//! - a direction has at most one buffer, and none while it waits for bytes: thousands of idle
//!   connections cost little, and a slow reader stops its writer. The total for many slow readers
//!   is bounded (`buffer`).

mod buffer;
mod direct;
mod incoming;
mod parts;
mod pipe;
#[cfg(test)]
mod tests;
mod turn;

pub use direct::relay_direct;
pub use turn::{Bulk, Turn};

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::pin::pin;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, Interest};
use tokio::net::{TcpStream, tcp};
use tokio_util::sync::CancellationToken;

use self::buffer::poll_tcp;
use self::incoming::Incoming;
use self::parts::{Part, Parts};
use crate::bytes::channel::{END, LENGTH, RESET, length};
use crate::transport::Stream;

/// Bytes moved so far; read from outside while the relay runs.
#[derive(Debug, Default)]
pub struct Counters {
    /// From the TCP socket into the channel.
    pub from_tcp: AtomicU64,
    /// From the channel to the TCP socket.
    pub to_tcp: AtomicU64,
}

/// How a relay ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Both directions ended cleanly.
    Finished,
    /// The TCP side was reset; a reset frame was sent on the channel.
    TcpReset,
    /// A reset frame came on the channel; the TCP side was reset.
    ChannelReset,
    /// The channel ended without its end frame or was broken; the TCP side was reset.
    ChannelLost,
    /// `cut` was cancelled; both sides were reset.
    Cut,
}

/// Sets the options of a relayed TCP socket. Every close is a reset, by drop or by the kernel when
/// the process is killed (SO_LINGER 0, socket(7)). Writes are sent at once (TCP_NODELAY, tcp(7)).
/// The kernel probes a peer that is silent for long (SO_KEEPALIVE, with the system's times), since
/// a peer may vanish without notice. [`relay`] does this first. Sockets accepted from a listener
/// inherit its options.
pub fn prepare(tcp: impl AsFd) {
    // Neither can fail on a TCP socket.
    let _ = sockopt::set_socket_linger(&tcp, Some(Duration::ZERO));
    let _ = sockopt::set_tcp_nodelay(&tcp, true);
    let _ = sockopt::set_socket_keepalive(&tcp, true);
}

/// Relays between a TCP socket and the framed channel until both directions have ended.
///
/// Dropping the future closes both sockets without an end frame, so both sides see a reset: a relay
/// that did not finish must not look finished.
/// is meant: a relay that was not allowed to finish must not look as if it had.
pub async fn relay(
    mut tcp: TcpStream,
    channel: Stream,
    counters: &Counters,
    turn: &Turn,
    cut: &CancellationToken,
) -> Outcome {
    prepare(&tcp);
    let watched = channel.as_fd().as_raw_fd();
    // SAFETY: the channel is closed when both its halves are dropped. They live as long as this
    // function's frame, beyond the last use of this.
    let watched = unsafe { BorrowedFd::borrow_raw(watched) };
    let (channel_in, channel_out) = tokio::io::split(channel);
    let mut frames = FrameWriter {
        writer: channel_out,
        inside: false,
    };
    let (tcp_in, tcp_out) = tcp.split();
    let incoming = Incoming::new(channel_in, watched);
    let ends = Ends::default();
    let outcome = tokio::select! {
        biased;
        () = cut.cancelled() => Outcome::Cut,
        outcome = up(tcp_in, &mut frames, &counters.from_tcp, turn, &ends) => outcome,
        outcome = down(incoming, tcp_out, &counters.to_tcp, turn, &ends) => outcome,
    };
    match outcome {
        Outcome::Finished => {
            let _ = sockopt::set_socket_linger(&tcp, None);
        }
        Outcome::TcpReset | Outcome::Cut => frames.try_reset().await,
        Outcome::ChannelReset | Outcome::ChannelLost => {}
    }
    outcome
}

/// From TCP into the channel. Returns when the relay is over, not when this direction is.
async fn up<W: AsyncWrite + Unpin>(
    mut tcp: tcp::ReadHalf<'_>,
    frames: &mut FrameWriter<W>,
    moved: &AtomicU64,
    turn: &Turn,
    ends: &Ends,
) -> Outcome {
    let mut behind = false;
    loop {
        let read = std::future::poll_fn(|cx| poll_tcp(cx, &mut tcp, LENGTH, &mut behind));
        let Ok(mut frame) = read.await else {
            return Outcome::TcpReset;
        };
        let payload = frame.len() - LENGTH;
        if payload == 0 {
            break;
        }
        frame[..LENGTH].copy_from_slice(&length(payload));
        moved.fetch_add(payload as u64, Ordering::Relaxed);
        match unless_reset(tcp.as_ref(), frames.write(&frame)).await {
            Some(Ok(())) => turn.used(payload).await,
            Some(Err(_)) => return ends.reach(Ends::CHANNEL_BROKEN).await,
            None => return Outcome::TcpReset,
        }
    }
    // After a write failed with a reset, reads report a clean end.
    if ends.have(Ends::TCP_BROKEN) {
        return Outcome::TcpReset;
    }
    match unless_reset(tcp.as_ref(), frames.write(&END)).await {
        Some(Ok(())) => {}
        Some(Err(_)) => return ends.reach(Ends::CHANNEL_BROKEN).await,
        None => return Outcome::TcpReset,
    }
    tokio::select! {
        biased;
        outcome = ends.reach(Ends::UP) => outcome,
        // TCP is not read now: this is how a reset is seen while down has nothing to write.
        _ = tcp.ready(Interest::ERROR) => Outcome::TcpReset,
    }
}

/// From the channel to TCP. Returns when the relay is over, not when this direction is: it
/// reads on after the end frame, to see the channel break.
async fn down<R: AsyncRead + Unpin>(
    mut channel: Incoming<'_, R>,
    mut tcp: tcp::WriteHalf<'_>,
    moved: &AtomicU64,
    turn: &Turn,
    ends: &Ends,
) -> Outcome {
    let mut parts = Parts::default();
    loop {
        let mut chunk = match channel.read().await {
            Ok(chunk) if !chunk.is_empty() => chunk,
            _ => return Outcome::ChannelLost,
        };
        loop {
            match parts.next(&mut chunk) {
                Ok(None) => break,
                Ok(Some(Part::Reset)) => return Outcome::ChannelReset,
                Ok(Some(Part::Bytes(bytes))) if !ends.have(Ends::DOWN) => {
                    let data = &chunk[bytes];
                    let written = tokio::select! {
                        biased;
                        written = tcp.write_all(data) => written,
                        outcome = channel.lost(&parts, &chunk) => return outcome,
                    };
                    if written.is_err() {
                        return ends.reach(Ends::TCP_BROKEN).await;
                    }
                    moved.fetch_add(data.len() as u64, Ordering::Relaxed);
                    turn.used(data.len()).await;
                }
                Ok(Some(Part::End)) if !ends.have(Ends::DOWN) => {
                    if tcp.shutdown().await.is_err() {
                        return ends.reach(Ends::TCP_BROKEN).await;
                    }
                    if let Some(outcome) = ends.mark(Ends::DOWN) {
                        return outcome;
                    }
                }
                Ok(Some(Part::Bytes(_) | Part::End)) => {
                    tracing::debug!("a frame after the end frame");
                    return Outcome::ChannelLost;
                }
                Err(error) => {
                    tracing::debug!(%error, "a channel is broken");
                    return Outcome::ChannelLost;
                }
            }
        }
    }
}

/// Runs `write` to its end. `None` if `from`, the source of the bytes, was reset while the write
/// waited for a reader; what could be written at once was written.
async fn unless_reset<T>(from: &TcpStream, write: impl Future<Output = T>) -> Option<T> {
    let write = async {
        tokio::select! {
            biased;
            written = write => Some(written),
            _ = from.ready(Interest::ERROR) => None,
        }
    };
    // A write that only waits for its turn in tokio must not count as waiting for a reader.
    tokio::task::unconstrained(write).await
}

/// Which directions are over, and how. Atomic only so that the future can move between
/// threads.
#[derive(Default)]
struct Ends(AtomicU8);

impl Ends {
    /// TCP ended and the end frame is written.
    const UP: u8 = 1;
    /// The end frame came and TCP's write side is shut down.
    const DOWN: u8 = 2;
    /// The channel cannot be written: up is over.
    const CHANNEL_BROKEN: u8 = 4;
    /// TCP cannot be written: down is over.
    const TCP_BROKEN: u8 = 8;

    fn have(&self, bit: u8) -> bool {
        self.0.load(Ordering::Relaxed) & bit != 0
    }

    /// Records `bit`; returns the outcome once both directions are over.
    fn mark(&self, bit: u8) -> Option<Outcome> {
        self.0.fetch_or(bit, Ordering::Relaxed);
        let up_is_over = self.have(Self::UP | Self::CHANNEL_BROKEN);
        let down_is_over = self.have(Self::DOWN | Self::TCP_BROKEN);
        if !up_is_over || !down_is_over {
            return None;
        }
        Some(if self.have(Self::TCP_BROKEN) {
            Outcome::TcpReset
        } else if self.have(Self::CHANNEL_BROKEN) {
            Outcome::ChannelLost
        } else {
            Outcome::Finished
        })
    }

    /// Records `bit` and returns the outcome, or never completes if the other direction returns it.
    async fn reach(&self, bit: u8) -> Outcome {
        match self.mark(bit) {
            Some(outcome) => outcome,
            None => std::future::pending().await,
        }
    }
}

/// The channel's write side.
struct FrameWriter<W> {
    writer: W,
    /// A frame was begun and not finished, so no other may begin.
    inside: bool,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    async fn write(&mut self, frame: &[u8]) -> io::Result<()> {
        self.inside = true;
        self.writer.write_all(frame).await?;
        self.inside = false;
        Ok(())
    }

    /// Writes a reset frame if that is possible without waiting. Otherwise the other side sees the
    /// channel end without an end frame, which means the same.
    async fn try_reset(mut self) {
        if self.inside {
            return;
        }
        let mut write = pin!(self.writer.write(&RESET));
        std::future::poll_fn(|cx| {
            let _ = write.as_mut().poll(cx);
            Poll::Ready(())
        })
        .await;
    }
}
