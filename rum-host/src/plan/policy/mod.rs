//! Step 4 of the data flow: what the user wants forwarded, and what that means for one listener.
//!
//! A [`Policy`] is static forwards and an [`AutoPolicy`]: ranges, what is excluded from them, and
//! rules, of which the first that matches decides. A rule that asks for the name of a process or for
//! its command line waits for that, at most [`PROCESS_WAIT`] after the host first heard of the port; then it
//! counts as not matching. A port that no such rule can match never waits. When the name arrives
//! later, the verdict is another one then, and the forward moves.
//!
//! Where a port may be bound is decided by its [`PortBlock`]: guest ports, the distance to their
//! host ports, and the address. `on_conflict = "next"` searches nowhere else.
//!
//! Invariants: pure (no clock, no socket); blocks of a checked configuration collide neither
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

/// How long connections may go on when rum itself ends their forward, when nothing else is said.
pub const DRAIN: Duration = Duration::from_secs(10);
/// How long a rule waits for the name of a process. The agent looks names up within
/// milliseconds; one that is late or never comes must not keep a port closed for long.
pub const PROCESS_WAIT: Duration = Duration::from_millis(500);

/// A TCP port inside the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GuestPort(pub u16);

/// An address on the host.
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

/// Whether listening sockets on `a` and `b` would be in each other's way on the same port. `::`
/// takes IPv4 as well.
pub fn overlap(a: IpAddr, b: IpAddr) -> bool {
    let covers = |all: IpAddr, one: IpAddr| {
        all.is_unspecified() && (all.is_ipv6() || all.is_ipv4() == one.is_ipv4())
    };
    a == b || covers(a, b) || covers(b, a)
}

/// What to do when the host port that belongs to a guest port is taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnConflict {
    /// Wait until it is free.
    #[default]
    Wait,
    /// Take the next free port of the same [`PortBlock`].
    Next,
}

impl OnConflict {
    /// The word for it in `rum.toml`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Wait => "wait",
            Self::Next => "next",
        }
    }
}

/// A forward that is there whether or not anything listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticForward {
    /// Where to listen on the host.
    pub host: HostAddr,
    /// The address of `host`, and those beside it.
    pub binds: Binds,
    /// Where to go in the guest.
    pub guest: Destination,
    /// What the user calls it.
    pub label: Option<String>,
}

/// Which ports are forwarded when something listens on them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AutoPolicy {
    /// The ports.
    pub ranges: PortRanges,
    /// Ports of the ranges that are left alone, whatever the rules say.
    pub exclude: PortRanges,
    /// What differs for some ports; the first that matches counts.
    pub rules: Vec<Rule>,
    /// The host addresses they are bound on.
    pub bind: Binds,
    /// What to do when a host port is taken.
    pub on_conflict: OnConflict,
    /// How long connections may go on when their forward ends, or when their listener closes; zero cuts
    /// them. `None`: as [`Policy::drain`] says, and after a close as long as their two ends want.
    pub drain: Option<Duration>,
}

/// Guest ports with the same distance to their host ports, on the same host address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortBlock {
    /// The number of the rule they are for, from 0; `None`: of none.
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

    /// Whether a forward of `guest` may be bound at `at`, be it instead of its own port.
    pub(crate) fn may_bind(&self, guest: Destination, at: HostAddr) -> bool {
        let number = i32::from(at.0.port()) - self.offset;
        self.guest.contains(guest.port)
            && self.bind.first() == at.0.ip()
            && u16::try_from(number).is_ok_and(|port| self.guest.contains(port))
    }
}

/// The rule for a listener.
enum Match<'a> {
    Rule(usize, &'a Rule),
    NoRule,
    /// That depends on the name of the process.
    Unknown,
}

impl AutoPolicy {
    /// Forwards `ranges` to the same ports of the loopback address.
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

    /// The ports that each forwarding rule can get, which are those that no rule before it is
    /// sure to get, and at last the ports that are left.
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

