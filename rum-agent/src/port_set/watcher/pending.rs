//! Step 2 of the data flow: what is still to be looked at, as a state machine. Pure: time is passed in.
//!
//! The watcher is in one of two states. [`Pending`] is the one between two dumps: hints and requests
//! are added to it, and [`Pending::next`] says whether a dump starts now or how long to wait. The other
//! is [`Dump`], a dump under way: [`Pending::begin`] makes it of everything that is ready, and its end
//! is one of [`Pending::folded`], [`Pending::answered`] and [`Pending::failed`].
//!
//! A dump has one of four reasons:
//!
//! | reason | what it covers | when |
//! |---|---|---|
//! | `due`: a hint, or a range that changed | the ports that are named, or all | at once |
//! | `recheck`: a port was hinted and no dump shows it | that port | a few times within 63 ms |
//! | `later`: a hint from elsewhere, or a difference that only a request found | that port, or all | after a pause |
//! | `requests`: a host asks what listens now | all ports | at once |
//!
//! "At once" is as soon as the rate limit allows, and after a failure as soon as the back-off does.
//!
//! Invariants:
//! - a dump that begins takes everything that is ready, so a reason needs no dump of its own;
//! - a dump that fails leaves its reasons pending, apart from its requests, which get an error;
//! - a dump with no reason but requests is not folded, only answered. The host's poll has to stay a
//!   second opinion: what no hint reported is repaired and counted there. The agent repairs it a little
//!   later, see [`Pending::answered`].

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use super::recheck::Recheck;
use crate::hint::Wake;
use crate::port_set::socket_table::Scope;
use crate::schedule::{Backoff, RateLimit};

/// Delay of the one dump after a hint from another PID or network namespace. What listens there is
/// nearly always in another network namespace: that of the machine itself, or of a container.
const FOREIGN_AFTER: Duration = Duration::from_millis(10);
/// Delay of the repair of a difference that one request has found.
pub(super) const REPAIR_AFTER: Duration = Duration::from_millis(1500);
/// A request this long after the first one that found a difference confirms it, as the second poll of
/// the host does (`CONFIRM_AFTER` there, which is longer).
const CONFIRMED_AFTER: Duration = Duration::from_millis(50);
/// Delay of the repair of a confirmed difference: until then the host has the second answer.
const REPAIR_CONFIRMED_AFTER: Duration = Duration::from_millis(200);
/// Cost of one exact lookup, in listeners of a full dump. Above this ratio a full dump is cheaper, and
/// shows more.
pub(super) const LOOKUP_COST: usize = 32;
/// First and longest pause after a dump that failed.
const RETRY: Backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(500));

/// What is still to be looked at, between two dumps.
#[derive(Debug)]
pub(super) struct Pending<Request> {
    due: Scope,
    recheck: Recheck,
    later: Option<(Instant, Scope)>,
    requests: Vec<Request>,
    /// When a request first found a difference that is not folded yet.
    differs_since: Option<Instant>,
    rate: RateLimit,
    retry: Backoff,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Begin a dump.
    Dump,
    /// Wait until this moment, or without one until something is added.
    Wait(Option<Instant>),
}

/// A dump under way.
#[derive(Debug)]
#[must_use]
pub(super) struct Dump<Request> {
    pub(super) began: Instant,
    /// What it has to show.
    pub(super) scope: Scope,
    /// What it is for.
    pub(super) purpose: Purpose,
    /// The requests that it answers.
    pub(super) requests: Vec<Request>,
}

/// What a dump is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// It becomes the set.
    Fold,
    /// It only answers requests.
    Answer,
}

/// How a dump differs from the set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Difference {
    /// Not at all.
    None,
    /// In addresses of known ports.
    Addresses,
    /// In ports.
    Ports,
}

