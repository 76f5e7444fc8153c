//! The buffers of the relays.
//!
//! A direction needs a buffer from the moment bytes arrive until they are written, which mostly is
//! at once: so a thread needs few, and uses the same ones over and over while they are in its
//! cache. A direction whose reader is slow keeps its own meanwhile.
//!
//! Invariant: a thread keeps at most [`SPARE`] that nobody uses.

use std::cell::RefCell;
use std::io;
use std::ops::{Deref, DerefMut};
use std::pin::pin;
use std::task::Poll;

use tokio::io::{AsyncRead, AsyncReadExt};

/// Bytes of a buffer. With 64 KiB one stream gets two thirds of what it gets with this, since each
/// turn costs a wake-up; 512 KiB no longer fits into a processor's cache and gains nothing.
pub(super) const SIZE: usize = 256 * 1024;
/// Buffers that a thread keeps: one for each direction of the connection that it is busy with.
const SPARE: usize = 2;

thread_local! {
    static SPARES: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Bytes that were read. Goes back to its thread's spares when it is dropped.
#[derive(Debug)]
pub(super) struct Buffer(Vec<u8>);

impl Buffer {
    fn take() -> Self {
        let spare = SPARES.with_borrow_mut(Vec::pop);
        Self(spare.unwrap_or_else(|| Vec::with_capacity(SIZE)))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.0);
        bytes.clear();
        // When the thread ends its spares may be gone already.
        let _ = SPARES.try_with(|spares| {
            let mut spares = spares.borrow_mut();
            if spares.len() < SPARE {
                spares.push(bytes);
            }
        });
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

/// Reads what there is, after `gap` zero bytes; only the gap at the end of the stream. A buffer is
/// held only while there is something in it: waiting costs no memory.
pub(super) async fn read_some(
    reader: &mut (impl AsyncRead + Unpin),
    gap: usize,
) -> io::Result<Buffer> {
    std::future::poll_fn(|cx| {
        let mut buffer = Buffer::take();
        buffer.0.resize(gap, 0);
        let read = match pin!(reader.read_buf(&mut buffer.0)).poll(cx) {
            Poll::Ready(read) => read,
            Poll::Pending => return Poll::Pending,
        };
        Poll::Ready(read.map(|_| buffer))
    })
    .await
}
