//! The types that `rum up` sends over the control socket, and that `rum ports --json` prints.
//!
//! A [`PortStatus`] describes one forward completely, or one guest port without a forward. A
//! watcher gets a [`Update::Snapshot`], then [`Update::Events`]. Each [`Event`] has the next
//! sequence number of its *boot*, which is one run of `rum up`. So a reader with a boot and a
//! sequence number resumes where it was, or learns that it missed something (`gap`).
//!
//! Invariants: every string is cleaned of control characters before it gets in here; names and
//! words are those of the JSON, which `docs/scripts.md` documents and [`SCHEMA_VERSION`] versions.

use std::fmt;

use facet::Facet;
use rum_shared::text::clean;

/// Version of the JSON. It rises only when a field is removed or renamed.
pub const SCHEMA_VERSION: u32 = 1;
/// Longest [`PortStatus::destination`] that is shown. An IPv6 address in brackets with a port has
/// up to 53 characters.
const MAX_DESTINATION: usize = 64;
/// Version of the RPC on the control socket. A different version is refused with a hint.
pub const CONTROL_PROTOCOL: u32 = 4;

/// State of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Facet)]
#[repr(u8)]
#[facet(rename_all = "kebab-case")]
pub enum State {
    /// Bound on the host, and open in the guest according to the latest dump.
    Forwarded,
    /// Closed in the guest; older connections live on for a while.
    Draining,
    /// Another program has the host address.
    Conflict,
    /// Not in the configured range.
    OutOfRange,
    /// Excluded by the configuration.
    Ignored,
    /// The host port needs a privilege to be bound.
    RefusedPrivileged,
    /// Not forwarded yet, for a reason that may pass.
    Pending,
    /// The agent is lost, so it is unknown whether the port is still open.
    Lost,
}

impl State {
    /// All states, problems first: the order of the table.
    pub const ALL: [Self; 8] = [
        Self::Lost,
        Self::Conflict,
        Self::RefusedPrivileged,
        Self::Pending,
        Self::Draining,
        Self::Forwarded,
        Self::Ignored,
        Self::OutOfRange,
    ];

