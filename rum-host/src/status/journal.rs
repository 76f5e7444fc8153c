//! The journal: the supervisor publishes its state here, and any number of readers follow it.
//!
//! Readers pull. The journal keeps the current rows and, in a ring, the latest events. A reader
//! remembers the number of the last event it has, and gets the events after it. A reader that is
//! too slow, or comes back too late, gets a snapshot marked as a gap. So no reader delays the
//! supervisor or another reader, and none makes the journal grow.
//!
//! Counters of connections change all the time. They are published only while there are readers
//! ([`Demand::readers`]), and once before each first snapshot ([`Demand::fresh`]).
//!
//! Invariants: event numbers are consecutive; a snapshot equals the fold of all events up to its
//! number; a row's `since` is the time when its state last changed.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use tokio::sync::watch;

use super::model::{
    AgentState, AgentStatus, ConfigStatus, Event, Op, PortStatus, Since, Update, What,
};

/// Events kept for slow or returning readers: several bursts of 500 ports.
pub const HISTORY: usize = 4096;
/// Most events in one update; the next update has the rest.
pub(crate) const BATCH: usize = 512;

/// What the readers ask of the supervisor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Demand {
    /// Number of readers. While it is not 0, counters are published each second.
    pub readers: usize,
    /// Number of readers that want every port of the guest.
    pub all: usize,
    /// Rises when a reader wants counters at once; answer with [`Journal::refreshed`].
    pub fresh: u64,
    /// Rises when a lost agent should be tried again at once.
    pub retry: u64,
}

/// The journal.
#[derive(Debug)]
pub struct Journal {
    boot: String,
    state: Mutex<State>,
    /// The number of the latest event, and that of the latest refresh.
    news: watch::Sender<(u64, u64)>,
    demand: watch::Sender<Demand>,
}

#[derive(Debug)]
struct State {
    seq: u64,
    ports: BTreeMap<u16, Vec<PortStatus>>,
    agent: AgentStatus,
    config: ConfigStatus,
    ring: VecDeque<Event>,
    /// The last refresh that was answered.
    fresh: u64,
    /// Whether the journal has every port of the guest.
    covers_all: bool,
    /// Listening ports outside the ranges.
    outside: Vec<u16>,
}

/// The current time in the model's format.
pub fn timestamp() -> String {
    format!("{:.3}", Timestamp::now())
}

impl Default for Journal {
    /// A journal without readers.
    fn default() -> Self {
        let config = ConfigStatus {
            file: None,
            loaded: timestamp(),
            range: None,
            error: None,
        };
        Self::new(String::new(), config)
    }
}

