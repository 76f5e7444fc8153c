//! Step 5 of the data flow, the guest's end: from a channel to the listener that it asks for.
//!
//! The host names a port, or an address in the guest's networks and a port there. The agent dials
//! the listener at an address where it accepts connections, or the named address, and answers with
//! one status byte. From then on [`rum_shared::bytes::relay`] moves the bytes (step 6), or the host
//! does it alone with the socket handed to it. Loopback comes first where the listener accepts it,
//! else the address that the listener is bound to ([`crate::port_set::reach`]). A port outside the
//! set is tried on loopback all the same: it may have opened a moment ago.
//!
//! Invariants: where the host names a port, the agent dials only this machine, see
//! [`crate::port_set::reach`]. Every wait has a deadline. [`MAX_CHANNELS`] bounds the number of
//! channels.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rum_shared::bytes::channel;
use rum_shared::bytes::channel::{DialStatus, Header};
use rum_shared::bytes::handover;
use rum_shared::bytes::relay::{Bulk, Counters, Turn, prepare, relay};
use rum_shared::destination::Destination;
use rum_shared::transport::Stream;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::SocketType;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, trace};

use crate::port_set::hub::Hub;
use crate::port_set::reach;
use crate::port_set::reach::Route;

/// Channels that relay or dial at once; each costs two descriptors, some 3 kB, and the relay's buffers
/// while bytes wait in it.
pub const MAX_CHANNELS: usize = 32_768;
/// How many of them may wait for a listener to accept: a listener that does not accept leaves room
/// for others.
pub const MAX_WAITING: usize = MAX_CHANNELS / 2;
/// Channels beyond those, which only wait to receive [`DialStatus::Exhausted`].
pub const MAX_REFUSED: usize = 64;
/// Time for the host to name the port, which it does at once.
const HEADER_DEADLINE: Duration = Duration::from_secs(5);
/// Channels that may stay without a port for longer: a host dials a few ahead of its clients.
pub const MAX_READY: usize = 16;
/// How long, so that the channels of a vanished host do not keep their places.
const READY_DEADLINE: Duration = Duration::from_secs(600);

/// Serves channels.
#[derive(Debug, Clone)]
pub struct ChannelServer {
    hub: Arc<Hub>,
    hand_over: bool,
    places: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    ready: Arc<Semaphore>,
    bulk: Bulk,
    cut: CancellationToken,
}

impl ChannelServer {
    /// A server that looks ports up in `hub`; cancelling `cut` resets all its connections. With
    /// `hand_over` it passes connected sockets to a host on the same kernel, instead of relaying.
    pub fn new(hub: Arc<Hub>, hand_over: bool, cut: CancellationToken) -> Self {
        Self {
            hub,
            hand_over,
            places: Arc::new(Semaphore::new(MAX_CHANNELS)),
            waiting: Arc::new(Semaphore::new(MAX_WAITING)),
            ready: Arc::new(Semaphore::new(MAX_READY)),
            bulk: Bulk::default(),
            cut,
        }
    }

    /// Serves one channel to its end.
    pub async fn serve(self, mut stream: Stream) {
        let opened = tokio::select! {
            () = self.cut.cancelled() => return,
            opened = self.open(&mut stream) => opened,
        };
        let (tcp, _place) = match opened {
            Ok(Some(opened)) => opened,
            Ok(None) => return,
            Err(error) => return debug!("the host left before its channel was open: {error}"),
        };
        let cut = self.cut.clone();
        let run = |turn: Arc<Turn>| async move {
            relay(tcp, stream, &Counters::default(), &turn, &cut).await
        };
        let outcome = self.bulk.run(run).await;
        trace!(?outcome, "a channel ended");
    }

    /// Reads the header, dials and answers. `None` when nothing is left to relay: the dial failed,
    /// or the socket was handed over.
    async fn open(
        &self,
        stream: &mut Stream,
    ) -> io::Result<Option<(TcpStream, SemaphorePermit<'_>)>> {
        let ready = self.ready.try_acquire();
        let patience = match ready {
            Ok(_) => READY_DEADLINE,
            Err(_) => HEADER_DEADLINE,
        };
        let header = timeout(patience, channel::read_header(stream)).await??;
        drop(ready);
        let destination = match (header, &*stream) {
            (Some(Header::Destination(destination)), _) => destination,
            (Some(Header::Sockets), Stream::Unix(unix)) if self.hand_over => {
                handover::offer(unix).await?;
                return Ok(None);
            }
            (Some(Header::Sockets) | None, _) => {
                channel::write_status(stream, DialStatus::Denied).await?;
                return Ok(None);
            }
        };
        let opened = match self.places.try_acquire() {
            Ok(place) => tokio::select! {
                biased;
                dialled = self.dial(destination) => dialled.map(|tcp| (tcp, place)),
                left = left(stream) => return Err(left),
            },
            Err(_) => Err(DialStatus::Exhausted),
        };
        trace!(%destination, refused = ?opened.as_ref().err(), "a channel");
        match opened {
            Ok((tcp, place)) if self.hand_over => {
                let kept = channel::hand_over(stream, tcp).await?;
                let kept = kept.map(TcpStream::from_std).transpose()?;
                Ok(kept.map(|tcp| (tcp, place)))
            }
            Ok((tcp, place)) => {
                channel::write_status(stream, DialStatus::Connected).await?;
                Ok(Some((TcpStream::from_std(tcp)?, place)))
            }
            Err(status) => {
                channel::write_status(stream, status).await?;
                Ok(None)
            }
        }
    }

