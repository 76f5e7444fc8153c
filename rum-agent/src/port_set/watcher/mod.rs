//! Step 2 of the data flow: the one loop that owns the agent's state.
//!
//! The loop waits for a reason to look (a hint, a request, a retry, a new range), takes one dump for all
//! reasons that are pending, confirms what the dump misses, folds it into the table and publishes the
//! change. [`pending`] decides when a dump starts and what it covers. Where many programs listen and
//! hints name a few ports, only those are looked up, so one more change costs the same among 10,000
//! listeners as among 100. What a lookup cannot see (further addresses, twins) the next full dump shows;
//! the poll of the host causes one each second.
//!
//! Invariants:
//! - a dump starts after each hint, so no hint is lost however many share the dump;
//! - a failed dump keeps the set, and the requests that waited for it get an error;
//! - a dump that only answers requests does not change the set, see [`pending`];
//! - a port that is hinted but not shown is not closed before its tries are used up ([`recheck`]): a
//!   quick rebind is no close;
//! - who holds a socket and whether it can be reached never delays the report of its port. No event
//!   tells of every change of that, so a few listeners are checked with each answer, in turn.

use std::collections::BTreeSet;
use std::sync::Arc;

use rum_shared::listener::Change;
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::chain;
use crate::hint::{Began, Hints, Wake};
use crate::kernel::netns::NetNs;
use crate::kernel::{DumpError, Socket};
use crate::port_set::hub::Hub;
use crate::port_set::reach::Reach;
use crate::port_set::socket_table::{Scope, SocketTable};
use crate::port_set::source::{Source, SourceKind};
use crate::schedule::LogThrottle;
use crate::used;

use self::names::Names;
use self::pending::{Difference, Next, Pending, Purpose};

mod names;
mod pending;
mod recheck;

/// Requests for a fresh dump that may wait; a further one waits for its place in the queue.
const MAX_REQUESTS: usize = 64;
/// Most ports that are dumped one by one: for each of them the kernel walks through all listeners.
const MAX_PORT_DUMPS: usize = 4;

type Fresh = Result<Arc<BTreeSet<u16>>, String>;
type Request = oneshot::Sender<Fresh>;
type Dump = pending::Dump<Request>;

/// Asks the watcher for fresh dumps.
#[derive(Debug, Clone)]
pub struct Refresh(mpsc::Sender<Request>);

impl Refresh {
    /// The ports of a dump that begins after this call. Requests that wait at the same time share one
    /// dump.
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
    requests: mpsc::Receiver<Request>,
    hub: Arc<Hub>,
    here: NetNs,
    pending: Pending<Request>,
    table: SocketTable,
    names: Names,
    reach: Reach,
    log: LogThrottle,
}

/// The sockets that a dump shows, sorted, and those that it misses although they listen.
type Sockets = (Vec<Socket>, Vec<Socket>);

impl Watcher {
    /// A watcher that publishes to `hub`, and the handle to ask it for fresh dumps. It does
    /// nothing before [`Watcher::run`].
    pub fn new(source: Source, hints: Hints, hub: Arc<Hub>) -> (Self, Refresh) {
        let (tx, requests) = mpsc::channel(MAX_REQUESTS);
        let now = Instant::now();
        let watcher = Self {
            source,
            hints,
            requests,
            hub,
            here: NetNs::own(),
            pending: Pending::new(now),
            table: SocketTable::default(),
            names: Names::new(now),
            reach: Reach::default(),
            log: LogThrottle::default(),
        };
        (watcher, Refresh(tx))
    }

