//! Step 1: `listen()` events from another process. The kernel asks the first process of a namespace
//! guest before each `listen()` (seccomp user notification), and that process reports the call
//! here.
//!
//! The reports come through a pipe, as records of [`RECORD`] bytes. The writer never blocks: it
//! drops a record that does not fit, and loses no information by it. `FULL` records read in a row
//! mean that the pipe was full, and the last of them then stands for any port. In the other
//! direction, a file of four bytes, [`Wanted`], publishes the port range: other ports are not
//! reported.
//!
//! Invariants: a record is smaller than PIPE_BUF, so it is written and read whole (pipe(7)); an
//! invalid record ends the reading. The hint comes before the `listen()` takes effect, so look
//! again.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rum_shared::range::PortRange;
use rustix::fs::{MemfdFlags, SealFlags};
use tokio::net::unix::pipe::Receiver;

use super::tracepoint::Hint;

/// Bytes of one record: time (nanoseconds on CLOCK_MONOTONIC), process, [`UNTOLD`] or 0, port; 8,
/// 4, 2 and 2 bytes, little-endian.
pub const RECORD: usize = 16;
/// Flag of a record: a program runs whose `listen()` calls are not reported.
pub const UNTOLD: u16 = 1;
/// Capacity for unread records, in bytes: the smallest that a pipe can have (pipe(7)). A pipe may
/// have more.
pub const PIPE: usize = 4096;
/// Records of a full pipe.
const FULL: usize = PIPE / RECORD;

/// The content of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    /// When the kernel asked, in nanoseconds on CLOCK_MONOTONIC.
    pub at_ns: u64,
    /// The thread that calls `listen()`, in the PID namespace of the writer; 0 for none.
    pub pid: u32,
    /// The TCP port; 0 if it is not known.
    pub port: u16,
    /// Whether a program runs whose `listen()` calls are not reported.
    pub untold: bool,
}

impl Told {
    /// The record for the pipe.
    pub fn to_bytes(self) -> [u8; RECORD] {
        let mut record = [0; RECORD];
        record[..8].copy_from_slice(&self.at_ns.to_le_bytes());
        record[8..12].copy_from_slice(&self.pid.to_le_bytes());
        let flags = if self.untold { UNTOLD } else { 0 };
        record[12..14].copy_from_slice(&flags.to_le_bytes());
        record[14..].copy_from_slice(&self.port.to_le_bytes());
        record
    }

    /// Parses a record.
    pub fn from_bytes(record: [u8; RECORD]) -> Self {
        let [a, b, c, d, e, f, g, h, p, q, r, s, t, u, v, w] = record;
        Self {
            at_ns: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            pid: u32::from_le_bytes([p, q, r, s]),
            untold: u16::from_le_bytes([t, u]) & UNTOLD != 0,
            port: u16::from_le_bytes([v, w]),
        }
    }

    /// The record's hint.
    pub fn hint(self) -> Option<Hint> {
        let Self {
            at_ns, pid, port, ..
        } = self;
        (pid != 0).then_some(Hint::Listen { port, pid, at_ns })
    }
}

/// The range of ports that the agent wants reports for: a memfd of which both sides have a
/// descriptor. A read that races with a write may return a mix of two ranges.
#[derive(Debug)]
pub struct Wanted(OwnedFd);

impl Wanted {
    /// A new one with all ports.
    ///
    /// # Errors
    /// As memfd_create(2) and write(2).
    pub fn new() -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let this = Self(rustix::fs::memfd_create("rum-wanted", flags)?);
        this.set(PortRange::ALL)?;
        rustix::fs::fcntl_add_seals(&this.0, SealFlags::GROW | SealFlags::SHRINK)?;
        Ok(this)
    }

    /// Publishes the range that the agent wants events for.
    ///
    /// # Errors
    /// As write(2).
    pub fn set(&self, range: PortRange) -> io::Result<()> {
        let [a, b] = range.min().to_le_bytes();
        let [c, d] = range.max().to_le_bytes();
        rustix::io::pwrite(&self.0, &[a, b, c, d], 0)?;
        Ok(())
    }

    /// The published range; all ports if the file is not valid.
    pub fn get(&self) -> PortRange {
        let mut bytes = [0; 4];
        // A short read leaves zeros, which are not a valid range.
        let _ = rustix::io::pread(&self.0, &mut bytes, 0);
        let [a, b, c, d] = bytes;
        let (min, max) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
        PortRange::new(min, max).unwrap_or(PortRange::ALL)
    }
}

