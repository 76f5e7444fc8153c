//! Step 1 of the data flow: waits until something may have changed.
//!
//! The sources form a ladder, the best rung first:
//!
//! 1. the tracepoint `sock:inet_sock_set_state`, where the kernel permits it (CAP_PERFMON): an
//!    event for every `listen()` and its end;
//! 2. instead of it, in a namespace guest, reports of the guest's first process, which the kernel
//!    asks before each `listen()` ([`crate::kernel::listen_events`]), and a slow poll for the rest;
//! 3. instead of both, a [`poll`] of the cheap socket counters in `/proc/self/net/sockstat`, with
//!    a full dump now and then;
//! 4. in addition to 2 and 3, the netlink destroy groups, which need no privilege: a closed
//!    listener. The tracepoint reports that earlier, and while a socket is subscribed to the
//!    groups the kernel has work with every connection that ends.
//!
//! Invariant: a [`Wake`] carries no fact. It says where to look; the dump that follows decides.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rum_shared::range::PortRange;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{info, warn};

use self::poll::{FAST, Poll, SAFETY};
use crate::chain;
use crate::kernel::destroy::{Destroy, DestroyEvents};
use crate::kernel::listen_events::{Notified, Told, Wanted};
use crate::kernel::tracepoint::{Hint, ThreadName, Tracepoint, TracepointError};

pub mod poll;

/// Most hints that one [`Wake`] collects; the rest go into the next one.
pub const MAX_DRAIN: usize = 1024;

/// What wakes the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HintKind {
    /// Kernel events for `listen()`.
    Tracepoint,
    /// Reports of the guest's first process about each `listen()`.
    Seccomp,
    /// Reads of the socket counters every few milliseconds.
    Poll,
    /// Nothing: only the host's polls find changes. For measuring that safety net.
    None,
}

impl HintKind {
    /// The word for `hello` and for the command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::Tracepoint => "tracepoint",
            Self::Seccomp => "seccomp",
            Self::Poll => "poll",
            Self::None => "none",
        }
    }
}

impl std::str::FromStr for HintKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "tracepoint" => Ok(Self::Tracepoint),
            "seccomp" => Ok(Self::Seccomp),
            "poll" => Ok(Self::Poll),
            "none" => Ok(Self::None),
            _ => Err("write `tracepoint`, `seccomp` or `poll`".into()),
        }
    }
}

/// Why a forced rung cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HintError {
    /// The tracepoint.
    #[error("the hint `tracepoint` cannot be used")]
    Tracepoint(#[from] TracepointError),
    /// Notifications, which only the first process of a namespace guest passes on.
    #[error("the hint `seccomp` is for agents that rum starts, in a namespace guest")]
    Seccomp,
}

/// A socket began to listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Began {
    /// The port, 0 if unknown.
    pub port: u16,
    /// The process that called `listen()`.
    pub pid: u32,
    /// Time of the call, in nanoseconds on CLOCK_MONOTONIC.
    pub at_ns: u64,
}

/// Something may have changed.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Wake {
    /// Ports on which a socket began to listen (0: unknown port): dump at once.
    pub listening: Vec<Began>,
    /// Ports on which a socket stopped listening: dump at once.
    pub ended: Vec<u16>,
    /// Ports (0: unknown) of listeners whose process is outside our PID namespace: the dump can
    /// wait.
    pub foreign: Vec<u16>,
    /// The change may be on any port: dump everything at once.
    pub anywhere: bool,
}

/// All sources of hints.
#[derive(Default)]
pub struct Hints {
    tracepoint: Option<Tracepoint>,
    notified: Option<Notified>,
    wanted: Option<Wanted>,
    destroy: Option<DestroyEvents>,
    poll: Option<Poll>,
    other: Option<mpsc::Receiver<Hint>>,
}

