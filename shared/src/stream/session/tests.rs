#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicUsize, Ordering};

use roam::{Rx, Tx};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::runtime::Handle;
use tokio::sync::Notify;

use super::*;
use crate::listener::{BoundAddr, Device, Holder, Listener, ListenerSet, Process};
use crate::stream::rpc::{
    AgentInfo, ListeningPortsResponse, ReadyResponse, RumAgent, RumAgentClient, RumAgentDispatcher,
    WatchEvent, v1,
};

/// Generous: only a broken build waits this long.
const PATIENCE: Duration = Duration::from_secs(60);

fn process(pid: u32) -> Process {
    Process {
        pid,
        name: "nöde".into(),
        program: "node".into(),
        script: "vite".into(),
        command: "node vite --host".into(),
    }
}

/// Two sets of listeners, one after the other.
fn sets() -> [ListenerSet; 2] {
    let one = |port| Listener {
        addresses: vec![
            BoundAddr::new("127.0.0.1".parse().unwrap(), false),
            BoundAddr {
                device: 7,
                ..BoundAddr::new("fe80::1".parse().unwrap(), true)
            },
        ],
        uid: 1000,
        inode: u64::MAX,
        process: Some(process(4)),
        others: vec![Holder {
            address: BoundAddr::new("::1".parse().unwrap(), false),
            process: process(5),
        }],
        devices: vec![Device {
            index: 7,
            name: "eth0".into(),
        }],
        unreachable: Some("it is gone".into()),
        seen_ns: 1 << 60,
        hinted_ns: Some(1 << 59),
        ..Listener::bare(port)
    };
    [
        ListenerSet::new(7, [one(80), one(5000), one(65535)]),
        ListenerSet::new(8, [one(80), one(5001), Listener::bare(65535)]),
    ]
}

#[derive(Clone, Default)]
struct TestAgent {
    sent: Arc<AtomicUsize>,
    progress: Arc<Notify>,
}

impl RumAgent for TestAgent {
    async fn hello(&self, protocol: u32) -> AgentInfo {
        AgentInfo {
            protocol,
            version: "1".into(),
            hostname: "g".repeat(protocol as usize),
            boot_id: "b".into(),
            instance: 1,
            source: "netlink".into(),
            hint: "poll".into(),
            capabilities: vec![],
        }
    }

    async fn ping(&self) -> Result<ReadyResponse, String> {
        std::future::pending().await
    }

    async fn listening_ports(&self, _: u16, _: u16) -> Result<ListeningPortsResponse, String> {
        Err("no \u{1b}[2Jports".into())
    }

    async fn watch_ports(
        &self,
        _: u16,
        _: u16,
        events: Tx<v1::WatchEvent>,
        mut stop: Rx<()>,
    ) -> Result<(), String> {
        let [first, _] = sets();
        let snapshot = WatchEvent::Snapshot {
            generation: first.generation,
            source: "netlink".into(),
            listeners: first.iter().cloned().collect(),
        };
        let sent = events.send(snapshot.into()).await;
        sent.map_err(|e: roam::TxError| e.to_string())?;
        while let Ok(Some(_)) = stop.recv().await {}
        Ok(())
    }

    async fn watch_listeners(
        &self,
        min: u16,
        _: u16,
        events: Tx<WatchEvent>,
        mut stop: Rx<()>,
    ) -> Result<(), String> {
        let failed = |e: roam::TxError| e.to_string();
        if min == 1 {
            let [first, second] = sets();
            let snapshot = WatchEvent::Snapshot {
                generation: first.generation,
                source: "netlink".into(),
                listeners: first.iter().cloned().collect(),
            };
            events.send(snapshot).await.map_err(failed)?;
            events
                .send(first.diff(&second).into())
                .await
                .map_err(failed)?;
            while let Ok(Some(_)) = stop.recv().await {}
            return Ok(());
        }
        loop {
            let generation = self.sent.load(Ordering::SeqCst) as u64;
            events
                .send(WatchEvent::Heartbeat { generation })
                .await
                .map_err(failed)?;
            self.sent.fetch_add(1, Ordering::SeqCst);
            self.progress.notify_waiters();
        }
    }
}

impl TestAgent {
    async fn until_sent(&self, count: usize) {
        loop {
            let notified = self.progress.notified();
            if self.sent.load(Ordering::SeqCst) >= count {
                return;
            }
            notified.await;
        }
    }
}

fn streams() -> (Stream, Stream) {
    let (host, agent) = UnixStream::pair().unwrap();
    (Stream::Unix(host), Stream::Unix(agent))
}

