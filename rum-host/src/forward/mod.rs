//! Step 5 of the data flow: binds host addresses, accepts, opens a channel to the agent for each
//! connection and hands both to the relay.
//!
//! A [`Forwarder`] leads to one [`Destination`]. It owns its listening sockets, and one task that owns the
//! tasks of its connections: nothing is detached. [`Forwarder::close`] takes the sockets out of the
//! LISTEN state before it returns, so that the next connect is refused and the next bind succeeds.
//! Connections are their two ends' own: they go on for as long as those want, or as the caller lets
//! them; a port that is bound again has them as before.
//!
//! Invariants: the guest's program is dialled only because a client connected; a client whose
//! connection cannot be made is reset, never closed as if all were well; running out of
//! descriptors delays accepting and ends nothing: no client is accepted before there is room for
//! what leads on from there, see [`Reserve`](crate::descriptors::Reserve).

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
pub use self::dialer::{Dialer, LINK_DEADLINE, Refusal};
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
mod stats;

/// Pause after an accept or a dial that failed for want of descriptors or memory: long enough not
/// to spin, short enough not to be noticed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What the task is to do.
#[derive(Debug, Clone, Default)]
struct Orders {
    /// Where to accept.
    bound: Vec<Bound>,
    /// When the connections are cut.
    cut_at: Option<Instant>,
    /// Nobody gives orders any more; these are the last.
    last: bool,
}

/// A forward: bound, or with connections that live on, or both. Clones are the same one.
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
    /// One client fewer waits to be accepted by the guest's program.
    served: Arc<Notify>,
    /// The listener that is looked at first: none keeps the others from their turn.
    first: usize,
    /// It was said that clients wait in the kernel's queue.
    said: bool,
}

impl Forwarder {
    /// One that is bound nowhere yet. Cancelling `cut` resets all its connections.
    pub fn new(guest: Destination, dialer: &Dialer, cut: CancellationToken) -> Self {
        Self {
            guest,
            dialer: dialer.clone(),
            orders: watch::Sender::default(),
            cut,
            stats: Arc::default(),
        }
    }

    /// What is to run for as long as it is bound or has connections. When that has ended, it has to
    /// be made anew for what is bound afterwards.
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

    /// Binds one more address and listens; whether it is `one_of_many`, so that `::` is IPv6 alone.
    /// `keepalive` is as for [`Self::keep_alive`]. Returns the inode of the listening socket. Connections that live are no longer to be cut.
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

    /// All addresses that are bound.
    pub fn addresses(&self) -> Vec<HostAddr> {
        self.orders.borrow().bound.iter().map(|b| b.at).collect()
    }

    /// The inodes of its listening sockets.
    pub fn inodes(&self) -> Vec<u64> {
        self.orders.borrow().bound.iter().map(|b| b.inode).collect()
    }

    /// Where it leads.
    pub fn guest(&self) -> Destination {
        self.guest
    }

    /// What it has done.
    pub fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    /// Resets its connections once cancelled.
    pub fn cut(&self) -> &CancellationToken {
        &self.cut
    }

    /// After how much silence clients that come from now on are asked whether they are still there;
    /// `None`: as the system's times say.
    pub fn keep_alive(&self, silence: Option<Duration>) {
        for bound in &self.orders.borrow().bound {
            if let Err(error) = bound.keep_alive(silence) {
                tracing::warn!(%error, host = %bound.at, "cannot set the keepalive");
            }
        }
    }

    /// Stops accepting at `at`, at once; connections that wait to be accepted are reset by the kernel.
    /// Returns the inode of what listened there.
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

    /// Stops accepting, as [`Self::unbind`] of all addresses. Connections may go on for `drain`; with
    /// none, for as long as their two ends want.
    pub fn close(&self, drain: Option<Duration>) {
        let mut closed = Vec::new();
        self.orders.send_modify(|orders| {
            closed = std::mem::take(&mut orders.bound);
            orders.cut_at = drain.map(|drain| clock::now() + drain);
        });
        closed.iter().for_each(Bound::shut);
    }

    /// As [`Self::close`], for good. Without this call, dropping it cuts its connections.
    pub fn stop(self, drain: Duration) {
        self.close(Some(drain));
        self.orders.send_modify(|orders| orders.last = true);
    }
}

/// What the task goes on with.
enum Turn {
    /// There are other orders.
    Ordered,
    /// Nobody gives orders any more.
    Alone,
    /// A connection has ended.
    Ended,
    /// The time of the connections is over.
    Over,
    Accepted(io::Result<(TcpStream, Room)>),
}

impl ForwardTask {
    /// Runs for as long as the forward is bound or has connections. Returns how many of those had to be
    /// cut.
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
                        // One that has ended leaves room.
                        Some(_) = connections.join_next() => {}
                        () = tokio::time::sleep(ACCEPT_PAUSE) => {}
                    }
                }
            }
        }
        0
    }

    /// The next client, once there is one and room for it. Cancel-safe.
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
                    // A connection that failed before it was accepted (accept(2)): not ours.
                    Poll::Ready(Err(error)) if is_passing(&error) => {
                        tracing::debug!(guest = %self.guest, %error, "accept");
                        cx.waker().wake_by_ref();
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => {}
                }
            }
            // None is waiting any more.
            self.stats.exhausted.store(false, Relaxed);
            Poll::Pending
        })
        .await
    }

    /// Nobody can be accepted now.
    fn failed(&self, error: &io::Error, bound: &[Bound]) {
        if !is_exhaustion(error) || !bound.iter().any(Bound::somebody_waits) {
            return;
        }
        // What is ready for clients to come must not keep this one out.
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

/// Whether accepting may go on at once: neither is there no room, nor was the listener shut down.
fn is_passing(error: &io::Error) -> bool {
    !is_exhaustion(error) && error.raw_os_error() != Some(Errno::INVAL.raw_os_error())
}

#[cfg(test)]
mod tests;
