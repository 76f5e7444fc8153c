//! The executor (steps 4 and 5): carries the plan out on the host, without choices of its own.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use super::{Active, Closed, Context, GRACE, ReportedBlock, Supervisor, forward};
use crate::clock;
use crate::forward::Forwarder;
use crate::forward::bind_failure::BindFailure;
use crate::plan::{Action, Binding, Destination, GuestPort, HostAddr, Key, OnConflict, Want};
use crate::ui::notice::Notice;

/// How long one turn executes the plan before agent, control socket and signals get theirs: short
/// enough that nobody waits, long enough for some hundred ports.
const TURN: Duration = Duration::from_millis(10);
/// Pause before a port is tried again on a loopback address that this machine does not have: IPv6
/// is rarely enabled while rum runs.
const ABSENT_PAUSE: Duration = Duration::from_secs(30);

impl Supervisor {
    /// Plans and executes until the host is as wanted, for about a [`TURN`]. Returns the next
    /// deadline, which is now if there is more to do.
    pub(super) fn settle(&mut self, context: &mut Context<'_>) -> Option<Instant> {
        let (started, cpu) = (clock::now(), cpu_time());
        self.blocks.over(started);
        let mut turn = Turn {
            until: started + TURN,
            tried: 0,
        };
        let settled = loop {
            let guest = &self.guest;
            let plan = self.planner.plan(|port| guest.heard(port), clock::now());
            for key in plan.decided {
                if let Key::Auto(port) = key.forward() {
                    self.notes.port(port.0);
                }
            }
            if plan.actions.is_empty() && (plan.more || !self.tell_of_taken(&turn)) {
                if turn.is_over() {
                    break Some(clock::now());
                }
                continue;
            }
            if plan.actions.is_empty() {
                let deadlines = [
                    plan.wake,
                    self.agent.forget_at(GRACE),
                    self.confirm_at,
                    self.missing_at,
                    self.holders.wake(),
                ];
                break deadlines.into_iter().flatten().min();
            }
            if !self.carry_out(plan.actions, &mut turn, context) {
                break Some(clock::now());
            }
        };
        if turn.tried > 0 || self.planner.waiting() > 0 {
            let spent = cpu_time().saturating_sub(cpu);
            self.pace.measured(spent, turn.tried);
        }
        self.tell_who_has_them(context);
        self.look_for_holders(context);
        self.look_at_addresses(context);
        settled
    }

    /// Executes `actions` until the turn is over. Returns whether all were executed.
    fn carry_out(
        &mut self,
        actions: Vec<Action>,
        turn: &mut Turn,
        context: &mut Context<'_>,
    ) -> bool {
        for action in actions {
            match action {
                Action::Unbind(key) => self.unbind(key, context),
                Action::Forget(key) => self.forget(key),
                Action::Bind { key, want, at } => {
                    turn.tried += u32::from(at == want.host);
                    self.bind(key, want, at, context);
                }
            }
            if turn.is_over() {
                return false;
            }
        }
        true
    }

    fn bind(&mut self, key: Key, want: Want, at: HostAddr, context: &mut Context<'_>) {
        if key.address().is_some() {
            return self.bind_beside(key, want, at, context);
        }
        let guest = want.guest;
        let (serial, forwarder) = self.forwarder(key, guest, context);
        let keepalive = self.planner.policy().keepalive;
        match forwarder.bind(at, want.binds.beside().next().is_some(), keepalive) {
            Ok(inode) => {
                // The task of an earlier binding still runs, or is restarted when it has ended.
                if self.closed.remove(&(guest.port, serial)).is_none() {
                    context.tasks.spawn(forward(&forwarder, serial));
                }
                self.guest.own.insert(inode);
                let heard = self.guest.heard(GuestPort(guest.port));
                let heard = heard.filter(|_| matches!(key, Key::Auto(_)));
                let active = Active {
                    serial,
                    forwarder,
                    took: heard.map(|(_, since)| clock::now() - since),
                    after_close: None,
                };
                self.forwarders.insert(key, active);
                self.notes.port(guest.port);
                self.planner.bound(key, want, at);
                self.addresses.bound(at);
                self.told.remove(&key);
                self.holders.forget(key);
                context.say(Notice::Forwarded {
                    key,
                    host: at,
                    guest,
                    instead_of: (at != want.host).then_some(want.host),
                });
            }
            Err(error) => self.blocked(key, want, at, error, context),
        }
    }

    /// Binds an additional address of a bound forward.
    fn bind_beside(&mut self, key: Key, want: Want, at: HostAddr, context: &mut Context<'_>) {
        let Some(active) = self.forwarders.get(&key.forward()) else {
            // The plan names only bound forwards.
            self.planner.ended(key);
            return;
        };
        let keepalive = self.planner.policy().keepalive;
        match active.forwarder.bind(at, true, keepalive) {
            Ok(inode) => {
                self.guest.own.insert(inode);
                self.planner.bound(key, want, at);
                self.addresses.bound(at);
                self.told.remove(&key);
                self.holders.forget(key);
                self.notes.port(want.guest.port);
            }
            Err(error) => self.blocked(key, want, at, error, context),
        }
    }