impl Hints {
    /// Opens the best available rung of the ladder, or the `forced` one, and logs why a better one
    /// is not available. `notified` is the pipe of the guest's first process, which passes it only
    /// where it knows that there is no tracepoint; `wanted` publishes the range to that process.
    /// Events of threads named `except` are left out where possible.
    ///
    /// # Errors
    /// Why the rung cannot be used, only if it is forced.
    /// Why the rung cannot be used, only where it is forced.
    pub fn open(
        forced: Option<HintKind>,
        notified: Option<OwnedFd>,
        wanted: Option<OwnedFd>,
        except: Option<ThreadName>,
    ) -> Result<Self, HintError> {
        let mut hints = Self::default();
        if forced == Some(HintKind::None) {
            return Ok(hints);
        }
        if forced.is_none() || forced == Some(HintKind::Seccomp) {
            let open = |pipe| Notified::open(pipe).map_err(|e| warn!("no notifications: {e}"));
            hints.notified = notified.and_then(|pipe| open(pipe).ok());
            hints.wanted = wanted.map(Wanted::from);
        }
        if forced == Some(HintKind::Seccomp) && hints.notified.is_none() {
            return Err(HintError::Seccomp);
        }
        let try_tracepoint = forced.is_none() && hints.notified.is_none();
        if try_tracepoint || forced == Some(HintKind::Tracepoint) {
            match Tracepoint::open(except) {
                Ok(tracepoint) => hints.tracepoint = Some(tracepoint),
                Err(error) if forced.is_some() => return Err(error.into()),
                Err(error) => {
                    let reason = chain(&error);
                    info!("no tracepoint, polling socket counters instead: {reason}");
                }
            }
        }
        hints.poll = match (&hints.tracepoint, &hints.notified) {
            (Some(_), _) => None,
            (None, Some(_)) => Some(Poll::open(SAFETY)),
            (None, None) => Some(Poll::open(FAST)),
        };
        if hints.tracepoint.is_none() {
            match DestroyEvents::open() {
                Ok(destroy) => hints.destroy = Some(destroy),
                Err(error) => info!("no destroy events, closed listeners are found later: {error}"),
            }
        }
        Ok(hints)
    }

    /// Adds the source `other`: a rung that lives in this process.
    pub fn also_from(mut self, other: mpsc::Receiver<Hint>) -> Self {
        self.other = Some(other);
        self
    }

    /// The best rung in use.
    pub fn kind(&self) -> HintKind {
        match (&self.tracepoint, &self.notified, &self.poll) {
            (Some(_), ..) => HintKind::Tracepoint,
            (None, Some(_), _) => HintKind::Seccomp,
            (None, None, Some(_)) => HintKind::Poll,
            (None, None, None) => HintKind::None,
        }
    }

    /// Makes the sources drop events outside `range`, where they can. A source that refuses keeps
    /// its old filter, which is logged.
    pub fn set_range(&mut self, range: PortRange) {
        let (min, max) = (range.min(), range.max());
        let tracepoint = self.tracepoint.as_mut().map(|t| t.set_range(min, max));
        let destroy = self.destroy.as_mut().map(|d| d.set_range(min, max));
        let wanted = self.wanted.as_ref().map(|w| w.set(range));
        for result in [tracepoint, destroy, wanted].into_iter().flatten() {
            if let Err(error) = result {
                warn!("kernel events could not be limited to {range}: {error}");
            }
        }
    }

    /// Accounts for the cost of a dump that began at `began`.
    pub fn dumped(&mut self, began: Instant, cost: Duration) {
        if let Some(poll) = &mut self.poll {
            poll.dumped(began, cost);
        }
    }

    /// Waits for a hint and collects all that are pending, up to [`MAX_DRAIN`]. Cancel-safe.
    pub async fn next(&mut self) -> Wake {
        let mut wake = Wake::default();
        tokio::select! {
            hint = some(self.tracepoint.as_mut().map(Tracepoint::next)) => wake.add(hint),
            told = some(self.notified.as_mut().map(Notified::next)) => self.told(told, &mut wake),
            gone = some(self.destroy.as_mut().map(DestroyEvents::next)) => wake.gone(gone),
            () = some(self.poll.as_mut().map(Poll::next)) => wake.anywhere = true,
            hint = other(&mut self.other) => wake.add(hint),
        }
        self.drain(&mut wake);
        wake
    }

    /// Adds the pending hints without waiting.
    pub fn drain(&mut self, wake: &mut Wake) {
        for _ in 0..MAX_DRAIN {
            let hint = self.tracepoint.as_mut().and_then(Tracepoint::try_next);
            let event = self.destroy.as_mut().and_then(DestroyEvents::try_next);
            let foreign = self.other.as_mut().and_then(|o| o.try_recv().ok());
            let told = self.notified.as_mut().and_then(Notified::try_next);
            if hint.is_none() && event.is_none() && foreign.is_none() && told.is_none() {
                break;
            }
            if let Some(told) = told {
                self.told(told, wake);
            }
            event.into_iter().for_each(|event| wake.gone(event));
            hint.into_iter().chain(foreign).for_each(|h| wake.add(h));
        }
    }

