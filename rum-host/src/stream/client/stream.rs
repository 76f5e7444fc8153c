//! The first connection to an agent: dials it, asks who it is, reads what it tells, and reports that.
//! [`Connection`] decides what follows.

use std::convert::Infallible;

use roam::facet::Facet;
use rum_shared::range::PortRange;
use rum_shared::stream::rpc::{CAP_LISTENERS, CAP_WATCH, HEARTBEAT_DEADLINE, WatchEvent, v1};
use rum_shared::stream::session::SessionError;
use rum_shared::transport::Knocks;
use tokio::sync::{mpsc, watch};

use super::connection::{Connection, End};
use super::{Agent, AgentClient, AgentEvent, EVENT_QUEUE, LinkState, POLL_PERIOD, connect};
use crate::clock;
use crate::stream::token_bucket::TokenBucket;
use crate::stream::validate::{StreamValidator, clean_error, items};

/// An item about more ports than this waits until no other does: so what waits is bounded by
/// about 25 MB of small items and one large one, whatever the agent says.
const LARGE: usize = 256;

/// How an agent tells what listens.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Method {
    WatchListeners,
    /// Those that know only this tell less.
    WatchPorts,
    /// For agents that cannot stream: the polls are the truth.
    Poll,
}

/// The first connection, and what it goes through.
pub(super) struct Stream<'a> {
    client: &'a AgentClient,
    events: &'a mpsc::Sender<AgentEvent>,
    link: &'a watch::Sender<LinkState>,
    connection: Connection,
    knocks: Knocks,
    allowance: TokenBucket,
}

impl<'a> Stream<'a> {
    pub fn new(
        client: &'a AgentClient,
        events: &'a mpsc::Sender<AgentEvent>,
        link: &'a watch::Sender<LinkState>,
    ) -> Self {
        let knocks = client.transport.knocks();
        Self {
            client,
            events,
            link,
            connection: Connection::new(knocks.can_arrive()),
            knocks,
            allowance: TokenBucket::new(clock::now()),
        }
    }

