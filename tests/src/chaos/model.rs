//! What must be so: a few sets, and one question.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

/// First port of the range.
pub const FIRST: u16 = 5000;
/// Last port of the range.
pub const LAST: u16 = 5017;
/// Longer than any run of chaos.
const DRAIN: &str = "drain = \"1h\"\n";

/// The truth.
#[derive(Debug, Clone, Default)]
pub struct Model {
    /// What listens in the guest; for each listener whether a child process holds it.
    pub listeners: BTreeMap<SocketAddr, Vec<bool>>,
    /// Host ports that somebody else has.
    pub taken: BTreeSet<u16>,
    /// Which of the configurations is in force.
    pub config: u8,
}

/// What a host port must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// Leads to the guest.
    Forwarded,
    /// Refuses.
    Closed,
    /// Somebody else has it, and the guest wants it.
    Conflict,
    /// Somebody else has it.
    Taken,
}

impl Model {
    /// The `rum.toml` for the configuration in force. Connections live on when their listener closes,
    /// without a word about that. Only a configuration that takes forwards away says for how long their
    /// connections go on.
    pub fn toml(&self) -> String {
        let (drain, rest) = match self.config {
            1 => (DRAIN, "range = \"5000-5008\"\n"),
            2 => (DRAIN, "range = \"5000-5017\"\nexclude = \"5003-5006\"\n"),
            3 => (
                DRAIN,
                "range = \"5000-5004,5009-5017\"\nexclude = \"5012\"\n",
            ),
            _ => ("", "range = \"5000-5017\"\n"),
        };
        format!("{drain}[auto_ports]\n{rest}")
    }

    fn configured(&self, port: u16) -> bool {
        match self.config {
            1 => port <= 5008,
            2 => !(5003..=5006).contains(&port),
            3 => (port <= 5004 || port >= 5009) && port != 5012,
            _ => true,
        }
    }

    /// Whether anything listens on it in the guest.
    pub fn open(&self, port: u16) -> bool {
        let mut listeners = self.listeners.iter();
        listeners.any(|(addr, held)| addr.port() == port && !held.is_empty())
    }

    /// The listener on it in the guest, if it is the only one and no child process holds it.
    pub fn lone(&self, port: u16) -> Option<SocketAddr> {
        let on_it =
            |(addr, held): &(&SocketAddr, &Vec<bool>)| addr.port() == port && !held.is_empty();
        let mut listeners = self.listeners.iter().filter(on_it);
        match (listeners.next(), listeners.next()) {
            (Some((addr, held)), None) if held[..] == [false] => Some(*addr),
            _ => None,
        }
    }

    /// Whether a child process listens on it in the guest.
    pub fn forked(&self, port: u16) -> bool {
        let mut listeners = self.listeners.iter();
        listeners.any(|(addr, held)| addr.port() == port && held.contains(&true))
    }

    /// What the host port must be.
    pub fn expected(&self, port: u16) -> Expected {
        let wanted = self.open(port) && self.configured(port);
        match (wanted, self.taken.contains(&port)) {
            (true, false) => Expected::Forwarded,
            (true, true) => Expected::Conflict,
            (false, true) => Expected::Taken,
            (false, false) => Expected::Closed,
        }
    }

    /// The ports of which this is expected.
    pub fn all(&self, expected: Expected) -> BTreeSet<u16> {
        let ports = FIRST..=LAST;
        ports
            .filter(|port| self.expected(*port) == expected)
            .collect()
    }
}
