//! Step 4 of the data flow: compares what should be bound on the host with what is bound.
//!
//! A [`Planner`] holds for each forward its desired state ([`Wish`]) and its actual one
//! ([`Binding`]), and the set of forwards for which the two may differ since the last plan: those
//! that were touched ([`Planner::touch`], the results of actions, a new policy) and those whose
//! deadline has passed. A plan examines only these, so one change costs the same however many ports
//! there are. The executor (the supervisor) makes no choices: it carries out the actions, reports
//! each result, and asks again until the plan is empty.
//!
//! A plan covers at most [`AT_ONCE`] forwards, so the caller never waits for thousands. All wishes
//! are known before the first port is bound. After that, a forward is examined once for each change
//! that concerns it, however many forwards there are.
//!
//! Planning is idempotent, and the plan equals the one that an examination of all forwards gives,
//! as long as no more than `PROMPT` forwards wait for a port. `spec.rs` has that full
//! examination, and the tests compare the two.
//!
//! Invariants:
//! - Pure and deterministic: no clock, no socket. `now` comes in, the next deadline goes out.
//! - Actions are sorted: those that free a port come before those that take one.
//! - The plan for a state that is as wanted is empty.
//! - Only a static forward's own address or one of a [`PortBlock`] is ever bound, plus the
//!   additional addresses of a forward while it is bound.
//! - A forward that waits for the name of its process stays as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rum_shared::listener::Listener;

use self::candidate::{Reserved, Taken};
use self::open::Next;
use crate::plan::policy::PortBlock;
pub use crate::plan::policy::{
    AutoPolicy, Binds, DRAIN, Destination, GuestPort, HostAddr, Key, OnConflict, Policy,
    StaticForward, Verdict, Want,
};

mod candidate;
mod open;
pub mod policy;
pub mod reconcile;

/// Shortest pause before a host port that is in use is tried again: short enough that a user who
/// frees it does not wait. Where many ports are in use, the supervisor chooses a longer pause.
pub const CONFLICT_RETRY: Duration = Duration::from_millis(250);
/// Most ports that [`OnConflict::Next`] tries in one round.
pub const MAX_NEXT_TRIES: usize = 64;
/// Most waiting forwards that are examined ahead of their deadline because a host port became free.
/// Where more wait, they share the list of ports in use.
const PROMPT: usize = 64;
/// Most forwards in one plan: some milliseconds of work.
pub const AT_ONCE: usize = 256;

/// Whether a forward should exist.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Wish {
    /// No.
    #[default]
    Nothing,
    /// Undecided until this moment, unless the name of the process arrives before.
    Awaiting(Instant),
    /// Yes.
    Want(Want),
}

impl Wish {
    fn want(&self) -> Option<&Want> {
        match self {
            Self::Want(want) => Some(want),
            Self::Nothing | Self::Awaiting(_) => None,
        }
    }
}

/// The actual state of a forward.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Binding {
    /// Bound and accepting.
    Bound {
        /// The target when it was bound.
        want: Want,
        /// The address that was bound.
        at: HostAddr,
    },
    /// Could not be bound.
    Blocked {
        /// The target.
        want: Want,
        /// When to try again.
        retry_at: Instant,
        /// The ports tried since the last time `retry_at` was reached.
        tried: BTreeSet<u16>,
    },
}

impl Binding {
    /// The target.
    pub fn want(&self) -> &Want {
        match self {
            Self::Bound { want, .. } | Self::Blocked { want, .. } => want,
        }
    }

    /// The target for `ip` as an additional address: the port that is bound.
    fn beside(&self, ip: IpAddr) -> Option<Want> {
        let Self::Bound { want, at } = self else {
            return None;
        };
        want.binds
            .beside()
            .any(|beside| beside == ip)
            .then(|| Want {
                host: HostAddr(SocketAddr::new(ip, at.0.port())),
                on_conflict: OnConflict::Wait,
                ..*want
            })
    }
}

/// One step for the executor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Stop accepting; connections drain. Its result is [`Planner::ended`].
    Unbind(Key),
    /// Forget a forward that was never bound. Its result is [`Planner::ended`].
    Forget(Key),
    /// Bind `at` for `want`. Its result is [`Planner::bound`] or [`Planner::blocked`].
    Bind {
        /// The forward.
        key: Key,
        /// The target.
        want: Want,
        /// The address to try.
        at: HostAddr,
    },
}

/// What to do now, and when to ask again if nothing happens before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// To be carried out in this order.
    pub actions: Vec<Action>,
    /// The forwards whose wish differs from the last plan.
    pub decided: Vec<Key>,
    /// More forwards are left to examine: ask again, even if there is no action now.
    pub more: bool,
    /// Once the plan is empty: the next moment at which it may differ.
    pub wake: Option<Instant>,
}

/// A forward that is wished, bound or both.
#[derive(Debug, Default)]
struct Forward {
    wish: Wish,
    binding: Option<Binding>,
    /// Its entry in [`Planner::due`].
    due: Option<Instant>,
    /// Its entry in [`Planner::open`].
    open: Option<Next>,
}

