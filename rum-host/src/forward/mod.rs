//! Step 5 of the data flow: binds host addresses, accepts clients, opens a channel to the agent for
//! each and passes both to the relay.
//!
//! A [`Forwarder`] leads to one [`Destination`]. It owns its listening sockets, and one task that
//! owns the tasks of its connections: nothing is detached. [`Forwarder::close`] takes the sockets
//! out of the LISTEN state before it returns, so the next connect is refused and the next bind
//! succeeds. Connections outlive their listener, for as long as their two ends want or the caller
//! allows; a port that is bound again still has its old ones.
//!
//! Invariants:
//! - The guest's program is dialled only because a client connected.
//! - A client whose connection cannot be made is reset, never closed cleanly.
//! - A lack of descriptors delays accepting and ends nothing: no client is accepted before the
//!   descriptors for its onward connection are reserved, see
//!   `descriptors::Reserve`.

use std::future::{pending, poll_fn};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::bind_failure::BindFailure;
use self::bound::Bound;
use self::connection::{Connection, Waiting};
pub use self::dialer::{Dialer, LINK_DEADLINE};
pub use self::refusal::Refusal;
pub use self::stats::Stats;
use crate::clock;
use crate::descriptors::{Room, is_exhaustion};
use crate::plan::{Destination, HostAddr};

pub mod bind_failure;
mod bound;
mod connection;
mod dialer;
pub mod holder;
pub(crate) mod pool;
mod refusal;
mod stats;

/// Pause after an accept or a dial that failed for lack of descriptors or memory: long enough not
/// to spin, short enough not to be noticed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Instructions for the task.
#[derive(Debug, Clone, Default)]
struct Orders {
    /// The addresses to accept on.
    bound: Vec<Bound>,
    /// When to reset the connections.
    cut_at: Option<Instant>,
    /// The forwarder is gone; these are the last orders.
    last: bool,
}

/// A forward: bound, or with connections that outlive it, or both. Clones share it.
#[derive(Debug, Clone)]
pub struct Forwarder {
    guest: Destination,
    dialer: Dialer,
    orders: watch::Sender<Orders>,
    cut: CancellationToken,
    stats: Arc<Stats>,
}

/// The running half of a [`Forwarder`]: its accept loop and its connections.
#[derive(Debug)]
pub struct ForwardTask {
    guest: Destination,
    dialer: Dialer,
    orders: watch::Receiver<Orders>,
    cut: CancellationToken,
    stats: Arc<Stats>,
    /// Notified when the guest's program has accepted one more client.
    served: Arc<Notify>,
    /// Index of the listener that is polled first. It rotates, so that no listener starves the
    /// others.
    first: usize,
    /// Whether the log already reports that clients wait in the kernel's queue.
    said: bool,
}

impl Forwarder {
    /// A forwarder without an address. Cancelling `cut` resets all its connections.
    pub fn new(guest: Destination, dialer: &Dialer, cut: CancellationToken) -> Self {
        Self {
            guest,
            dialer: dialer.clone(),
            orders: watch::Sender::default(),
            cut,
            stats: Arc::default(),
        }
    }

    /// The task to run while the forward is bound or has connections. Once it has ended, a later
    /// bind needs a new one.
    pub fn task(&self) -> ForwardTask {
        ForwardTask {
            guest: self.guest,
            dialer: self.dialer.clone(),
            orders: self.orders.subscribe(),
            cut: self.cut.clone(),
            stats: self.stats.clone(),
            served: Arc::default(),
            first: 0,
            said: false,
        }
    }

    /// Binds one more address and listens. `one_of_many` restricts `::` to IPv6. `keepalive` is as
    /// for [`Self::keep_alive`]. Returns the inode of the listening socket. Cancels a pending reset
    /// of older connections.
    ///
    /// # Errors
    /// [`BindFailure`]. Must be called within a tokio runtime.
    pub fn bind(
        &self,
        at: HostAddr,
        one_of_many: bool,
        keepalive: Option<Duration>,
    ) -> Result<u64, BindFailure> {
        let bound = Bound::new(at, one_of_many, keepalive)?;
        let inode = bound.inode;
        self.orders.send_modify(|orders| {
            orders.bound.push(bound);
            orders.cut_at = None;
        });
        Ok(inode)
    }

    /// The address that was bound first.
    pub fn addr(&self) -> Option<HostAddr> {
        self.orders.borrow().bound.first().map(|bound| bound.at)
    }

    /// All bound addresses.
    pub fn addresses(&self) -> Vec<HostAddr> {
        self.orders.borrow().bound.iter().map(|b| b.at).collect()
    }

    /// The inodes of the listening sockets.
    pub fn inodes(&self) -> Vec<u64> {
        self.orders.borrow().bound.iter().map(|b| b.inode).collect()
    }

    /// The destination in the guest.
    pub fn guest(&self) -> Destination {
        self.guest
    }

    /// Its counters.
    pub fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    /// Resets all connections when cancelled.
    pub fn cut(&self) -> &CancellationToken {
        &self.cut
    }

    /// Sets how long clients that connect from now on may be idle before keepalive probes start;
    /// `None`: the system's value.
    pub fn keep_alive(&self, silence: Option<Duration>) {
        for bound in &self.orders.borrow().bound {
            if let Err(error) = bound.keep_alive(silence) {
                tracing::warn!(%error, host = %bound.at, "cannot set the keepalive");
            }
        }
    }

    /// Stops accepting at `at` at once; the kernel resets connections that wait to be accepted.
    /// Returns the inode of the listening socket.
    pub fn unbind(&self, at: IpAddr) -> Option<u64> {
        let mut closed = None;
        self.orders.send_if_modified(|orders| {
            let index = orders.bound.iter().position(|bound| bound.at.0.ip() == at);
            closed = index.map(|index| orders.bound.remove(index));
            closed.is_some()
        });
        let closed = closed?;
        closed.shut();
        Some(closed.inode)
    }

