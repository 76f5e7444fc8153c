//! The stream socket of `rum up`: connections into a VM for other `rum` processes of this user, such as
//! `rum ssh`.
//!
//! It speaks as an agent does on its channel ([`rum_shared::bytes::channel`]): a port comes, a status byte goes, and
//! frames follow, which are passed on unread. So the `rum` at the other end needs neither a forward nor a port
//! in the range; and a `CONNECT` device, which must be left alone while its guest is away, is dialled by one
//! process only.
//!
//! Who can open the socket is the same user or root (0600 in 0700). When somebody removes it, it is made anew.

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

/// Streams at a time: people with shells and their tools. More wait in the kernel's queue.
const MAX_STREAMS: usize = 64;
/// Time for a client to name its port.
const HEADER_DEADLINE: Duration = Duration::from_secs(5);

/// The stream socket, bound.
#[derive(Debug)]
pub struct Streams(Socket);

impl Streams {
    /// Binds the socket of `dir`. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// As bind(2); AddrInUse when a live one is there.
    pub fn bind(dir: &RuntimeDir) -> io::Result<Self> {
        Socket::bind(dir.streams_socket()).map(Self)
    }

    /// Serves until dropped, which cuts what is served.
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

    /// Makes the socket anew where it was removed. That of the directory is the control socket's server's
    /// work: until then this fails, and is tried again.
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
    // Whoever may use it may not reach the guest's networks by it.
    let Some(Header::Destination(guest @ Destination { ip: None, .. })) = header else {
        return channel::write_status(stream, DialStatus::Denied).await;
    };
    let opened = tokio::select! {
        opened = dialer.channel(guest) => opened,
        // It waits for its answer: whatever comes is its end, or against the rules.
        _ = stream.read_u8() => return Ok(()),
    };
    let guest = match opened {
        Ok(guest) => guest,
        // To be without an agent has no status of its own: the end of the stream says it, as everywhere.
        Err(None) => return Ok(()),
        Err(Some(status)) => return channel::write_status(stream, status).await,
    };
    channel::write_status(stream, DialStatus::Connected).await?;
    tokio::select! {
        passed = pass(stream, guest) => passed,
        // The frames of one agent are nothing to the next.
        () = dialer.succeeded() => Ok(()),
    }
}

/// Passes bytes on until one of the two ends: the frames say which direction has.
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