/// See the module. The argument `heard` of its methods returns the listener on a guest port and the
/// time at which the host learned of it. Its answer must not change until the port is touched.
#[derive(Debug)]
pub struct Planner {
    policy: Policy,
    /// The port blocks of the policy.
    port_blocks: Vec<PortBlock>,
    /// The static forwards of the policy.
    statics: BTreeMap<HostAddr, (Destination, Binds)>,
    /// Entries that are neither wanted nor bound are removed after each pass.
    forwards: BTreeMap<Key, Forward>,
    reserved: Reserved,
    /// Forwards whose wish may have changed.
    touched: BTreeSet<Key>,
    /// Forwards whose wish is known but not acted on yet; see [`Next`].
    open: BTreeSet<(Next, Key)>,
    /// Forwards to examine again at these times.
    due: BTreeSet<(Instant, Key)>,
    /// Ports that attempts found in use, while many forwards search for one.
    taken: Taken,
}

impl Planner {
    /// A planner for a guest without listeners and a host without bindings.
    pub fn new(policy: Policy) -> Self {
        let mut planner = Self {
            policy: Policy::default(),
            port_blocks: Vec::new(),
            statics: BTreeMap::new(),
            forwards: BTreeMap::new(),
            reserved: Reserved::default(),
            touched: BTreeSet::new(),
            open: BTreeSet::new(),
            due: BTreeSet::new(),
            taken: Taken::default(),
        };
        planner.set_policy(policy);
        planner
    }

    /// The current policy.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The binding of `key`.
    pub fn binding(&self, key: Key) -> Option<&Binding> {
        self.forwards.get(&key)?.binding.as_ref()
    }

    /// All forwards that are bound or blocked.
    pub fn bindings(&self) -> impl Iterator<Item = &Binding> {
        self.forwards.values().filter_map(|f| f.binding.as_ref())
    }

