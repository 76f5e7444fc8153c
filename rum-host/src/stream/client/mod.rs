//! Step 3 of the data flow, the host's end: the connections to one agent.
//!
//! Two connections, so that neither delays the other: the *stream* subscribes to
//! `watch_ports`, the *poll* asks `listening_ports` each second as the safety net. Both
//! reconnect by themselves with jittered backoff; both only report ([`AgentEvent`]), the
//! supervisor decides. An agent without `watch_ports` is polled on the first connection, and
//! its answers are the truth.
//!
//! Invariants: the agent is hostile until proven otherwise. Every call has a deadline, every
//! listener is validated, generations rise; what breaks a rule ends that connection, is
//! reported, and a new one starts with a fresh snapshot. Strings are cleaned here, once. One that
//! tells more than an honest agent would is read more slowly ([`TokenBucket`]), one that ends its
//! connections again and again is tried less often ([`STEADY`]), and at most one large item waits.

use std::time::{Duration, Instant};

use roam::facet::Facet;
use rum_shared::range::PortRange;
use rum_shared::stream::rpc::{
    AgentInfo, CAP_LISTENERS, CAP_WATCH, HEARTBEAT_DEADLINE, OLDEST_PROTOCOL, PROTOCOL,
    RumAgentClient, WatchEvent, v1,
};
use rum_shared::stream::session::{Limits, Session, SessionError};
use rum_shared::transport::{Endpoint, Knocks, SILENCE, Service};
use tokio::sync::{mpsc, watch};

use super::validate::{StreamValidator, clean_error, clean_info, items};
use crate::VERSION;
use crate::clock;
use crate::stream::backoff::Backoff;
use crate::stream::token_bucket::TokenBucket;

mod poll;

/// Distance of two reconciliation polls.
pub const POLL_PERIOD: Duration = Duration::from_secs(1);
/// Time for a call to be answered.
const CALL_DEADLINE: Duration = Duration::from_secs(3);
/// What was heard so lately is certainly not away.
const FRESH: Duration = Duration::from_millis(100);
/// Events that may wait for the supervisor; more hold the stream back.
pub const EVENT_QUEUE: usize = 64;

/// An item about more ports than this waits until no other does: so what waits is bounded by
/// about 25 MB of small items and one large one, whatever the agent says.
const LARGE: usize = 256;
/// A first connection that lasted this long was a good one. Of those that did not, one in a row
/// is excused (an agent that restarts); the others are tried again after growing delays.
const STEADY: Duration = Duration::from_millis(500);

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

impl LinkState {
    /// Whether the agent may be dialled at `now`. Not while a stream is silent that should have
    /// been heard: the guest may be stopped or rebooting, and there are devices that do not
    /// survive a `CONNECT` then (see [`Gate`](rum_shared::transport::Gate)).
    pub fn may_dial(self, now: Instant) -> bool {
        match self {
            Self::Down => false,
            Self::Polling => true,
            Self::Streaming(heard) => now.saturating_duration_since(heard) <= SILENCE,
        }
    }

    /// Whether the stream was heard just before `now`.
    fn is_fresh(self, now: Instant) -> bool {
        matches!(self, Self::Streaming(heard) if now.saturating_duration_since(heard) <= FRESH)
    }

    fn is_streaming(self) -> bool {
        matches!(self, Self::Streaming(_))
    }
}

/// The connections to one agent.
#[derive(Debug, Clone)]
pub struct AgentClient {
    /// Where the agent is.
    pub endpoint: Endpoint,
    /// What to ask for; a change takes effect at once.
    pub range: watch::Receiver<PortRange>,
    /// False: behave as if the agent could not stream (measurements).
    pub stream: bool,
    /// A change makes a lost agent be tried at once.
    pub retry_now: watch::Receiver<()>,
    /// Raised when another agent answers in the place of one that fell silent. A guest that
    /// reboots inside its VM ends no stream: whatever led to the old one would hang for ever. Of one that goes
    /// back to a snapshot the same agent answers, and only its kernel can tell ([`Endpoint::probe`]).
    pub successions: watch::Sender<u64>,
}

/// What a stream of the agent goes through.
struct Stream<'a> {
    session: &'a Agent,
    events: &'a mpsc::Sender<AgentEvent>,
    link: &'a watch::Sender<LinkState>,
    allowance: &'a mut TokenBucket,
    heard: &'a mut Option<Instant>,
}

/// The supervisor is gone: nothing is left to do.
struct Gone;

/// How a connection ended, or why it was lost.
type Ended = Result<Over, Loss>;

