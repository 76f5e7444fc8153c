//! Step 5 of the data flow: connects an accepted client to the guest's program.
//!
//! A client waits as it would without rum. A listener with a full accept queue answers late or,
//! after some two minutes (`net.ipv4.tcp_syn_retries`, tcp(7)), never; only the kernel decides
//! that. rum's own deadline is for a missing agent ([`LINK_DEADLINE`]). A dial without an answer
//! has sent nothing to a program, so it is simply repeated.
//!
//! Invariant: a program that accepts no connections costs other forwards nothing. Its waiting
//! clients are counted ([`WaitingRoom`]). Beyond its share, rum accepts no more of them, so they
//! wait in the kernel's queue, as they would without rum.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use rum_shared::bytes::channel;
use rum_shared::bytes::channel::{Connected, DialStatus};
use rum_shared::bytes::relay::Bulk;
use rum_shared::transport::{Stream, Transport};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::ACCEPT_PAUSE;
use super::refusal::Refusal;
use super::stats::{Counted, Stats};
use crate::clock;
use crate::descriptors::{self, Reserve, Room, is_exhaustion};
use crate::forward::pool::{Dialled, Pool};
use crate::plan::{Destination, GuestPort};
use crate::stream::backoff::Backoff;
use crate::stream::client::LinkState;

/// Time for an agent that is lost, or accepts no channel, to come back. A restart takes less.
pub const LINK_DEADLINE: Duration = Duration::from_secs(10);
/// Most clients of one forward that wait for its program to accept them. More wait in the kernel's
/// queue.
const MAX_WAITING: usize = 512;
/// A forward with fewer waiting clients than this always accepts the next, whatever the other
/// forwards do.
const FEW_WAITING: usize = 4;

/// Opens connections into the guest.
#[derive(Debug, Clone)]
pub struct Dialer {
    transport: Transport,
    pub(super) pool: Pool,
    pub(super) bulk: Bulk,
    pub(super) reserve: Reserve,
    pub(super) waiting: WaitingRoom,
    link: watch::Receiver<LinkState>,
    /// Changes when all that was dialled before hangs.
    pub(super) epoch: watch::Receiver<u64>,
}

/// Why one attempt failed.
enum Failed {
    Refused(Refusal),
    /// This machine has no descriptors or memory left.
    ExhaustedHere,
    /// The agent has none left.
    ExhaustedThere,
    /// The agent was lost before it answered.
    Lost,
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        if is_exhaustion(&error) {
            return Self::ExhaustedHere;
        }
        tracing::debug!(%error, "a channel ended before its answer");
        Self::Lost
    }
}

impl Dialer {
    /// Dials through `transport` whenever `link` reports an agent.
    pub fn new(transport: Transport, link: watch::Receiver<LinkState>) -> Self {
        Self {
            epoch: transport.epoch(),
            transport,
            pool: Pool::default(),
            bulk: Bulk::default(),
            reserve: Reserve::default(),
            waiting: WaitingRoom::default(),
            link,
        }
    }

    /// Keeps sockets or channels ready that speed up new connections. Never completes.
    pub async fn keep_ready(&self) {
        self.pool.keep(&self.transport, self.link.clone()).await;
    }

    /// Connects to `guest` with the descriptors of `room`. If another thread takes them first, this
    /// waits for others, as the client would if it had not been accepted yet.
    ///
    /// # Errors
    /// The reason for the failure.
    pub(super) async fn open(
        &mut self,
        guest: Destination,
        mut room: Room,
        stats: &Stats,
    ) -> Result<Connected, Refusal> {
        if let Some(direct) = self.direct(guest).await {
            return direct.map(Connected::Direct).map_err(Refusal::Agent);
        }
        let mut pauses = Backoff::default();
        let mut unserved = None;
        // The last time at which the agent is known to have been there.
        let mut there = clock::now();
        loop {
            let up = self.link.wait_for(|state| *state != LinkState::Down);
            let deadline = there + LINK_DEADLINE;
            match tokio::time::timeout_at(deadline.into(), up).await {
                Ok(Ok(_)) if clock::now() < deadline => {}
                _ => return Err(Refusal::NoAgent),
            }
            let start = clock::now();
            let tried = self.through_agent(guest, room).await;
            match tried {
                Ok(connected) => return Ok(connected),
                Err(Failed::Refused(refusal)) => return Err(refusal),
                Err(Failed::ExhaustedHere) => there = clock::now(),
                Err(Failed::ExhaustedThere) => {
                    there = clock::now();
                    if unserved.is_none() && stats.unserved.load(Relaxed) == 0 {
                        tracing::warn!(
                            %guest,
                            "the agent has no room for more connections; they wait until it has"
                        );
                    }
                    unserved.get_or_insert_with(|| Counted::new(&stats.unserved));
                    tokio::time::sleep(pauses.next_delay()).await;
                }
                Err(Failed::Lost) => {
                    // A dial that fails at once has not reached an agent.
                    if clock::now() - start > ACCEPT_PAUSE {
                        there = clock::now();
                    }
                    tokio::time::sleep(pauses.next_delay()).await;
                }
            }
            room = self.room().await;
        }
    }

