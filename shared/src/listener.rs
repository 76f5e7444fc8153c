//! Step 2 of the data flow: the set of listeners, and the difference between two sets.
//!
//! A [`ListenerSet`] holds one [`Listener`] for each port, however many sockets listen on it (IPv4
//! and IPv6, SO_REUSEPORT): to a user they are one port. A [`Change`] turns one set into the next.
//! The generation rises by one with every change, so a reader that missed one notices.
//!
//! Invariants: pure (no clock, no socket); `set.apply(&set.diff(&next))` equals `next`; a change
//! never names a port twice.

use std::collections::BTreeMap;
use std::net::IpAddr;

use facet::Facet;

use crate::range::PortRange;

/// Most addresses of one port that are reported: enough for any real program, and a bound on the
/// message whatever the guest does.
pub const MAX_ADDRESSES: usize = 8;
/// Longest name of a process, program, script or network interface that is reported, in bytes. The
/// kernel's own limit is 15 for a process (TASK_COMM_LEN, include/linux/sched.h) and for an
/// interface (IFNAMSIZ, include/uapi/linux/if.h); longer file names are truncated.
pub const MAX_NAME: usize = 64;
/// Longest command line that is reported, in bytes. A longer one keeps its beginning and its end: a
/// Java program's class comes last, after a long class path.
pub const MAX_COMMAND: usize = 256;

/// An address that a listener is bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Facet)]
pub struct BoundAddr {
    /// The local address; unspecified (`0.0.0.0`, `::`) means all addresses.
    pub ip: IpAddr,
    /// An IPv6 socket that accepts IPv4 connections as well (no IPV6_V6ONLY).
    pub dual_stack: bool,
    /// Index of the network interface or VRF that the socket is bound to, by SO_BINDTODEVICE or by
    /// the scope of a link-local address; 0 for any.
    pub device: u32,
}

impl BoundAddr {
    /// An address that is not bound to an interface.
    pub fn new(ip: IpAddr, dual_stack: bool) -> Self {
        Self {
            ip,
            dual_stack,
            device: 0,
        }
    }
}

/// A network interface of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Facet)]
pub struct Device {
    /// Its index, as in [`BoundAddr::device`].
    pub index: u32,
    /// Its name. Set by the guest: clean it before a terminal sees it.
    pub name: String,
}

/// The program that podman and CRI-O start for each container; it holds the sockets of the
/// container's published ports.
pub const MONITOR: &str = "conmon";

/// The process that holds a listening socket. The guest controls all its texts: clean them before a
/// terminal sees them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Facet)]
pub struct Process {
    /// Process id in the guest; that of the process, whichever of its threads listens.
    pub pid: u32,
    /// The kernel's short name (`/proc/PID/comm`).
    pub name: String,
    /// File name of the executable (`/proc/PID/exe`), empty if unknown.
    pub program: String,
    /// File name of the first argument that is not an option: for an interpreter its script. For a
    /// [`MONITOR`] the name of its container. Empty if there is none.
    pub script: String,
    /// The arguments, joined by spaces, at most [`MAX_COMMAND`] bytes. Empty if unknown.
    pub command: String,
}

/// A further process with a socket on the same port, which connections do not reach.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Facet)]
pub struct Holder {
    /// Where it listens.
    pub address: BoundAddr,
    /// Who it is.
    pub process: Process,
}

/// One port that something in the guest listens on.
#[derive(Debug, Clone, PartialEq, Eq, Facet)]
pub struct Listener {
    /// The TCP port, 1 to 65535.
    pub port: u16,
    /// Where it is bound, sorted, without duplicates, at most [`MAX_ADDRESSES`].
    pub addresses: Vec<BoundAddr>,
    /// Owner of the socket that connections reach.
    pub uid: u32,
    /// Inode of that socket, 0 if unknown.
    pub inode: u64,
    /// Who holds it, once known. Looking it up never delays the report of the port itself.
    pub process: Option<Process>,
    /// Other processes that listen on the port at other addresses, once known; at most
    /// [`MAX_ADDRESSES`].
    pub others: Vec<Holder>,
    /// The interfaces that `addresses` name.
    pub devices: Vec<Device>,
    /// Why no connection from this machine can reach it, in words; None if one can.
    pub unreachable: Option<String>,
    /// When the agent first saw it: nanoseconds on the agent's CLOCK_MONOTONIC. Not
    /// comparable with any clock of the host.
    pub seen_ns: u64,
    /// When the kernel's event for it fired, on the same clock as `seen_ns`; None where no event
    /// told of it.
    pub hinted_ns: Option<u64>,
}

impl Listener {
    /// A listener of which only the port is known (from `listening_ports`).
    pub fn bare(port: u16) -> Self {
        Self {
            port,
            addresses: Vec::new(),
            uid: 0,
            inode: 0,
            process: None,
            others: Vec::new(),
            devices: Vec::new(),
            unreachable: None,
            seen_ns: 0,
            hinted_ns: None,
        }
    }
}

/// The complete truth about a guest at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListenerSet {
    /// Rises by one with every change; starts anew with every agent process.
    pub generation: u64,
    by_port: BTreeMap<u16, Listener>,
}

