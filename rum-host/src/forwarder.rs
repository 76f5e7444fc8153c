//! Step 5 of the data flow: binds a host port, accepts, opens a channel to the agent for each
//! connection and hands both to the relay.
//!
//! A [`Forwarder`] owns one listening socket and one task, which owns the tasks of its
//! connections: nothing is detached. [`Forwarder::stop`] takes the socket out of the LISTEN
//! state before it returns, so that the next connect is refused and the next bind succeeds;
//! connections then have the drain time to finish and are reset after it.
//!
//! Invariants: the guest's program is dialled only because a client connected; a client whose
//! connection cannot be made is reset, never closed as if all were well; running out of
//! descriptors delays accepting and ends nothing: no client is accepted before there is room for
//! what leads on from there, see [`Reserve`].

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::Duration;

use rum_shared::channel::{self, Connected, DialStatus};
use rum_shared::relay::{self, Counters, Outcome};
use rum_shared::transport::Endpoint;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::agent::client::LinkState;
use crate::clock;
use crate::descriptors::{Reserve, Room, is_exhaustion};
use crate::plan::{GuestPort, HostAddr};
use crate::pool::Pool;

/// Connections that wait to be accepted; the kernel caps it at net.core.somaxconn.
const BACKLOG: u32 = 1024;
/// Time for the channel and the agent's dial together. The agent's own deadline is shorter,
/// so that its reason usually arrives first.
const OPEN_DEADLINE: Duration = Duration::from_secs(10);
/// Pause after an accept or a dial that failed for want of descriptors or memory: long enough not
/// to spin, short enough not to be noticed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why a host port could not be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody else listens there.
    #[error("the host port is taken")]
    InUse,
    /// Ports below `net.ipv4.ip_unprivileged_port_start` need CAP_NET_BIND_SERVICE.
    #[error("not allowed to bind a privileged host port")]
    Privileged,
    /// The address does not belong to this machine.
    #[error("the address is not one of this machine")]
    NoSuchAddress,
    /// No descriptors left, or another failure.
    #[error("cannot bind: {0}")]
    Other(io::Error),
}

impl From<io::Error> for BindError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::AddrInUse => Self::InUse,
            io::ErrorKind::PermissionDenied => Self::Privileged,
            io::ErrorKind::AddrNotAvailable => Self::NoSuchAddress,
            _ => Self::Other(error),
        }
    }
}

/// Opens channels to the agent, once there is one.
#[derive(Debug, Clone)]
pub struct Dialer {
    endpoint: Endpoint,
    pool: Pool,
    reserve: Reserve,
    link: watch::Receiver<LinkState>,
    successions: watch::Receiver<u64>,
}

impl Dialer {
    /// Dials `endpoint` whenever `link` says that an agent is there.
    /// What leads to an agent is reset when `successions` says that another one took its place.
    pub fn new(
        endpoint: Endpoint,
        link: watch::Receiver<LinkState>,
        successions: watch::Receiver<u64>,
    ) -> Self {
        Self {
            endpoint,
            pool: Pool::default(),
            reserve: Reserve::default(),
            link,
            successions,
        }
    }

    /// Keeps ready what makes a new connection faster. Never completes.
    pub async fn keep_ready(&self) {
        self.pool.keep(&self.endpoint, self.link.clone()).await;
    }

    /// A connection to `guest`, in `room`. When somebody else is quicker to use that, this waits for
    /// other room, as the client would have if it had not been accepted yet.
    async fn open(&mut self, guest: GuestPort, mut room: Room) -> Result<Connected, String> {
        loop {
            let tried = tokio::time::timeout(OPEN_DEADLINE, self.try_open(guest, room)).await;
            match tried {
                Ok(Ok(Ok(connected))) => return Ok(connected),
                Ok(Ok(Err(status))) => return Err(format!("the agent answered {status:?}")),
                Ok(Err(error)) if is_exhaustion(&error) => room = self.room().await,
                Ok(Err(error)) => return Err(format!("cannot reach the agent: {error}")),
                Err(_) => return Err(format!("no answer from the agent within {OPEN_DEADLINE:?}")),
            }
        }
    }

