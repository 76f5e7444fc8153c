//! What a forward has done so far, for `rum ports`. Written by its connections, read at any time.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rum_shared::bytes::relay::Counters;

use super::dialer::Refusal;

/// See the module.
#[derive(Debug, Default)]
pub struct Stats {
    /// Connections that live.
    pub active: AtomicU32,
    /// Those of them that the guest's program has not accepted yet.
    pub waiting: AtomicU32,
    /// Those of them that have waited for a second and more.
    pub slow: AtomicU32,
    /// Those of them that the agent has no room for.
    pub unserved: AtomicU32,
    /// Connections accepted.
    pub accepted: AtomicU64,
    /// Connections that could not be carried to the guest's program, and were reset.
    pub refused: AtomicU64,
    /// Whether connections wait because there is no descriptor or memory to accept them with.
    pub exhausted: AtomicBool,
    /// Bytes relayed.
    pub bytes: Counters,
    /// What became of the last client.
    last: Mutex<Last>,
}

/// What became of the last client whose connection was asked for since the guest's port changed hands.
#[derive(Debug, Default)]
struct Last {
    turn: Turn,
    outcome: Option<Result<(), Refusal>>,
}

/// How often the guest's port has changed hands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Turn(u64);

impl Stats {
    /// Somebody else listens on the guest's port, or nobody: what was before says nothing about it.
    pub fn changed_hands(&self) {
        let mut last = self.last();
        last.turn.0 += 1;
        last.outcome = None;
    }

    /// For a connection that is asked for now.
    pub(crate) fn turn(&self) -> Turn {
        self.last().turn
    }

    /// A client, whose connection was asked for in `turn`, has got it, or was reset.
    pub(crate) fn ended(&self, turn: Turn, outcome: Result<(), Refusal>) {
        if outcome.is_err() {
            self.refused.fetch_add(1, Relaxed);
        }
        let mut last = self.last();
        if last.turn == turn {
            last.outcome = Some(outcome);
        }
    }

    /// Why the last client was reset, if it was.
    pub fn last_refusal(&self) -> Option<Refusal> {
        self.last().outcome?.err()
    }

    /// Whether the last client was served.
    pub fn serves(&self) -> bool {
        self.last().outcome == Some(Ok(()))
    }

    fn last(&self) -> MutexGuard<'_, Last> {
        // Nothing can panic under the lock.
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts one for as long as it lives.
pub(super) struct Counted<'a>(&'a AtomicU32);

impl<'a> Counted<'a> {
    pub(super) fn new(counter: &'a AtomicU32) -> Self {
        counter.fetch_add(1, Relaxed);
        Self(counter)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
