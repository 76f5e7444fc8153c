//! Step 5 of the data flow: one host address that is bound.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use rum_shared::bytes::relay;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpSocket};

use super::bind_failure::BindFailure;
use crate::plan::HostAddr;

/// Connections that wait to be accepted; the kernel caps it at net.core.somaxconn.
const BACKLOG: u32 = 1024;

/// The shortest time that the kernel knows here.
const SECOND: Duration = Duration::from_secs(1);
/// Questions without an answer after which a client is gone.
const QUESTIONS: u32 = 3;

/// A bound host address.
#[derive(Debug, Clone)]
pub(super) struct Bound {
    pub(super) at: HostAddr,
    pub(super) inode: u64,
    pub(super) listener: Arc<TcpListener>,
}

impl Bound {
    pub(super) fn new(
        at: HostAddr,
        one_of_many: bool,
        keepalive: Option<Duration>,
    ) -> Result<Self, BindFailure> {
        let socket = match at.0 {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        if one_of_many && at.0.is_ipv6() {
            // `::` leaves IPv4 to `0.0.0.0` beside it.
            sockopt::set_ipv6_v6only(&socket, true).map_err(io::Error::from)?;
        }
        // Connections that live on must not keep the port from being bound again.
        socket.set_reuseaddr(true)?;
        socket.bind(at.0)?;
        if keepalive.is_some() {
            keep_alive(&socket, keepalive)?;
        }
        let listener = Arc::new(socket.listen(BACKLOG)?);
        // Whatever is accepted begins as a copy of it (sk_clone_lock, net/core/sock.c). From its
        // first moment on whatever ends a connection resets its client, but a clean end of the relay.
        relay::prepare(&*listener);
        Ok(Self {
            at: HostAddr(listener.local_addr()?),
            inode: rustix::fs::fstat(&*listener)
                .map_err(io::Error::from)?
                .st_ino,
            listener,
        })
    }

    /// Clients that are accepted from now on are asked as [`keep_alive`] says.
    pub(super) fn keep_alive(&self, silence: Option<Duration>) -> io::Result<()> {
        keep_alive(&*self.listener, silence)
    }

    /// Closing alone would wait for the task to be scheduled.
    pub(super) fn shut(&self) {
        let _ = rustix::net::shutdown(self.listener.as_fd(), rustix::net::Shutdown::Both);
    }

    /// Whether a client is to be accepted.
    pub(super) fn somebody_waits(&self) -> bool {
        let mut fds = [PollFd::new(&*self.listener, PollFlags::IN)];
        matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1))
    }
}

/// Has the kernel ask after `silence` whether the peer is still there, and a third of it later again; one
/// that answers none of [`QUESTIONS`] is gone. `None`: as the system's times say. What a listener
/// has is passed on to all that it accepts.
fn keep_alive(socket: impl AsFd, silence: Option<Duration>) -> io::Result<()> {
    let (silence, between, questions) = match silence {
        Some(silence) => (silence, (silence / QUESTIONS).max(SECOND), QUESTIONS),
        None => {
            // A new socket has the system's (tcp(7)).
            let new = TcpSocket::new_v4()?;
            (
                sockopt::tcp_keepidle(&new)?,
                sockopt::tcp_keepintvl(&new)?,
                sockopt::tcp_keepcnt(&new)?,
            )
        }
    };
    sockopt::set_tcp_keepidle(&socket, silence)?;
    sockopt::set_tcp_keepintvl(&socket, between)?;
    Ok(sockopt::set_tcp_keepcnt(&socket, questions)?)
}
