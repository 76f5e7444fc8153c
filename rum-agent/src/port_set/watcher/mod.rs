//! Steps 1 and 2 of the data flow: the one loop that owns the agent's state.
//!
//! Wait for a reason to look (a hint, a request, a retry, a changed filter), gather all that
//! are pending, take one dump, confirm what it misses, fold, publish. [`crate::schedule`] decides
//! when a dump may start: the first of a burst at once, a storm's at a bounded rate. Where many
//! listen and hints name a few ports, those alone are looked up, so that one more change costs the
//! same among 10,000 listeners as among 100. What a lookup cannot tell, further addresses and
//! twins, the next dump of all shows: the host's poll asks for one each second.
//!
//! Invariants:
//! - after every hint a dump starts; so nothing is lost however many hints share it;
//! - a failed dump keeps the set, and those who asked for a fresh one get an error;
//! - a dump that was merely asked for is answered, not folded: the host's poll must be a second
//!   opinion, so that what no hint told is repaired and counted there. What it found is folded
//!   here [`AFTER_ANSWER`] after a second request has found it, at the latest [`SELF_REPAIR`] after
//!   the first. Another address of a known port, which the host's poll does not see, is folded at
//!   once;
//! - a port that was hinted to listen but is not shown yet is not closed before the looks for
//!   it are used up: a quick rebind is no close;
//! - names of processes are looked up on a blocking thread, after the ports are published, and again
//!   where the process that is shown has ended or does not hold the socket any more. That, and whether
//!   what loopback does not reach can be reached, is looked at with each answer, a few at a time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rum_shared::listener::Change;
use rum_shared::range::PortRange;
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::chain;
use crate::hint::{Hints, Wake};
use crate::kernel::holders::{Holders, Stale};
use crate::kernel::netns::NetNs;
use crate::kernel::{DumpError, Socket};
use crate::port_set::hub::Hub;
use crate::port_set::reach::Reach;
use crate::port_set::socket_table::{Scope, SocketTable};
use crate::port_set::source::{Source, SourceKind};
use crate::schedule::{RateLimit, Recheck};
use crate::used;

use self::failures::Failures;
use self::names::{Found, Names};

mod failures;
mod names;

/// Requests for a fresh dump that may wait; a further one waits for its place in the queue.
const MAX_REQUESTS: usize = 64;
/// When to look after a hint from outside our PID namespace or our network namespace, and but once. What
/// listens there is nearly always in another network namespace: the machine's own, for one, or a
/// container's.
const FOREIGN_AFTER: Duration = Duration::from_millis(10);
/// When what only a request has found is folded, if it is not asked for again.
const SELF_REPAIR: Duration = Duration::from_millis(1500);
/// A request that comes so long after the first to find something confirms it, as the host's second
/// poll does (`CONFIRM_AFTER` there, which is longer).
const CONFIRMS_AFTER: Duration = Duration::from_millis(50);
/// When what two requests have found is folded: the host has the answer to the second by then.
const AFTER_ANSWER: Duration = Duration::from_millis(200);
/// To look a port up takes as long as so many listeners in a dump of all, which says more.
const EACH: usize = 32;
/// More ports than this are not dumped one by one: the kernel walks all listeners for each.
const MANY: usize = 4;

type Fresh = Result<Arc<BTreeSet<u16>>, String>;

/// Asks the watcher for fresh dumps.
#[derive(Debug, Clone)]
pub struct Refresh(mpsc::Sender<oneshot::Sender<Fresh>>);

impl Refresh {
    /// The ports that a dump shows which began after this call. Requests that wait at the same
    /// time share one dump.
    ///
    /// # Errors
    /// Why there is no fresh dump, for a log.
    pub async fn fresh(&self) -> Fresh {
        let (reply, answer) = oneshot::channel();
        let gone = |_| "the agent is stopping".to_string();
        self.0.send(reply).await.map_err(|_| gone(()))?;
        answer.await.map_err(|_| gone(()))?
    }
}

