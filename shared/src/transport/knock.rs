//! Knocks: an agent of which nobody has a stream connects to port [`KNOCK_PORT`] of the host and closes.
//!
//! A `CONNECT` device turns that into a connection to `SOCKET_2224`, so there the host waits
//! for a knock instead of polling a guest that is still booting. A knock carries no fact: it
//! only wakes.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio_vsock::{VMADDR_CID_HOST, VsockAddr, VsockStream};

use super::dial::{Endpoint, unix, within_deadline};
use super::gate::Gate;
use super::listen::bind_unix;
use crate::KNOCK_PORT;

/// Pause after an accept that failed (EMFILE and its kin pass).
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

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
#[derive(Debug)]
pub struct Knocks {
    listener: UnixListener,
    path: PathBuf,
    gate: Gate,
}

impl Endpoint {
    /// A listener for the knocks of the agent behind this endpoint; `None` where none can
    /// arrive (the others are polled). Call it inside a tokio runtime.
    ///
    /// # Errors
    /// As [`super::ListenAddr::bind`] of a Unix socket.
    pub fn knock_listener(&self) -> io::Result<Option<Knocks>> {
        let Self::Connect { socket, gate } = self else {
            return Ok(None);
        };
        let mut path = OsString::from(socket);
        path.push(format!("_{KNOCK_PORT}"));
        let path = PathBuf::from(path);
        let listener = bind_unix(&path)?;
        let gate = gate.clone();
        Ok(Some(Knocks {
            listener,
            path,
            gate,
        }))
    }
}

impl Knocks {
    /// Completes with the next knock, or another sign of life (see [`Gate`]), which opens the
    /// gate. Cancel-safe.
    pub async fn next(&mut self) {
        tokio::select! {
            () = self.gate.sign_of_life() => self.gate.heard(),
            () = self.knock() => {}
        }
    }

    /// Completes with the next knock, which opens the gate. Cancel-safe.
    pub async fn knock(&self) {
        while let Err(error) = self.listener.accept().await {
            tracing::debug!(%error, "a knock could not be accepted");
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
        self.gate.heard();
    }

    /// Forgets the knocks that have arrived: those of before or during a session that has ended
    /// would count for a guest that boots later. Bounded, so that a guest that never stops
    /// knocking cannot hold the host here.
    pub fn clear(&mut self) {
        // Not through tokio, which asks the kernel only after it was told of a readiness.
        (0..=super::BACKLOG).find(|_| rustix::net::accept(&self.listener).is_err());
    }
}

impl Drop for Knocks {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(%error, path = %self.path.display(), "knock socket not removed");
        }
    }
}
