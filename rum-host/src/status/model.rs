//! What `rum up` tells about itself: the types that cross the control socket, and that
//! `rum ports --json` prints.
//!
//! A [`PortStatus`] is the whole truth about one forward, or about one guest port that has none.
//! A watcher gets a [`Update::Snapshot`], then [`Update::Events`]; each [`Event`] has the next
//! sequence number of the *boot*, one run of `rum up`. So a reader that knows boot and sequence
//! number resumes where it was, or learns that it missed something (`gap`).
//!
//! Invariants: every string is cleaned of control characters before it gets in here; names and
//! words are those of the JSON, which `docs/scripts.md` documents and which is versioned by
//! [`SCHEMA_VERSION`].

use std::fmt;

use facet::Facet;
use rum_shared::text::clean;

/// Version of the JSON. It rises only when something is removed or renamed.
pub const SCHEMA_VERSION: u32 = 1;
/// Longest [`PortStatus::destination`] that is shown: an IPv6 address in brackets and a port have 53.
const MAX_DESTINATION: usize = 64;
/// Version of the RPC on the control socket. Another one is refused with a hint.
pub const CONTROL_PROTOCOL: u32 = 4;

/// What is the matter with a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Facet)]
#[repr(u8)]
#[facet(rename_all = "kebab-case")]
pub enum State {
    /// Bound on the host, and listened on in the guest according to the latest dump.
    Forwarded,
    /// No longer listened on; connections of before live on for a while.
    Draining,
    /// The host address is taken by somebody else.
    Conflict,
    /// Not in the configured range.
    OutOfRange,
    /// Excluded by the configuration.
    Ignored,
    /// The host port may not be bound without privilege.
    RefusedPrivileged,
    /// Not forwarded yet, for a reason that may pass by itself.
    Pending,
    /// The agent is lost; nobody knows whether it is still listened on.
    Lost,
}

impl State {
    /// All of them, problems first: the order of the table.
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

    /// Its word, in the table and in the JSON.
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

    /// Whether the user should do something about it.
    pub fn is_problem(self) -> bool {
        matches!(self, Self::Lost | Self::Conflict | Self::RefusedPrivileged)
    }

    /// Whether it is shown only when asked for (`--all`).
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
    /// Its id, in the PID namespace of whoever told.
    pub pid: u32,
    /// Its short name.
    pub name: String,
}

/// A process in the guest that listens on a port at another address than the one that connections
/// reach.
#[derive(Debug, Clone, PartialEq, Eq, Facet)]
pub struct OtherHolder {
    /// Where it listens, as in [`PortStatus::guest_addresses`].
    pub address: String,
    /// Who it is.
    pub process: ProcessName,
}

/// Why a port is in its state.
#[derive(Debug, Clone, PartialEq, Eq, Facet)]
pub struct Reason {
    /// A word for programs: one of [`ReasonCode`](crate::reason::ReasonCode), or of a later rum's.
    pub code: String,
    /// What is the case, in words: `127.0.0.1:5432 is taken by postgres (pid 4121)`.
    pub message: String,
    /// What to do about it, in words: `free it, or set on_conflict = "next"`.
    pub hint: Option<String>,
    /// Who has the host port, if that is the reason and can be seen.
    pub holder: Option<ProcessName>,
}

