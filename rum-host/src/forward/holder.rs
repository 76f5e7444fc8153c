//! Queries of the host's own kernel: which process holds a port, and which boot this is.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::atomic::AtomicBool;

use rum_agent::kernel::proc_net::{Endian, Family, parse_ip};
use rum_agent::kernel::process::{Place, Walk};
use rum_agent::kernel::sock_diag::SockDiag;
use rum_shared::listener::{MAX_NAME, Process};
use rum_shared::text::clean;

use crate::forward::bind_failure::Hold;
use crate::plan::HostAddr;
use crate::plan::policy::overlap;

/// Most descriptors of this machine that are examined in one search: about a second's work, on its
/// own thread. A machine with busy servers has more than the agent's bound allows for.
const MAX_DESCRIPTORS: usize = 500_000;

/// What occupies a host port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// Inodes of the occupying sockets. Empty if they cannot be seen; 0 for a socket that no
    /// process owns any more.
    sockets: Vec<u64>,
    /// The kind of socket.
    pub by: Hold,
    /// The process that holds one of them, if it can be seen.
    pub holder: Option<Process>,
}

/// Finds what keeps `at` from being bound, if it can be seen.
pub fn holder(at: HostAddr) -> (Option<Process>, Hold) {
    let found = holders(vec![((), at, None)]).pop();
    found.map_or_else(Default::default, |(.., taken)| (taken.holder, taken.by))
}

/// Finds what keeps each address from being bound: listeners on that port at the same or an
/// unspecified address, else connections. A known result is kept while its sockets and its process
/// exist. Otherwise this reads /proc, once for all addresses: call it off the hot path.
pub fn holders<K>(wanted: Vec<(K, HostAddr, Option<Taken>)>) -> Vec<(K, HostAddr, Taken)> {
    let listeners = SockDiag::open().and_then(|mut source| source.dump());
    let mut by_port: HashMap<u16, Vec<(IpAddr, u64)>> = HashMap::new();
    for socket in listeners.unwrap_or_default() {
        let there = by_port.entry(socket.port).or_default();
        there.push((socket.ip, socket.inode));
    }
    let mut connections = None;
    let mut in_the_way = |at: &HostAddr| -> (Vec<u64>, Hold) {
        let there = by_port.get(&at.0.port()).into_iter().flatten();
        let there = there.filter(|(ip, _)| overlap(*ip, at.0.ip()));
        let listeners: Vec<u64> = there.map(|(_, inode)| *inode).collect();
        if !listeners.is_empty() {
            return (listeners, Hold::Listener);
        }
        // Rarely needed: a port is occupied without a listener.
        let all = connections.get_or_insert_with(Connection::all);
        let there = all.iter().filter(|c| c.local.port() == at.0.port());
        let there = there.filter(|c| overlap(c.local.ip(), at.0.ip()));
        let live = there.clone().map(|c| c.inode).filter(|inode| *inode != 0);
        match (live.collect::<Vec<_>>(), there.count()) {
            (_, 0) => (Vec::new(), Hold::Listener),
            (live, _) if live.is_empty() => (vec![0], Hold::TimeWait),
            (live, _) => (live, Hold::Connection),
        }
    };
    let mut alive = HashMap::new();
    let mut is_there = |who: &Process| {
        let path = format!("/proc/{}", who.pid);
        *alive
            .entry(who.pid)
            .or_insert_with(|| Path::new(&path).exists())
    };
    let mut found = Vec::with_capacity(wanted.len());
    let mut unknown = Vec::new();
    for (key, at, known) in wanted {
        let (sockets, by) = in_the_way(&at);
        let known = known.filter(|known| {
            known.sockets == sockets && known.holder.as_ref().is_none_or(&mut is_there)
        });
        let taken = known.unwrap_or_else(|| {
            // Inode 0 has no owner.
            unknown.extend(sockets.iter().filter(|inode| **inode != 0));
            Taken {
                sockets,
                by,
                holder: None,
            }
        });
        found.push((key, at, taken));
    }
    if unknown.is_empty() {
        return found;
    }
    let walk = Walk {
        inodes: &unknown,
        first: None,
        from: Place::START,
        descriptors: MAX_DESCRIPTORS,
        stop: &AtomicBool::new(false),
    };
    let held = walk.find().held;
    for (.., taken) in &mut found {
        let holder = taken.sockets.iter().find_map(|inode| held.get(inode));
        if let Some(holder) = holder {
            taken.holder = Some(Process {
                pid: holder.process.pid,
                name: clean(&holder.process.name, MAX_NAME),
                ..Process::default()
            });
        }
    }
    found
}

