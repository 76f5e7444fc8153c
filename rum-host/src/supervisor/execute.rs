//! The executor: carries the plan out on the host, and has no choices of its own (steps 4 and 5).

use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use super::publish::Drain;
use super::{AgentState, Done, GRACE, Shell, Supervisor, Told};
use crate::clock;
use crate::forwarder::{BindError, Forwarder};
use crate::host_port;
use crate::notice::{BlockReason, Notice};
use crate::plan::{Action, Binding, HostAddr, Key, OnConflict, Want};

impl Supervisor {
    /// Plans and executes until the host is as wanted. Returns the next deadline.
    pub(super) fn settle(&mut self, shell: &mut Shell<'_>) -> Option<Instant> {
        loop {
            let guest = &self.guest;
            let plan = self.planner.plan(|port| guest.heard(port), clock::now());
            for key in plan.decided {
                if let Key::Auto(port) = key {
                    self.notes.port(port);
                }
            }
            if plan.actions.is_empty() {
                let grace = match self.agent {
                    AgentState::Lost(since) => Some(since + GRACE),
                    _ => None,
                };
                let deadlines = [plan.wake, grace, self.confirm_at];
                return deadlines.into_iter().flatten().min();
            }
            for action in plan.actions {
                match action {
                    Action::Unbind(key) => self.unbind(key, shell),
                    Action::Forget(key) => self.forget(key),
                    Action::Bind { key, want, at } => self.bind(key, want, at, shell),
                }
            }
        }
    }

    fn bind(&mut self, key: Key, want: Want, at: HostAddr, shell: &mut Shell<'_>) {
        let cut = shell.cut.child_token();
        match Forwarder::bind(at, want.guest, shell.dialer, cut) {
            Ok((forwarder, task)) => {
                let guest = want.guest;
                self.serial += 1;
                let serial = self.serial;
                shell.tasks.spawn(async move {
                    let cut = task.run().await;
                    Done::Forward { serial, guest, cut }
                });
                self.guest.own.insert(forwarder.inode());
                self.forwarders.insert(key, (serial, forwarder));
                if let (Key::Auto(_), Some((_, since))) = (key, self.guest.heard(guest)) {
                    self.took.insert(key, clock::now() - since);
                }
                self.notes.port(guest);
                self.planner.bound(key, want, at);
                self.told.remove(&key);
                (shell.notify)(Notice::Forwarded {
                    key,
                    host: at,
                    guest,
                    instead_of: (at != want.host).then_some(want.host),
                });
            }
            Err(error) => self.blocked(key, want, at, error, shell),
        }
    }

    fn blocked(
        &mut self,
        key: Key,
        want: Want,
        at: HostAddr,
        error: BindError,
        shell: &mut Shell<'_>,
    ) {
        self.planner.blocked(key, want, at, clock::now());
        let reason = match error {
            // Another port may do: nothing to tell yet.
            _ if at == want.host && want.on_conflict == OnConflict::Next => return,
            _ if self.told.contains_key(&key) => return,
            BindError::InUse => {
                self.told.insert(key, Told { at, reason: None });
                self.notes.port(want.guest);
                // Looking through /proc takes milliseconds: not in this loop.
                shell.tasks.spawn(async move {
                    let find = tokio::task::spawn_blocking(move || host_port::holder(at));
                    let holder = find.await.ok().flatten();
                    Done::Holder { key, at, holder }
                });
                return;
            }
            BindError::Privileged => BlockReason::Privileged,
            other => BlockReason::Other(other.to_string()),
        };
        (shell.notify)(Notice::Blocked {
            host: at,
            guest: want.guest,
            reason: reason.clone(),
        });
        let reason = Some(reason);
        self.told.insert(key, Told { at, reason });
        self.notes.port(want.guest);
    }

    /// Forgets a forward that never came to be bound.
    fn forget(&mut self, key: Key) {
        if let Some(Binding::Blocked { want, .. }) = self.planner.ended(key) {
            self.notes.port(want.guest);
        }
        self.told.remove(&key);
    }

    fn unbind(&mut self, key: Key, shell: &mut Shell<'_>) {
        let Some(Binding::Bound { at, .. }) = self.planner.ended(key) else {
            return;
        };
        self.took.remove(&key);
        if let Some((serial, forwarder)) = self.forwarders.remove(&key) {
            self.guest.own.remove(&forwarder.inode());
            let guest = forwarder.guest();
            let stats = forwarder.stats().clone();
            let drain = self.planner.policy().drain(key);
            let draining = match drain.is_zero() {
                true => 0,
                false => stats.active.load(Relaxed),
            };
            forwarder.stop(drain);
            self.notes.port(guest);
            if draining > 0 {
                let drain = Drain { key, at, stats };
                self.draining.insert((guest, serial), drain);
            }
            (shell.notify)(Notice::Stopped { guest, draining });
        }
    }
}
