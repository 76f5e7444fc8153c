//! A reader's copy of the state of a `rum up`, folded from its updates.

use std::collections::BTreeMap;

use crate::status::model::{AgentStatus, ConfigStatus, Event, Op, PortStatus, Update, What};

/// The copy. Empty until the first snapshot.
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
    /// Ports outside the ranges on which a program listens, as of the snapshot.
    pub outside: Vec<u16>,
    /// Why rum ended, once it has.
    pub bye: Option<String>,
}

/// The key of a port, in display order.
fn sort_key(port: &PortStatus) -> (u16, String) {
    (port.port, port.id.clone())
}

impl Mirror {
    /// Applies `update`. Its events can be shown before or after this call.
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

    /// The status in this copy of the port that `port` describes.
    pub fn port(&self, port: &PortStatus) -> Option<&PortStatus> {
        self.ports.get(&sort_key(port))
    }

    /// All ports, by port number and id.
    pub fn ports(&self) -> impl ExactSizeIterator<Item = &PortStatus> {
        self.ports.values()
    }
}
