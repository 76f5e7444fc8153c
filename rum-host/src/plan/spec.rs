//! The specification of the [`Planner`](super::Planner): plans by examining everything, without any
//! memory of earlier plans.

use super::candidate::{Reserved, candidate};
use super::*;

/// The guest's listeners, and since when the host knows each.
pub(super) type Heard = BTreeMap<u16, (Listener, Instant)>;

/// The forwards that should exist, and those that are decided at a later moment.
fn desired(
    policy: &Policy,
    heard: &Heard,
    now: Instant,
) -> (BTreeMap<Key, Want>, BTreeMap<Key, Instant>) {
    let (mut wants, mut awaiting) = (BTreeMap::new(), BTreeMap::new());
    for forward in &policy.statics {
        let want = Want {
            guest: forward.guest,
            host: forward.host,
            binds: forward.binds,
            on_conflict: OnConflict::Wait,
        };
        wants.insert(Key::Static(forward.host), want);
    }
    for (listener, known_since) in heard.values() {
        let key = Key::Auto(GuestPort(listener.port));
        match policy.judge(listener, *known_since, now) {
            Verdict::Forward(want) => drop(wants.insert(key, want)),
            Verdict::AwaitingProcess { until } => drop(awaiting.insert(key, until)),
            Verdict::Ignored { .. } | Verdict::OutOfRange | Verdict::Unreachable { .. } => {}
        }
    }
    (wants, awaiting)
}

/// Number of forwards that only one of the two policies wants, or that differ.
pub(super) fn differences(a: &Policy, b: &Policy, heard: &Heard, now: Instant) -> usize {
    let (a, b) = (desired(a, heard, now).0, desired(b, heard, now).0);
    let keys: BTreeSet<&Key> = a.keys().chain(b.keys()).collect();
    keys.iter().filter(|key| a.get(key) != b.get(key)).count()
}

/// The actions, and when to ask again if there are none.
pub(super) fn plan(
    policy: &Policy,
    heard: &Heard,
    actual: &BTreeMap<Key, Binding>,
    now: Instant,
) -> (Vec<Action>, Option<Instant>) {
    let (mut wants, awaiting) = desired(policy, heard, now);
    for (key, binding) in actual.iter().filter(|(key, _)| key.address().is_none()) {
        for ip in binding.want().binds.beside() {
            wants.extend(binding.beside(ip).map(|want| (key.beside(ip), want)));
        }
    }
    let blocks = policy.auto.as_ref().map(AutoPolicy::port_blocks);
    let blocks = blocks.unwrap_or_default();
    let mut actions = Vec::new();
    for (key, binding) in actual {
        let had = binding.want();
        let wanted = match wants.get(key) {
            Some(want) => want == had,
            None => awaiting.contains_key(key),
        };
        let allowed = |at: HostAddr| {
            wants.get(key).is_some_and(|want| want.host == at)
                || blocks.iter().any(|t| t.may_bind(had.guest, at))
        };
        match binding {
            Binding::Bound { at, .. } if wanted && allowed(*at) => {}
            Binding::Bound { .. } => actions.push(Action::Unbind(*key)),
            Binding::Blocked { .. } if wanted => {}
            Binding::Blocked { .. } => actions.push(Action::Forget(*key)),
        }
    }
    if !actions.is_empty() {
        return (actions, None);
    }
    let mut wake = awaiting.values().min().copied();
    let mut reserved = Reserved::default();
    wants.values().for_each(|want| reserved.insert(want.host));
    for binding in actual.values() {
        if let Binding::Bound { at, .. } = binding {
            reserved.insert(*at);
        }
    }
    let (untried, nothing) = (BTreeSet::new(), Reserved::default());
    // New forwards come before those that wait anyway.
    let (again, new): (Vec<_>, Vec<_>) =
        wants.iter().partition(|(key, _)| actual.contains_key(key));
    for (key, want) in new.into_iter().chain(again) {
        let (tried, retry_at) = match actual.get(key) {
            Some(Binding::Bound { .. }) => continue,
            Some(Binding::Blocked {
                tried, retry_at, ..
            }) if *retry_at > now => (tried, Some(*retry_at)),
            Some(Binding::Blocked { .. }) | None => (&untried, None),
        };
        match candidate(want, tried, &blocks, &[&reserved, &nothing]) {
            Some(at) => {
                reserved.insert(at);
                let (key, want) = (*key, *want);
                actions.push(Action::Bind { key, want, at });
            }
            None => wake = wake.into_iter().chain(retry_at).min(),
        }
    }
    let wake = wake.filter(|_| actions.is_empty());
    (actions, wake)
}