impl From<OwnedFd> for Wanted {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl AsFd for Wanted {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The reading end.
#[derive(Debug)]
pub struct Notified {
    pipe: Receiver,
    /// Records that were read since the pipe was empty, modulo [`FULL`].
    in_a_row: usize,
    /// The writer is gone, or wrote an invalid record.
    ended: bool,
}

impl Notified {
    /// Reads from `pipe`. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// It is not the reading end of a pipe.
    pub fn open(pipe: OwnedFd) -> io::Result<Self> {
        let pipe = Receiver::from_owned_fd(pipe)?;
        Ok(Self {
            pipe,
            in_a_row: 0,
            ended: false,
        })
    }

    /// Waits for the next record; never completes once the writer is gone. Cancel-safe.
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

    /// The next pending record.
    pub fn try_next(&mut self) -> Option<Told> {
        let mut record = [0; RECORD];
        match self.pipe.try_read(&mut record) {
            _ if self.ended => {}
            Ok(RECORD) => {
                let mut told = Told::from_bytes(record);
                self.in_a_row = (self.in_a_row + 1) % FULL;
                if self.in_a_row == 0 {
                    // It stands for the records that were dropped meanwhile.
                    told.port = 0;
                }
                return Some(told);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.in_a_row = 0,
            _ => self.ended = true,
        }
        None
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use rustix::pipe::{PipeFlags, fcntl_setpipe_size};

    use super::*;

    #[tokio::test]
    async fn records_come_through_and_the_end_is_no_hint() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let mut notified = Notified::open(read).unwrap();
        assert_eq!(notified.try_next(), None);
        let told = |pid, untold| Told {
            at_ns: u64::MAX - 3,
            pid,
            port: 65534,
            untold,
        };
        for told in [told(7, false), told(0, true)] {
            rustix::io::write(&write, &told.to_bytes()).unwrap();
            assert_eq!(notified.next().await, told);
        }
        assert_eq!(told(0, true).hint(), None);
        let (port, pid, at_ns) = (65534, 7, u64::MAX - 3);
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

    #[tokio::test]
    async fn after_a_full_pipe_a_record_stands_for_any_port() {
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::NONBLOCK).unwrap();
        fcntl_setpipe_size(&write, PIPE).unwrap();
        let record = Told {
            at_ns: 1,
            pid: 1,
            port: 80,
            untold: false,
        };
        let fill = || while rustix::io::write(&write, &record.to_bytes()).is_ok() {};
        let mut notified = Notified::open(read).unwrap();
        for _ in 0..3 {
            fill();
            // It need not be empty in between.
            notified.next().await;
            fill();
            let mut ports = Vec::new();
            while let Some(told) = notified.try_next() {
                ports.push(told.port);
            }
            assert!(ports.contains(&0), "{ports:?}");
        }
        rustix::io::write(&write, &record.to_bytes()).unwrap();
        assert_eq!(notified.next().await.port, 80);
    }

    #[test]
    fn a_range_comes_through_and_nonsense_is_everything() {
        let here = Wanted::new().unwrap();
        assert_eq!(here.get(), PortRange::ALL);
        let there = Wanted::from(here.as_fd().try_clone_to_owned().unwrap());
        let range = PortRange::new(258, 65280).unwrap();
        there.set(range).unwrap();
        assert_eq!(here.get(), range);
        rustix::io::pwrite(&there.0, &[9, 0, 8, 0], 0).unwrap();
        assert_eq!(here.get(), PortRange::ALL);
        assert!(rustix::io::pwrite(&there.0, &[0], 4).is_err(), "it grew");
        assert!(rustix::fs::ftruncate(&there.0, 0).is_err(), "it shrank");
        let (pipe, _) = rustix::pipe::pipe().unwrap();
        assert_eq!(Wanted::from(pipe).get(), PortRange::ALL);
    }
}
