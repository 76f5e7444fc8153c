//! The safety net of step 3: asks the agent each second what listens, on a connection of its own, so
//! that what the stream missed is found.

use std::time::Duration;

use rum_shared::range::PortRange;
use rum_shared::stream::session::SessionError;
use tokio::sync::{mpsc, watch};

use super::connection::End;
use super::{Agent, AgentClient, AgentEvent, CALL_DEADLINE, connect};
use crate::clock;
use crate::stream::validate::clean_ports;

/// Distance of two reconciliation polls.
pub const POLL_PERIOD: Duration = Duration::from_secs(1);

impl AgentClient {
    /// Polls as long as a stream stands, and no longer: the next one may be another boot's.
    pub(super) async fn poll_beside(
        &self,
        events: &mpsc::Sender<AgentEvent>,
        poll_now: &mut watch::Receiver<()>,
    ) -> End {
        let mut session: Option<Agent> = None;
        loop {
            let closed = async {
                match &session {
                    Some(session) => session.closed().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.transport.pause(POLL_PERIOD) => {}
                Ok(()) = poll_now.changed() => {}
                // The stream will notice, too, now that it asks: until then nothing is dialled.
                () = closed => {
                    self.transport.probe();
                    session = None;
                    continue;
                }
            }
            if session.as_ref().is_none_or(Agent::is_worn) {
                self.transport.ready().await;
                // The old session is dropped only once the new one stands.
                match connect(&self.transport).await {
                    Ok((new, _)) => session = Some(new),
                    Err(error) => tracing::debug!(%error, "the poll cannot connect"),
                }
            }
            let Some(current) = &session else { continue };
            match self.poll(current, false).await {
                Ok(polled) => {
                    if let Err(stopped) = events.send(polled).await {
                        return stopped.into();
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "a poll failed");
                    self.transport.probe();
                    session = None;
                }
            }
        }
    }

    /// Asks once what listens.
    pub(super) async fn poll(
        &self,
        session: &Agent,
        authoritative: bool,
    ) -> Result<AgentEvent, SessionError> {
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
}
