//! The reader's copy of the state of a `rum up`, folded from its updates.

use std::collections::BTreeMap;

use crate::status::model::{AgentStatus, ConfigStatus, Event, Op, PortStatus, Update, What};

/// What a reader knows. Empty until the first snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mirror {
    /// Number of the latest event.
    pub seq: u64,
    /// The ports, by [`sort_key`].
    ports: BTreeMap<(u16, String), PortStatus>,
    /// The agent.
    pub agent: Option<AgentStatus>,
    /// The configuration in force.
    pub config: Option<ConfigStatus>,
    /// Ports on which something listens beside those that are to be forwarded, as of the snapshot.
    pub outside: Vec<u16>,
    /// Why rum ended, once it has.
    pub bye: Option<String>,
}

/// What names a port, in the order in which ports are shown.
fn sort_key(port: &PortStatus) -> (u16, String) {
    (port.port, port.id.clone())
}

impl Mirror {
    /// Takes note of `update`. What it tells of events can be shown before or after this.
    pub fn apply(&mut self, update: &Update) {
        match update {
            Update::Snapshot {
                seq,
                ports,
                agent,
                config,
                outside,
                ..
            } => {
                *self = Self {
                    seq: *seq,
                    ports: ports.iter().map(|p| (sort_key(p), p.clone())).collect(),
                    agent: Some(agent.clone()),
                    config: Some(config.clone()),
                    outside: outside.clone(),
                    bye: None,
                }
            }
            Update::Events(events) => {
                for event in events {
                    self.event(event);
                }
            }
        }
    }

    fn event(&mut self, event: &Event) {
        self.seq = event.seq;
        match &event.what {
            What::Port {
                op: Op::Removed,
                port,
            } => {
                self.ports.remove(&sort_key(port));
            }
            What::Port { port, .. } => {
                self.ports.insert(sort_key(port), port.clone());
            }
            What::Agent(agent) => self.agent = Some(agent.clone()),
            What::Config(config) => self.config = Some(config.clone()),
            What::Bye(reason) => self.bye = Some(reason.clone()),
        }
    }

    /// What is known of the port that `port` is a status of.
    pub fn port(&self, port: &PortStatus) -> Option<&PortStatus> {
        self.ports.get(&sort_key(port))
    }

    /// All ports, by port and id.
    pub fn ports(&self) -> impl ExactSizeIterator<Item = &PortStatus> {
        self.ports.values()
    }
}
