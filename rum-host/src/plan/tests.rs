//! Tables and properties of the plan, with a simulated host instead of sockets.

#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, SocketAddr};

use super::*;
use crate::plan::policy::{PROCESS_WAIT, Pattern, Rule, RuleAction};
use crate::plan::spec::Heard;
use proptest::prelude::*;

/// A host on which other programs occupy some ports. It executes plans as the supervisor does, and
/// compares each with [`spec::plan`].
struct Host {
    planner: Planner,
    /// The policy that should apply.
    policy: Policy,
    taken: BTreeSet<u16>,
    heard: Heard,
    actual: BTreeMap<Key, Binding>,
    now: Instant,
    log: Vec<String>,
}

impl Host {
    fn new(range: &str, on_conflict: OnConflict) -> Self {
        let policy = Policy {
            statics: vec![],
            drain: DRAIN,
            keepalive: None,
            auto: Some(AutoPolicy {
                on_conflict,
                bind: IpAddr::from([127, 0, 0, 1]).into(),
                ..AutoPolicy::new(range.parse().unwrap())
            }),
        };
        Self {
            planner: Planner::new(policy.clone()),
            policy,
            taken: BTreeSet::new(),
            heard: Heard::new(),
            actual: BTreeMap::new(),
            now: Instant::now(),
            log: vec![],
        }
    }

    fn bound(&self, addr: HostAddr) -> bool {
        self.taken.contains(&addr.0.port())
            || self
                .actual
                .values()
                .any(|b| matches!(b, Binding::Bound { at, .. } if *at == addr))
    }

    /// Plans and executes until nothing is left to do; returns the next deadline.
    fn settle(&mut self, guest: &[u16]) -> Option<Instant> {
        let listeners: Vec<_> = guest.iter().map(|p| Listener::bare(*p)).collect();
        self.settle_on(&listeners, self.now - PROCESS_WAIT)
    }

    /// The same for listeners that the host learned of at `known_since`.
    fn settle_on(&mut self, listeners: &[Listener], known_since: Instant) -> Option<Instant> {
        let heard = listeners.iter().map(|l| (l.port, (l.clone(), known_since)));
        self.hear(heard.collect())
    }

    /// Touches only the ports that changed, then plans and executes.
    fn hear(&mut self, heard: Heard) -> Option<Instant> {
        let before = std::mem::replace(&mut self.heard, heard);
        for port in before.keys().chain(self.heard.keys()) {
            if before.get(port) != self.heard.get(port) {
                self.planner.touch(GuestPort(*port));
            }
        }
        let heard = |port: GuestPort| self.heard.get(&port.0).map(|(l, since)| (l, *since));
        if self.planner.policy() != &self.policy {
            let old = self.planner.policy().clone();
            let listening: Vec<_> = self.heard.keys().map(|p| GuestPort(*p)).collect();
            let policy = self.policy.clone();
            let differ = self.planner.replace(policy, listening, heard, self.now);
            let expected = spec::differences(&old, &self.policy, &self.heard, self.now);
            assert_eq!(differ, expected);
        }
        for _ in 0..10_000 {
            let heard = |port: GuestPort| self.heard.get(&port.0).map(|(l, since)| (l, *since));
            let plan = self.planner.plan(heard, self.now);
            let (actions, wake) = spec::plan(&self.policy, &self.heard, &self.actual, self.now);
            assert_eq!(plan.actions, actions);
            let again = self.planner.plan(heard, self.now);
            assert_eq!(
                (again.actions, again.wake),
                (actions, plan.wake),
                "idempotent"
            );
            if plan.actions.is_empty() {
                assert_eq!(plan.wake, wake);
                return plan.wake;
            }
            plan.actions.into_iter().for_each(|a| self.execute(a));
        }
        panic!("the plan does not settle: {:?}", self.actual);
    }