    /// Stops accepting at all addresses, as [`Self::unbind`] does. Connections may go on for
    /// `drain`; with `None`, for as long as their two ends want.
    pub fn close(&self, drain: Option<Duration>) {
        let mut closed = Vec::new();
        self.orders.send_modify(|orders| {
            closed = std::mem::take(&mut orders.bound);
            orders.cut_at = drain.map(|drain| clock::now() + drain);
        });
        closed.iter().for_each(Bound::shut);
    }

    /// Like [`Self::close`], but final. A forwarder that is dropped without this call resets its
    /// connections.
    pub fn stop(self, drain: Duration) {
        self.close(Some(drain));
        self.orders.send_modify(|orders| orders.last = true);
    }
}

/// What the task handles next.
enum Turn {
    /// There are new orders.
    Ordered,
    /// The forwarder is gone.
    Alone,
    /// A connection has ended.
    Ended,
    /// The connections' time has run out.
    Over,
    Accepted(io::Result<(TcpStream, Room)>),
}

impl ForwardTask {
    /// Runs while the forward is bound or has connections. Returns the number of connections that
    /// had to be reset.
    pub async fn run(mut self) -> usize {
        let mut connections = JoinSet::new();
        let mut news = self.orders.clone();
        let mut orders = news.borrow_and_update().clone();
        let mut alone = false;
        while !orders.bound.is_empty() || !connections.is_empty() {
            let turn = tokio::select! {
                biased;
                changed = news.changed(), if !alone => match changed {
                    Ok(()) => Turn::Ordered,
                    Err(_) => Turn::Alone,
                },
                Some(_) = connections.join_next() => Turn::Ended,
                () = clock::sleep_until(orders.cut_at) => Turn::Over,
                accepted = self.accept(&orders.bound) => Turn::Accepted(accepted),
            };
            match turn {
                Turn::Ordered => orders = news.borrow_and_update().clone(),
                Turn::Alone if orders.last => alone = true,
                Turn::Ended => {}
                Turn::Alone | Turn::Over => {
                    let left = connections.len();
                    self.cut.cancel();
                    while connections.join_next().await.is_some() {}
                    return left;
                }
                Turn::Accepted(Ok((client, room))) => {
                    self.stats.accepted.fetch_add(1, Relaxed);
                    connections.spawn(self.connection(client, room).run());
                }
                Turn::Accepted(Err(error)) => {
                    self.failed(&error, &orders.bound);
                    tokio::select! {
                        Ok(()) = news.changed() => orders = news.borrow_and_update().clone(),
                        // An ended connection frees descriptors.
                        Some(_) = connections.join_next() => {}
                        () = tokio::time::sleep(ACCEPT_PAUSE) => {}
                    }
                }
            }
        }
        0
    }

    /// The next client, once there is one and its descriptors are reserved. Cancel-safe.
    async fn accept(&mut self, bound: &[Bound]) -> io::Result<(TcpStream, Room)> {
        if bound.is_empty() {
            return pending().await;
        }
        loop {
            let waiting = self.stats.waiting.load(Relaxed) as usize;
            self.said &= waiting > 0;
            if self.dialer.waiting.has_room(waiting) {
                break;
            }
            if !std::mem::replace(&mut self.said, true) {
                tracing::warn!(
                    guest = %self.guest,
                    waiting,
                    "its program does not accept its connections; more wait in the kernel's queue"
                );
            }
            self.served.notified().await;
        }
        self.first = self.first.wrapping_add(1);
        poll_fn(|cx| {
            let room = match self.dialer.reserve.take() {
                Ok(room) => room,
                Err(error) => return Poll::Ready(Err(error)),
            };
            for turn in 0..bound.len() {
                let listener = &bound[self.first.wrapping_add(turn) % bound.len()].listener;
                match listener.poll_accept(cx) {
                    Poll::Ready(Ok((client, _))) => return Poll::Ready(Ok((client, room))),
                    // The connection failed before it was accepted (accept(2)); the listener is
                    // fine.
                    Poll::Ready(Err(error)) if is_passing(&error) => {
                        tracing::debug!(guest = %self.guest, %error, "accept");
                        cx.waker().wake_by_ref();
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => {}
                }
            }
            // No client waits any more.
            self.stats.exhausted.store(false, Relaxed);
            Poll::Pending
        })
        .await
    }

    /// Handles a failed accept.
    fn failed(&self, error: &io::Error, bound: &[Bound]) {
        if !is_exhaustion(error) || !bound.iter().any(Bound::somebody_waits) {
            return;
        }
        // Channels kept ready for later clients must not keep this one out.
        self.dialer.pool.clear();
        if !self.stats.exhausted.swap(true, Relaxed) {
            tracing::warn!(
                guest = %self.guest,
                %error,
                "cannot accept; connections wait until there is room"
            );
        }
    }

    fn connection(&self, client: TcpStream, room: Room) -> Connection {
        let (room_for_all, served) = (self.dialer.waiting.clone(), self.served.clone());
        Connection {
            client,
            room,
            waiting: Waiting::new(self.stats.clone(), room_for_all, served),
            guest: self.guest,
            dialer: self.dialer.clone(),
            stats: self.stats.clone(),
            cut: self.cut.clone(),
        }
    }
}

/// Whether accepting may go on at once: the error is neither exhaustion nor a listener that was
/// shut down.
fn is_passing(error: &io::Error) -> bool {
    !is_exhaustion(error) && error.raw_os_error() != Some(Errno::INVAL.raw_os_error())
}

#[cfg(test)]
mod tests;
