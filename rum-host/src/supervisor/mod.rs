//! The host's one loop (steps 3 to 5): folds the agent's events into the set of guest listeners,
//! asks the plan what to do, executes it, and reports to the user.
//!
//! Sources ([`AgentEvent`](crate::stream::client::AgentEvent), finished tasks, the clock and
//! [`Stop`]) -> one handler each -> `settle`, which plans and executes until nothing is left to do,
//! in bounded turns. All state lives here; every task of the loop is in one `JoinSet` and ends with
//! it.
//!
//! Invariants: a forward counts as bound only after its bind succeeded; losing the agent closes
//! nothing before [`GRACE`] is over; rum's own listeners are never forwarded; when
//! [`Supervisor::run`] returns, none of its tasks and sockets is left.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rum_shared::listener::ListenerSet;
use rum_shared::range::PortRange;
use rum_shared::transport::Transport;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::addresses::Addresses;
use self::holders::Holders;
use self::outside::Outside;
use self::publish::Notes;
use crate::clock;
use crate::control::streams::Streams;
use crate::forward::bind_failure::BindFailure;
use crate::forward::holder::Taken;
use crate::forward::{Dialer, Forwarder};
use crate::plan::reconcile::Reconciler;
use crate::plan::{Destination, GuestPort, HostAddr, Key, Planner, Policy};
use crate::status::agent::Agent;
use crate::status::journal::Journal;
use crate::stream::client::{AgentClient, EVENT_QUEUE, LinkState};
pub use crate::supervisor::flicker::PAUSE;
use crate::supervisor::flicker::{Blocks, Pauses};
use crate::supervisor::listeners::Listeners;
use crate::supervisor::retry_pace::RetryPace;
use crate::ui::notice::Notice;

mod addresses;
mod agent_events;
mod execute;
mod flicker;
mod holders;
mod listeners;
mod outside;
mod publish;
mod retry_pace;

/// How long the forwards of a lost agent stay: long enough for a restart of the agent or a short
/// stall, short enough that a dead guest does not look alive.
pub const GRACE: Duration = Duration::from_secs(15);
/// How long an agent may be missing before the user is told: a virtual machine boots in that time.
const MISSING_AFTER: Duration = Duration::from_secs(20);

/// Parameters of a supervisor.
#[derive(Debug, Clone)]
pub struct Options {
    /// What leads to the agent.
    pub transport: Transport,
    /// The initial policy.
    pub policy: Policy,
    /// Later policies.
    pub changes: Option<watch::Receiver<Policy>>,
    /// False: poll only, as with an agent that cannot stream.
    pub stream: bool,
    /// Whether rum itself starts the agent in the guest, so that it will come.
    pub puts_agent: bool,
    /// Where the port status is published.
    pub journal: Arc<Journal>,
}

impl Options {
    /// The defaults for `policy`.
    pub fn new(transport: impl Into<Transport>, policy: Policy) -> Self {
        Self {
            transport: transport.into(),
            policy,
            changes: None,
            stream: true,
            puts_agent: true,
            journal: Arc::default(),
        }
    }
}

/// Whether to go on. The value only ever increases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stop {
    /// Go on.
    Run,
    /// Stop accepting, give connections this long, then reset them.
    Drain(Duration),
    /// Reset everything at once.
    Cut,
}

/// Result of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Ports that the poll had to repair; 0 in a healthy run.
    pub repaired: u64,
    /// Connections that were reset at the deadline.
    pub cut: usize,
}

/// A task that ended.
enum Done {
    Agent,
    Forward {
        serial: u64,
        guest: Destination,
        cut: usize,
    },
    Holders {
        found: Vec<(Key, HostAddr, Taken)>,
        took: Duration,
    },
}

