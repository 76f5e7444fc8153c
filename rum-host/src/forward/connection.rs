//! Steps 5 and 6 of the data flow: one client, from its accept to the end of its relay.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use rum_shared::bytes::channel::Connected;
use rum_shared::bytes::relay;
use rum_shared::bytes::relay::Outcome;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::dialer::{Dialer, WaitingRoom};
use super::stats::{Counted, Stats};
use crate::descriptors::Room;
use crate::plan::Destination;

/// Time after which a client that the guest's program has not accepted is shown as waiting.
pub(super) const SLOW: Duration = Duration::from_secs(1);

/// An accepted client.
pub(super) struct Connection {
    pub(super) client: TcpStream,
    pub(super) room: Room,
    pub(super) waiting: Waiting,
    pub(super) guest: Destination,
    pub(super) dialer: Dialer,
    pub(super) stats: Arc<Stats>,
    pub(super) cut: CancellationToken,
}

/// Counts a client from its accept here until the guest's program accepts it.
pub(super) struct Waiting {
    stats: Arc<Stats>,
    room: WaitingRoom,
    served: Arc<Notify>,
}

impl Waiting {
    pub(super) fn new(stats: Arc<Stats>, room: WaitingRoom, served: Arc<Notify>) -> Self {
        room.enter();
        stats.waiting.fetch_add(1, Relaxed);
        Self {
            stats,
            room,
            served,
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.stats.waiting.fetch_sub(1, Relaxed);
        self.room.leave();
        self.served.notify_one();
    }
}

impl Connection {
    pub(super) async fn run(self) {
        let Self {
            client,
            room,
            waiting,
            guest,
            mut dialer,
            stats,
            cut,
        } = self;
        let counted = stats.clone();
        let turn = stats.turn();
        let _active = Counted::new(&counted.active);
        let opened = {
            let mut opening = pin!(async {
                tokio::select! {
                    biased;
                    () = cut.cancelled() => None,
                    opened = dialer.open(guest, room, &stats) => Some(opened),
                    // The client was reset, so nobody is left to serve.
                    _ = client.ready(Interest::ERROR) => None,
                }
            });
            match tokio::time::timeout(SLOW, &mut opening).await {
                Ok(opened) => opened,
                Err(_) => {
                    let _slow = Counted::new(&stats.slow);
                    opening.await
                }
            }
        };
        drop(waiting);
        let Some(opened) = opened else { return };
        let refusal = opened.as_ref().map(drop).map_err(|refusal| *refusal);
        stats.ended(turn, refusal);
        let outcome = match opened {
            Ok(Connected::Framed(channel)) => {
                let relay = |turn: Arc<relay::Turn>| async move {
                    relay::relay(client, channel, &stats.bytes, &turn, &cut).await
                };
                tokio::select! {
                    outcome = dialer.bulk.run(relay) => outcome,
                    // Dropping a relay resets both its ends.
                    Ok(()) = dialer.epoch.changed() => Outcome::ChannelLost,
                }
            }
            Ok(Connected::Direct(program)) => {
                let relay = |turn: Arc<relay::Turn>| async move {
                    relay::relay_direct(client, program, &stats.bytes, &turn, &cut).await
                };
                dialer.bulk.run(relay).await
            }
            Err(refusal) => {
                tracing::debug!(%guest, ?refusal, "connection refused");
                return;
            }
        };
        tracing::trace!(%guest, ?outcome, "connection ended");
    }
}
