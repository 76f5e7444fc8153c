//! What the supervisor tells the user, as values; the words are made here and nowhere else.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use rum_shared::stream::rpc::AgentInfo;

use crate::VERSION;
use crate::forward::bind_failure::BindFailure;
use crate::guest::progress::Progress;
use crate::plan::reconcile::Repair;
use crate::plan::{Destination, HostAddr, Key};

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// The agent answered.
    AgentConnected {
        /// Who it is, cleaned.
        info: AgentInfo,
        /// Whether it streams changes.
        streaming: bool,
    },
    /// No agent has answered yet; attempts go on.
    AgentAwaited {
        /// Why not, in words.
        reason: String,
    },
    /// A guest that rum does not put its agent into has not shown one for so long.
    AgentMissing {
        /// Since rum began to look for one.
        after: Duration,
    },
    /// The agent is gone.
    AgentLost {
        /// Why, in words.
        reason: String,
        /// How long its forwards stay.
        grace: Duration,
    },
    /// The agent is back, and its guest has been booted since.
    GuestRebooted,
    /// The agent did not come back within the grace time.
    AutoForwardsDropped,
    /// A host port is bound and leads to the guest.
    Forwarded {
        /// Which forward.
        key: Key,
        /// Where it is bound.
        host: HostAddr,
        /// Where it leads.
        guest: Destination,
        /// The host port that it should have had, if that was taken.
        instead_of: Option<HostAddr>,
    },
    /// A host port is no longer bound.
    Stopped {
        /// Which forward.
        key: Key,
        /// Where it was bound.
        host: HostAddr,
        /// Where it led.
        guest: Destination,
        /// Connections that live on.
        connections: u32,
        /// For how long at most, if that is limited.
        drain: Option<Duration>,
    },
    /// A host port cannot be bound now; it is tried again.
    Blocked {
        /// Which forward, or which address beside its own.
        key: Key,
        /// The address.
        host: HostAddr,
        /// Where it would lead.
        guest: Destination,
        /// Why.
        reason: BindFailure,
    },
    /// This machine no longer has an address at which ports are forwarded.
    AddressGone {
        /// The address.
        ip: IpAddr,
        /// How many forwards are bound there.
        forwards: usize,
    },
    /// It has it again, and they serve.
    AddressBack {
        /// The address.
        ip: IpAddr,
    },
    /// Connections outlived the drain time.
    Cut {
        /// Where they led.
        guest: Destination,
        /// How many.
        connections: usize,
    },
    /// The poll repaired what no event told.
    Repaired(Repair),
    /// A guest of rum's own starts, or tells of itself.
    Guest(Progress),
    /// What runs in the guest is root on this machine.
    NoBoundary,
    /// The guest is gone.
    GuestEnded {
        /// How, in words.
        reason: String,
    },
    /// What ran in the guest did not end when asked, and was killed.
    GuestKilled {
        /// Since it was asked to end; `None`: it was to be killed.
        after: Option<Duration>,
    },
    /// Something listens in the guest beside the configured ranges.
    Outside {
        /// On these ports.
        ports: Vec<u16>,
        /// The ranges.
        range: String,
    },
    /// Another configuration is in force.
    Reloaded {
        /// Forwards of known listeners that it makes, ends or moves.
        forwards: usize,
    },
    /// The configuration was read again, and says the same.
    Unchanged,
    /// The configuration was read again and can't be used.
    NotReloaded,
    /// The configuration says something that can't be applied while rum runs.
    RestartNeeded,
    /// Asked to stop; connections may finish.
    Stopping {
        /// For how long.
        drain: Duration,
    },
}

impl Notice {
    /// Whether it tells of a problem, and so is printed even with `--quiet`.
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

    /// Whether it tells of a port, which is what `rum up` prints to stdout; the rest is about
    /// rum itself.
    pub fn is_about_a_port(&self) -> bool {
        matches!(
            self,
            Self::Forwarded { .. } | Self::Stopped { .. } | Self::Blocked { .. }
        )
    }
}

/// Ports that a line names; of more it says how many.
const NAMED: usize = 3;
/// Longest range, in characters, that a line writes out as an argument.
const MAX_RANGE: usize = 60;

/// That something listens on `ports`, beside the ranges `range`, and what to do about it.
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
                    f.write_str("; it does not stream, so it is polled each second")?;
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
                        "it forwards once that is free"
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
                write!(f, "Stopping within {drain:?}, again to force")
            }
            Self::Repaired(Repair::Opened(port)) => {
                write!(
                    f,
                    "The poll found port {port} open, which no event had told"
                )
            }
            Self::Repaired(Repair::Closed(port)) => {
                write!(
                    f,
                    "The poll found port {port} closed, which no event had told"
                )
            }
        }
    }
}