/// The loop's state.
pub struct Supervisor {
    transport: Transport,
    changes: Option<watch::Receiver<Policy>>,
    stream: bool,
    streams: Option<Streams>,
    guest: Listeners,
    planner: Planner,
    reconciler: Reconciler,
    outside: Outside,
    /// Bound forwards.
    forwarders: BTreeMap<Key, Active>,
    /// Serial number of the latest forwarder.
    serial: u64,
    /// Closed forwards whose connections live on, by guest port and serial number.
    closed: BTreeMap<(u16, u64), Closed>,
    /// Blocked forwards that were reported, or whose holder is being searched for.
    told: BTreeMap<Key, ReportedBlock>,
    /// Reported blocks of forwards that have just gone.
    blocks: Blocks,
    /// Forwards whose own port is occupied, while other ports are tried.
    untold: BTreeSet<Key>,
    /// The addresses that this machine may lose.
    addresses: Addresses,
    /// The holders of occupied ports.
    holders: Holders,
    /// The pace of retries.
    pace: RetryPace,
    agent: Agent,
    /// The range that the set of guest listeners covers.
    covers: Option<PortRange>,
    notes: Notes,
    /// When to poll again because of a suspect.
    confirm_at: Option<Instant>,
    /// When to report that there may be no agent.
    missing_at: Option<Instant>,
    summary: Summary,
}

/// A bound forward.
#[derive(Debug)]
struct Active {
    /// The serial number of its task.
    serial: u64,
    forwarder: Forwarder,
    /// Time from the host's first report of the port to the bind; automatic forwards only.
    took: Option<Duration>,
    /// How long connections may go on after the listener closes; set at the close.
    after_close: Option<Duration>,
}

/// A closed forward whose connections live on.
#[derive(Debug)]
struct Closed {
    key: Key,
    /// The address at which it was bound.
    at: HostAddr,
    forwarder: Forwarder,
    /// How long the connections may go on; `None`: as long as their two ends want.
    drain: Option<Duration>,
}

/// A block that was reported, or will be once its holder is known.
#[derive(Debug)]
struct ReportedBlock {
    at: HostAddr,
    /// `None` while the holder is being searched for.
    reason: Option<BindFailure>,
}

/// What `settle` needs beside the state.
struct Context<'a> {
    tasks: &'a mut JoinSet<Done>,
    dialer: &'a Dialer,
    cut: &'a CancellationToken,
    pauses: &'a mut Pauses,
    notify: &'a mut (dyn FnMut(Notice) + Send),
}

impl Context<'_> {
    /// Reports `notice` to the user, unless it concerns a pause too short to report.
    fn say(&mut self, notice: Notice) {
        self.pauses.say(notice, clock::now(), self.notify);
    }
}

impl Supervisor {
    /// A supervisor that has not started.
    pub fn new(options: Options) -> Self {
        let notes = Notes::new(options.journal);
        Self {
            transport: options.transport,
            changes: options.changes,
            stream: options.stream,
            streams: None,
            guest: Listeners::default(),
            planner: Planner::new(options.policy),
            reconciler: Reconciler::default(),
            outside: Outside::default(),
            forwarders: BTreeMap::new(),
            serial: 0,
            closed: BTreeMap::new(),
            told: BTreeMap::new(),
            blocks: Blocks::default(),
            untold: BTreeSet::new(),
            addresses: Addresses::default(),
            holders: Holders::default(),
            pace: RetryPace::default(),
            agent: Agent::default(),
            covers: None,
            notes,
            confirm_at: None,
            missing_at: (!options.puts_agent).then(|| clock::now() + MISSING_AFTER),
            summary: Summary::default(),
        }
    }

    /// Also serves `streams`.
    #[must_use]
    pub fn serving(mut self, streams: Option<Streams>) -> Self {
        self.streams = streams;
        self
    }

