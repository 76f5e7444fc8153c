//! Finds the processes that hold occupied host ports (step 4): beside the loop, in one search for
//! all.
//!
//! A search reads the descriptors of every process, which takes milliseconds, and more on a busy
//! machine. So one search runs at a time and covers all requests made meanwhile, and the pause
//! after it is [`SHARE`] times its duration. Known holders are checked again, as a port can change
//! hands while it stays occupied. That check costs one dump of the listening sockets, unless
//! something differs.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{Context, Done, ReportedBlock, Supervisor};
use crate::clock;
use crate::forward::bind_failure::BindFailure;
use crate::forward::holder;
use crate::forward::holder::Taken;
use crate::plan::{AT_ONCE, Binding, HostAddr, Key};

/// Searches take at most this fraction of a core (1/N).
const SHARE: u32 = 20;
/// Known holders are checked again after this time, or later where that would be too much work.
const AGAIN: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Holders {
    /// The occupied addresses, with their holders as far as known.
    taken: BTreeMap<Key, (HostAddr, Option<Taken>)>,
    /// Whether an address was added that no search has covered.
    asked: bool,
    /// Whether a search runs, or its results are not handled yet.
    looking: bool,
    /// Results that are not reported yet.
    found: Vec<(Key, HostAddr, Taken)>,
    /// The earliest start of the next search.
    not_before: Option<Instant>,
    /// When to check known holders again.
    again: Option<Instant>,
}

impl Holders {
    /// Requests a search: `at`, which `key` wants, is occupied.
    pub fn ask(&mut self, key: Key, at: HostAddr) {
        self.taken.insert(key, (at, None));
        self.asked = true;
    }

    /// Notes that `at` is occupied again, by `who` if a search has found the holder before.
    pub fn know(&mut self, key: Key, at: HostAddr, who: Option<Taken>) {
        self.asked |= who.is_none();
        self.taken.insert(key, (at, who));
    }

    /// Removes `key`. Returns the holder, if known.
    pub fn forget(&mut self, key: Key) -> Option<Taken> {
        self.taken.remove(&key)?.1
    }

    /// When to search, or to handle results.
    pub fn wake(&self) -> Option<Instant> {
        if !self.found.is_empty() {
            return Some(clock::now());
        }
        match (self.taken.is_empty(), self.looking, self.asked) {
            (true, ..) | (_, true, _) => None,
            (.., true) => self.not_before,
            (.., false) => self.again,
        }
    }

    /// The addresses to search for, if a search is due.
    fn due(&mut self, now: Instant) -> Option<Vec<(Key, HostAddr, Option<Taken>)>> {
        let wanted = !self.taken.is_empty() && !self.looking;
        let is_over = |at: Option<Instant>| at.is_none_or(|at| at <= now);
        let due = if self.asked {
            is_over(self.not_before)
        } else {
            is_over(self.again)
        };
        if !(wanted && due) {
            return None;
        }
        (self.asked, self.looking) = (false, true);
        let all = self.taken.iter();
        Some(
            all.map(|(key, (at, who))| (*key, *at, who.clone()))
                .collect(),
        )
    }

    /// Notes the results of a search and its duration.
    pub fn looked(&mut self, found: Vec<(Key, HostAddr, Taken)>, took: Duration, now: Instant) {
        let pause = took * SHARE;
        self.looking = !found.is_empty();
        self.found = found;
        self.not_before = Some(now + pause);
        self.again = Some(now + pause.max(AGAIN));
    }
}

impl Supervisor {
    /// Starts a search for the holders of occupied ports, if one is due.
    pub(super) fn look_for_holders(&mut self, context: &mut Context<'_>) {
        let Some(wanted) = self.holders.due(clock::now()) else {
            return;
        };
        context.tasks.spawn(async move {
            let started = clock::now();
            let look = tokio::task::spawn_blocking(move || holder::holders(wanted));
            let found = look.await.unwrap_or_default();
            let took = clock::now() - started;
            Done::Holders { found, took }
        });
    }

    /// Handles the results of a search, of at most [`AT_ONCE`] forwards at a time.
    pub(super) fn tell_who_has_them(&mut self, context: &mut Context<'_>) {
        let left = self.holders.found.len().saturating_sub(AT_ONCE);
        for (key, at, taken) in self.holders.found.split_off(left) {
            // The forward was bound or given up meanwhile, or is blocked at another address: skip
            // it.
            let Some(entry) = self.holders.taken.get_mut(&key).filter(|(a, _)| *a == at) else {
                continue;
            };
            let Some(Binding::Blocked { want, .. }) = self.planner.binding(key) else {
                continue;
            };
            let guest = want.guest;
            let (holder, by) = (taken.holder.clone(), taken.by);
            let is_first = entry.1.replace(taken).is_none();
            let reason = BindFailure::Taken { holder, by };
            if is_first {
                self.tell_blocked(key, at, guest, reason, context);
                continue;
            }
            let reason = Some(reason);
            self.told.insert(key, ReportedBlock { at, reason });
            self.notes.port(guest.port);
        }
        if left == 0 {
            self.holders.looking = false;
        }
    }
}