    /// Connects again and again, until nobody receives the events any more.
    pub async fn run(mut self, mut poll_now: watch::Receiver<()>) {
        let mut retry_now = self.client.retry_now.clone();
        if let Some(reason) = self.client.transport.endpoint().missing() {
            let retry = None;
            let lost = AgentEvent::Lost { reason, retry };
            if self.events.send(lost).await.is_err() {
                return;
            }
        }
        loop {
            if self.connection.awaits_knock() {
                self.knocks.ready().await;
            }
            let Err(end) = self.connect(&mut poll_now).await;
            self.knocks.clear();
            let Some((lost, delay)) = self.connection.ended(end, clock::now()) else {
                return;
            };
            self.link.send_replace(self.connection.link());
            if self.events.send(lost).await.is_err() {
                return;
            }
            retry_now.mark_unchanged();
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                Ok(()) = retry_now.changed() => {}
            }
        }
    }

    /// One connection, from its dial to its end, and the poll beside it.
    async fn connect(&mut self, poll_now: &mut watch::Receiver<()>) -> Result<Infallible, End> {
        let (client, events) = (self.client, self.events);
        let transport = &client.transport;
        let (session, info) = connect(transport).await?;
        let can = |what: &str| client.stream && info.capabilities.iter().any(|c| c == what);
        let method = if can(CAP_LISTENERS) {
            Method::WatchListeners
        } else if can(CAP_WATCH) {
            Method::WatchPorts
        } else {
            Method::Poll
        };
        let streaming = method != Method::Poll;
        let now = clock::now();
        if self.connection.answered(info.instance, streaming, now) {
            transport.succeeded();
        }
        transport.probe();
        transport.expect_heartbeats(streaming);
        let connected = AgentEvent::Connected { info, streaming };
        events.send(connected).await?;
        self.link.send_replace(self.connection.link());
        tokio::select! {
            end = self.follow(session, method) => end,
            end = client.poll_beside(events, poll_now), if streaming => Err(end),
        }
    }

    /// Follows the agent, at first in `session`.
    async fn follow(&mut self, mut session: Agent, method: Method) -> Result<Infallible, End> {
        loop {
            match method {
                Method::WatchListeners => self.watch_listeners(&session).await?,
                Method::WatchPorts => self.watch_ports(&session).await?,
                Method::Poll => self.poll(&session).await?,
            }
            // Asks anew: for another range, or in another session.
            if session.is_worn() {
                session = connect(&self.client.transport).await?.0;
            }
        }
    }

    async fn watch_listeners(&mut self, session: &Agent) -> Result<(), End> {
        let (tx, rx) = roam::channel();
        // Dropping an `Rx` or a call tells the agent nothing; dropping this does.
        let (_stop, stop) = roam::channel();
        let client = session.client().clone();
        let range = *self.client.range.borrow();
        let call = client.watch_listeners(range.min(), range.max(), tx, stop);
        self.watch(session, range, call, rx, WatchEvent::clone)
            .await
    }

    async fn watch_ports(&mut self, session: &Agent) -> Result<(), End> {
        let (tx, rx) = roam::channel();
        let (_stop, stop) = roam::channel();
        let client = session.client().clone();
        let range = *self.client.range.borrow();
        let call = client.watch_ports(range.min(), range.max(), tx, stop);
        let read = |item: &v1::WatchEvent| WatchEvent::from(item);
        self.watch(session, range, call, rx, read).await
    }

    /// Follows one stream about `range`, which `call` asks for, as long as that is wanted and
    /// `session` is not worn.
    async fn watch<Item: Facet<'static> + Send>(
        &mut self,
        session: &Agent,
        range: PortRange,
        call: impl Future<Output = Result<(), roam::RoamError<String>>>,
        mut rx: roam::Rx<Item>,
        read: impl Fn(&Item) -> WatchEvent,
    ) -> Result<(), End> {
        let ended = || "the agent ended the stream".to_owned();
        let mut wanted = self.client.range.clone();
        tokio::pin!(call);
        let mut validator = StreamValidator::new(range);
        while !session.is_worn() {
            let item = tokio::select! {
                // In this order: `recv` needs the channel that the call's first poll binds, and an
                // item that waits proves that a knock is an old one.
                biased;
                answer = &mut call => {
                    answer.map_err(SessionError::from)?;
                    return Err(ended().into());
                }
                () = session.closed() => return Err(SessionError::Closed.into()),
                Ok(_) = wanted.wait_for(|wanted| *wanted != range) => return Ok(()),
                item = tokio::time::timeout(HEARTBEAT_DEADLINE, rx.recv()) => item,
                () = self.knocks.next() => {
                    if self.connection.knocked(clock::now()) {
                        return Err(End::Superseded);
                    }
                    continue;
                }
            };
            let at = clock::now();
            let item = item
                .map_err(|_| End::Silent)?
                .map_err(|error| clean_error(format!("unreadable stream: {error:?}")))?
                .ok_or_else(ended)?;
            let event = validator.check(&read(&item))?;
            self.connection.heard(at);
            self.link.send_replace(self.connection.link());
            let items = items(&event);
            if items > LARGE {
                self.events.reserve_many(EVENT_QUEUE).await?;
            }
            let event = AgentEvent::Watch { at, range, event };
            self.events.send(event).await?;
            let pause = self.allowance.spend(items, clock::now());
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
        }
        Ok(())
    }

    /// Polls as long as `session` is not worn.
    async fn poll(&mut self, session: &Agent) -> Result<(), End> {
        let mut wanted = self.client.range.clone();
        while !session.is_worn() {
            let polled = self.client.poll(session, true).await?;
            self.connection.heard(clock::now());
            self.events.send(polled).await?;
            let range = *wanted.borrow_and_update();
            tokio::select! {
                () = session.closed() => return Err(SessionError::Closed.into()),
                Ok(_) = wanted.wait_for(|wanted| *wanted != range) => {}
                () = tokio::time::sleep(POLL_PERIOD) => {}
            }
        }
        Ok(())
    }
}
