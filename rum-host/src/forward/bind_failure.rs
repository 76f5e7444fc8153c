//! Step 5 of the data flow: why a host address cannot be bound. All commands use these words.

use std::io;

use rum_shared::listener::Process;
use rustix::io::Errno;

use crate::plan::HostAddr;
use crate::reason::ReasonCode;

/// What occupies a host port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Hold {
    /// A listening socket, or unknown.
    #[default]
    Listener,
    /// A connection, such as an outgoing one for which the kernel chose that port.
    Connection,
    /// A closed connection in TIME_WAIT (RFC 9293, 3.6), which ends after a minute.
    TimeWait,
}

/// Why a host address cannot be bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BindFailure {
    /// Another socket occupies it.
    Taken {
        /// The process that holds it, if known.
        holder: Option<Process>,
        /// The kind of socket.
        by: Hold,
    },
    /// A port below `net.ipv4.ip_unprivileged_port_start` needs CAP_NET_BIND_SERVICE (ip(7)).
    Privileged,
    /// This machine does not have the address or its address family.
    NoAddress,
    /// Any other error, in words, for example that no descriptors are left.
    Other(String),
}

impl From<io::Error> for BindFailure {
    /// Leaves the holder of an occupied address open; see [`super::holder`].
    fn from(error: io::Error) -> Self {
        match Errno::from_io_error(&error) {
            Some(Errno::ADDRINUSE) => Self::Taken {
                holder: None,
                by: Hold::default(),
            },
            Some(Errno::ACCESS | Errno::PERM) => Self::Privileged,
            Some(Errno::ADDRNOTAVAIL | Errno::AFNOSUPPORT) => Self::NoAddress,
            _ => Self::Other(error.to_string()),
        }
    }
}

impl BindFailure {
    /// The reason code.
    pub fn code(&self) -> ReasonCode {
        match self {
            Self::Taken { .. } => ReasonCode::HostPortTaken,
            Self::Privileged => ReasonCode::HostPortPrivileged,
            Self::NoAddress => ReasonCode::NoHostAddress,
            Self::Other(_) => ReasonCode::BindFailed,
        }
    }

    /// Why `at` cannot be bound, in words.
    pub fn message(&self, at: HostAddr) -> String {
        match self {
            Self::Taken { holder, by } => taken(at, holder.as_ref(), *by),
            Self::Privileged => format!("binding {at} needs privilege, as for any port below 1024"),
            Self::NoAddress => {
                format!("this machine does not have the address {}", at.0.ip())
            }
            Self::Other(why) => format!("cannot bind {at}: {why}"),
        }
    }

    /// What the user can do about it. The caller adds whether rum tries again by itself.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Taken { .. } => Some("free it, or choose another host port"),
            Self::Privileged => Some(
                "choose a host port from 1024 up, run rum as root, or lower \
                 net.ipv4.ip_unprivileged_port_start",
            ),
            Self::NoAddress => {
                Some("give it to an interface, then it serves by itself; or change `bind`")
            }
            Self::Other(_) => None,
        }
    }

    /// The process that holds the address, if that is the reason and known.
    pub fn holder(&self) -> Option<&Process> {
        match self {
            Self::Taken { holder, .. } => holder.as_ref(),
            _ => None,
        }
    }
}

/// Describes what occupies `host`.
fn taken(host: HostAddr, holder: Option<&Process>, by: Hold) -> String {
    let by_process = |before: &str| {
        let name = |p: &Process| format!("{before}{} (pid {})", p.name, p.pid);
        holder.map(name).unwrap_or_default()
    };
    match by {
        Hold::Listener => format!("{host} is taken{}", by_process(" by ")),
        Hold::Connection => format!(
            "{host} is the local end of a connection{}",
            by_process(" of ")
        ),
        Hold::TimeWait => {
            format!("{host} was the local end of a connection, which keeps it for up to a minute")
        }
    }
}
