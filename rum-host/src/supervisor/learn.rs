//! What the agent says becomes what the supervisor knows (step 3): the set of guest listeners, since
//! when each is known, and how the agent stands.

use std::time::Instant;

use rum_shared::listener::{Change, Listener, ListenerSet};
use rum_shared::range::PortRange;
use rum_shared::rpc::WatchEvent;

use super::{AgentState, GRACE, Shell, Supervisor};
use crate::agent::client::AgentEvent;
use crate::host_port;
use crate::notice::Notice;
use crate::plan::GuestPort;
use crate::reconcile::{CONFIRM_AFTER, Repair};

impl Supervisor {
    /// Takes over a complete set of guest listeners.
    fn learn(&mut self, set: ListenerSet, range: PortRange, at: Instant) {
        for port in self.guest.iter().chain(set.iter()).map(|l| l.port) {
            self.notes.port(GuestPort(port));
        }
        let change = self.guest.diff(&set);
        self.known_since.change(&self.guest, &change, at);
        self.guest = set;
        self.covers = Some(range);
        if self.agent != AgentState::Up {
            self.agent = AgentState::Up;
            self.notes.connected();
            self.notes.everything();
        }
    }

    /// Takes over a difference.
    fn apply(&mut self, change: &Change, at: Instant) {
        self.known_since.change(&self.guest, change, at);
        let named = change.opened.iter().chain(&change.changed).map(|l| l.port);
        for port in named.chain(change.closed.iter().copied()) {
            self.notes.port(GuestPort(port));
        }
        self.guest.apply(change);
    }

    /// Takes note of what the connections to the agent report.
    pub(super) fn agent_event(&mut self, event: AgentEvent, shell: &mut Shell<'_>) {
        let now = Instant::now();
        match event {
            AgentEvent::Connected { info, streaming } => {
                self.same_kernel = host_port::boot_id().is_some_and(|id| id == info.boot_id);
                if shell.dialer.introduced(&info.boot_id) {
                    (shell.notify)(Notice::GuestRebooted);
                }
                self.notes.introduced(info.clone());
                (shell.notify)(Notice::AgentConnected { info, streaming });
            }
            AgentEvent::Watch { at, range, event } => self.watch_event(event, range, at),
            AgentEvent::Polled {
                ports,
                range,
                sent,
                authoritative: true,
            } => {
                let known = |port: u16| self.guest.get(port).cloned();
                let listeners: Vec<_> = ports
                    .into_iter()
                    .map(|port| known(port).unwrap_or_else(|| Listener::bare(port)))
                    .collect();
                let set = ListenerSet::new(self.guest.generation, listeners);
                self.learn(set, range, sent);
            }
            AgentEvent::Polled {
                sent, ports, range, ..
            } => {
                let known = ListenerSet::new(0, self.guest.within(range).cloned());
                for repair in self.reconciler.poll(sent, &known, &ports) {
                    self.repair(repair, now);
                    (shell.notify)(Notice::Repaired(repair));
                }
                let again = self.reconciler.has_suspects();
                self.confirm_at = again.then_some(sent + CONFIRM_AFTER);
            }
            AgentEvent::Lost { reason, retry } => {
                tracing::debug!(reason, ?retry, "the agent cannot be reached");
                self.notes.lost(reason.clone(), retry);
                self.notes.everything();
                match self.agent {
                    AgentState::Up => {
                        self.agent = AgentState::Lost(now);
                        let grace = GRACE;
                        (shell.notify)(Notice::AgentLost { reason, grace });
                    }
                    AgentState::Awaited => {
                        self.agent = AgentState::AwaitedLong;
                        (shell.notify)(Notice::AgentAwaited { reason });
                    }
                    AgentState::AwaitedLong | AgentState::Lost(_) | AgentState::GivenUp => {}
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
                let named = change.opened.iter().chain(&change.changed).map(|l| l.port);
                for port in named.chain(change.closed.iter().copied()) {
                    self.reconciler.event(port, at);
                }
                self.apply(&change, at);
            }
            WatchEvent::Heartbeat { .. } => {}
        }
    }

    fn repair(&mut self, repair: Repair, now: Instant) {
        let mut change = Change {
            generation: self.guest.generation,
            ..Change::default()
        };
        match repair {
            Repair::Opened(port) => change.opened.push(Listener::bare(port)),
            Repair::Closed(port) => change.closed.push(port),
        }
        self.apply(&change, now);
    }
}
