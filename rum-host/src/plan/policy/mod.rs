//! Step 4 of the data flow: the user's policy, and its decision about one listener.
//!
//! A [`Policy`] consists of static forwards and an [`AutoPolicy`]: port ranges, excluded ports, and
//! rules, of which the first match decides. A rule that asks for a process's name or command line
//! waits for it, at most [`PROCESS_WAIT`] after the host learned of the port; after that, the rule
//! counts as not matching. A port that no such rule can match never waits. If the name arrives
//! later, the verdict changes and the forward moves.
//!
//! A [`PortBlock`] defines where a port may be bound: guest ports, their distance to the host
//! ports, and the addresses. `on_conflict = "next"` searches nowhere else.
//!
//! Invariants: pure (no clock, no socket); the blocks of a checked configuration collide neither
//! with each other nor with a static forward.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

pub use rum_shared::destination::Destination;
use rum_shared::listener::Listener;
use rum_shared::range::{PortRange, PortRanges};

use crate::reason::ReasonCode;

mod binds;
mod rule;

pub use binds::{Binds, MAX_BINDS};
pub use rule::{MAX_PATTERN, Pattern, Rule, RuleAction};

/// Default for how long connections may go on when rum itself ends their forward.
pub const DRAIN: Duration = Duration::from_secs(10);
/// How long a rule waits for the name of a process. The agent looks names up within milliseconds; a
/// late or missing name must not keep a port closed for long.
pub const PROCESS_WAIT: Duration = Duration::from_millis(500);

/// A TCP port inside the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GuestPort(pub u16);

/// A TCP address on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostAddr(pub SocketAddr);

impl fmt::Display for GuestPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for HostAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Whether listening sockets on `a` and `b` would conflict on the same port. `::` includes IPv4.
pub fn overlap(a: IpAddr, b: IpAddr) -> bool {
    let covers = |all: IpAddr, one: IpAddr| {
        all.is_unspecified() && (all.is_ipv6() || all.is_ipv4() == one.is_ipv4())
    };
    a == b || covers(a, b) || covers(b, a)
}

/// What to do when the host port for a guest port is in use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnConflict {
    /// Wait until it is free.
    #[default]
    Wait,
    /// Take the next free port of the same [`PortBlock`].
    Next,
}

impl OnConflict {
    /// The word in `rum.toml`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Wait => "wait",
            Self::Next => "next",
        }
    }
}

/// A forward that exists whether or not a program listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticForward {
    /// Where to listen on the host.
    pub host: HostAddr,
    /// The address of `host`, and the additional ones.
    pub binds: Binds,
    /// The destination in the guest.
    pub guest: Destination,
    /// The user's name for it.
    pub label: Option<String>,
}

/// Which ports are forwarded when a program listens on them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AutoPolicy {
    /// The ports.
    pub ranges: PortRanges,
    /// Ports of the ranges that are never forwarded, whatever the rules say.
    pub exclude: PortRanges,
    /// Exceptions for some ports; the first match counts.
    pub rules: Vec<Rule>,
    /// The host addresses to bind.
    pub bind: Binds,
    /// What to do when a host port is taken.
    pub on_conflict: OnConflict,
    /// How long connections may go on when their forward ends or their listener closes; zero resets
    /// them at once. `None`: [`Policy::drain`] when their forward ends, and no limit after a close.
    pub drain: Option<Duration>,
}

/// Guest ports with the same distance to their host ports, on the same host addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortBlock {
    /// The index of their rule, from 0. `None`: no rule.
    pub rule: Option<usize>,
    /// The guest ports.
    pub guest: PortRanges,
    /// What is added to a guest port to get its host port.
    pub offset: i32,
    /// The host addresses.
    pub bind: Binds,
}

impl PortBlock {
    /// Its ports on the host.
    pub fn host(&self) -> PortRanges {
        self.guest.shifted(self.offset)
    }

    /// Whether a forward of `guest` may be bound at `at`, its own port or a replacement.
    pub(crate) fn may_bind(&self, guest: Destination, at: HostAddr) -> bool {
        let number = i32::from(at.0.port()) - self.offset;
        self.guest.contains(guest.port)
            && self.bind.first() == at.0.ip()
            && u16::try_from(number).is_ok_and(|port| self.guest.contains(port))
    }
}

/// The rule that applies to a listener.
enum Match<'a> {
    Rule(usize, &'a Rule),
    NoRule,
    /// The answer depends on the name of the process.
    Unknown,
}

impl AutoPolicy {
    /// Forwards `ranges` to the same ports of the loopback addresses.
    pub fn new(ranges: PortRanges) -> Self {
        Self {
            ranges,
            exclude: PortRanges::default(),
            rules: Vec::new(),
            bind: Binds::LOCALHOST,
            on_conflict: OnConflict::default(),
            drain: None,
        }
    }

