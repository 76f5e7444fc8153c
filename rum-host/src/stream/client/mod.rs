//! Step 3 of the data flow, the host's end: the connections to one agent.
//!
//! There are two, so that neither delays the other. The first subscribes to the agent's changes
//! (`stream`), the second asks each second what listens (`poll`), as the safety net. Both
//! reconnect by themselves and only report ([`AgentEvent`]); the supervisor decides. What follows
//! from what happens on the first one is in `connection`, which is pure. An agent without
//! `watch_ports` is polled on the first connection, and its answers are the truth.
//!
//! Invariants: the agent is hostile until proven otherwise. Every call has a deadline, every
//! listener is validated, generations rise; what breaks a rule ends that connection, is
//! reported, and a new one starts with a fresh snapshot. Strings are cleaned here, once. An agent
//! that tells more than an honest one would is read more slowly (`TokenBucket`), one that ends its
//! connections again and again is tried less often, and at most one large item waits.

use std::time::{Duration, Instant};

use rum_shared::range::PortRange;
use rum_shared::stream::rpc::{AgentInfo, OLDEST_PROTOCOL, PROTOCOL, RumAgentClient, WatchEvent};
use rum_shared::stream::session::{Limits, Session, SessionError};
use rum_shared::transport::{Service, Transport};
use tokio::sync::{mpsc, watch};

use super::validate::{clean_error, clean_info};
use crate::VERSION;

mod connection;
mod poll;
mod stream;

pub use poll::POLL_PERIOD;

/// Time for a call to be answered.
const CALL_DEADLINE: Duration = Duration::from_secs(3);
/// Events that may wait for the supervisor; more hold the stream back.
pub const EVENT_QUEUE: usize = 64;

/// What happened on the connections to the agent.
#[derive(Debug)]
pub enum AgentEvent {
    /// The first connection stands. A snapshot will follow, or polls when `streaming` is
    /// false.
    Connected {
        /// Who answered, cleaned.
        info: AgentInfo,
        /// Whether it streams.
        streaming: bool,
    },
    /// An item of the stream, validated and cleaned.
    Watch {
        /// When it arrived.
        at: Instant,
        /// What it is about: it says nothing of other ports.
        range: PortRange,
        /// The item.
        event: WatchEvent,
    },
    /// The answer to a poll.
    Polled {
        /// When it was asked.
        sent: Instant,
        /// What was asked for.
        range: PortRange,
        /// Sorted, without duplicates, within the range.
        ports: Vec<u16>,
        /// The others that listen, likewise.
        outside: Vec<u16>,
        /// Whether polls are the only source of truth (no stream).
        authoritative: bool,
    },
    /// The first connection is gone.
    Lost {
        /// Why, in words.
        reason: String,
        /// When the next attempt is made; `None`: once the agent knocks.
        retry: Option<Duration>,
    },
}

/// How the first connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkState {
    /// No agent.
    Down,
    /// Up, without a stream.
    Polling,
    /// Up, with a stream that was last heard at this time.
    Streaming(Instant),
}

/// The connections to one agent.
#[derive(Debug, Clone)]
pub struct AgentClient {
    /// What leads to the agent.
    pub transport: Transport,
    /// What to ask for; a change takes effect at once.
    pub range: watch::Receiver<PortRange>,
    /// False: behave as if the agent could not stream (measurements).
    pub stream: bool,
    /// A change makes a lost agent be tried at once.
    pub retry_now: watch::Receiver<()>,
}

type Agent = Session<RumAgentClient>;

/// Connects once to the agent behind `transport`, and asks who it is.
pub(crate) async fn connect(transport: &Transport) -> Result<(Agent, AgentInfo), SessionError> {
    let stream = transport
        .dial(Service::Rpc)
        .await
        .map_err(|error| SessionError::Unreachable(clean_error(error)))?;
    let session = Agent::connect(stream, Limits::HOST).await?;
    let client = session.client().clone();
    let info = session.call(CALL_DEADLINE, client.hello(PROTOCOL)).await;
    let info = info.map_err(|error| match error {
        SessionError::UnknownMethod | SessionError::Invalid => SessionError::Unreachable(format!(
            "what answers is no rum-agent that rum {VERSION} understands ({error}); `rum agent \
                 install` tells how to update one"
        )),
        error => error,
    })?;
    let info = clean_info(info);
    if info.protocol < OLDEST_PROTOCOL {
        let (version, protocol) = (&info.version, info.protocol);
        return Err(SessionError::Unreachable(format!(
            "rum {VERSION} no longer understands rum-agent {version} (protocol {protocol}); `rum agent \
                 install` tells how to update it"
        )));
    }
    Ok((session, info))
}

impl AgentClient {
    /// Runs both connections until the receiver of `events` is dropped. `link` tells others
    /// how the first one stands; a value sent on `poll_now` makes the poll ask at once.
    pub async fn run(
        self,
        events: mpsc::Sender<AgentEvent>,
        link: watch::Sender<LinkState>,
        poll_now: watch::Receiver<()>,
    ) {
        let stream = stream::Stream::new(&self, &events, &link);
        tokio::select! {
            () = events.closed() => {}
            () = stream.run(poll_now) => {}
        }
        link.send_replace(LinkState::Down);
    }
}