/// Connections through a forward.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Facet)]
pub struct Connections {
    /// Those that live.
    pub now: u32,
    /// All that were accepted since it was bound.
    pub total: u64,
    /// Those that could not be carried to the guest's program and were reset.
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

/// One forward, or one guest port that has none.
#[derive(Debug, Clone, PartialEq, Eq, Facet)]
pub struct PortStatus {
    /// Names it as long as it lives: `guest:5000` (automatic), `static:127.0.0.1:8080`, with
    /// `#2` and so on behind it while connections of a predecessor drain.
    pub id: String,
    /// `tcp`.
    pub proto: String,
    /// The guest's port.
    pub port: u16,
    /// Where the guest's program listens: `127.0.0.1`, `0.0.0.0`, `::1`, `::` (`*` when that
    /// takes IPv4 too), `fe80::7%eth0` if it is bound to an interface. Empty while unknown.
    pub guest_addresses: Vec<String>,
    /// Where it leads, `172.17.0.2:80`, if that is not a port of the guest's own but an address in its
    /// networks. What listens there is not known.
    pub destination: Option<String>,
    /// The host address that is bound, such as `127.0.0.1:5000`.
    pub host: Option<String>,
    /// All host addresses that are bound: that one, then those beside it, such as `[::1]:5000`.
    pub host_addresses: Vec<String>,
    /// What is the matter.
    pub state: State,
    /// What was the matter before.
    pub previous_state: Option<State>,
    /// Why. With `forwarded`: what some of its clients meet.
    pub reason: Option<Reason>,
    /// Who listens in the guest, where that can be seen; of several the one that is reached.
    pub process: Option<ProcessName>,
    /// Its command line.
    pub command: Option<String>,
    /// Who else listens on the port, at other addresses.
    pub other_holders: Vec<OtherHolder>,
    /// The user who listens in the guest.
    pub uid: Option<u32>,
    /// From the configuration.
    pub label: Option<String>,
    /// Where to point a browser, while it is bound.
    pub url: Option<String>,
    /// Connections through it.
    pub connections: Connections,
    /// Bytes through it.
    pub bytes: Bytes,
    /// When it came into this state: RFC 3339, UTC, milliseconds.
    pub since: String,
    /// The agent's part of the latency, on its own clock: from the kernel's event to the dump
    /// that showed the port, in microseconds. None where no event told (poll).
    pub detected_us: Option<u64>,
    /// The host's part, on its own clock: from the agent's message to the bound host port, in
    /// microseconds.
    pub forwarded_us: Option<u64>,
}

impl PortStatus {
    /// What people call it: the number of the guest's port, or the address that it leads to.
    pub fn called(&self) -> String {
        match &self.destination {
            Some(destination) => clean(destination, MAX_DESTINATION),
            None => self.port.to_string(),
        }
    }
}

/// How the agent stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Facet)]
#[repr(u8)]
#[facet(rename_all = "kebab-case")]
pub enum AgentState {
    /// It has not answered yet.
    Awaited,
    /// It answers.
    Connected,
    /// It did answer, and does not now.
    Lost,
}

/// The agent in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Facet)]
pub struct AgentStatus {
    /// How it stands.
    pub state: AgentState,
    /// Since when: RFC 3339, UTC, milliseconds.
    pub since: String,
    /// Why it is not connected, in words.
    pub reason: Option<String>,
    /// When it is tried again, in milliseconds from this message.
    pub retry_ms: Option<u64>,
    /// For how long the automatic forwards stay once it is lost, in milliseconds.
    pub grace_ms: u64,
    /// Attempts since it was lost.
    pub attempts: u32,
    /// Its version, once known.
    pub version: Option<String>,
    /// The guest's host name, once known.
    pub hostname: Option<String>,
    /// What wakes it: `tracepoint`, `seccomp`, `poll`, or `none` without events (the 1 s poll only).
    pub source: Option<String>,
    /// Ports that the poll had to repair, 0 in a healthy run.
    pub repaired: u64,
}

/// The configuration in force.
#[derive(Debug, Clone, PartialEq, Eq, Facet)]
pub struct ConfigStatus {
    /// The file it was read from.
    pub file: Option<String>,
    /// When: RFC 3339, UTC, milliseconds.
    pub loaded: String,
    /// What is forwarded automatically: `5000-6000,8080`; None without automatic forwards.
    pub range: Option<String>,
    /// Why a newer version of the file is not in force.
    pub error: Option<String>,
}

/// Who is at the other end of a control socket.
#[derive(Debug, Clone, PartialEq, Eq, Facet)]
pub struct ControlInfo {
    /// What it speaks: [`CONTROL_PROTOCOL`].
    pub protocol: u32,
    /// Its version.
    pub version: String,
    /// The guest's name.
    pub name: String,
    /// The guest's kind.
    pub kind: String,
    /// The process id of `rum up`.
    pub pid: u32,
    /// Names this run of `rum up`: 16 hexadecimal digits.
    pub boot: String,
    /// When it started: RFC 3339, UTC, milliseconds.
    pub started: String,
}

/// What happened to a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Facet)]
#[repr(u8)]
#[facet(rename_all = "kebab-case")]
pub enum Op {
    /// It is new.
    Added,
    /// It differs.
    Changed,
    /// It is gone; the status is its last.
    Removed,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Facet)]
pub struct Event {
    /// Rises by one with each event of a boot.
    pub seq: u64,
    /// When: RFC 3339, UTC, milliseconds.
    pub at: String,
    /// What.
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Facet)]
#[repr(u8)]
// Nearly all are ports: boxing them would make each event two allocations.
#[allow(clippy::large_enum_variant)]
pub enum What {
    /// To a port.
    Port {
        /// What to it.
        op: Op,
        /// The whole of it.
        port: PortStatus,
    },
    /// To the agent.
    Agent(AgentStatus),
    /// To the configuration.
    Config(ConfigStatus),
    /// rum ends, for this reason; nothing follows.
    Bye(String),
}

/// One item of a watch.
#[derive(Debug, Clone, PartialEq, Eq, Facet)]
#[repr(u8)]
// Made one at a time, and not kept.
#[allow(clippy::large_enum_variant)]
pub enum Update {
    /// Everything as it is; what was known before is void.
    Snapshot {
        /// Number of the latest event that is in it.
        seq: u64,
        /// Something between this and what the reader had is lost.
        gap: bool,
        /// All ports, by port and id.
        ports: Vec<PortStatus>,
        /// The agent.
        agent: AgentStatus,
        /// The configuration.
        config: ConfigStatus,
        /// Ports on which something listens beside those that are to be forwarded, ascending, as
        /// the last polls have shown it.
        outside: Vec<u16>,
    },
    /// What happened since the item before, in order; none: rum is alive.
    Events(Vec<Event>),
}

/// Where a reader was.
#[derive(Debug, Clone, PartialEq, Eq, Facet)]
pub struct Since {
    /// The boot.
    pub boot: String,
    /// The latest event it has.
    pub seq: u64,
}

/// Why a reader stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Facet)]
#[repr(u8)]
pub enum Stay {
    /// To follow the ports.
    Follow,
    /// To wait for one.
    Wait,
}

/// What a reader wants to follow.
#[derive(Debug, Clone, Default, PartialEq, Eq, Facet)]
pub struct WatchRequest {
    /// Every port of the guest, not only those in the range.
    pub all: bool,
    /// Go on after this event, if that can still be done.
    pub since: Option<Since>,
}