    fn execute(&mut self, action: Action) {
        let key = match action {
            Action::Unbind(key) | Action::Forget(key) => {
                self.log.push(format!("- {key:?}"));
                assert_eq!(self.planner.ended(key), self.actual.remove(&key));
                return;
            }
            Action::Bind { key, want, at } if self.bound(at) => {
                // As uneven as measured pauses.
                let pause = CONFLICT_RETRY * (1 + u32::from(at.0.port()) % 2);
                self.planner.blocked(key, want, at, self.now, pause);
                key
            }
            Action::Bind { key, want, at } => {
                self.log.push(format!("+ {key:?} {at}"));
                self.planner.bound(key, want, at);
                key
            }
        };
        let binding = self.planner.binding(key).unwrap();
        self.actual.insert(key, binding.clone());
    }

    fn at(&self, guest: u16) -> Option<u16> {
        match self.actual.get(&Key::Auto(GuestPort(guest)))? {
            Binding::Bound { at, .. } => Some(at.0.port()),
            Binding::Blocked { .. } => None,
        }
    }
}

#[test]
fn listeners_of_the_range_are_bound_and_no_others() {
    let mut host = Host::new("5000-6000", OnConflict::Wait);
    assert_eq!(host.settle(&[80, 4999, 5000, 6000, 6001]), None);
    assert_eq!(
        host.log,
        [
            "+ Auto(GuestPort(5000)) 127.0.0.1:5000",
            "+ Auto(GuestPort(6000)) 127.0.0.1:6000"
        ]
    );
    host.log.clear();
    host.settle(&[6000]);
    assert_eq!(host.log, ["- Auto(GuestPort(5000))"]);
}

#[test]
fn a_taken_port_is_retried_and_taken_when_free() {
    let mut host = Host::new("5000-6000", OnConflict::Wait);
    host.taken.insert(5000);
    let wake = host.settle(&[5000, 5001]).unwrap();
    assert_eq!((host.at(5000), host.at(5001)), (None, Some(5001)));
    assert_eq!(wake, host.now + CONFLICT_RETRY);
    host.taken.clear();
    host.settle(&[5000, 5001]);
    assert_eq!(host.at(5000), None, "not before its time");
    host.now = wake;
    assert_eq!(host.settle(&[5000, 5001]), None);
    assert_eq!(host.at(5000), Some(5000));
}

#[test]
fn next_takes_the_next_free_port_of_the_range_that_nobody_wants() {
    let mut host = Host::new("5000-5004", OnConflict::Next);
    host.taken.extend([5003, 5004]);
    host.settle(&[5001, 5003]);
    assert_eq!(host.at(5003), Some(5000), "round to the first");
    host.settle(&[5001, 5003, 5004]);
    assert_eq!(host.at(5004), Some(5002));
    // No port is free: the forward waits, and takes the first that becomes free.
    let wake = host.settle(&[5000, 5001, 5003, 5004]).unwrap();
    assert_eq!(host.at(5000), None);
    host.now = wake;
    host.settle(&[5000, 5001, 5003]);
    assert_eq!(host.at(5000), Some(5002));
}

#[test]
fn a_static_forward_needs_no_listener_and_survives_it() {
    let mut host = Host::new("5000-5001", OnConflict::Wait);
    let addr = HostAddr("127.0.0.1:8080".parse().unwrap());
    host.policy.statics.push(StaticForward {
        host: addr,
        binds: addr.0.ip().into(),
        guest: Destination::own(80),
        label: None,
    });
    host.settle(&[]);
    assert!(host.bound(addr));
    host.settle(&[80, 5000]);
    host.settle(&[]);
    assert!(host.bound(addr));
    assert_eq!(host.policy.hull().unwrap().to_string(), "80-5001");
}