    /// The first rule that matches. Without the name of the process, the rules that ask for one
    /// are [`Match::Unknown`] if `waits`, and do not match otherwise.
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

/// The host ports that `want` may have instead of its own: those of its block, from the
/// one after it on, round to the first.
pub(crate) fn others(
    want: &Want,
    blocks: &[PortBlock],
) -> impl Iterator<Item = RangeInclusive<u16>> + use<> {
    let first = want.host.0.port();
    let offset = i32::from(first) - i32::from(want.guest.port);
    let same = |t: &&PortBlock| t.offset == offset && t.bind == want.binds;
    // What lies beyond its own, it may not keep: see `may_bind`.
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

/// What to forward, as the user configured it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Static forwards.
    pub statics: Vec<StaticForward>,
    /// Automatic forwards, if any.
    pub auto: Option<AutoPolicy>,
    /// How long connections may go on when rum itself ends their forward; zero cuts them.
    pub drain: Duration,
    /// After how much silence a client is asked whether it is still there; `None`: as the system's
    /// times say (`net.ipv4.tcp_keepalive_*`, tcp(7)).
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

/// What names a forward for as long as it lives, or one of the addresses beside its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// A static forward, by its host address.
    Static(HostAddr),
    /// An automatic forward, by its guest port.
    Auto(GuestPort),
    /// One more address of a static forward.
    StaticBeside(HostAddr, IpAddr),
    /// One more address of an automatic forward.
    AutoBeside(GuestPort, IpAddr),
}

impl Key {
    /// The forward.
    pub fn forward(self) -> Self {
        match self {
            Self::StaticBeside(host, _) => Self::Static(host),
            Self::AutoBeside(port, _) => Self::Auto(port),
            forward => forward,
        }
    }

    /// One more address of the forward.
    pub fn beside(self, ip: IpAddr) -> Self {
        match self.forward() {
            Self::Auto(port) | Self::AutoBeside(port, _) => Self::AutoBeside(port, ip),
            Self::Static(host) | Self::StaticBeside(host, _) => Self::StaticBeside(host, ip),
        }
    }

    /// The address, if this names one beside a forward's own.
    pub fn address(self) -> Option<IpAddr> {
        match self {
            Self::StaticBeside(_, ip) | Self::AutoBeside(_, ip) => Some(ip),
            Self::Static(_) | Self::Auto(_) => None,
        }
    }
}

/// A forward that should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want {
    /// Where it leads.
    pub guest: Destination,
    /// Where it should be bound.
    pub host: HostAddr,
    /// The addresses of the forward.
    pub binds: Binds,
    /// Whether another port will do.
    pub on_conflict: OnConflict,
}

/// What the policy says about a guest port that is listened on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Forward it.
    Forward(Want),
    /// Leave it alone, as configured.
    Ignored {
        /// `excluded` or `rule`.
        code: ReasonCode,
        /// By what, in words.
        message: String,
    },
    /// It is in none of the ranges.
    OutOfRange,
    /// It would be forwarded, but no connection from the guest itself reaches it.
    Unreachable {
        /// Why, in words.
        why: String,
    },
    /// A rule needs the name of its process. A forward that is bound stays meanwhile.
    AwaitingProcess {
        /// Then it is decided without.
        until: Instant,
    },
}

impl Policy {
    /// The smallest range that covers every configured guest port: what the agent is asked
    /// for. `None` when nothing is configured.
    pub fn hull(&self) -> Option<PortRange> {
        let statics = self
            .statics
            .iter()
            .filter_map(|s| PortRange::single(s.guest.port));
        let auto = self.auto.as_ref().and_then(|auto| auto.ranges.hull());
        statics.chain(auto).reduce(PortRange::hull)
    }

    /// Whether a static forward leads to `port` of the guest's own.
    pub fn has_static(&self, port: u16) -> bool {
        let mut statics = self.statics.iter();
        statics.any(|forward| forward.guest.own_port() == Some(port))
    }

    /// How long connections of the forward `key` may go on when rum itself ends it.
    pub fn drain(&self, key: Key) -> Duration {
        let auto = self.auto.as_ref().filter(|_| matches!(key, Key::Auto(_)));
        auto.and_then(|auto| auto.drain).unwrap_or(self.drain)
    }

    /// How long connections to `listener` may go on when that closes, if the user limits it.
    pub fn drain_after_close(&self, listener: &Listener) -> Option<Duration> {
        let auto = self.auto.as_ref()?;
        let of_rule = match auto.rule(listener, false) {
            Match::Rule(_, rule) => rule.drain,
            Match::NoRule | Match::Unknown => None,
        };
        of_rule.or(auto.drain)
    }

    /// What to do about `listener`, of which the host first heard at `known_since`.
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
        // A port that does not exist is in no range; a checked configuration has none.
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

    /// What the user calls the forward `key`: an automatic one by the rule for its `listener`.
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
