//! When the host first heard of each guest port: from then on a rule waits for the name of the
//! process (step 4).
//!
//! Invariants: pure; holds exactly the ports of the set that it is kept in step with. Another
//! socket on a port, or one whose name is no longer known, as after the agent was restarted,
//! counts as heard of anew.

use std::collections::BTreeMap;
use std::time::Instant;

use rum_shared::listener::{Change, ListenerSet};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct KnownSince(BTreeMap<u16, Instant>);

impl KnownSince {
    /// When the host first heard of `port`; None for one that is not in the set.
    pub(super) fn of(&self, port: u16) -> Option<Instant> {
        self.0.get(&port).copied()
    }

    /// The set was `before`, and `change` comes.
    pub(super) fn change(&mut self, before: &ListenerSet, change: &Change, now: Instant) {
        for port in &change.closed {
            self.0.remove(port);
        }
        for listener in change.opened.iter().chain(&change.changed) {
            let same = before.get(listener.port).is_some_and(|old| {
                old.inode == listener.inode && (old.process.is_none() || listener.process.is_some())
            });
            let since = self.0.entry(listener.port).or_insert(now);
            if !same {
                *since = now;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rum_shared::listener::{Listener, Process};

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
            }),
            ..Listener::bare(7)
        };
        let mut known = KnownSince::default();
        let mut set = ListenerSet::default();
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
            known.change(&set, &set.diff(&next), at(now));
            set = next;
            assert_eq!(known.of(7), since.map(at), "at {now}");
        }
    }
}
