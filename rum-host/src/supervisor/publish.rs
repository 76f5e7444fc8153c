//! Publishes the loop's state in the journal: which guest ports have changed, and their rows.
//!
//! Code that changes a port marks it ([`Notes::port`]); after each turn of the loop, the rows of
//! the marked ports are made anew. So a change costs the same however many ports there are.

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

/// Counters are published this often while there are readers.
const TICK: Duration = Duration::from_secs(1);

/// Most rows that are published before agent, control socket and signals get their turn: some
/// milliseconds of work, even if thousands of ports have changed.
const AT_ONCE: usize = 256;

/// What has to be published.
#[derive(Debug)]
pub(super) struct Notes {
    pub journal: Arc<Journal>,
    demand: watch::Receiver<Demand>,
    ports: BTreeSet<u16>,
    everything: bool,
    /// The batch that is being published; `ports` come after it.
    batch: Option<Batch>,
    next_tick: Option<Instant>,
    /// The last [`Demand::fresh`] that was answered.
    fresh: u64,
    /// The last [`Demand::fresh`] whose counters are being published.
    asked: u64,
    /// Ports whose counters are to be published before `asked` is answered.
    counters: BTreeSet<u16>,
    /// Whether the journal has all ports of the guest.
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

    /// Marks `port` as changed.
    pub fn port(&mut self, port: u16) {
        self.ports.insert(port);
    }

    /// Marks everything as changed.
    pub fn everything(&mut self) {
        self.everything = true;
    }

    /// When there is something to publish: counters at the next tick, marked ports at once.
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

    /// Completes when the readers' demand changes.
    pub async fn demand(&mut self) {
        if self.demand.changed().await.is_err() {
            // The journal, which owns the sender, is ours too.
            std::future::pending::<()>().await;
        }
    }

    /// The readers' current demand.
    pub fn wanted(&self) -> Demand {
        *self.demand.borrow()
    }
}

/// Changed ports, and what holds once their rows are published.
#[derive(Debug)]
struct Batch {
    ports: BTreeSet<u16>,
    agent: model::AgentStatus,
    covers_all: bool,
}

impl Supervisor {
    /// Publishes the marked rows, and the counters that a reader waits for. Of many rows it
    /// publishes a part, and [`Notes::wake`] asks for the rest.
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
        // After the rows: a reader that sees the agent connected also sees what it reported.
        self.notes.journal.put_agent(batch.agent);
        self.notes.covers_all = batch.covers_all;
        self.notes.refreshed();
    }

    /// Publishes the counters that a new reader waits for. They come first, so that the reader gets
    /// its answer however much is left to publish.
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

    /// Publishes the rows of at most `left` of `ports`.
    fn publish_rows(&self, ports: &mut BTreeSet<u16>, left: &mut usize, now: Instant) {
        while *left > 0
            && let Some(port) = ports.pop_first()
        {
            *left -= 1;
            let rows = rows::rows(&self.facts(GuestPort(port), now));
            self.notes.journal.put_port(port, rows);
        }
    }

    /// The ports with counters.
    fn counted(&self) -> BTreeSet<u16> {
        let bound = self.forwarders.values().map(|a| a.forwarder.guest().port);
        let closed = self.closed.keys().map(|(port, _)| *port);
        bound.chain(closed).collect()
    }

    /// Collects all that is marked.
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
        // The last connection may just have ended.
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
