//! Details for step 2: the names of the processes that listen, looked up beside the watcher's loop.
//!
//! A look-up walks through /proc, so it happens on a blocking thread, one at a time, after the ports
//! were published, and less often the longer it takes. What is found is added to the truth by whoever
//! owns that.

use std::collections::{BTreeSet, HashMap, HashSet};
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
            first: None,
            pace: Pace::new(now),
            began: now,
            running: JoinSet::new(),
        }
    }

    /// Takes note of the listeners in `change` that have no name yet. What was wanted of its ports
    /// before is there no more: to look for it would take the longest.
    pub(super) fn want(&mut self, change: &Change) {
        if !self.wanted.is_empty() {
            let ports: HashSet<u16> = change.ports().collect();
            self.wanted.retain(|(_, port)| !ports.contains(port));
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
        let (inodes, ports): (Vec<u64>, Vec<u16>) = wanted.into_iter().unzip();
        let first = self.first.take();
        self.running.spawn_blocking(move || {
            let spent = used(ClockId::ThreadCPUTime);
            let found = process::find(&inodes, first, process::MAX_DESCRIPTORS);
            let cost = used(ClockId::ThreadCPUTime).saturating_sub(spent);
            ((found, ports), cost)
        });
    }

    /// What a look-up has found; `None` while none is running.
    pub(super) async fn found(&mut self) -> Option<Found> {
        let result = self.running.join_next().await?;
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
}
