//! Step 2 of the data flow: folds complete dumps into the one [`ListenerSet`]. Pure.
//!
//! A dump of the kernel's listening sockets is complete but not atomic: while neighbours in a
//! hash bucket come and go it can skip a socket that listens all the time. So an address that a
//! dump no longer shows is only *missing*. [`SocketTable::missing`] names those sockets, the caller
//! asks the kernel about each one, and [`SocketTable::fold`] takes the dump together with the ones
//! that were found alive. A dump and its confirmation therefore always make the whole truth:
//! `fold` drops what neither names.
//!
//! Where many sockets listen, a dump may show the ones of a few ports only, those that a hint named
//! ([`Scope`]). It says nothing of the others, and changes nothing about them.
//!
//! A destroy event does not stand in for the question: it tells that one socket ended, and the
//! dump may have skipped the one that took over. The question costs a few microseconds.
//!
//! Known limit: the kernel answers for an address with a socket that listens on all addresses,
//! so an address that shared its port with such a one is shown until that one closes.
//!
//! Invariants: a port is in the set as long as the dump or a confirmation shows any socket of
//! it; the sockets of a port (twins, IPv4 and IPv6) are one [`Listener`], which has the inode, owner
//! and process of the one that connections reach ([`rank`]); it keeps them and `seen_ns` while that
//! socket lives, and a socket that takes over at once is a `changed`, never a close and an open.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rum_shared::listener::{
    BoundAddr, Change, Holder, Listener, ListenerSet, MAX_ADDRESSES, Process,
};

use crate::kernel::Socket;
use crate::kernel::holders::Key;

/// Most hinted ports that are remembered; those that never come to listen are forgotten together.
const MAX_HINTED: usize = 4096;

/// What a dump is to show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// All that listens.
    All,
    /// What listens on these ports.
    Ports(BTreeSet<u16>),
}

impl Scope {
    /// No port.
    pub const NONE: Self = Self::Ports(BTreeSet::new());

    /// What a hint names: `port`; 0 stands for an unknown one, which may be any.
    pub fn of(port: u16) -> Self {
        if port == 0 {
            Self::All
        } else {
            Self::Ports(BTreeSet::from([port]))
        }
    }

    /// Adds what `other` covers.
    pub fn extend(&mut self, other: Self) {
        match (self, other) {
            (Self::Ports(ports), Self::Ports(others)) => ports.extend(others),
            (this, _) => *this = Self::All,
        }
    }

    /// Whether it is about `port`.
    pub fn covers(&self, port: u16) -> bool {
        match self {
            Self::All => true,
            Self::Ports(ports) => ports.contains(&port),
        }
    }
}

/// The sockets that are known to listen, and the set that they make.
#[derive(Debug, Default)]
pub struct SocketTable {
    /// By port; sorted, at least one.
    sockets: BTreeMap<u16, Vec<Socket>>,
    set: ListenerSet,
    /// Who holds the sockets that are not the first of their port, by inode.
    seconds: HashMap<u64, Process>,
    /// When the kernel told of a port that is yet to be shown by a dump.
    hinted: HashMap<u16, u64>,
}

impl SocketTable {
    /// The set that the last fold made. Its generation is 0 before the first fold.
    pub fn set(&self) -> &ListenerSet {
        &self.set
    }

    /// The kernel told at `at_ns` that something begins to listen on `port`, 0 if it did not say
    /// on which: that counts for each port that opens, until [`SocketTable::forget_unknown`].
    pub fn hint(&mut self, port: u16, at_ns: u64) {
        if self.hinted.len() >= MAX_HINTED {
            self.hinted.clear();
        }
        self.hinted.insert(port, at_ns);
    }

    /// A port that opens from now on is none that the kernel told of without its number.
    pub fn forget_unknown(&mut self) {
        self.hinted.remove(&0);
    }

    /// The known sockets that `dump` lacks and that the kernel has to be asked about, one for
    /// each address. Sorts the dump.
    pub fn missing(&self, scope: &Scope, dump: &mut [Socket]) -> Vec<Socket> {
        dump.sort_unstable();
        let mut shown = dump.iter().map(address).peekable();
        let mut missing: Vec<Socket> = Vec::new();
        for sockets in self.known(scope) {
            for twins in sockets.chunk_by(|a, b| address(a) == address(b)) {
                let known = address(&twins[0]);
                while shown.next_if(|shown| *shown < known).is_some() {}
                if shown.peek() != Some(&known) {
                    missing.push(twins[0].clone());
                }
            }
        }
        missing
    }

    /// The sockets that are known to listen on `port`.
    pub fn sockets(&self, port: u16) -> &[Socket] {
        self.sockets.get(&port).map_or(&[], Vec::as_slice)
    }

