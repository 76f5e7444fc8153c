//! How host and agent reach each other: one small seam that the rest does not see.
//!
//! The host dials the [`Transport`] of an [`Endpoint`] (`dial`), the agent binds a [`ListenAddr`]
//! (`listen`), and both hold a [`Stream`]. Knocks, the only thing that an agent says unasked, are in
//! `knock`; what a `CONNECT` device needs is in `gate`. Steps 3 (RPC) and 6 (bytes) of the data flow
//! run over these streams.
//!
//! Three transports: Unix sockets (an agent on the same kernel), AF_VSOCK (vsock(7)), and the
//! Unix-socket vsock of Firecracker, Cloud Hypervisor and vhost-device-vsock, which speaks
//! `CONNECT port` before it passes bytes.
//!
//! Invariant: nothing here is trusted to carry a half-close. `CONNECT` devices lose a shutdown,
//! so what runs over a stream says its end in its own bytes (see [`crate::bytes::channel`]).

mod dial;
mod gate;
mod knock;
mod listen;
mod probe;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio_vsock::VsockStream;

pub use dial::{DIAL_DEADLINE, Endpoint, Service, Transport, read_connect_answer};
pub use gate::{Gated, HEARTBEAT, SILENCE};
pub use knock::{KnockTarget, Knocks};
pub use listen::{Acceptor, BACKLOG, ListenAddr};
pub use probe::Probed;

/// A connected byte stream between host and agent.
#[derive(Debug)]
pub enum Stream {
    /// A Unix socket (namespace guests).
    Unix(UnixStream),
    /// A Unix socket of a `CONNECT` transport.
    Gated(Gated),
    /// AF_VSOCK, the agent's end.
    Vsock(VsockStream),
    /// AF_VSOCK, the host's end.
    Probed(Probed),
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(stream) => stream.as_fd(),
            Self::Gated(stream) => stream.as_fd(),
            Self::Vsock(stream) => stream.as_fd(),
            Self::Probed(stream) => stream.as_fd(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Gated(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Vsock(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Probed(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Gated(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Vsock(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Probed(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Gated(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Vsock(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Probed(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Unix(stream) => stream.is_write_vectored(),
            Self::Gated(stream) => stream.is_write_vectored(),
            Self::Vsock(stream) => stream.is_write_vectored(),
            Self::Probed(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Self::Gated(stream) => Pin::new(stream).poll_flush(cx),
            Self::Vsock(stream) => Pin::new(stream).poll_flush(cx),
            Self::Probed(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Gated(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Vsock(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Probed(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