    /// While the agent is lost, or silent, this waits: it may be back soon, and some transports must
    /// not be dialled while the guest boots.
    async fn try_open(
        &mut self,
        guest: GuestPort,
        room: Room,
    ) -> io::Result<Result<Connected, DialStatus>> {
        if let Some(direct) = self.pool.connect(guest) {
            return Ok(Ok(Connected::Direct(direct)));
        }
        let up = self.link.wait_for(|state| state.may_dial(clock::now()));
        let up = up.await;
        up.map_err(|_| io::Error::other("rum is stopping"))?;
        // One that was ready and fails without an answer was made by an agent that is gone.
        if let Some(ready) = self.pool.channel()
            && let Ok(answer) = channel::open(ready, guest.0).await
        {
            return Ok(answer);
        }
        room.vacate();
        channel::dial(&self.endpoint, guest.0).await
    }

    /// Room, once there is some.
    async fn room(&self) -> Room {
        loop {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            if let Ok(room) = self.reserve.take() {
                return room;
            }
        }
    }
}

/// What a forward has done so far. Read at any time.
#[derive(Debug, Default)]
pub struct Stats {
    /// Connections that live.
    pub active: AtomicU32,
    /// Connections accepted.
    pub accepted: AtomicU64,
    /// Connections that could not be carried to the guest's program, and were reset.
    pub refused: AtomicU64,
    /// Whether connections wait because there is no descriptor or memory to accept them with.
    pub exhausted: AtomicBool,
    /// Bytes relayed.
    pub bytes: Counters,
}

/// A bound host port.
#[derive(Debug)]
pub struct Forwarder {
    guest: GuestPort,
    addr: HostAddr,
    inode: u64,
    listener: Arc<TcpListener>,
    stop: CancellationToken,
    drain: Arc<OnceLock<Duration>>,
    cut: CancellationToken,
    stats: Arc<Stats>,
}

/// The running half of a [`Forwarder`]: its accept loop and its connections.
#[derive(Debug)]
pub struct ForwardTask {
    listener: Arc<TcpListener>,
    guest: GuestPort,
    dialer: Dialer,
    stop: CancellationToken,
    /// Set when it is told to stop.
    drain: Arc<OnceLock<Duration>>,
    cut: CancellationToken,
    stats: Arc<Stats>,
}

