//! Step 2: parses the kernel's answers on NETLINK_SOCK_DIAG. Pure: bytes in, sockets out.
//!
//! A datagram holds one or more netlink messages, each with its length in front. A dump ends with
//! NLMSG_DONE, which carries an errno of its own; a refusal is an NLMSG_ERROR. Only whole messages
//! count: every length is checked before a field is read.
//!
//! Invariants: no input panics; an [`Answer`] is complete only once [`Answer::is_done`].

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_DUMP_INTR, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{InetResponse, SocketId};
use netlink_packet_sock_diag::{AF_INET6, SockDiagMessage};

use super::{DumpError, MAX_SOCKETS, Socket, TCP_LISTEN};

/// The messages of one datagram, in order. Ends after the first that cannot be read.
pub fn messages(
    datagram: &[u8],
) -> impl Iterator<Item = Result<NetlinkMessage<SockDiagMessage>, DumpError>> + '_ {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        // Checks the header and its length field against the bytes present.
        match NetlinkMessage::<SockDiagMessage>::deserialize(rest) {
            Ok(message) => {
                // Messages start at multiples of four (NLMSG_ALIGN); the header was read, so
                // the length is at least its size and the loop moves on.
                let length = usize::try_from(message.header.length).unwrap_or(usize::MAX);
                rest = length
                    .checked_next_multiple_of(4)
                    .and_then(|next| rest.get(next..))
                    .unwrap_or_default();
                Some(Ok(message))
            }
            Err(error) => {
                rest = &[];
                Some(Err(DumpError::Malformed(error.to_string())))
            }
        }
    })
}

/// The kernel's cookie of a socket, as one number (sock_diag_save_cookie in
/// net/core/sock_diag.c: the low word comes first).
pub fn cookie(id: &SocketId) -> u64 {
    let [a, b, c, d, e, f, g, h] = id.cookie;
    let low = u32::from_ne_bytes([a, b, c, d]);
    let high = u32::from_ne_bytes([e, f, g, h]);
    u64::from(high) << 32 | u64::from(low)
}

/// The listening socket that `response` describes; `None` if it is not one.
fn listener(response: &InetResponse) -> Option<Socket> {
    let header = &response.header;
    let id = &header.socket_id;
    // A socket that is being closed has already lost its port.
    if header.state != TCP_LISTEN || id.source_port == 0 {
        return None;
    }
    let v6_only = response.nlas.iter().find_map(|nla| match nla {
        Nla::SkV6Only(only) => Some(*only),
        _ => None,
    });
    Some(Socket {
        port: id.source_port,
        ip: id.source_address.to_canonical(),
        dual_stack: header.family == AF_INET6
            && id.source_address.is_unspecified()
            && v6_only != Some(true),
        device: id.interface_id,
        uid: header.uid,
        inode: u64::from(header.inode),
        cookie: Some(cookie(id)),
    })
}

/// The answer to one request, collected from its datagrams.
#[derive(Debug)]
pub struct Answer {
    sequence: u32,
    sockets: Vec<Socket>,
    done: bool,
    interrupted: bool,
}

impl Answer {
    /// Collects the answer to the request with this sequence number.
    pub fn new(sequence: u32) -> Self {
        Self {
            sequence,
            sockets: Vec::new(),
            done: false,
            interrupted: false,
        }
    }

    /// Takes the next datagram from the kernel.
    ///
    /// # Errors
    /// [`DumpError::Io`] with the errno that the kernel answered; [`DumpError::Malformed`] for
    /// bytes that are no answer to this request; [`DumpError::TooMany`].
    pub fn feed(&mut self, datagram: &[u8]) -> Result<(), DumpError> {
        if datagram.is_empty() {
            return Err(DumpError::Malformed("an empty datagram".into()));
        }
        for message in messages(datagram) {
            let NetlinkMessage {
                header, payload, ..
            } = message?;
            self.message(&header, payload)?;
        }
        Ok(())
    }

    fn message(
        &mut self,
        header: &NetlinkHeader,
        payload: NetlinkPayload<SockDiagMessage>,
    ) -> Result<(), DumpError> {
        if header.sequence_number != self.sequence {
            return Err(DumpError::Malformed(format!(
                "an answer to request {} instead of {}",
                header.sequence_number, self.sequence
            )));
        }
        self.interrupted |= header.flags & NLM_F_DUMP_INTR != 0;
        match payload {
            NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                self.response(&response)
            }
            NetlinkPayload::Done(done) => {
                self.done = true;
                errno(done.code)
            }
            NetlinkPayload::Error(error) => {
                self.done = true;
                errno(error.raw_code())
            }
            NetlinkPayload::Noop => Ok(()),
            other => Err(DumpError::Malformed(format!(
                "a message of type {}",
                other.message_type()
            ))),
        }
    }

    fn response(&mut self, response: &InetResponse) -> Result<(), DumpError> {
        let Some(socket) = listener(response) else {
            return Ok(());
        };
        if self.sockets.len() == MAX_SOCKETS {
            return Err(DumpError::TooMany);
        }
        self.sockets.push(socket);
        Ok(())
    }

    /// Whether the end of the dump was seen.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Whether the kernel's tables changed in a way that makes the dump worthless.
    pub fn is_interrupted(&self) -> bool {
        self.interrupted
    }

    /// The listening sockets so far.
    pub fn sockets(&self) -> &[Socket] {
        &self.sockets
    }

    /// The listening sockets.
    pub fn into_sockets(self) -> Vec<Socket> {
        self.sockets
    }
}

/// A netlink errno (0 or negative) as a result.
fn errno(code: i32) -> Result<(), DumpError> {
    if code == 0 {
        return Ok(());
    }
    Err(DumpError::Io {
        what: "list sockets through NETLINK_SOCK_DIAG",
        source: io::Error::from_raw_os_error(code.saturating_abs()),
    })
}

/// The address family of `ip` as netlink counts.
pub(super) fn family(ip: IpAddr) -> u8 {
    match ip {
        IpAddr::V4(_) => netlink_packet_sock_diag::AF_INET,
        IpAddr::V6(_) => AF_INET6,
    }
}

#[cfg(test)]
mod tests;