/// The state and everything that feeds it.
pub struct Watcher {
    source: Source,
    hints: Hints,
    hub: Arc<Hub>,
    here: NetNs,
    requests: mpsc::Receiver<oneshot::Sender<Fresh>>,
    truth: SocketTable,
    pace: RateLimit,
    again: Recheck,
    names: Names,
    holders: Holders,
    reach: Reach,
    failures: Failures,
    /// What the next dump is for.
    due: Due,
    /// Who wants to know what it shows.
    waiting: Vec<oneshot::Sender<Fresh>>,
    /// When a request first found what is not folded yet.
    found: Option<Instant>,
    /// What to look at although nothing is urgent, and when: for what only a request has found, or for a
    /// hint that is hardly ours.
    later: Due,
    later_at: Option<Instant>,
}

/// What may have changed: what the dump shows of it is folded.
#[derive(Debug, Default)]
struct Due {
    /// Anything.
    all: bool,
    ports: BTreeSet<u16>,
}

impl Due {
    const ALL: Self = Self {
        all: true,
        ports: BTreeSet::new(),
    };

    fn is_empty(&self) -> bool {
        !self.all && self.ports.is_empty()
    }

    /// Adds a port; 0 is an unknown one.
    fn port(&mut self, port: u16) {
        match port {
            0 => self.all = true,
            port => drop(self.ports.insert(port)),
        }
    }

    fn add(&mut self, other: Self) {
        self.all |= other.all;
        self.ports.extend(other.ports);
    }
}

/// The ports that a dump has shown, if they are not those of the truth now; and what it changed.
type Looked = (Option<BTreeSet<u16>>, Option<Change>);

impl Watcher {
    /// A watcher that publishes to `hub`, and the handle to ask it for fresh dumps. It does
    /// nothing before [`Watcher::run`].
    pub fn new(source: Source, hints: Hints, hub: Arc<Hub>) -> (Self, Refresh) {
        let (tx, requests) = mpsc::channel(MAX_REQUESTS);
        let now = Instant::now();
        let watcher = Self {
            source,
            hints,
            hub,
            here: NetNs::own(),
            requests,
            truth: SocketTable::default(),
            pace: RateLimit::new(now),
            again: Recheck::default(),
            names: Names::new(now),
            holders: Holders::default(),
            reach: Reach::default(),
            failures: Failures::default(),
            due: Due::ALL,
            waiting: Vec::new(),
            found: None,
            later: Due::default(),
            later_at: None,
        };
        (watcher, Refresh(tx))
    }

