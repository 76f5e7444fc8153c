//! The host's knowledge of the guest: its listeners, and since when the host knows each port. A
//! rule's wait for the name of the process starts then (step 4).
//!
//! Invariants: pure; a port counts as newly known if its socket changes, or if the name of its
//! process is lost, as after a restart of the agent; rum's own listeners, which an agent on this
//! kernel may see, are never included.

use std::collections::{BTreeMap, HashSet};
use std::time::Instant;

use rum_shared::listener::{Change, Listener, ListenerSet};

use crate::plan::GuestPort;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    set: ListenerSet,
    /// One entry for each port of the set.
    known_since: BTreeMap<u16, Instant>,
    /// Whether the agent runs on this kernel, so that inodes can be compared.
    pub(super) same_kernel: bool,
    /// The inodes of rum's own listening sockets.
    pub(super) own: HashSet<u64>,
}

impl Listeners {
    /// The set that the agent reported.
    pub(super) fn set(&self) -> &ListenerSet {
        &self.set
    }

    /// The listener on `port`, and since when the host knows it.
    pub(super) fn heard(&self, port: GuestPort) -> Option<(&Listener, Instant)> {
        let listener = self.set.get(port.0)?;
        let own = self.same_kernel && self.own.contains(&listener.inode);
        let since = self.known_since.get(&port.0)?;
        (!own).then_some((listener, *since))
    }

    /// Applies a difference.
    pub(super) fn apply(&mut self, change: &Change, now: Instant) {
        for port in &change.closed {
            self.known_since.remove(port);
        }
        for listener in change.opened.iter().chain(&change.changed) {
            let same = self.set.get(listener.port).is_some_and(|old| {
                old.inode == listener.inode && (old.process.is_none() || listener.process.is_some())
            });
            let since = self.known_since.entry(listener.port).or_insert(now);
            if !same {
                *since = now;
            }
        }
        self.set.apply(change);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rum_shared::listener::Process;

    use super::*;

    #[test]
    fn a_port_is_heard_of_anew_with_another_socket_or_without_its_name() {
        let start = Instant::now();
        let at = |n| start + Duration::from_secs(n);
        let named = |inode, name: &str| Listener {
            inode,
            process: (!name.is_empty()).then(|| Process {
                pid: 1,
                name: name.into(),
                ..Process::default()
            }),
            ..Listener::bare(7)
        };
        let mut guest = Listeners::default();
        for (now, listener, since) in [
            (0, Some(named(1, "")), Some(0)),
            (1, Some(named(1, "a")), Some(0)),
            (2, Some(named(1, "b")), Some(0)),
            (3, Some(named(2, "b")), Some(3)),
            (4, Some(named(2, "")), Some(4)),
            (5, Some(named(2, "")), Some(4)),
            (6, None, None),
            (7, Some(named(2, "")), Some(7)),
        ] {
            let next = ListenerSet::new(0, listener);
            guest.apply(&guest.set.diff(&next), at(now));
            let heard = guest.heard(GuestPort(7));
            assert_eq!(heard.map(|(_, since)| since), since.map(at), "at {now}");
        }
    }
}
