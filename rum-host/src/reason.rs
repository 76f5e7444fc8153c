//! Reason codes: why a port is in its state, as words for programs. For people, `status::rows` adds
//! a sentence. `docs/scripts.md` explains each code, and a test compares the two lists.

use std::fmt;

/// The word for a reason in JSON. Words are never renamed; new ones may be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReasonCode {
    /// Another program has the host port.
    HostPortTaken,
    /// The host port needs a privilege.
    HostPortPrivileged,
    /// The host does not have the address.
    NoHostAddress,
    /// Binding the host port failed for another reason, or was not attempted yet.
    BindFailed,
    /// Nothing listens in the guest.
    NotListening,
    /// No connection from the guest itself can reach the listener.
    Unreachable,
    /// Several programs of the guest listen on the port.
    SeveralPrograms,
    /// Nothing listens on the port, and yet a client was served.
    LedElsewhere,
    /// rum does not watch the listeners at the destination.
    NotWatched,
    /// The host has no file descriptors or memory left.
    Exhausted,
    /// The agent has no room for more connections.
    AgentExhausted,
    /// The guest's program does not accept its connections.
    NotAccepted,
    /// The last connection was reset.
    Refused,
    /// A rule waits for the name of the process.
    AwaitingProcess,
    /// The port is in `exclude`.
    Excluded,
    /// A rule ignores the port.
    Rule,
    /// The port is in no range.
    NotInRange,
    /// The listener closed; connections live on.
    Closed,
    /// The agent has not answered yet.
    AgentAwaited,
    /// The agent no longer answers.
    AgentLost,
    /// No `rum up` runs.
    NotRunning,
}

impl ReasonCode {
    /// All codes.
    pub const ALL: [Self; 21] = [
        Self::HostPortTaken,
        Self::HostPortPrivileged,
        Self::NoHostAddress,
        Self::BindFailed,
        Self::NotListening,
        Self::Unreachable,
        Self::SeveralPrograms,
        Self::LedElsewhere,
        Self::NotWatched,
        Self::Exhausted,
        Self::AgentExhausted,
        Self::NotAccepted,
        Self::Refused,
        Self::AwaitingProcess,
        Self::Excluded,
        Self::Rule,
        Self::NotInRange,
        Self::Closed,
        Self::AgentAwaited,
        Self::AgentLost,
        Self::NotRunning,
    ];

    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::HostPortTaken => "host-port-taken",
            Self::HostPortPrivileged => "host-port-privileged",
            Self::NoHostAddress => "no-host-address",
            Self::BindFailed => "bind-failed",
            Self::NotListening => "not-listening",
            Self::Unreachable => "unreachable",
            Self::SeveralPrograms => "several-programs",
            Self::LedElsewhere => "led-elsewhere",
            Self::NotWatched => "not-watched",
            Self::Exhausted => "exhausted",
            Self::AgentExhausted => "agent-exhausted",
            Self::NotAccepted => "not-accepted",
            Self::Refused => "refused",
            Self::AwaitingProcess => "awaiting-process",
            Self::Excluded => "excluded",
            Self::Rule => "rule",
            Self::NotInRange => "not-in-range",
            Self::Closed => "closed",
            Self::AgentAwaited => "agent-awaited",
            Self::AgentLost => "agent-lost",
            Self::NotRunning => "not-running",
        }
    }
}

impl fmt::Display for ReasonCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_the_document_has_each_and_no_other() {
        let document = include_str!("../../docs/scripts.md");
        let (_, section) = document
            .split_once("\n## Reason codes\n")
            .expect("the section");
        let section = section.split("\n## ").next().unwrap_or(section);
        let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
        let mut documented: Vec<_> = rows
            .filter_map(|row| Some(row.split_once('`')?.0))
            .collect();
        let mut all = ReasonCode::ALL.map(ReasonCode::as_str);
        documented.sort_unstable();
        all.sort_unstable();
        assert_eq!(documented, all);
    }
}
