//! Step 2: the port set from NETLINK_SOCK_DIAG (man 7 sock_diag).
//!
//! [`SockDiag::dump`] requests only the sockets in LISTEN, once for each address family. The kernel
//! then walks the small table of listeners and never the connections, so the cost does not grow
//! with them. The kernel fills the first datagram while it handles the request, and each further
//! one while the last is read, so nothing here ever blocks.
//!
//! [`SockDiag::dump_ports`] requests those of a port: the kernel still walks all listeners, but
//! describes only these, which is most of the work (10,000 listeners: 8 ms, or 1.4). Nearly always
//! the answer is one datagram, which the kernel makes in one go, so no socket that stays is missed.
//!
//! MPTCP listeners are in the plain TCP dump (with the inode of the program's descriptor); a
//! request for protocol 262 would list them twice.
//!
//! A dump is not atomic. Between two datagrams the kernel keeps only a position in a hash bucket;
//! for each socket that closes before that position it skips one that stays. So a socket missing
//! from a dump may still listen. [`SockDiag::exists`] queries one address: the kernel looks it up
//! as for an incoming connection, which no churn elsewhere in the table disturbs. Only among
//! SO_REUSEPORT sockets it may choose one that is closing; then the query is repeated.
//!
//! Invariants: an answer is complete or an error; only messages of the kernel (port id 0) count;
//! after an error the netlink socket is replaced, so that no rest of a broken answer is read later.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_packet_sock_diag::{IPPROTO_TCP, SockDiagMessage};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket as Netlink, SocketAddr};

use super::answer::{Answer, family};
use super::{DumpError, MAX_SOCKETS, Socket};

/// Buffer for one datagram. The kernel never makes a larger one for a dump (32 KiB, less its own
/// bookkeeping: netlink_dump in net/netlink/af_netlink.c).
const DATAGRAM: usize = 32 * 1024;
/// Most datagrams of an answer: [`MAX_SOCKETS`] with at least one socket each, and messages of
/// other senders in between.
const MAX_DATAGRAMS: usize = MAX_SOCKETS + 1024;
/// Most repetitions of an interrupted dump (NLM_F_DUMP_INTR).
const ATTEMPTS: usize = 5;
/// Number of "no such listener" answers in a row that are conclusive. The kernel also answers so
/// when the SO_REUSEPORT socket that it chose is freed that very moment (refcount_inc_not_zero in
/// inet_lookup, include/net/inet_hashtables.h), though another stays.
const ABSENCES: usize = 3;
/// Most lookups for one query.
const LOOKUPS: usize = 100;
/// Any cookie (INET_DIAG_NOCOOKIE).
const NO_COOKIE: [u8; 8] = [0xff; 8];

/// Result of a lookup.
enum Found {
    Listens(Socket),
    Nothing,
    /// A socket that was closing, each time.
    Unsure,
}

/// A source of facts: which TCP sockets listen in this network namespace.
#[derive(Debug)]
pub struct SockDiag {
    socket: Netlink,
    sequence: u32,
    buffer: Vec<u8>,
}

impl SockDiag {
    /// Opens the source and tries it once, in both address families.
    ///
    /// # Errors
    /// [`DumpError`] when the socket cannot be opened or the kernel refuses (EACCES and EPERM
    /// under a security policy, ENOENT without CONFIG_INET_DIAG).
    pub fn open() -> Result<Self, DumpError> {
        let mut this = Self {
            socket: open_socket()?,
            sequence: 0,
            buffer: Vec::with_capacity(DATAGRAM),
        };
        this.dump()?;
        Ok(this)
    }

    /// All listening TCP sockets, IPv4 and IPv6, in the kernel's order. Does not block.
    ///
    /// A socket that opens or closes meanwhile may or may not be among them; one that stays nearly
    /// always is (see the module for the exception).
    ///
    /// # Errors
    /// [`DumpError`]; no conclusion is possible then, least of all that a port is closed.
    pub fn dump(&mut self) -> Result<Vec<Socket>, DumpError> {
        // 0 is every port.
        self.dump_port(0)
    }

    /// As [`SockDiag::dump`], for `ports` only.
    ///
    /// # Errors
    /// [`DumpError`]; no conclusion is possible then.
    pub fn dump_ports(&mut self, ports: &BTreeSet<u16>) -> Result<Vec<Socket>, DumpError> {
        let mut all = Vec::new();
        for port in ports.iter().filter(|port| **port != 0) {
            all.extend(self.dump_port(*port)?);
        }
        Ok(all)
    }

    /// The listening sockets on `port`.
    fn dump_port(&mut self, port: u16) -> Result<Vec<Socket>, DumpError> {
        for _ in 0..ATTEMPTS {
            let v4 = self.dump_family(Ipv4Addr::UNSPECIFIED.into(), port)?;
            let v6 = self.dump_family(Ipv6Addr::UNSPECIFIED.into(), port)?;
            if v4.is_interrupted() || v6.is_interrupted() {
                continue;
            }
            let mut sockets = v4.into_sockets();
            sockets.extend(v6.into_sockets());
            if sockets.len() > MAX_SOCKETS {
                return Err(DumpError::TooMany);
            }
            return Ok(sockets);
        }
        Err(DumpError::Interrupted)
    }

    /// Whether any listening socket serves the address and port of `socket`: itself, another on the
    /// same port, or one that listens on all addresses. Reliable, unlike a dump; does not block.
    ///
    /// # Errors
    /// [`DumpError`]; no conclusion is possible then.
    pub fn exists(&mut self, socket: &Socket) -> Result<bool, DumpError> {
        match self.find(socket.port, socket.ip, socket.device)? {
            Found::Listens(_) => Ok(true),
            Found::Nothing => Ok(false),
            // No port counts as closed on a guess.
            Found::Unsure => Ok(true),
        }
    }

