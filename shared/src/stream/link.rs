//! Step 3 of the data flow: a roam [`Link`](roam::Link) that distrusts its peer.
//!
//! On the wire it is roam-stream's: four bytes of length, little-endian, then the message. It
//! replaces roam-stream's link because that one allocates whatever a length claims, loses
//! bytes when a receive is cancelled, and writes from a task that nobody can stop.
//!
//! [`pair`] makes the two halves and a [`Writer`] that its owner drives: dropping that and the
//! receiving half closes the stream, whoever still holds a sender.
//!
//! Invariants:
//! - a receive may be cancelled at any await: what has arrived stays in the buffer;
//! - the buffer grows with what has arrived, not with what a length claims, and never beyond
//!   one frame and one read;
//! - roam keeps things for the life of a session (calls that are over, items of channels that
//!   it does not know), so what one session may receive is bounded as well: by
//!   [`MAX_SESSION_FRAMES`] and a number of bytes. [`Usage::is_worn`] tells in time;
//! - a write that makes no progress for [`WRITE_STALL`] ends the session.

#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use roam::{Backing, LinkRx, LinkTx, LinkTxPermit, WriteSlot};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

/// Bytes of a frame's length.
const LENGTH: usize = 4;
/// How much is read at once, and how much of an idle session's buffer is kept.
const READ: usize = 4 * 1024;
/// Small frames that wait together are written together, up to about this many bytes.
const WRITE_BATCH: usize = 32 * 1024;
/// Most frames that one session may receive. Roam keeps up to about 600 bytes beside the frame
/// for one that belongs to a channel that it does not know, so this bounds a hostile session to
/// about 10 MB beside its bytes; an honest session is renewed when it is worn.
pub const MAX_SESSION_FRAMES: u64 = 16 * 1024;
/// A peer that takes no byte for this long is dead or hostile. Longer than a host under load
/// or a paused VM that somebody looks at briefly.
pub const WRITE_STALL: Duration = Duration::from_secs(20);

/// What a session has received so far, and may receive.
#[derive(Debug)]
pub struct Usage {
    frames: AtomicU64,
    bytes: AtomicU64,
    /// Most bytes.
    limit: u64,
}

impl Usage {
    /// Nothing so far, of at most `bytes`: what a peer can make us hold in channels that roam
    /// does not know.
    pub fn new(bytes: u64) -> Self {
        Self {
            frames: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            limit: bytes,
        }
    }

    /// Half of what a session may receive is used up: time to make a new one.
    pub fn is_worn(&self) -> bool {
        self.frames.load(Ordering::Relaxed) > MAX_SESSION_FRAMES / 2
            || self.bytes.load(Ordering::Relaxed) > self.limit / 2
    }

    /// Counts a frame of `length` bytes.
    fn take(&self, length: usize) -> Result<(), LinkError> {
        let frames = self.frames.fetch_add(1, Ordering::Relaxed) + 1;
        let length = (LENGTH + length) as u64;
        let bytes = self.bytes.fetch_add(length, Ordering::Relaxed) + length;
        if frames > MAX_SESSION_FRAMES || bytes > self.limit {
            return Err(LinkError::Spent);
        }
        Ok(())
    }
}

/// Why nothing more can be received.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The stream failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A length above the limit.
    #[error("a frame of {length} bytes, more than {limit}")]
    TooLong {
        /// What the peer claims.
        length: usize,
        /// What is accepted.
        limit: usize,
    },
    /// The stream ended inside a frame.
    #[error("the stream ended inside a frame")]
    Cut,
    /// The session received as much as one session may.
    #[error("the session has received all that one session may")]
    Spent,
}

/// A link over the two halves of a stream, and the writer that its owner has to drive.
/// `frame` is the largest frame that is read, in bytes.
pub fn pair<R, W>(reader: R, writer: W, frame: usize, usage: Arc<Usage>) -> (Link<R>, Writer<W>) {
    // One frame waits while others are written: the rest of the back-pressure is roam's.
    let (sender, frames) = mpsc::channel(1);
    let receiver = Receiver {
        reader,
        buffer: Vec::new(),
        taken: 0,
        limit: frame,
        usage,
    };
    let link = Link {
        sender: Sender(sender),
        receiver,
    };
    (link, Writer { writer, frames })
}

/// What roam takes.
#[derive(Debug)]
pub struct Link<R> {
    sender: Sender,
    receiver: Receiver<R>,
}

impl<R: AsyncRead + Send + Unpin + 'static> roam::Link for Link<R> {
    type Tx = Sender;
    type Rx = Receiver<R>;

    fn split(self) -> (Sender, Receiver<R>) {
        (self.sender, self.receiver)
    }
}

