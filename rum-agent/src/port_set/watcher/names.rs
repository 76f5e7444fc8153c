//! Details for step 2: the names of the processes that listen, looked up beside the watcher's loop.
//!
//! A look-up walks through /proc, so it happens on a blocking thread, one at a time, after the ports
//! were published, and less often the longer it takes. It looks at a bounded number of descriptors;
//! what it does not find among those it goes on to look for where it ended, until it has been through
//! all processes once. What is found is added to the truth by whoever owns that.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rum_shared::listener::Change;
use rustix::time::ClockId;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::blocking;
use crate::kernel::holders::{Key, Stale};
use crate::kernel::process::{self, Held, Place, Walk};
use crate::schedule::RateLimit;
use crate::used;

/// Names are looked up this long after a change: the walk through /proc would compete with the
/// report of the port and with the first connection to it.
const NAMES_AFTER: Duration = Duration::from_millis(3);

/// Pause before a look-up for which no thread was to be had is tried again.
const WITHOUT_THREAD: Duration = Duration::from_millis(250);

/// What a look-up has found of each socket that it was for: its holder, or that it has none that can
/// be seen.
pub(super) type Found = HashMap<Key, Option<Held>>;

/// The look-up of process names: one at a time, at a bounded rate.
pub(super) struct Names {
    /// The sockets, and how often the end of /proc is to be reached until each counts as not to be
    /// found; 0 for one that no look-up was for yet.
    wanted: BTreeMap<Key, u8>,
    /// When the first of them was wanted.
    since: Instant,
    /// Those that a look-up is under way for, and what ends it.
    sought: (BTreeMap<Key, u8>, Arc<AtomicBool>),
    /// Where to look first: the process of the last hint.
    pub(super) first: Option<u32>,
    /// Where the next look-up goes on.
    place: Place,
    /// Descriptors that one look-up may look at.
    descriptors: usize,
    pace: RateLimit,
    began: Instant,
    running: JoinSet<io::Result<(process::Found, Duration)>>,
}

