//! The relay between two TCP sockets on one kernel: no frames, since TCP itself distinguishes an
//! end from a reset.
//!
//! A direction copies, which is fastest for what fits into a buffer. Once a buffer was full it uses
//! [`super::pipe`], until little arrives at once.
//!
//! Each direction ends on its own: at the end of its source it shuts down the other socket's write
//! side. A reset of either socket resets the other. A socket that can no longer be written is still
//! read to its end, so data under way is delivered first. A reset is also seen while a direction
//! waits for a reader that does not read: its data is lost then, as with every TCP reset.

use std::io::{self, ErrorKind};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;

use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::{TcpStream, tcp};
use tokio_util::sync::CancellationToken;

use super::buffer::{self, Buffer};
use super::pipe::{POOL, Pipe};
use super::turn::Turn;
use super::{Counters, Outcome, prepare, unless_reset};

/// Bytes of one read at which a direction switches to a pipe: a full buffer.
const MUCH: usize = buffer::SIZE;
/// Bytes of one read below which a direction copies again: a splice costs more than it saves.
const FEW: usize = 32 * 1024;

/// How one direction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The end was read and passed on.
    Clean,
    /// The socket written to is broken.
    Broken,
    /// The socket read from was reset.
    Reset,
}

/// Relays between `client` and `guest` until both directions have ended, or until `cut`. Like
/// [`super::relay`], every end but [`Outcome::Finished`] resets both. `client` must have been
/// prepared when it was accepted ([`super::prepare`]).
pub async fn relay_direct(
    mut client: TcpStream,
    mut guest: TcpStream,
    counters: &Counters,
    turn: &Turn,
    cut: &CancellationToken,
) -> Outcome {
    prepare(&guest);
    let outcome = {
        let shared = Shared::default();
        let (mut client_in, mut client_out) = client.split();
        let (mut guest_in, mut guest_out) = guest.split();
        let mut up = pin!(pump(
            &mut client_in,
            &mut guest_out,
            &counters.from_tcp,
            &shared,
            turn
        ));
        let mut down = pin!(pump(
            &mut guest_in,
            &mut client_out,
            &counters.to_tcp,
            &shared,
            turn
        ));
        let first = tokio::select! {
            biased;
            () = cut.cancelled() => return Outcome::Cut,
            end = &mut up => (Side::Client, end),
            end = &mut down => (Side::Guest, end),
        };
        match first {
            (side, End::Reset) => side.reset(),
            (Side::Client, end) => {
                tokio::select! {
                    biased;
                    () = cut.cancelled() => Outcome::Cut,
                    last = down => outcome(end, Side::Guest, last),
                }
            }
            (Side::Guest, end) => {
                tokio::select! {
                    biased;
                    () = cut.cancelled() => Outcome::Cut,
                    last = up => outcome(end, Side::Client, last),
                }
            }
        }
    };
    if outcome == Outcome::Finished {
        for socket in [&client, &guest] {
            let _ = rustix::net::sockopt::set_socket_linger(socket, None);
        }
    }
    outcome
}

/// State that the two directions share.
#[derive(Debug, Default)]
struct Shared {
    /// One direction has read the end of its socket.
    ended: AtomicBool,
    /// A write of one direction failed with a reset, after which a read of the other reports an
    /// end.
    reset: AtomicBool,
}

/// Which socket a direction reads from.
#[derive(Debug, Clone, Copy)]
enum Side {
    Client,
    Guest,
}

impl Side {
    /// The outcome when this socket was reset.
    fn reset(self) -> Outcome {
        match self {
            Self::Client => Outcome::TcpReset,
            Self::Guest => Outcome::ChannelReset,
        }
    }
}

/// The outcome when the last direction, which reads from `side`, has ended as well.
fn outcome(first: End, side: Side, last: End) -> Outcome {
    match (first, last, side) {
        (End::Clean, End::Clean, _) => Outcome::Finished,
        (_, End::Reset, side) => side.reset(),
        // The socket that could not be written is the other one, or was before.
        (_, _, Side::Client) => Outcome::ChannelReset,
        (_, _, Side::Guest) => Outcome::TcpReset,
    }
}