    /// Watches until `stop` is cancelled. The first dump comes at once.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut hull = self.hub.hull();
        // Whoever subscribed before counts too.
        hull.mark_changed();
        loop {
            let at_once = !self.due.is_empty() || !self.waiting.is_empty();
            let earliest = self.pace.earliest();
            let dump_at = if at_once {
                Some(earliest)
            } else {
                self.again.due().map(|again| again.max(earliest))
            };
            if dump_at.is_some_and(|at| at <= Instant::now()) {
                // All that is pending shares the dump, which starts after the last of it.
                let mut wake = Wake::default();
                if self.hints.drain(&mut wake) {
                    self.absorb(wake);
                }
                while let Ok(request) = self.requests.try_recv() {
                    self.waiting.push(request);
                }
                self.look().await;
                // A storm must not starve the other tasks of this thread.
                tokio::task::yield_now().await;
                if stop.is_cancelled() {
                    return;
                }
                continue;
            }
            let names_at = self.names.due();
            tokio::select! {
                () = stop.cancelled() => return,
                wake = self.hints.next() => self.absorb(wake),
                Some(request) = self.requests.recv() => {
                    self.waiting.push(request);
                }
                () = until(self.later_at) => {
                    self.later_at = None;
                    self.due.add(std::mem::take(&mut self.later));
                }
                () = until(dump_at) => {}
                Some(found) = self.names.found() => self.named(found),
                stale = self.holders.ended() => self.names.again(&stale),
                () = until(names_at) => self.names.look_up(),
                range = next_hull(&mut hull) => {
                    self.hints.set_range(range);
                    // What happened outside the old filter was not hinted, nor what is about to
                    // happen that was let go on before.
                    self.due.all = true;
                    self.again.expect(0);
                }
            }
        }
    }

    /// Takes note of who holds which socket.
    fn named(&mut self, found: Found) {
        let mut gone = Vec::new();
        for (key, held) in &found {
            if let Some(held) = held
                && !self.holders.note(*key, held)
            {
                let pid = held.process.pid;
                gone.push(Stale { key: *key, pid });
            }
        }
        self.names.again(&gone);
        let found = found.into_iter();
        let holders = found.map(|(key, held)| (key, held.map(|held| held.process)));
        if let Some(change) = self.truth.name(&holders.collect()) {
            self.publish(change);
        }
    }

    /// Looks whether a few of what was told are still so, of which no event would tell.
    fn check(&mut self) {
        let stale = self.holders.check();
        self.names.again(&stale);
        let told = self.hub.current();
        let ports = self.reach.check(|port| told.get(port));
        drop(told);
        if let Some(change) = self.truth.touch(ports) {
            self.publish(change);
        }
    }

    fn publish(&mut self, mut change: Change) {
        self.reach.complete(&mut change);
        self.hub.publish(change);
    }

    /// Takes note of a wake: whatever it names is looked at.
    fn absorb(&mut self, mut wake: Wake) {
        self.due.all |= wake.anywhere;
        for began in wake.listening {
            if self.here.excludes(began.pid) {
                wake.foreign.push(began.port);
                continue;
            }
            self.due.port(began.port);
            self.again.expect(began.port);
            self.truth.hint(began.port, began.at_ns);
            self.names.first = Some(began.pid);
        }
        for port in wake.ended {
            self.due.port(port);
            self.again.ended(port);
        }
        for port in wake.foreign {
            let mut due = Due::default();
            due.port(port);
            self.look_after(FOREIGN_AFTER, due);
        }
    }

    fn look_after(&mut self, pause: Duration, due: Due) {
        let at = Instant::now() + pause;
        self.later_at = Some(self.later_at.map_or(at, |earlier| earlier.min(at)));
        self.later.add(due);
    }

    /// What the dump for `due`, and for what is looked for again, is to show.
    fn scope(&self, due: Due, now: Instant) -> Scope {
        let mut ports = due.ports;
        ports.extend(self.again.due_ports(now));
        // Whoever waits wants to know of every port.
        let whole = due.all || !self.waiting.is_empty() || ports.contains(&0);
        let set = self.truth.set();
        if whole || set.generation == 0 || ports.len() * EACH > set.len() {
            Scope::All
        } else {
            Scope::Ports(ports)
        }
    }

    /// One dump and all that follows from it.
    async fn look(&mut self) {
        let clock = match self.source.kind() {
            SourceKind::Netlink => ClockId::ThreadCPUTime,
            // Read by another thread.
            SourceKind::Proc => ClockId::ProcessCPUTime,
        };
        let (began, spent) = (Instant::now(), used(clock));
        let due = std::mem::take(&mut self.due);
        let fold = !due.is_empty() || self.again.due().is_some_and(|at| at <= began);
        let scope = self.scope(due, began);
        let waiting = std::mem::take(&mut self.waiting);
        let result = if fold {
            self.dump_and_fold(began, &scope).await
        } else {
            self.dump_only().await
        };
        let cost = used(clock).saturating_sub(spent);
        self.pace.count(began, cost);
        self.hints.dumped(began, cost);
        let answer = match result {
            Ok((ports, change)) => {
                self.failures = Failures::default();
                if let Some(change) = change {
                    let truth = &self.truth;
                    for port in change.ports() {
                        let sockets = truth.sockets(port);
                        let stays = |inode| sockets.iter().any(|s| s.inode == inode);
                        self.holders.retain(port, stays);
                    }
                    let listening = change.opened.iter().chain(&change.changed);
                    let nameless = listening.flat_map(|l| truth.nameless(l.port));
                    self.names.want(&change, nameless);
                    self.publish(change);
                }
                Ok(ports)
            }
            Err(error) => {
                let now = Instant::now();
                let pause = self.failures.count(now, &error);
                self.pace.hold_until(now + pause);
                self.due.all |= fold;
                Err(chain(&error))
            }
        };
        if waiting.is_empty() {
            return;
        }
        let ports = |ports: Option<BTreeSet<u16>>| {
            let truth = || self.truth.set().iter().map(|l| l.port).collect();
            Arc::new(ports.unwrap_or_else(truth))
        };
        let answer = answer.map(ports);
        for request in waiting {
            // Whoever asked may be gone by now.
            let _ = request.send(answer.clone());
        }
        self.check();
    }

    /// What listens now, without a word to the subscribers.
    async fn dump_only(&mut self) -> Result<Looked, DumpError> {
        let mut dump = self.source.dump(&Scope::All).await?;
        let missing = self.truth.missing(&Scope::All, &mut dump);
        dump.extend(self.source.confirm(missing).await?);
        let ports: BTreeSet<u16> = dump.iter().map(|s| s.port).collect();
        if self.truth.differs(dump) {
            let now = Instant::now();
            let first = *self.found.get_or_insert(now);
            let known = self.truth.set().iter().map(|listener| listener.port);
            let same_ports = known.eq(ports.iter().copied());
            let pause = match now - first >= CONFIRMS_AFTER {
                // Only addresses, of which the host's poll says nothing, but which we dial.
                _ if same_ports => Duration::ZERO,
                true => AFTER_ANSWER,
                false => SELF_REPAIR,
            };
            self.look_after(pause, Due::ALL);
        }
        Ok((Some(ports), None))
    }

    /// What listens, of the ports of `scope` as far as lookups tell it.
    async fn dump(&mut self, scope: &Scope) -> Result<Vec<Socket>, DumpError> {
        let Scope::Ports(ports) = scope else {
            return self.source.dump(scope).await;
        };
        let mut sockets = Vec::new();
        let mut rest = BTreeSet::new();
        for port in ports {
            match self.look_up(*port)? {
                Some(found) => sockets.extend(found),
                None => drop(rest.insert(*port)),
            }
        }
        if !rest.is_empty() {
            let scope = if rest.len() > MANY {
                Scope::All
            } else {
                Scope::Ports(rest)
            };
            sockets.extend(self.source.dump(&scope).await?);
        }
        Ok(sockets)
    }

    /// What listens on `port`; `None` if a lookup cannot tell.
    fn look_up(&mut self, port: u16) -> Result<Option<Vec<Socket>>, DumpError> {
        let known = match self.truth.sockets(port) {
            [] => None,
            [one] => Some(one),
            // A lookup tells of one twin, and which of them cannot be chosen.
            _ => return Ok(None),
        };
        let found = self.source.look_up(port, known)?;
        // What was hinted may listen at an address that nobody would guess. A listener that came and
        // went hides as well, so not where an end was hinted: the dump would show nothing either.
        let hides = self.again.hides(port);
        Ok(found.filter(|found| !found.is_empty() || !hides))
    }

    async fn dump_and_fold(&mut self, began: Instant, scope: &Scope) -> Result<Looked, DumpError> {
        let mut dump = self.dump(scope).await?;
        let missing = self.truth.missing(scope, &mut dump);
        let again = &self.again;
        let (mut alive, doubtful): (Vec<_>, Vec<_>) = missing
            .into_iter()
            .partition(|s| again.contains(s.port) && !again.is_last(s.port, began));
        alive.extend(self.source.confirm(doubtful).await?);
        // Only the dump counts as seen: a port that is merely kept is still looked for.
        let shown = |port: u16| dump.binary_search_by_key(&port, |s| s.port).is_ok();
        self.again.looked(began, shown);
        let change = self.truth.fold(scope, dump, alive, monotonic_ns());
        if !self.again.contains(0) {
            self.truth.forget_unknown();
        }
        if *scope == Scope::All {
            self.later = Due::default();
            self.later_at = None;
            self.found = None;
        }
        Ok((None, change))
    }
}

/// Completes at `moment`, never without one.
async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// The next hull of the subscribed ranges. Without subscribers the filters stay as they are.
async fn next_hull(hull: &mut watch::Receiver<Option<PortRange>>) -> PortRange {
    loop {
        if hull.changed().await.is_err() {
            // The hub outlives the watcher that holds it.
            std::future::pending::<()>().await;
        }
        if let Some(range) = *hull.borrow_and_update() {
            return range;
        }
    }
}

/// Nanoseconds on CLOCK_MONOTONIC, the clock of `Listener::seen_ns`.
fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let nanos = i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec);
    u64::try_from(nanos).unwrap_or(0)
}

#[cfg(test)]
mod tests;
