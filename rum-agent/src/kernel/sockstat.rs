//! Step 1, the rung without privileges: has the number of TCP sockets changed?
//!
//! `/proc/net/sockstat` counts the TCP sockets of this network namespace, listeners among them;
//! `sockstat6` those of IPv6. One read of both costs a few microseconds, far less than a dump,
//! and their counts move at listen(), shutdown() and close(), not at bind().
//!
//! Invariant: equal fingerprints prove nothing (a close and an open between two reads cancel
//! out), so a full dump must follow every so often whatever this says.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Room for one file, which has less than 300 bytes.
const ROOM: usize = 1024;

/// The kernel's counts at one moment. Worth only to be compared with another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint {
    v4: u64,
    v6: Option<u64>,
}

/// The open files.
#[derive(Debug)]
pub struct Sockstat {
    v4: File,
    v6: Option<File>,
}

impl Sockstat {
    /// Opens the files of the calling thread's network namespace; they stay with it.
    ///
    /// # Errors
    /// When `sockstat` cannot be opened or read. A missing `sockstat6` (no IPv6) is none.
    pub fn open() -> io::Result<Self> {
        let v6 = match File::open("/proc/thread-self/net/sockstat6") {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let mut this = Self {
            v4: File::open("/proc/thread-self/net/sockstat")?,
            v6,
        };
        this.read()?;
        Ok(this)
    }

    /// Reads the counts.
    ///
    /// # Errors
    /// What the system calls say, or `InvalidData` when a count is missing.
    pub fn read(&mut self) -> io::Result<Fingerprint> {
        Ok(Fingerprint {
            v4: count(&self.v4, "TCP: inuse ")?,
            v6: match &self.v6 {
                Some(file) => Some(count(file, "TCP6: inuse ")?),
                None => None,
            },
        })
    }
}

fn count(file: &File, label: &str) -> io::Result<u64> {
    let mut room = [0; ROOM];
    let length = file.read_at(&mut room, 0)?;
    let text = room.get(..length).unwrap_or_default();
    parse(text, label).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("no line `{label}N` in sockstat"),
        )
    })
}

/// The number after `label` at the start of a line.
fn parse(text: &[u8], label: &str) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(label))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_found_and_nothing_else() {
        let text = b"sockets: used 14\nTCP: inuse 12 orphan 0 tw 3 alloc 1 mem 208\nUDP: inuse 7\n";
        assert_eq!(parse(text, "TCP: inuse "), Some(12));
        assert_eq!(parse(text, "TCP6: inuse "), None);
        assert_eq!(parse(b"TCP6: inuse 5\n", "TCP6: inuse "), Some(5));
        assert_eq!(parse(b"TCP: inuse \n", "TCP: inuse "), None);
        assert_eq!(parse(b"TCP: inuse x\n", "TCP: inuse "), None);
        assert_eq!(parse(b"\xff\xfe", "TCP: inuse "), None);
    }
}
