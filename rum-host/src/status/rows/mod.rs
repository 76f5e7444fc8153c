//! The rows of `rum ports`: the state of a guest port, in words.
//!
//! Pure: the supervisor passes everything it knows of one guest port, and gets its rows: one for
//! each forward, or one if there is none. The journal fills in `since` and `previous_state`.
//!
//! Invariants: a port is `forwarded` only if it is bound on the host and one of these holds: the
//! latest dump shows it in the guest; the last client was served; or it leads to an address, which
//! rum does not watch, and its last client was not reset. Every other state has a reason, with a
//! hint if the user can do something.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use rum_shared::listener::Listener;

use self::reasons::{
    address, named, other_holders, reason, several_programs, trouble, unreachable,
};
use crate::forward::Stats;
use crate::forward::bind_failure::BindFailure;
use crate::plan::{Destination, GuestPort, HostAddr, Key, Verdict};
use crate::reason::ReasonCode;
use crate::status::agent::Knowledge;
use crate::status::model::{Bytes, Connections, PortStatus, Reason, State};

pub use self::reasons::not_bound;

mod publisher;
mod reasons;

/// The state of a wanted forward.
#[derive(Debug)]
pub enum Standing<'a> {
    /// It is bound.
    Bound {
        /// The bound address.
        at: HostAddr,
        /// Its counters.
        stats: &'a Stats,
        /// Time from the agent's report to the bind.
        took: Option<Duration>,
        /// Its additional addresses that are bound.
        beside: Vec<HostAddr>,
        /// One of its addresses that does not serve, and why. If it is the first address, the port
        /// is not forwarded.
        lacks: Option<(HostAddr, &'a BindFailure)>,
    },
    /// Binding it failed.
    Blocked {
        /// The wanted address.
        at: HostAddr,
        /// Why; `None` while the holder is being searched for.
        reason: Option<&'a BindFailure>,
    },
}

/// A wanted forward.
#[derive(Debug)]
pub struct Forward<'a> {
    /// Its key.
    pub key: Key,
    /// Its destination.
    pub guest: Destination,
    /// Its state.
    pub standing: Standing<'a>,
    /// The label from the configuration.
    pub label: Option<&'a str>,
}

/// A closed forward whose connections live on.
#[derive(Debug)]
pub struct Draining<'a> {
    /// Its key.
    pub key: Key,
    /// Its destination.
    pub guest: Destination,
    /// The address at which it was bound.
    pub at: HostAddr,
    /// Its counters.
    pub stats: &'a Stats,
    /// Whether the connections are reset after the drain time.
    pub limited: bool,
    /// The label from the configuration.
    pub label: Option<&'a str>,
}

/// Everything that rum knows of one guest port.
#[derive(Debug)]
pub struct Facts<'a> {
    /// The port.
    pub port: GuestPort,
    /// The listener, if any.
    pub listener: Option<&'a Listener>,
    /// The policy's decision about automatic forwarding, if a program listens.
    pub verdict: Option<Verdict>,
    /// The label of the listener's rule.
    pub label: Option<&'a str>,
    /// The configured ranges of automatic forwards.
    pub ranges: Option<String>,
    /// The port's forwards.
    pub forwards: Vec<Forward<'a>>,
    /// Its closed forwards.
    pub draining: Vec<Draining<'a>>,
    /// How current the facts about the listener are.
    pub knowledge: &'a Knowledge,
}

/// The rows of one guest port, sorted by id.
pub fn rows(facts: &Facts<'_>) -> Vec<PortStatus> {
    let mut rows: Vec<PortStatus> = facts.forwards.iter().map(|f| facts.forward(f)).collect();
    let is_auto = |f: &Forward<'_>| matches!(f.key, Key::Auto(_));
    if let (Some(_), Some(verdict)) = (facts.listener, &facts.verdict)
        && !facts.forwards.iter().any(is_auto)
    {
        // A static forward already leads there, so a missing automatic one needs no row.
        let leads_there = |f: &Forward<'_>| f.guest.own_port().is_some();
        let unforwarded = !facts.forwards.iter().any(leads_there);
        rows.extend(unforwarded.then(|| facts.without(verdict)).flatten());
    }
    for draining in &facts.draining {
        let mut row = facts.drain(draining);
        let taken = |id: &str| rows.iter().any(|other| other.id == id);
        if taken(&row.id) {
            let free = (2..)
                .map(|n| format!("{}#{n}", row.id))
                .find(|id| !taken(id));
            row.id = free.unwrap_or_default();
        }
        rows.push(row);
    }
    rows.sort_by(|a, b| a.id.cmp(&b.id));
    rows
}

/// The row of a port that would be forwarded if a `rum up` ran.
pub fn not_running(facts: &Facts<'_>) -> PortStatus {
    let message = "no `rum up` runs, so nothing is forwarded";
    let reason = reason(ReasonCode::NotRunning, message, Some("start `rum up`"));
    facts.own_row(id(Key::Auto(facts.port)), State::Pending, Some(reason))
}