#[test]
fn a_changed_want_is_bound_anew() {
    let mut host = Host::new("5000-5001", OnConflict::Wait);
    host.settle(&[5000]);
    host.policy.auto.as_mut().unwrap().bind = IpAddr::from([127, 0, 0, 2]).into();
    host.log.clear();
    host.settle(&[5000]);
    assert_eq!(
        host.log,
        [
            "- Auto(GuestPort(5000))",
            "+ Auto(GuestPort(5000)) 127.0.0.2:5000"
        ]
    );
}

proptest! {
    #[test]
    fn the_plan_settles_on_the_wanted_state_inside_the_ranges(
        steps in prop::collection::vec(
            (prop::collection::btree_set(1u16..24, 0..12), prop::collection::btree_set(1u16..24, 0..12)), 1..8),
        next: bool,
    ) {
        let mut host = Host::new("3-8,12-20", if next { OnConflict::Next } else { OnConflict::Wait });
        for (guest, taken) in steps {
            // No other program takes a port that rum has bound.
            host.taken = taken.into_iter().filter(|p| {
                let addr = HostAddr(SocketAddr::new(IpAddr::from([127, 0, 0, 1]), *p));
                !host.actual.values().any(|b| matches!(b, Binding::Bound { at, .. } if *at == addr))
            }).collect();
            host.now += CONFLICT_RETRY * 2;
            let guest: Vec<_> = guest.into_iter().collect();
            host.settle(&guest);
            let ranges = host.policy.auto.as_ref().unwrap().ranges.clone();
            let mut used = BTreeSet::new();
            for (key, binding) in &host.actual {
                let Key::Auto(port) = key else { unreachable!() };
                prop_assert!(guest.contains(&port.0) && ranges.contains(port.0));
                if let Binding::Bound { at, .. } = binding {
                    prop_assert!(ranges.contains(at.0.port()));
                    prop_assert!(!host.taken.contains(&at.0.port()));
                    prop_assert!(used.insert(*at), "bound twice");
                    prop_assert!(next || at.0.port() == port.0);
                }
            }
            for port in guest.iter().filter(|p| ranges.contains(**p)) {
                prop_assert!(host.actual.contains_key(&Key::Auto(GuestPort(*port))));
                // A forward that was moved stays where it is; a forward that waits has a reason.
                let free = !host.taken.contains(port) && !used.iter().any(|a| a.0.port() == *port);
                prop_assert!(!free || host.at(*port).is_some(), "free, wanted and not bound");
            }
            // A settled state stays as it is.
            let log = host.log.len();
            host.settle(&guest);
            prop_assert_eq!(host.log.len(), log);
        }
    }
}

fn rule(guest: &str, process: &str, action: RuleAction) -> Rule {
    Rule {
        guest: (!guest.is_empty()).then(|| guest.parse().unwrap()),
        process: (!process.is_empty()).then(|| Pattern::new(process)),
        command: None,
        action,
        label: None,
        drain: None,
    }
}

fn to(host: u16) -> RuleAction {
    RuleAction::Forward {
        host: Some(host),
        bind: None,
    }
}

fn named(port: u16, name: &str) -> Listener {
    let name = name.to_owned();
    Listener {
        process: Some(rum_shared::listener::Process {
            pid: 1,
            name,
            ..Default::default()
        }),
        ..Listener::bare(port)
    }
}

#[test]
fn next_stays_within_the_block_of_its_port() {
    let mut host = Host::new("5000-5009", OnConflict::Next);
    let auto = host.policy.auto.as_mut().unwrap();
    auto.exclude = "5001".parse().unwrap();
    auto.rules = vec![
        rule("5002-5003", "", to(15_000)),
        rule("5004", "", RuleAction::Ignore),
    ];
    host.taken.extend([5000, 15_001]);
    host.settle(&[5000, 5001, 5003, 5004, 5005]);
    assert_eq!(host.at(5000), Some(5006), "not 5001 to 5005");
    assert_eq!(host.at(5003), Some(15_000));
    assert_eq!((host.at(5001), host.at(5004)), (None, None));
}

