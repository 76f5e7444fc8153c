//! Step 1: the kernel's events for destroyed TCP sockets (SKNLGRP_INET_TCP_DESTROY and
//! SKNLGRP_INET6_TCP_DESTROY of NETLINK_SOCK_DIAG). Needs no privilege.
//!
//! The kernel reports the end of every TCP socket, mostly connections. A classic BPF filter on our
//! socket passes only sockets without a peer (destination port 0: listeners, and sockets that were
//! bound and never used) whose port is of interest. An event carries the cookie that a dump showed,
//! so it identifies one of several sockets on a port. The event comes when the socket is freed:
//! shortly after close(), but not at shutdown().
//!
//! When the socket's queue is full the kernel drops events. It reports ENOBUFS once, at the next
//! read, and goes on dropping silently until the queue was read empty (NETLINK_S_CONGESTED in
//! net/netlink/af_netlink.c). So [`Destroy::Overflow`] is reported only after the queue is empty: a
//! dump from then on misses nothing.
//!
//! Invariants: an event that cannot be kept or read becomes [`Destroy::Overflow`]. Waiting is
//! cancel-safe, since nothing is taken from the kernel before the last await.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use netlink_packet_core::NetlinkPayload;
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{AsyncSocket, SocketAddr, TokioSocket};
use tracing::debug;

use super::answer::{cookie, messages};

/// Multicast groups (enum sknetlink_groups in include/uapi/linux/sock_diag.h).
const GROUPS: [u32; 2] = [1, 3];
/// Buffer for one event, which is smaller than 1 KiB.
const DATAGRAM: usize = 8 * 1024;
/// Requested size of the receive buffer, in bytes; the kernel grants at most net.core.rmem_max. An
/// event takes about 2 KiB there, so the buffer holds at least a few hundred.
const RECEIVE_BUFFER: libc::c_int = 1 << 20;
/// Most reads in a row after an overflow, several times what the queue holds. It lets the reader
/// continue in a storm in which the queue never becomes empty.
const MAX_DISCARDED: usize = 16 * 1024;

/// An event of a socket without a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destroy {
    /// A socket is gone. Only the cookie tells whether it was a listener.
    Closed {
        /// The kernel's cookie, as [`super::Socket::cookie`].
        cookie: u64,
        /// Its local port.
        port: u16,
    },
    /// Events were lost; later ones are not.
    Overflow,
}

/// The stream of events.
pub struct DestroyEvents {
    socket: TokioSocket,
    buffer: Vec<u8>,
    pending: VecDeque<Destroy>,
    /// The kernel drops events until the queue was empty once.
    congested: bool,
}

impl DestroyEvents {
    /// Subscribes, for all ports.
    ///
    /// # Errors
    /// What the system calls say. Must be called inside a tokio runtime.
    pub fn open() -> io::Result<Self> {
        let mut this = Self {
            socket: TokioSocket::new(NETLINK_SOCK_DIAG)?,
            buffer: Vec::with_capacity(DATAGRAM),
            pending: VecDeque::new(),
            congested: false,
        };
        this.set_range(1, u16::MAX)?;
        let socket = this.socket.socket_mut();
        // A smaller buffer only means that Overflow comes sooner.
        if let Err(error) = socket.set_rx_buf_sz(RECEIVE_BUFFER) {
            debug!(%error, "the receive buffer of the destroy events stays small");
        }
        socket.bind(&SocketAddr::new(0, 0))?;
        for group in GROUPS {
            socket.add_membership(group)?;
        }
        Ok(this)
    }

    /// From now on passes only sockets with a local port from `min` to `max`.
    ///
    /// # Errors
    /// As setsockopt(2).
    pub fn set_range(&mut self, min: u16, max: u16) -> io::Result<()> {
        attach(self.socket.as_raw_fd(), &filter(min, max))
    }

    /// Waits for the next event. Cancel-safe.
    pub async fn next(&mut self) -> Destroy {
        loop {
            if let Some(event) = self.try_next() {
                return event;
            }
            self.buffer.clear();
            let Self { socket, buffer, .. } = self;
            let result = poll_fn(|cx| socket.poll_recv_from(cx, buffer)).await;
            self.take(result);
        }
    }