    /// Opens a channel to `guest` for a caller that relays its frames itself.
    ///
    /// # Errors
    /// The reason for the failure; `None`: no agent answered.
    pub async fn channel(&mut self, guest: Destination) -> Result<Stream, Option<DialStatus>> {
        let room = self.room().await;
        match self.open(guest, room, &Stats::default()).await {
            Ok(Connected::Framed(channel)) => Ok(channel),
            // Only a guest on the same kernel hands sockets over, and such a guest needs no frames.
            Ok(Connected::Direct(_)) => Err(Some(DialStatus::Denied)),
            Err(Refusal::Agent(status)) => Err(Some(status)),
            Err(Refusal::NoAgent) => Err(None),
            Err(Refusal::Failed) => Err(Some(DialStatus::Failed)),
        }
    }

    /// Completes when a successor has replaced the agent that was dialled last.
    pub async fn succeeded(&mut self) {
        // Its sender lives in `transport`.
        let _ = self.epoch.changed().await;
    }

    /// Connects without the agent, over a socket that it handed over before. `None`: ask the agent.
    async fn direct(&self, guest: Destination) -> Option<Result<TcpStream, DialStatus>> {
        match self.pool.connect(GuestPort(guest.own_port()?))? {
            Dialled::Connected(tcp) => Some(Ok(tcp)),
            Dialled::Waiting(waiting) => match waiting.connected().await {
                Ok(tcp) => Some(Ok(tcp)),
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    Some(Err(DialStatus::TimedOut))
                }
                Err(_) => None,
            },
        }
    }

    /// Makes one attempt. It has no deadline: it lasts as long as the agent is there.
    async fn through_agent(&mut self, guest: Destination, room: Room) -> Result<Connected, Failed> {
        self.epoch.mark_unchanged();
        let ready = self.pool.channel();
        let mut link = self.link.clone();
        let asked = ask(&self.transport, ready, guest, room);
        tokio::select! {
            answer = asked => match answer? {
                Ok(connected) => Ok(connected),
                Err(DialStatus::Exhausted) => Err(Failed::ExhaustedThere),
                Err(status) => Err(Failed::Refused(Refusal::Agent(status))),
            },
            lost = lost(&mut link) => Err(lost),
            Ok(()) = self.epoch.changed() => Err(Failed::Lost),
        }
    }

    /// Waits for free descriptors.
    async fn room(&self) -> Room {
        loop {
            if let Ok(room) = self.reserve.take() {
                return room;
            }
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
    }
}

/// Waits until the agent is lost, and then until it is back or stays away. If the link only goes
/// down because rum is stopping, the agent still answers its pending requests.
async fn lost(link: &mut watch::Receiver<LinkState>) -> Failed {
    if link
        .wait_for(|state| *state == LinkState::Down)
        .await
        .is_ok()
    {
        let back = link.wait_for(|state| *state != LinkState::Down);
        match tokio::time::timeout(LINK_DEADLINE, back).await {
            Ok(Ok(_)) => return Failed::Lost,
            Ok(Err(_)) => {}
            Err(_) => return Failed::Refused(Refusal::NoAgent),
        }
    }
    std::future::pending().await
}

async fn ask(
    transport: &Transport,
    ready: Option<Stream>,
    guest: Destination,
    room: Room,
) -> io::Result<Result<Connected, DialStatus>> {
    // If a ready channel fails without an answer, the agent that it leads to is gone.
    if let Some(ready) = ready
        && let Ok(answer) = channel::open(ready, guest).await
    {
        return Ok(answer);
    }
    room.vacate();
    channel::dial(transport, guest).await
}

/// Counts the clients of all forwards that wait for a program to accept them. Clones share the
/// count.
#[derive(Debug, Clone)]
pub(super) struct WaitingRoom {
    all: Arc<AtomicUsize>,
    /// Most waiting clients in total, apart from the first few of each forward.
    most: usize,
}

impl Default for WaitingRoom {
    /// Waiting clients take at most three eighths of the descriptors: each one has its client's
    /// socket and two more.
    fn default() -> Self {
        Self {
            all: Arc::default(),
            most: (descriptors::limit() / 8).max(FEW_WAITING),
        }
    }
}

impl WaitingRoom {
    /// Whether a forward with `own` waiting clients may accept one more.
    pub(super) fn has_room(&self, own: usize) -> bool {
        let share = MAX_WAITING.min(self.most / 4);
        own < FEW_WAITING || (own < share && self.all.load(Relaxed) < self.most)
    }

    pub(super) fn enter(&self) {
        self.all.fetch_add(1, Relaxed);
    }

    pub(super) fn leave(&self) {
        self.all.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_who_wait_for_one_program_leave_room_for_others() {
        let room = WaitingRoom {
            all: Arc::default(),
            most: 40,
        };
        assert!(room.has_room(9));
        assert!(!room.has_room(10), "its share");
        (0..40).for_each(|_| room.enter());
        assert!(!room.has_room(FEW_WAITING), "all of them together");
        assert!(room.has_room(FEW_WAITING - 1), "another forward");
        room.leave();
        assert!(room.has_room(FEW_WAITING));
    }
}