/// A session and the agent that serves it until the handle is dropped.
async fn start(agent: &TestAgent) -> (Session<RumAgentClient>, AbortOnDropHandle<()>) {
    let (host, far) = streams();
    let handler = RumAgentDispatcher::new(agent.clone());
    let served = tokio::spawn(async move {
        serve(far, Limits::AGENT, handler).await.unwrap();
    });
    // Spawned, so that the futures are known to be Send.
    let session = tokio::spawn(Session::connect(host, Limits::HOST));
    (
        session.await.unwrap().unwrap(),
        AbortOnDropHandle::new(served),
    )
}

/// Waits until the runtime has no more than `count` tasks.
async fn tasks_are_down_to(count: usize) {
    let down = async {
        while Handle::current().metrics().num_alive_tasks() > count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let alive = tokio::time::timeout(PATIENCE, down).await;
    alive.expect("tasks outlive their session");
}

#[tokio::test]
async fn a_host_of_before_is_told_what_it_knows() {
    let (session, _served) = start(&TestAgent::default()).await;
    let (tx, mut events) = roam::channel();
    let (stop, stopped) = roam::channel::<()>();
    let watch = session.call(
        PATIENCE,
        session.client().watch_ports(1, 65535, tx, stopped),
    );
    let read = async {
        let told = events.recv().await.unwrap().unwrap();
        let WatchEvent::Snapshot { listeners, .. } = WatchEvent::from(&*told) else {
            panic!("no snapshot first")
        };
        let [first, _] = sets();
        let less = first.iter().map(|known| Listener {
            addresses: known
                .addresses
                .iter()
                .map(|a| BoundAddr::new(a.ip, a.dual_stack))
                .collect(),
            process: known.process.as_ref().map(|process| Process {
                pid: process.pid,
                name: process.name.clone(),
                ..Process::default()
            }),
            others: vec![],
            devices: vec![],
            unreachable: None,
            ..known.clone()
        });
        assert!(less.eq(listeners));
        drop(stop);
    };
    let (ended, ()) = tokio::join!(watch, read);
    ended.unwrap();
}

#[tokio::test]
async fn a_watch_stream_carries_a_snapshot_and_a_change() {
    let (session, _served) = start(&TestAgent::default()).await;
    let client = session.client();
    let hello = session.call(PATIENCE, client.hello(3)).await.unwrap();
    assert_eq!(hello.hostname, "ggg");

    let (tx, mut events) = roam::channel();
    let (stop, stopped) = roam::channel::<()>();
    let watch = session.call(PATIENCE, client.watch_listeners(1, 65535, tx, stopped));
    let read = async {
        let WatchEvent::Snapshot {
            generation,
            listeners,
            ..
        } = events.recv().await.unwrap().unwrap().clone()
        else {
            panic!("no snapshot first")
        };
        let mut set = ListenerSet::new(generation, listeners);
        let [first, second] = sets();
        assert_eq!(set, first);
        let WatchEvent::Delta {
            generation,
            opened,
            changed,
            closed,
        } = events.recv().await.unwrap().unwrap().clone()
        else {
            panic!("no change after it")
        };
        set.apply(&crate::listener::Change {
            generation,
            opened,
            changed,
            closed,
        });
        assert_eq!(set, second);
        drop(stop);
    };
    let (ended, ()) = tokio::join!(watch, read);
    ended.unwrap();
}

#[tokio::test]
async fn a_reader_that_stops_stops_the_sender() {
    let agent = TestAgent::default();
    let (session, _served) = start(&agent).await;
    let client = session.client();
    let (tx, mut events) = roam::channel();
    let (_stop, stopped) = roam::channel::<()>();
    let watch = session.call(PATIENCE, client.watch_listeners(2, 2, tx, stopped));
    let read = async {
        agent.until_sent(16).await;
        // Whatever else the sender could do, it would do while these are answered.
        for _ in 0..20 {
            session.call(PATIENCE, client.hello(1)).await.unwrap();
        }
        assert_eq!(agent.sent.load(Ordering::SeqCst), 16);
        for generation in 0..16 {
            let event = events.recv().await.unwrap().unwrap();
            assert_eq!(*event, WatchEvent::Heartbeat { generation });
        }
        agent.until_sent(32).await;
    };
    tokio::select! {
        ended = watch => panic!("the stream ended: {ended:?}"),
        () = read => {}
    }
}

#[tokio::test]
async fn errors_say_what_happened() {
    let (session, _served) = start(&TestAgent::default()).await;
    let client = session.client();
    let error = session
        .call(PATIENCE, client.listening_ports(1, 2))
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "no \u{fffd}[2Jports");
    let brief = Duration::from_millis(1);
    let error = session.call(brief, client.ping()).await.unwrap_err();
    assert!(matches!(error, SessionError::Timeout(_)), "{error}");
    // A call that was given up does not spoil the session.
    session.call(PATIENCE, client.hello(1)).await.unwrap();
}

