//! Details for step 2: which process holds each listening socket.
//!
//! A search walks through /proc, so it runs on a blocking thread, one at a time, after the ports were
//! published, and less often the longer it takes. It looks at a bounded number of descriptors; the next
//! search continues where it stopped, until all processes have been seen once. A holder that was found
//! is watched ([`Holders`]) and looked up again when it has ended or no longer holds the socket.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rum_shared::listener::{Change, Process};
use rustix::time::ClockId;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::until;
use crate::blocking;
use crate::kernel::holders::{Holders, Key, Stale};
use crate::kernel::process::{self, Place, Walk};
use crate::port_set::socket_table::SocketTable;
use crate::schedule::RateLimit;
use crate::used;

/// Delay of a search after a change: the walk through /proc would compete with the report of the port
/// and with the first connection to it.
const SEARCH_AFTER: Duration = Duration::from_millis(3);

/// Delay of a search after one for which there was no thread.
const WITHOUT_THREAD: Duration = Duration::from_millis(250);

/// What a search has found of each of its sockets: the holder, or that there is none that the agent may
/// see.
type Found = HashMap<Key, Option<Process>>;

/// What a search brings home, and what it has cost of processor time.
type Search = io::Result<(process::Found, Duration)>;

/// The holders of sockets: one search at a time, at a bounded rate.
pub(super) struct Names {
    /// The sockets to search for, and how often a search has to reach the end of /proc before a socket
    /// counts as not to be found; 0 for one that no search was for yet.
    wanted: BTreeMap<Key, u8>,
    /// When the first of them was wanted.
    since: Instant,
    /// Those that the running search is for.
    sought: BTreeMap<Key, u8>,
    /// Ends the running search.
    stop: Arc<AtomicBool>,
    /// Where to look first: the process of the last hint.
    pub(super) first: Option<u32>,
    /// Where the next search continues.
    place: Place,
    /// Descriptors that one search may look at.
    descriptors: usize,
    rate: RateLimit,
    began: Instant,
    running: JoinSet<Search>,
    holders: Holders,
}

