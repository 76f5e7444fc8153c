//! The safety net of step 3: asks the agent each second what listens, on a connection of its own, so
//! that what the stream missed is found; or as the only way, of an agent without a stream.

use std::time::Instant;

use rum_shared::range::PortRange;
use rum_shared::stream::session::{CALLS_PER_SESSION, SessionError};
use tokio::sync::{mpsc, watch};

use super::{
    Agent, AgentClient, AgentEvent, CALL_DEADLINE, Ended, Gone, LinkState, Over, POLL_PERIOD,
    connect,
};
use crate::clock;
use crate::stream::validate::{clean_error, clean_ports};

impl AgentClient {
    /// For agents without `watch_ports`: the polls are the truth.
    pub(super) async fn poll_as_truth(
        &self,
        session: &Agent,
        events: &mpsc::Sender<AgentEvent>,
        heard: &mut Option<Instant>,
    ) -> Ended {
        for _ in 0..CALLS_PER_SESSION {
            let polled = self.poll(session, true).await.map_err(clean_error)?;
            heard.get_or_insert_with(clock::now);
            if events.send(polled).await.is_err() {
                return Ok(Over::Gone);
            }
            let mut wanted = self.range.clone();
            let range = *wanted.borrow_and_update();
            tokio::select! {
                () = session.closed() => return Err("the connection was closed".to_owned().into()),
                Ok(_) = wanted.wait_for(|wanted| *wanted != range) => {}
                () = tokio::time::sleep(POLL_PERIOD) => {}
            }
        }
        Ok(Over::Worn)
    }

    async fn poll(&self, session: &Agent, authoritative: bool) -> Result<AgentEvent, SessionError> {
        let sent = clock::now();
        let range = *self.range.borrow();
        let client = session.client().clone();
        // All: for the agent it is the same dump, and what listens beside the range is of interest.
        let all = PortRange::ALL;
        let call = client.listening_ports(all.min(), all.max());
        let answer = session.call(CALL_DEADLINE, call).await?;
        let ports = clean_ports(answer.ports, all).ok_or(SessionError::Invalid)?;
        let (ports, outside) = ports.into_iter().partition(|port| range.contains(*port));
        Ok(AgentEvent::Polled {
            sent,
            range,
            ports,
            outside,
            authoritative,
        })
    }

    /// Waits until it is time for the next poll. Where a byte must not go out while the guest is
    /// away, that is right after a sign of life, which comes each second.
    async fn poll_time(&self, link: &mut watch::Receiver<LinkState>) {
        if self.endpoint.gate().is_none() {
            return tokio::time::sleep(POLL_PERIOD).await;
        }
        tokio::time::sleep(POLL_PERIOD / 2).await;
        link.mark_unchanged();
        // Its sender lives as long as this.
        let _ = link.changed().await;
    }

    /// The safety net: polls while the stream is up, on a connection of its own.
    pub(super) async fn run_poll(
        &self,
        events: &mpsc::Sender<AgentEvent>,
        mut link: watch::Receiver<LinkState>,
        mut poll_now: watch::Receiver<()>,
    ) -> Gone {
        let mut session: Option<Agent> = None;
        let mut calls = 0u32;
        let mut pace = link.clone();
        loop {
            if !link.borrow().is_streaming() {
                // The next stream may be another boot's.
                session = None;
            }
            // The senders live as long as `run`, and this future is dropped with it.
            let _ = link.wait_for(|s| s.is_streaming()).await;
            let closed = async {
                match &session {
                    Some(session) => session.closed().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.poll_time(&mut pace) => {}
                Ok(()) = poll_now.changed() => {}
                // The stream will notice, too, now that it asks: until then nothing is dialled.
                () = closed => {
                    self.endpoint.probe();
                    session = None;
                    continue;
                }
            }
            let dials = session.is_none() || calls >= CALLS_PER_SESSION;
            if dials && self.endpoint.gate().is_some() && !link.borrow().is_fresh(clock::now()) {
                // There is no hurry: dial right after a sign of life, see `may_dial`.
                link.mark_unchanged();
                let _ = link.changed().await;
            }
            if !link.borrow().is_streaming() {
                continue;
            }
            if dials {
                // The old session is dropped only once the new one stands.
                match connect(&self.endpoint).await {
                    Ok((new, _)) => (session, calls) = (Some(new), 0),
                    Err(error) => tracing::debug!(%error, "the poll cannot connect"),
                }
            }
            let Some(current) = &session else { continue };
            calls += 1;
            match self.poll(current, false).await {
                Ok(polled) => {
                    if events.send(polled).await.is_err() {
                        return Gone;
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "a poll failed");
                    self.endpoint.probe();
                    session = None;
                }
            }
        }
    }
}
