//! An agent that says what a test wants, over real Unix sockets: the truth, late, or not at all.

use std::path::Path;
use std::sync::{Arc, Mutex};

use roam::facet::Facet;
use roam::{Rx, Tx};
use rum_shared::listener::{Listener, ListenerSet};
use rum_shared::range::PortRange;
use rum_shared::stream::rpc::{
    AgentInfo, CAP_LISTENERS, CAP_WATCH, HEARTBEAT, ListeningPortsResponse, PROTOCOL,
    ReadyResponse, RumAgent, RumAgentDispatcher, WatchEvent, v1,
};
use rum_shared::stream::session::{Limits, serve};
use rum_shared::transport::{Endpoint, ListenAddr};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

/// What the fake agent does; change it while it runs.
#[derive(Clone)]
pub struct FakeAgent {
    /// What the stream tells.
    pub streamed: watch::Sender<ListenerSet>,
    /// What polls answer; `None`: the same as the stream.
    pub polled: Arc<Mutex<Option<Vec<u16>>>>,
    /// Each poll takes its answer first and sends it once it has a permit from here.
    pub poll_gate: Arc<Semaphore>,
    /// Polls that were asked.
    pub polls: watch::Sender<usize>,
    /// Whether it keeps its heartbeats to itself.
    pub silent: watch::Sender<bool>,
    /// Whether it says that it can stream.
    pub can_watch: bool,
    /// Whether it knows `watch_listeners`.
    pub is_new: bool,
    /// The version that it says it has.
    pub version: &'static str,
    /// The newest protocol that it says it speaks.
    pub protocol: u32,
}

impl FakeAgent {
    /// An agent that tells the truth at once.
    pub fn new() -> Self {
        Self {
            streamed: watch::Sender::new(ListenerSet::default()),
            polled: Arc::default(),
            poll_gate: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)),
            polls: watch::Sender::new(0),
            silent: watch::Sender::new(false),
            can_watch: true,
            is_new: true,
            version: env!("CARGO_PKG_VERSION"),
            protocol: PROTOCOL,
        }
    }

    /// Changes what the stream tells.
    pub fn stream(&self, ports: &[u16]) {
        self.streamed.send_modify(|set| {
            let listeners = ports.iter().map(|p| Listener::bare(*p));
            *set = ListenerSet::new(set.generation + 1, listeners);
        });
    }

    /// Serves on sockets in `dir` until dropped.
    ///
    /// # Panics
    /// When the sockets cannot be bound.
    pub fn serve(&self, dir: &Path) -> (Endpoint, JoinSet<()>) {
        let (rpc, channel) = (dir.join("rpc"), dir.join("channel"));
        let mut acceptor = ListenAddr::Unix(rpc.clone()).bind().expect("a socket");
        let agent = self.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut sessions = JoinSet::new();
            while let Ok((stream, _)) = acceptor.accept().await {
                let handler = RumAgentDispatcher::new(agent.clone());
                sessions.spawn(serve(stream, Limits::AGENT, handler));
            }
        });
        (
            Endpoint::Unix {
                rpc,
                channel,
                net: None,
            },
            tasks,
        )
    }
}

impl Default for FakeAgent {
    fn default() -> Self {
        Self::new()
    }
}

impl RumAgent for FakeAgent {
    async fn hello(&self, _protocol: u32) -> AgentInfo {
        AgentInfo {
            protocol: self.protocol,
            version: self.version.into(),
            hostname: "fake".into(),
            boot_id: String::new(),
            instance: 1,
            source: "fake".into(),
            hint: "fake".into(),
            capabilities: match self.can_watch {
                true if self.is_new => vec![CAP_WATCH.into(), CAP_LISTENERS.into()],
                true => vec![CAP_WATCH.into()],
                false => vec![],
            },
        }
    }

    async fn ping(&self) -> Result<ReadyResponse, String> {
        Ok(ReadyResponse { ready: true })
    }

    async fn listening_ports(
        &self,
        _min: u16,
        _max: u16,
    ) -> Result<ListeningPortsResponse, String> {
        let streamed = || self.streamed.borrow().iter().map(|l| l.port).collect();
        let ports = self
            .polled
            .lock()
            .expect("no panic")
            .clone()
            .unwrap_or_else(streamed);
        self.polls.send_modify(|n| *n += 1);
        let permit = self.poll_gate.acquire().await.map_err(|e| e.to_string())?;
        permit.forget();
        Ok(ListeningPortsResponse { ports })
    }

    async fn watch_ports(
        &self,
        min: u16,
        max: u16,
        events: Tx<v1::WatchEvent>,
        stop: Rx<()>,
    ) -> Result<(), String> {
        if self.is_new {
            Err("this host is not old".to_owned())
        } else {
            self.watch(min, max, events, stop).await
        }
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

impl FakeAgent {
    async fn watch<Item: From<WatchEvent> + Facet<'static> + Send>(
        &self,
        min: u16,
        max: u16,
        events: Tx<Item>,
        mut stop: Rx<()>,
    ) -> Result<(), String> {
        let range = PortRange::new(min, max).map_err(|e| e.to_string())?;
        let mut changes = self.streamed.subscribe();
        let mut told = changes.borrow_and_update().clone();
        let snapshot = WatchEvent::Snapshot {
            generation: told.generation,
            source: "fake".into(),
            listeners: told.within(range).cloned().collect(),
        };
        events
            .send(snapshot.into())
            .await
            .map_err(|e| e.to_string())?;
        loop {
            let event = tokio::select! {
                _ = stop.recv() => return Ok(()),
                changed = changes.changed() => {
                    changed.map_err(|e| e.to_string())?;
                    let next = changes.borrow_and_update().clone();
                    let change = told.diff(&next).within(range);
                    told = next;
                    WatchEvent::from(change)
                }
                () = tokio::time::sleep(HEARTBEAT) => if *self.silent.borrow() { continue } else { WatchEvent::Heartbeat {
                    generation: told.generation,
                } },
            };
            events.send(event.into()).await.map_err(|e| e.to_string())?;
        }
    }
}
