//! Details of step 4: the forwards about which something is to be done, and what.
//!
//! Each is looked at when something about it differs, in an order that needs no look at the others.

use std::collections::BTreeSet;
use std::time::Instant;

use super::candidate::{Reserved, candidate};
use super::{AT_ONCE, Action, Binding, Forward, Key, Planner, Wish};

/// What comes next for a forward, in this order: what frees a port before what takes one, and what is
/// new before what waits anyway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Next {
    /// It has to go.
    Undo,
    /// Perhaps it is to be bound.
    Bind,
    /// Perhaps it is to be bound; it was tried before.
    Again,
}

impl Planner {
    /// Those that are looked at in one go.
    pub(super) fn open(&self) -> impl Iterator<Item = (Next, Key)> {
        self.open.iter().take(AT_ONCE).copied()
    }

    /// What binds those that are open. The others are no longer.
    pub(super) fn choose(&mut self, now: Instant) -> Vec<Action> {
        let mut chosen = Reserved::default();
        let mut actions = Vec::new();
        for (next, key) in self.open().collect::<Vec<_>>() {
            if let Some(action) = self.bind(key, &mut chosen, now) {
                actions.push(action);
                continue;
            }
            self.open.remove(&(next, key));
            if let Some(forward) = self.forwards.get_mut(&key) {
                forward.open = None;
            }
        }
        actions
    }

    /// Something about `key` differs, but not what is wished.
    pub(super) fn reopen(&mut self, key: Key) {
        let next = match self.binding(key) {
            Some(_) if self.undo(key).is_some() => Next::Undo,
            Some(Binding::Blocked { .. }) => Next::Again,
            Some(Binding::Bound { .. }) | None => Next::Bind,
        };
        let Some(forward) = self.forwards.get_mut(&key) else {
            return;
        };
        let before = forward.open.replace(next);
        if before == Some(next) {
            return;
        }
        if let Some(before) = before {
            self.open.remove(&(before, key));
        }
        self.open.insert((next, key));
    }

    /// What ends the binding of `key`, if it is not as wished.
    pub(super) fn undo(&self, key: Key) -> Option<Action> {
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
                    || self.port_blocks.iter().any(|t| t.may_bind(had.guest, *at));
                (!(wanted && allowed)).then_some(Action::Unbind(key))
            }
        }
    }

    /// What binds `key`, if it is wanted and there is something to try; else it is looked at
    /// again when it is due. `chosen` are the addresses that are to be bound before it.
    fn bind(&mut self, key: Key, chosen: &mut Reserved, now: Instant) -> Option<Action> {
        let crowded = self.is_crowded();
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
                let spoken_for = [&self.reserved, &*chosen, self.taken.ports()];
                let spoken_for = if crowded {
                    &spoken_for[..]
                } else {
                    &spoken_for[..2]
                };
                match candidate(&want, tried, &self.port_blocks, spoken_for) {
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