impl Forwarder {
    /// Binds `host` and listens; returns the handle and the task to run. Cancelling `cut`
    /// resets all its connections.
    ///
    /// # Errors
    /// [`BindError`]. Must be called within a tokio runtime.
    pub fn bind(
        host: HostAddr,
        guest: GuestPort,
        dialer: &Dialer,
        cut: CancellationToken,
    ) -> Result<(Self, ForwardTask), BindError> {
        let socket = match host.0 {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        // Connections that still drain must not keep the port from being bound again.
        socket.set_reuseaddr(true)?;
        socket.bind(host.0)?;
        let listener = Arc::new(socket.listen(BACKLOG)?);
        // Whatever is accepted begins as a copy of it (sk_clone_lock, net/core/sock.c). From its
        // first moment on whatever ends a connection resets its client, but a clean end of the relay.
        relay::prepare(&*listener);
        let addr = HostAddr(listener.local_addr()?);
        let inode = rustix::fs::fstat(&*listener)
            .map_err(io::Error::from)?
            .st_ino;
        let stop = CancellationToken::new();
        let drain = Arc::new(OnceLock::new());
        let stats = Arc::new(Stats::default());
        let task = ForwardTask {
            listener: listener.clone(),
            guest,
            dialer: dialer.clone(),
            stop: stop.clone(),
            drain: drain.clone(),
            cut: cut.clone(),
            stats: stats.clone(),
        };
        let forwarder = Self {
            guest,
            addr,
            inode,
            listener,
            stop,
            drain,
            cut,
            stats,
        };
        Ok((forwarder, task))
    }

    /// Where it listens.
    pub fn addr(&self) -> HostAddr {
        self.addr
    }

    /// Where it leads.
    pub fn guest(&self) -> GuestPort {
        self.guest
    }

    /// The inode of its listening socket.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// What it has done.
    pub fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    /// Resets its connections once cancelled.
    pub fn cut(&self) -> &CancellationToken {
        &self.cut
    }

    /// Stops accepting, at once; connections that wait to be accepted are reset by the kernel,
    /// the others may go on for `drain`. Without this call, dropping it cuts them.
    pub fn stop(self, drain: Duration) {
        // Nobody else sets it.
        let _ = self.drain.set(drain);
        // Closing alone would wait for the task to be scheduled.
        let _ = rustix::net::shutdown(self.listener.as_fd(), rustix::net::Shutdown::Both);
        self.stop.cancel();
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl ForwardTask {
    /// Runs until the forwarder was stopped and its last connection has ended. Returns how
    /// many connections had to be cut when the drain time was over.
    pub async fn run(self) -> usize {
        let mut connections = JoinSet::new();
        self.accept(&mut connections).await;
        // Frees the port; the handle has dropped its own reference by now.
        drop(self.listener);
        let drained = async { while connections.join_next().await.is_some() {} };
        let time = self.drain.get().copied().unwrap_or_default();
        if tokio::time::timeout(time, drained).await.is_ok() {
            return 0;
        }
        let left = connections.len();
        self.cut.cancel();
        while connections.join_next().await.is_some() {}
        left
    }

    async fn accept(&self, connections: &mut JoinSet<()>) {
        loop {
            let accepted = poll_fn(|cx| {
                let polled = match self.dialer.reserve.take() {
                    Ok(place) => self.listener.poll_accept(cx).map_ok(|(it, _)| (it, place)),
                    Err(error) => Poll::Ready(Err(error)),
                };
                if polled.is_pending() {
                    // None is waiting any more.
                    self.stats.exhausted.store(false, Relaxed);
                }
                polled
            });
            let accepted = tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                Some(_) = connections.join_next() => continue,
                accepted = accepted => accepted,
            };
            match accepted {
                Ok((client, room)) => {
                    self.stats.accepted.fetch_add(1, Relaxed);
                    connections.spawn(connection(
                        client,
                        room,
                        self.guest,
                        self.dialer.clone(),
                        self.stats.clone(),
                        self.cut.clone(),
                    ));
                }
                // The listener was shut down by `stop`.
                Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => return,
                Err(error) if is_exhaustion(&error) => {
                    if somebody_waits(&self.listener) {
                        // What is ready for clients to come must not keep this one out.
                        self.dialer.pool.clear();
                        if !self.stats.exhausted.swap(true, Relaxed) {
                            tracing::warn!(
                                guest_port = self.guest.0,
                                %error,
                                "cannot accept; connections wait until there is room"
                            );
                        }
                    }
                    tokio::select! {
                        () = self.stop.cancelled() => return,
                        // One that has ended leaves room.
                        Some(_) = connections.join_next() => {}
                        () = tokio::time::sleep(ACCEPT_PAUSE) => {}
                    }
                }
                // A connection that failed before it was accepted (accept(2)): not ours.
                Err(error) => tracing::debug!(guest_port = self.guest.0, %error, "accept"),
            }
        }
    }
}

/// Whether a client is to be accepted.
fn somebody_waits(listener: &TcpListener) -> bool {
    let mut fds = [PollFd::new(listener, PollFlags::IN)];
    matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1))
}

/// Counts a connection for as long as it lives.
struct Active(Arc<Stats>);

impl Active {
    fn new(stats: Arc<Stats>) -> Self {
        stats.active.fetch_add(1, Relaxed);
        Self(stats)
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Relaxed);
    }
}

async fn connection(
    client: TcpStream,
    room: Room,
    guest: GuestPort,
    mut dialer: Dialer,
    stats: Arc<Stats>,
    cut: CancellationToken,
) {
    let _active = Active::new(stats.clone());
    let opened = tokio::select! {
        () = cut.cancelled() => Err("cut".to_owned()),
        opened = dialer.open(guest, room) => opened,
    };
    let outcome = match opened {
        Ok(Connected::Framed(channel)) => {
            dialer.successions.mark_unchanged();
            tokio::select! {
                outcome = relay::relay(client, channel, &stats.bytes, &cut) => outcome,
                // Dropping a relay resets both its ends.
                Ok(()) = dialer.successions.changed() => Outcome::ChannelLost,
            }
        }
        Ok(Connected::Direct(guest)) => {
            relay::relay_direct(client, guest, &stats.bytes, &cut).await
        }
        Err(reason) => {
            stats.refused.fetch_add(1, Relaxed);
            tracing::debug!(guest_port = guest.0, reason, "connection refused");
            return;
        }
    };
    tracing::trace!(guest_port = guest.0, ?outcome, "connection ended");
}

#[cfg(test)]
mod tests;
