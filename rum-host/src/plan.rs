//! Step 4 of the data flow: what should be bound on the host, compared with what is.
//!
//! A [`Planner`] knows for each forward what is wished ([`Wish`]) and what is bound
//! ([`Binding`]), and which forwards may differ since it last looked: those it was told about
//! ([`Planner::touch`], the results of actions, another policy) and those whose time has come.
//! Only these are looked at, so one change costs the same however many ports there are. The
//! executor (the supervisor) has no choices left: it carries the actions out, reports each
//! result, and asks again until the plan is empty.
//!
//! What is looked at twice gives the same plan, and the plan is the one that a look at
//! everything would give, as long as no more than [`PROMPT`] forwards wait for a port; the tests have
//! that look written down, and compare.
//!
//! Invariants: pure and deterministic (no clock, no socket: `now` comes in, the next deadline
//! goes out); actions are sorted, what frees a port before what takes one; a plan for a state
//! that is as wanted is empty; nothing is ever bound but a static forward's own address or one
//! of a [`Territory`], and the addresses beside those while they are bound; what awaits the name of its
//! process stays as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rum_shared::listener::Listener;

use self::candidate::{Reserved, candidate};
use crate::policy::Territory;
pub use crate::policy::{
    AutoPolicy, Binds, DRAIN, GuestPort, HostAddr, Key, OnConflict, Policy, StaticForward, Verdict,
    Want,
};

mod candidate;

/// A host port that is taken is tried again after this at the earliest: soon enough that a user who
/// frees it does not wait. Where many are taken, whoever tries them waits longer.
pub const CONFLICT_RETRY: Duration = Duration::from_millis(250);
/// With [`OnConflict::Next`] at most this many ports are tried in one go.
pub const MAX_NEXT_TRIES: usize = 64;
/// At most this many forwards are looked at before their time because a host port became free.
const PROMPT: usize = 64;

/// Whether a forward should be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Wish {
    /// No.
    #[default]
    Nothing,
    /// That is decided at this moment, if no name arrives before.
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

impl Binding {
    /// What was asked for.
    pub fn want(&self) -> &Want {
        match self {
            Self::Bound { want, .. } | Self::Blocked { want, .. } => want,
        }
    }

    /// What is asked for at the address `ip` beside the one that is bound: the same port.
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

/// One thing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Stop accepting; connections drain. Its result is [`Planner::ended`].
    Unbind(Key),
    /// Forget a forward that never came to be bound. Its result is [`Planner::ended`].
    Forget(Key),
    /// Bind `at` for `want`. Its result is [`Planner::bound`] or [`Planner::blocked`].
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
    /// The forwards whose wish is another one than in the last plan.
    pub decided: Vec<Key>,
    /// The next moment at which the plan may differ, once it is empty.
    pub wake: Option<Instant>,
}

/// One forward, wished or bound or both.
#[derive(Debug, Default)]
struct Forward {
    wish: Wish,
    binding: Option<Binding>,
    /// Its entry in the queue.
    due: Option<Instant>,
}

/// See the module. `heard` tells, wherever it is asked for, what listens on a guest port and
/// since when the host knows: it must answer the same until the port is touched.
#[derive(Debug)]
pub struct Planner {
    policy: Policy,
    /// Those of the policy.
    territories: Vec<Territory>,
    /// The static forwards of the policy.
    statics: BTreeMap<HostAddr, (GuestPort, Binds)>,
    /// None of them is [`Wish::Nothing`] without a binding once it was looked at.
    forwards: BTreeMap<Key, Forward>,
    reserved: Reserved,
    /// To be looked at.
    touched: BTreeSet<Key>,
    /// To be looked at, then.
    due: BTreeSet<(Instant, Key)>,
}

impl Planner {
    /// Nothing listens and nothing is bound.
    pub fn new(policy: Policy) -> Self {
        let mut planner = Self {
            policy: Policy::default(),
            territories: Vec::new(),
            statics: BTreeMap::new(),
            forwards: BTreeMap::new(),
            reserved: Reserved::default(),
            touched: BTreeSet::new(),
            due: BTreeSet::new(),
        };
        planner.set_policy(policy);
        planner
    }

