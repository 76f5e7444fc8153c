//! Step 5 of the data flow, the fast path: sockets and channels that are ready before a client
//! comes.
//!
//! A socket belongs to the network namespace in which it was created, whichever process holds it.
//! So an agent that shares our kernel hands over unconnected TCP sockets, and a new client costs
//! one connect(2) here instead of a round trip through the agent. For an agent in a VM, a few
//! channels are dialled ahead, so a new client only waits for its port to travel there and the
//! answer to travel back.
//!
//! Invariants:
//! - The pool is only a shortcut. Its sockets try the guest's IPv4 loopback, where nearly every
//!   listener can be reached. If a socket or a channel fails, the agent is asked as usual, and
//!   gives the reason.
//! - It holds fewer than [`LOW`] + [`rum_shared::bytes::handover::OFFER`] sockets and at most
//!   [`CHANNELS`] channels.
//! - Channels to a lost agent are not used for its successor.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rum_shared::bytes::handover;
use rum_shared::transport::{Endpoint, Service, Stream, Transport};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};

use crate::plan::GuestPort;
use crate::stream::client::LinkState;

/// Refill threshold, in sockets.
const LOW: usize = handover::OFFER / 2;
/// Channels kept ready: enough for the clients that may come within the time of one dial, a few
/// milliseconds.
pub const CHANNELS: usize = 4;

/// The ready sockets and channels. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Pool(Arc<Inner>);

/// Result of [`Pool::connect`].
#[derive(Debug)]
pub enum Dialled {
    /// The connection is established.
    Connected(TcpStream),
    /// The listener's accept queue is full.
    Waiting(Waiting),
}

/// A connection that the kernel is still trying to establish.
#[derive(Debug)]
pub struct Waiting(TcpStream);

impl Waiting {
    /// Waits as long as the kernel tries.
    ///
    /// # Errors
    /// As connect(2): ECONNREFUSED, ETIMEDOUT.
    pub async fn connected(self) -> io::Result<TcpStream> {
        self.0.writable().await?;
        match self.0.take_error()? {
            None if is_apart(&self.0) => Ok(self.0),
            None => Err(Errno::CONNREFUSED.into()),
            Some(error) => Err(error),
        }
    }
}

/// Whether `tcp` is not connected to itself, as can happen on a port without a listener (RFC 9293,
/// 3.5, simultaneous open).
fn is_apart(tcp: &TcpStream) -> bool {
    matches!((tcp.local_addr(), tcp.peer_addr()), (Ok(local), Ok(peer)) if local != peer)
}

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    /// Notified when a socket or a channel was taken.
    taken: Notify,
}

#[derive(Debug, Default)]
struct State {
    sockets: Vec<OwnedFd>,
    channels: Vec<Stream>,
}