fn id(key: Key) -> String {
    match key {
        Key::Auto(port) | Key::AutoBeside(port, _) => format!("guest:{port}"),
        Key::Static(host) | Key::StaticBeside(host, _) => format!("static:{host}"),
    }
}

/// State of a bound forward that leads to an address in the guest's networks. rum does not watch
/// its listeners: the outcome of the last client is all that is known.
fn elsewhere(
    guest: Destination,
    stats: &Stats,
    lacks: Option<(HostAddr, &BindFailure)>,
) -> (State, Option<Reason>) {
    let trouble = trouble(guest, stats, false, lacks);
    if stats.last_refusal().is_some() {
        return (State::Pending, trouble);
    }
    let unwatched = || {
        let message = format!(
            "what listens at {guest} is not watched: whether it serves shows when a client comes"
        );
        reason(ReasonCode::NotWatched, message, None)
    };
    let reason = if stats.serves() {
        trouble
    } else {
        trouble.or_else(|| Some(unwatched()))
    };
    (State::Forwarded, reason)
}

impl Facts<'_> {
    /// The row of the guest's own port.
    fn own_row(&self, id: String, state: State, reason: Option<Reason>) -> PortStatus {
        self.row(id, Destination::own(self.port.0), state, reason)
    }

    fn row(
        &self,
        id: String,
        guest: Destination,
        state: State,
        reason: Option<Reason>,
    ) -> PortStatus {
        // The listener at another address of this port is unknown.
        let listener = self.listener.filter(|_| guest.ip.is_none());
        let addresses = match (guest.ip, listener) {
            (Some(ip), _) => vec![ip.to_string()],
            (None, Some(l)) => l.addresses.iter().map(|a| address(l, a)).collect(),
            (None, None) => Vec::new(),
        };
        let process = listener.and_then(|l| l.process.as_ref());
        let command = process.map(|process| process.command.clone());
        PortStatus {
            id,
            proto: "tcp".to_owned(),
            port: self.port.0,
            guest_addresses: addresses,
            destination: guest.address(),
            host: None,
            host_addresses: Vec::new(),
            state,
            previous_state: None,
            reason,
            process: process.map(named),
            command: command.filter(|command| !command.is_empty()),
            other_holders: listener.map(other_holders).unwrap_or_default(),
            uid: listener.filter(|l| l.inode != 0).map(|l| l.uid),
            label: None,
            url: None,
            connections: Connections::default(),
            bytes: Bytes::default(),
            since: String::new(),
            detected_us: None,
            forwarded_us: None,
        }
    }

    fn forward(&self, forward: &Forward<'_>) -> PortStatus {
        let (state, reason) = self.state(forward);
        let mut row = self.row(id(forward.key), forward.guest, state, reason);
        row.label = forward.label.map(str::to_owned);
        if let Standing::Bound {
            at,
            stats,
            took,
            beside,
            ..
        } = &forward.standing
        {
            row.bound(*at, stats);
            let others = beside.iter().map(HostAddr::to_string);
            row.host_addresses.extend(others);
            row.url = Some(format!("http://{at}/"));
            if forward.guest.ip.is_none() {
                row.detected_us = self.listener.and_then(detected_us);
            }
            if let Key::Auto(_) = forward.key {
                row.forwarded_us = took.map(|took| u64::try_from(took.as_micros()).unwrap_or(0));
            }
        }
        row
    }

    fn state(&self, forward: &Forward<'_>) -> (State, Option<Reason>) {
        let (at, blocked) = match &forward.standing {
            Standing::Blocked { at, reason } => (*at, *reason),
            Standing::Bound {
                at: bound,
                stats,
                lacks,
                ..
            } => {
                return match lacks {
                    Some((lacks, why)) if lacks == bound => {
                        let reason = not_bound(*lacks, why, why.hint());
                        (State::Pending, Some(reason))
                    }
                    _ => self.bound_state(forward, stats, *lacks),
                };
            }
        };
        let Some(why) = blocked else {
            let message = format!("{at} is not bound yet");
            return (
                State::Pending,
                Some(reason(ReasonCode::BindFailed, message, None)),
            );
        };
        let state = match why {
            BindFailure::Taken { .. } => State::Conflict,
            BindFailure::Privileged => State::RefusedPrivileged,
            BindFailure::NoAddress | BindFailure::Other(_) => State::Pending,
        };
        let hint = match (why, forward.key) {
            (BindFailure::Taken { .. }, Key::Auto(_)) => {
                Some("free it, or set on_conflict = \"next\"")
            }
            _ => why.hint(),
        };
        (state, Some(not_bound(at, why, hint)))
    }

    fn bound_state(
        &self,
        forward: &Forward<'_>,
        stats: &Stats,
        lacks: Option<(HostAddr, &BindFailure)>,
    ) -> (State, Option<Reason>) {
        if let (Knowledge::Current, Destination { ip: Some(_), .. }) =
            (self.knowledge, forward.guest)
        {
            return elsewhere(forward.guest, stats, lacks);
        }
        if let (Knowledge::Current, Some(listener)) = (self.knowledge, self.listener)
            && let Some(why) = &listener.unreachable
        {
            return (State::Pending, Some(unreachable(self.port, why)));
        }
        match self.knowledge {
            Knowledge::Current if self.listener.is_some() => {
                let several = || self.listener.and_then(several_programs);
                (
                    State::Forwarded,
                    trouble(forward.guest, stats, true, lacks).or_else(several),
                )
            }
            Knowledge::Current if stats.serves() => {
                let led = || {
                    let message = format!(
                        "nothing listens on guest port {}, and yet its connections are served: a rule of the \
                         guest's firewall leads them elsewhere",
                        self.port
                    );
                    reason(ReasonCode::LedElsewhere, message, None)
                };
                (
                    State::Forwarded,
                    trouble(forward.guest, stats, false, lacks).or_else(|| Some(led())),
                )
            }
            Knowledge::Current => {
                let message = format!("nothing listens on guest port {} yet", self.port);
                let hint = "start its program in the guest; until then connections are reset, but for those \
                            that the guest's firewall leads elsewhere";
                let reason = reason(ReasonCode::NotListening, message, Some(hint));
                (State::Pending, Some(reason))
            }
            Knowledge::Awaited(_) => {
                let message = "the agent in the guest has not answered yet";
                let hint = "connections wait for it";
                (
                    State::Pending,
                    Some(reason(ReasonCode::AgentAwaited, message, Some(hint))),
                )
            }
            Knowledge::Stale { reason: why, .. } => {
                let hint = match forward.key {
                    Key::Auto(_) => {
                        "the port stays bound for a while and new connections wait for the agent"
                    }
                    _ => "new connections wait for the agent",
                };
                let message = format!("the agent is lost: {why}");
                (
                    State::Lost,
                    Some(reason(ReasonCode::AgentLost, message, Some(hint))),
                )
            }
            Knowledge::Forgotten { reason: why } => {
                let message = format!("the agent is lost: {why}");
                let hint = "look whether the guest still runs";
                (
                    State::Lost,
                    Some(reason(ReasonCode::AgentLost, message, Some(hint))),
                )
            }
        }
    }

    /// The row of a port without an automatic forward; `None` if it is about to get one.
    fn without(&self, verdict: &Verdict) -> Option<PortStatus> {
        let id = id(Key::Auto(self.port));
        let (state, reason) = match verdict {
            Verdict::Forward(_) => return None,
            Verdict::Ignored { code, message } => {
                let hint = match code {
                    ReasonCode::Excluded => format!("take {} out of `exclude`", self.port),
                    _ => format!("write a rule for {} before it", self.port),
                };
                (State::Ignored, reason(*code, message, Some(&hint)))
            }
            Verdict::Unreachable { why } => (State::Pending, unreachable(self.port, why)),
            Verdict::AwaitingProcess { .. } => {
                let message = "a rule waits for the name of its process";
                (
                    State::Pending,
                    reason(ReasonCode::AwaitingProcess, message, None),
                )
            }
            Verdict::OutOfRange => {
                let hint = format!("widen `range` to take in {}", self.port);
                let message = match &self.ranges {
                    Some(ranges) => format!("not in range = \"{ranges}\""),
                    None => "there are no automatic forwards".to_owned(),
                };
                (
                    State::OutOfRange,
                    reason(ReasonCode::NotInRange, message, Some(&hint)),
                )
            }
        };
        let label = self.label.map(str::to_owned);
        Some(PortStatus {
            label,
            ..self.own_row(id, state, Some(reason))
        })
    }

    fn drain(&self, draining: &Draining<'_>) -> PortStatus {
        let left = draining.stats.active.load(Relaxed);
        let message = match left {
            1 => "closed; 1 connection left".to_owned(),
            n => format!("closed; {n} connections left"),
        };
        let hint = if draining.limited {
            "they are cut when the drain time is over"
        } else {
            "they go on until their program or their client closes them"
        };
        let reason = reason(ReasonCode::Closed, message, Some(hint));
        let mut row = self.row(
            id(draining.key),
            draining.guest,
            State::Draining,
            Some(reason),
        );
        row.label = draining.label.map(str::to_owned);
        row.bound(draining.at, draining.stats);
        row
    }
}

/// Time from the kernel's event to the dump that showed the port, both on the agent's clock. A
/// lying agent can make it wrong, but not negative.
fn detected_us(listener: &Listener) -> Option<u64> {
    let took = listener.seen_ns.checked_sub(listener.hinted_ns?)?;
    Some(took / 1000)
}

impl PortStatus {
    fn bound(&mut self, at: HostAddr, stats: &Stats) {
        self.host = Some(at.to_string());
        self.host_addresses = vec![at.to_string()];
        self.connections = Connections {
            now: stats.active.load(Relaxed),
            total: stats.accepted.load(Relaxed),
            refused: stats.refused.load(Relaxed),
        };
        self.bytes = Bytes {
            to_guest: stats.bytes.from_tcp.load(Relaxed),
            to_host: stats.bytes.to_tcp.load(Relaxed),
        };
    }
}

#[cfg(test)]
mod tests;
