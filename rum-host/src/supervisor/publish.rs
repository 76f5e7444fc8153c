//! From the loop's state to the journal: which guest ports differ, and their rows.
//!
//! Whatever touches a port notes it ([`Notes::port`]); after each turn of the loop the rows of the
//! noted ports are made anew. So a change costs the same however many ports there are.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use rum_shared::range::PortRange;
use tokio::sync::watch;

use super::{Active, GRACE, Supervisor};
use crate::clock;
use crate::forward::bind_failure::BindFailure;
use crate::plan::{Binding, GuestPort, Key};
use crate::status::journal::{Demand, Journal};
use crate::status::model;
use crate::status::rows;
use crate::status::rows::{Draining, Facts, Forward, Standing};

/// Counters are put in the journal this often while somebody reads.
const TICK: Duration = Duration::from_secs(1);

/// Rows that are put in the journal before agent, control socket and signals get their turn: some
/// milliseconds of work, also where all of thousands of ports differ.
const AT_ONCE: usize = 256;

/// What is to be put in the journal.
#[derive(Debug)]
pub(super) struct Notes {
    pub journal: Arc<Journal>,
    demand: watch::Receiver<Demand>,
    ports: BTreeSet<u16>,
    everything: bool,
    /// What is being put there; `ports` come after it.
    batch: Option<Batch>,
    next_tick: Option<Instant>,
    /// The last [`Demand::fresh`] that was answered, and the last one that was taken on.
    fresh: u64,
    asked: u64,
    /// What has counters and is to be put there before that is answered.
    counters: BTreeSet<u16>,
    /// All ports of the guest are in the journal.
    covers_all: bool,
}

impl Notes {
    pub fn new(journal: Arc<Journal>) -> Self {
        let demand = journal.demand();
        Self {
            journal,
            demand,
            ports: BTreeSet::new(),
            everything: true,
            batch: None,
            next_tick: None,
            fresh: 0,
            asked: 0,
            counters: BTreeSet::new(),
            covers_all: false,
        }
    }

    /// Something about `port` may differ.
    pub fn port(&mut self, port: u16) {
        self.ports.insert(port);
    }

    /// Anything may differ.
    pub fn everything(&mut self) {
        self.everything = true;
    }

    /// When there is something to put in the journal: counters in a while, what is left at once.
    pub fn wake(&self) -> Option<Instant> {
        let noted = self.everything || !self.ports.is_empty();
        let more = noted || self.batch.is_some() || !self.counters.is_empty();
        if more {
            Some(clock::now())
        } else {
            self.next_tick
        }
    }

    fn refreshed(&self) {
        self.journal.refreshed(self.fresh, self.covers_all);
    }

    /// Completes when the readers want something else.
    pub async fn demand(&mut self) {
        if self.demand.changed().await.is_err() {
            // The journal, which has the sender, is ours too.
            std::future::pending::<()>().await;
        }
    }

    /// What the readers want now.
    pub fn wanted(&self) -> Demand {
        *self.demand.borrow()
    }
}

/// Ports whose rows differ, and what is true once they are in the journal.
#[derive(Debug)]
struct Batch {
    ports: BTreeSet<u16>,
    agent: model::AgentStatus,
    covers_all: bool,
}

impl Supervisor {
    /// Puts in the journal what was noted, and counters where somebody waits for them; of very much a part
    /// ([`Notes::wake`]).
    pub(super) fn publish(&mut self, now: Instant) {
        let mut left = AT_ONCE;
        self.publish_counters(&mut left, now);
        let mut batch = match self.notes.batch.take() {
            Some(batch) => batch,
            None => self.batch(now),
        };
        self.publish_rows(&mut batch.ports, &mut left, now);
        if !batch.ports.is_empty() {
            self.notes.batch = Some(batch);
            return;
        }
        // After the rows: whoever sees that the agent is connected sees also what it told.
        self.notes.journal.put_agent(batch.agent);
        self.notes.covers_all = batch.covers_all;
        self.notes.refreshed();
    }

    /// The counters that a new reader waits for: before all else, so that it gets its answer however much
    /// there is to be put in the journal.
    fn publish_counters(&mut self, left: &mut usize, now: Instant) {
        let mut ports = std::mem::take(&mut self.notes.counters);
        if ports.is_empty() {
            let fresh = self.notes.wanted().fresh;
            if fresh == self.notes.fresh {
                return;
            }
            self.notes.asked = fresh;
            ports = self.counted();
        }
        self.publish_rows(&mut ports, left, now);
        self.notes.counters = ports;
        if self.notes.counters.is_empty() {
            self.notes.fresh = self.notes.asked;
            self.notes.refreshed();
        }
    }

