//! Step 5 of the data flow: a bound host address.

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

/// Backlog of each listener; the kernel caps it at net.core.somaxconn.
const BACKLOG: u32 = 1024;

/// The smallest keepalive time that the kernel accepts.
const SECOND: Duration = Duration::from_secs(1);
/// Number of unanswered keepalive probes after which a client counts as gone.
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
            // With IPV6_V6ONLY, `::` leaves IPv4 to `0.0.0.0` as an additional address.
            sockopt::set_ipv6_v6only(&socket, true).map_err(io::Error::from)?;
        }
        // Connections that outlive their listener must not keep the port from being bound again.
        socket.set_reuseaddr(true)?;
        socket.bind(at.0)?;
        if keepalive.is_some() {
            keep_alive(&socket, keepalive)?;
        }
        let listener = Arc::new(socket.listen(BACKLOG)?);
        // Accepted sockets inherit these options (sk_clone_lock, net/core/sock.c). So from the
        // start, every close except a clean end of the relay resets the client.
        relay::prepare(&*listener);
        Ok(Self {
            at: HostAddr(listener.local_addr()?),
            inode: rustix::fs::fstat(&*listener)
                .map_err(io::Error::from)?
                .st_ino,
            listener,
        })
    }

    /// Sets the keepalive of clients that are accepted from now on; see [`keep_alive`].
    pub(super) fn keep_alive(&self, silence: Option<Duration>) -> io::Result<()> {
        keep_alive(&*self.listener, silence)
    }

    /// Ends LISTEN at once. Closing alone would wait until the task is scheduled.
    pub(super) fn shut(&self) {
        let _ = rustix::net::shutdown(self.listener.as_fd(), rustix::net::Shutdown::Both);
    }

    /// Whether a client is ready to be accepted.
    pub(super) fn somebody_waits(&self) -> bool {
        let mut fds = [PollFd::new(&*self.listener, PollFlags::IN)];
        matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1))
    }
}

/// Sets TCP keepalive: the first probe after `silence`, the next ones after a third of it each, and
/// the peer counts as gone after [`QUESTIONS`] unanswered probes. `None`: the system's values.
/// Accepted sockets inherit the listener's setting.
fn keep_alive(socket: impl AsFd, silence: Option<Duration>) -> io::Result<()> {
    let (silence, between, questions) = match silence {
        Some(silence) => (silence, (silence / QUESTIONS).max(SECOND), QUESTIONS),
        None => {
            // A new socket has the system's values (tcp(7)).
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