/// What takes one set to the next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// The generation of the set that the change leads to.
    pub generation: u64,
    /// Ports that were not there before, in ascending order.
    pub opened: Vec<Listener>,
    /// Ports that stay but whose addresses, owner or process differ.
    pub changed: Vec<Listener>,
    /// Ports that are gone, in ascending order.
    pub closed: Vec<u16>,
}

impl Change {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.opened.is_empty() && self.changed.is_empty() && self.closed.is_empty()
    }

    /// The ports that it is about.
    pub fn ports(&self) -> impl Iterator<Item = u16> + '_ {
        let listeners = self.opened.iter().chain(&self.changed);
        listeners.map(|l| l.port).chain(self.closed.iter().copied())
    }

    /// The part of the change that concerns `range`; the generation stays.
    pub fn within(&self, range: PortRange) -> Self {
        let keep = |list: &[Listener]| -> Vec<Listener> {
            list.iter()
                .filter(|l| range.contains(l.port))
                .cloned()
                .collect()
        };
        Self {
            generation: self.generation,
            opened: keep(&self.opened),
            changed: keep(&self.changed),
            closed: self
                .closed
                .iter()
                .copied()
                .filter(|p| range.contains(*p))
                .collect(),
        }
    }
}

impl ListenerSet {
    /// A set of `listeners`; of two with the same port the later wins.
    pub fn new(generation: u64, listeners: impl IntoIterator<Item = Listener>) -> Self {
        Self {
            generation,
            by_port: listeners.into_iter().map(|l| (l.port, l)).collect(),
        }
    }

    /// The listeners, by port in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = &Listener> + '_ {
        self.by_port.values()
    }

    /// The listeners of `range`, by port in ascending order.
    pub fn within(&self, range: PortRange) -> impl Iterator<Item = &Listener> + '_ {
        self.by_port
            .range(range.min()..=range.max())
            .map(|(_, listener)| listener)
    }

    /// The listener on `port`.
    pub fn get(&self, port: u16) -> Option<&Listener> {
        self.by_port.get(&port)
    }

    /// How many ports.
    pub fn len(&self) -> usize {
        self.by_port.len()
    }

    /// Whether nothing listens.
    pub fn is_empty(&self) -> bool {
        self.by_port.is_empty()
    }

    /// What takes `self` to `next`. Its generation is that of `next`.
    pub fn diff(&self, next: &Self) -> Change {
        let mut change = Change {
            generation: next.generation,
            ..Change::default()
        };
        let mut old = self.by_port.values().peekable();
        for new in next.by_port.values() {
            while let Some(gone) = old.next_if(|o| o.port < new.port) {
                change.closed.push(gone.port);
            }
            match old.next_if(|o| o.port == new.port) {
                None => change.opened.push(new.clone()),
                Some(same) if same != new => change.changed.push(new.clone()),
                Some(_) => {}
            }
        }
        change.closed.extend(old.map(|gone| gone.port));
        change
    }

    /// Applies `change`. A port opened twice or closed while absent is taken as it comes: the
    /// result holds every opened and changed listener and no closed port.
    pub fn apply(&mut self, change: &Change) {
        for port in &change.closed {
            self.by_port.remove(port);
        }
        for listener in change.opened.iter().chain(&change.changed) {
            self.by_port.insert(listener.port, listener.clone());
        }
        self.generation = change.generation;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn listener() -> impl Strategy<Value = Listener> {
        (1u16..40, 0u32..3, proptest::option::of(1u32..4)).prop_map(|(port, uid, pid)| Listener {
            uid,
            process: pid.map(|pid| Process {
                pid,
                name: format!("p{pid}"),
                ..Process::default()
            }),
            ..Listener::bare(port)
        })
    }

    fn set() -> impl Strategy<Value = ListenerSet> {
        prop::collection::vec(listener(), 0..30).prop_map(|all| ListenerSet::new(0, all))
    }

    proptest! {
        #[test]
        fn applying_the_difference_gives_the_next_set(before in set(), mut after in set()) {
            after.generation = 1;
            let change = before.diff(&after);
            let mut folded = before.clone();
            folded.apply(&change);
            prop_assert_eq!(&folded, &after);
            prop_assert_eq!(change.is_empty(), before.iter().eq(after.iter()));
        }

        #[test]
        fn filtering_commutes_with_folding(before in set(), after in set(), a in 1u16..40, b in 1u16..40) {
            let range = PortRange::new(a.min(b), a.max(b)).unwrap();
            let part = |s: &ListenerSet| ListenerSet::new(s.generation, s.within(range).cloned());
            let mut folded = part(&before);
            folded.apply(&before.diff(&after).within(range));
            prop_assert_eq!(folded, part(&after));
        }
    }

    #[test]
    fn a_change_names_each_port_once() {
        let one = ListenerSet::new(1, [Listener::bare(1), Listener::bare(2)]);
        let two = ListenerSet::new(
            2,
            [
                Listener {
                    uid: 7,
                    ..Listener::bare(2)
                },
                Listener::bare(3),
            ],
        );
        let change = one.diff(&two);
        assert_eq!(change.generation, 2);
        assert_eq!(change.closed, [1]);
        assert_eq!(change.changed[0].port, 2);
        assert_eq!(change.opened[0].port, 3);
    }
}
