//! The first bytes of a forward channel: what the host asks the agent for.

use std::net::IpAddr;

use crate::destination::Destination;

/// After port 0: request for unconnected sockets, see [`super::handover`].
pub(super) const SOCKETS: u8 = 0;
/// After port 0: four bytes of an IPv4 address and two of a port follow.
pub(super) const IPV4: u8 = 4;
/// After port 0: sixteen bytes of an IPv6 address and two of a port follow.
pub(super) const IPV6: u8 = 6;

/// The host's request on a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// A connection. Its port may be 0 in a header received from a host.
    Destination(Destination),
    /// Sockets that are not connected, see [`super::handover`].
    Sockets,
}

impl Header {
    /// The header's bytes.
    pub fn bytes(self) -> Vec<u8> {
        let Self::Destination(Destination { ip, port }) = self else {
            return vec![0, 0, SOCKETS];
        };
        let port = port.to_be_bytes();
        match ip {
            None => port.to_vec(),
            Some(IpAddr::V4(ip)) => [&[0, 0, IPV4], &ip.octets()[..], &port].concat(),
            Some(IpAddr::V6(ip)) => [&[0, 0, IPV6], &ip.octets()[..], &port].concat(),
        }
    }
}