impl Names {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            wanted: BTreeMap::new(),
            since: now,
            sought: BTreeMap::new(),
            stop: Arc::default(),
            first: None,
            place: Place::START,
            descriptors: process::MAX_DESCRIPTORS,
            rate: RateLimit::new(now),
            began: now,
            running: JoinSet::new(),
            holders: Holders::default(),
        }
    }

    /// Notes the sockets of `change`, which `table` has already.
    pub(super) fn changed(&mut self, change: &Change, table: &SocketTable) {
        for port in change.ports() {
            let sockets = table.sockets(port);
            let stays = |inode| sockets.iter().any(|s| s.inode == inode);
            self.holders.retain(port, stays);
        }
        let listening = change.opened.iter().chain(&change.changed);
        self.want(change, listening.flat_map(|l| table.nameless(l.port)));
    }

    /// Notes the sockets of `change` that are `nameless`. Earlier ones of its ports are gone: a search
    /// for them would take the longest.
    fn want(&mut self, change: &Change, nameless: impl IntoIterator<Item = Key>) {
        if !self.wanted.is_empty() || !self.sought.is_empty() {
            let ports: HashSet<u16> = change.ports().collect();
            let still = |(port, _): &Key, _: &mut u8| !ports.contains(port);
            self.wanted.retain(still);
            self.sought.retain(still);
            self.stop.store(self.sought.is_empty(), Ordering::Relaxed);
        }
        self.add(nameless);
    }

    /// Notes sockets whose holder is another process now.
    fn again(&mut self, stale: &[Stale]) {
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

    /// Checks a few of the holders that were found, of which no event would tell.
    pub(super) fn check(&mut self) {
        let stale = self.holders.check();
        self.again(&stale);
    }

    /// Waits for holders, `None` where there is none that the agent may see. Cancel-safe.
    pub(super) async fn next(&mut self) -> Found {
        loop {
            let due = self.due();
            tokio::select! {
                Some(ended) = self.running.join_next() => return self.found(ended),
                stale = self.holders.ended() => self.again(&stale),
                () = until(due) => self.look_up(),
            }
        }
    }

    /// When the next search should start.
    fn due(&self) -> Option<Instant> {
        (self.running.is_empty() && !self.wanted.is_empty())
            .then(|| self.rate.earliest().max(self.since + SEARCH_AFTER))
    }

    /// Searches for all that is wanted. What is not found among all processes is not looked for again
    /// unless its port changes: the agent may not be allowed to see the process.
    fn look_up(&mut self) {
        self.began = Instant::now();
        self.sought = std::mem::take(&mut self.wanted);
        // A socket that joins a walk under way has been looked for everywhere at the second end.
        let ends = if self.place == Place::START { 1 } else { 2 };
        for left in self.sought.values_mut().filter(|left| **left == 0) {
            *left = ends;
        }
        let inodes: Vec<u64> = self.sought.keys().map(|(_, inode)| *inode).collect();
        self.stop = Arc::default();
        let stop = self.stop.clone();
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

    /// What the search that has `ended` has found. The holders are watched from here on.
    fn found(&mut self, ended: Result<Search, JoinError>) -> Found {
        let (found, cost) = match ended.map_err(io::Error::other).flatten() {
            Ok(found) => found,
            // The kernel said so: there is no thread.
            Err(error) if error.raw_os_error().is_some() => {
                debug!("no thread to look up process names: {error}");
                return self.put_off();
            }
            Err(error) => {
                warn!("looking up process names failed: {error}");
                Default::default()
            }
        };
        self.rate.count(self.began, cost);
        let sought = std::mem::take(&mut self.sought);
        self.place = found.rest.unwrap_or_default();
        let mut held = found.held;
        let mut known = Found::new();
        let (mut left, mut gone) = (BTreeMap::new(), Vec::new());
        for (key, ends) in sought {
            let ends = if found.rest.is_none() { ends - 1 } else { ends };
            match held.remove(&key.1) {
                Some(held) => {
                    if !self.holders.note(key, &held) {
                        let pid = held.process.pid;
                        gone.push(Stale { key, pid });
                    }
                    known.insert(key, Some(held.process));
                }
                None if ends == 0 => drop(known.insert(key, None)),
                None => drop(left.insert(key, ends)),
            }
        }
        // Sockets that were wanted again in the meantime start anew.
        left.append(&mut self.wanted);
        self.wanted = left;
        self.again(&gone);
        known
    }

    /// Puts the search off. Nothing is known of its sockets.
    fn put_off(&mut self) -> Found {
        let mut sought = std::mem::take(&mut self.sought);
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

    async fn found(names: &mut Names) -> Found {
        let ended = names.running.join_next().await.expect("one is running");
        names.found(ended)
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
        let stop = names.stop.clone();
        for port in [80, 81] {
            assert!(!stop.load(Ordering::Relaxed));
            let change = Change {
                closed: vec![port],
                ..Change::default()
            };
            want(&mut names, change);
        }
        assert!(stop.load(Ordering::Relaxed));
        let found = found(&mut names).await;
        assert!(found.is_empty());
        let change = Change {
            opened: vec![listener(82, 82)],
            ..Change::default()
        };
        want(&mut names, change);
        names.look_up();
        assert!(!names.stop.load(Ordering::Relaxed));
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
            let found = found(&mut names).await;
            own = own.or(found.get(&(80, inode)).cloned());
            nobody = nobody.or(found.get(&(81, NOBODY)).cloned());
            look_ups += 1;
        }
        let process = own.flatten().expect("it is ours");
        assert_eq!(process.pid, std::process::id());
        assert_eq!(nobody, Some(None));
        assert!(look_ups > 2, "{look_ups}");
        assert_eq!((names.due(), names.place), (None, Place::START));
    }
}