#[test]
fn a_port_that_was_moved_moves_again_when_its_place_is_no_longer_allowed() {
    let mut host = Host::new("5000-5009", OnConflict::Next);
    host.taken.insert(5000);
    host.settle(&[5000, 5005]);
    assert_eq!(host.at(5000), Some(5001));
    host.policy.auto.as_mut().unwrap().exclude = "5001".parse().unwrap();
    host.log.clear();
    host.settle(&[5000, 5005]);
    assert_eq!(
        host.log,
        [
            "- Auto(GuestPort(5000))",
            "+ Auto(GuestPort(5000)) 127.0.0.1:5002"
        ]
    );
}

#[test]
fn a_late_name_moves_a_forward_and_a_lost_one_does_not() {
    let mut host = Host::new("5000-5009", OnConflict::Wait);
    host.policy.auto.as_mut().unwrap().rules = vec![rule("5000-5009", "postgres*", to(15_000))];
    let since = host.now;
    let nameless = [Listener::bare(5000)];
    assert_eq!(host.settle_on(&nameless, since), Some(since + PROCESS_WAIT));
    assert_eq!(host.log, [""; 0], "it waits");
    host.now += PROCESS_WAIT;
    assert_eq!(host.settle_on(&nameless, since), None);
    assert_eq!(host.at(5000), Some(5000), "long enough");
    host.settle_on(&[named(5000, "postgres")], since);
    assert_eq!(host.at(5000), Some(15_000));
    // The agent was restarted, and has not looked up the name yet.
    let again = host.now;
    host.log.clear();
    host.settle_on(&nameless, again);
    host.settle_on(&[named(5000, "postgres")], again);
    assert_eq!(host.log, [""; 0], "it stays meanwhile");
    host.settle_on(&[named(5000, "nginx")], again);
    assert_eq!(host.at(5000), Some(5000));
}

#[test]
fn another_policy_touches_only_what_differs() {
    let mut host = Host::new("5000-5009", OnConflict::Wait);
    let listeners = [5000, 5001, 5002];
    host.settle(&listeners);
    let auto = host.policy.auto.as_mut().unwrap();
    auto.drain = Some(Duration::ZERO);
    auto.ranges = "5000-5001,7000-7009".parse().unwrap();
    auto.rules = vec![rule("5001", "", to(15_001))];
    host.log.clear();
    host.settle(&listeners);
    assert_eq!(
        host.log,
        [
            "- Auto(GuestPort(5001))",
            "- Auto(GuestPort(5002))",
            "+ Auto(GuestPort(5001)) 127.0.0.1:15001"
        ]
    );
}

#[test]
fn addresses_beside_follow_the_one_that_decides() {
    let mut host = Host::new("5000-5009", OnConflict::Next);
    host.policy.auto.as_mut().unwrap().bind = Binds::LOCALHOST;
    host.taken.insert(5000);
    host.settle(&[5000]);
    let [v4, v6] = ["127.0.0.1:5001", "[::1]:5001"];
    let (key, beside) = ("Auto(GuestPort(5000))", "AutoBeside(GuestPort(5000), ::1)");
    let bound = [format!("+ {key} {v4}"), format!("+ {beside} {v6}")];
    assert_eq!(host.log[host.log.len() - 2..], bound);
    host.log.clear();
    host.settle(&[]);
    assert_eq!(host.log, [format!("- {key}"), format!("- {beside}")]);
}

