//! Identifies a process even if its id is reused.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::str::FromStr;

use rustix::process::{Pid, PidfdFlags};

/// A process id with the process's start time, so that a reused id is noticed. Written as `PID
/// START`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessId {
    pid: u32,
    start: u64,
}

/// The fields of /proc/PID/stat that are used here (proc_pid_stat(5)).
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    state: char,
    parent: u32,
    start: u64,
}

impl Stat {
    fn read(pid: u32) -> io::Result<Self> {
        let text = fs::read(format!("/proc/{pid}/stat"))?;
        Self::parse(&String::from_utf8_lossy(&text)).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "/proc/PID/stat has another format",
            )
        })
    }

    /// The name in parentheses may contain anything, even parentheses: the last `)` ends it.
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(')')?;
        let mut fields = rest.split_ascii_whitespace();
        Some(Self {
            state: fields.next()?.chars().next()?,
            parent: fields.next()?.parse().ok()?,
            // Fields 3 and 4 are consumed; the start time is field 22.
            start: fields.nth(17)?.parse().ok()?,
        })
    }
}

impl ProcessId {
    /// This process.
    pub fn current() -> io::Result<Self> {
        Self::of(std::process::id())
    }

    /// The process that currently has the id `pid`.
    pub fn of(pid: u32) -> io::Result<Self> {
        let start = Stat::read(pid)?.start;
        Ok(Self { pid, start })
    }

    /// The id alone, in the PID namespace of the process that created this value.
    pub fn pid(self) -> u32 {
        self.pid
    }

    /// Whether this process still exists and is not a zombie.
    pub fn is_alive(self) -> bool {
        Stat::read(self.pid).is_ok_and(|stat| stat.start == self.start && stat.state != 'Z')
    }

    /// A pidfd of this process; `NotFound` if it has ended or its id was reused.
    pub fn open(self) -> io::Result<OwnedFd> {
        let gone = || io::Error::new(io::ErrorKind::NotFound, "the process has ended");
        let pid = i32::try_from(self.pid)
            .ok()
            .and_then(Pid::from_raw)
            .ok_or_else(gone)?;
        let pidfd =
            rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(|error| match error {
                rustix::io::Errno::SRCH => gone(),
                error => error.into(),
            })?;
        // Checked after opening: from now on, the pidfd refers to this process only.
        if self.is_alive() {
            Ok(pidfd)
        } else {
            Err(gone())
        }
    }

    /// Whether `parent` is its parent process.
    pub(crate) fn is_child_of(self, parent: u32) -> bool {
        Stat::read(self.pid).is_ok_and(|stat| stat.start == self.start && stat.parent == parent)
    }
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.pid, self.start)
    }
}

impl FromStr for ProcessId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (pid, start) = text.split_once(' ').unwrap_or((text, ""));
        Ok(Self {
            pid: pid.parse()?,
            start: start.parse()?,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_name_full_of_parentheses_is_skipped() {
        let text = "42 (a) R 9 (b)) S 7 42 42 0 -1 4194560 1 0 0 0 5 6 0 0 20 0 1 0 123456 2 3";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.state, stat.parent, stat.start), ('S', 7, 123_456));
        for cut in ["", "42", "42 (a", "42 (a)", "42 (a) S", "42 (a) S 7 1 2 3"] {
            assert_eq!(Stat::parse(cut), None, "{cut:?}");
        }
    }

    #[test]
    fn round_trips_and_notices_another_start() {
        let me = ProcessId::current().unwrap();
        assert_eq!(me.to_string().parse(), Ok(me));
        assert!(me.is_alive());
        assert!(me.is_child_of(std::os::unix::process::parent_id()));
        me.open().unwrap();
        let other = ProcessId {
            start: me.start + 1,
            ..me
        };
        assert!(!other.is_alive());
        assert_eq!(other.open().unwrap_err().kind(), io::ErrorKind::NotFound);
        for bad in ["", "1", "x 1", "1 x", "-1 3", "1 2 3"] {
            assert!(bad.parse::<ProcessId>().is_err(), "{bad:?}");
        }
    }
}
