//! Tests of the heartbeats of a watch on the control socket, and of its deadline.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use roam::{Rx, Tx};
use rum_shared::stream::session::{Limits, Session, serve};
use rum_shared::transport::{Endpoint, ListenAddr, Service, Transport};

use super::client::{ControlError, Feed};
use super::server::Server;
use super::service::{
    HEARTBEAT, HEARTBEAT_DEADLINE, LIMITS, RumControl, RumControlClient, RumControlDispatcher,
};
use crate::clock::stopped::Clock;
use crate::runtime_dir::{RunningGuest, RuntimeDir};
use crate::status::model::{CONTROL_PROTOCOL, ControlInfo, Stay, Update, WatchRequest};

/// Timers are rounded up to milliseconds.
const MOMENT: Duration = Duration::from_millis(2);
/// Shorter than the heartbeat deadline.
const PAUSE: Duration = Duration::from_millis(3500);

fn info() -> ControlInfo {
    ControlInfo {
        protocol: CONTROL_PROTOCOL,
        version: String::new(),
        name: String::new(),
        kind: String::new(),
        pid: 0,
        boot: String::new(),
        started: String::new(),
    }
}

/// A `rum up` that sends two heartbeats and then nothing.
#[derive(Clone)]
struct Dying;

impl RumControl for Dying {
    async fn hello(&self, _protocol: u32) -> ControlInfo {
        info()
    }

    async fn stay(&self, _stay: Stay, _reader: u64) -> Result<(), String> {
        Ok(())
    }

    async fn watch(
        &self,
        _request: WatchRequest,
        updates: Tx<Update>,
        mut stop: Rx<()>,
    ) -> Result<(), String> {
        for _ in 0..2 {
            let beat = updates.send(Update::Events(vec![])).await;
            beat.map_err(|error| error.to_string())?;
            tokio::time::sleep(PAUSE).await;
        }
        let _ = stop.recv().await;
        Ok(())
    }

    async fn retry(&self) -> Result<(), String> {
        Ok(())
    }

    async fn stop(&self, _force: bool) -> Result<(), String> {
        Ok(())
    }
}

fn guest(dir: &Path) -> RunningGuest {
    RunningGuest::starting("dying", dir)
}

#[tokio::test]
async fn a_watch_that_falls_silent_is_dead() {
    let dir = tempfile::tempdir().unwrap();
    let guest = guest(dir.path());
    let mut acceptor = ListenAddr::Unix(guest.control_socket()).bind().unwrap();
    let clock = Clock::stop();
    tokio::spawn(async move {
        let (stream, _) = acceptor.accept().await.unwrap();
        serve(stream, Limits::AGENT, RumControlDispatcher::new(Dying)).await
    });
    let mut feed = Feed::open(&guest, false, Some(Stay::Follow), None)
        .await
        .unwrap();
    let next = tokio::spawn(async move { feed.next().await });
    clock.advance(PAUSE + MOMENT).await;
    clock.advance(HEARTBEAT_DEADLINE - MOMENT).await;
    assert!(!next.is_finished());
    clock.advance(MOMENT * 2).await;
    assert!(next.is_finished());
    let error = next.await.unwrap().unwrap_err();
    assert!(matches!(&error, ControlError::Gone { .. }), "{error}");
    assert!(
        error.to_string().contains("nothing heard for 4 s"),
        "{error}"
    );
}

#[tokio::test]
async fn an_idle_watch_sends_heartbeats() {
    let dir = tempfile::tempdir().unwrap();
    let dir = Arc::new(RuntimeDir::create_in(&dir.path().join("run"), "quiet").unwrap());
    let socket = dir.control_socket();
    let server = Server::bind(&dir, info(), Default::default()).unwrap();
    let clock = Clock::stop();
    tokio::spawn(server.run());
    let endpoint = Endpoint::Unix {
        rpc: socket.clone(),
        channel: socket,
        net: None,
    };
    let dialled = Transport::from(endpoint).dial(Service::Rpc).await;
    let stream = dialled.unwrap();
    let session = Session::<RumControlClient>::connect(stream, LIMITS).await;
    let client = session.as_ref().unwrap().client().clone();
    let (tx, mut updates) = roam::channel();
    let (_stop, stop) = roam::channel();
    let request = WatchRequest {
        all: false,
        since: None,
    };
    tokio::spawn(async move { client.watch(request, tx, stop).await });
    clock.settle().await;
    // The journal stays empty.
    for _ in 0..3 {
        let next = tokio::spawn(async move {
            let update = updates.recv().await;
            assert!(matches!(&*update.unwrap().unwrap(), Update::Events(e) if e.is_empty()));
            updates
        });
        clock.advance(HEARTBEAT - MOMENT).await;
        assert!(!next.is_finished());
        clock.advance(MOMENT * 2).await;
        assert!(next.is_finished());
        updates = next.await.unwrap();
    }
}
