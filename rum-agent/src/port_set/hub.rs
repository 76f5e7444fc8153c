//! Step 3 of the data flow, the agent's half: hands the set and its changes to subscribers.
//!
//! The watcher publishes changes; the hub folds them into the current set and keeps the last
//! few in a log. A subscriber remembers only the generation that it has seen and reads the log
//! from there. Where the log no longer reaches back, because the subscriber was too slow, it
//! gets the complete set instead. So a subscriber costs nothing while it does not read, delays
//! nobody, and a change is stored once however many there are.
//!
//! The hub also knows the hull of all subscribed ranges, which lets the watcher narrow the
//! kernel's filters. The set itself always covers all ports.
//!
//! Invariants: generations in the log are consecutive and end with the set's; generation 0
//! means that no dump has succeeded yet, and nothing is told to anyone before.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rum_shared::listener::{Change, Listener, ListenerSet};
use rum_shared::range::PortRange;
use tokio::sync::watch;

/// Changes that the log keeps: a subscriber further behind gets a snapshot.
pub const LOG_CHANGES: usize = 256;
/// Listeners and closed ports that the log keeps over all its changes; bounds its memory to
/// a few megabytes whatever the guest does.
pub const LOG_ITEMS: usize = 4096;
/// Subscribers at once. A host has one, a tool or two beside it some more.
pub const MAX_SUBSCRIBERS: usize = 64;

/// The current set and who wants to hear of it. Shared by the watcher and the sessions.
#[derive(Debug)]
pub struct Hub {
    state: Mutex<State>,
    generation: watch::Sender<u64>,
    hull: watch::Sender<Option<PortRange>>,
}

#[derive(Debug, Default)]
struct State {
    set: Arc<ListenerSet>,
    log: VecDeque<Arc<Change>>,
    log_items: usize,
    ranges: BTreeMap<u64, PortRange>,
    next_id: u64,
}

impl Default for Hub {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            generation: watch::Sender::new(0),
            hull: watch::Sender::new(None),
        }
    }
}

impl Hub {
    /// The set as it is now. Generation 0: nothing is known yet.
    pub fn current(&self) -> Arc<ListenerSet> {
        self.state().set.clone()
    }

    /// The smallest range that covers all subscribers; `None` without any.
    pub fn hull(&self) -> watch::Receiver<Option<PortRange>> {
        self.hull.subscribe()
    }

    /// Folds `change` into the set and wakes the subscribers. Its generation must be the next.
    pub fn publish(&self, change: Change) {
        let mut state = self.state();
        debug_assert_eq!(change.generation, state.set.generation + 1);
        let generation = change.generation;
        // Copies the set only while a reader still holds the last one.
        Arc::make_mut(&mut state.set).apply(&change);
        state.log_items += items(&change);
        state.log.push_back(Arc::new(change));
        while state.log.len() > LOG_CHANGES || state.log_items > LOG_ITEMS {
            let Some(oldest) = state.log.pop_front() else {
                break;
            };
            state.log_items -= items(&oldest);
        }
        drop(state);
        self.generation.send_replace(generation);
    }

    /// Subscribes to the ports of `range`, starting with a snapshot. `None` when
    /// [`MAX_SUBSCRIBERS`] are there already.
    pub fn subscribe(self: &Arc<Self>, range: PortRange) -> Option<Subscription> {
        let mut state = self.state();
        if state.ranges.len() >= MAX_SUBSCRIBERS {
            return None;
        }
        let id = state.next_id;
        state.next_id += 1;
        state.ranges.insert(id, range);
        self.update_hull(&state);
        Some(Subscription {
            hub: self.clone(),
            id,
            range,
            seen: None,
            wake: self.generation.subscribe(),
        })
    }

    fn update_hull(&self, state: &State) {
        let hull = state.ranges.values().copied().reduce(PortRange::hull);
        self.hull.send_if_modified(|old| {
            let differs = *old != hull;
            *old = hull;
            differs
        });
    }

    /// The state; a panic elsewhere cannot leave it half changed in a way that matters here.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the log counts a change as.
fn items(change: &Change) -> usize {
    change.opened.len() + change.changed.len() + change.closed.len()
}

/// One item of a subscription, already filtered by its range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Update {
    /// Everything there is; what was told before is void.
    Snapshot {
        /// Generation of the set.
        generation: u64,
        /// The listeners of the range, by port.
        listeners: Vec<Listener>,
    },
    /// What differs, never empty.
    Delta(Change),
}

/// A reader of the hub with a range of its own. Dropping it ends the subscription.
#[derive(Debug)]
pub struct Subscription {
    hub: Arc<Hub>,
    id: u64,
    range: PortRange,
    /// The generation that the reader knows; `None` as long as a snapshot is owed.
    seen: Option<u64>,
    wake: watch::Receiver<u64>,
}

impl Subscription {
    /// The next update: a snapshot first, then whatever concerns the range. Cancel-safe.
    pub async fn next(&mut self) -> Update {
        loop {
            self.wake.mark_unchanged();
            if let Some(update) = self.take() {
                return update;
            }
            if self.wake.changed().await.is_err() {
                // The hub lives as long as `self.hub` does; it cannot end while we wait.
                std::future::pending::<()>().await;
            }
        }
    }

    /// The generation that the reader knows, 0 before the snapshot.
    pub fn generation(&self) -> u64 {
        self.seen.unwrap_or(0)
    }