/// What happens between two plans.
#[derive(Debug, Clone)]
enum Step {
    /// A port opens, gets another name, or is reported anew.
    Listens(u16, Option<&'static str>),
    Closes(u16),
    /// Another program takes a host port, or releases it.
    Takes(u16),
    Passes(u64),
    Policy(Box<Policy>),
}

fn ranges() -> impl Strategy<Value = String> {
    prop_oneof![Just("3-8,12-20"), Just("3-20"), Just("5-9"), Just("12-14")].prop_map(Into::into)
}

fn any_policy() -> impl Strategy<Value = Policy> {
    let process = prop_oneof![Just(""), Just("a"), Just("b*")];
    let action = prop_oneof![
        Just(RuleAction::Ignore),
        Just(to(12)),
        Just(to(3)),
        Just(RuleAction::Forward {
            host: None,
            bind: Some(IpAddr::from([127, 0, 0, 2]).into())
        }),
    ];
    let rules = (
        prop_oneof![Just("4-6"), Just("5"), Just("13-20")],
        process,
        action,
    )
        .prop_map(|(guest, process, action)| rule(guest, process, action));
    let statics = prop::collection::btree_map(3u16..21, 1u16..21, 0..3);
    let auto = (ranges(), prop::option::of(ranges()), any::<bool>());
    (
        prop::option::weighted(0.9, auto),
        prop::collection::vec(rules, 0..4),
        statics,
    )
        .prop_map(|(auto, rules, statics)| Policy {
            auto: auto.map(|(range, exclude, next)| AutoPolicy {
                on_conflict: if next {
                    OnConflict::Next
                } else {
                    OnConflict::Wait
                },
                exclude: exclude.map(|e| e.parse().unwrap()).unwrap_or_default(),
                rules,
                ..AutoPolicy::new(range.parse().unwrap())
            }),
            statics: statics
                .into_iter()
                .map(|(host, guest)| StaticForward {
                    host: HostAddr(SocketAddr::from(([127, 0, 0, 1], host))),
                    binds: match host % 2 {
                        0 => Binds::LOCALHOST,
                        _ => IpAddr::from([127, 0, 0, 1]).into(),
                    },
                    guest: Destination::own(guest),
                    label: None,
                })
                .collect(),
            drain: DRAIN,
            keepalive: None,
        })
}

fn step() -> impl Strategy<Value = Step> {
    let name = prop_oneof![Just(None), Just(Some("a")), Just(Some("bb"))];
    prop_oneof![
        6 => (1u16..22, name).prop_map(|(port, name)| Step::Listens(port, name)),
        4 => (1u16..22).prop_map(Step::Closes),
        4 => (1u16..22).prop_map(Step::Takes),
        3 => (0u64..600).prop_map(Step::Passes),
        1 => any_policy().prop_map(|policy| Step::Policy(Box::new(policy))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    /// [`Host::hear`] compares each plan with one that examines everything.
    #[test]
    fn the_plan_is_that_of_a_look_at_everything(
        policy in any_policy(),
        looks in prop::collection::vec(prop::collection::vec(step(), 1..5), 1..24),
    ) {
        let mut host = Host::new("1", OnConflict::Wait);
        host.policy = policy;
        let mut wake = host.settle(&[]);
        for steps in looks {
            let mut heard = host.heard.clone();
            for step in steps {
                match step {
                    Step::Listens(port, name) => {
                        let listener = name.map_or(Listener::bare(port), |name| named(port, name));
                        heard.insert(port, (listener, host.now));
                    }
                    Step::Closes(port) => drop(heard.remove(&port)),
                    Step::Takes(port) => {
                        if !host.taken.remove(&port) {
                            host.taken.insert(port);
                        }
                    }
                    Step::Passes(ms) => host.now += Duration::from_millis(ms),
                    Step::Policy(policy) => host.policy = *policy,
                }
            }
            // Sometimes exactly at the deadline.
            if let Some(at) = wake && at < host.now {
                host.now = at;
            }
            wake = host.hear(heard);
        }
        // Without a policy and listeners, the planner keeps no state.
        host.policy = Policy::default();
        host.hear(Heard::new());
        prop_assert!(host.planner.forwards.is_empty() && host.planner.due.is_empty());
        prop_assert!(host.planner.reserved.is_empty());
        prop_assert!(host.planner.touched.is_empty() && host.planner.open.is_empty());
    }
}
