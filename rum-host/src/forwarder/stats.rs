//! What a forward has done so far, for `rum ports`. Written by its connections, read at any time.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

use rum_shared::relay::Counters;

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
    /// Why the last of `refused` was.
    refusal: Mutex<Option<Refusal>>,
}

impl Stats {
    /// A client was reset.
    pub(super) fn refuse(&self, why: Refusal) {
        self.refused.fetch_add(1, Relaxed);
        // Nothing can panic under the lock.
        *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
    }

    /// Why the last client that was reset was.
    pub fn last_refusal(&self) -> Option<Refusal> {
        *self.refusal.lock().unwrap_or_else(PoisonError::into_inner)
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
