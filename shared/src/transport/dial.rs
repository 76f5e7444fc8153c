//! The host's side: from an [`Endpoint`] through a [`Transport`] to a connected [`Stream`].

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, send, socket_with,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio_vsock::{VsockAddr, VsockStream};

use super::gate::{Gate, Gated};
use super::probe::{Probe, Probed};
use super::{Knocks, Stream};
use crate::netns::NetCookie;
use crate::{CHANNEL_PORT, RPC_PORT};

/// Time for a whole dial, `CONNECT` included. Local transports answer in microseconds; a guest
/// that is booting or stopped may never answer.
pub const DIAL_DEADLINE: Duration = Duration::from_secs(5);
/// Longest answer to `CONNECT` that is read, newline included. `OK 4294967295\n` has 14 bytes.
const MAX_CONNECT_ANSWER: usize = 64;
/// Pause before a Unix socket whose backlog is full is tried again: unlike TCP and vsock, it
/// says EAGAIN at once instead of waiting (connect(2)).
const BACKLOG_PAUSE: Duration = Duration::from_millis(2);

/// Which of the agent's two services to reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// The RPC, port [`RPC_PORT`].
    Rpc,
    /// The forward channel, port [`CHANNEL_PORT`].
    Channel,
}

impl Service {
    /// Its port, on vsock and after `CONNECT`.
    pub fn port(self) -> u32 {
        match self {
            Self::Rpc => RPC_PORT,
            Self::Channel => CHANNEL_PORT,
        }
    }
}

/// Where the host finds an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// Two Unix sockets of an agent on the same kernel.
    Unix {
        /// Socket of the RPC.
        rpc: PathBuf,
        /// Socket of the forward channel.
        channel: PathBuf,
        /// The network namespace that the sockets which it hands over must be of, where that is known.
        net: Option<NetCookie>,
    },
    /// A VM by its context id.
    Vsock {
        /// The guest's CID.
        cid: u32,
    },
    /// A Unix socket that speaks `CONNECT port` (Firecracker and its kin).
    Connect {
        /// The device's socket.
        socket: PathBuf,
    },
}

impl Endpoint {
    /// What is not there on this machine without which the guest cannot be reached, in words.
    pub fn missing(&self) -> Option<String> {
        let Self::Connect { socket } = self else {
            return None;
        };
        let missing = !socket.try_exists().unwrap_or(true);
        missing.then(|| format!("there is no socket {}", socket.display()))
    }
}

/// What leads to the agent at an [`Endpoint`]. Clones are the same one.
///
/// Some devices must be left alone while their guest may be away. That is decided here, so that the
/// callers need not know: what may be sent at any time to other guests waits for no moment.
#[derive(Debug, Clone)]
pub struct Transport {
    endpoint: Endpoint,
    /// Only streams of a `CONNECT` device go through it.
    pub(super) gate: Gate,
    /// Knows the streams to a VM by its context id.
    probe: Probe,
    epoch: watch::Sender<u64>,
}

impl From<Endpoint> for Transport {
    fn from(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            gate: Gate::default(),
            probe: Probe::default(),
            epoch: watch::Sender::default(),
        }
    }
}

impl Transport {
    /// Where it leads.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// What hears the agent's knocks. For one at a time.
    pub fn knocks(&self) -> Knocks {
        Knocks::new(&self.endpoint, self.gate.clone())
    }

    /// Another agent has taken the place of one that fell silent: a new epoch begins.
    pub fn succeeded(&self) {
        self.epoch.send_modify(|epoch| *epoch += 1);
    }

    /// Changes when a new epoch begins. A guest that reboots inside its VM ends no stream: those of
    /// an epoch that is over hang for ever. Of one that goes back to a snapshot the same agent answers, and
    /// only its kernel can tell ([`Transport::probe`]).
    pub fn epoch(&self) -> watch::Receiver<u64> {
        self.epoch.subscribe()
    }

    /// Whether the agent sends a heartbeat each second, so that its silence means something.
    pub fn expect_heartbeats(&self, heartbeats: bool) {
        self.gate.guard(heartbeats);
    }

    /// Waits for about `period`, and until the guest is surely there.
    pub async fn pause(&self, period: Duration) {
        self.gate.pause(period).await;
    }

    /// Waits until the guest is surely there. For a dial of the RPC that can wait; all other dials
    /// and writes wait by themselves.
    pub async fn ready(&self) {
        self.gate.until_just_heard().await;
    }

    /// The agent answers again: has the streams of before end that its guest no longer has, where the guest
    /// can be asked.
    pub fn probe(&self) {
        self.probe.send();
    }

    /// Connects to `service`.
    ///
    /// # Errors
    /// What the system says; [`io::ErrorKind::ConnectionRefused`] when nobody listens on the
    /// guest's vsock port, [`io::ErrorKind::InvalidData`] when the device answers something
    /// else, [`io::ErrorKind::TimedOut`] after [`DIAL_DEADLINE`].
    pub async fn dial(&self, service: Service) -> io::Result<Stream> {
        self.dial_saying(service, &[]).await
    }

