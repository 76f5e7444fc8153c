//! Step 3 of the data flow: the service that the host calls.
//!
//! Invariants: what the host sends is checked before use; a stream runs inside its handler, so
//! it ends with its session; nothing is streamed or answered before the first dump has
//! succeeded, since an empty answer would say that nothing listens.

use std::sync::{Arc, OnceLock};

use roam::facet::Facet;
use roam::{Rx, Tx};
use rum_shared::range::PortRange;
use rum_shared::stream::rpc::{
    AgentInfo, HEARTBEAT, HEARTBEAT_DEADLINE, ListeningPortsResponse, OLDEST_PROTOCOL,
    ReadyResponse, RumAgent, WatchEvent, fit, v1,
};

use crate::port_set::hub::{Hub, MAX_SUBSCRIBERS, Subscription, Update};
use crate::port_set::watcher::Refresh;

/// The agent as its sessions see it.
#[derive(Debug, Clone)]
pub struct Service {
    /// Who we are, answered to `hello`.
    pub info: Arc<AgentInfo>,
    /// The set and its changes.
    pub hub: Arc<Hub>,
    /// For fresh dumps.
    pub refresh: Refresh,
    /// The protocol of a host that is too old, once it has introduced itself in this session.
    pub too_old: Arc<OnceLock<u32>>,
}

impl Service {
    /// The same for another session.
    pub fn for_session(&self) -> Self {
        Self {
            too_old: Arc::default(),
            ..self.clone()
        }
    }

    /// Whether the host of this session can be told anything, of which it might understand something else.
    fn understood(&self) -> Result<(), String> {
        match self.too_old.get() {
            None => Ok(()),
            Some(protocol) => Err(format!(
                "rum-agent {} no longer understands this rum (protocol {protocol}): update rum on the host",
                self.info.version
            )),
        }
    }
}

impl RumAgent for Service {
    async fn hello(&self, protocol: u32) -> AgentInfo {
        tracing::debug!(protocol, "hello");
        if protocol < OLDEST_PROTOCOL {
            self.too_old.get_or_init(|| protocol);
        }
        (*self.info).clone()
    }

    async fn ping(&self) -> Result<ReadyResponse, String> {
        Ok(ReadyResponse {
            ready: self.hub.current().generation > 0,
        })
    }

    async fn listening_ports(&self, min: u16, max: u16) -> Result<ListeningPortsResponse, String> {
        self.understood()?;
        let range = range(min, max)?;
        let ports = self.refresh.fresh().await?;
        Ok(ListeningPortsResponse {
            ports: ports.range(range.min()..=range.max()).copied().collect(),
        })
    }

    async fn watch_ports(
        &self,
        min: u16,
        max: u16,
        events: Tx<v1::WatchEvent>,
        stop: Rx<()>,
    ) -> Result<(), String> {
        self.watch(min, max, events, stop).await
    }

    async fn watch_listeners(
        &self,
        min: u16,
        max: u16,
        events: Tx<WatchEvent>,
        stop: Rx<()>,
    ) -> Result<(), String> {
        self.watch(min, max, events, stop).await
    }
}

impl Service {
    async fn watch<Item: From<WatchEvent> + Facet<'static> + Send>(
        &self,
        min: u16,
        max: u16,
        events: Tx<Item>,
        mut stop: Rx<()>,
    ) -> Result<(), String> {
        self.understood()?;
        let range = range(min, max)?;
        let subscription = self.hub.subscribe(range).ok_or_else(|| {
            format!("{MAX_SUBSCRIBERS} streams are open already; close one, then call again")
        })?;
        tokio::select! {
            // Whatever comes, an item or the end: the host wants no more.
            _ = stop.recv() => Ok(()),
            result = self.stream(subscription, events) => result,
        }
    }

    /// Sends updates until the host takes no more. `send` waits for the host's credit; what
    /// happens meanwhile stays in the hub. A host that gives none for as long as a stream may be
    /// silent has given it up already, and may be waiting for a knock, which a stream prevents.
    async fn stream<Item: From<WatchEvent> + Facet<'static> + Send>(
        &self,
        mut subscription: Subscription,
        events: Tx<Item>,
    ) -> Result<(), String> {
        loop {
            let event = match tokio::time::timeout(HEARTBEAT, subscription.next()).await {
                Ok(update) => self.event(update),
                Err(_) => WatchEvent::Heartbeat {
                    generation: subscription.generation(),
                },
            };
            match tokio::time::timeout(HEARTBEAT_DEADLINE, events.send(event.into())).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(format!("the stream broke: {error}")),
                Err(_) => return Err("the host takes no more".to_owned()),
            }
        }
    }

    fn event(&self, update: Update) -> WatchEvent {
        match update {
            Update::Snapshot {
                generation,
                mut listeners,
            } => {
                fit(&mut listeners);
                WatchEvent::Snapshot {
                    generation,
                    source: self.info.hint.clone(),
                    listeners,
                }
            }
            // Names are looked up after the ports were told, so one of the two lists is short.
            Update::Delta(mut change) => {
                fit(&mut change.opened);
                fit(&mut change.changed);
                change.into()
            }
        }
    }
}

/// The range that a caller means.
fn range(min: u16, max: u16) -> Result<PortRange, String> {
    PortRange::new(min, max).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