    /// Connects to `destination`.
    async fn dial(&self, destination: Destination) -> Result<std::net::TcpStream, DialStatus> {
        let Destination { port, ip } = destination;
        if port == 0 {
            return Err(DialStatus::Denied);
        }
        if let Some(ip) = ip {
            let connected = self.connect(begin_at(SocketAddr::new(ip, port))).await;
            return connected.map_err(|error| status(&error));
        }
        let routes = reach::routes(self.hub.current().get(port));
        let mut first = None;
        for route in routes {
            let status = match self.connect(begin(route, port)).await {
                Ok(tcp) => return Ok(tcp),
                Err(error) => status(&error),
            };
            if status == DialStatus::Exhausted {
                return Err(status);
            }
            // The best address failed first; its error says more than the others'.
            first.get_or_insert(status);
        }
        Err(first.unwrap_or(DialStatus::Unreachable))
    }

    /// Completes a connection that has `begun`. Waits for a full accept queue as long as the kernel
    /// does (`net.ipv4.tcp_syn_retries`, tcp(7)). The socket is non-blocking and not registered
    /// with the event loop: most are handed over, and over loopback the connection is established
    /// before connect(2) returns.
    async fn connect(
        &self,
        begun: io::Result<std::net::TcpStream>,
    ) -> io::Result<std::net::TcpStream> {
        let mut tcp = begun?;
        let mut writable = [PollFd::new(&tcp, PollFlags::OUT)];
        if poll(&mut writable, Some(&Timespec::default()))? == 0 {
            let Ok(_waiting) = self.waiting.try_acquire() else {
                return Err(Errno::NOBUFS.into());
            };
            let waiting = TcpStream::from_std(tcp)?;
            waiting.writable().await?;
            tcp = waiting.into_std()?;
        }
        if let Some(error) = tcp.take_error()? {
            return Err(error);
        }
        // Without a listener a port of the ephemeral range can meet itself: TCP's simultaneous
        // open (RFC 9293, 3.5) connects the socket to its own port.
        if tcp.local_addr()? == tcp.peer_addr()? {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        // From here on, a host that leaves resets the program's connection.
        prepare(&tcp);
        Ok(tcp)
    }
}

/// Waits until the host leaves, for instance because its client does. The host sends nothing before
/// it has the answer.
async fn left(stream: &mut Stream) -> io::Error {
    match stream.read_u8().await {
        Ok(_) => io::Error::new(io::ErrorKind::InvalidData, "it spoke out of its turn"),
        Err(error) => error,
    }
}

/// Begins to connect to `port` by `route`.
fn begin(route: Route, port: u16) -> io::Result<std::net::TcpStream> {
    let socket = route.socket(SocketType::STREAM, port);
    let (socket, address) = socket.map_err(|error| match error {
        // The address is no longer one of this machine.
        Errno::ADDRNOTAVAIL => Errno::HOSTUNREACH,
        error => error,
    })?;
    start(socket, address)
}

/// Begins to connect to `address`, by whatever route this machine has.
fn begin_at(address: SocketAddr) -> io::Result<std::net::TcpStream> {
    start(reach::socket(address.ip(), SocketType::STREAM)?, address)
}

fn start(socket: OwnedFd, address: SocketAddr) -> io::Result<std::net::TcpStream> {
    match rustix::net::connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket.into()),
        Err(error) => Err(error.into()),
    }
}

fn status(error: &io::Error) -> DialStatus {
    match Errno::from_io_error(error) {
        Some(Errno::CONNREFUSED | Errno::CONNRESET) => DialStatus::Refused,
        Some(Errno::TIMEDOUT) => DialStatus::TimedOut,
        Some(
            Errno::HOSTUNREACH
            | Errno::NETUNREACH
            | Errno::NETDOWN
            | Errno::NODEV
            | Errno::PERM
            | Errno::AFNOSUPPORT,
        ) => DialStatus::Unreachable,
        // bind(2) and connect(2) fail so when no local port is free.
        Some(Errno::ADDRINUSE | Errno::ADDRNOTAVAIL) => DialStatus::NoLocalPort,
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => DialStatus::Exhausted,
        None if error.kind() == io::ErrorKind::ConnectionRefused => DialStatus::Refused,
        _ => DialStatus::Failed,
    }
}

#[cfg(test)]
mod tests;
