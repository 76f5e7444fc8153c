//! The cost of thousands of forwards whose ports are in use, counted in steps instead of time.

#![allow(clippy::unwrap_used)]

use super::*;

/// Bind attempts and plans.
#[derive(Debug, Default)]
struct Steps {
    attempts: usize,
    plans: usize,
}

/// The steps until the first `guests` ports of a range of `size` have nothing left to try. All
/// ports of the range are in use on the host.
fn round(guests: u16, size: u16) -> Steps {
    let first = 1000;
    let range = format!("{first}-{}", first + size - 1);
    let policy = Policy {
        auto: Some(AutoPolicy {
            on_conflict: OnConflict::Next,
            bind: IpAddr::from([127, 0, 0, 1]).into(),
            ..AutoPolicy::new(range.parse().unwrap())
        }),
        ..Policy::default()
    };
    let now = Instant::now();
    let listeners = (first..first + guests).map(|port| (port, Listener::bare(port)));
    let listeners: BTreeMap<u16, Listener> = listeners.collect();
    let mut planner = Planner::new(policy);
    listeners.keys().for_each(|p| planner.touch(GuestPort(*p)));
    let mut steps = Steps::default();
    loop {
        let plan = planner.plan(|port| listeners.get(&port.0).map(|l| (l, now)), now);
        steps.plans += 1;
        assert!(plan.actions.len() <= AT_ONCE && plan.decided.len() <= AT_ONCE);
        if plan.actions.is_empty() && !plan.more {
            assert_eq!(planner.waiting(), usize::from(guests));
            return steps;
        }
        for action in plan.actions {
            let Action::Bind { key, want, at } = action else {
                panic!("nothing is bound");
            };
            steps.attempts += 1;
            planner.blocked(key, want, at, now, CONFLICT_RETRY);
        }
    }
}

#[test]
fn where_many_look_for_a_port_each_taken_one_is_tried_once() {
    let (guests, size) = (5000, 19_000);
    let steps = round(guests, size);
    let few = PROMPT * MAX_NEXT_TRIES;
    // Each forward's own port, and the ports that no forward wants.
    assert!(steps.attempts <= usize::from(size) + few, "{steps:?}");
}

#[test]
fn a_round_is_as_many_short_plans_as_there_are_forwards() {
    let many = round(19_000, 19_000);
    assert_eq!(many.attempts, 19_000, "all others are spoken for");
    // To decide, to try, and to see that nothing else is left.
    assert!(many.plans <= 4 * 19_000 / AT_ONCE, "{many:?}");
}
