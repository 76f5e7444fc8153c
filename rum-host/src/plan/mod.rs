//! Step 4 of the data flow: what should be bound on the host, compared with what is.
//!
//! A [`Planner`] knows for each forward what is wished ([`Wish`]) and what is bound
//! ([`Binding`]), and which forwards may differ since it last looked: those it was told about
//! ([`Planner::touch`], the results of actions, another policy) and those whose time has come.
//! Only these are looked at, so one change costs the same however many ports there are. The
//! executor (the supervisor) has no choices left: it carries the actions out, reports each
//! result, and asks again until the plan is empty.
//!
//! A plan is for at most [`AT_ONCE`] forwards, so that whoever asks for it never waits for thousands: all
//! wishes are known before the first port is bound, and then each forward is looked at as often as
//! something about it differs, however many there are.
//!
//! What is looked at twice gives the same plan, and the plan is the one that a look at
//! everything would give, as long as no more than [`PROMPT`] forwards wait for a port; the tests have
//! that look written down, and compare.
//!
//! Invariants: pure and deterministic (no clock, no socket: `now` comes in, the next deadline
//! goes out); actions are sorted, what frees a port before what takes one; a plan for a state
//! that is as wanted is empty; nothing is ever bound but a static forward's own address or one
//! of a [`PortBlock`], and the addresses beside those while they are bound; what awaits the name of its
//! process stays as it is.

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

/// A host port that is taken is tried again after this at the earliest: soon enough that a user who
/// frees it does not wait. Where many are taken, whoever tries them waits longer.
pub const CONFLICT_RETRY: Duration = Duration::from_millis(250);
/// With [`OnConflict::Next`] at most this many ports are tried in one go.
pub const MAX_NEXT_TRIES: usize = 64;
/// At most this many forwards are looked at before their time because a host port became free. Where
/// more wait, they tell each other which ports are taken.
const PROMPT: usize = 64;
/// The forwards of one plan: some milliseconds of work.
pub const AT_ONCE: usize = 256;

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
    /// There are others to look at: ask again, also when there is nothing to do now.
    pub more: bool,
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
    /// Its entry among those that are open.
    open: Option<Next>,
}

/// See the module. `heard` tells, wherever it is asked for, what listens on a guest port and
/// since when the host knows: it must answer the same until the port is touched.
#[derive(Debug)]
pub struct Planner {
    policy: Policy,
    /// Those of the policy.
    port_blocks: Vec<PortBlock>,
    /// The static forwards of the policy.
    statics: BTreeMap<HostAddr, (Destination, Binds)>,
    /// None of them is [`Wish::Nothing`] without a binding once it was looked at.
    forwards: BTreeMap<Key, Forward>,
    reserved: Reserved,
    /// Their wish may be another one.
    touched: BTreeSet<Key>,
    /// Their wish is known, and what is to be done about it is not; see [`Next`].
    open: BTreeSet<(Next, Key)>,
    /// To be looked at, then.
    due: BTreeSet<(Instant, Key)>,
    /// Ports that were found taken, while many look for one.
    taken: Taken,
}

impl Planner {
    /// Nothing listens and nothing is bound.
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

    /// What takes the host closer to what is wished. Ask again once each action was carried
    /// out and its result reported.
    pub fn plan<'a>(
        &mut self,
        heard: impl Fn(GuestPort) -> Option<(&'a Listener, Instant)>,
        now: Instant,
    ) -> Plan {
        let decided = self.decide(&heard, now, AT_ONCE);
        let decided = decided.into_iter().map(|(key, _)| key).collect();
        let mut actions = Vec::new();
        // What others want is known before anything is bound.
        if self.touched.is_empty() {
            // What has to go first may free what others wait for: that is asked again after it.
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
        let mut tried = match self.end(key) {
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

    /// How many forwards wait to be looked at again, or are about to be.
    pub fn waiting(&self) -> usize {
        self.due.len() + self.open.len()
    }

    fn is_crowded(&self) -> bool {
        self.waiting() > PROMPT
    }

    /// An action's result: it is neither bound nor tried any more. Returns what it was.
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

    /// Whoever waits for another port than its own may have one now. Where many wait, they find out
    /// when they are due: each of their attempts would have all of them looked at.
    fn freed(&mut self) {
        let next = |auto: &AutoPolicy| auto.on_conflict == OnConflict::Next;
        if !self.is_crowded() && self.policy.auto.as_ref().is_some_and(next) {
            let waiting: Vec<Key> = self.due.iter().map(|(_, key)| *key).collect();
            waiting.into_iter().for_each(|key| self.reopen(key));
        }
    }

    /// Takes what is due, and brings the wishes of at most `limit` of what is touched up to date. Returns the
    /// wishes that differ, as they were.
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
