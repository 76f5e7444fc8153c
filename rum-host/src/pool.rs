//! Step 5 of the data flow, the fast way in: TCP sockets of the guest, ready to be connected.
//!
//! A socket belongs to the network namespace in which it was made, whoever holds it. So an
//! agent that shares our kernel hands over some that are not connected yet, and a new client
//! costs one connect(2) here instead of a turn through the agent, which only makes new sockets
//! when these run low.
//!
//! Invariants: it is a short cut and nothing else. It tries the guest's IPv4 loopback, where
//! nearly everything can be reached; whenever that does not work at once, the agent is asked as
//! ever, and gives the reason. At most [`rum_shared::handover::OFFER`] sockets are held.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rum_shared::handover;
use rum_shared::transport::Endpoint;
use rustix::io::Errno;
use tokio::net::TcpStream;

use crate::plan::GuestPort;

/// Fewer than this many left: time for more.
const LOW: usize = handover::OFFER / 2;

/// Sockets to be connected. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Pool(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    sockets: Vec<OwnedFd>,
    /// Somebody asks for more.
    filling: bool,
}

impl Pool {
    /// A connection to `guest` on the guest's IPv4 loopback, if there is a socket and it
    /// connects at once, as over loopback it does.
    pub fn connect(&self, guest: GuestPort) -> Option<TcpStream> {
        let socket = self.state().sockets.pop()?;
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, guest.0));
        match rustix::net::connect(&socket, &addr) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(_) => return None,
        }
        // Fails unless connected: refused, or still waiting for room in the backlog.
        let peer = rustix::net::getpeername(&socket).ok()??;
        // Without a listener a port can meet itself (RFC 9293, 3.5, simultaneous open).
        if rustix::net::getsockname(&socket).ok()? == peer {
            return None;
        }
        TcpStream::from_std(socket.into()).ok()
    }

    /// Asks the agent for more where they run low. Meant to run beside a relay: an agent that
    /// has none to give costs nothing but this call.
    pub async fn refill(&self, endpoint: &Endpoint) {
        let Endpoint::Unix { .. } = endpoint else {
            return;
        };
        {
            let mut state = self.state();
            if state.filling || state.sockets.len() >= LOW {
                return;
            }
            state.filling = true;
        }
        let _done = Filling(self);
        match handover::request(endpoint).await {
            Ok(mut sockets) => {
                let mut state = self.state();
                sockets.truncate(handover::OFFER - state.sockets.len().min(handover::OFFER));
                state.sockets.append(&mut sockets);
            }
            Err(error) => tracing::debug!(%error, "the agent hands over no sockets"),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing is done under the lock that could be left half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets the next one ask, also when this one was given up.
struct Filling<'a>(&'a Pool);

impl Drop for Filling<'_> {
    fn drop(&mut self) {
        self.0.state().filling = false;
    }
}