    fn take(&mut self) -> Option<Update> {
        let state = self.hub.state();
        let current = state.set.generation;
        if current == 0 {
            return None;
        }
        while let Some(seen) = self.seen.filter(|seen| *seen < current) {
            let behind = usize::try_from(current - seen).unwrap_or(usize::MAX);
            let Some(at) = state.log.len().checked_sub(behind) else {
                self.seen = None;
                break;
            };
            self.seen = Some(seen + 1);
            let change = state.log[at].within(self.range);
            if !change.is_empty() {
                return Some(Update::Delta(change));
            }
        }
        if self.seen.is_some() {
            return None;
        }
        self.seen = Some(current);
        let set = state.set.clone();
        drop(state);
        Some(Update::Snapshot {
            generation: current,
            listeners: set.within(self.range).cloned().collect(),
        })
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut state = self.hub.state();
        state.ranges.remove(&self.id);
        self.hub.update_hull(&state);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn range(min: u16, max: u16) -> PortRange {
        PortRange::new(min, max).unwrap()
    }

    fn open(hub: &Hub, port: u16) {
        let generation = hub.current().generation + 1;
        hub.publish(Change {
            generation,
            opened: vec![Listener::bare(port)],
            ..Change::default()
        });
    }

    fn close(hub: &Hub, port: u16) {
        let generation = hub.current().generation + 1;
        hub.publish(Change {
            generation,
            closed: vec![port],
            ..Change::default()
        });
    }

    fn ports(update: Update) -> (u64, Vec<u16>) {
        match update {
            Update::Snapshot {
                generation,
                listeners,
            } => (generation, listeners.iter().map(|l| l.port).collect()),
            Update::Delta(change) => panic!("a snapshot was due, not {change:?}"),
        }
    }

    #[tokio::test]
    async fn subscribers_see_their_range_only() {
        let hub = Arc::new(Hub::default());
        open(&hub, 100);
        open(&hub, 200);
        let mut low = hub.subscribe(range(1, 150)).unwrap();
        let mut high = hub.subscribe(range(150, 300)).unwrap();
        assert_eq!(ports(low.next().await), (2, vec![100]));
        assert_eq!(ports(high.next().await), (2, vec![200]));
        close(&hub, 200);
        open(&hub, 101);
        let Update::Delta(change) = low.next().await else {
            panic!("a delta was due");
        };
        assert_eq!((change.generation, change.opened[0].port), (4, 101));
        let Update::Delta(change) = high.next().await else {
            panic!("a delta was due");
        };
        assert_eq!((change.generation, change.closed), (3, vec![200]));
        assert_eq!(high.take(), None);
        assert_eq!(high.generation(), 4, "what does not concern it counts too");
    }

    #[tokio::test]
    async fn nothing_is_told_before_the_first_dump() {
        let hub = Arc::new(Hub::default());
        let mut reader = hub.subscribe(PortRange::ALL).unwrap();
        assert_eq!(reader.take(), None);
        hub.publish(Change {
            generation: 1,
            ..Change::default()
        });
        assert_eq!(ports(reader.next().await), (1, vec![]));
    }

    #[tokio::test]
    async fn a_slow_subscriber_gets_a_snapshot() {
        let hub = Arc::new(Hub::default());
        open(&hub, 1);
        let mut reader = hub.subscribe(PortRange::ALL).unwrap();
        reader.next().await;
        for port in 2..(LOG_CHANGES + 3) as u16 {
            open(&hub, port);
        }
        let (generation, all) = ports(reader.next().await);
        assert_eq!(generation, hub.current().generation);
        assert_eq!(all.len(), LOG_CHANGES + 2);
        assert_eq!(reader.take(), None);
    }

    #[tokio::test]
    async fn the_log_is_bounded_by_what_it_holds() {
        let hub = Arc::new(Hub::default());
        open(&hub, 1);
        let mut reader = hub.subscribe(PortRange::ALL).unwrap();
        reader.next().await;
        hub.publish(Change {
            generation: 2,
            opened: (2..LOG_ITEMS as u16 + 3).map(Listener::bare).collect(),
            ..Change::default()
        });
        assert!(hub.state().log.is_empty());
        assert_eq!(hub.state().log_items, 0);
        assert_eq!(ports(reader.next().await).1.len(), LOG_ITEMS + 2);
        // From here on deltas again.
        open(&hub, 60000);
        assert!(matches!(reader.next().await, Update::Delta(_)));
    }

    #[test]
    fn the_hull_follows_the_subscribers() {
        let hub = Arc::new(Hub::default());
        let hull = hub.hull();
        assert_eq!(*hull.borrow(), None);
        let a = hub.subscribe(range(100, 200)).unwrap();
        let b = hub.subscribe(range(50, 60)).unwrap();
        assert_eq!(*hull.borrow(), Some(range(50, 200)));
        drop(a);
        assert_eq!(*hull.borrow(), Some(range(50, 60)));
        drop(b);
        assert_eq!(*hull.borrow(), None);
    }

    #[test]
    fn subscribers_are_bounded() {
        let hub = Arc::new(Hub::default());
        let all: Vec<_> = (0..MAX_SUBSCRIBERS)
            .map(|_| hub.subscribe(PortRange::ALL).unwrap())
            .collect();
        assert!(hub.subscribe(PortRange::ALL).is_none());
        drop(all);
        assert!(hub.subscribe(PortRange::ALL).is_some());
    }
}