/// Why a connection was lost.
struct Loss {
    /// In words.
    reason: String,
    /// Nothing ended: it only was not heard any more.
    silent: bool,
    /// The agent has knocked for the next one.
    knocked: bool,
}

impl From<String> for Loss {
    fn from(reason: String) -> Self {
        Self {
            reason,
            silent: false,
            knocked: false,
        }
    }
}

/// The agents that were met.
#[derive(Default)]
struct Met {
    /// [`AgentInfo::instance`] of the latest.
    instance: Option<u64>,
    /// It has fallen silent.
    silent: bool,
}

impl Met {
    /// An agent answers. Whether it has succeeded one that fell silent.
    fn answers(&mut self, instance: u64) -> bool {
        let before = self.instance.replace(instance);
        std::mem::take(&mut self.silent) && before.is_some_and(|before| before != instance)
    }
}

/// An end that is no loss.
enum Over {
    /// The supervisor is gone.
    Gone,
    /// The session has received about as much as one may: make a new one, then drop it.
    Worn,
    /// Another range is wanted: ask again.
    Range,
}

pub(crate) type Agent = Session<RumAgentClient>;

/// Connects once to the agent at `endpoint`, and asks who it is.
pub(crate) async fn connect(endpoint: &Endpoint) -> Result<(Agent, AgentInfo), SessionError> {
    let stream = endpoint
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

/// Completes with a knock of an agent whose stream on `link` is silent: nobody has a stream of it,
/// so ours is one of before a reboot of which nothing told, or one that it has given up. A knock on
/// a stream that is heard was on its way when that began.
async fn superseded(knocks: Option<&mut Knocks>, link: &watch::Sender<LinkState>) {
    let Some(knocks) = knocks else {
        return std::future::pending().await;
    };
    loop {
        knocks.knock().await;
        let state = *link.borrow();
        if state.is_streaming() && !state.may_dial(clock::now()) {
            return;
        }
    }
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
        let state = link.subscribe();
        tokio::select! {
            () = events.closed() => {}
            Gone = self.run_stream(&events, &link) => {}
            Gone = self.run_poll(&events, state, poll_now) => {}
        }
        link.send_replace(LinkState::Down);
    }

    async fn run_stream(
        &self,
        events: &mpsc::Sender<AgentEvent>,
        link: &watch::Sender<LinkState>,
    ) -> Gone {
        let mut backoff = Backoff::default();
        let mut met = Met::default();
        let mut allowance = TokenBucket::new(clock::now());
        let mut excused = false;
        let mut retry_now = self.retry_now.clone();
        let mut knocks = self.endpoint.knocks();
        let mut knocked = false;
        if let Some(reason) = self.endpoint.missing() {
            let lost = AgentEvent::Lost {
                reason,
                retry: None,
            };
            if events.send(lost).await.is_err() {
                return Gone;
            }
        }
        loop {
            if let Some(knocks) = &mut knocks
                && !std::mem::take(&mut knocked)
                && knocks.listen()
            {
                // A `CONNECT` while the guest boots breaks some devices for good.
                knocks.next().await;
            }
            let mut heard = None;
            let ended = tokio::select! {
                biased;
                ended = self.stream_once(events, link, &mut allowance, &mut heard, &mut met) => ended,
                () = superseded(knocks.as_mut(), link) => Err(Loss {
                    reason: "the agent is there anew".to_owned(),
                    silent: true,
                    knocked: true,
                }),
            };
            match heard {
                Some(since) if clock::now() - since >= STEADY => {
                    excused = false;
                    backoff.reset();
                }
                Some(_) if !excused => {
                    excused = true;
                    backoff.reset();
                }
                _ => {}
            }
            if let Some(knocks) = &mut knocks {
                knocks.clear();
            }
            link.send_replace(LinkState::Down);
            let Err(loss) = ended else {
                return Gone;
            };
            let reason = loss.reason;
            met.silent |= loss.silent;
            knocked = loss.knocked;
            let retry = backoff.next_delay();
            let lost = AgentEvent::Lost {
                reason,
                retry: (knocks.is_none() || knocked).then_some(retry),
            };
            if events.send(lost).await.is_err() {
                return Gone;
            }
            retry_now.mark_unchanged();
            tokio::select! {
                () = tokio::time::sleep(retry) => {}
                Ok(()) = retry_now.changed() => {}
            }
        }
    }

    /// One first connection, from dial to loss; `heard` is set to when the agent first told
    /// something. `Ok` when the supervisor is gone.
    async fn stream_once(
        &self,
        events: &mpsc::Sender<AgentEvent>,
        link: &watch::Sender<LinkState>,
        allowance: &mut TokenBucket,
        heard: &mut Option<Instant>,
        met: &mut Met,
    ) -> Result<(), Loss> {
        let (mut session, info) = connect(&self.endpoint).await.map_err(clean_error)?;
        if met.answers(info.instance) {
            self.successions.send_modify(|count| *count += 1);
        }
        self.endpoint.probe();
        let can = |what: &str| info.capabilities.iter().any(|c| c == what);
        let detailed = can(CAP_LISTENERS);
        let streaming = self.stream && (detailed || can(CAP_WATCH));
        if let Some(gate) = self.endpoint.gate() {
            gate.guard(streaming);
        }
        let connected = AgentEvent::Connected { info, streaming };
        if events.send(connected).await.is_err() {
            return Ok(());
        }
        link.send_replace(if streaming {
            LinkState::Streaming(clock::now())
        } else {
            LinkState::Polling
        });
        loop {
            let stream = Stream {
                session: &session,
                events,
                link,
                allowance,
                heard,
            };
            let over = match streaming {
                true if detailed => self.watch_listeners(stream).await?,
                true => self.watch_ports(stream).await?,
                false => self.poll_as_truth(&session, events, heard).await?,
            };
            match over {
                Over::Gone => return Ok(()),
                Over::Range => {}
                Over::Worn => session = connect(&self.endpoint).await.map_err(clean_error)?.0,
            }
        }
    }

    async fn watch_listeners(&self, stream: Stream<'_>) -> Ended {
        let (tx, rx) = roam::channel();
        // Dropping an `Rx` or a call tells the agent nothing; dropping this does.
        let (_stop, stop) = roam::channel();
        let client = stream.session.client().clone();
        let range = *self.range.borrow();
        let call = client.watch_listeners(range.min(), range.max(), tx, stop);
        self.watch(stream, range, call, rx, WatchEvent::clone).await
    }

    /// For agents that tell less.
    async fn watch_ports(&self, stream: Stream<'_>) -> Ended {
        let (tx, rx) = roam::channel();
        let (_stop, stop) = roam::channel();
        let client = stream.session.client().clone();
        let range = *self.range.borrow();
        let call = client.watch_ports(range.min(), range.max(), tx, stop);
        let read = |item: &v1::WatchEvent| WatchEvent::from(item);
        self.watch(stream, range, call, rx, read).await
    }

    /// Follows one stream about `range`, which `call` asks for.
    async fn watch<Item: Facet<'static> + Send>(
        &self,
        stream: Stream<'_>,
        range: PortRange,
        call: impl Future<Output = Result<(), roam::RoamError<String>>>,
        mut rx: roam::Rx<Item>,
        read: impl Fn(&Item) -> WatchEvent,
    ) -> Ended {
        let Stream {
            session,
            events,
            link,
            allowance,
            heard,
        } = stream;
        let mut wanted = self.range.clone();
        tokio::pin!(call);
        let mut validator = StreamValidator::new(range);
        loop {
            let item = tokio::select! {
                // In this order: `recv` needs the channel that the call's first poll binds.
                biased;
                ended = &mut call => return Err(match ended {
                    Ok(()) => "the agent ended the stream".to_owned(),
                    Err(roam::RoamError::User(text)) => clean_error(text),
                    Err(error) => clean_error(SessionError::from(error)),
                }.into()),
                () = session.closed() => return Err("the connection was closed".to_owned().into()),
                Ok(_) = wanted.wait_for(|wanted| *wanted != range) => return Ok(Over::Range),
                item = tokio::time::timeout(HEARTBEAT_DEADLINE, rx.recv()) => item,
            };
            let at = clock::now();
            let item = item
                .map_err(|_| Loss {
                    reason: format!("no heartbeat for {} s", HEARTBEAT_DEADLINE.as_secs()),
                    silent: true,
                    knocked: false,
                })?
                .map_err(|error| clean_error(format!("unreadable stream: {error:?}")))?
                .ok_or_else(|| "the agent ended the stream".to_owned())?;
            let event = validator.check(&read(&item))?;
            heard.get_or_insert(at);
            link.send_replace(LinkState::Streaming(at));
            let items = items(&event);
            if items > LARGE && events.reserve_many(EVENT_QUEUE).await.is_err() {
                return Ok(Over::Gone);
            }
            let event = AgentEvent::Watch { at, range, event };
            if events.send(event).await.is_err() {
                return Ok(Over::Gone);
            }
            let pause = allowance.spend(items, clock::now());
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            if session.is_worn() {
                return Ok(Over::Worn);
            }
        }
    }
}