    /// The known sockets of each port, in ascending order.
    fn known<'a>(&'a self, scope: &'a Scope) -> Box<dyn Iterator<Item = &'a Vec<Socket>> + 'a> {
        match scope {
            Scope::All => Box::new(self.sockets.values()),
            Scope::Ports(ports) => Box::new(ports.iter().filter_map(|p| self.sockets.get(p))),
        }
    }

    /// Whether these sockets, a dump of all and its confirmation, are others than the known ones.
    pub fn differs(&self, sockets: Vec<Socket>) -> bool {
        let sockets = tidy(sockets);
        !sockets.chunk_by(same_port).eq(self.sockets.values())
    }

    /// Makes `dump` and `alive`, the missing sockets that the kernel still knows, the new
    /// truth about `scope`; the first time that must be all. `now_ns` is CLOCK_MONOTONIC in
    /// nanoseconds.
    ///
    /// Returns what changed. The first fold always returns a change, even an empty one: it
    /// takes the set from "nothing known" (generation 0) to "nothing listens".
    pub fn fold(
        &mut self,
        scope: &Scope,
        dump: Vec<Socket>,
        alive: impl IntoIterator<Item = Socket>,
        now_ns: u64,
    ) -> Option<Change> {
        let first = self.set.generation == 0;
        let mut sockets = dump;
        sockets.extend(alive);
        sockets.retain(|socket| scope.covers(socket.port));
        let sockets = tidy(sockets);
        let mut shown = sockets.iter().map(|socket| socket.port).peekable();
        let known = self.known(scope).map(|known| known[0].port);
        let gone = known.filter(|port| {
            while shown.next_if(|shown| shown < port).is_some() {}
            shown.peek() != Some(port)
        });
        let mut change = Change {
            generation: self.set.generation + 1,
            closed: gone.collect(),
            ..Change::default()
        };
        for port in &change.closed {
            let gone = self.sockets.remove(port).unwrap_or_default();
            self.forget(&gone, &[]);
        }
        for twins in sockets.chunk_by(same_port) {
            let port = twins[0].port;
            if self.sockets.get(&port).is_some_and(|known| known == twins) {
                continue;
            }
            let before = self.sockets.insert(port, twins.to_vec());
            self.forget(&before.unwrap_or_default(), twins);
            match self.set.get(port) {
                None => change.opened.push(Listener {
                    hinted_ns: hinted_at(&mut self.hinted, port),
                    ..listener(twins, None, &mut self.seconds, now_ns)
                }),
                Some(old) => {
                    let new = listener(twins, Some(old), &mut self.seconds, now_ns);
                    if new != *old {
                        change.changed.push(new);
                    }
                }
            }
        }
        if change.is_empty() && !first {
            return None;
        }
        self.set.apply(&change);
        Some(change)
    }

    /// Those of the sockets `before` that are none of `after` are held by nobody any more.
    fn forget(&mut self, before: &[Socket], after: &[Socket]) {
        if self.seconds.is_empty() {
            return;
        }
        for gone in before {
            if !after.iter().any(|socket| socket.inode == gone.inode) {
                self.seconds.remove(&gone.inode);
            }
        }
    }

    /// The sockets of `port` whose holders are not known: of each address one.
    pub fn nameless(&self, port: u16) -> impl Iterator<Item = Key> + '_ {
        let listener = self.set.get(port);
        let first = listener.filter(|listener| listener.process.is_none());
        let first = first.map(|listener| listener.inode);
        let lead = listener.map_or(0, |listener| listener.inode);
        let known = |socket: &Socket| self.seconds.contains_key(&socket.inode);
        let others = seconds(self.sockets(port), lead);
        let others = others.filter(move |twins| !twins.iter().any(known));
        let inodes = first.into_iter().chain(others.map(|twins| twins[0].inode));
        inodes
            .filter(|inode| *inode != 0)
            .map(move |inode| (port, inode))
    }

    /// Takes note of who holds the sockets, or that nobody who can be seen does. Returns what changed.
    pub fn name(&mut self, holders: &HashMap<Key, Option<Process>>) -> Option<Change> {
        for ((port, inode), process) in holders {
            let lead = self.set.get(*port).is_some_and(|l| l.inode == *inode);
            let known = self.sockets(*port).iter().any(|s| s.inode == *inode);
            match process {
                Some(process) if known && !lead => {
                    self.seconds.insert(*inode, process.clone());
                }
                _ => drop(self.seconds.remove(inode)),
            }
        }
        let ports: BTreeSet<u16> = holders.keys().map(|(port, _)| *port).collect();
        let listeners = ports.iter().filter_map(|port| self.set.get(*port));
        let named: Vec<Listener> = listeners
            .filter_map(|listener| {
                let mut named = listener.clone();
                if let Some(process) = holders.get(&(listener.port, listener.inode)) {
                    named.process.clone_from(process);
                }
                named.others = others(self.sockets(listener.port), &named, &self.seconds);
                (named != *listener).then_some(named)
            })
            .collect();
        self.publish(named)
    }

    /// The listeners of `ports` once more, as something differs that is not known here.
    pub fn touch(&mut self, ports: impl IntoIterator<Item = u16>) -> Option<Change> {
        let listeners = ports.into_iter().filter_map(|port| self.set.get(port));
        let listeners = listeners.cloned().collect();
        self.publish(listeners)
    }

    fn publish(&mut self, changed: Vec<Listener>) -> Option<Change> {
        if changed.is_empty() {
            return None;
        }
        let change = Change {
            generation: self.set.generation + 1,
            changed,
            ..Change::default()
        };
        self.set.apply(&change);
        Some(change)
    }
}