/// The receiving half.
#[derive(Debug)]
pub struct Receiver<R> {
    reader: R,
    /// What has arrived; the first `taken` bytes of it were handed out.
    buffer: Vec<u8>,
    taken: usize,
    limit: usize,
    usage: Arc<Usage>,
}

impl<R> Receiver<R> {
    /// The next frame, if it has arrived completely.
    fn take(&mut self) -> Result<Option<Box<[u8]>>, LinkError> {
        let Some((length, rest)) = self.buffer[self.taken..].split_first_chunk::<LENGTH>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*length) as usize;
        if length > self.limit {
            let limit = self.limit;
            return Err(LinkError::TooLong { length, limit });
        }
        let Some(frame) = rest.get(..length) else {
            return Ok(None);
        };
        let frame = Box::from(frame);
        self.usage.take(length)?;
        self.taken += LENGTH + length;
        Ok(Some(frame))
    }

    /// Drops what was handed out, and the memory of a large frame after it.
    fn compact(&mut self) {
        self.buffer.drain(..self.taken);
        self.taken = 0;
        if self.buffer.len() <= READ {
            self.buffer.shrink_to(READ);
        }
        // Reads fill the spare capacity: it doubles with what has arrived.
        if self.buffer.capacity() - self.buffer.len() < READ / 2 {
            self.buffer.reserve(READ.max(self.buffer.len()));
        }
    }
}

impl<R: AsyncRead + Send + Unpin + 'static> LinkRx for Receiver<R> {
    type Error = LinkError;

    /// The next frame; `None` at the end of the stream. Cancel-safe.
    async fn recv(&mut self) -> Result<Option<Backing>, LinkError> {
        loop {
            if let Some(frame) = self.take()? {
                return Ok(Some(Backing::Boxed(frame)));
            }
            self.compact();
            // Cancel-safe: the buffer is only extended together with the read.
            if self.reader.read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(LinkError::Cut)
                };
            }
        }
    }
}

/// The sending half: hands frames to the [`Writer`].
#[derive(Debug)]
pub struct Sender(mpsc::Sender<Vec<u8>>);

/// The right to send one frame.
#[derive(Debug)]
pub struct Permit(mpsc::OwnedPermit<Vec<u8>>);

/// A frame that is being filled.
#[derive(Debug)]
pub struct Slot {
    permit: mpsc::OwnedPermit<Vec<u8>>,
    /// With its length in front.
    frame: Vec<u8>,
}

impl LinkTx for Sender {
    type Permit = Permit;

    async fn reserve(&self) -> io::Result<Permit> {
        let permit = self.0.clone().reserve_owned().await;
        permit.map(Permit).map_err(|_| {
            io::Error::new(io::ErrorKind::BrokenPipe, "the session's writer has ended")
        })
    }

    async fn close(self) -> io::Result<()> {
        Ok(())
    }
}

impl LinkTxPermit for Permit {
    type Slot = Slot;

    fn alloc(self, len: usize) -> io::Result<Slot> {
        let length = u32::try_from(len).map_err(io::Error::other)?;
        let mut frame = vec![0; LENGTH + len];
        frame[..LENGTH].copy_from_slice(&length.to_le_bytes());
        let permit = self.0;
        Ok(Slot { permit, frame })
    }
}

impl WriteSlot for Slot {
    fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.frame[LENGTH..]
    }

    fn commit(self) {
        self.permit.send(self.frame);
    }
}

/// Writes what the [`Sender`] hands over.
#[derive(Debug)]
pub struct Writer<W> {
    writer: W,
    frames: mpsc::Receiver<Vec<u8>>,
}

impl<W: AsyncWrite + Unpin> Writer<W> {
    /// Writes until every sender is gone.
    ///
    /// # Errors
    /// The stream's, and [`io::ErrorKind::TimedOut`] after [`WRITE_STALL`] without progress.
    pub async fn run(mut self) -> io::Result<()> {
        while let Some(mut batch) = self.frames.recv().await {
            while batch.len() < WRITE_BATCH {
                match self.frames.try_recv() {
                    Ok(frame) => batch.extend_from_slice(&frame),
                    Err(_) => break,
                }
            }
            let mut rest = &batch[..];
            while !rest.is_empty() {
                let written = tokio::time::timeout(WRITE_STALL, self.writer.write(rest)).await;
                match written.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?? {
                    0 => return Err(io::ErrorKind::WriteZero.into()),
                    n => rest = &rest[n..],
                }
            }
        }
        Ok(())
    }
}
