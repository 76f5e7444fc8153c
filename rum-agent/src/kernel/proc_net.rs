//! Step 2, the fallback: the port set from `/proc/net/tcp` and `/proc/net/tcp6` (man 5 proc).
//!
//! A line is `sl local remote st tx:rx tr:tm retrnsmt uid timeout inode …`. `local` is
//! `ADDRESS:PORT` in hexadecimal, `st` is `0A` for LISTEN. The port is a plain number, but an
//! address is printed as 32-bit words in the byte order of the machine: `0100007F` is 127.0.0.1
//! on a little-endian one and `7F000001` on a big-endian one.
//!
//! The files list every connection too, so a read costs as much as there are connections. They do
//! not show whether an IPv6 socket accepts IPv4 (IPV6_V6ONLY), so `::` is assumed to be dual-stack,
//! the kernel's default.
//!
//! Invariant: an unreadable line is an error with its number, never a missing port.

use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use super::{DumpError, MAX_SOCKETS, Socket, TCP_LISTEN};

/// Largest file that is read, in bytes: half a million connections. More is an error.
const MAX_FILE: u64 = 80 << 20;

/// Which of the two files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `tcp`
    V4,
    /// `tcp6`
    V6,
}

/// Byte order of the machine that printed the addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endian {
    /// Least significant byte first.
    Little,
    /// Most significant byte first.
    Big,
}

impl Endian {
    /// That of this machine.
    pub const HOST: Self = if cfg!(target_endian = "big") {
        Self::Big
    } else {
        Self::Little
    };
}

/// A line that does not have the kernel's format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct ParseError {
    /// Its number, the header being line 1.
    pub line: usize,
    /// What is wrong.
    pub what: String,
}

/// The listening sockets in the text of one of the files.
///
/// # Errors
/// [`ParseError`] for the first line that is malformed, whatever its state; also for a text
/// without the header line.
pub fn parse(text: &str, family: Family, endian: Endian) -> Result<Vec<Socket>, ParseError> {
    let mut lines = text.lines().zip(1..);
    match lines.next() {
        Some((header, _)) if header.contains("local_address") => {}
        _ => {
            return Err(ParseError {
                line: 1,
                what: "the header line is missing".into(),
            });
        }
    }
    let mut sockets = Vec::new();
    for (text, line) in lines {
        match parse_line(text, family, endian) {
            Ok(socket) => sockets.extend(socket),
            Err(what) => return Err(ParseError { line, what }),
        }
    }
    Ok(sockets)
}

fn parse_line(text: &str, family: Family, endian: Endian) -> Result<Option<Socket>, String> {
    let mut fields = text.split_ascii_whitespace();
    let mut field = |skip: usize, name: &str| {
        fields
            .nth(skip)
            .ok_or_else(|| format!("the field {name} is missing"))
    };
    let local = field(1, "local_address")?;
    let state = field(1, "st")?;
    let (address, port) = local
        .split_once(':')
        .ok_or_else(|| format!("`{local}` is not ADDRESS:PORT"))?;
    let ip = parse_ip(address, family, endian)
        .ok_or_else(|| format!("`{address}` is not an address in hexadecimal"))?;
    let port = hex(port, 4)
        .and_then(|port| u16::try_from(port).ok())
        .ok_or_else(|| format!("`{port}` is not a port in hexadecimal"))?;
    let state = hex(state, 2).ok_or_else(|| format!("`{state}` is not a state in hexadecimal"))?;
    // Port 0: a socket that is being closed has already lost its port.
    if state != u32::from(TCP_LISTEN) || port == 0 {
        return Ok(None);
    }
    let uid = field(3, "uid")?;
    let inode = field(1, "inode")?;
    Ok(Some(Socket {
        port,
        ip: ip.to_canonical(),
        dual_stack: ip == IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        device: 0,
        uid: uid
            .parse()
            .map_err(|_| format!("`{uid}` is not a user id"))?,
        inode: inode
            .parse()
            .map_err(|_| format!("`{inode}` is not an inode"))?,
        cookie: None,
    }))
}

/// Exactly `digits` hexadecimal digits, at most 8.
fn hex(text: &str, digits: usize) -> Option<u32> {
    // from_str_radix also accepts a sign.
    let all = text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit());
    all.then(|| u32::from_str_radix(text, 16).ok()).flatten()
}

/// Parses an address of the tables: 8 or 32 hexadecimal digits, in words of the byte order
/// `endian`.
pub fn parse_ip(text: &str, family: Family, endian: Endian) -> Option<IpAddr> {
    let word = |index: usize| -> Option<[u8; 4]> {
        let word = hex(text.get(index * 8..index * 8 + 8)?, 8)?;
        Some(match endian {
            Endian::Little => word.to_le_bytes(),
            Endian::Big => word.to_be_bytes(),
        })
    };
    match family {
        Family::V4 if text.len() == 8 => Some(Ipv4Addr::from(word(0)?).into()),
        Family::V6 if text.len() == 32 => {
            let mut octets = [0; 16];
            for (index, chunk) in octets.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(index)?);
            }
            Some(Ipv6Addr::from(octets).into())
        }
        _ => None,
    }
}

/// A source of facts that needs only `/proc`.
#[derive(Debug)]
pub struct ProcNet {
    dir: PathBuf,
    buffer: String,
}

impl ProcNet {
    /// The files of the network namespace of the thread that calls [`ProcNet::dump`].
    pub fn new() -> Self {
        Self::at("/proc/thread-self/net")
    }

    /// The files `tcp` and `tcp6` of another directory.
    pub fn at(dir: impl AsRef<Path>) -> Self {
        Self {
            dir: dir.as_ref().to_owned(),
            buffer: String::new(),
        }
    }

    /// All listening TCP sockets, IPv4 and IPv6. A missing `tcp6` means that there is no IPv6.
    ///
    /// # Errors
    /// [`DumpError`]; no conclusion is possible then, least of all that a port is closed.
    pub fn dump(&mut self) -> Result<Vec<Socket>, DumpError> {
        let mut sockets = self.read("tcp", Family::V4)?.ok_or_else(|| DumpError::Io {
            what: "open /proc/net/tcp",
            source: io::ErrorKind::NotFound.into(),
        })?;
        sockets.extend(self.read("tcp6", Family::V6)?.unwrap_or_default());
        if sockets.len() > MAX_SOCKETS {
            return Err(DumpError::TooMany);
        }
        Ok(sockets)
    }

    /// `None` when there is no such file.
    fn read(&mut self, name: &str, family: Family) -> Result<Option<Vec<Socket>>, DumpError> {
        let path = self.dir.join(name);
        let io_error = |source| DumpError::Io {
            what: "read /proc/net/tcp and tcp6",
            source,
        };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error(error)),
        };
        self.buffer.clear();
        let length = file
            .take(MAX_FILE)
            .read_to_string(&mut self.buffer)
            .map_err(io_error)?;
        if length as u64 == MAX_FILE {
            return Err(DumpError::Malformed(format!(
                "{} has more than {MAX_FILE} bytes",
                path.display()
            )));
        }
        match parse(&self.buffer, family, Endian::HOST) {
            Ok(sockets) => Ok(Some(sockets)),
            Err(source) => Err(DumpError::Line { file: path, source }),
        }
    }
}

impl Default for ProcNet {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests;