/// Sorted, each once, without those that are bound to no port.
fn tidy(mut sockets: Vec<Socket>) -> Vec<Socket> {
    sockets.retain(|socket| socket.port != 0);
    sockets.sort_unstable();
    sockets.dedup();
    sockets
}

fn same_port(a: &Socket, b: &Socket) -> bool {
    a.port == b.port
}

/// What a host can tell apart: twins share it.
fn address(socket: &Socket) -> (u16, BoundAddr) {
    let bound = BoundAddr {
        ip: socket.ip,
        dual_stack: socket.dual_stack,
        device: socket.device,
    };
    (socket.port, bound)
}

/// Which of several sockets on one port a connection of ours reaches: the one of the smallest rank. It is
/// made to 127.0.0.1 if anything takes that, for which the kernel prefers who listens there to who
/// listens everywhere (compute_score, net/ipv4/inet_hashtables.c); else to ::1; else to the address
/// of the socket ([`crate::port_set::reach::routes`]).
fn rank(socket: &Socket) -> u8 {
    match socket.ip {
        _ if socket.device != 0 => 6,
        IpAddr::V4(Ipv4Addr::LOCALHOST) => 0,
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => 1,
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) if socket.dual_stack => 2,
        IpAddr::V6(Ipv6Addr::LOCALHOST) => 3,
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => 4,
        _ => 5,
    }
}

/// The listener that `twins`, all sockets of one port and at least one, make.
fn listener(
    twins: &[Socket],
    old: Option<&Listener>,
    seconds: &mut HashMap<u64, Process>,
    now_ns: u64,
) -> Listener {
    let first = twins.iter().map(rank).min();
    let mut best = twins.iter().filter(|socket| Some(rank(socket)) == first);
    let same = |socket: &&Socket| old.is_some_and(|old| old.inode == socket.inode);
    let known = |socket: &&Socket| seconds.contains_key(&socket.inode);
    let lead = best.clone().find(same).or_else(|| best.clone().find(known));
    let lead = lead.or(best.next()).unwrap_or(&twins[0]);
    let old = old.filter(|old| twins.iter().any(|socket| socket.inode == old.inode));
    let kept = old.filter(|old| old.inode == lead.inode);
    let process = match kept {
        Some(old) => old.process.clone(),
        None => seconds.remove(&lead.inode),
    };
    if let Some(old) = old.filter(|_| kept.is_none())
        && let Some(process) = &old.process
    {
        seconds.insert(old.inode, process.clone());
    }
    let mut new = Listener {
        addresses: addresses(twins),
        uid: lead.uid,
        inode: lead.inode,
        process,
        seen_ns: old.map_or(now_ns, |old| old.seen_ns),
        hinted_ns: old.and_then(|old| old.hinted_ns),
        ..Listener::bare(lead.port)
    };
    new.others = others(twins, &new, seconds);
    new
}

/// The sockets of each address of `twins`, which are sorted, but for the address where `lead` is. At
/// most [`MAX_ADDRESSES`] addresses.
fn seconds(twins: &[Socket], lead: u64) -> impl Iterator<Item = &[Socket]> {
    let addresses = twins.chunk_by(|a, b| address(a) == address(b));
    let others = addresses.filter(move |same| same.iter().all(|socket| socket.inode != lead));
    others.take(MAX_ADDRESSES)
}

/// The processes other than that of `listener` that hold some of `twins`.
fn others(twins: &[Socket], listener: &Listener, known: &HashMap<u64, Process>) -> Vec<Holder> {
    if known.is_empty() {
        return Vec::new();
    }
    let shown = listener.process.as_ref().map(|process| process.pid);
    let others = seconds(twins, listener.inode);
    let others = others.filter_map(|same| {
        let process = same.iter().find_map(|socket| known.get(&socket.inode));
        let process = process.filter(|process| Some(process.pid) != shown)?;
        Some(Holder {
            address: address(&same[0]).1,
            process: process.clone(),
        })
    });
    others.collect()
}

/// The addresses of `twins`; of more than [`MAX_ADDRESSES`] the ones that are easiest to reach.
fn addresses(twins: &[Socket]) -> Vec<BoundAddr> {
    let mut all: Vec<BoundAddr> = twins.iter().map(|socket| address(socket).1).collect();
    all.sort_unstable();
    all.dedup();
    if all.len() > MAX_ADDRESSES {
        all.sort_by_key(|a| (a.device, !a.ip.is_unspecified(), !a.ip.is_loopback()));
        all.truncate(MAX_ADDRESSES);
        all.sort_unstable();
    }
    all
}

/// When a hint said that `port` began to listen, or, without a port, that some did.
fn hinted_at(hinted: &mut HashMap<u16, u64>, port: u16) -> Option<u64> {
    let exact = hinted.remove(&port);
    exact.or_else(|| hinted.get(&0).copied())
}

#[cfg(test)]
mod tests;
