//! User-visible events, and their words. Only those of a guest's progress are made elsewhere, in
//! [`crate::guest::progress`].

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use rum_shared::stream::rpc::AgentInfo;

use crate::VERSION;
use crate::forward::bind_failure::BindFailure;
use crate::guest::progress::Progress;
use crate::plan::reconcile::Repair;
use crate::plan::{Destination, HostAddr, Key};

/// An event for the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// The agent answered.
    AgentConnected {
        /// What the agent reports about itself, cleaned.
        info: AgentInfo,
        /// Whether it streams changes.
        streaming: bool,
    },
    /// No agent has answered yet; attempts go on.
    AgentAwaited {
        /// Why, in words.
        reason: String,
    },
    /// The agent of a guest into which rum does not put one has not appeared for this long.
    AgentMissing {
        /// Time since rum started to look for it.
        after: Duration,
    },
    /// The agent was lost.
    AgentLost {
        /// Why, in words.
        reason: String,
        /// How long its forwards stay.
        grace: Duration,
    },
    /// The agent is back, and its guest has rebooted.
    GuestRebooted,
    /// The agent did not come back within the grace time.
    AutoForwardsDropped,
    /// A host port is bound and forwards to the guest.
    Forwarded {
        /// The forward.
        key: Key,
        /// The bound address.
        host: HostAddr,
        /// The destination.
        guest: Destination,
        /// The host port that was wanted, if it is in use.
        instead_of: Option<HostAddr>,
    },
    /// A host port is no longer bound.
    Stopped {
        /// The forward.
        key: Key,
        /// The address at which it was bound.
        host: HostAddr,
        /// The destination.
        guest: Destination,
        /// Connections that live on.
        connections: u32,
        /// The longest time that they may go on, if limited.
        drain: Option<Duration>,
    },
    /// A host port cannot be bound now; rum tries again.
    Blocked {
        /// The forward, or one of its additional addresses.
        key: Key,
        /// The address.
        host: HostAddr,
        /// The destination.
        guest: Destination,
        /// Why.
        reason: BindFailure,
    },
    /// This machine no longer has an address to which forwards are bound.
    AddressGone {
        /// The address.
        ip: IpAddr,
        /// Number of forwards bound there.
        forwards: usize,
    },
    /// This machine has the address again, and its forwards serve.
    AddressBack {
        /// The address.
        ip: IpAddr,
    },
    /// Connections were reset because the drain time ran out.
    Cut {
        /// The destination.
        guest: Destination,
        /// How many.
        connections: usize,
    },
    /// The poll repaired a port that no event reported.
    Repaired(Repair),
    /// Progress of a guest that rum starts.
    Guest(Progress),
    /// Programs in the guest run as root of this machine.
    NoBoundary,
    /// The guest ended.
    GuestEnded {
        /// How, in words.
        reason: String,
    },
    /// Programs in the guest did not end when asked, and were killed.
    GuestKilled {
        /// Time since they were asked to end; `None`: killed at once on request.
        after: Option<Duration>,
    },
    /// Programs in the guest listen outside the configured ranges.
    Outside {
        /// The ports.
        ports: Vec<u16>,
        /// The ranges.
        range: String,
    },
    /// Another configuration is in force.
    Reloaded {
        /// Forwards of known listeners that are added, removed or moved.
        forwards: usize,
    },
    /// The configuration was read again, and is the same.
    Unchanged,
    /// The configuration was read again and cannot be used.
    NotReloaded,
    /// The configuration has changes that cannot be applied while rum runs.
    RestartNeeded,
    /// rum was asked to stop; connections may finish.
    Stopping {
        /// How long they may take.
        drain: Duration,
    },
}

impl Notice {
    /// Whether it reports a problem, which is printed even with `--quiet`.
    pub fn is_problem(&self) -> bool {
        match self {
            Self::AgentLost { .. }
            | Self::AgentAwaited { .. }
            | Self::AgentMissing { .. }
            | Self::GuestRebooted
            | Self::AutoForwardsDropped
            | Self::Blocked { .. }
            | Self::AddressGone { .. }
            | Self::Cut { .. }
            | Self::Repaired(_)
            | Self::NotReloaded
            | Self::RestartNeeded
            | Self::GuestEnded { .. }
            | Self::GuestKilled { .. } => true,
            Self::AgentConnected { info, streaming } => !streaming || info.version != VERSION,
            Self::Guest(progress) => progress.is_problem(),
            Self::Forwarded { .. }
            | Self::Stopped { .. }
            | Self::AddressBack { .. }
            | Self::NoBoundary
            | Self::Outside { .. }
            | Self::Reloaded { .. }
            | Self::Unchanged
            | Self::Stopping { .. } => false,
        }
    }

    /// Whether it is about a port. `rum up` prints these to stdout; the others are about rum
    /// itself.
    pub fn is_about_a_port(&self) -> bool {
        matches!(
            self,
            Self::Forwarded { .. } | Self::Stopped { .. } | Self::Blocked { .. }
        )
    }
}

/// Most ports that a line names; it counts the rest.
const NAMED: usize = 3;
/// Longest range, in characters, that a line repeats as an argument.
const MAX_RANGE: usize = 60;

