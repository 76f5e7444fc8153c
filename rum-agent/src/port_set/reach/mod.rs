//! Where what listens can be reached from this machine (steps 2 and 5).
//!
//! Nearly everything takes connections at a loopback address. The rest is dialled where it listens: at
//! its address and, if it is bound to a network interface, through that interface. The kernel takes a
//! packet to an address of this machine for one that came in through the interface that the client's
//! socket is bound to (`rt_iif`, net/ipv4/route.c), so a listener behind SO_BINDTODEVICE can be reached
//! by a client with the same option.
//!
//! Whether a listener can be reached is tried without it: a UDP socket that is bound and connected the
//! same way tells whether the address is there and a route leads to it, and sends nothing.
//!
//! Invariants: only addresses of this machine are dialled: the socket is first bound to the very
//! address that it is to connect to, which fails for any other.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::ops::Bound;
use std::os::fd::{AsRawFd, OwnedFd};

use rum_shared::listener::{Change, Device, Listener, MAX_ADDRESSES};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

mod interface;

/// Listeners that are tried again in one go, with the host's poll each second: a few system calls
/// each, and only for those that do not take connections at a loopback address.
const TRIES: usize = 32;

/// An address at which a listener takes connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The address.
    pub ip: IpAddr,
    /// Index of the interface through which; 0 for any.
    pub device: u32,
}

impl Route {
    /// Through any interface.
    pub const fn any(ip: IpAddr) -> Self {
        Self { ip, device: 0 }
    }

    /// A non-blocking socket of this kind that may connect to `port` there, and the address to name.
    ///
    /// # Errors
    /// ADDRNOTAVAIL when this machine does not have the address, NODEV when the interface is gone,
    /// PERM when the agent may not use it.
    pub fn socket(&self, kind: SocketType, port: u16) -> rustix::io::Result<(OwnedFd, SocketAddr)> {
        let socket = socket(self.ip, kind)?;
        if self.device != 0 {
            bind_to_device(&socket, self.device)?;
        }
        let address = |port| match self.ip {
            // Ignored but for a link-local address, which means nothing without it.
            IpAddr::V6(ip) => SocketAddrV6::new(ip, port, 0, self.device).into(),
            IpAddr::V4(_) => SocketAddr::new(self.ip, port),
        };
        if !self.ip.is_loopback() || self.device != 0 {
            rustix::net::bind(&socket, &address(0))?;
        }
        Ok((socket, address(port)))
    }

    /// Whether a connection could be made, as far as this machine goes.
    fn try_out(&self, port: u16) -> rustix::io::Result<()> {
        let (socket, address) = self.socket(SocketType::DGRAM, port)?;
        rustix::net::connect(&socket, &address)
    }
}

/// A non-blocking socket of this kind for addresses such as `ip`.
///
/// # Errors
/// Those of socket(2).
pub fn socket(ip: IpAddr, kind: SocketType) -> rustix::io::Result<OwnedFd> {
    let family = match ip {
        IpAddr::V4(_) => AddressFamily::INET,
        IpAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    socket_with(family, kind, flags, None)
}

/// SO_BINDTOIFINDEX (linux/socket.h); since Linux 5.7 for everybody.
fn bind_to_device(socket: &OwnedFd, device: u32) -> rustix::io::Result<()> {
    let index = i32::try_from(device).map_err(|_| Errno::NODEV)?;
    // SAFETY: the kernel reads an int, which `index` is, of the length that is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_BINDTOIFINDEX,
            (&raw const index).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL)),
    }
}

/// Where `listener` can be reached, best first. Empty when nowhere.
pub fn routes(listener: Option<&Listener>) -> Vec<Route> {
    const LOOPBACK: [IpAddr; 2] = [
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
    ];
    let Some(listener) = listener else {
        return LOOPBACK.map(Route::any).to_vec();
    };
    let loopback = LOOPBACK.into_iter().filter(|ip| takes(listener, *ip));
    let mut all: Vec<Route> = loopback.map(Route::any).collect();
    let mut addresses: Vec<_> = listener.addresses.iter().collect();
    // Stable: in their order, but for those that are bound to an interface.
    addresses.sort_by_key(|address| address.device != 0);
    for address in addresses {
        let device = address.device;
        let ip = address.ip.to_canonical();
        let ips = match ip.is_unspecified() {
            true if device == 0 => Vec::new(),
            true => interface::addresses(device, |other| {
                address.dual_stack || other.is_ipv4() == ip.is_ipv4()
            }),
            false => vec![ip],
        };
        for ip in ips {
            // A link-local address means nothing without its interface.
            let scopeless =
                matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local()) && device == 0;
            let route = Route { ip, device };
            if !scopeless && !all.contains(&route) {
                all.push(route);
            }
        }
    }
    all
}