    /// The host addresses that forwards occupy or want.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.reserved.addresses()
    }

    /// Reports that the listener on `port`, or the time since when it is known, may have changed.
    pub fn touch(&mut self, port: GuestPort) {
        self.touched.insert(Key::Auto(port));
    }

    /// Replaces the policy; `listening` are the ports with a listener. Returns the number of
    /// forwards that become wanted, become unwanted or change.
    pub fn replace<'a>(
        &mut self,
        policy: Policy,
        listening: impl IntoIterator<Item = GuestPort>,
        heard: impl Fn(GuestPort) -> Option<(&'a Listener, Instant)>,
        now: Instant,
    ) -> usize {
        self.decide(&heard, now, usize::MAX);
        self.set_policy(policy);
        self.touched.extend(listening.into_iter().map(Key::Auto));
        let decided = self.decide(&heard, now, usize::MAX);
        let differs = |(key, before): &&(Key, Wish)| {
            let after = self.forwards.get(key).and_then(|f| f.wish.want());
            before.want() != after
        };
        decided.iter().filter(differs).count()
    }

    fn set_policy(&mut self, policy: Policy) {
        let auto = policy.auto.as_ref();
        self.port_blocks = auto.map(AutoPolicy::port_blocks).unwrap_or_default();
        let statics = policy.statics.iter();
        self.statics = statics.map(|s| (s.host, (s.guest, s.binds))).collect();
        self.policy = policy;
        self.touched.extend(self.forwards.keys());
        self.touched
            .extend(self.statics.keys().copied().map(Key::Static));
    }

    /// The next steps towards the desired state. Ask again once each action was carried out and its
    /// result reported.
    pub fn plan<'a>(
        &mut self,
        heard: impl Fn(GuestPort) -> Option<(&'a Listener, Instant)>,
        now: Instant,
    ) -> Plan {
        let decided = self.decide(&heard, now, AT_ONCE);
        let decided = decided.into_iter().map(|(key, _)| key).collect();
        let mut actions = Vec::new();
        // All targets are known before anything is bound.
        if self.touched.is_empty() {
            // An unbind may free what other forwards wait for, so those are examined after it.
            let first = self.open().take_while(|(next, _)| *next == Next::Undo);
            actions.extend(first.filter_map(|(_, key)| self.undo(key)));
            if actions.is_empty() {
                actions = self.choose(now);
            }
        }
        Plan {
            more: actions.is_empty() && !(self.touched.is_empty() && self.open.is_empty()),
            actions,
            decided,
            wake: self.due.first().map(|(at, _)| *at),
        }
    }

    /// An action's result: `at` was bound.
    pub fn bound(&mut self, key: Key, want: Want, at: HostAddr) {
        self.end(key);
        self.reserved.insert(at);
        self.touch_beside(key, &want);
        let binding = Binding::Bound { want, at };
        self.forwards.entry(key).or_default().binding = Some(binding);
        self.reopen(key);
    }

    /// Touches the additional addresses of the forward `key`, which follow its first one.
    fn touch_beside(&mut self, key: Key, want: &Want) {
        if key.address().is_none() {
            self.touched
                .extend(want.binds.beside().map(|ip| key.beside(ip)));
        }
    }

    /// An action's result: `at` could not be bound at `now`. When no address is left to try, the
    /// forward starts over `pause` after its last attempt, however long the attempts took.
    pub fn blocked(&mut self, key: Key, want: Want, at: HostAddr, now: Instant, pause: Duration) {
        let mut tried = match self.end(key) {
            Some(Binding::Blocked {
                retry_at, tried, ..
            }) if retry_at > now => tried,
            _ => BTreeSet::new(),
        };
        tried.insert(at.0.port());
        if at != want.host {
            // `at` was reserved for this attempt.
            self.freed();
        }
        let retry_at = now + pause;
        if self.is_crowded() {
            self.taken.insert(at, retry_at);
        }
        self.forwards.entry(key).or_default().binding = Some(Binding::Blocked {
            want,
            retry_at,
            tried,
        });
        self.reopen(key);
    }

    /// Number of forwards that wait for a retry or are about to be examined.
    pub fn waiting(&self) -> usize {
        self.due.len() + self.open.len()
    }

    fn is_crowded(&self) -> bool {
        self.waiting() > PROMPT
    }

    /// An action's result: the forward is neither bound nor tried any more. Returns its last
    /// binding.
    pub fn ended(&mut self, key: Key) -> Option<Binding> {
        let binding = self.end(key);
        self.reopen(key);
        binding
    }

    fn end(&mut self, key: Key) -> Option<Binding> {
        let binding = self.forwards.get_mut(&key)?.binding.take();
        if let Some(Binding::Bound { at, want }) = &binding {
            self.touch_beside(key, want);
            self.release(*at);
        }
        binding
    }

    fn release(&mut self, at: HostAddr) {
        self.reserved.remove(at);
        self.freed();
    }

    /// Examines the forwards that wait for a port other than their own: one may be free now. Where
    /// many wait, they are examined when they are due instead, as each attempt would examine all of
    /// them.
    fn freed(&mut self) {
        let next = |auto: &AutoPolicy| auto.on_conflict == OnConflict::Next;
        if !self.is_crowded() && self.policy.auto.as_ref().is_some_and(next) {
            let waiting: Vec<Key> = self.due.iter().map(|(_, key)| *key).collect();
            waiting.into_iter().for_each(|key| self.reopen(key));
        }
    }

    /// Moves due forwards to their queues, and updates the wishes of at most `limit` touched ones.
    /// Returns the previous values of the wishes that changed.
    fn decide<'a>(
        &mut self,
        heard: &impl Fn(GuestPort) -> Option<(&'a Listener, Instant)>,
        now: Instant,
        limit: usize,
    ) -> Vec<(Key, Wish)> {
        self.taken.expire(now);
        while let Some((at, key)) = self.due.first().copied().filter(|(at, _)| *at <= now) {
            self.due.remove(&(at, key));
            if let Some(forward) = self.forwards.get_mut(&key) {
                forward.due = None;
                match forward.wish {
                    Wish::Awaiting(_) => drop(self.touched.insert(key)),
                    Wish::Want(_) | Wish::Nothing => self.reopen(key),
                }
            }
        }
        let mut decided = Vec::new();
        for _ in 0..limit {
            let Some(key) = self.touched.pop_first() else {
                break;
            };
            let wish = self.wish(key, heard, now);
            let forward = self.forwards.entry(key).or_default();
            let before = std::mem::replace(&mut forward.wish, wish);
            self.reopen(key);
            if before == wish {
                continue;
            }
            decided.push((key, before));
            let (old, new) = (before.want().map(|w| w.host), wish.want().map(|w| w.host));
            if let Some(at) = new {
                self.reserved.insert(at);
            }
            if let Some(at) = old {
                self.release(at);
            }
        }
        decided
    }

    fn wish<'a>(
        &self,
        key: Key,
        heard: &impl Fn(GuestPort) -> Option<(&'a Listener, Instant)>,
        now: Instant,
    ) -> Wish {
        let port = match key {
            Key::Auto(port) => port,
            Key::Static(host) => {
                let want = |(guest, binds): &(Destination, Binds)| Want {
                    guest: *guest,
                    host,
                    binds: *binds,
                    on_conflict: OnConflict::Wait,
                };
                let want = self.statics.get(&host).map(want);
                return want.map_or(Wish::Nothing, Wish::Want);
            }
            Key::StaticBeside(_, ip) | Key::AutoBeside(_, ip) => {
                let want = self.binding(key.forward()).and_then(|b| b.beside(ip));
                return want.map_or(Wish::Nothing, Wish::Want);
            }
        };
        let Some((listener, known_since)) = heard(port) else {
            return Wish::Nothing;
        };
        match self.policy.judge(listener, known_since, now) {
            Verdict::Forward(want) => Wish::Want(want),
            Verdict::AwaitingProcess { until } => Wish::Awaiting(until),
            Verdict::Ignored { .. } | Verdict::OutOfRange | Verdict::Unreachable { .. } => {
                Wish::Nothing
            }
        }
    }
}

#[cfg(test)]
mod crowd;
#[cfg(test)]
mod spec;
#[cfg(test)]
mod tests;