    /// Runs until `stop` is raised and everything has ended. `notify` is called for everything that
    /// the user should know; it must not block.
    pub async fn run(
        mut self,
        mut stop: watch::Receiver<Stop>,
        mut notify: impl FnMut(Notice) + Send,
    ) -> Summary {
        let mut tasks = JoinSet::new();
        let cut = CancellationToken::new();
        let (events_tx, mut events) = mpsc::channel(EVENT_QUEUE);
        let (link_tx, link) = watch::channel(LinkState::Down);
        let (poll_now, poll_rx) = watch::channel(());
        let (range, range_rx) = watch::channel(self.range());
        let (retry_now, retry_rx) = watch::channel(());
        let dialer = Dialer::new(self.transport.clone(), link);
        let client = AgentClient {
            transport: self.transport.clone(),
            range: range_rx,
            stream: self.stream,
            retry_now: retry_rx,
        };
        let ready = dialer.clone();
        let streams = self.streams.take();
        tasks.spawn(async move {
            // Ends with the loop, which drops the receiver of the events.
            tokio::select! {
                () = client.run(events_tx, link_tx, poll_rx) => {}
                () = ready.keep_ready() => {}
                () = serve(streams, &ready) => {}
            }
            Done::Agent
        });
        let mut retried = 0;
        let mut pauses = Pauses::default();
        loop {
            let mut context = Context {
                tasks: &mut tasks,
                dialer: &dialer,
                cut: &cut,
                pauses: &mut pauses,
                notify: &mut notify,
            };
            let wake = self.settle(&mut context);
            self.publish(clock::now());
            context.pauses.over(clock::now(), context.notify);
            let wakes = [
                wake,
                context.pauses.wake(),
                self.notes.wake(),
                self.addresses.wake(),
            ];
            let wake = wakes.into_iter().flatten().min();
            if wake.is_some_and(|at| at <= clock::now()) {
                // There is more to do, but the other tasks get their turn first.
                tokio::task::yield_now().await;
            }
            tokio::select! {
                how = at_least(&mut stop, Stop::Drain(Duration::ZERO)) => {
                    events.close();
                    return self.shut_down(how, stop, context).await;
                }
                Some(event) = events.recv() => self.agent_event(event, &mut context),
                Some(done) = context.tasks.join_next() => match done {
                    Ok(done) => self.task_done(done, &mut context),
                    Err(error) => tracing::error!(%error, "a task failed"),
                },
                policy = changed(&mut self.changes) => {
                    self.policy_changed(policy, &mut context);
                }
                () = clock::sleep_until(wake) => self.timers(&poll_now, &mut context),
                () = self.notes.demand() => {
                    let retry = self.notes.wanted().retry;
                    if std::mem::replace(&mut retried, retry) != retry {
                        retry_now.send_replace(());
                    }
                }
            }
            let wanted = self.range();
            range.send_if_modified(|range| std::mem::replace(range, wanted) != wanted);
        }
    }

    /// The range to ask the agent for.
    fn range(&self) -> PortRange {
        match self.notes.wanted().all {
            0 => self.planner.policy().hull().unwrap_or(PortRange::ALL),
            _ => PortRange::ALL,
        }
    }

    /// Applies another policy; `settle` then changes only what differs.
    fn policy_changed(&mut self, policy: Policy, context: &mut Context<'_>) {
        let guest = &self.guest;
        let listening = guest.set().iter().map(|l| GuestPort(l.port));
        let heard = |port| guest.heard(port);
        let now = clock::now();
        let before = self.planner.policy().keepalive;
        let forwards = self.planner.replace(policy, listening, heard, now);
        let keepalive = self.planner.policy().keepalive;
        if keepalive != before {
            for active in self.forwarders.values() {
                active.forwarder.keep_alive(keepalive);
            }
        }
        // A reported block may have another reason now.
        self.notes.everything();
        context.say(Notice::Reloaded { forwards });
    }

