//! Counters of a forward, for `rum ports`. Its connections write them; they can be read at any
//! time.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rum_shared::bytes::relay::Counters;

use super::refusal::Refusal;

/// See the module.
#[derive(Debug, Default)]
pub struct Stats {
    /// Open connections.
    pub active: AtomicU32,
    /// Open connections that the guest's program has not accepted yet.
    pub waiting: AtomicU32,
    /// Open connections that have waited for a second or more.
    pub slow: AtomicU32,
    /// Open connections for which the agent has no descriptors or memory.
    pub unserved: AtomicU32,
    /// Connections accepted.
    pub accepted: AtomicU64,
    /// Connections that were reset because the guest's program could not be reached.
    pub refused: AtomicU64,
    /// Whether connections wait because this machine lacks descriptors or memory to accept them.
    pub exhausted: AtomicBool,
    /// Bytes relayed.
    pub bytes: Counters,
    /// Outcome of the last client.
    last: Mutex<Last>,
}

/// Outcome of the last client whose connection was requested since the listener on the guest's port
/// last changed.
#[derive(Debug, Default)]
struct Last {
    turn: Turn,
    outcome: Option<Result<(), Refusal>>,
}

/// Number of times that the listener on the guest's port has changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Turn(u64);

impl Stats {
    /// The guest's port has another listener or none: earlier outcomes say nothing about it.
    pub fn changed_hands(&self) {
        let mut last = self.last();
        last.turn.0 += 1;
        last.outcome = None;
    }

    /// The turn of a connection that is requested now.
    pub(crate) fn turn(&self) -> Turn {
        self.last().turn
    }

    /// Notes the outcome for a client whose connection was requested in `turn`: connected or reset.
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

/// Counts one for as long as it exists.
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
