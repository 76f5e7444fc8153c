//! Steps 1 and 2 of the data flow: hints and facts from the kernel.
//!
//! Two kinds of sources, kept apart by their types:
//!
//! | what | module | says |
//! |---|---|---|
//! | hints (step 1) | [`tracepoint`] | a socket entered or left LISTEN, within microseconds; privileged |
//!  | [`listen_events`] | a program calls `listen()`, as the guest's first process reports |
//! | | [`destroy`] | a bound TCP socket is gone; no privilege |
//! | | [`sockstat`] | the number of TCP sockets differs; no privilege, must be polled |
//!  | [`netns`] | the caller of `listen()` is in another network namespace: no hurry |
//! | facts (step 2) | [`sock_diag`] | every listening socket, from NETLINK_SOCK_DIAG |
//! | | [`proc_net`] | the same from `/proc/net/tcp` and `tcp6`, where netlink is refused |
//!  details | [`process`], [`holders`] | which process holds a socket, and whether it still does |
//!  | [`identity`] | the names of a process |
//!
//! Invariants: a hint carries no fact, it only says when to look; a dump is complete or an error,
//! never partial; nothing here spawns a task or reads a clock.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

pub mod answer;
pub mod destroy;
pub mod holders;
pub mod identity;
pub mod listen_events;
pub mod netns;
pub mod perf_ring;
pub mod privilege;
pub mod proc_net;
pub mod process;
pub mod sock_diag;
pub mod sockstat;
pub mod tracefs;
pub mod tracepoint;

/// The state LISTEN of a TCP socket (include/net/tcp_states.h).
pub const TCP_LISTEN: u8 = 10;
/// The state CLOSE of a TCP socket, in which a listener ends.
pub const TCP_CLOSE: u8 = 7;

/// Most listening sockets that are read: four for every port that exists. A guest with more gets an
/// error, so the agent's memory stays bounded.
pub const MAX_SOCKETS: usize = 4 * 65_536;

/// A listening TCP socket, as one dump shows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Socket {
    /// Local port, 1 to 65535.
    pub port: u16,
    /// Local address; unspecified means all. An IPv4-mapped IPv6 address is shown as IPv4.
    pub ip: IpAddr,
    /// An IPv6 socket that accepts IPv4 as well: only ever true with the address `::`.
    pub dual_stack: bool,
    /// Index of the network interface to which the socket is bound; 0 for any, and where the source
    /// does not report it (/proc).
    pub device: u32,
    /// User id of the owner.
    pub uid: u32,
    /// Inode of the socket's file.
    pub inode: u64,
    /// The kernel's cookie, where the source gives one (not /proc).
    pub cookie: Option<u64>,
}

/// Why a dump failed. The previous set stays valid.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// A system call failed or the kernel refused the request.
    #[error("cannot {what}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel reported each time that its tables changed during the dump.
    #[error("the kernel's tables changed during every dump")]
    Interrupted,
    /// The answer does not follow the protocol.
    #[error("the kernel's answer cannot be read: {0}")]
    Malformed(String),
    /// A line of /proc cannot be read.
    #[error("{} cannot be read", file.display())]
    Line {
        /// The file.
        file: PathBuf,
        /// Where and why.
        source: proc_net::ParseError,
    },
    /// More than [`MAX_SOCKETS`].
    #[error("more than {MAX_SOCKETS} listening sockets")]
    TooMany,
}