    /// The word in the table and in the JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Forwarded => "forwarded",
            Self::Draining => "draining",
            Self::Conflict => "conflict",
            Self::OutOfRange => "out-of-range",
            Self::Ignored => "ignored",
            Self::RefusedPrivileged => "refused-privileged",
            Self::Pending => "pending",
            Self::Lost => "lost",
        }
    }

    /// Whether the user should act.
    pub fn is_problem(self) -> bool {
        matches!(self, Self::Lost | Self::Conflict | Self::RefusedPrivileged)
    }

    /// Whether it is shown only on request (`--all`).
    pub fn is_hidden(self) -> bool {
        matches!(self, Self::OutOfRange | Self::Ignored)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A process, in the guest or on the host.
#[derive(Debug, Clone, PartialEq, Eq, Facet)]
pub struct ProcessName {
    /// Its id, in the PID namespace of the process that reported it.
    pub pid: u32,
    /// Its short name.
    pub name: String,
}

/// A guest process that listens on a port at another address than the one that clients reach.
#[derive(Debug, Clone, PartialEq, Eq, Facet)]
pub struct OtherHolder {
    /// Its address, as in [`PortStatus::guest_addresses`].
    pub address: String,
    /// The process.
    pub process: ProcessName,
}

/// Why a port is in its state.
#[derive(Debug, Clone, PartialEq, Eq, Facet)]
pub struct Reason {
    /// A word for programs: one of [`ReasonCode`](crate::reason::ReasonCode), or of a later rum's.
    pub code: String,
    /// The reason in words: `127.0.0.1:5432 is taken by postgres (pid 4121)`.
    pub message: String,
    /// What to do, in words: `free it, or set on_conflict = "next"`.
    pub hint: Option<String>,
    /// The process with the host port, if that is the reason and known.
    pub holder: Option<ProcessName>,
}

/// Connections through a forward.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Facet)]
pub struct Connections {
    /// Open connections.
    pub now: u32,
    /// All connections that were accepted since the port was bound.
    pub total: u64,
    /// Connections that were reset because the guest's program could not be reached.
    pub refused: u64,
}

/// Bytes through a forward since it was bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Facet)]
pub struct Bytes {
    /// From the host's clients to the guest.
    pub to_guest: u64,
    /// From the guest to the host's clients.
    pub to_host: u64,
}

/// One forward, or one guest port without a forward.
#[derive(Debug, Clone, PartialEq, Eq, Facet)]
pub struct PortStatus {
    /// Identifies the row for its lifetime: `guest:5000` (automatic), `static:127.0.0.1:8080`, with
    /// a suffix such as `#2` while connections of a predecessor drain.
    pub id: String,
    /// `tcp`.
    pub proto: String,
    /// The guest port.
    pub port: u16,
    /// Where the guest's program listens: `127.0.0.1`, `0.0.0.0`, `::1`, `::` (`*` if it includes
    /// IPv4), `fe80::7%eth0` if bound to an interface. Empty while unknown.
    pub guest_addresses: Vec<String>,
    /// The destination, such as `172.17.0.2:80`, if it is an address in the guest's networks and
    /// not one of the guest's own ports. rum does not know its listeners.
    pub destination: Option<String>,
    /// The bound host address, such as `127.0.0.1:5000`.
    pub host: Option<String>,
    /// All bound host addresses: `host`, then the additional ones, such as `[::1]:5000`.
    pub host_addresses: Vec<String>,
    /// The state.
    pub state: State,
    /// The state before this one.
    pub previous_state: Option<State>,
    /// Why it is in this state. With `forwarded`: a problem that some of its clients have.
    pub reason: Option<Reason>,
    /// The process that listens in the guest, if visible; of several, the one that clients reach.
    pub process: Option<ProcessName>,
    /// Its command line.
    pub command: Option<String>,
    /// Other processes that listen on the port, at other addresses.
    pub other_holders: Vec<OtherHolder>,
    /// The owner of the guest's listening socket.
    pub uid: Option<u32>,
    /// The label from the configuration.
    pub label: Option<String>,
    /// A URL for a browser, while the port is bound.
    pub url: Option<String>,
    /// Connections through it.
    pub connections: Connections,
    /// Bytes through it.
    pub bytes: Bytes,
    /// When it entered this state: RFC 3339, UTC, milliseconds.
    pub since: String,
    /// The agent's part of the latency, on its own clock: from the kernel's event to the dump that
    /// showed the port, in microseconds. `None` if no event reported it (poll).
    pub detected_us: Option<u64>,
    /// The host's part, on its own clock: from the agent's message to the bound host port, in
    /// microseconds.
    pub forwarded_us: Option<u64>,
}

impl PortStatus {
    /// What people call it: the guest's port number, or the destination's address.
    pub fn called(&self) -> String {
        match &self.destination {
            Some(destination) => clean(destination, MAX_DESTINATION),
            None => self.port.to_string(),
        }
    }
}

/// State of the link to the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Facet)]
#[repr(u8)]
#[facet(rename_all = "kebab-case")]
pub enum AgentState {
    /// No agent has answered yet.
    Awaited,
    /// The agent answers.
    Connected,
    /// The agent answered before, but no longer.
    Lost,
}

/// The agent in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Facet)]
pub struct AgentStatus {
    /// The state.
    pub state: AgentState,
    /// Since when: RFC 3339, UTC, milliseconds.
    pub since: String,
    /// Why it is not connected, in words.
    pub reason: Option<String>,
    /// When the next attempt is made, in milliseconds from this message.
    pub retry_ms: Option<u64>,
    /// How long the automatic forwards stay after the agent is lost, in milliseconds.
    pub grace_ms: u64,
    /// Failed attempts since the agent was there.
    pub attempts: u32,
    /// Its version, once known.
    pub version: Option<String>,
    /// The guest's host name, once known.
    pub hostname: Option<String>,
    /// What wakes the agent: `tracepoint`, `seccomp`, `poll`, or `none` without events (the 1 s
    /// poll only).
    pub source: Option<String>,
    /// Ports that the poll had to repair; 0 in a healthy run.
    pub repaired: u64,
}

/// The configuration in force.
#[derive(Debug, Clone, PartialEq, Eq, Facet)]
pub struct ConfigStatus {
    /// The file it was read from.
    pub file: Option<String>,
    /// When it was loaded: RFC 3339, UTC, milliseconds.
    pub loaded: String,
    /// The ranges of automatic forwards: `5000-6000,8080`; `None` without automatic forwards.
    pub range: Option<String>,
    /// Why a newer version of the file is not in force.
    pub error: Option<String>,
}

/// The `rum up` at the other end of a control socket.
#[derive(Debug, Clone, PartialEq, Eq, Facet)]
pub struct ControlInfo {
    /// Its protocol: [`CONTROL_PROTOCOL`].
    pub protocol: u32,
    /// Its version.
    pub version: String,
    /// The guest's name.
    pub name: String,
    /// The guest's kind.
    pub kind: String,
    /// The process id of `rum up`.
    pub pid: u32,
    /// Identifies this run of `rum up`: 16 hexadecimal digits.
    pub boot: String,
    /// When it started: RFC 3339, UTC, milliseconds.
    pub started: String,
}

/// What happened to a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Facet)]
#[repr(u8)]
#[facet(rename_all = "kebab-case")]
pub enum Op {
    /// The port is new.
    Added,
    /// The port changed.
    Changed,
    /// The port is gone; the status is its last.
    Removed,
}

/// An event.
#[derive(Debug, Clone, PartialEq, Eq, Facet)]
pub struct Event {
    /// Rises by one with each event of a boot.
    pub seq: u64,
    /// When: RFC 3339, UTC, milliseconds.
    pub at: String,
    /// What happened.
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Facet)]
#[repr(u8)]
// Nearly all events are about ports: boxing them would make each event two allocations.
#[allow(clippy::large_enum_variant)]
pub enum What {
    /// A port changed.
    Port {
        /// How it changed.
        op: Op,
        /// Its whole status.
        port: PortStatus,
    },
    /// The agent changed.
    Agent(AgentStatus),
    /// The configuration changed.
    Config(ConfigStatus),
    /// rum ends, for this reason; nothing follows.
    Bye(String),
}