    /// The sockets that a connection to `port` would reach at the loopback addresses and at that of
    /// `known`. The cost does not depend on the number of listeners; does not block. Says nothing
    /// about other addresses, and returns one of several sockets on an address.
    ///
    /// # Errors
    /// [`DumpError`]; no conclusion is possible then.
    pub fn look_up(&mut self, port: u16, known: Option<&Socket>) -> Result<Vec<Socket>, DumpError> {
        let loopback = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        let loopback = loopback.map(|ip: IpAddr| (ip, 0));
        let known = known.map(|known| (known.ip, known.device));
        // Three negative answers are conclusive, so it is not queried twice.
        let known = known.filter(|known| !loopback.contains(known));
        let mut all: Vec<Socket> = Vec::new();
        for (ip, device) in loopback.into_iter().chain(known) {
            if let Found::Listens(socket) = self.find(port, ip, device)?
                && !all.contains(&socket)
            {
                all.push(socket);
            }
        }
        Ok(all)
    }

    /// What listens on `port` for a connection to `ip` that comes in through the interface `device`,
    /// or through none that anything is bound to for 0.
    fn find(&mut self, port: u16, ip: IpAddr, device: u32) -> Result<Found, DumpError> {
        let request = InetRequest {
            family: family(ip),
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::LISTEN,
            socket_id: SocketId {
                source_port: port,
                source_address: ip,
                interface_id: device,
                cookie: NO_COOKIE,
                ..unspecified(ip)
            },
        };
        let mut absences = 0;
        for _ in 0..LOOKUPS {
            match self.ask(request.clone(), NLM_F_REQUEST) {
                Ok(answer) => match answer.into_sockets().pop() {
                    Some(socket) => return Ok(Found::Listens(socket)),
                    // The kernel chose a twin that was closed before its state was read. That says
                    // nothing about the others: one lookup in some hundred, under churn.
                    None => absences = 0,
                },
                Err(error) if is_not_found(&error) => absences += 1,
                Err(error) => return Err(error),
            }
            if absences == ABSENCES {
                return Ok(Found::Nothing);
            }
        }
        // Twins come and go there all the time.
        Ok(Found::Unsure)
    }

    fn dump_family(&mut self, any: IpAddr, port: u16) -> Result<Answer, DumpError> {
        let request = InetRequest {
            family: family(any),
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::LISTEN,
            socket_id: SocketId {
                source_port: port,
                ..unspecified(any)
            },
        };
        self.ask(request, NLM_F_REQUEST | NLM_F_DUMP)
    }

    /// One request and its whole answer.
    fn ask(&mut self, request: InetRequest, flags: u16) -> Result<Answer, DumpError> {
        let result = self.exchange(request, flags);
        if let Err(error) = &result {
            // "Not found" is a whole answer; after any other error an answer may be half read
            // and the kernel's dump still running.
            if !is_not_found(error) {
                self.socket = open_socket()?;
            }
        }
        result
    }

    fn exchange(&mut self, request: InetRequest, flags: u16) -> Result<Answer, DumpError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(SockDiagMessage::InetRequest(request));
        message.header.flags = flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        self.buffer.clear();
        self.buffer.resize(message.buffer_len(), 0);
        message.serialize(&mut self.buffer);
        self.socket
            .send_to(&self.buffer, &SocketAddr::new(0, 0), 0)
            .map_err(io_error("send a request to NETLINK_SOCK_DIAG"))?;

        let dump = flags & NLM_F_DUMP != 0;
        let mut answer = Answer::new(self.sequence);
        for _ in 0..MAX_DATAGRAMS {
            if self.receive()? {
                answer.feed(&self.buffer)?;
                // A lookup is answered by one message without an end mark.
                if answer.is_done() || !dump {
                    return Ok(answer);
                }
            }
        }
        Err(DumpError::Malformed("the answer does not end".into()))
    }

    /// Reads the next datagram into the buffer; false when it is not from the kernel.
    fn receive(&mut self) -> Result<bool, DumpError> {
        loop {
            self.buffer.clear();
            self.buffer.reserve(DATAGRAM);
            // MSG_TRUNC makes it return the real length, so a cut datagram is noticed.
            match self.socket.recv_from(&mut self.buffer, libc::MSG_TRUNC) {
                Ok((length, _)) if length > self.buffer.len() => {
                    return Err(DumpError::Malformed(format!(
                        "a datagram of {length} bytes, {} expected at most",
                        self.buffer.len()
                    )));
                }
                Ok((_, sender)) => return Ok(sender.port_number() == 0),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(io_error("read the answer of NETLINK_SOCK_DIAG")(error)),
            }
        }
    }
}

fn is_not_found(error: &DumpError) -> bool {
    matches!(error, DumpError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
}

/// A socket id with nothing in it, of the family of `ip`.
fn unspecified(ip: IpAddr) -> SocketId {
    match ip {
        IpAddr::V4(_) => SocketId::new_v4(),
        IpAddr::V6(_) => SocketId::new_v6(),
    }
}

/// A netlink socket that never waits: an answer that is not there at once is an error.
fn open_socket() -> Result<Netlink, DumpError> {
    let socket = Netlink::new(NETLINK_SOCK_DIAG).map_err(io_error("open NETLINK_SOCK_DIAG"))?;
    socket
        .set_non_blocking(true)
        .map_err(io_error("make a netlink socket non-blocking"))?;
    Ok(socket)
}

fn io_error(what: &'static str) -> impl Fn(io::Error) -> DumpError {
    move |source| DumpError::Io { what, source }
}
