//! Step 4 of the data flow: what should be bound on the host, compared with what is.
//!
//! [`Policy::desired`] turns what listens in the guest into the wanted forwards; [`Policy::plan`]
//! compares these with the actual ones and says what to do. The executor (the supervisor) has
//! no choices left: it carries the actions out, records each result, and asks again until the
//! plan is empty.
//!
//! Invariants: pure and deterministic (no clock, no socket: `now` comes in, the next deadline
//! goes out); actions are sorted, what frees a port before what takes one; a plan for a state
//! that is as wanted is empty; nothing is ever bound but a static forward's own address or one
//! of a [`Territory`](crate::policy::Territory); what awaits the name of its process stays as
//! it is.

use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rum_shared::listener::Listener;

use crate::policy::overlap;
pub use crate::policy::{
    AutoPolicy, DRAIN, GuestPort, HostAddr, Key, OnConflict, Policy, StaticForward, Verdict, Want,
};

/// A host port that is taken is tried again this often: soon enough that a user who frees it
/// does not wait, and an attempt costs two system calls.
pub const CONFLICT_RETRY: Duration = Duration::from_millis(250);
/// With [`OnConflict::Next`] at most this many ports are tried in one go.
pub const MAX_NEXT_TRIES: usize = 64;

/// What should be, according to the policy and the guest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// The forwards that should be.
    pub wants: BTreeMap<Key, Want>,
    /// The forwards that are decided about at these moments, if no name arrives before.
    pub awaiting: BTreeMap<Key, Instant>,
}

impl Desired {
    /// How many forwards are only in one of the two, or differ.
    pub fn differences(&self, other: &Self) -> usize {
        let keys: BTreeSet<&Key> = self.wants.keys().chain(other.wants.keys()).collect();
        let differs = |key: &&&Key| self.wants.get(key) != other.wants.get(key);
        keys.iter().filter(differs).count()
    }
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
    /// The forwards that should be while these listeners listen in the guest, each with the
    /// moment at which the host first heard of it.
    pub fn desired<'a>(
        &self,
        listeners: impl IntoIterator<Item = (&'a Listener, Instant)>,
        now: Instant,
    ) -> Desired {
        let mut desired = Desired::default();
        for forward in &self.statics {
            let want = Want {
                guest: forward.guest,
                host: forward.host,
                on_conflict: OnConflict::Wait,
            };
            desired.wants.insert(Key::Static(forward.host), want);
        }
        for (listener, known_since) in listeners {
            let key = Key::Auto(GuestPort(listener.port));
            match self.judge(listener, known_since, now) {
                Verdict::Forward(want) => {
                    desired.wants.insert(key, want);
                }
                Verdict::AwaitingProcess { until } => {
                    desired.awaiting.insert(key, until);
                }
                Verdict::Ignored { .. } | Verdict::OutOfRange => {}
            }
        }
        desired
    }

    /// The next address to try for `want`: its own first, then, where allowed, the other ports
    /// of its territory that are in nobody's way.
    fn candidate(
        &self,
        want: &Want,
        tried: &BTreeSet<u16>,
        reserved: &Reserved,
    ) -> Option<HostAddr> {
        if !tried.contains(&want.host.0.port()) {
            return Some(want.host);
        }
        let auto = match (&self.auto, want.on_conflict) {
            (Some(auto), OnConflict::Next) if tried.len() < MAX_NEXT_TRIES => auto,
            _ => return None,
        };
        auto.others(want)
            .filter(|p| !tried.contains(p))
            .map(|p| HostAddr(SocketAddr::new(want.host.0.ip(), p)))
            .find(|at| !reserved.overlaps(*at))
    }

    /// What takes `actual` closer to `desired`.
    pub fn plan(&self, desired: &Desired, actual: &BTreeMap<Key, Binding>, now: Instant) -> Plan {
        let mut plan = Plan::default();
        let territories = LazyCell::new(|| {
            let territories = self.auto.as_ref().map(AutoPolicy::territories);
            territories.unwrap_or_default()
        });
        for (key, binding) in actual {
            let (Binding::Bound { want: had, .. } | Binding::Blocked { want: had, .. }) = binding;
            let wanted = match desired.wants.get(key) {
                Some(want) => want == had,
                None => desired.awaiting.contains_key(key),
            };
            // Where it is was right once; another policy may have come since.
            let allowed = |at: HostAddr| {
                desired.wants.get(key).is_some_and(|want| want.host == at)
                    || territories.iter().any(|t| t.may_bind(had.guest, at))
            };
            match binding {
                Binding::Bound { at, .. } if wanted && allowed(*at) => {}
                Binding::Bound { .. } => plan.actions.push(Action::Unbind(*key)),
                Binding::Blocked { .. } if wanted => {}
                Binding::Blocked { .. } => plan.actions.push(Action::Forget(*key)),
            }
        }
        // What has to go first may free what others wait for: ask again after that.
        if !plan.actions.is_empty() {
            plan.wake = Some(now);
            return plan;
        }
        plan.wake = desired.awaiting.values().min().copied();
        let mut reserved = Reserved::default();
        for want in desired.wants.values() {
            reserved.insert(want.host);
        }
        for binding in actual.values() {
            if let Binding::Bound { at, .. } = binding {
                reserved.insert(*at);
            }
        }
        let untried = BTreeSet::new();
        for (key, want) in &desired.wants {
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

/// Host addresses that are wanted or bound, by port.
#[derive(Default)]
struct Reserved(BTreeMap<u16, Vec<IpAddr>>);

impl Reserved {
    fn insert(&mut self, at: HostAddr) {
        self.0.entry(at.0.port()).or_default().push(at.0.ip());
    }

    fn overlaps(&self, at: HostAddr) -> bool {
        let there = self.0.get(&at.0.port());
        there.is_some_and(|ips| ips.iter().any(|ip| overlap(*ip, at.0.ip())))
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