    /// Connects to `service` and sends `first`, at most a few bytes. On a Unix socket that
    /// happens before anything can wait, which saves a turn through the event loop.
    ///
    /// # Errors
    /// As [`Transport::dial`].
    pub async fn dial_saying(&self, service: Service, first: &[u8]) -> io::Result<Stream> {
        let dialled = async {
            match &self.endpoint {
                Endpoint::Unix { rpc, channel, .. } => {
                    let path = match service {
                        Service::Rpc => rpc,
                        Service::Channel => channel,
                    };
                    unix(path, first).await.map(Stream::Unix)
                }
                Endpoint::Vsock { cid } => {
                    let addr = VsockAddr::new(*cid, service.port());
                    let connected = VsockStream::connect(addr).await;
                    let stream = connected.map_err(|e| no_vsock(e, addr))?;
                    let mut stream = Probed::new(stream, &self.probe);
                    stream.write_all(first).await?;
                    Ok(Stream::Probed(stream))
                }
                Endpoint::Connect { socket } => {
                    let _permit = match service {
                        Service::Rpc => None,
                        Service::Channel => self.gate.turn().await,
                    };
                    let ask_for = format!("CONNECT {}\n", service.port());
                    let stream = unix(socket, ask_for.as_bytes()).await?;
                    let mut stream = Gated::new(stream, service, &self.gate);
                    let answer = read_connect_answer(&mut stream, service.port()).await;
                    stream.answered();
                    answer?;
                    stream.write_all(first).await?;
                    Ok(Stream::Gated(stream))
                }
            }
        };
        within_deadline(dialled).await
    }
}

/// Gives `dialled` up after [`DIAL_DEADLINE`].
pub(super) async fn within_deadline<T>(
    dialled: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    tokio::time::timeout(DIAL_DEADLINE, dialled)
        .await
        .unwrap_or_else(|_| {
            Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no connection within {DIAL_DEADLINE:?}"),
            ))
        })
}

/// Connects to a Unix socket, waiting for room in its backlog, and sends `first`. A Unix
/// socket connects at once or not at all, and a new one has room for a few bytes.
pub(super) async fn unix(path: &Path, first: &[u8]) -> io::Result<UnixStream> {
    let addr = SocketAddrUnix::new(path)?;
    loop {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        match connect(&socket, &addr) {
            Err(Errno::AGAIN) => tokio::time::sleep(BACKLOG_PAUSE).await,
            done => {
                done?;
                let sent = send(&socket, first, SendFlags::NOSIGNAL)?;
                if sent < first.len() {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                return UnixStream::from_std(socket.into());
            }
        }
    }
}

/// Reads what a `CONNECT` device answers for `port`. The number after `OK` is the device's own
/// port and has no meaning. Read byte by byte, since what follows belongs to the stream.
///
/// # Errors
/// The stream's; [`io::ErrorKind::ConnectionRefused`] when it ends before the answer does,
/// [`io::ErrorKind::InvalidData`] for an answer that is too long or not `OK`.
pub async fn read_connect_answer(
    stream: &mut (impl AsyncRead + Unpin),
    port: u32,
) -> io::Result<()> {
    let nobody = || nobody_listens(port);
    let gone = |e: io::Error| match e.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => nobody(),
        _ => e,
    };
    let mut answer = Vec::with_capacity(MAX_CONNECT_ANSWER);
    while answer.last() != Some(&b'\n') {
        let mut byte = [0];
        if answer.len() == MAX_CONNECT_ANSWER {
            return Err(not_a_device(&answer));
        }
        match stream.read(&mut byte).await.map_err(gone)? {
            0 => return Err(nobody()),
            _ => answer.push(byte[0]),
        }
    }
    if answer.starts_with(b"OK ") {
        Ok(())
    } else {
        Err(not_a_device(&answer))
    }
}

fn nobody_listens(port: u32) -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionRefused,
        format!("nobody listens on the guest's vsock port {port}"),
    )
}

/// What `error` of connect(2) on AF_VSOCK means. The kernel resets what nobody listens for
/// (virtio_transport_common.c), and queues what is sent to a guest without a driver, for two
/// seconds (vhost/vsock.c, af_vsock.c).
pub(super) fn no_vsock(error: io::Error, addr: VsockAddr) -> io::Error {
    let cid = addr.cid();
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::CONNRESET) => nobody_listens(addr.port()),
        Some(Errno::NODEV) => io::Error::new(
            io::ErrorKind::NotFound,
            format!("no VM here has the CID {cid}"),
        ),
        Some(Errno::TIMEDOUT) => io::Error::new(
            io::ErrorKind::TimedOut,
            format!("the VM with the CID {cid} does not answer yet"),
        ),
        _ => error,
    }
}

fn not_a_device(answer: &[u8]) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!(
            "the socket answered `{}` to CONNECT, not `OK`",
            answer.trim_ascii().escape_ascii()
        ),
    )
}