/// One direction. It watches for a reset on the socket that it does not use at the moment: on the
/// one that it writes to, since the direction that reads from it may be over, and, while it waits
/// to write, on the one that it reads from.
async fn pump(
    from: &mut tcp::ReadHalf<'_>,
    to: &mut tcp::WriteHalf<'_>,
    moved: &AtomicU64,
    shared: &Shared,
    turn: &Turn,
) -> End {
    let mut busy = None;
    let mut behind = false;
    loop {
        let read = tokio::select! {
            biased;
            read = Load::read(from, busy.is_some(), &mut behind) => read,
            _ = to.ready(Interest::ERROR) => {
                // Bytes that arrived can no longer be delivered.
                return End::Broken;
            }
        };
        let Ok(load) = read else {
            return End::Reset;
        };
        let len = load.len();
        if len == 0 {
            if shared.reset.load(Ordering::Relaxed) {
                return End::Reset;
            }
            if shared.ended.swap(true, Ordering::Relaxed) {
                // Both sockets are read to their ends: closing them completes the rest.
                return End::Clean;
            }
            return match to.shutdown().await {
                Ok(()) => End::Clean,
                Err(_) => End::Broken,
            };
        }
        if len < FEW {
            busy = None;
        } else if len >= MUCH && busy.is_none() {
            busy = Some(POOL.busy());
        }
        match unless_reset((*from).as_ref(), load.write_all(to)).await {
            Some(Ok(())) => {}
            Some(Err(error)) => {
                // EPIPE: the end came before the reset and has to be passed on (tcp_reset).
                let after_end = error.kind() == ErrorKind::BrokenPipe;
                shared.reset.store(!after_end, Ordering::Relaxed);
                return End::Broken;
            }
            None => return End::Reset,
        }
        moved.fetch_add(len as u64, Ordering::Relaxed);
        turn.used(len).await;
    }
}

/// Bytes that were read and have to be written.
enum Load {
    Copied(Buffer),
    Piped(Pipe),
}

impl Load {
    /// Reads what is available, in bulk into a pipe if there is one.
    async fn read(
        from: &mut tcp::ReadHalf<'_>,
        in_bulk: bool,
        behind: &mut bool,
    ) -> io::Result<Self> {
        std::future::poll_fn(|cx| {
            if in_bulk {
                match POOL.fill((*from).as_ref()) {
                    Ok(Some(pipe)) if pipe.len() > 0 => return Poll::Ready(Ok(Self::Piped(pipe))),
                    Err(error) if error.kind() != ErrorKind::WouldBlock => {
                        return Poll::Ready(Err(error));
                    }
                    // A read waits, takes what a splice cannot, and distinguishes the end from an
                    // urgent byte.
                    Ok(_) | Err(_) => {}
                }
            }
            buffer::poll_tcp(cx, from, 0, behind).map_ok(Self::Copied)
        })
        .await
    }

    fn len(&self) -> usize {
        match self {
            Self::Copied(buffer) => buffer.len(),
            Self::Piped(pipe) => pipe.len(),
        }
    }

    async fn write_all(self, to: &mut tcp::WriteHalf<'_>) -> io::Result<()> {
        match self {
            Self::Copied(buffer) => to.write_all(&buffer).await,
            Self::Piped(pipe) => pipe.write_all((*to).as_ref()).await,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use rustix::net::SendFlags;

    use super::super::tests::tcp_pair;
    use super::*;

    /// At an urgent byte, once it has arrived, splice(2) returns the same as at the end
    /// (tcp_splice_read, net/ipv4/tcp.c).
    #[tokio::test]
    async fn an_urgent_byte_is_no_end() {
        let (mut client, mut near) = tcp_pair().await;
        client.try_write(b"abc").unwrap();
        rustix::net::send(&client, b"!", SendFlags::OOB).unwrap();
        client.try_write(b"def").unwrap();
        client.shutdown().await.unwrap();
        let (mut from, _to) = near.split();
        let (mut behind, mut lengths) = (false, vec![]);
        let _busy = POOL.busy();
        while lengths.last() != Some(&0) {
            let load = Load::read(&mut from, true, &mut behind).await.unwrap();
            lengths.push(load.len());
        }
        assert_eq!(lengths, [3, 3, 0]);
    }
}
