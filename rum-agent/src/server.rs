//! Accepts sessions and channels and holds the agent together.
//!
//! One task each for the watcher, the RPC's acceptor, the channel's acceptor and the knocker;
//! an acceptor owns the tasks of what it accepted. Cancelling the shutdown token ends them from
//! the outside in: nothing more is accepted, sessions end, connections are reset.
//!
//! Invariants: no task outlives [`run`]; a failed accept (EMFILE and its kin) pauses and goes
//! on; a vsock peer that is neither the host nor allowed is turned away before a byte is read.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rum_shared::stream::rpc::{AgentInfo, CAP_LISTENERS, CAP_WATCH, PROTOCOL, RumAgentDispatcher};
use rum_shared::stream::session;
use rum_shared::stream::session::Limits;
use rum_shared::transport::{Acceptor, KnockTarget, ListenAddr, Stream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_vsock::VMADDR_CID_HOST;
use tracing::{debug, info, warn};

use crate::forward::{ChannelServer, MAX_CHANNELS, MAX_REFUSED};
use crate::hint::{HintError, HintKind, Hints};
use crate::kernel::{DumpError, tracepoint::ThreadName};
use crate::port_set::hub::Hub;
use crate::port_set::source::{Source, SourceKind};
use crate::port_set::watcher::Watcher;
use crate::schedule::LogThrottle;
use crate::stream::service::Service;

/// Sessions at once. A host needs two, four while it renews them; the rest is for tools. What one
/// can make the agent keep is bounded by [`Limits::AGENT`] and [`session::MAX_CALLS`].
pub const MAX_SESSIONS: usize = 16;
/// Pause after an accept that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Time for tasks to end by themselves at shutdown; they only have to notice.
const STOP_GRACE: Duration = Duration::from_secs(1);
/// Longest text that is told, in characters: as long as a host name may be (HOST_NAME_MAX,
/// limits.h). A boot id has 36.
const MAX_TEXT: usize = 64;

/// How an agent is to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where sessions are accepted.
    pub rpc: ListenAddr,
    /// Where forward channels are accepted.
    pub channel: ListenAddr,
    /// The source to use; `None` for the best that can be had.
    pub source: Option<SourceKind>,
    /// The hints to use; `None` for the best that can be had.
    pub hint: Option<HintKind>,
    /// The inherited pipe on which the guest's first process tells of `listen()`, if it does.
    pub notified: Option<i32>,
    /// The inherited file in which to tell that process the ports that are wanted.
    pub wanted: Option<i32>,
    /// The name of the threads of a host on the same kernel, whose listeners are none of ours.
    pub host_threads: Option<ThreadName>,
    /// Where to knock while nobody has a stream.
    pub knock: Option<KnockTarget>,
    /// vsock peers that are served beside the host (CID 2). CID 1 is this machine itself.
    pub allow_cid: Vec<u32>,
    /// Hand connected sockets to a host on the same kernel.
    pub hand_over: bool,
}

/// Why an agent could not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A listening socket could not be had.
    #[error("cannot listen on {addr}")]
    Listen {
        /// Where.
        addr: ListenAddr,
        /// Why.
        source: io::Error,
    },
    /// The forced source cannot be used.
    #[error("the source `netlink` cannot be used")]
    Source(#[source] DumpError),
    /// The forced hint cannot be used.
    #[error(transparent)]
    Hint(#[from] HintError),
    /// A part of the agent ended by itself, which is a defect.
    #[error("a part of the agent stopped")]
    Part(#[source] Option<tokio::task::JoinError>),
}

/// Runs an agent until `shutdown` is cancelled. Call it inside a tokio runtime with time and
/// I/O enabled.
///
/// # Errors
/// [`AgentError`]; the agent has stopped then.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), AgentError> {
    let bind = |addr: &ListenAddr| {
        addr.bind().map_err(|source| AgentError::Listen {
            addr: addr.clone(),
            source,
        })
    };
    let rpc = bind(&config.rpc)?;
    let channel = bind(&config.channel)?;
    let source = Source::open(config.source).map_err(AgentError::Source)?;
    // SAFETY: inherited for this; the command line names them to nobody else in this process.
    let [notified, wanted] =
        [config.notified, config.wanted].map(|fd| fd.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
    let hints = Hints::open(config.hint, notified, wanted, config.host_threads)?;
    let info = Arc::new(agent_info(&source, &hints));
    info!(source = info.source, hint = info.hint, "watching");

    let hub = Arc::new(Hub::default());
    let (watcher, refresh) = Watcher::new(source, hints, hub.clone());
    let stop = shutdown.child_token();
    let _stop_all = stop.clone().drop_guard();
    let forwarder = ChannelServer::new(hub.clone(), config.hand_over, stop.clone());
    let streamed = hub.hull();
    let service = Service {
        info,
        hub,
        refresh,
        too_old: Arc::default(),
    };

    let rpc = Gate {
        acceptor: rpc,
        what: "session",
        places: MAX_SESSIONS,
        full: Full::Refuse,
        allow_cid: config.allow_cid.clone(),
    };
    let channel = Gate {
        acceptor: channel,
        what: "channel",
        places: MAX_CHANNELS + MAX_REFUSED,
        full: Full::Wait,
        allow_cid: config.allow_cid,
    };
    let mut parts = JoinSet::new();
    parts.spawn(watcher.run(stop.clone()));
    let end_sessions = stop.clone();
    parts.spawn(rpc.run(stop.clone(), move |stream| {
        let (service, stop) = (service.clone(), end_sessions.clone());
        async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = serve_session(stream, service) => {}
            }
        }
    }));
    parts.spawn(channel.run(stop.clone(), move |stream| forwarder.clone().serve(stream)));
    if let Some(target) = config.knock {
        parts.spawn(crate::stream::knock::run(target, streamed, stop.clone()));
    }

    let result = tokio::select! {
        biased; // a shutdown ends the parts as well
        () = shutdown.cancelled() => Ok(()),
        ended = parts.join_next() => Err(AgentError::Part(ended.and_then(Result::err))),
    };
    stop.cancel();
    let all_ended = async { while parts.join_next().await.is_some() {} };
    if tokio::time::timeout(STOP_GRACE * 2, all_ended)
        .await
        .is_err()
    {
        warn!("parts of the agent did not end in time and were aborted");
        parts.shutdown().await;
    }
    result
}

