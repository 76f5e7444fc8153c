//! The pipes of the direct relay: splice(2) moves bytes in bulk from one socket to the other
//! without copying them to user space.
//!
//! As with [`super::buffer`], a direction has a pipe only from the moment it is filled until it is
//! empty, so few pipes are used, over and over. A direction whose reader is slow keeps its own.
//! Beyond [`MANY`] of those, or where no pipe can be made (the limit of descriptors;
//! `fs.pipe-user-pages-soft`, pipe(7)), the relay copies.
//!
//! Invariants: the bytes in a pipe go to one socket, in order, before the pipe is filled again; a
//! pipe that could not be emptied is closed. Empty ones are kept only while a [`Busy`] exists.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Bytes of a pipe: the most that an ordinary user may have (`fs.pipe-max-size`).
const SIZE: usize = 1 << 20;
/// Most pipes of a process: 64 descriptors, and at most 32 MiB of data that the kernel holds
/// anyway.
const MANY: usize = 32;
/// Empty pipes that are kept.
const SPARE: usize = 4;
const FLAGS: SpliceFlags = SpliceFlags::MOVE.union(SpliceFlags::NONBLOCK);

/// The pipes of this process.
pub(super) static POOL: Pool = Pool::new();

/// A number of pipes.
#[derive(Debug)]
pub(super) struct Pool(Mutex<Pipes>);

#[derive(Debug)]
struct Pipes {
    /// Existing pipes, the spare ones included.
    made: usize,
    spare: Vec<Ends>,
    busy: usize,
}

#[derive(Debug)]
struct Ends {
    out: OwnedFd,
    into: OwnedFd,
}

impl Ends {
    fn new() -> rustix::io::Result<Self> {
        let (out, into) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // A smaller pipe gains nothing.
        fcntl_setpipe_size(&into, SIZE)?;
        Ok(Self { out, into })
    }
}

impl Pool {
    const fn new() -> Self {
        Self(Mutex::new(Pipes {
            made: 0,
            spare: Vec::new(),
            busy: 0,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Pipes> {
        // A panic leaves no half-done change, so a poisoned lock is usable.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until the value is dropped, empty pipes are kept.
    pub(super) fn busy(&'static self) -> Busy {
        self.lock().busy += 1;
        Busy(self)
    }

    fn take(&'static self) -> Option<Pipe> {
        let mut pipes = self.lock();
        let ends = match pipes.spare.pop() {
            Some(ends) => ends,
            None if pipes.made < MANY => {
                let ends = Ends::new().ok()?;
                pipes.made += 1;
                ends
            }
            None => return None,
        };
        Some(Pipe {
            ends: Some(ends),
            held: 0,
            pool: self,
        })
    }

    /// Fills a pipe from `from`; an empty pipe at its end. `Ok(None)`: no pipe is available.
    ///
    /// # Errors
    /// `WouldBlock`, also if there is only something that splice(2) cannot move (urgent data); and
    /// those of the socket.
    pub(super) fn fill(&'static self, from: &TcpStream) -> io::Result<Option<Pipe>> {
        let Some(mut pipe) = self.take() else {
            return Ok(None);
        };
        pipe.held = from.try_io(Interest::READABLE, || {
            Ok(splice(from, None, &pipe.ends().into, None, SIZE, FLAGS)?)
        })?;
        Ok(Some(pipe))
    }
}

/// Held by a direction that moves bytes in bulk.
#[derive(Debug)]
pub(super) struct Busy(&'static Pool);

impl Drop for Busy {
    fn drop(&mut self) {
        let mut pipes = self.0.lock();
        pipes.busy -= 1;
        if pipes.busy == 0 {
            pipes.made -= pipes.spare.len();
            pipes.spare = Vec::new();
        }
    }
}

/// Bytes under way in a pipe.
#[derive(Debug)]
pub(super) struct Pipe {
    /// None only during drop.
    ends: Option<Ends>,
    held: usize,
    pool: &'static Pool,
}

impl Pipe {
    fn ends(&self) -> &Ends {
        self.ends.as_ref().expect("taken by drop only")
    }

    /// Number of bytes in the pipe.
    pub(super) fn len(&self) -> usize {
        self.held
    }

    /// Writes all of it.
    ///
    /// # Errors
    /// Those of the socket. SIGPIPE must be ignored, as std does: splice(2) has no flag for that.
    pub(super) async fn write_all(mut self, to: &TcpStream) -> io::Result<()> {
        while self.held > 0 {
            let out = self.ends().out.as_fd();
            let moved = to.async_io(Interest::WRITABLE, || {
                Ok(splice(out, None, to, None, self.held, FLAGS)?)
            });
            match moved.await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                moved => self.held -= moved,
            }
        }
        Ok(())
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let mut pipes = self.pool.lock();
        let keep = self.held == 0 && pipes.busy > 0 && pipes.spare.len() < SPARE;
        match self.ends.take() {
            Some(ends) if keep => pipes.spare.push(ends),
            _ => pipes.made -= 1,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::super::tests::tcp_pair;
    use super::*;

    #[tokio::test]
    async fn what_is_in_a_pipe_arrives_and_empty_ones_are_kept_for_the_busy() {
        static HERE: Pool = Pool::new();
        let made = || HERE.lock().made;
        let (mut client, near) = tcp_pair().await;
        let (far, mut server) = tcp_pair().await;
        let error = HERE.fill(&near).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(made(), 0, "kept for nobody");
        let busy = HERE.busy();
        for text in ["one", "two"] {
            client.write_all(text.as_bytes()).await.unwrap();
            near.readable().await.unwrap();
            let pipe = HERE.fill(&near).unwrap().unwrap();
            assert_eq!(pipe.len(), 3);
            pipe.write_all(&far).await.unwrap();
            let mut read = [0; 3];
            server.read_exact(&mut read).await.unwrap();
            assert_eq!(&read, text.as_bytes());
            assert_eq!(made(), 1);
        }
        // What was not written is not left in it.
        client.write_all(b"lost").await.unwrap();
        near.readable().await.unwrap();
        drop(HERE.fill(&near).unwrap().unwrap());
        assert_eq!(made(), 0);
        let also = HERE.busy();
        drop(HERE.take());
        drop(busy);
        assert_eq!(made(), 1);
        drop(also);
        assert_eq!(made(), 0);
        drop(client);
        near.readable().await.unwrap();
        assert_eq!(HERE.fill(&near).unwrap().unwrap().len(), 0);
    }

    #[tokio::test]
    async fn beyond_many_there_is_none() {
        static HERE: Pool = Pool::new();
        let (_client, near) = tcp_pair().await;
        let _busy = HERE.busy();
        let mut all: Vec<Pipe> = (0..MANY).map(|_| HERE.take().unwrap()).collect();
        assert!(HERE.fill(&near).unwrap().is_none());
        all.pop();
        let error = HERE.fill(&near).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        drop(all);
        assert_eq!(HERE.lock().made, SPARE);
    }
}
