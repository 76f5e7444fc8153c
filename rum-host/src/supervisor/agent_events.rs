//! Applies the agent's events to the supervisor's state (step 3): the set of guest listeners, since
//! when each is known, and the state of the link to the agent.

use std::collections::BTreeSet;
use std::time::Instant;

use rum_shared::listener::{Change, Listener, ListenerSet};
use rum_shared::range::PortRange;
use rum_shared::stream::rpc::WatchEvent;

use super::{Context, GRACE, Supervisor};
use crate::clock;
use crate::forward::holder;
use crate::plan::reconcile::{CONFIRM_AFTER, Repair};
use crate::plan::{GuestPort, Key};
use crate::status::agent::Failure;
use crate::stream::client::AgentEvent;
use crate::ui::notice::Notice;

impl Supervisor {
    /// Adopts a complete set of guest listeners.
    fn learn(&mut self, set: ListenerSet, range: PortRange, at: Instant) {
        self.replace(set, at);
        self.covers = Some(range);
        if self.agent.told() {
            // Listeners may have come and gone while the agent was lost.
            for active in self.forwarders.values() {
                active.forwarder.stats().changed_hands();
            }
            self.notes.everything();
        }
    }

    /// Replaces the set of guest listeners by `set`.
    pub(super) fn replace(&mut self, set: ListenerSet, at: Instant) {
        let change = self.guest.set().diff(&set);
        self.apply(&change, at);
    }

    /// Applies a difference to the set.
    fn apply(&mut self, change: &Change, at: Instant) {
        for port in change.ports() {
            self.notes.port(port);
            self.planner.touch(GuestPort(port));
        }
        for port in change.closed.iter().map(|port| GuestPort(*port)) {
            if let Some(active) = self.forwarders.get_mut(&Key::Auto(port))
                && let Some((listener, _)) = self.guest.heard(port)
            {
                active.after_close = self.planner.policy().drain_after_close(listener);
            }
        }
        let opened = change.opened.iter().map(|listener| listener.port);
        for port in change.closed.iter().copied().chain(opened) {
            self.changes_hands(GuestPort(port));
        }
        self.guest.apply(change, at);
    }

    /// The listener on `port` changes: outcomes of earlier clients say nothing about later ones.
    fn changes_hands(&self, port: GuestPort) {
        let statics = self.planner.policy().statics.iter();
        let statics = statics.filter(|s| s.guest.own_port() == Some(port.0));
        let keys = statics
            .map(|s| Key::Static(s.host))
            .chain([Key::Auto(port)]);
        for active in keys.filter_map(|key| self.forwarders.get(&key)) {
            active.forwarder.stats().changed_hands();
        }
    }

    /// Handles an event of the connections to the agent.
    pub(super) fn agent_event(&mut self, event: AgentEvent, context: &mut Context<'_>) {
        let now = clock::now();
        match event {
            AgentEvent::Connected { info, streaming } => {
                let same = holder::boot_id().is_some_and(|id| id == info.boot_id);
                if std::mem::replace(&mut self.guest.same_kernel, same) != same {
                    // The answer to which listeners are rum's own may differ now.
                    let ports = self.guest.set().iter().map(|l| GuestPort(l.port));
                    ports.for_each(|port| self.planner.touch(port));
                }
                let mut known = info.clone();
                if !self.stream {
                    known.hint = "none".to_owned();
                }
                if self.agent.introduced(known) {
                    context.say(Notice::GuestRebooted);
                }
                context.say(Notice::AgentConnected { info, streaming });
            }
            AgentEvent::Watch { at, range, event } => self.watch_event(event, range, at),
            AgentEvent::Polled {
                ports,
                outside,
                range,
                sent,
                authoritative: true,
            } => {
                self.beside_the_range(ports.iter().chain(&outside), context);
                let known = |port: u16| self.guest.set().get(port).cloned();
                let listeners: Vec<_> = ports
                    .into_iter()
                    .map(|port| known(port).unwrap_or_else(|| Listener::bare(port)))
                    .collect();
                let set = ListenerSet::new(self.guest.set().generation, listeners);
                self.learn(set, range, sent);
            }
            AgentEvent::Polled {
                sent,
                ports,
                outside,
                range,
                ..
            } => {
                self.beside_the_range(ports.iter().chain(&outside), context);
                let known = self.guest.set().within(range).map(|l| l.port);
                for repair in self.reconciler.poll(sent, known, &ports) {
                    self.repair(repair, now);
                    context.say(Notice::Repaired(repair));
                }
                let again = self.reconciler.has_suspects();
                self.confirm_at = again.then_some(sent + CONFIRM_AFTER);
            }
            AgentEvent::Lost { reason, retry } => {
                tracing::debug!(reason, ?retry, "the agent cannot be reached");
                self.notes.everything();
                let grace = GRACE;
                match self.agent.failed(reason.clone(), retry, now) {
                    Some(Failure::Lost) => context.say(Notice::AgentLost { reason, grace }),
                    Some(Failure::Awaited) => context.say(Notice::AgentAwaited { reason }),
                    None => {}
                }
            }
        }
    }

    fn watch_event(&mut self, event: WatchEvent, range: PortRange, at: Instant) {
        match event {
            WatchEvent::Snapshot {
                generation,
                listeners,
                ..
            } => {
                self.reconciler.snapshot(at);
                self.learn(ListenerSet::new(generation, listeners), range, at);
            }
            WatchEvent::Delta {
                generation,
                opened,
                changed,
                closed,
            } => {
                let change = Change {
                    generation,
                    opened,
                    changed,
                    closed,
                };
                for port in change.ports() {
                    self.reconciler.event(port, at);
                }
                self.apply(&change, at);
            }
            WatchEvent::Heartbeat { .. } => {}
        }
    }

    /// Notes which of `ports`, the guest's listening ports, are not configured for forwarding.
    fn beside_the_range<'a>(
        &mut self,
        ports: impl Iterator<Item = &'a u16>,
        context: &mut Context<'_>,
    ) {
        let policy = self.planner.policy();
        let Some(auto) = &policy.auto else {
            return self.notes.journal.put_outside(Vec::new());
        };
        // An agent in rum's own network namespace also sees rum's own ports.
        let same_kernel = self.guest.same_kernel;
        let beside = |port: &u16| !auto.ranges.contains(*port) && !policy.has_static(*port);
        let mut ports: BTreeSet<u16> = ports.copied().filter(beside).collect();
        if same_kernel && !ports.is_empty() {
            for active in self.forwarders.values() {
                if let Some(own) = active.forwarder.addr() {
                    ports.remove(&own.0.port());
                }
            }
        }
        let range = auto.ranges.to_string();
        if let Some(ports) = self.outside.polled(&ports) {
            context.say(Notice::Outside { ports, range });
        }
        let ports = self.outside.listening().collect();
        self.notes.journal.put_outside(ports);
    }

    fn repair(&mut self, repair: Repair, now: Instant) {
        let mut change = Change {
            generation: self.guest.set().generation,
            ..Change::default()
        };
        match repair {
            Repair::Opened(port) => change.opened.push(Listener::bare(port)),
            Repair::Closed(port) => change.closed.push(port),
        }
        self.apply(&change, now);
    }
}