/// A TCP socket that is not listening, from /proc/net/tcp{,6} (proc(5)).
struct Connection {
    local: SocketAddr,
    /// 0 if no process owns it any more.
    inode: u64,
}

impl Connection {
    /// All of this network namespace.
    fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for (table, family) in [("tcp", Family::V4), ("tcp6", Family::V6)] {
            // Without IPv6, this file does not exist.
            let text = std::fs::read_to_string(format!("/proc/thread-self/net/{table}"));
            let text = text.unwrap_or_default();
            all.extend(text.lines().skip(1).filter_map(|l| Self::parse(l, family)));
        }
        all
    }

    fn parse(line: &str, family: Family) -> Option<Self> {
        /// TCP_LISTEN, include/net/tcp_states.h.
        const LISTEN: &str = "0A";
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (ip, port) = fields.next()?.split_once(':')?;
        let state = fields.nth(1)?;
        let inode = fields.nth(5)?.parse().ok()?;
        let ip = parse_ip(ip, family, Endian::HOST)?.to_canonical();
        let local = SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?);
        (state != LISTEN).then_some(Self { local, inode })
    }
}

/// The kernel's boot id, which an agent on the same kernel shares.
pub fn boot_id() -> Option<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn who_has_a_port_is_looked_for_again_when_somebody_else_has_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = HostAddr(listener.local_addr().unwrap());
        let me = |taken: &Taken| taken.holder.as_ref().map(|holder| holder.pid);
        let look = |known| holders(vec![((), at, known)]).pop().unwrap().2;
        let first = look(None);
        assert_eq!(me(&first), Some(std::process::id()));
        // A known result stays while its socket and its process exist.
        let holder = Some(Process {
            pid: std::os::unix::process::parent_id(),
            name: "known".into(),
            ..Process::default()
        });
        let known = Taken { holder, ..first };
        assert_eq!(look(Some(known.clone())), known);
        let sockets = vec![1];
        assert_eq!(
            me(&look(Some(Taken {
                sockets,
                ..known.clone()
            }))),
            Some(std::process::id()),
            "another socket"
        );
        let gone = Process {
            pid: u32::MAX,
            name: "gone".into(),
            ..Process::default()
        };
        let holder = Some(gone);
        assert_eq!(
            me(&look(Some(Taken { holder, ..known }))),
            Some(std::process::id()),
            "its process has ended"
        );
        drop(listener);
        assert_eq!(
            look(None),
            Taken {
                sockets: vec![],
                by: Hold::Listener,
                holder: None
            }
        );
    }

    #[test]
    fn a_connection_has_its_local_port_and_keeps_it_for_a_while() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        let at = HostAddr(client.local_addr().unwrap());
        let (who, by) = holder(at);
        assert_eq!(
            (who.map(|who| who.pid), by),
            (Some(std::process::id()), Hold::Connection)
        );
        // The side that closes first keeps TIME_WAIT.
        client.shutdown(std::net::Shutdown::Both).unwrap();
        drop((client, server));
        assert_eq!(holder(at), (None, Hold::TimeWait));
        let elsewhere = HostAddr(SocketAddr::new([127, 0, 0, 9].into(), at.0.port()));
        assert_eq!(holder(elsewhere), (None, Hold::Listener));
        let v6 = "  3: 0000000000000000FFFF00000100007F:9C40 00000000000000000000000000000000:0050 01 00000000:00000000 00:00000000 00000000  1000        0 4242 1";
        let v6 = Connection::parse(v6, Family::V6).unwrap();
        assert_eq!(
            (v6.local, v6.inode),
            ("127.0.0.1:40000".parse().unwrap(), 4242)
        );
        for wrong in [
            "",
            "x",
            "0: 1:2",
            "0: 0100007F:0016 0:0 0A 0:0 0:0 0 0 0 1 1",
            "0: é100007F:0016 0 01 0 0 0 0 0 1",
        ] {
            assert!(Connection::parse(wrong, Family::V4).is_none(), "{wrong}");
        }
    }
}
