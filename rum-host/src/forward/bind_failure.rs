//! Step 5 of the data flow: why a host address cannot be bound, in the words that every command uses.

use std::io;

use rum_shared::listener::Process;
use rustix::io::Errno;

use crate::plan::HostAddr;
use crate::reason::ReasonCode;

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

/// Why a host address cannot be bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BindFailure {
    /// Somebody else has it.
    Taken {
        /// Who, where that is known.
        holder: Option<Process>,
        /// With what.
        by: Hold,
    },
    /// A port below `net.ipv4.ip_unprivileged_port_start` needs CAP_NET_BIND_SERVICE (ip(7)).
    Privileged,
    /// This machine does not have the address, or not its family.
    NoAddress,
    /// Anything else, in words: no descriptors are left, for instance.
    Other(String),
}

impl From<io::Error> for BindFailure {
    /// Who has an address that is taken is another question, see [`super::holder`].
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
    /// The word for it.
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

    /// What to do about it. Whether it is tried again by itself is for the caller to say.
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

    /// Who has it, where that is the reason and known.
    pub fn holder(&self) -> Option<&Process> {
        match self {
            Self::Taken { holder, .. } => holder.as_ref(),
            _ => None,
        }
    }
}

/// Who has `host`, in words.
fn taken(host: HostAddr, holder: Option<&Process>, by: Hold) -> String {
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