impl Pool {
    /// Connects to `guest` on the guest's IPv4 loopback, if a socket is ready. Over loopback this
    /// completes at once, unless the listener's accept queue is full.
    pub fn connect(&self, guest: GuestPort) -> Option<Dialled> {
        let socket = self.state().sockets.pop()?;
        self.0.taken.notify_one();
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, guest.0));
        match rustix::net::connect(&socket, &addr) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(_) => return None,
        }
        let tcp = TcpStream::from_std(socket.into()).ok()?;
        if tcp.peer_addr().is_ok() {
            return is_apart(&tcp).then_some(Dialled::Connected(tcp));
        }
        // Refused, or waiting for room in the accept queue.
        match tcp.take_error() {
            Ok(None) => Some(Dialled::Waiting(Waiting(tcp))),
            _ => None,
        }
    }

    /// A channel whose header has not been sent. The agent was there a moment ago; its answer shows
    /// whether it still is.
    pub fn channel(&self) -> Option<Stream> {
        let mut state = self.state();
        let channel = std::iter::from_fn(|| state.channels.pop()).find(is_quiet)?;
        self.0.taken.notify_one();
        Some(channel)
    }

    /// Drops everything. The pool is filled again at the agent's next sign of life.
    pub fn clear(&self) {
        *self.state() = State::default();
    }

    /// Keeps the pool filled through `transport`, for ever. Cancel-safe.
    pub async fn keep(&self, transport: &Transport, mut link: watch::Receiver<LinkState>) {
        let mut lost = link.clone();
        loop {
            // The sender is gone: rum is stopping, and the owner of this future will drop it.
            let Ok(_) = link.wait_for(|state| *state != LinkState::Down).await else {
                return std::future::pending().await;
            };
            tokio::select! {
                biased;
                _ = lost.wait_for(|state| *state == LinkState::Down) => {}
                () = self.fill_again(transport, &mut link) => {}
            }
            // These channels lead to an agent that may be gone.
            self.state().channels.clear();
        }
    }

    /// Refills the pool after each use and at each sign of life, until the sender of `link` is gone.
    async fn fill_again(&self, transport: &Transport, link: &mut watch::Receiver<LinkState>) {
        loop {
            link.mark_unchanged();
            self.state().channels.retain(is_quiet);
            if let Err(error) = self.fill(transport).await {
                tracing::debug!(%error, "nothing can be made ready for clients to come");
            }
            tokio::select! {
                () = self.0.taken.notified() => {}
                changed = link.changed() => if changed.is_err() {
                    return;
                }
            }
        }
    }

    async fn fill(&self, transport: &Transport) -> io::Result<()> {
        if let Endpoint::Unix { .. } = transport.endpoint() {
            if self.state().sockets.len() < LOW {
                let mut sockets = handover::request(transport).await?;
                // Only this function adds sockets, and `request` returns at most one offer, so the
                // bound holds.
                self.state().sockets.append(&mut sockets);
            }
            return Ok(());
        }
        while self.state().channels.len() < CHANNELS {
            let channel = transport.dial(Service::Channel).await?;
            self.state().channels.push(channel);
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No operation under the lock can be left half done.
        let state = self.0.state.lock();
        state.unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a channel without a header is still silent: no EOF and no byte arrived.
fn is_quiet(channel: &Stream) -> bool {
    let mut fds = [PollFd::new(channel, PollFlags::IN | PollFlags::RDHUP)];
    matches!(poll(&mut fds, Some(&Timespec::default())), Ok(0))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{UnixListener, UnixStream};

    use super::*;
    use crate::clock;

    /// A `CONNECT` device whose connections all end here.
    struct Device {
        _dir: tempfile::TempDir,
        listener: UnixListener,
        transport: Transport,
        link: watch::Sender<LinkState>,
        pool: Pool,
    }

    impl Device {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let socket = dir.path().join("vm");
            Self {
                listener: UnixListener::bind(&socket).unwrap(),
                transport: Endpoint::Connect { socket }.into(),
                _dir: dir,
                link: watch::channel(LinkState::Down).0,
                pool: Pool::default(),
            }
        }

        fn up(&self) {
            self.link.send_replace(LinkState::Streaming(clock::now()));
        }

        /// Answers the dial of a channel.
        async fn dialled(&self) -> UnixStream {
            self.answers(Service::Channel).await
        }

        async fn answers(&self, service: Service) -> UnixStream {
            let (mut stream, _) = self.listener.accept().await.unwrap();
            let expected = format!("CONNECT {}\n", service.port());
            let mut asked = vec![0; expected.len()];
            stream.read_exact(&mut asked).await.unwrap();
            assert_eq!(asked, expected.as_bytes());
            stream.write_all(b"OK 7\n").await.unwrap();
            stream
        }

        /// Runs the pool until `done`.
        async fn keeping<T>(&self, done: impl Future<Output = T>) -> T {
            tokio::select! {
                () = self.pool.keep(&self.transport, self.link.subscribe()) => unreachable!(),
                done = done => done,
            }
        }

        async fn until(&self, what: impl Fn() -> bool) {
            while !what() {
                tokio::task::yield_now().await;
            }
        }

        fn ready(&self) -> usize {
            self.pool.state().channels.len()
        }

        /// Fills the pool. Returns the far ends of its channels.
        async fn filled(&self) -> Vec<UnixStream> {
            let mut ends = vec![];
            for _ in 0..CHANNELS {
                ends.push(self.dialled().await);
            }
            self.until(|| self.ready() == CHANNELS).await;
            ends
        }
    }

    #[tokio::test]
    async fn channels_are_dialled_ahead_and_replaced() {
        let device = Device::new();
        device.up();
        let mut ends = device.keeping(device.filled()).await;
        let mut channel = device.pool.channel().unwrap();
        channel.write_all(b"!").await.unwrap();
        // The newest channel is used first.
        assert_eq!(ends.pop().unwrap().read_u8().await.unwrap(), b'!');
        let more = async {
            ends.push(device.dialled().await);
            device.until(|| device.ready() == CHANNELS).await;
        };
        device.keeping(more).await;
    }

    #[tokio::test]
    async fn what_has_ended_or_speaks_is_not_offered() {
        let device = Device::new();
        device.up();
        let mut ends = device.keeping(device.filled()).await;
        drop(ends.pop());
        ends.last_mut().unwrap().write_all(b"?").await.unwrap();
        assert!(device.pool.channel().is_some());
        assert_eq!(device.ready(), 1);
    }

    #[tokio::test]
    async fn those_of_a_lost_agent_are_not_for_the_next() {
        let device = Device::new();
        device.up();
        let lost = async {
            let ends = device.filled().await;
            device.link.send_replace(LinkState::Down);
            device.until(|| device.ready() == 0).await;
            assert!(device.pool.channel().is_none());
            device.up();
            (ends, device.filled().await)
        };
        let (_lost, mut next) = device.keeping(lost).await;
        let mut channel = device.pool.channel().unwrap();
        channel.write_all(b"!").await.unwrap();
        assert_eq!(next.pop().unwrap().read_u8().await.unwrap(), b'!');
    }

    #[tokio::test]
    async fn a_silent_agent_is_not_dialled() {
        let device = Device::new();
        let answer = device.answers(Service::Rpc);
        let (_rpc, _answered) = tokio::join!(device.transport.dial(Service::Rpc), answer);
        device.up();
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(60)).await;
        let dialled = async {
            tokio::select! {
                biased;
                _ = device.dialled() => panic!("dialled"),
                () = async { for _ in 0..100 { tokio::task::yield_now().await } } => {}
            }
        };
        device.keeping(dialled).await;
    }
}
