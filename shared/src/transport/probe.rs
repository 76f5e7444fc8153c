//! AF_VSOCK streams that find out whether the guest still has their other end.
//!
//! A VM that goes back to a snapshot (QEMU's `loadvm`) has forgotten its connections of before, and so has one that
//! is reset. Its kernel says so only in answer to a packet. A client that waits for an answer sends none, and
//! would wait for ever.
//!
//! So once the agent answers again after its stream was lost, [`Probe::send`] has this kernel send a packet on each
//! stream that carries no byte: a receive buffer that becomes larger is told to the peer (virtio 1.2, 5.10.6.3). A
//! guest that was only paused takes note of it. One that does not have the connection answers with a reset, and the
//! stream ends as if the guest had said so by itself.
//!
//! Before Linux 5.5 the host's kernel sends nothing then, and such a client waits until it sends something.
//!
//! Invariant: a registered descriptor is open. It is taken out under the lock under which it is used, before its
//! stream is closed.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_vsock::VsockStream;

/// Options of AF_VSOCK sockets, from linux/vm_sockets.h.
const BUFFER_SIZE: libc::c_int = 0;
const BUFFER_MAX_SIZE: libc::c_int = 2;

/// All streams to one guest.
#[derive(Debug, Clone, Default)]
pub(super) struct Probe(Arc<Mutex<HashSet<RawFd>>>);

impl Probe {
    /// Asks the guest for each stream whether it has its other end. What it does not have is reset soon after.
    pub(super) fn send(&self) {
        for fd in self.lock().iter() {
            // SAFETY: it is open for as long as it is registered, and the lock is held.
            let socket = unsafe { BorrowedFd::borrow_raw(*fd) };
            if let Err(error) = grow_buffer(socket) {
                tracing::debug!(%error, "cannot ask the guest about a stream");
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<RawFd>> {
        // Nothing in here panics half-way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes the receive buffer larger by one byte, which has no other effect. Never smaller: a sender that has filled
/// the larger one may take less than nothing for endless room.
fn grow_buffer(socket: BorrowedFd<'_>) -> io::Result<()> {
    let mut size = 0_u64;
    let mut length: libc::socklen_t = 8;
    // SAFETY: the kernel writes at most `length` bytes, which `size` has.
    let read = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::AF_VSOCK,
            BUFFER_SIZE,
            (&raw mut size).cast(),
            &raw mut length,
        )
    };
    if read != 0 {
        return Err(io::Error::last_os_error());
    }
    size += 1;
    for option in [BUFFER_MAX_SIZE, BUFFER_SIZE] {
        // SAFETY: the kernel reads eight bytes, which `size` has.
        let written = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::AF_VSOCK,
                option,
                (&raw const size).cast(),
                length,
            )
        };
        if written != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// A stream that a [`Probe`] knows.
#[derive(Debug)]
pub struct Probed {
    stream: VsockStream,
    probe: Probe,
}

impl Probed {
    pub(super) fn new(stream: VsockStream, probe: &Probe) -> Self {
        probe.lock().insert(stream.as_raw_fd());
        Self {
            stream,
            probe: probe.clone(),
        }
    }

    fn stream(self: Pin<&mut Self>) -> Pin<&mut VsockStream> {
        Pin::new(&mut self.get_mut().stream)
    }
}

impl Drop for Probed {
    fn drop(&mut self) {
        self.probe.lock().remove(&self.stream.as_raw_fd());
    }
}

impl AsFd for Probed {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl AsyncRead for Probed {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream().poll_read(cx, buf)
    }
}

impl AsyncWrite for Probed {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stream().poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_shutdown(cx)
    }
}