async fn serve_session(stream: Stream, service: Service) {
    let dispatcher = RumAgentDispatcher::new(service.for_session());
    match session::serve(stream, Limits::AGENT, dispatcher).await {
        Ok(()) => debug!("a session ended"),
        Err(error) => debug!("a session ended: {}", crate::chain(&error)),
    }
}

/// What to do with a connection for which there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Full {
    /// Close it and say so in the log.
    Refuse,
    /// Leave it in the backlog until there is one.
    Wait,
}

/// Accepts on one socket, with a bounded number of tasks.
struct Gate {
    acceptor: Acceptor,
    what: &'static str,
    places: usize,
    full: Full,
    allow_cid: Vec<u32>,
}

impl Gate {
    /// Runs `serve` for each connection until `stop` is cancelled; then gives the tasks
    /// [`STOP_GRACE`] and aborts the rest.
    async fn run<F>(mut self, stop: CancellationToken, serve: impl Fn(Stream) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut tasks = JoinSet::new();
        let mut log = LogThrottle::default();
        loop {
            let wait = self.full == Full::Wait && tasks.len() >= self.places;
            tokio::select! {
                () = stop.cancelled() => break,
                Some(ended) = tasks.join_next() => self.ended(ended),
                accepted = self.acceptor.accept(), if !wait => match accepted {
                    Ok((stream, peer)) if self.admits(peer, tasks.len(), &mut log) => {
                        tasks.spawn(serve(stream));
                    }
                    Ok(_) => {}
                    Err(error) => {
                        if log.allows(Instant::now()) {
                            warn!("a {} could not be accepted: {error}", self.what);
                        }
                        tokio::select! {
                            () = stop.cancelled() => break,
                            () = sleep(ACCEPT_PAUSE) => {}
                        }
                    }
                }
            }
        }
        drop(self.acceptor);
        let all_ended = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_GRACE, all_ended).await.is_err() {
            debug!("aborting {} {} tasks", tasks.len(), self.what);
            tasks.shutdown().await;
        }
    }

    /// Whether a connection from `peer` is served while `present` others are.
    fn admits(&self, peer: Option<u32>, present: usize, log: &mut LogThrottle) -> bool {
        let known = match peer {
            None | Some(VMADDR_CID_HOST) => true,
            Some(cid) => self.allow_cid.contains(&cid),
        };
        if !known && log.allows(Instant::now()) {
            let cid = peer.unwrap_or_default();
            warn!(
                "a {} from CID {cid}, which is not the host, was refused (--allow-cid)",
                self.what
            );
        }
        if known && present >= self.places && log.allows(Instant::now()) {
            let (what, places) = (self.what, self.places);
            warn!("a {what} was refused, since {places} are open already");
        }
        known && present < self.places
    }

    fn ended(&self, result: Result<(), tokio::task::JoinError>) {
        if let Err(error) = result {
            warn!("a {} ended by a defect: {error}", self.what);
        }
    }
}

/// What `hello` answers.
fn agent_info(source: &Source, hints: &Hints) -> AgentInfo {
    AgentInfo {
        protocol: PROTOCOL,
        version: env!("CARGO_PKG_VERSION").into(),
        hostname: kernel_text("hostname"),
        boot_id: kernel_text("random/boot_id"),
        instance: random_u64(),
        source: source.kind().word().into(),
        hint: hints.kind().word().into(),
        capabilities: vec![CAP_WATCH.into(), CAP_LISTENERS.into()],
    }
}

/// A text from /proc/sys/kernel, empty where that cannot be read.
fn kernel_text(name: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/sys/kernel/{name}"))
        .inspect_err(|error| debug!("no {name}: {error}"))
        .unwrap_or_default();
    text.trim_end().chars().take(MAX_TEXT).collect()
}

/// A number that no other agent process has.
fn random_u64() -> u64 {
    let mut bytes = [0; 8];
    match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()) {
        Ok(_) => u64::from_ne_bytes(bytes),
        // Linux before 3.17. The id alone may be the same after a reboot.
        Err(_) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            let now = now.unwrap_or_default().as_nanos() as u64;
            now ^ (u64::from(std::process::id()) << 40)
        }
    }
}

#[cfg(test)]
mod tests;