    fn timers(&mut self, poll_now: &watch::Sender<()>, context: &mut Context<'_>) {
        let now = clock::now();
        if self.confirm_at.take_if(|at| *at <= now).is_some() {
            poll_now.send_replace(());
        }
        if self.missing_at.take_if(|at| *at <= now).is_some() && self.agent.is_awaited() {
            let after = MISSING_AFTER;
            context.say(Notice::AgentMissing { after });
        }
        if self.agent.forget(GRACE, now) {
            self.replace(ListenerSet::default(), now);
            self.covers = None;
            self.notes.everything();
            context.say(Notice::AutoForwardsDropped);
        }
    }

    fn task_done(&mut self, done: Done, context: &mut Context<'_>) {
        match done {
            // The agent's task ends only with the loop.
            Done::Agent => {}
            Done::Forward { serial, guest, cut } => {
                self.closed.remove(&(guest.port, serial));
                self.notes.port(guest.port);
                // The forward was bound again while its task was ending.
                if let Some(active) = self.forwarders.values().find(|a| a.serial == serial) {
                    context.tasks.spawn(forward(&active.forwarder, serial));
                }
                if cut == 0 {
                    return;
                }
                self.summary.cut += cut;
                let connections = cut;
                context.say(Notice::Cut { guest, connections });
            }
            Done::Holders { found, took } => self.holders.looked(found, took, clock::now()),
        }
    }

    /// Stops accepting, waits for the connections as `how` says, and ends every task.
    async fn shut_down(
        mut self,
        how: Stop,
        mut stop: watch::Receiver<Stop>,
        mut context: Context<'_>,
    ) -> Summary {
        context.pauses.end(context.notify);
        let bound = std::mem::take(&mut self.forwarders).into_iter();
        let bound = bound.map(|(key, active)| (key, active.forwarder));
        let closed = std::mem::take(&mut self.closed).into_values();
        let closed = closed.map(|closed| (closed.key, closed.forwarder));
        for (key, forwarder) in bound.chain(closed) {
            forwarder.stop(self.planner.policy().drain(key));
        }
        let deadline = match how {
            Stop::Drain(time) => time,
            Stop::Run | Stop::Cut => Duration::ZERO,
        };
        let timeout = tokio::time::sleep(deadline);
        tokio::pin!(timeout);
        loop {
            tokio::select! {
                () = &mut timeout, if !context.cut.is_cancelled() => context.cut.cancel(),
                _ = at_least(&mut stop, Stop::Cut), if !context.cut.is_cancelled() => {
                    context.cut.cancel();
                }
                done = context.tasks.join_next() => match done {
                    Some(Ok(done)) => self.task_done(done, &mut context),
                    Some(Err(error)) => tracing::error!(%error, "a task failed"),
                    None => break,
                },
            }
        }
        self.summary.repaired = self.reconciler.repaired;
        self.summary
    }
}

/// Serves `streams`, if any. Never completes.
async fn serve(streams: Option<Streams>, dialer: &Dialer) {
    match streams {
        Some(streams) => streams.serve(dialer).await,
        None => std::future::pending().await,
    }
}

/// Runs the task of `forwarder`.
fn forward(forwarder: &Forwarder, serial: u64) -> impl Future<Output = Done> + use<> {
    let (guest, task) = (forwarder.guest(), forwarder.task());
    async move {
        let cut = task.run().await;
        Done::Forward { serial, guest, cut }
    }
}

/// Waits until `stop` is raised to `level`. A dropped sender counts as [`Stop::Cut`].
async fn at_least(stop: &mut watch::Receiver<Stop>, level: Stop) -> Stop {
    match stop.wait_for(|stop| *stop >= level).await {
        Ok(stop) => *stop,
        Err(_) => Stop::Cut,
    }
}

/// The next policy. Cancel-safe.
async fn changed(changes: &mut Option<watch::Receiver<Policy>>) -> Policy {
    if let Some(changes) = changes
        && changes.changed().await.is_ok()
    {
        return changes.borrow_and_update().clone();
    }
    // The sender is gone, so the policy never changes again.
    std::future::pending().await
}
