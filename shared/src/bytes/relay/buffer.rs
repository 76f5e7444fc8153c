//! The buffers of the relays.
//!
//! A direction needs a buffer from the moment bytes arrive until they are written, which mostly is
//! at once. So a thread needs few buffers, and reuses those that are in its cache. A direction
//! whose reader is slow keeps its own meanwhile. Thousands of connections whose readers never read
//! must not use up the memory: the buffers of a process are counted, and when many are in use the
//! next ones are smaller.
//!
//! Invariants: a thread keeps at most [`SPARE`] unused buffers; at most [`MANY`] large ones are in
//! use at once, and [`MANY_SMALL`] that are not tiny.

use std::cell::RefCell;
use std::io;
use std::ops::{Deref, DerefMut};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll};

use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::ioctl::{Getter, Opcode, ioctl};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::{TcpStream, tcp};

/// Bytes of a buffer. With 64 KiB a stream reaches two thirds of this size's throughput, since each
/// turn costs a wake-up; 512 KiB no longer fits into a processor's cache and gains nothing.
pub(super) const SIZE: usize = 256 * 1024;
/// Bytes of a buffer beyond [`MANY`]: slow readers need no speed. 4,096 connections that are full
/// both ways hold 128 MiB of these.
pub(super) const SMALL: usize = 16 * 1024;
/// Bytes of a buffer beyond [`MANY_SMALL`]: 32,768 connections that are full both ways hold 224 MiB.
pub(super) const TINY: usize = 4 * 1024;
/// Number of buffers in a process above which new ones are [`TINY`].
pub(super) const MANY_SMALL: usize = 8192;
/// Most large buffers of a process: 64 MiB, and more directions than two processors can serve.
pub(super) const MANY: usize = 256;
/// Unused buffers that a thread keeps: one for each direction of the connection that it serves.
const SPARE: usize = 2;

/// Number of buffers in use.
static USED: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static SPARES: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Bytes that were read. Dropped, the buffer goes back to its thread's spares.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    /// The counter that counts this buffer.
    used: &'static AtomicUsize,
}

impl Buffer {
    /// A buffer, counted as used, with `gap` zero bytes.
    fn after(gap: usize) -> Self {
        let mut buffer = Self::take(&USED);
        buffer.bytes.resize(gap, 0);
        buffer
    }

    fn take(used: &'static AtomicUsize) -> Self {
        let bytes = match used.fetch_add(1, Relaxed) {
            0..MANY => SPARES
                .with_borrow_mut(Vec::pop)
                .unwrap_or_else(|| Vec::with_capacity(SIZE)),
            MANY..MANY_SMALL => Vec::with_capacity(SMALL),
            _ => Vec::with_capacity(TINY),
        };
        Self { bytes, used }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.used.fetch_sub(1, Relaxed);
        // A smaller buffer, or one made from a `Vec`.
        if self.bytes.capacity() != SIZE {
            return;
        }
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        // When the thread ends its spares may already be gone.
        let _ = SPARES.try_with(|spares| {
            let mut spares = spares.borrow_mut();
            if spares.len() < SPARE {
                spares.push(bytes);
            }
        });
    }
}

/// Bytes that were not read by [`read_some`].
impl From<Vec<u8>> for Buffer {
    fn from(bytes: Vec<u8>) -> Self {
        let used = &USED;
        used.fetch_add(1, Relaxed);
        Self { bytes, used }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

/// Reads what is available, after `gap` zero bytes; returns only the gap at the end of the stream.
/// A buffer is allocated only once bytes are available: waiting costs no memory.
pub(super) async fn read_some(
    reader: &mut (impl AsyncRead + Unpin),
    gap: usize,
) -> io::Result<Buffer> {
    std::future::poll_fn(|cx| poll_some(cx, reader, gap)).await
}

/// One poll of [`read_some`].
fn poll_some(
    cx: &mut Context<'_>,
    reader: &mut (impl AsyncRead + Unpin),
    gap: usize,
) -> Poll<io::Result<Buffer>> {
    let mut buffer = Buffer::after(gap);
    let read = pin!(reader.read_buf(&mut buffer.bytes)).poll(cx);
    read.map_ok(|_| buffer)
}

/// One poll of [`read_some`] for a TCP socket. A read ends before an urgent byte (tcp(7)). tokio
/// takes that, like every short read, to mean that nothing more is available, so no event would
/// follow. From then on `behind`, which is false at first, makes this read without tokio's
/// readiness until nothing is left.
pub(super) fn poll_tcp(
    cx: &mut Context<'_>,
    tcp: &mut tcp::ReadHalf<'_>,
    gap: usize,
    behind: &mut bool,
) -> Poll<io::Result<Buffer>> {
    let read = poll_some(cx, tcp, gap);
    let tcp: &TcpStream = (*tcp).as_ref();
    if read.is_ready() || !(*behind || is_at_mark(tcp)) {
        return read;
    }
    let mut buffer = Buffer::after(gap);
    match rustix::io::read(tcp, spare_capacity(&mut buffer.bytes)) {
        Err(Errno::AGAIN) => {
            *behind = false;
            Poll::Pending
        }
        read => {
            *behind = true;
            Poll::Ready(read.map(|_| buffer).map_err(Into::into))
        }
    }
}

/// Whether the next byte of the stream is an urgent one (sockatmark(3)).
fn is_at_mark(tcp: &TcpStream) -> bool {
    /// linux/sockios.h.
    const SIOCATMARK: Opcode = 0x8905;
    // SAFETY: this request writes an int (tcp_ioctl, net/ipv4/tcp.c).
    let at_mark = unsafe { ioctl(tcp, Getter::<SIOCATMARK, std::ffi::c_int>::new()) };
    at_mark == Ok(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_there_are_the_smaller_they_get() {
        static HERE: AtomicUsize = AtomicUsize::new(0);
        let mut large: Vec<Buffer> = (0..MANY).map(|_| Buffer::take(&HERE)).collect();
        assert!(large.iter().all(|buffer| buffer.bytes.capacity() == SIZE));
        for _ in 0..3 {
            assert_eq!(Buffer::take(&HERE).bytes.capacity(), SMALL);
        }
        HERE.store(MANY_SMALL, Relaxed);
        assert_eq!(Buffer::take(&HERE).bytes.capacity(), TINY);
        HERE.store(MANY, Relaxed);
        drop(large.pop());
        assert_eq!(Buffer::take(&HERE).bytes.capacity(), SIZE);
        drop(large);
        assert_eq!(HERE.load(Relaxed), 0);
        assert_eq!(SPARES.with_borrow(Vec::len), SPARE);
    }
}
