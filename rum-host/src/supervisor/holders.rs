//! Who has the host ports that are taken (step 4): found out beside the loop, in one look for all.
//!
//! A look reads the descriptors of every process, which takes milliseconds and on a busy machine
//! more. So there is one at a time, for whatever was asked meanwhile, and the pause after it is as
//! long as [`SHARE`] of them. What is known is looked at again: a port can get another holder while
//! it stays taken. That costs one dump of the listening sockets, unless something differs.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{Context, Done, ReportedBlock, Supervisor};
use crate::clock;
use crate::forward::bind_failure::BindFailure;
use crate::forward::holder;
use crate::forward::holder::Taken;
use crate::plan::{AT_ONCE, Binding, HostAddr, Key};

/// Looks take at most this part of a core.
const SHARE: u32 = 20;
/// What is known is looked at again this often, or less where that would be too much.
const AGAIN: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Holders {
    /// The addresses that are taken, and by whom as far as that is known.
    taken: BTreeMap<Key, (HostAddr, Option<Taken>)>,
    /// There is one that nobody has looked for.
    asked: bool,
    /// One looks at this moment, or what it has found is told.
    looking: bool,
    /// What has been found and is not told yet.
    found: Vec<(Key, HostAddr, Taken)>,
    /// When one may look next.
    not_before: Option<Instant>,
    /// When what is known is looked at again.
    again: Option<Instant>,
}

impl Holders {
    /// `at` is taken, which `key` should have.
    pub fn ask(&mut self, key: Key, at: HostAddr) {
        self.taken.insert(key, (at, None));
        self.asked = true;
    }

    /// `at` is taken, as before, when that was by `who`, if anybody had looked.
    pub fn know(&mut self, key: Key, at: HostAddr, who: Option<Taken>) {
        self.asked |= who.is_none();
        self.taken.insert(key, (at, who));
    }

    /// Nobody wants to know any more. Who had it, as far as that is known.
    pub fn forget(&mut self, key: Key) -> Option<Taken> {
        self.taken.remove(&key)?.1
    }

    /// When to look.
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

    /// What to look at, if it is time to.
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

    /// Somebody looked, for so long, and has found that.
    pub fn looked(&mut self, found: Vec<(Key, HostAddr, Taken)>, took: Duration, now: Instant) {
        let pause = took * SHARE;
        self.looking = !found.is_empty();
        self.found = found;
        self.not_before = Some(now + pause);
        self.again = Some(now + pause.max(AGAIN));
    }
}

impl Supervisor {
    /// Has somebody look for who has the taken ports, if it is time to.
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

    /// Takes over what a look has found, of at most [`AT_ONCE`] forwards in one go.
    pub(super) fn tell_who_has_them(&mut self, context: &mut Context<'_>) {
        let left = self.holders.found.len().saturating_sub(AT_ONCE);
        for (key, at, taken) in self.holders.found.split_off(left) {
            // Bound or given up meanwhile, or blocked elsewhere: no longer news.
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
