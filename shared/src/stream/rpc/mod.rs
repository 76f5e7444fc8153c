//! Step 3 of the data flow: the RPC between host and agent, and its wire types.
//!
//! The host calls, the agent serves. [`RumAgent::hello`] comes first and returns a plain value,
//! since roam does not notice a change inside a `Result`: each side names its [`PROTOCOL`] there, and compares.
//! [`RumAgent::watch_listeners`] streams a complete [`WatchEvent::Snapshot`], then a
//! [`WatchEvent::Delta`] for each change and a [`WatchEvent::Heartbeat`] when nothing else was
//! sent for [`HEARTBEAT`]; a subscriber that was too slow gets a new snapshot.
//! [`RumAgent::watch_ports`] is the same with less detail ([`v1`]): roam finds a method by the shape of
//! its arguments, so a stream whose items have more fields is another method, and
//! [`AgentInfo::capabilities`] tells which of the two an agent serves.
//!
//! Invariants: text fields are open sets (an unknown word is not an error), so that old hosts
//! understand new agents; what a reader receives is checked with [`validate_listener`].

use std::time::Duration;

use facet::Facet;

use crate::listener::{Change, Listener, MAX_ADDRESSES, MAX_COMMAND, MAX_NAME, Process};
use crate::range::PortRange;

mod fit;
pub mod v1;

pub use fit::fit;

/// The protocol this build speaks. Raised only when old peers could misread.
pub const PROTOCOL: u32 = 1;
/// The oldest protocol that this build understands. Whoever speaks none from here on is refused by name; of
/// two that differ the newer one decides whether it still understands the other.
pub const OLDEST_PROTOCOL: u32 = 1;
pub use crate::transport::HEARTBEAT;

/// A stream that is silent for this long is dead: a few heartbeats, with room for a stall.
pub const HEARTBEAT_DEADLINE: Duration = Duration::from_secs(4);

/// Capability word: the agent serves `watch_ports`.
pub const CAP_WATCH: &str = "watch";
/// Capability word: the agent serves `watch_listeners`.
pub const CAP_LISTENERS: &str = "listeners";

/// Who the agent is and what it can do.
#[derive(Debug, Clone, PartialEq, Eq, Facet)]
pub struct AgentInfo {
    /// The newest protocol that the agent speaks.
    pub protocol: u32,
    /// The agent's version.
    pub version: String,
    /// The guest's host name.
    pub hostname: String,
    /// The kernel's boot id (`/proc/sys/kernel/random/boot_id`): the same value means the
    /// same running kernel.
    pub boot_id: String,
    /// A number of this agent process: another number means that it was restarted.
    pub instance: u64,
    /// Where the port set comes from: `netlink` or `proc`.
    pub source: String,
    /// What wakes the agent: `tracepoint`, `seccomp`, `poll`, or later words.
    pub hint: String,
    /// What it can do beside the basics, such as [`CAP_WATCH`].
    pub capabilities: Vec<String>,
}

/// The answer to `ping`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Facet)]
pub struct ReadyResponse {
    /// Whether the agent has a port set to tell of.
    pub ready: bool,
}

/// The ports that something listens on, sorted, without duplicates.
#[derive(Debug, Clone, PartialEq, Eq, Facet)]
pub struct ListeningPortsResponse {
    /// TCP ports in ascending order.
    pub ports: Vec<u16>,
}

/// One item of a `watch_listeners` stream.
#[derive(Debug, Clone, PartialEq, Eq, Facet)]
#[repr(u8)]
pub enum WatchEvent {
    /// Everything that listens in the range now; what was known before is void.
    Snapshot {
        /// Generation of the set.
        generation: u64,
        /// What wakes the agent, as in [`AgentInfo::hint`].
        source: String,
        /// The complete set, by port.
        listeners: Vec<Listener>,
    },
    /// What differs from the item before.
    Delta {
        /// Generation that the change leads to. Larger than any before; it may skip numbers,
        /// since changes outside the subscribed range are not sent.
        generation: u64,
        /// New ports.
        opened: Vec<Listener>,
        /// Ports that stay, with other details (a process name that came later).
        changed: Vec<Listener>,
        /// Ports that are gone.
        closed: Vec<u16>,
    },
    /// Nothing differs; the agent lives.
    Heartbeat {
        /// Generation of the set as it is.
        generation: u64,
    },
}

impl From<Change> for WatchEvent {
    fn from(change: Change) -> Self {
        Self::Delta {
            generation: change.generation,
            opened: change.opened,
            changed: change.changed,
            closed: change.closed,
        }
    }
}

pub use service::*;

/// The service macro generates items without documentation, so it has a module of its own.
#[allow(missing_docs)]
mod service {
    use roam::{Rx, Tx};

    use super::{AgentInfo, ListeningPortsResponse, ReadyResponse, WatchEvent, v1};

    /// The service that an agent offers on [`crate::RPC_PORT`].
    #[roam::service]
    pub trait RumAgent {
        /// Introduces host and agent; the first call of a session.
        async fn hello(&self, protocol: u32) -> AgentInfo;
        /// Whether the agent is ready.
        async fn ping(&self) -> Result<ReadyResponse, String>;
        /// The ports from `min` to `max` that something listens on.
        async fn listening_ports(
            &self,
            min: u16,
            max: u16,
        ) -> Result<ListeningPortsResponse, String>;
        /// Streams what listens from `min` to `max` until `stop` closes or the session ends.
        async fn watch_ports(
            &self,
            min: u16,
            max: u16,
            events: Tx<v1::WatchEvent>,
            stop: Rx<()>,
        ) -> Result<(), String>;
        /// The same, with all that is known of each listener.
        async fn watch_listeners(
            &self,
            min: u16,
            max: u16,
            events: Tx<WatchEvent>,
            stop: Rx<()>,
        ) -> Result<(), String>;
    }
}

/// Checks a listener that the other side sent: port in `range`, bounded lists.
///
/// # Errors
/// What is wrong with it, for a log.
pub fn validate_listener(listener: &Listener, range: PortRange) -> Result<(), String> {
    if !range.contains(listener.port) {
        return Err(format!("port {} is outside {range}", listener.port));
    }
    let lists = [
        ("addresses", listener.addresses.len()),
        ("other processes", listener.others.len()),
        ("network interfaces", listener.devices.len()),
    ];
    if let Some((what, count)) = lists.iter().find(|(_, count)| *count > MAX_ADDRESSES) {
        let port = listener.port;
        return Err(format!(
            "port {port} has {count} {what}, more than {MAX_ADDRESSES}"
        ));
    }
    let others = listener.others.iter().map(|other| &other.process);
    let processes = listener.process.iter().chain(others);
    let names = processes.flat_map(|process| texts(process).into_iter());
    let devices = listener.devices.iter();
    let names = names.chain(devices.map(|device| ("name of an interface", &device.name, MAX_NAME)));
    let reason = listener.unreachable.iter();
    let mut texts = names.chain(reason.map(|reason| ("reason", reason, MAX_COMMAND)));
    match texts.find(|(_, text, most)| text.len() > *most) {
        Some((what, text, most)) => Err(format!(
            "port {} has a {what} of {} bytes, more than {most}",
            listener.port,
            text.len()
        )),
        None => Ok(()),
    }
}

/// The texts of a process and how long each may be.
fn texts(process: &Process) -> [(&'static str, &String, usize); 4] {
    [
        ("process name", &process.name, MAX_NAME),
        ("program name", &process.program, MAX_NAME),
        ("script name", &process.script, MAX_NAME),
        ("command line", &process.command, MAX_COMMAND),
    ]
}