    /// The next pending event.
    pub fn try_next(&mut self) -> Option<Destroy> {
        for _ in 0..MAX_DISCARDED {
            if let Some(event) = self.pending.pop_front() {
                return Some(event);
            }
            self.buffer.clear();
            let result = self.socket.socket_ref().recv_from(&mut self.buffer, 0);
            match result {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let congested = std::mem::take(&mut self.congested);
                    return congested.then_some(Destroy::Overflow);
                }
                other => self.take(other.map(|(_, sender)| sender)),
            }
        }
        // Reported again once the queue is empty.
        Some(Destroy::Overflow)
    }

    /// Handles a datagram in the buffer, or the error in its place.
    fn take(&mut self, result: io::Result<SocketAddr>) {
        match result {
            Ok(sender) => {
                // Only the kernel has port id 0. While events are dropped the others are useless:
                // the reader will dump everything.
                if sender.port_number() == 0 && !self.congested {
                    self.pending.extend(events(&self.buffer));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // ENOBUFS. recvfrom(2) knows no other error here that would say less.
            Err(error) => {
                debug!(%error, "destroy events were lost");
                self.congested = true;
            }
        }
    }
}

/// The events in a datagram.
pub fn events(datagram: &[u8]) -> impl Iterator<Item = Destroy> + '_ {
    messages(datagram).filter_map(|message| match message.map(|message| message.payload) {
        Ok(NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response))) => {
            let id = &response.header.socket_id;
            (id.destination_port == 0).then(|| Destroy::Closed {
                cookie: cookie(id),
                port: id.source_port,
            })
        }
        Ok(_) => None,
        Err(error) => {
            debug!(%error, "a destroy event cannot be read");
            Some(Destroy::Overflow)
        }
    })
}

/// Offsets in a datagram: netlink header (16 bytes), then struct inet_diag_msg with four bytes
/// before its ports, which are in network byte order as BPF loads them.
const SOURCE_PORT: u32 = 20;
const DESTINATION_PORT: u32 = 22;

/// A classic BPF program that keeps datagrams with destination port 0 and a source port from
/// `min` to `max`. A load beyond the end drops the datagram.
fn filter(min: u16, max: u16) -> [libc::sock_filter; 7] {
    const LOAD_HALF: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_ABS;
    const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const IF_AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
    const IF_ABOVE: u32 = libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    // `yes` and `no` count the instructions to skip.
    let op = |code: u32, k: u32, yes: u8, no: u8| libc::sock_filter {
        code: code as u16,
        jt: yes,
        jf: no,
        k,
    };
    [
        op(LOAD_HALF, DESTINATION_PORT, 0, 0),
        op(IF_EQUAL, 0, 0, 4),
        op(LOAD_HALF, SOURCE_PORT, 0, 0),
        op(IF_AT_LEAST, min.into(), 0, 2),
        op(IF_ABOVE, max.into(), 1, 0),
        op(RETURN, u32::MAX, 0, 0),
        op(RETURN, 0, 0, 0),
    ]
}

/// SO_ATTACH_FILTER (man 7 socket): replaces the filter of `socket` in one step.
fn attach(socket: RawFd, program: &[libc::sock_filter; 7]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel reads `program` and the array that it points to during the call and
    // writes neither; both live until it returns, and the lengths are theirs.
    let result = unsafe {
        libc::setsockopt(
            socket,
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    const CLOSED: &[u8] = include_bytes!("../../../fixtures/netlink/destroy-5000.bin");

    #[test]
    fn a_real_event_is_read_and_a_cut_one_counts_as_lost() {
        // Its length comes before the datagram.
        let datagram = &CLOSED[4..];
        let found: Vec<_> = events(datagram).collect();
        let [Destroy::Closed { cookie, port: 5000 }] = found[..] else {
            panic!("{found:?}");
        };
        assert_ne!(cookie, 0);
        for length in 1..datagram.len() {
            let found: Vec<_> = events(&datagram[..length]).collect();
            assert_eq!(found, [Destroy::Overflow], "cut to {length}");
        }
        assert_eq!(events(&[]).count(), 0);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = events(&bytes).count();
        }
    }
}
