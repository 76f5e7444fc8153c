//! Knocks: an agent whose stream nobody reads connects to port [`KNOCK_PORT`] of the host and closes.
//!
//! A `CONNECT` device turns that into a connection to `SOCKET_2224`. There the host waits for a
//! knock instead of dialling a guest that is still booting. A knock carries no fact: it only wakes.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::time::Instant;
use tokio_vsock::{VMADDR_CID_HOST, VsockAddr, VsockStream};

use super::dial::{Endpoint, unix, within_deadline};
use super::gate::Gate;
use super::listen::bind_unix;
use crate::KNOCK_PORT;

/// Pause after an accept that failed (EMFILE and its kin pass).
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// Pause after a try to listen where another process does.
const LISTEN_PAUSE: Duration = Duration::from_millis(500);
/// How often it looks whether the socket can still be found.
const LOOK_PERIOD: Duration = Duration::from_secs(1);

/// Where an agent knocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KnockTarget {
    /// The host (CID 2), port [`KNOCK_PORT`].
    Vsock,
    /// A Unix socket.
    Unix(PathBuf),
}

impl KnockTarget {
    /// Connects and closes, within [`super::DIAL_DEADLINE`].
    ///
    /// # Errors
    /// As connect(2). Nobody need be listening, so a caller ignores them.
    pub async fn knock(&self) -> io::Result<()> {
        within_deadline(async {
            match self {
                Self::Vsock => VsockStream::connect(VsockAddr::new(VMADDR_CID_HOST, KNOCK_PORT))
                    .await
                    .map(drop),
                Self::Unix(path) => unix(path, &[]).await.map(drop),
            }
        })
        .await
    }
}

/// Hears the knocks of one agent; its socket file goes when it is dropped.
///
/// Only one process can listen: another one that asks the same guest may be first (`rum ports` without
/// a `rum up`, for some seconds). So this one tries again. And a socket whose file is gone or replaced
/// would hear nothing for ever: so that is looked for, and the socket is made anew.
#[derive(Debug)]
pub struct Knocks {
    /// None where no knock can arrive.
    path: Option<PathBuf>,
    listener: Option<UnixListener>,
    /// Device and inode of the file, while there is a listener.
    file: Option<(u64, u64)>,
    /// When to look for the file, or to try to listen, again.
    look_at: Instant,
    gate: Gate,
    warned: bool,
}

impl Knocks {
    pub(super) fn new(endpoint: &Endpoint, gate: Gate) -> Self {
        let path = match endpoint {
            Endpoint::Connect { socket } => {
                let mut path = OsString::from(socket);
                path.push(format!("_{KNOCK_PORT}"));
                Some(path.into())
            }
            Endpoint::Unix { .. } | Endpoint::Vsock { .. } => None,
        };
        Self {
            path,
            listener: None,
            file: None,
            look_at: Instant::now(),
            gate,
            warned: false,
        }
    }

    /// Whether the agent knocks where this hears it. Others are dialled again and again.
    pub fn can_arrive(&self) -> bool {
        self.path.is_some()
    }

    /// Begins to listen, unless it does where it can be found. Call it inside a tokio runtime. False if
    /// it cannot now, which is logged once.
    pub(super) fn listen(&mut self) -> bool {
        let Some(path) = &self.path else {
            return false;
        };
        if self.listener.is_some() && !self.is_in_place() {
            tracing::debug!(path = %path.display(), "the knock socket's file was taken away");
            self.listener = None;
        }
        if self.listener.is_none() {
            match bind_unix(path) {
                Ok(listener) => {
                    self.listener = Some(listener);
                    self.file = identity(path);
                }
                Err(error) if !std::mem::replace(&mut self.warned, true) => {
                    tracing::warn!(%error, "cannot listen for the agent's knock, trying without");
                }
                Err(_) => {}
            }
        }
        let is_there = self.listener.is_some();
        self.look_at = Instant::now() + if is_there { LOOK_PERIOD } else { LISTEN_PAUSE };
        is_there
    }

    /// Waits until the agent may be dialled: for its knock, or a byte on a stream that is parked, either
    /// of which opens the gate. Does not wait where no knock can be heard. Cancel-safe.
    pub async fn ready(&mut self) {
        if !self.listen() {
            return;
        }
        let gate = self.gate.clone();
        tokio::select! {
            () = gate.sign_of_life() => gate.heard(),
            () = self.next() => {}
        }
    }

    /// Completes with the next knock, which opens the gate; where none can arrive, never. Cancel-safe.
    pub async fn next(&mut self) {
        if !self.can_arrive() {
            return std::future::pending().await;
        }
        loop {
            if self.look_at <= Instant::now() {
                self.listen();
            }
            let Some(listener) = &self.listener else {
                tokio::time::sleep_until(self.look_at).await;
                continue;
            };
            match tokio::time::timeout_at(self.look_at, listener.accept()).await {
                Ok(Ok(_)) => break,
                Ok(Err(error)) => {
                    tracing::debug!(%error, "a knock could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                Err(_) => {}
            }
        }
        self.gate.heard();
    }

    /// Forgets the knocks that have arrived: one from before the end of a session would count for a
    /// guest that boots later. Bounded, so that a guest that never stops knocking cannot hold the
    /// host here.
    pub fn clear(&mut self) {
        if let Some(listener) = &self.listener {
            // Not through tokio, which asks the kernel only after it was told of a readiness.
            (0..=super::BACKLOG).find(|_| rustix::net::accept(listener).is_err());
        }
    }

    /// Whether the path still leads to what was bound there.
    fn is_in_place(&self) -> bool {
        self.file.is_some() && self.file == self.path.as_deref().and_then(identity)
    }
}

/// Device and inode of the file at `path`, if there is one.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let file = path.symlink_metadata().ok()?;
    Some((file.dev(), file.ino()))
}

impl Drop for Knocks {
    fn drop(&mut self) {
        if let (Some(path), Some(_)) = (&self.path, &self.listener)
            && self.is_in_place()
            && let Err(error) = std::fs::remove_file(path)
        {
            tracing::debug!(%error, path = %path.display(), "knock socket not removed");
        }
    }
}