impl Names {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            wanted: BTreeMap::new(),
            since: now,
            sought: Default::default(),
            first: None,
            place: Place::START,
            descriptors: process::MAX_DESCRIPTORS,
            pace: RateLimit::new(now),
            began: now,
            running: JoinSet::new(),
        }
    }

    /// Takes note of the sockets of `change` that are `nameless`. What was wanted of its ports before
    /// is there no more: to look for it would take the longest.
    pub(super) fn want(&mut self, change: &Change, nameless: impl IntoIterator<Item = Key>) {
        let (sought, stop) = &mut self.sought;
        if !self.wanted.is_empty() || !sought.is_empty() {
            let ports: HashSet<u16> = change.ports().collect();
            let still = |(port, _): &Key, _: &mut u8| !ports.contains(port);
            self.wanted.retain(still);
            sought.retain(still);
            stop.store(sought.is_empty(), Ordering::Relaxed);
        }
        self.add(nameless);
    }

    /// Takes note of sockets whose holder is another one now.
    pub(super) fn again(&mut self, stale: &[Stale]) {
        if let Some(stale) = stale.last() {
            // After exec it is the same process.
            self.first = Some(stale.pid);
        }
        self.add(stale.iter().map(|stale| stale.key));
    }

    fn add(&mut self, keys: impl IntoIterator<Item = Key>) {
        let before = self.wanted.len();
        self.wanted.extend(keys.into_iter().map(|key| (key, 0)));
        if before == 0 {
            self.since = Instant::now();
        }
    }

    /// When the next look-up should start.
    pub(super) fn due(&self) -> Option<Instant> {
        (self.running.is_empty() && !self.wanted.is_empty())
            .then(|| self.pace.earliest().max(self.since + NAMES_AFTER))
    }

    /// Looks for all that is wanted. What is not found among all processes is not looked for again,
    /// unless its port changes: the process may not be ours to see.
    pub(super) fn look_up(&mut self) {
        self.began = Instant::now();
        let mut wanted = std::mem::take(&mut self.wanted);
        // One that joins a walk that is under way has seen everything at the second end.
        let ends = if self.place == Place::START { 1 } else { 2 };
        for left in wanted.values_mut().filter(|left| **left == 0) {
            *left = ends;
        }
        let inodes: Vec<u64> = wanted.keys().map(|(_, inode)| *inode).collect();
        let stop = Arc::new(AtomicBool::new(false));
        self.sought = (wanted, stop.clone());
        let (first, from, descriptors) = (self.first.take(), self.place, self.descriptors);
        self.running.spawn(blocking::run(move || {
            let spent = used(ClockId::ThreadCPUTime);
            let walk = Walk {
                inodes: &inodes,
                first,
                from,
                descriptors,
                stop: &stop,
            };
            let found = walk.find();
            (found, used(ClockId::ThreadCPUTime).saturating_sub(spent))
        }));
    }

    /// What a look-up has found; `None` while none is running.
    pub(super) async fn found(&mut self) -> Option<Found> {
        let result = self.running.join_next().await?;
        let (found, cost) = match result.map_err(io::Error::other).flatten() {
            Ok(found) => found,
            // The kernel's word: there is no thread.
            Err(error) if error.raw_os_error().is_some() => {
                debug!("no thread to look up process names: {error}");
                return Some(self.put_off());
            }
            Err(error) => {
                warn!("looking up process names failed: {error}");
                Default::default()
            }
        };
        self.pace.count(self.began, cost);
        let sought = std::mem::take(&mut self.sought.0);
        self.place = found.rest.unwrap_or_default();
        let mut held = found.held;
        let mut known = Found::new();
        let mut left = BTreeMap::new();
        for (key, ends) in sought {
            let ends = if found.rest.is_none() { ends - 1 } else { ends };
            match held.remove(&key.1) {
                Some(held) => drop(known.insert(key, Some(held))),
                None if ends == 0 => drop(known.insert(key, None)),
                None => drop(left.insert(key, ends)),
            }
        }
        // What is wanted anew meanwhile starts anew.
        left.append(&mut self.wanted);
        self.wanted = left;
        Some(known)
    }

    /// Has all that was looked for looked for later. Nothing is known of it.
    fn put_off(&mut self) -> Found {
        let mut sought = std::mem::take(&mut self.sought.0);
        sought.append(&mut self.wanted);
        self.wanted = sought;
        self.since = Instant::now() + WITHOUT_THREAD;
        Found::new()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use rum_shared::listener::Listener;

    fn want(names: &mut Names, change: Change) {
        let opened = change.opened.iter().chain(&change.changed);
        let keys: Vec<Key> = opened.map(|l| (l.port, l.inode)).collect();
        names.want(&change, keys);
    }

    fn listener(port: u16, inode: u64) -> Listener {
        Listener {
            inode,
            ..Listener::bare(port)
        }
    }

    #[test]
    fn what_closed_or_was_replaced_is_not_looked_for() {
        let mut names = Names::new(Instant::now());
        let change = Change {
            opened: vec![listener(80, 1), listener(81, 2), listener(82, 3)],
            ..Change::default()
        };
        want(&mut names, change);
        let change = Change {
            changed: vec![listener(81, 4)],
            closed: vec![80],
            ..Change::default()
        };
        want(&mut names, change);
        assert!(names.wanted.keys().eq(&[(81, 4), (82, 3)]));
        let change = Change {
            closed: vec![81, 82],
            ..Change::default()
        };
        want(&mut names, change);
        assert_eq!(names.due(), None);
    }

    #[tokio::test]
    async fn a_look_up_ends_with_the_last_that_it_is_for() {
        let mut names = Names::new(Instant::now());
        let change = Change {
            opened: vec![listener(80, 80), listener(81, 81)],
            ..Change::default()
        };
        want(&mut names, change);
        names.look_up();
        let stop = names.sought.1.clone();
        for port in [80, 81] {
            assert!(!stop.load(Ordering::Relaxed));
            let change = Change {
                closed: vec![port],
                ..Change::default()
            };
            want(&mut names, change);
        }
        assert!(stop.load(Ordering::Relaxed));
        let found = names.found().await.expect("one is running");
        assert!(found.is_empty());
        let change = Change {
            opened: vec![listener(82, 82)],
            ..Change::default()
        };
        want(&mut names, change);
        names.look_up();
        assert!(!names.sought.1.load(Ordering::Relaxed));
    }

    #[tokio::test]
    async fn what_one_look_up_does_not_reach_the_next_ones_do() {
        const NOBODY: u64 = 1 << 60;
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a socket");
        let file = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&socket));
        let inode = std::fs::metadata(file).expect("it is open");
        let inode = std::os::unix::fs::MetadataExt::ino(&inode);
        let mut names = Names::new(Instant::now());
        names.descriptors = 50;
        // This process alone takes more than two look-ups, whatever else runs here.
        let many = || File::open("/dev/null").expect("it is there");
        let _many: Vec<File> = (0..150).map(|_| many()).collect();
        names.again(&[Stale {
            key: (80, inode),
            pid: u32::MAX,
        }]);
        let (mut own, mut look_ups, mut nobody) = (None, 0, None);
        while own.is_none() || nobody.is_none() {
            names.look_up();
            if look_ups == 0 {
                // Wanted while a walk is under way, of nobody: found out by its second end.
                names.add([(81, NOBODY)]);
            }
            let found = names.found().await.expect("one is running");
            own = own.or(found.get(&(80, inode)).cloned());
            nobody = nobody.or(found.get(&(81, NOBODY)).cloned());
            look_ups += 1;
        }
        let held = own.flatten().expect("it is ours");
        assert_eq!(held.process.pid, std::process::id());
        assert_eq!(nobody, Some(None));
        assert!(look_ups > 2, "{look_ups}");
        assert_eq!((names.due(), names.place), (None, Place::START));
    }
}
