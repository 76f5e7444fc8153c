//! The stream socket of `rum up`: connections into a VM for other `rum` processes of this user,
//! such as `rum ssh`.
//!
//! It speaks an agent's channel protocol ([`rum_shared::bytes::channel`]): it reads a port, writes
//! a status byte, and then passes frames on without parsing them. So the other `rum` needs neither
//! a forward nor a port in the range. And only one process dials a `CONNECT` device, which must not
//! be dialled while its guest is away.
//!
//! Only the same user and root can open the socket (0600 in 0700). If it is removed, it is
//! recreated.

use std::io;
use std::time::Duration;

use rum_shared::bytes::channel;
use rum_shared::bytes::channel::{DialStatus, Header};
use rum_shared::transport::Stream;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::task::JoinSet;

use super::peer;
use super::server::{ACCEPT_PAUSE, LOOK};
use super::socket::Socket;
use crate::forward::Dialer;
use crate::plan::Destination;
use crate::runtime_dir::RuntimeDir;

/// Most streams at a time: people with shells and their tools. More wait in the kernel's queue.
const MAX_STREAMS: usize = 64;
/// Deadline for a client to send its port.
const HEADER_DEADLINE: Duration = Duration::from_secs(5);

/// The bound stream socket.
#[derive(Debug)]
pub struct Streams(Socket);

impl Streams {
    /// Binds the socket of `dir`. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// As bind(2); AddrInUse if another live socket is there.
    pub fn bind(dir: &RuntimeDir) -> io::Result<Self> {
        Socket::bind(dir.streams_socket()).map(Self)
    }

    /// Serves until dropped, which closes all streams.
    pub async fn serve(mut self, dialer: &Dialer) {
        let mut clients = JoinSet::new();
        let mut look = tokio::time::interval(LOOK);
        loop {
            tokio::select! {
                accepted = self.0.accept(), if clients.len() < MAX_STREAMS => match accepted {
                    Ok(stream) => {
                        clients.spawn(client(stream, dialer.clone()));
                    }
                    Err(error) => {
                        tracing::debug!(%error, "cannot accept on the stream socket");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_) = clients.join_next() => {}
                _ = look.tick() => self.look_after(),
            }
        }
    }

    /// Recreates the socket if it was removed. The control server recreates the directory; until
    /// then this fails, and is tried again.
    fn look_after(&mut self) {
        if self.0.is_there() {
            return;
        }
        if let Err(error) = self.0.make_anew() {
            tracing::debug!(%error, "cannot make the stream socket anew");
        }
    }
}

/// Serves one client.
async fn client(mut stream: Stream, dialer: Dialer) {
    if let Err(error) = serve(&mut stream, dialer).await {
        tracing::debug!(%error, "a client of the stream socket");
    }
}

async fn serve(stream: &mut Stream, mut dialer: Dialer) -> io::Result<()> {
    if peer::is_inside(stream) {
        return channel::write_status(stream, DialStatus::Denied).await;
    }
    let header = tokio::time::timeout(HEADER_DEADLINE, channel::read_header(stream));
    let header = header.await.map_err(|_| io::ErrorKind::TimedOut)??;
    // Clients of this socket must not reach the guest's networks through it.
    let Some(Header::Destination(guest @ Destination { ip: None, .. })) = header else {
        return channel::write_status(stream, DialStatus::Denied).await;
    };
    let opened = tokio::select! {
        opened = dialer.channel(guest) => opened,
        // The client waits for its answer, so a byte violates the protocol, and EOF ends it.
        _ = stream.read_u8() => return Ok(()),
    };
    let guest = match opened {
        Ok(guest) => guest,
        // "No agent" has no status of its own: EOF means it, as on every channel.
        Err(None) => return Ok(()),
        Err(Some(status)) => return channel::write_status(stream, status).await,
    };
    channel::write_status(stream, DialStatus::Connected).await?;
    tokio::select! {
        passed = pass(stream, guest) => passed,
        // A successor of the agent cannot continue this channel's frames.
        () = dialer.succeeded() => Ok(()),
    }
}

/// Relays bytes until either side ends; the frames tell the peers which direction has ended.
async fn pass(client: &mut Stream, guest: Stream) -> io::Result<()> {
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_guest, mut to_guest) = tokio::io::split(guest);
    tokio::select! {
        done = copy(&mut from_client, &mut to_guest) => done,
        done = copy(&mut from_guest, &mut to_client) => done,
    }
}

async fn copy(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    tokio::io::copy(from, to).await?;
    to.flush().await
}
