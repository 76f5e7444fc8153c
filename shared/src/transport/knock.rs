//! Knocks: an agent of which nobody has a stream connects to port [`KNOCK_PORT`] of the host and closes.
//!
//! A `CONNECT` device turns that into a connection to `SOCKET_2224`, so there the host waits
//! for a knock instead of polling a guest that is still booting. A knock carries no fact: it
//! only wakes.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::UnixListener;
use tokio_vsock::{VMADDR_CID_HOST, VsockAddr, VsockStream};

use super::dial::{Endpoint, unix, within_deadline};
use super::gate::Gate;
use super::listen::bind_unix;
use crate::KNOCK_PORT;

/// Pause after an accept that failed (EMFILE and its kin pass).
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// Pause after a try to listen where another process does.
const LISTEN_PAUSE: Duration = Duration::from_millis(500);

/// How often is looked whether the socket can still be found.
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

/// Waits for knocks; its socket file goes when it is dropped.
///
/// Only one process can: another one that asks the same guest may be first (`rum ports` without a
/// `rum up`, for some seconds). So it is tried again. And a socket whose file is gone, or another
/// one, would hear nothing for ever: so that is looked for, and it is made anew.
#[derive(Debug)]
pub struct Knocks {
    listener: Option<UnixListener>,
    /// Device and inode of the file, while there is a listener.
    file: Option<(u64, u64)>,
    path: PathBuf,
    gate: Gate,
    warned: bool,
}

impl Endpoint {
    /// What hears the knocks of the agent behind this endpoint; `None` where none can arrive
    /// (the others are polled).
    pub fn knocks(&self) -> Option<Knocks> {
        let Self::Connect { socket, gate } = self else {
            return None;
        };
        let mut path = OsString::from(socket);
        path.push(format!("_{KNOCK_PORT}"));
        Some(Knocks {
            listener: None,
            file: None,
            path: PathBuf::from(path),
            gate: gate.clone(),
            warned: false,
        })
    }
}

impl Knocks {
    /// Begins to listen, unless it does where it can be found. Call it inside a tokio runtime. False if
    /// it cannot now, which is logged once.
    pub fn listen(&mut self) -> bool {
        if self.listener.is_some() && !self.is_in_place() {
            tracing::debug!(path = %self.path.display(), "the knock socket's file was taken away");
            self.listener = None;
        }
        if self.listener.is_none() {
            match bind_unix(&self.path) {
                Ok(listener) => {
                    self.listener = Some(listener);
                    self.file = identity(&self.path);
                }
                Err(error) if !std::mem::replace(&mut self.warned, true) => {
                    tracing::warn!(%error, "cannot listen for the agent's knock, trying without");
                }
                Err(_) => {}
            }
        }
        self.listener.is_some()
    }

    /// Completes with the next knock, or another sign of life (see [`Gate`]), which opens the
    /// gate. Cancel-safe.
    pub async fn next(&mut self) {
        let gate = self.gate.clone();
        tokio::select! {
            () = gate.sign_of_life() => gate.heard(),
            () = self.knock() => {}
        }
    }

    /// Completes with the next knock, which opens the gate. Cancel-safe.
    pub async fn knock(&mut self) {
        loop {
            self.listen();
            let error = match &self.listener {
                None => {
                    tokio::time::sleep(LISTEN_PAUSE).await;
                    continue;
                }
                Some(listener) => {
                    match tokio::time::timeout(LOOK_PERIOD, listener.accept()).await {
                        Ok(Ok(_)) => break,
                        Ok(Err(error)) => error,
                        Err(_) => continue,
                    }
                }
            };
            tracing::debug!(%error, "a knock could not be accepted");
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
        self.gate.heard();
    }

    /// Forgets the knocks that have arrived: those of before or during a session that has ended
    /// would count for a guest that boots later. Bounded, so that a guest that never stops
    /// knocking cannot hold the host here.
    pub fn clear(&mut self) {
        if let Some(listener) = &self.listener {
            // Not through tokio, which asks the kernel only after it was told of a readiness.
            (0..=super::BACKLOG).find(|_| rustix::net::accept(listener).is_err());
        }
    }

    /// Whether the path still leads to what was bound there.
    fn is_in_place(&self) -> bool {
        self.file.is_some() && self.file == identity(&self.path)
    }
}

/// Device and inode of the file at `path`, if there is one.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let file = path.symlink_metadata().ok()?;
    Some((file.dev(), file.ino()))
}

impl Drop for Knocks {
    fn drop(&mut self) {
        if self.listener.is_none() || !self.is_in_place() {
            return;
        }
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(%error, path = %self.path.display(), "knock socket not removed");
        }
    }
}
