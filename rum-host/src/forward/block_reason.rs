//! Step 5 of the data flow: why a host port cannot be bound, and who has it, in words.

use rum_shared::listener::Process;

use crate::plan::HostAddr;

/// With what somebody has a host port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Hold {
    /// A listening socket, or nobody knows.
    #[default]
    Listener,
    /// A connection, such as an outgoing one to which the kernel gave that port.
    Connection,
    /// A connection that has ended (TIME_WAIT, RFC 9293, 3.6): free after a minute.
    TimeWait,
}

/// Who has `host`, in words.
pub fn taken(host: HostAddr, holder: Option<&Process>, by: Hold) -> String {
    let who = |before: &str| {
        let name = |p: &Process| format!("{before}{} (pid {})", p.name, p.pid);
        holder.map(name).unwrap_or_default()
    };
    match by {
        Hold::Listener => format!("{host} is taken{}", who(" by ")),
        Hold::Connection => format!("{host} is the local end of a connection{}", who(" of ")),
        Hold::TimeWait => {
            format!("{host} was the local end of a connection, which keeps it for up to a minute")
        }
    }
}

/// Why a host port cannot be bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlockReason {
    /// Somebody else has it.
    Conflict {
        /// Who, where that can be seen.
        holder: Option<Process>,
        /// With what.
        by: Hold,
    },
    /// A port below 1024 (`net.ipv4.ip_unprivileged_port_start`).
    Privileged,
    /// This machine does not have the address.
    NoAddress,
    /// Anything else, in words.
    Other(String),
}