impl<Request> Pending<Request> {
    /// A full dump is due at once.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            due: Scope::All,
            recheck: Recheck::default(),
            later: None,
            requests: Vec::new(),
            differs_since: None,
            rate: RateLimit::new(now),
            retry: RETRY,
        }
    }

    /// Adds what `wake` names; port 0 stands for an unknown one.
    pub(super) fn absorb(&mut self, wake: &Wake, now: Instant) {
        if wake.anywhere {
            self.due = Scope::All;
        }
        for began in &wake.listening {
            self.expect(began.port);
        }
        for port in &wake.ended {
            self.due.extend(Scope::of(*port));
            self.recheck.ended(*port);
        }
        for port in &wake.foreign {
            self.put_off(now + FOREIGN_AFTER, Scope::of(*port));
        }
    }

    /// Something listens on `port`, or is about to; 0 for an unknown port.
    pub(super) fn expect(&mut self, port: u16) {
        self.due.extend(Scope::of(port));
        self.recheck.expect(port);
    }

    /// A host asks what listens now.
    pub(super) fn ask(&mut self, request: Request) {
        self.requests.push(request);
    }

    fn put_off(&mut self, until: Instant, scope: Scope) {
        let (at, later) = self.later.get_or_insert((until, Scope::NONE));
        *at = until.min(*at);
        later.extend(scope);
    }

    /// What to do at `now`.
    pub(super) fn next(&mut self, now: Instant) -> Next {
        if let Some((_, scope)) = self.later.take_if(|(at, _)| *at <= now) {
            self.due.extend(scope);
        }
        let earliest = self.rate.earliest();
        let at_once = self.due != Scope::NONE || !self.requests.is_empty();
        let dump_at = if at_once {
            Some(earliest)
        } else {
            self.recheck.due().map(|due| due.max(earliest))
        };
        let later = self.later.as_ref().map(|(at, _)| *at);
        match dump_at {
            Some(at) if at <= now => Next::Dump,
            _ => Next::Wait(dump_at.into_iter().chain(later).min()),
        }
    }

    /// Begins a dump at `now` of everything that is ready, among `known` listeners.
    pub(super) fn begin(&mut self, now: Instant, known: usize) -> Dump<Request> {
        let requests = std::mem::take(&mut self.requests);
        let mut scope = std::mem::replace(&mut self.due, Scope::NONE);
        for port in self.recheck.due_ports(now) {
            scope.extend(Scope::of(port));
        }
        let purpose = if scope == Scope::NONE {
            Purpose::Answer
        } else {
            Purpose::Fold
        };
        let few = |ports: &BTreeSet<u16>| ports.len() * LOOKUP_COST <= known;
        if !requests.is_empty() || !matches!(&scope, Scope::Ports(ports) if few(ports)) {
            scope = Scope::All;
        }
        Dump {
            began: now,
            scope,
            purpose,
            requests,
        }
    }

    /// Whether `dump` leaves `port` open although it does not show it: the port was hinted and is
    /// looked for again, so this may be a quick rebind.
    pub(super) fn spares(&self, dump: &Dump<Request>, port: u16) -> bool {
        dump.purpose == Purpose::Fold
            && self.recheck.contains(port)
            && !self.recheck.is_last(port, dump.began)
    }

    /// Whether `port` may listen at an address that an exact lookup does not try: it was hinted, and two
    /// lookups found nothing. Where a hint told of its end too, a dump would show nothing either.
    pub(super) fn hides(&self, port: u16) -> bool {
        self.recheck.hides(port)
    }

    /// Whether a listener is expected whose port is not known.
    pub(super) fn expects_unknown(&self) -> bool {
        self.recheck.contains(0)
    }

    /// Counts the processor time that `dump` used.
    pub(super) fn spent(&mut self, dump: &Dump<Request>, cost: Duration) {
        self.rate.count(dump.began, cost);
    }

    /// `dump` becomes the set; `shown` says whether it shows a port. Ports that were merely confirmed
    /// do not count as shown.
    pub(super) fn folded(&mut self, dump: &Dump<Request>, shown: impl Fn(u16) -> bool) {
        self.retry.reset();
        self.recheck.looked(dump.began, shown);
        if dump.scope == Scope::All {
            self.later = None;
            self.differs_since = None;
        }
    }

    /// A dump that only answers requests has succeeded and has found this `difference`.
    ///
    /// A difference is folded [`REPAIR_AFTER`] the first request that found it, or sooner,
    /// [`REPAIR_CONFIRMED_AFTER`] a second request that did. A difference in addresses is folded at
    /// once: the host's poll does not see it, and connections go there.
    pub(super) fn answered(&mut self, difference: Difference, now: Instant) {
        self.retry.reset();
        if difference == Difference::None {
            return;
        }
        let since = *self.differs_since.get_or_insert(now);
        let pause = match difference {
            Difference::Addresses => Duration::ZERO,
            _ if now - since >= CONFIRMED_AFTER => REPAIR_CONFIRMED_AFTER,
            _ => REPAIR_AFTER,
        };
        self.put_off(now + pause, Scope::All);
    }

    /// `dump` has failed. Returns how many have failed in a row.
    pub(super) fn failed(&mut self, dump: Dump<Request>, now: Instant) -> u32 {
        self.rate.hold_until(now + self.retry.fail());
        if dump.purpose == Purpose::Fold {
            self.due = Scope::All;
        }
        self.retry.failures()
    }
}

#[cfg(test)]
mod tests;
