//! Where a connection leads in the guest: in the configuration and in a channel's header.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// A TCP port of the guest, or a port at an address in its networks (a container, a neighbour).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Destination {
    /// The port, from 1 to 65535.
    pub port: u16,
    /// The address; `None`: the guest itself, at whichever address its program listens.
    pub ip: Option<IpAddr>,
}

impl Destination {
    /// A port of the guest itself.
    pub const fn own(port: u16) -> Self {
        Self { port, ip: None }
    }

    /// The address with its port, if it is not the guest itself.
    pub fn address(self) -> Option<String> {
        self.ip.map(|_| self.to_string())
    }

    /// The port, if it is the guest's own.
    pub fn own_port(self) -> Option<u16> {
        match self.ip {
            None => Some(self.port),
            Some(_) => None,
        }
    }
}

impl From<SocketAddr> for Destination {
    fn from(address: SocketAddr) -> Self {
        Self {
            port: address.port(),
            ip: Some(address.ip().to_canonical()),
        }
    }
}

/// `80`, `172.17.0.2:80`, `[fd00::2]:80`.
impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip {
            Some(ip) => SocketAddr::new(ip, self.port).fmt(f),
            None => self.port.fmt(f),
        }
    }
}
