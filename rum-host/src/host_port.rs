//! What the host's own kernel says: who holds a port, and which boot this is.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use rum_agent::kernel::process::{Place, Walk};
use rum_agent::kernel::sock_diag::SockDiag;
use rum_shared::listener::{MAX_NAME, Process};
use rum_shared::text::clean;

use crate::plan::HostAddr;
use crate::policy::overlap;

/// How many descriptors of this machine are looked at for one name: a second's work, in a thread of its
/// own. A machine with busy servers has more than the agent's bound allows for.
const MAX_DESCRIPTORS: usize = 500_000;

/// Who has a host port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// The listening sockets in the way; none if they can't be seen.
    sockets: Vec<u64>,
    /// The process that has one of them, where that can be seen.
    pub holder: Option<Process>,
}

/// Who keeps `at` from being bound, where that can be seen.
pub fn holder(at: HostAddr) -> Option<Process> {
    let (.., taken) = holders(vec![((), at, None)]).pop()?;
    taken.holder
}

/// Who keeps each address from being bound: listeners on that port at the same or an unspecified
/// address. What was known stays as it is while its sockets and its process do. Otherwise this
/// reads /proc, once for all: call it off the hot path.
pub fn holders<K>(wanted: Vec<(K, HostAddr, Option<Taken>)>) -> Vec<(K, HostAddr, Taken)> {
    let listeners = SockDiag::open().and_then(|mut source| source.dump());
    let mut by_port: HashMap<u16, Vec<(IpAddr, u64)>> = HashMap::new();
    for socket in listeners.unwrap_or_default() {
        let there = by_port.entry(socket.port).or_default();
        there.push((socket.ip, socket.inode));
    }
    let in_the_way = |at: &HostAddr| -> Vec<u64> {
        let there = by_port.get(&at.0.port()).into_iter().flatten();
        let there = there.filter(|(ip, _)| overlap(*ip, at.0.ip()));
        there.map(|(_, inode)| *inode).collect()
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
        let sockets = in_the_way(&at);
        let known = known.filter(|known| {
            known.sockets == sockets && known.holder.as_ref().is_none_or(&mut is_there)
        });
        let taken = known.unwrap_or_else(|| {
            unknown.extend(&sockets);
            let holder = None;
            Taken { sockets, holder }
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

/// The kernel's boot id: equal for an agent on the same kernel.
pub fn boot_id() -> Option<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn who_has_a_port_is_looked_for_again_when_somebody_else_has_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = HostAddr(listener.local_addr().unwrap());
        let me = |taken: &Taken| taken.holder.as_ref().map(|holder| holder.pid);
        let look = |known| holders(vec![((), at, known)]).pop().unwrap().2;
        let first = look(None);
        assert_eq!(me(&first), Some(std::process::id()));
        // What is known stays as long as its socket and its process do.
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
                holder: None
            }
        );
    }
}