    /// Watches until `stop` is cancelled. The first dump comes at once.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut hull = self.hub.hull();
        // Subscribers from before this call count too.
        hull.mark_changed();
        while !stop.is_cancelled() {
            let wait = match self.pending.next(Instant::now()) {
                Next::Wait(until) => until,
                Next::Dump => {
                    self.gather();
                    self.dump().await;
                    // A storm must not starve the other tasks of this thread.
                    tokio::task::yield_now().await;
                    continue;
                }
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = until(wait) => {}
                wake = self.hints.next() => self.absorb(wake),
                Some(request) = self.requests.recv() => self.pending.ask(request),
                holders = self.names.next() => {
                    let change = self.table.name(&holders);
                    self.publish(change);
                }
                Ok(()) = hull.changed() => {
                    // Without subscribers the filters stay as they are.
                    if let Some(range) = *hull.borrow_and_update() {
                        self.hints.set_range(range);
                        // No hint told what happened outside the old range, nor will one tell of
                        // a `listen()` there that is under way.
                        self.pending.expect(0);
                    }
                }
            }
        }
    }

    /// Adds what `wake` names to what is pending.
    fn absorb(&mut self, mut wake: Wake) {
        let is_foreign = |began: &mut Began| self.here.excludes(began.pid);
        let foreign = wake.listening.extract_if(.., is_foreign);
        wake.foreign.extend(foreign.map(|began| began.port));
        for began in &wake.listening {
            self.table.hint(began.port, began.at_ns);
            self.names.first = Some(began.pid);
        }
        self.pending.absorb(&wake, Instant::now());
    }

    /// Adds whatever else has come: it shares the dump, which begins after it.
    fn gather(&mut self) {
        let mut wake = Wake::default();
        self.hints.drain(&mut wake);
        self.absorb(wake);
        while let Ok(request) = self.requests.try_recv() {
            self.pending.ask(request);
        }
    }

    /// Takes one dump for everything that is pending, and does what follows from it.
    async fn dump(&mut self) {
        let clock = match self.source.kind() {
            SourceKind::Netlink => ClockId::ThreadCPUTime,
            // Another thread reads it.
            SourceKind::Proc => ClockId::ProcessCPUTime,
        };
        let (now, spent) = (Instant::now(), used(clock));
        let mut dump = self.pending.begin(now, self.table.set().len());
        let sockets = self.read(&dump).await;
        let result = sockets.map(|sockets| match dump.purpose {
            Purpose::Fold => (None, self.fold(&dump, sockets)),
            Purpose::Answer => (Some(self.compare(sockets)), None),
        });
        let cost = used(clock).saturating_sub(spent);
        self.pending.spent(&dump, cost);
        self.hints.dumped(dump.began, cost);
        let requests = std::mem::take(&mut dump.requests);
        let answer = match result {
            Ok((ports, change)) => {
                self.log = LogThrottle::default();
                if let Some(change) = &change {
                    self.names.changed(change, &self.table);
                }
                self.publish(change);
                Ok(ports)
            }
            Err(error) => Err(self.failed(dump, &error)),
        };
        if !requests.is_empty() {
            self.answer(requests, answer);
        }
    }

    /// The listening sockets that `dump` is about.
    async fn read(&mut self, dump: &Dump) -> Result<Sockets, DumpError> {
        let mut shown = match &dump.scope {
            Scope::All => self.source.dump(&Scope::All).await?,
            Scope::Ports(ports) => self.read_ports(ports).await?,
        };
        let missing = self.table.missing(&dump.scope, &mut shown).into_iter();
        let (mut missed, doubtful): (Vec<_>, Vec<_>) =
            missing.partition(|socket| self.pending.spares(dump, socket.port));
        missed.extend(self.source.confirm(doubtful).await?);
        Ok((shown, missed))
    }

    /// What listens on `ports`: each is looked up, and dumped where a lookup cannot tell.
    async fn read_ports(&mut self, ports: &BTreeSet<u16>) -> Result<Vec<Socket>, DumpError> {
        let mut sockets = Vec::new();
        let mut rest = BTreeSet::new();
        for port in ports {
            match self.look_up(*port)? {
                Some(found) => sockets.extend(found),
                None => drop(rest.insert(*port)),
            }
        }
        let scope = match rest.len() {
            0 => return Ok(sockets),
            1..=MAX_PORT_DUMPS => Scope::Ports(rest),
            _ => Scope::All,
        };
        sockets.extend(self.source.dump(&scope).await?);
        Ok(sockets)
    }

    /// What listens on `port`; `None` if a lookup cannot tell.
    fn look_up(&mut self, port: u16) -> Result<Option<Vec<Socket>>, DumpError> {
        let known = match self.table.sockets(port) {
            [] => None,
            [one] => Some(one),
            // A lookup finds one of several sockets, and cannot choose which.
            _ => return Ok(None),
        };
        let found = self.source.look_up(port, known)?;
        let hides = self.pending.hides(port);
        Ok(found.filter(|found| !found.is_empty() || !hides))
    }

    /// Makes `sockets` the truth about what `dump` covers. Returns what changed.
    fn fold(&mut self, dump: &Dump, (shown, missed): Sockets) -> Option<Change> {
        let shows = |port: u16| shown.binary_search_by_key(&port, |s| s.port).is_ok();
        self.pending.folded(dump, shows);
        let change = self.table.fold(&dump.scope, shown, missed, monotonic_ns());
        if !self.pending.expects_unknown() {
            self.table.forget_unknown();
        }
        change
    }

    /// The ports of `sockets`, a full dump. Notes how they differ from the set, and changes nothing.
    fn compare(&mut self, (mut shown, missed): Sockets) -> BTreeSet<u16> {
        shown.extend(missed);
        let ports: BTreeSet<u16> = shown.iter().map(|socket| socket.port).collect();
        let known = self.table.set().iter().map(|listener| listener.port);
        let difference = if !self.table.differs(shown) {
            Difference::None
        } else if known.eq(ports.iter().copied()) {
            Difference::Addresses
        } else {
            Difference::Ports
        };
        self.pending.answered(difference, Instant::now());
        ports
    }

    /// Has `dump`, which failed, repeated. Returns why it failed.
    fn failed(&mut self, dump: Dump, error: &DumpError) -> String {
        let (now, reason) = (Instant::now(), chain(error));
        let times = self.pending.failed(dump, now);
        if self.log.allows(now) {
            warn!("the set of listeners is kept, since reading it failed ({times}x): {reason}");
        } else {
            debug!("reading the listeners failed again");
        }
        reason
    }

    /// Answers `requests` with these ports, or with those of the set. Then checks details of a few
    /// listeners.
    fn answer(&mut self, requests: Vec<Request>, ports: Result<Option<BTreeSet<u16>>, String>) {
        let of_set = || self.table.set().iter().map(|l| l.port).collect();
        let answer = ports.map(|ports| Arc::new(ports.unwrap_or_else(of_set)));
        for request in requests {
            // The caller may be gone by now.
            let _ = request.send(answer.clone());
        }
        self.names.check();
        let told = self.hub.current();
        let differ = self.reach.check(|port| told.get(port));
        // The hub copies the set that it changes while somebody holds it.
        drop(told);
        let change = self.table.touch(differ);
        self.publish(change);
    }

    fn publish(&mut self, change: Option<Change>) {
        if let Some(mut change) = change {
            self.reach.complete(&mut change);
            self.hub.publish(change);
        }
    }
}

/// Completes at `moment`; without one, never.
async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
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