/// Whether `listener` takes connections to the loopback address `wanted`.
fn takes(listener: &Listener, wanted: IpAddr) -> bool {
    let addresses = listener.addresses.iter();
    let mut free = addresses.filter(|bound| bound.device == 0);
    free.any(|bound| {
        let same_family = bound.ip.is_ipv4() == wanted.is_ipv4();
        bound.ip.to_canonical() == wanted
            || bound.ip.is_unspecified() && (same_family || bound.dual_stack)
    })
}

/// Which listeners take no connections at a loopback address, and whether they can be reached.
#[derive(Debug, Default)]
pub struct Reach {
    elsewhere: BTreeSet<u16>,
    /// Which of them was tried last.
    last: u16,
}

impl Reach {
    /// Completes the listeners of `change`: names of interfaces, and why one cannot be reached.
    pub fn complete(&mut self, change: &mut Change) {
        for port in &change.closed {
            self.elsewhere.remove(port);
        }
        for listener in change.opened.iter_mut().chain(&mut change.changed) {
            if complete(listener) {
                self.elsewhere.remove(&listener.port);
            } else {
                self.elsewhere.insert(listener.port);
            }
        }
    }

    /// Tries the next few again; the ports of those of which something else is known now than `told`.
    pub fn check<'a>(&mut self, told: impl Fn(u16) -> Option<&'a Listener>) -> Vec<u16> {
        let after = (Bound::Excluded(self.last), Bound::Unbounded);
        let in_turn = self
            .elsewhere
            .range(after)
            .chain(self.elsewhere.range(..=self.last));
        let next: Vec<u16> = in_turn.take(TRIES).copied().collect();
        self.last = next.last().copied().unwrap_or_default();
        let differs = |port: &u16| {
            told(*port).is_some_and(|told| {
                let mut now = told.clone();
                complete(&mut now);
                now != *told
            })
        };
        next.into_iter().filter(differs).collect()
    }
}

/// Completes `listener`; whether it takes connections at a loopback address, as nearly all do.
fn complete(listener: &mut Listener) -> bool {
    let indices: BTreeSet<u32> = listener.addresses.iter().map(|a| a.device).collect();
    let indices = indices.into_iter().filter(|index| *index != 0);
    listener.devices = indices
        .take(MAX_ADDRESSES)
        .map(|index| Device {
            index,
            name: interface::name(index).unwrap_or_default(),
        })
        .collect();
    let loopback = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let easy = listener.addresses.is_empty() || loopback.iter().any(|ip| takes(listener, *ip));
    listener.unreachable = if easy { None } else { unreachable(listener) };
    easy
}

/// Why no connection can be made to `listener`.
fn unreachable(listener: &Listener) -> Option<String> {
    let mut first = None;
    for route in routes(Some(listener)) {
        match route.try_out(listener.port) {
            Ok(()) => return None,
            Err(error) => first = first.or(Some((route, error))),
        }
    }
    let device = |index| {
        let known = listener.devices.iter().find(|d| d.index == index);
        known.map_or("", |device| &device.name)
    };
    let Some((route, error)) = first else {
        let bound = listener
            .addresses
            .iter()
            .find(|address| address.device != 0);
        return Some(match bound.map(|bound| device(bound.device)) {
            Some("") => "its network interface is gone".to_owned(),
            Some(name) => format!("it is bound to {name}, which has no address"),
            None => "it listens at a link-local address without an interface".to_owned(),
        });
    };
    let (ip, name) = (route.ip, device(route.device));
    Some(match error {
        Errno::ADDRNOTAVAIL if name.is_empty() => {
            format!("the guest does not have the address {ip}")
        }
        Errno::ADDRNOTAVAIL => format!("{name} does not have the address {ip}"),
        Errno::NODEV | Errno::NXIO => "its network interface is gone".to_owned(),
        Errno::PERM => {
            format!("it is bound to {name}, which the agent may not use without CAP_NET_RAW")
        }
        other => format!("nothing leads to {ip}: {}", io::Error::from(other)),
    })
}

#[cfg(test)]
mod tests;