    /// The ports that each forwarding rule can match, which excludes those that an earlier rule
    /// surely matches; last, the ports without a rule.
    pub fn port_blocks(&self) -> Vec<PortBlock> {
        let mut left = self.ranges.difference(&self.exclude);
        let mut all = Vec::with_capacity(self.rules.len() + 1);
        for (index, rule) in self.rules.iter().enumerate() {
            let matched = match &rule.guest {
                Some(guest) => left.intersection(guest),
                None => left.clone(),
            };
            if !rule.asks_for_process() {
                left = left.difference(&matched);
            }
            if let RuleAction::Forward { bind, .. } = rule.action {
                all.push(PortBlock {
                    rule: Some(index),
                    guest: matched,
                    offset: rule.offset(),
                    bind: bind.unwrap_or(self.bind),
                });
            }
        }
        all.push(PortBlock {
            rule: None,
            guest: left,
            offset: 0,
            bind: self.bind,
        });
        all
    }

    /// The first matching rule. If the name of the process is missing, a rule that asks for one
    /// yields [`Match::Unknown`] if `waits`, and does not match otherwise.
    fn rule(&self, listener: &Listener, waits: bool) -> Match<'_> {
        for (index, rule) in self.rules.iter().enumerate() {
            let elsewhere = |guest: &PortRanges| !guest.contains(listener.port);
            if rule.guest.as_ref().is_some_and(elsewhere) {
                continue;
            }
            match &listener.process {
                _ if !rule.asks_for_process() => return Match::Rule(index, rule),
                Some(process) if rule.is_for(process) => return Match::Rule(index, rule),
                None if waits => return Match::Unknown,
                _ => {}
            }
        }
        Match::NoRule
    }
}

/// The host ports that `want` may have instead of its own: those of its block, from the next one
/// on, then from the block's first.
pub(crate) fn others(
    want: &Want,
    blocks: &[PortBlock],
) -> impl Iterator<Item = RangeInclusive<u16>> + use<> {
    let first = want.host.0.port();
    let offset = i32::from(first) - i32::from(want.guest.port);
    let same = |t: &&PortBlock| t.offset == offset && t.bind == want.binds;
    // A forward may not keep a port outside its block: see `may_bind`.
    let own = |t: &&PortBlock| t.guest.contains(want.guest.port);
    let blocks = blocks.iter().filter(same).filter(own);
    let host = blocks.fold(PortRanges::default(), |all, t| all.union(&t.host()));
    let ranges: Vec<PortRange> = host.iter().collect();
    let before = ranges.clone().into_iter().filter_map(move |r| {
        let last = r.max().min(first.checked_sub(1)?);
        (r.min() <= last).then(|| r.min()..=last)
    });
    let after = ranges.into_iter().filter_map(move |r| {
        let next = r.min().max(first.checked_add(1)?);
        (next <= r.max()).then(|| next..=r.max())
    });
    after.chain(before)
}

/// The user's configuration of forwards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Static forwards.
    pub statics: Vec<StaticForward>,
    /// Automatic forwards, if any.
    pub auto: Option<AutoPolicy>,
    /// How long connections may go on when rum itself ends their forward; zero resets them at once.
    pub drain: Duration,
    /// How long a client may be idle before TCP keepalive probes start. `None`: the system's values
    /// (`net.ipv4.tcp_keepalive_*`, tcp(7)).
    pub keepalive: Option<Duration>,
}

impl Default for Policy {
    /// Forwards nothing.
    fn default() -> Self {
        Self {
            statics: Vec::new(),
            auto: None,
            drain: DRAIN,
            keepalive: None,
        }
    }
}

/// Identifies a forward for its lifetime, or one of its additional addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// A static forward, by its host address.
    Static(HostAddr),
    /// An automatic forward, by its guest port.
    Auto(GuestPort),
    /// An additional address of a static forward.
    StaticBeside(HostAddr, IpAddr),
    /// An additional address of an automatic forward.
    AutoBeside(GuestPort, IpAddr),
}

impl Key {
    /// The forward that this key belongs to.
    pub fn forward(self) -> Self {
        match self {
            Self::StaticBeside(host, _) => Self::Static(host),
            Self::AutoBeside(port, _) => Self::Auto(port),
            forward => forward,
        }
    }

    /// The key of the forward's additional address `ip`.
    pub fn beside(self, ip: IpAddr) -> Self {
        match self.forward() {
            Self::Auto(port) | Self::AutoBeside(port, _) => Self::AutoBeside(port, ip),
            Self::Static(host) | Self::StaticBeside(host, _) => Self::StaticBeside(host, ip),
        }
    }

    /// The address, if this is the key of an additional address.
    pub fn address(self) -> Option<IpAddr> {
        match self {
            Self::StaticBeside(_, ip) | Self::AutoBeside(_, ip) => Some(ip),
            Self::Static(_) | Self::Auto(_) => None,
        }
    }
}

