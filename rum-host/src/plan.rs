//! Step 4 of the data flow: what should be bound on the host, compared with what is.
//!
//! [`Policy::desired`] turns what listens in the guest into the wanted forwards; [`plan`]
//! compares these with the actual ones and says what to do. The executor (the supervisor) has
//! no choices left: it carries the actions out, records each result, and asks again until the
//! plan is empty.
//!
//! Invariants: pure and deterministic (no clock, no socket: `now` comes in, the next deadline
//! goes out); actions are sorted, what frees a port before what takes one; a plan for a state
//! that is as wanted is empty; nothing is ever bound but a static forward's own address or
//! [`AutoPolicy::bind`] with a port of [`AutoPolicy::ranges`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rum_shared::listener::Listener;
use rum_shared::range::{PortRange, PortRanges};

/// A host port that is taken is tried again this often: soon enough that a user who frees it
/// does not wait, and an attempt costs two system calls.
pub const CONFLICT_RETRY: Duration = Duration::from_millis(250);
/// How long connections may go on after their listener closed, when nothing else is said.
pub const DRAIN: Duration = Duration::from_secs(10);
/// With [`OnConflict::Next`] at most this many ports are tried in one go.
pub const MAX_NEXT_TRIES: usize = 64;

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

/// What to do when the host port that belongs to a guest port is taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnConflict {
    /// Wait until it is free.
    #[default]
    Wait,
    /// Take the next free port of the configured ranges.
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StaticForward {
    /// Where to listen on the host.
    pub host: HostAddr,
    /// Where to go in the guest.
    pub guest: GuestPort,
}

/// Which ports are forwarded when something listens on them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AutoPolicy {
    /// The ports.
    pub ranges: PortRanges,
    /// The host address they are bound on.
    pub bind: IpAddr,
    /// What to do when a host port is taken.
    pub on_conflict: OnConflict,
    /// How long connections may go on after their listener closed; zero cuts them.
    pub drain: Duration,
}

/// What to forward, as the user configured it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Static forwards.
    pub statics: Vec<StaticForward>,
    /// Automatic forwards, if any.
    pub auto: Option<AutoPolicy>,
    /// How long connections of static forwards may go on at the end; zero cuts them.
    pub drain: Duration,
}

impl Default for Policy {
    /// Forwards nothing.
    fn default() -> Self {
        Self {
            statics: Vec::new(),
            auto: None,
            drain: DRAIN,
        }
    }
}

/// What names a forward for as long as it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// A static forward, by its host address.
    Static(HostAddr),
    /// An automatic forward, by its guest port.
    Auto(GuestPort),
}

/// A forward that should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want {
    /// Where it leads.
    pub guest: GuestPort,
    /// Where it should be bound.
    pub host: HostAddr,
    /// Whether another port of the ranges will do.
    pub on_conflict: OnConflict,
}

/// A forward as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Binding {
    /// Bound and accepting.
    Bound {
        /// What was asked for when it was bound.
        want: Want,
        /// The address it got.
        at: HostAddr,
    },
    /// Could not be bound.
    Blocked {
        /// What was asked for.
        want: Want,
        /// When to try again.
        retry_at: Instant,
        /// The ports tried since `retry_at` was last reached.
        tried: BTreeSet<u16>,
    },
}

/// What the policy says about a guest port that is listened on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Forward it.
    Forward(Want),
    /// It is in none of the ranges.
    OutOfRange,
}

/// One thing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Stop accepting; connections drain.
    Unbind(Key),
    /// Forget a forward that never came to be bound.
    Forget(Key),
    /// Bind `at` for `want`.
    Bind {
        /// The forward.
        key: Key,
        /// What is wanted.
        want: Want,
        /// The address to try.
        at: HostAddr,
    },
}

/// What to do now, and when to ask again if nothing happens before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// In this order.
    pub actions: Vec<Action>,
    /// The next moment at which the plan may differ.
    pub wake: Option<Instant>,
}

impl Policy {
    /// The smallest range that covers every configured guest port: what the agent is asked
    /// for. `None` when nothing is configured.
    pub fn hull(&self) -> Option<PortRange> {
        let statics = self
            .statics
            .iter()
            .filter_map(|s| PortRange::single(s.guest.0));
        let auto = self.auto.as_ref().and_then(|auto| auto.ranges.hull());
        statics.chain(auto).reduce(PortRange::hull)
    }