    /// Handles a report of the guest's first process. Once an unmonitored program runs, only the
    /// fast poll finds the listeners of that program and its descendants.
    fn told(&mut self, told: Told, wake: &mut Wake) {
        match told.hint() {
            Some(hint) => wake.add(hint),
            // Neither the process nor the port is known.
            None => wake.foreign.push(0),
        }
        if told.untold && self.poll.as_ref().is_some_and(|poll| poll.rate() != FAST) {
            info!("a program runs without notifications, polling socket counters as well");
            self.poll = Some(Poll::open(FAST));
            wake.anywhere = true;
        }
    }
}

impl Wake {
    fn add(&mut self, hint: Hint) {
        match hint {
            Hint::Listen { pid: 0, port, .. } => self.foreign.push(port),
            Hint::Listen { port, pid, at_ns } => self.listening.push(Began { port, pid, at_ns }),
            Hint::Unlisten { port: 0 } | Hint::Lost => self.anywhere = true,
            Hint::Unlisten { port } => self.ended.push(port),
        }
    }

    fn gone(&mut self, event: Destroy) {
        match event {
            Destroy::Closed { port, .. } => self.ended.push(port),
            Destroy::Overflow => self.anywhere = true,
        }
    }
}

/// Awaits the future if there is one; otherwise never completes.
async fn some<F: Future>(future: Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

/// The next foreign hint. Drops a channel whose sender is gone.
async fn other(source: &mut Option<mpsc::Receiver<Hint>>) -> Hint {
    if let Some(receiver) = source {
        if let Some(hint) = receiver.recv().await {
            return hint;
        }
        *source = None;
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn listen(port: u16, pid: u32) -> Hint {
        Hint::Listen {
            port,
            pid,
            at_ns: 5,
        }
    }

    fn foreign() -> (mpsc::Sender<Hint>, Hints) {
        let (tx, rx) = mpsc::channel(MAX_DRAIN * 2);
        (tx, Hints::default().also_from(rx))
    }

    #[tokio::test]
    async fn pending_hints_make_one_wake() {
        let (tx, mut hints) = foreign();
        for port in [80, 0, 81] {
            tx.try_send(listen(port, 7)).unwrap();
        }
        tx.try_send(Hint::Unlisten { port: 80 }).unwrap();
        let ports: Vec<_> = hints
            .next()
            .await
            .listening
            .iter()
            .map(|b| b.port)
            .collect();
        assert_eq!(ports, [80, 0, 81]);
        assert!(hints.other.as_mut().unwrap().try_recv().is_err());
    }

    #[tokio::test]
    async fn a_storm_is_gathered_in_bounded_pieces() {
        let (tx, mut hints) = foreign();
        for _ in 0..MAX_DRAIN * 2 {
            tx.try_send(listen(1, 7)).unwrap();
        }
        assert_eq!(hints.next().await.listening.len(), MAX_DRAIN + 1);
        assert_eq!(hints.next().await.listening.len(), MAX_DRAIN - 1);
    }

    #[tokio::test]
    async fn a_loss_wakes_without_a_fact() {
        let (tx, mut hints) = foreign();
        tx.try_send(Hint::Lost).unwrap();
        let wake = hints.next().await;
        assert!(wake.anywhere && wake.listening.is_empty());
    }

    #[tokio::test]
    async fn what_our_pid_namespace_does_not_show_is_not_urgent() {
        let (tx, mut hints) = foreign();
        tx.try_send(listen(80, 0)).unwrap();
        let foreign = Wake {
            foreign: vec![80],
            ..Wake::default()
        };
        assert_eq!(hints.next().await, foreign);
        tx.try_send(listen(80, 0)).unwrap();
        tx.try_send(listen(81, 7)).unwrap();
        tx.try_send(Hint::Unlisten { port: 82 }).unwrap();
        let (port, pid, at_ns) = (81, 7, 5);
        let all = Wake {
            listening: vec![Began { port, pid, at_ns }],
            ended: vec![82],
            ..foreign
        };
        assert_eq!(hints.next().await, all);
    }

    #[tokio::test]
    async fn a_rung_that_ends_is_forgotten() {
        let (tx, mut hints) = foreign();
        drop(tx);
        tokio::select! {
            biased;
            wake = hints.next() => panic!("{wake:?} out of nothing"),
            () = tokio::task::yield_now() => {}
        }
        assert!(hints.other.is_none());
    }
}