/// The message that programs listen on `ports`, outside `range`, and what to do about it.
pub fn outside(ports: &[u16], range: &str) -> String {
    let named: Vec<String> = ports.iter().take(NAMED).map(u16::to_string).collect();
    let (listens, more) = match ports.len() {
        0 | 1 => ("listens", String::new()),
        n if n <= NAMED => ("listen", String::new()),
        n => ("listen", format!(" and {} more", n - NAMED)),
    };
    let wider = match range.len() {
        0..=MAX_RANGE => format!("--range {range},{}", named.join(",")),
        _ => "a wider range".to_owned(),
    };
    let named = named.join(", ");
    format!("{named}{more} {listens} outside {range}: {wider}, or rum ports --all")
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AgentConnected { info, streaming } => {
                write!(f, "Agent {} connected (events: {}", info.version, info.hint)?;
                if info.version != VERSION {
                    write!(
                        f,
                        "; rum is {VERSION}, `rum agent install` tells how to update the agent"
                    )?;
                }
                if !streaming {
                    f.write_str("; the agent cannot push changes; checking once a second")?;
                }
                f.write_str(")")
            }
            Self::AgentAwaited { reason } => write!(f, "Waiting for the agent: {reason}"),
            Self::AgentMissing { after } => write!(
                f,
                "No agent for {} s, still waiting: if there is none in the guest, `rum agent install` \
                 tells how to get it in",
                after.as_secs()
            ),
            Self::AgentLost { reason, grace } => write!(
                f,
                "Agent lost: {reason}; reconnecting, forwards stay for {} s",
                grace.as_secs()
            ),
            Self::GuestRebooted => {
                f.write_str("The guest has rebooted: its connections from before are reset")
            }
            Self::AutoForwardsDropped => {
                f.write_str("Agent still lost: its automatic forwards are closed")
            }
            Self::Forwarded {
                key: Key::Static(_),
                host,
                guest,
                ..
            } => write!(f, "Forwarding {host} → guest:{guest}"),
            Self::Forwarded {
                host,
                guest,
                instead_of: Some(taken),
                ..
            } => write!(
                f,
                "Auto-forwarding {host} → guest:{guest} (host port {} is taken)",
                taken.0.port()
            ),
            Self::Forwarded { host, guest, .. } => {
                write!(f, "Auto-forwarding {host} → guest:{guest}")
            }
            Self::Stopped {
                guest,
                connections,
                drain,
                ..
            } => {
                write!(f, "Stopped forwarding {guest}")?;
                let what = match drain {
                    Some(_) => "draining",
                    None => "still open",
                };
                match connections {
                    0 => Ok(()),
                    1 => write!(f, " (1 connection {what})"),
                    n => write!(f, " ({n} connections {what})"),
                }
            }
            Self::Blocked {
                key,
                host,
                guest,
                reason,
            } => {
                let then = match key.address() {
                    None => {
                        write!(f, "Not forwarding guest:{guest} yet: ")?;
                        "it will be forwarded as soon as the port is free"
                    }
                    Some(_) => {
                        write!(f, "Not forwarding {host} → guest:{guest} yet: ")?;
                        "clients that use this address reach that, not the guest"
                    }
                };
                f.write_str(&reason.message(*host))?;
                match reason {
                    BindFailure::Taken { .. } => write!(f, "; {then}"),
                    BindFailure::NoAddress => f.write_str("; it forwards once it does"),
                    BindFailure::Privileged | BindFailure::Other(_) => Ok(()),
                }
            }
            Self::AddressGone { ip, forwards } => write!(
                f,
                "This machine no longer has the address {ip}: {forwards} forward{} there wait{} for it",
                if *forwards == 1 { "" } else { "s" },
                if *forwards == 1 { "s" } else { "" },
            ),
            Self::AddressBack { ip } => {
                write!(
                    f,
                    "This machine has the address {ip} again: its forwards serve"
                )
            }
            Self::Cut { guest, connections } => write!(
                f,
                "Cut {connections} connection{} to guest:{guest}: the drain time is over",
                if *connections == 1 { "" } else { "s" }
            ),
            Self::Guest(progress) => progress.fmt(f),
            Self::GuestEnded { reason } => write!(f, "The guest ended: {reason}"),
            Self::GuestKilled { after: Some(after) } => write!(
                f,
                "Killed what was left in the guest after {} s",
                after.as_secs()
            ),
            Self::GuestKilled { after: None } => {
                f.write_str("Killed what was left in the guest, as asked")
            }
            Self::Outside { ports, range } => f.write_str(&outside(ports, range)),
            Self::Reloaded { forwards: 0 } => f.write_str("Configuration reloaded"),
            Self::Reloaded { forwards: 1 } => {
                f.write_str("Configuration reloaded: 1 forward changed")
            }
            Self::Reloaded { forwards } => {
                write!(f, "Configuration reloaded: {forwards} forwards changed")
            }
            Self::Unchanged => f.write_str("Configuration reloaded: nothing changed"),
            Self::NotReloaded => {
                f.write_str("Configuration not reloaded: the one from before stays in force")
            }
            Self::NoBoundary => f.write_str(
                "As root: a namespace guest is no security boundary, root in it can change this \
                 machine's files",
            ),
            Self::RestartNeeded => {
                f.write_str("name and [guest] take effect with the next `rum up`")
            }
            Self::Stopping { drain } => {
                write!(
                    f,
                    "Stopping: waiting up to {drain:?} for connections (Ctrl+C again to stop now)"
                )
            }
            Self::Repaired(Repair::Opened(port)) => {
                write!(
                    f,
                    "Port {port} is open, but no event reported it (found by the 1 s check)"
                )
            }
            Self::Repaired(Repair::Closed(port)) => {
                write!(
                    f,
                    "Port {port} is closed, but no event reported it (found by the 1 s check)"
                )
            }
        }
    }
}
