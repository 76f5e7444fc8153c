//! The host addresses of one forward.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::overlap;

/// Most addresses of one forward. Each costs a listening socket.
pub const MAX_BINDS: usize = 4;

/// The host addresses of a forward: the first, which decides whether the port counts as forwarded,
/// and additional ones on the same port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binds {
    first: IpAddr,
    /// `Some` entries come first.
    beside: [Option<IpAddr>; MAX_BINDS - 1],
    localhost: bool,
}

impl Binds {
    /// Both loopback addresses, since programs resolve `localhost` to either of them. A machine
    /// without IPv6 has only the first.
    pub const LOCALHOST: Self = Self {
        first: IpAddr::V4(Ipv4Addr::LOCALHOST),
        beside: [Some(IpAddr::V6(Ipv6Addr::LOCALHOST)), None, None],
        localhost: true,
    };

    /// These addresses. `None` if there are none, or more than [`MAX_BINDS`].
    pub fn new(addresses: &[IpAddr]) -> Option<Self> {
        let (first, others) = addresses.split_first()?;
        let mut beside = [None; MAX_BINDS - 1];
        for (index, ip) in others.iter().enumerate() {
            *beside.get_mut(index)? = Some(*ip);
        }
        Some(Self {
            first: *first,
            beside,
            localhost: false,
        })
    }

    /// The address that decides.
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// The additional addresses.
    pub fn beside(&self) -> impl Iterator<Item = IpAddr> + use<> {
        self.beside.into_iter().flatten()
    }

    /// All addresses.
    pub fn all(&self) -> impl Iterator<Item = IpAddr> + use<> {
        std::iter::once(self.first).chain(self.beside())
    }

    /// Whether it is normal that this machine does not have `ip`, so that no message is needed.
    pub fn may_lack(&self, ip: IpAddr) -> bool {
        self.localhost && ip != self.first
    }

    /// Whether listening sockets of both on one port would conflict.
    pub fn overlap(&self, other: &Self) -> bool {
        self.all().any(|a| other.all().any(|b| overlap(a, b)))
    }
}

impl From<IpAddr> for Binds {
    fn from(first: IpAddr) -> Self {
        Self {
            first,
            beside: [None; MAX_BINDS - 1],
            localhost: false,
        }
    }
}

/// As written on the command line.
impl fmt::Display for Binds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.localhost {
            return f.write_str("localhost");
        }
        self.first.fmt(f)?;
        self.beside().try_for_each(|ip| write!(f, ",{ip}"))
    }
}
