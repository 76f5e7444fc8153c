//! Details of step 4: the queue of forwards that need an action, and the next action of each.
//!
//! A forward is examined when something about it changes, in an order that does not depend on the
//! others.

use std::collections::BTreeSet;
use std::time::Instant;

use super::candidate::{Reserved, candidate};
use super::{AT_ONCE, Action, Binding, Forward, Key, Planner, Wish};

/// The next step for a forward. The order matters: steps that free a port come before those that
/// take one, and new forwards before those that wait anyway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Next {
    /// Unbind or forget it.
    Undo,
    /// Bind it, if possible.
    Bind,
    /// Bind it, if possible; an earlier attempt failed.
    Again,
}

impl Planner {
    /// The first [`AT_ONCE`] forwards of the queue.
    pub(super) fn open(&self) -> impl Iterator<Item = (Next, Key)> {
        self.open.iter().take(AT_ONCE).copied()
    }

    /// The bind actions for the queue. Forwards without an action leave it.
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

    /// Queues `key` after a change that does not concern its wish, or after its wish was updated.
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

    /// The action that ends the binding of `key`, if the binding is not as wished.
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
                // The address was allowed when it was bound; the policy may have changed since.
                let allowed = wish.want().is_some_and(|want| want.host == *at)
                    || self.port_blocks.iter().any(|t| t.may_bind(had.guest, *at));
                (!(wanted && allowed)).then_some(Action::Unbind(key))
            }
        }
    }

    /// The action that binds `key`, if it is wanted and an address is left to try. Otherwise `key`
    /// is examined again when it is due. `chosen` are the addresses that earlier actions of this
    /// plan bind.
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
                let reserved = [&self.reserved, &*chosen, self.taken.ports()];
                let reserved = if crowded {
                    &reserved[..]
                } else {
                    &reserved[..2]
                };
                match candidate(&want, tried, &self.port_blocks, reserved) {
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
