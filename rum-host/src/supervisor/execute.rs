//! The executor: carries the plan out on the host, and has no choices of its own (steps 4 and 5).

use std::collections::BTreeSet;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use rum_shared::listener::Listener;

use super::publish::Drain;
use super::{AgentState, Done, GRACE, Shell, Supervisor, Told};
use crate::forwarder::{BindError, Forwarder};
use crate::host_port;
use crate::notice::{BlockReason, Notice};
use crate::plan::{Action, Binding, CONFLICT_RETRY, Desired, HostAddr, Key, OnConflict, Want};

impl Supervisor {
    /// Plans and executes until the host is as wanted. Returns the next deadline.
    pub(super) fn settle(&mut self, shell: &mut Shell<'_>) -> Option<Instant> {
        let desired = self.desired(Instant::now());
        let awaiting: BTreeSet<Key> = desired.awaiting.keys().copied().collect();
        for key in std::mem::replace(&mut self.awaiting, awaiting.clone()) {
            if let (Key::Auto(port), false) = (key, awaiting.contains(&key)) {
                self.notes.port(port);
            }
        }
        loop {
            let plan = self
                .options
                .policy
                .plan(&desired, &self.bindings, Instant::now());
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

    /// The forwards that should be now.
    pub(super) fn desired(&self, now: Instant) -> Desired {
        let foreign = |l: &&Listener| !self.is_own(l);
        let listeners = self.guest.iter().filter(foreign);
        let listeners = listeners.map(|l| (l, self.known_since.of(l.port).unwrap_or(now)));
        self.options.policy.desired(listeners, now)
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
                self.own.insert(forwarder.inode());
                self.forwarders.insert(key, (serial, forwarder));
                if let (Key::Auto(_), Some(since)) = (key, self.known_since.of(guest.0)) {
                    self.took.insert(key, since.elapsed());
                }
                self.notes.port(guest);
                self.bindings.insert(key, Binding::Bound { want, at });
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
        let now = Instant::now();
        let (retry_at, mut tried) = match self.bindings.remove(&key) {
            Some(Binding::Blocked {
                retry_at, tried, ..
            }) if retry_at > now => (retry_at, tried),
            _ => (now + CONFLICT_RETRY, BTreeSet::new()),
        };
        tried.insert(at.0.port());
        let binding = Binding::Blocked {
            want,
            retry_at,
            tried,
        };
        self.bindings.insert(key, binding);
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
        if let Some(Binding::Blocked { want, .. }) = self.bindings.remove(&key) {
            self.notes.port(want.guest);
        }
        self.told.remove(&key);
    }

    fn unbind(&mut self, key: Key, shell: &mut Shell<'_>) {
        let Some(Binding::Bound { at, .. }) = self.bindings.remove(&key) else {
            return;
        };
        self.took.remove(&key);
        if let Some((serial, forwarder)) = self.forwarders.remove(&key) {
            self.own.remove(&forwarder.inode());
            let guest = forwarder.guest();
            let stats = forwarder.stats().clone();
            let drain = self.options.policy.drain(key);
            let draining = match drain.is_zero() {
                true => 0,
                false => stats.active.load(Relaxed),
            };
            forwarder.stop(drain);
            self.notes.port(guest);
            if draining > 0 {
                self.draining.push(Drain {
                    serial,
                    key,
                    guest,
                    at,
                    stats,
                });
            }
            (shell.notify)(Notice::Stopped { guest, draining });
        }
    }
}
