//! A hint for step 1 from another process: the first process of a namespace guest, which the
//! kernel asks before each `listen()` (seccomp user notification), passes the news on here.
//!
//! The way is a pipe with records of [`RECORD`] bytes. The writer never waits: what does not fit
//! is dropped, and nothing is lost by it. A pipe that is full holds a hint which was not read yet
//! when the dropped one came, and the dump that follows that hint answers both.
//!
//! Invariants: a record is below PIPE_BUF, so it is written and read whole (pipe(7)); what is
//! no record ends the reading. The hint comes before the `listen()` takes
//! effect: look again.

use std::io;
use std::os::fd::OwnedFd;

use tokio::net::unix::pipe::Receiver;

use super::tracepoint::Hint;

/// Bytes of one record: when (nanoseconds on CLOCK_MONOTONIC), which process, [`UNTOLD`] or 0;
/// 8, 4 and 4 bytes, little-endian.
pub const RECORD: usize = 16;
/// Flag of a record: a program runs whose `listen()` nobody tells of.
pub const UNTOLD: u32 = 1;

/// What a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    /// When the kernel asked, in nanoseconds on CLOCK_MONOTONIC.
    pub at_ns: u64,
    /// The thread that calls `listen()`, in the PID namespace of the writer; 0 for none.
    pub pid: u32,
    /// Whether there is a program whose `listen()` nobody tells of.
    pub untold: bool,
}

impl Told {
    /// The record for the pipe.
    pub fn to_bytes(self) -> [u8; RECORD] {
        let mut record = [0; RECORD];
        record[..8].copy_from_slice(&self.at_ns.to_le_bytes());
        record[8..12].copy_from_slice(&self.pid.to_le_bytes());
        let flags = if self.untold { UNTOLD } else { 0 };
        record[12..].copy_from_slice(&flags.to_le_bytes());
        record
    }

    /// Reads a record.
    pub fn from_bytes(record: [u8; RECORD]) -> Self {
        let [a, b, c, d, e, f, g, h, p, q, r, s, t, u, v, w] = record;
        Self {
            at_ns: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            pid: u32::from_le_bytes([p, q, r, s]),
            untold: u32::from_le_bytes([t, u, v, w]) & UNTOLD != 0,
        }
    }

    /// The hint in it. The port is unknown: `listen()` takes a descriptor.
    pub fn hint(self) -> Option<Hint> {
        let Self { at_ns, pid, .. } = self;
        (pid != 0).then_some(Hint::Listen {
            port: 0,
            pid,
            at_ns,
        })
    }
}

/// The reading end.
#[derive(Debug)]
pub struct Notified {
    pipe: Receiver,
    /// The writer is gone, or wrote what is no record.
    ended: bool,
}

impl Notified {
    /// Reads from `pipe`. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// It is not the reading end of a pipe.
    pub fn open(pipe: OwnedFd) -> io::Result<Self> {
        let pipe = Receiver::from_owned_fd(pipe)?;
        let ended = false;
        Ok(Self { pipe, ended })
    }

    /// Waits for the next record; for ever once the writer is gone. Cancel-safe.
    pub async fn next(&mut self) -> Told {
        loop {
            if let Some(told) = self.try_next() {
                return told;
            }
            if self.ended || self.pipe.readable().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// The next record that is there already.
    pub fn try_next(&mut self) -> Option<Told> {
        let mut record = [0; RECORD];
        match self.pipe.try_read(&mut record) {
            _ if self.ended => {}
            Ok(RECORD) => return Some(Told::from_bytes(record)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            _ => self.ended = true,
        }
        None
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[tokio::test]
    async fn records_come_through_and_the_end_is_no_hint() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let mut notified = Notified::open(read).unwrap();
        assert_eq!(notified.try_next(), None);
        let told = |pid, untold| Told {
            at_ns: u64::MAX - 3,
            pid,
            untold,
        };
        for told in [told(7, false), told(0, true)] {
            rustix::io::write(&write, &told.to_bytes()).unwrap();
            assert_eq!(notified.next().await, told);
        }
        assert_eq!(told(0, true).hint(), None);
        let (port, pid, at_ns) = (0, 7, u64::MAX - 3);
        assert_eq!(
            told(7, false).hint(),
            Some(Hint::Listen { port, pid, at_ns })
        );
        drop(write);
        tokio::select! {
            biased;
            told = notified.next() => panic!("{told:?} out of nothing"),
            () = tokio::time::sleep(std::time::Duration::from_millis(1)) => {}
        }
    }
}