    /// The policy that holds.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// How `key` is bound.
    pub fn binding(&self, key: Key) -> Option<&Binding> {
        self.forwards.get(&key)?.binding.as_ref()
    }

    /// All forwards that are bound or blocked.
    pub fn bindings(&self) -> impl Iterator<Item = &Binding> {
        self.forwards.values().filter_map(|f| f.binding.as_ref())
    }

    /// The host addresses that forwards have or want.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.reserved.addresses()
    }

    /// What listens on `port`, or since when, may differ.
    pub fn touch(&mut self, port: GuestPort) {
        self.touched.insert(Key::Auto(port));
    }

    /// From now on `policy` holds, while `listening` listen. Returns how many forwards are
    /// wanted that were not, the other way round, or differ.
    pub fn replace<'a>(
        &mut self,
        policy: Policy,
        listening: impl IntoIterator<Item = GuestPort>,
        heard: impl Fn(GuestPort) -> Option<(&'a Listener, Instant)>,
        now: Instant,
    ) -> usize {
        self.decide(&heard, now);
        self.set_policy(policy);
        self.touched.extend(listening.into_iter().map(Key::Auto));
        let decided = self.decide(&heard, now);
        let differs = |(key, before): &&(Key, Wish)| {
            let after = self.forwards.get(key).and_then(|f| f.wish.want());
            before.want() != after
        };
        decided.iter().filter(differs).count()
    }

    fn set_policy(&mut self, policy: Policy) {
        let auto = policy.auto.as_ref();
        self.territories = auto.map(AutoPolicy::territories).unwrap_or_default();
        let statics = policy.statics.iter();
        self.statics = statics.map(|s| (s.host, (s.guest, s.binds))).collect();
        self.policy = policy;
        self.touched.extend(self.forwards.keys());
        self.touched
            .extend(self.statics.keys().copied().map(Key::Static));
    }

    /// What takes the host closer to what is wished. Ask again once each action was carried
    /// out and its result reported.
    pub fn plan<'a>(
        &mut self,
        heard: impl Fn(GuestPort) -> Option<(&'a Listener, Instant)>,
        now: Instant,
    ) -> Plan {
        let decided = self.decide(&heard, now);
        let decided = decided.into_iter().map(|(key, _)| key).collect();
        // What has to go first may free what others wait for: that is asked again after it.
        let mut actions: Vec<Action> = self.touched.iter().filter_map(|k| self.undo(*k)).collect();
        if actions.is_empty() {
            let mut chosen = Reserved::default();
            for key in std::mem::take(&mut self.touched) {
                if let Some(action) = self.bind(key, &mut chosen, now) {
                    self.touched.insert(key);
                    actions.push(action);
                }
            }
        }
        Plan {
            actions,
            decided,
            wake: self.due.first().map(|(at, _)| *at),
        }
    }

    /// An action's result: `at` was bound.
    pub fn bound(&mut self, key: Key, want: Want, at: HostAddr) {
        self.ended(key);
        self.reserved.insert(at);
        self.touch_beside(key, &want);
        let binding = Binding::Bound { want, at };
        self.forwards.entry(key).or_default().binding = Some(binding);
    }

    /// The addresses beside that of the forward `key` follow it.
    fn touch_beside(&mut self, key: Key, want: &Want) {
        if key.address().is_none() {
            self.touched
                .extend(want.binds.beside().map(|ip| key.beside(ip)));
        }
    }

    /// An action's result: `at` could not be bound at `now`. Once nothing is left to try, it
    /// starts over when `pause` has passed since the last attempt, however long those took.
    pub fn blocked(&mut self, key: Key, want: Want, at: HostAddr, now: Instant, pause: Duration) {
        let mut tried = match self.ended(key) {
            Some(Binding::Blocked {
                retry_at, tried, ..
            }) if retry_at > now => tried,
            _ => BTreeSet::new(),
        };
        tried.insert(at.0.port());
        if at != want.host {
            // It was spoken for while this was to be bound there.
            self.freed();
        }
        self.forwards.entry(key).or_default().binding = Some(Binding::Blocked {
            want,
            retry_at: now + pause,
            tried,
        });
    }

    /// How many forwards wait to be looked at again.
    pub fn waiting(&self) -> usize {
        self.due.len()
    }

    /// An action's result: it is neither bound nor tried any more. Returns what it was.
    pub fn ended(&mut self, key: Key) -> Option<Binding> {
        self.touched.insert(key);
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

    /// Whoever waits for another port than its own may have one now. Where many wait, they find out
    /// when they are due: each of their attempts would have all of them looked at.
    fn freed(&mut self) {
        let next = |auto: &AutoPolicy| auto.on_conflict == OnConflict::Next;
        if self.due.len() <= PROMPT && self.policy.auto.as_ref().is_some_and(next) {
            self.touched.extend(self.due.iter().map(|(_, key)| *key));
        }
    }

    /// Takes what is due among what is touched, and brings the wishes of all of that up to
    /// date. Returns the wishes that differ, as they were.
    fn decide<'a>(
        &mut self,
        heard: &impl Fn(GuestPort) -> Option<(&'a Listener, Instant)>,
        now: Instant,
    ) -> Vec<(Key, Wish)> {
        let due = self.due.iter().take_while(|(at, _)| *at <= now);
        self.touched.extend(due.map(|(_, key)| *key));
        let mut decided = Vec::new();
        let keys: Vec<Key> = self.touched.iter().copied().collect();
        for key in keys {
            let wish = self.wish(key, heard, now);
            let forward = self.forwards.entry(key).or_default();
            let before = std::mem::replace(&mut forward.wish, wish);
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
                let want = |(guest, binds): &(GuestPort, Binds)| Want {
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

    /// What ends the binding of `key`, if it is not as wished.
    fn undo(&self, key: Key) -> Option<Action> {
        let Forward { wish, binding, .. } = self.forwards.get(&key)?;
        let binding = binding.as_ref()?;
        let had = binding.want();
        let wanted = match wish {
            Wish::Want(want) => want == had,
            Wish::Awaiting(_) => true,
            Wish::Nothing => false,
        };
        match binding {
            Binding::Blocked { .. } => (!wanted).then_some(Action::Forget(key)),
            Binding::Bound { at, .. } => {
                // Where it is was right once; another policy may have come since.
                let allowed = wish.want().is_some_and(|want| want.host == *at)
                    || self.territories.iter().any(|t| t.may_bind(had.guest, *at));
                (!(wanted && allowed)).then_some(Action::Unbind(key))
            }
        }
    }

    /// What binds `key`, if it is wanted and there is something to try; else it is looked at
    /// again when it is due. `chosen` are the addresses that are to be bound before it.
    fn bind(&mut self, key: Key, chosen: &mut Reserved, now: Instant) -> Option<Action> {
        let forward = self.forwards.get_mut(&key)?;
        if let Some(at) = forward.due.take() {
            self.due.remove(&(at, key));
        }
        let untried = BTreeSet::new();
        let (due, action) = match (forward.wish, &forward.binding) {
            (Wish::Awaiting(until), _) => (Some(until), None),
            (Wish::Want(_), Some(Binding::Bound { .. })) => (None, None),
            (Wish::Want(want), binding) => {
                let (tried, due) = match binding {
                    Some(Binding::Blocked {
                        tried, retry_at, ..
                    }) if *retry_at > now => (tried, Some(*retry_at)),
                    _ => (&untried, None),
                };
                match candidate(&want, tried, &self.territories, [&self.reserved, chosen]) {
                    Some(at) => (None, Some(Action::Bind { key, want, at })),
                    None => (due, None),
                }
            }
            (Wish::Nothing, _) => {
                self.forwards.remove(&key);
                return None;
            }
        };
        forward.due = due;
        self.due.extend(due.map(|at| (at, key)));
        if let Some(Action::Bind { at, .. }) = action {
            chosen.insert(at);
        }
        action
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
#[cfg(test)]
mod whole;