    /// How long connections of the forward `key` may go on after it was unbound.
    pub fn drain(&self, key: Key) -> Duration {
        match (key, &self.auto) {
            (Key::Auto(_), Some(auto)) => auto.drain,
            _ => self.drain,
        }
    }

    /// The forwards that should be while `listeners` listen in the guest.
    pub fn desired<'a>(
        &self,
        listeners: impl IntoIterator<Item = &'a Listener>,
    ) -> BTreeMap<Key, Want> {
        let mut wanted: BTreeMap<Key, Want> = self
            .statics
            .iter()
            .map(|s| {
                let want = Want {
                    guest: s.guest,
                    host: s.host,
                    on_conflict: OnConflict::Wait,
                };
                (Key::Static(s.host), want)
            })
            .collect();
        for listener in listeners {
            if let Verdict::Forward(want) = self.judge(listener) {
                wanted.insert(Key::Auto(want.guest), want);
            }
        }
        wanted
    }

    /// Whether to forward the port of `listener` automatically, and where to.
    pub fn judge(&self, listener: &Listener) -> Verdict {
        let Some(auto) = &self.auto else {
            return Verdict::OutOfRange;
        };
        if !auto.ranges.contains(listener.port) {
            return Verdict::OutOfRange;
        }
        Verdict::Forward(Want {
            guest: GuestPort(listener.port),
            host: HostAddr(SocketAddr::new(auto.bind, listener.port)),
            on_conflict: auto.on_conflict,
        })
    }

    /// The next address to try for `want`: its own first, then, where allowed, the ports of
    /// the ranges after it, round to the first, that no forward wants or has.
    fn candidate(
        &self,
        want: &Want,
        tried: &BTreeSet<u16>,
        reserved: &BTreeSet<HostAddr>,
    ) -> Option<HostAddr> {
        if !tried.contains(&want.host.0.port()) {
            return Some(want.host);
        }
        let auto = match (&self.auto, want.on_conflict) {
            (Some(auto), OnConflict::Next) if tried.len() < MAX_NEXT_TRIES => auto,
            _ => return None,
        };
        let first = want.host.0.port();
        let ports = || auto.ranges.iter().flat_map(|r| r.min()..=r.max());
        let after = ports().skip_while(|p| *p <= first);
        let before = ports().take_while(|p| *p < first);
        after
            .chain(before)
            .filter(|p| !tried.contains(p))
            .map(|p| HostAddr(SocketAddr::new(want.host.0.ip(), p)))
            .find(|at| !reserved.contains(at))
    }

    /// What takes `actual` closer to `desired`.
    pub fn plan(
        &self,
        desired: &BTreeMap<Key, Want>,
        actual: &BTreeMap<Key, Binding>,
        now: Instant,
    ) -> Plan {
        let mut plan = Plan::default();
        for (key, binding) in actual {
            let keep = match binding {
                Binding::Bound { want, .. } | Binding::Blocked { want, .. } => {
                    desired.get(key) == Some(want)
                }
            };
            match binding {
                _ if keep => {}
                Binding::Bound { .. } => plan.actions.push(Action::Unbind(*key)),
                Binding::Blocked { .. } => plan.actions.push(Action::Forget(*key)),
            }
        }
        // What has to go first may free what others wait for: ask again after that.
        if !plan.actions.is_empty() {
            plan.wake = Some(now);
            return plan;
        }
        let mut reserved: BTreeSet<HostAddr> = desired.values().map(|want| want.host).collect();
        reserved.extend(actual.values().filter_map(|binding| match binding {
            Binding::Bound { at, .. } => Some(*at),
            Binding::Blocked { .. } => None,
        }));
        let untried = BTreeSet::new();
        for (key, want) in desired {
            let (tried, retry_at) = match actual.get(key) {
                Some(Binding::Bound { .. }) => continue,
                Some(Binding::Blocked {
                    tried, retry_at, ..
                }) if *retry_at > now => (tried, Some(*retry_at)),
                Some(Binding::Blocked { .. }) | None => (&untried, None),
            };
            match (self.candidate(want, tried, &reserved), retry_at) {
                (Some(at), _) => {
                    reserved.insert(at);
                    plan.actions.push(Action::Bind {
                        key: *key,
                        want: *want,
                        at,
                    });
                }
                (None, Some(at)) => plan.wake = Some(plan.wake.map_or(at, |wake| wake.min(at))),
                (None, None) => {}
            }
        }
        plan
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