    /// Puts the rows of at most `left` of `ports` in the journal.
    fn publish_rows(&self, ports: &mut BTreeSet<u16>, left: &mut usize, now: Instant) {
        while *left > 0
            && let Some(port) = ports.pop_first()
        {
            *left -= 1;
            let rows = rows::rows(&self.facts(GuestPort(port), now));
            self.notes.journal.put_port(port, rows);
        }
    }

    /// The ports that have counters.
    fn counted(&self) -> BTreeSet<u16> {
        let bound = self.forwarders.values().map(|a| a.forwarder.guest().port);
        let closed = self.closed.keys().map(|(port, _)| *port);
        bound.chain(closed).collect()
    }

    /// All that was noted.
    fn batch(&mut self, now: Instant) -> Batch {
        let readers = self.notes.wanted().readers;
        if self.notes.next_tick.is_some_and(|at| at <= now) {
            let counted = self.counted();
            self.notes.ports.extend(counted);
            self.notes.next_tick = None;
        }
        self.notes.next_tick = match (readers, self.notes.next_tick) {
            (0, _) => None,
            (_, Some(at)) => Some(at),
            (_, None) => Some(now + TICK),
        };
        let mut ports = std::mem::take(&mut self.notes.ports);
        if std::mem::take(&mut self.notes.everything) {
            ports.extend(self.notes.journal.ports());
            ports.extend(self.guest.set().iter().map(|l| l.port));
            ports.extend(self.planner.bindings().map(|b| b.want().guest.port));
        }
        Batch {
            ports,
            agent: self.agent.status(GRACE, self.reconciler.repaired),
            covers_all: self.covers == Some(PortRange::ALL),
        }
    }

    fn facts(&self, port: GuestPort, now: Instant) -> Facts<'_> {
        let policy = self.planner.policy();
        let heard = self.guest.heard(port);
        let listener = heard.map(|(listener, _)| listener);
        let statics = policy.statics.iter().filter(|s| s.guest.port == port.0);
        let keys = statics
            .map(|s| Key::Static(s.host))
            .chain([Key::Auto(port)]);
        let forwards = keys.filter_map(|key| {
            let binding = self.planner.binding(key)?;
            let standing = match binding {
                Binding::Bound { at, want } => {
                    let Active {
                        forwarder, took, ..
                    } = self.forwarders.get(&key)?;
                    let keys = want.binds.beside().map(|ip| key.beside(ip));
                    let told = keys.filter_map(|key| self.told.get(&key));
                    let told = told.filter_map(|told| Some((told.at, told.reason.as_ref()?)));
                    let (here, gone): (Vec<_>, Vec<_>) = forwarder
                        .addresses()
                        .into_iter()
                        .partition(|at| self.addresses.has(at.0.ip()));
                    let gone = gone.into_iter().map(|at| (at, &BindFailure::NoAddress));
                    Standing::Bound {
                        at: *at,
                        stats: forwarder.stats(),
                        took: *took,
                        beside: here.into_iter().filter(|here| here != at).collect(),
                        lacks: gone.chain(told).next(),
                    }
                }
                Binding::Blocked { want, .. } => {
                    let told = self.told.get(&key);
                    Standing::Blocked {
                        at: told.map_or(want.host, |told| told.at),
                        reason: told.and_then(|told| told.reason.as_ref()),
                    }
                }
            };
            let guest = binding.want().guest;
            Some(Forward {
                key,
                guest,
                standing,
                label: policy.label(key, listener),
            })
        });
        let closed = self.closed.range((port.0, 0)..=(port.0, u64::MAX));
        let closed = closed.map(|(_, closed)| closed);
        // The last one may just have ended.
        let draining = closed.filter(|c| c.forwarder.stats().active.load(Relaxed) > 0);
        Facts {
            port,
            listener,
            verdict: heard.map(|(l, known_since)| policy.judge(l, known_since, now)),
            label: policy.label(Key::Auto(port), listener),
            ranges: policy.auto.as_ref().map(|auto| auto.ranges.to_string()),
            forwards: forwards.collect(),
            draining: draining
                .map(|closed| Draining {
                    key: closed.key,
                    guest: closed.forwarder.guest(),
                    at: closed.at,
                    stats: closed.forwarder.stats(),
                    limited: closed.drain.is_some(),
                    label: policy.label(closed.key, listener),
                })
                .collect(),
            knowledge: self.agent.knowledge(),
        }
    }
}