/// One item of a watch.
#[derive(Debug, Clone, PartialEq, Eq, Facet)]
#[repr(u8)]
// Updates are made one at a time and not kept.
#[allow(clippy::large_enum_variant)]
pub enum Update {
    /// The complete state; it replaces everything before.
    Snapshot {
        /// Number of the latest event that it includes.
        seq: u64,
        /// Whether events between the reader's last update and this one are lost.
        gap: bool,
        /// All ports, by port number and id.
        ports: Vec<PortStatus>,
        /// The agent.
        agent: AgentStatus,
        /// The configuration.
        config: ConfigStatus,
        /// Ports outside the ranges on which a program listens, in ascending order, as the last
        /// polls have shown them.
        outside: Vec<u16>,
    },
    /// The events since the previous update, in order. An empty list is a heartbeat.
    Events(Vec<Event>),
}

/// A reader's position.
#[derive(Debug, Clone, PartialEq, Eq, Facet)]
pub struct Since {
    /// The boot.
    pub boot: String,
    /// The latest event that the reader has.
    pub seq: u64,
}

/// Why a reader stays connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Facet)]
#[repr(u8)]
pub enum Stay {
    /// To follow the ports.
    Follow,
    /// To wait for one of them.
    Wait,
}

/// A reader's request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Facet)]
pub struct WatchRequest {
    /// Every port of the guest, not only those in the range.
    pub all: bool,
    /// Resume after this event, if possible.
    pub since: Option<Since>,
}