#[tokio::test]
async fn a_killed_peer_ends_calls_and_later_ones() {
    let (session, served) = start(&TestAgent::default()).await;
    let pending = session.call(PATIENCE, session.client().ping());
    let kill = async {
        session
            .call(PATIENCE, session.client().hello(1))
            .await
            .unwrap();
        drop(served);
    };
    let (error, ()) = tokio::join!(pending, kill);
    assert!(matches!(error, Err(SessionError::Closed)));
    session.closed().await;
    let later = session.call(PATIENCE, session.client().hello(1)).await;
    assert!(matches!(later, Err(SessionError::Closed)));
}

#[tokio::test]
async fn dropping_the_server_ends_everything_that_runs_for_it() {
    let before = Handle::current().metrics().num_alive_tasks();
    let agent = TestAgent::default();
    let (session, served) = start(&agent).await;
    let (tx, mut events) = roam::channel();
    let (_stop, stopped) = roam::channel::<()>();
    // One handler waits for ever, one for credit.
    let ping = session.call(PATIENCE, session.client().ping());
    let watch = session.call(
        PATIENCE,
        session.client().watch_listeners(2, 2, tx, stopped),
    );
    let kill = async {
        agent.until_sent(16).await;
        drop(served);
        session.closed().await;
    };
    let (ping, watch, ()) = tokio::join!(ping, watch, kill);
    assert!(matches!(ping, Err(SessionError::Closed)));
    assert!(matches!(watch, Err(SessionError::Closed)));
    while let Ok(Some(_)) = events.recv().await {}
    tasks_are_down_to(before).await;
}

#[tokio::test]
async fn a_session_answers_a_bounded_number_of_calls() {
    let (host, far) = streams();
    let handler = RumAgentDispatcher::new(TestAgent::default());
    let served = tokio::spawn(serve(far, Limits::AGENT, handler));
    let session = Session::<RumAgentClient>::connect(host, Limits::HOST)
        .await
        .unwrap();
    for _ in 0..MAX_CALLS {
        let call = session.call(PATIENCE, session.client().hello(5));
        call.await.unwrap();
    }
    let one_more = session.call(PATIENCE, session.client().hello(5)).await;
    assert!(matches!(one_more, Err(SessionError::Closed)));
    served.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_frame_above_the_limit_ends_the_session() {
    let (host, far) = streams();
    let handler = RumAgentDispatcher::new(TestAgent::default());
    let served = tokio::spawn(serve(far, Limits::AGENT, handler));
    let limits = Limits {
        frame: 500,
        ..Limits::HOST
    };
    let session = Session::<RumAgentClient>::connect(host, limits)
        .await
        .unwrap();
    session
        .call(PATIENCE, session.client().hello(5))
        .await
        .unwrap();
    let long = session.call(PATIENCE, session.client().hello(1000)).await;
    assert!(matches!(long, Err(SessionError::Closed)));
    served.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_session_ends_while_its_channels_live() {
    let before = Handle::current().metrics().num_alive_tasks();
    let agent = TestAgent::default();
    let (session, served) = start(&agent).await;
    let (tx, mut events) = roam::channel();
    let (stop, stopped) = roam::channel::<()>();
    {
        let watch = session.call(
            PATIENCE,
            session.client().watch_listeners(2, 2, tx, stopped),
        );
        tokio::select! {
            ended = watch => panic!("the stream ended: {ended:?}"),
            () = agent.until_sent(16) => {}
        }
    }
    let client = session.client().clone();
    drop(session);
    tokio::time::timeout(PATIENCE, served)
        .await
        .unwrap()
        .unwrap();
    while let Ok(Some(_)) = events.recv().await {}
    tasks_are_down_to(before).await;
    drop((client, events, stop));
}

#[tokio::test(start_paused = true)]
async fn a_handshake_has_a_deadline_on_both_sides() {
    for bytes in [&b""[..], b"\x50\0", b"\x50\0\0\0abc"] {
        let (near, mut far) = streams();
        far.write_all(bytes).await.unwrap();
        let handler = RumAgentDispatcher::new(TestAgent::default());
        let served = serve(near, Limits::AGENT, handler).await.unwrap_err();
        assert!(
            served.to_string().contains("no answer within 5s"),
            "{served}"
        );

        let (near, mut far) = streams();
        far.write_all(bytes).await.unwrap();
        let made = Session::<RumAgentClient>::connect(near, Limits::HOST).await;
        let error = made.err().unwrap().to_string();
        assert!(error.contains("no answer within 5s"), "{error}");
    }
}

#[tokio::test]
async fn nonsense_ends_a_session() {
    for bytes in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"\x03\0\0\0abc",
        b"\0\0\0\0",
        b"\x01",
    ] {
        let (near, mut far) = streams();
        far.write_all(bytes).await.unwrap();
        far.shutdown().await.unwrap();
        let handler = RumAgentDispatcher::new(TestAgent::default());
        let served = serve(near, Limits::AGENT, handler).await.unwrap_err();
        assert!(matches!(served, SessionError::Handshake(_)), "{served}");
    }
}
