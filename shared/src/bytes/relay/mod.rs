//! Step 6 of the data flow: bytes, both ways, with half-close.
//!
//! Host and agent run the same relay between a TCP socket (a client's, or to the guest
//! program) and the framed channel. Two directions, *up* from TCP into the channel and *down*
//! from the channel to TCP, are polled concurrently in one future. Each ends on its own:
//!
//! | seen | said |
//! |---|---|
//! | end of TCP | end frame; down goes on |
//! | end frame | TCP's write side is shut down; up goes on |
//! | TCP was reset | reset frame |
//! | reset frame, or the channel ends or breaks before its end frame | TCP is reset |
//!
//! Invariants:
//! - TCP sees a clean end only after an end frame. The socket is armed (SO_LINGER 0) so that
//!   every other way to close it is a reset, also when the future is dropped or the process is
//!   killed; only [`Outcome::Finished`] disarms it;
//! - a reset is seen while a direction waits for a reader that reads nothing: that of TCP because
//!   its socket is watched, that of the channel because its hang-up is ([`incoming`]). What is held for
//!   that reader is lost then;
//! - a relay that moves much gives way to others ([`turn`]);
//! - who cannot write any more still reads to the end, so data that was under way before a
//!   failure is delivered. What the kernel could not deliver yet when a reset follows is
//!   lost, as with every TCP reset;
//! - at most one buffer a direction, and none while that direction waits for bytes: thousands of
//!   idle connections cost little, and a slow reader stops its writer. What many slow readers hold
//!   together is bounded ([`buffer`]).

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

/// Bytes moved so far; read by others while the relay runs.
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
    /// The TCP side was reset; the channel was told so.
    TcpReset,
    /// The channel said reset; the TCP side was reset.
    ChannelReset,
    /// The channel ended without its end frame or was broken; the TCP side was reset.
    ChannelLost,
    /// `cut` was cancelled; both sides were reset.
    Cut,
}

/// Makes closing `tcp` a reset, however it is closed: by its drop, or by the kernel when the
/// process is killed (SO_LINGER 0, socket(7)); has it send what is written at once (TCP_NODELAY, tcp(7));
/// and has the kernel ask a peer that is silent for long whether it is there (SO_KEEPALIVE, with the
/// system's times), since one may vanish without a word. [`relay`] does this first. A listener gives it to all that it accepts.
pub fn prepare(tcp: impl AsFd) {
    // Neither can fail on a TCP socket.
    let _ = sockopt::set_socket_linger(&tcp, Some(Duration::ZERO));
    let _ = sockopt::set_tcp_nodelay(&tcp, true);
    let _ = sockopt::set_socket_keepalive(&tcp, true);
}

/// Relays between a TCP socket and the framed channel until both directions have ended.
///
/// Dropping the future closes both sockets without an end frame: both sides see a reset. That
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
    // SAFETY: the channel is closed when both its halves are dropped, which live as long as this
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
    // After a reset that a write was told of, reads report a clean end.
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
        // Nobody reads TCP now: this is how a reset is seen while down has nothing to write.
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

/// Runs `write` to its end. `None` when `from`, where the bytes came from, was reset while it waits
/// for a reader; what could be written at once was.
async fn unless_reset<T>(from: &TcpStream, write: impl Future<Output = T>) -> Option<T> {
    let write = async {
        tokio::select! {
            biased;
            written = write => Some(written),
            _ = from.ready(Interest::ERROR) => None,
        }
    };
    // A write that waits for its turn with tokio, not for a reader, must not look like that.
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

    /// Notes `bit`; the outcome once both directions are over.
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

    /// Notes `bit` and returns the outcome, or leaves it to the other direction: then this
    /// never completes.
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

    /// Writes a reset frame if that can be done without waiting. If not, the other side sees
    /// the channel end without its end frame, which says the same.
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
