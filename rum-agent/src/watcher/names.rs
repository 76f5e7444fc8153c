//! Details for step 2: the names of the processes that listen, looked up beside the watcher's loop.
//!
//! A look-up walks through /proc, so it happens on a blocking thread, one at a time, after the ports
//! were published, and less often the longer it takes. What is found is added to the truth by whoever
//! owns that.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rum_shared::listener::{Change, Process};
use rustix::time::ClockId;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::warn;

use crate::kernel::process;
use crate::pace::Pace;

use super::used;

/// Names are looked up this long after a change: the walk through /proc would compete with the
/// report of the port and with the first connection to it.
const NAMES_AFTER: Duration = Duration::from_millis(3);

/// What a look-up has found, by inode, and the ports that it was for.
pub(super) type Found = (HashMap<u64, Process>, Vec<u16>);

/// The look-up of process names: one at a time, at a bounded rate.
pub(super) struct Names {
    /// Inodes and their ports.
    wanted: BTreeSet<(u64, u16)>,
    /// When the first of them was wanted.
    since: Instant,
    /// Those that a look-up is under way for, and what ends it.
    sought: (BTreeSet<(u64, u16)>, Arc<AtomicBool>),
    /// Where to look first: the process of the last hint.
    pub(super) first: Option<u32>,
    pace: Pace,
    began: Instant,
    running: JoinSet<(Found, Duration)>,
}

impl Names {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            wanted: BTreeSet::new(),
            since: now,
            sought: Default::default(),
            first: None,
            pace: Pace::new(now),
            began: now,
            running: JoinSet::new(),
        }
    }

    /// Takes note of the listeners in `change` that have no name yet. What was wanted of its ports
    /// before is there no more: to look for it would take the longest.
    pub(super) fn want(&mut self, change: &Change) {
        let (sought, stop) = &mut self.sought;
        if !self.wanted.is_empty() || !sought.is_empty() {
            let ports: HashSet<u16> = change.ports().collect();
            let still = |(_, port): &(u64, u16)| !ports.contains(port);
            self.wanted.retain(still);
            sought.retain(still);
            stop.store(sought.is_empty(), Ordering::Relaxed);
        }
        if self.wanted.is_empty() {
            self.since = Instant::now();
        }
        let listeners = change.opened.iter().chain(&change.changed);
        let nameless = listeners.filter(|l| l.process.is_none() && l.inode != 0);
        self.wanted.extend(nameless.map(|l| (l.inode, l.port)));
    }

    /// When the next look-up should start.
    pub(super) fn due(&self) -> Option<Instant> {
        (self.running.is_empty() && !self.wanted.is_empty())
            .then(|| self.pace.earliest().max(self.since + NAMES_AFTER))
    }

    /// Looks for all that is wanted. What is not found is not looked for again, unless its
    /// port changes: the process may not be ours to see.
    pub(super) fn look_up(&mut self) {
        self.began = Instant::now();
        let wanted = std::mem::take(&mut self.wanted);
        let (inodes, ports): (Vec<u64>, Vec<u16>) = wanted.iter().copied().unzip();
        let stop = Arc::new(AtomicBool::new(false));
        self.sought = (wanted, stop.clone());
        let first = self.first.take();
        self.running.spawn_blocking(move || {
            let spent = used(ClockId::ThreadCPUTime);
            let found = process::find(&inodes, first, process::MAX_DESCRIPTORS, &stop);
            let cost = used(ClockId::ThreadCPUTime).saturating_sub(spent);
            ((found, ports), cost)
        });
    }

    /// What a look-up has found; `None` while none is running.
    pub(super) async fn found(&mut self) -> Option<Found> {
        let result = self.running.join_next().await?;
        self.sought.0.clear();
        let (found, cost) = result
            .inspect_err(|error| warn!("looking up process names failed: {error}"))
            .ok()
            .unzip();
        self.pace.count(self.began, cost.unwrap_or_default());
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rum_shared::listener::Listener;

    #[test]
    fn what_closed_or_was_replaced_is_not_looked_for() {
        let listener = |port, inode| Listener {
            inode,
            ..Listener::bare(port)
        };
        let mut names = Names::new(Instant::now());
        names.want(&Change {
            opened: vec![listener(80, 1), listener(81, 2), listener(82, 3)],
            ..Change::default()
        });
        names.want(&Change {
            changed: vec![listener(81, 4)],
            closed: vec![80],
            ..Change::default()
        });
        assert_eq!(names.wanted, [(3, 82), (4, 81)].into());
        names.want(&Change {
            closed: vec![81, 82],
            ..Change::default()
        });
        assert_eq!(names.due(), None);
    }

    #[tokio::test]
    async fn a_look_up_ends_with_the_last_that_it_is_for() {
        let mut names = Names::new(Instant::now());
        let listener = |port| Listener {
            inode: u64::from(port),
            ..Listener::bare(port)
        };
        names.want(&Change {
            opened: vec![listener(80), listener(81)],
            ..Change::default()
        });
        names.look_up();
        let stop = names.sought.1.clone();
        for port in [80, 81] {
            assert!(!stop.load(Ordering::Relaxed));
            names.want(&Change {
                closed: vec![port],
                ..Change::default()
            });
        }
        assert!(stop.load(Ordering::Relaxed));
        let (_, ports) = names.found().await.expect("one is running");
        assert_eq!(ports, [80, 81]);
        names.want(&Change {
            opened: vec![listener(82)],
            ..Change::default()
        });
        names.look_up();
        assert!(!names.sought.1.load(Ordering::Relaxed));
    }
}