/// The target of a forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want {
    /// The destination in the guest.
    pub guest: Destination,
    /// The host address to bind.
    pub host: HostAddr,
    /// All host addresses of the forward.
    pub binds: Binds,
    /// Whether another port may replace it.
    pub on_conflict: OnConflict,
}

/// The policy's decision about a guest port with a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Forward it.
    Forward(Want),
    /// Do not forward it, as configured.
    Ignored {
        /// `excluded` or `rule`.
        code: ReasonCode,
        /// What ignores it, in words.
        message: String,
    },
    /// It is in none of the ranges.
    OutOfRange,
    /// It would be forwarded, but no connection from the guest itself reaches it.
    Unreachable {
        /// Why, in words.
        why: String,
    },
    /// A rule needs the name of the port's process. A bound forward stays until then.
    AwaitingProcess {
        /// When the decision is made without the name.
        until: Instant,
    },
}

impl Policy {
    /// The smallest range that covers every configured guest port, which the agent is asked to
    /// watch. `None` if no port is configured.
    pub fn hull(&self) -> Option<PortRange> {
        let statics = self
            .statics
            .iter()
            .filter_map(|s| PortRange::single(s.guest.port));
        let auto = self.auto.as_ref().and_then(|auto| auto.ranges.hull());
        statics.chain(auto).reduce(PortRange::hull)
    }

    /// Whether a static forward leads to `port` of the guest itself.
    pub fn has_static(&self, port: u16) -> bool {
        let mut statics = self.statics.iter();
        statics.any(|forward| forward.guest.own_port() == Some(port))
    }

    /// How long connections of the forward `key` may go on when rum itself ends it.
    pub fn drain(&self, key: Key) -> Duration {
        let auto = self.auto.as_ref().filter(|_| matches!(key, Key::Auto(_)));
        auto.and_then(|auto| auto.drain).unwrap_or(self.drain)
    }

    /// How long connections to `listener` may go on after it closes, if the user sets a limit.
    pub fn drain_after_close(&self, listener: &Listener) -> Option<Duration> {
        let auto = self.auto.as_ref()?;
        let of_rule = match auto.rule(listener, false) {
            Match::Rule(_, rule) => rule.drain,
            Match::NoRule | Match::Unknown => None,
        };
        of_rule.or(auto.drain)
    }

    /// The decision about `listener`, which the host learned of at `known_since`.
    pub fn judge(&self, listener: &Listener, known_since: Instant, now: Instant) -> Verdict {
        let in_range = |auto: &&AutoPolicy| auto.ranges.contains(listener.port);
        let Some(auto) = self.auto.as_ref().filter(in_range) else {
            return Verdict::OutOfRange;
        };
        if let Some(range) = auto.exclude.iter().find(|r| r.contains(listener.port)) {
            return Verdict::Ignored {
                code: ReasonCode::Excluded,
                message: format!("excluded by `exclude = \"{range}\"`"),
            };
        }
        let until = known_since + PROCESS_WAIT;
        let (offset, bind) = match auto.rule(listener, now < until) {
            Match::Unknown => return Verdict::AwaitingProcess { until },
            Match::NoRule => (0, auto.bind),
            Match::Rule(index, rule) => match rule.action {
                RuleAction::Forward { bind, .. } => (rule.offset(), bind.unwrap_or(auto.bind)),
                RuleAction::Ignore => {
                    return Verdict::Ignored {
                        code: ReasonCode::Rule,
                        message: format!("rule {} ignores it ({rule})", index + 1),
                    };
                }
            },
        };
        if let Some(why) = &listener.unreachable {
            return Verdict::Unreachable { why: why.clone() };
        }
        // A port number out of range is not forwarded; a checked configuration has none.
        match u16::try_from(i32::from(listener.port) + offset) {
            Ok(port) if port != 0 => Verdict::Forward(Want {
                guest: Destination::own(listener.port),
                host: HostAddr(SocketAddr::new(bind.first(), port)),
                binds: bind,
                on_conflict: auto.on_conflict,
            }),
            _ => Verdict::OutOfRange,
        }
    }

    /// The user's name for the forward `key`. An automatic forward has that of its `listener`'s
    /// rule.
    pub fn label(&self, key: Key, listener: Option<&Listener>) -> Option<&str> {
        match (key.forward(), &self.auto, listener) {
            (Key::Static(host), ..) => {
                let forward = self.statics.iter().find(|s| s.host == host)?;
                forward.label.as_deref()
            }
            (Key::Auto(_), Some(auto), Some(listener)) => match auto.rule(listener, false) {
                Match::Rule(_, rule) => rule.label.as_deref(),
                Match::NoRule | Match::Unknown => None,
            },
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