    /// The forwarder for `key`: the previous one, if it still has connections.
    fn forwarder(
        &mut self,
        key: Key,
        guest: Destination,
        context: &Context<'_>,
    ) -> (u64, Forwarder) {
        let before = self.closed.range((guest.port, 0)..=(guest.port, u64::MAX));
        for ((_, serial), closed) in before {
            if (closed.key, closed.forwarder.guest()) == (key, guest)
                && !closed.forwarder.cut().is_cancelled()
            {
                return (*serial, closed.forwarder.clone());
            }
        }
        self.serial += 1;
        let new = Forwarder::new(guest, context.dialer, context.cut.child_token());
        (self.serial, new)
    }

    fn blocked(
        &mut self,
        key: Key,
        want: Want,
        at: HostAddr,
        failure: BindFailure,
        context: &mut Context<'_>,
    ) {
        // `localhost` asks only for the loopback addresses that this machine has.
        let lacks = failure == BindFailure::NoAddress && want.binds.may_lack(at.0.ip());
        let pause = if lacks {
            ABSENT_PAUSE
        } else {
            self.pace.pause(self.planner.waiting())
        };
        self.planner.blocked(key, want, at, clock::now(), pause);
        let taken = matches!(failure, BindFailure::Taken { .. });
        if lacks {
            return;
        }
        if taken && at == want.host && want.on_conflict == OnConflict::Next {
            // Another port may do, so there is nothing to report yet.
            self.untold.insert(key);
            return;
        }
        if self.told.contains_key(&key) {
            return;
        }
        if taken {
            self.taken(key, want, at);
            return;
        }
        let same = |reported: &BindFailure| *reported == failure;
        if let Some((reported, _)) = self.blocks.again(key, at, same, clock::now()) {
            self.told.insert(key, reported);
            self.notes.port(want.guest.port);
            return;
        }
        self.tell_blocked(key, at, want.guest, failure, context);
    }

    /// Reports to the user why `at` is not bound.
    pub(super) fn tell_blocked(
        &mut self,
        key: Key,
        at: HostAddr,
        guest: Destination,
        reason: BindFailure,
        context: &mut Context<'_>,
    ) {
        context.say(Notice::Blocked {
            key,
            host: at,
            guest,
            reason: reason.clone(),
        });
        let reason = Some(reason);
        self.told.insert(key, ReportedBlock { at, reason });
        self.notes.port(guest.port);
    }

    /// Handles an occupied `at`. The user is told when the holder is known.
    fn taken(&mut self, key: Key, want: Want, at: HostAddr) {
        self.untold.remove(&key);
        self.notes.port(want.guest.port);
        let same = |reported: &BindFailure| matches!(reported, BindFailure::Taken { .. });
        if let Some((reported, holder)) = self.blocks.again(key, at, same, clock::now()) {
            self.told.insert(key, reported);
            self.holders.know(key, at, holder);
            return;
        }
        self.told.insert(key, ReportedBlock { at, reason: None });
        self.holders.ask(key, at);
    }

    /// Handles forwards whose port is occupied and that found no other to try. Returns whether all
    /// were handled.
    fn tell_of_taken(&mut self, turn: &Turn) -> bool {
        while let Some(key) = self.untold.pop_first() {
            if let Some(Binding::Blocked { want, .. }) = self.planner.binding(key)
                && !self.told.contains_key(&key)
            {
                let want = *want;
                self.taken(key, want, want.host);
            }
            if turn.is_over() {
                break;
            }
        }
        self.untold.is_empty()
    }

    /// Forgets a forward that was never bound.
    fn forget(&mut self, key: Key) {
        if let Some(Binding::Blocked { want, .. }) = self.planner.ended(key) {
            self.notes.port(want.guest.port);
        }
        let holder = self.holders.forget(key);
        if let Some(reported) = self.told.remove(&key) {
            self.blocks.gone(key, reported, holder, clock::now());
        }
    }

    fn unbind(&mut self, key: Key, context: &mut Context<'_>) {
        let Some(Binding::Bound { at, .. }) = self.planner.ended(key) else {
            return;
        };
        if let Some(ip) = key.address() {
            // If the forward itself was closed, this address is closed already.
            let active = self.forwarders.get(&key.forward());
            if let Some(inode) = active.and_then(|active| active.forwarder.unbind(ip)) {
                self.guest.own.remove(&inode);
            }
            return;
        }
        let Some(active) = self.forwarders.remove(&key) else {
            return;
        };
        let (serial, forwarder) = (active.serial, active.forwarder);
        for inode in forwarder.inodes() {
            self.guest.own.remove(&inode);
        }
        let guest = forwarder.guest();
        // A program that closes its listener may still want its connections.
        let closed =
            matches!(key, Key::Auto(_)) && self.guest.heard(GuestPort(guest.port)).is_none();
        let drain = if closed {
            active.after_close
        } else {
            Some(self.planner.policy().drain(key))
        };
        let connections = match drain {
            Some(Duration::ZERO) => 0,
            _ => forwarder.stats().active.load(Relaxed),
        };
        forwarder.close(drain);
        self.notes.port(guest.port);
        let closed = Closed {
            key,
            at,
            forwarder,
            drain,
        };
        self.closed.insert((guest.port, serial), closed);
        context.say(Notice::Stopped {
            key,
            host: at,
            guest,
            connections,
            drain,
        });
    }
}

/// Budget and count of one call of [`Supervisor::settle`].
struct Turn {
    /// When the turn ends.
    until: Instant,
    /// Forwards whose own port was tried.
    tried: u32,
}

impl Turn {
    fn is_over(&self) -> bool {
        clock::now() >= self.until
    }
}

/// CPU time of this thread. Unlike wall-clock time, it excludes the time that other threads and
/// processes had the processor.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}