impl Journal {
    /// An empty journal for the run of `rum up` that `boot` identifies.
    pub fn new(boot: String, config: ConfigStatus) -> Self {
        let agent = AgentStatus {
            state: AgentState::Awaited,
            since: timestamp(),
            reason: None,
            retry_ms: None,
            grace_ms: 0,
            attempts: 0,
            version: None,
            hostname: None,
            source: None,
            repaired: 0,
        };
        Self {
            boot,
            state: Mutex::new(State {
                seq: 0,
                ports: BTreeMap::new(),
                agent,
                config,
                ring: VecDeque::new(),
                fresh: 0,
                covers_all: false,
                outside: Vec::new(),
            }),
            news: watch::channel((0, 0)).0,
            demand: watch::channel(Demand::default()).0,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing between two writes under the lock can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The readers' demand.
    pub fn demand(&self) -> watch::Receiver<Demand> {
        self.demand.subscribe()
    }

    /// Asks the supervisor to try a lost agent at once.
    pub fn retry(&self) {
        self.demand.send_modify(|demand| demand.retry += 1);
    }

    /// Replaces all rows of the guest port `port` by `rows`. Fills in their `since` and
    /// `previous_state`.
    pub fn put_port(&self, port: u16, rows: Vec<PortStatus>) {
        let mut state = self.state();
        let mut before = state.ports.remove(&port).unwrap_or_default();
        let mut at = None;
        let mut now = || at.get_or_insert_with(timestamp).clone();
        let mut after = Vec::with_capacity(rows.len());
        let mut changes = Vec::new();
        for mut row in rows {
            let Some(i) = before.iter().position(|old| old.id == row.id) else {
                row.since = now();
                changes.push((Op::Added, row.clone()));
                after.push(row);
                continue;
            };
            let old = before.swap_remove(i);
            if old.state == row.state {
                (row.since, row.previous_state) = (old.since.clone(), old.previous_state);
            } else {
                (row.since, row.previous_state) = (now(), Some(old.state));
            }
            if old != row {
                changes.push((Op::Changed, row.clone()));
            }
            after.push(row);
        }
        let gone = before.into_iter().map(|row| (Op::Removed, row));
        let changes: Vec<_> = gone.chain(changes).collect();
        if !after.is_empty() {
            state.ports.insert(port, after);
        }
        if !changes.is_empty() {
            let at = now();
            for (op, port) in changes {
                state.push(&at, What::Port { op, port });
            }
            self.notify(&state);
        }
    }

    /// The guest ports with rows.
    pub fn ports(&self) -> Vec<u16> {
        self.state().ports.keys().copied().collect()
    }

    /// Publishes the state of the agent. Fills in its `since`.
    pub fn put_agent(&self, mut agent: AgentStatus) {
        let mut state = self.state();
        let same = state.agent.state == agent.state;
        agent.since = if same {
            state.agent.since.clone()
        } else {
            timestamp()
        };
        if state.agent != agent {
            state.agent = agent.clone();
            state.push(&timestamp(), What::Agent(agent));
            self.notify(&state);
        }
    }

    /// The published state of the agent.
    pub fn agent(&self) -> AgentStatus {
        self.state().agent.clone()
    }

    /// Publishes `config`, which is now in force.
    pub fn put_config(&self, config: ConfigStatus) {
        let mut state = self.state();
        if state.config != config {
            state.config = config.clone();
            state.push(&timestamp(), What::Config(config));
            self.notify(&state);
        }
    }

    /// Sets the guest's listening ports outside the ranges. This makes no event: the next snapshot
    /// has them.
    pub fn put_outside(&self, ports: Vec<u16>) {
        self.state().outside = ports;
    }

    /// Publishes that rum ends.
    pub fn put_bye(&self, reason: String) {
        let mut state = self.state();
        state.push(&timestamp(), What::Bye(reason));
        self.notify(&state);
    }

    /// Call after publishing: the counters answer request `fresh`, and `covers_all` says whether
    /// the journal has every port of the guest.
    pub fn refreshed(&self, fresh: u64, covers_all: bool) {
        let mut state = self.state();
        if (state.fresh, state.covers_all) != (fresh, covers_all) {
            (state.fresh, state.covers_all) = (fresh, covers_all);
            self.notify(&state);
        }
    }

    fn notify(&self, state: &State) {
        let pages = u64::from(state.covers_all);
        self.news.send_replace((state.seq, state.fresh * 2 + pages));
    }

    /// A new reader. `all`: it wants every port of the guest, not only those in the range.
    pub fn reader(self: &Arc<Self>, all: bool, since: Option<Since>) -> Reader {
        let mut ticket = 0;
        self.demand.send_modify(|demand| {
            demand.readers += 1;
            demand.all += usize::from(all);
            demand.fresh += 1;
            ticket = demand.fresh;
        });
        Reader {
            news: self.news.subscribe(),
            journal: Arc::clone(self),
            all,
            ticket,
            since,
            seq: None,
        }
    }
}

impl State {
    fn push(&mut self, at: &str, what: What) {
        self.seq += 1;
        if self.ring.len() == HISTORY {
            self.ring.pop_front();
        }
        self.ring.push_back(Event {
            seq: self.seq,
            at: at.to_owned(),
            what,
        });
    }

    fn snapshot(&self, gap: bool) -> Update {
        Update::Snapshot {
            seq: self.seq,
            gap,
            ports: self.ports.values().flatten().cloned().collect(),
            agent: self.agent.clone(),
            config: self.config.clone(),
            outside: self.outside.clone(),
        }
    }

    /// The events after `seq`, at most [`BATCH`]; `None` if the ring no longer has some of them.
    fn since(&self, seq: u64) -> Option<Vec<Event>> {
        let new = usize::try_from(self.seq.checked_sub(seq)?).ok()?;
        let skip = self.ring.len().checked_sub(new)?;
        Some(self.ring.iter().skip(skip).take(BATCH).cloned().collect())
    }
}

/// A reader of a journal.
#[derive(Debug)]
pub struct Reader {
    journal: Arc<Journal>,
    news: watch::Receiver<(u64, u64)>,
    all: bool,
    ticket: u64,
    since: Option<Since>,
    /// The latest event that the reader has; `None` before its first update.
    seq: Option<u64>,
}

impl Reader {
    /// The next update: first a snapshot or the events since `since`, then events. Cancel-safe.
    pub async fn next(&mut self) -> Update {
        loop {
            self.news.mark_unchanged();
            if let Some(update) = self.ready() {
                return update;
            }
            // The journal, which owns the sender, is ours too.
            let _ = self.news.changed().await;
        }
    }

    fn ready(&mut self) -> Option<Update> {
        let state = self.journal.state();
        let Some(seq) = self.seq else {
            // A missing agent cannot report more ports.
            let away = state.agent.state != AgentState::Connected;
            if state.fresh < self.ticket || (self.all && !state.covers_all && !away) {
                return None;
            }
            let here = |since: &Since| since.boot == self.journal.boot;
            let resumed = self
                .since
                .as_ref()
                .filter(|since| here(since))
                .and_then(|since| state.since(since.seq));
            let update = match resumed {
                Some(events) => {
                    let last = self.since.as_ref().map(|since| since.seq);
                    self.seq = events.last().map(|event| event.seq).or(last);
                    Update::Events(events)
                }
                None => {
                    self.seq = Some(state.seq);
                    state.snapshot(self.since.is_some())
                }
            };
            return Some(update);
        };
        if seq == state.seq {
            return None;
        }
        let update = match state.since(seq) {
            Some(events) => {
                self.seq = events.last().map(|event| event.seq);
                Update::Events(events)
            }
            None => {
                self.seq = Some(state.seq);
                state.snapshot(true)
            }
        };
        Some(update)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.journal.demand.send_modify(|demand| {
            demand.readers -= 1;
            demand.all -= usize::from(self.all);
        });
    }
}

#[cfg(test)]
mod tests;
