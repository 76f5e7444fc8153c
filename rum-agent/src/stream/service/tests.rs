#![allow(clippy::unwrap_used)]

use std::time::Duration;

use super::*;
use rum_shared::listener::{Change, Listener};
use rum_shared::stream::rpc::{
    CAP_WATCH, OLDEST_PROTOCOL, PROTOCOL, RumAgentClient, RumAgentDispatcher,
};
use rum_shared::stream::session;
use rum_shared::stream::session::{Limits, Session};
use rum_shared::transport::Stream;
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::hint::Hints;
use crate::kernel::Socket;
use crate::port_set::source::Source;
use crate::port_set::source::fake::FakeKernel;
use crate::port_set::watcher::Watcher;

/// No test waits for it; it ends one that hangs.
const DEADLINE: Duration = Duration::from_secs(60);

struct Bench {
    service: Service,
    kernel: FakeKernel,
    tasks: JoinSet<()>,
}

fn bench() -> Bench {
    let kernel = FakeKernel::default();
    let hub = Arc::new(Hub::default());
    let source = Source::Fake(kernel.clone());
    let (watcher, refresh) = Watcher::new(source, Hints::default(), hub.clone());
    let mut tasks = JoinSet::new();
    tasks.spawn(watcher.run(CancellationToken::new()));
    let info = AgentInfo {
        protocol: PROTOCOL,
        version: "1".into(),
        hostname: "guest".into(),
        boot_id: "b".into(),
        instance: 7,
        source: "netlink".into(),
        hint: "poll".into(),
        capabilities: vec![CAP_WATCH.into()],
    };
    let service = Service {
        info: Arc::new(info),
        hub,
        refresh,
        too_old: Arc::default(),
    };
    Bench {
        service,
        kernel,
        tasks,
    }
}

impl Bench {
    async fn connect(&mut self) -> Session<RumAgentClient> {
        let (host, guest) = UnixStream::pair().unwrap();
        let dispatcher = RumAgentDispatcher::new(self.service.for_session());
        self.tasks.spawn(async move {
            let guest = Stream::Unix(guest);
            // However a test ends its session.
            let _ = session::serve(guest, Limits::AGENT, dispatcher).await;
        });
        Session::connect(Stream::Unix(host), Limits::HOST)
            .await
            .unwrap()
    }

    async fn listen(&self, ports: &[u16]) {
        self.kernel.with(|state| {
            state.sockets = ports.iter().map(|port| socket(*port)).collect();
        });
        self.service.refresh.fresh().await.unwrap();
    }
}

fn socket(port: u16) -> Socket {
    Socket {
        port,
        ip: "::".parse().unwrap(),
        dual_stack: true,
        device: 0,
        uid: 0,
        inode: 0,
        cookie: None,
    }
}

fn ports(listeners: &[Listener]) -> Vec<u16> {
    listeners.iter().map(|listener| listener.port).collect()
}

#[tokio::test]
async fn a_host_that_is_too_old_is_told_so_and_others_are_served() {
    let mut bench = bench();
    bench.listen(&[80]).await;
    let (old, new) = (bench.connect().await, bench.connect().await);
    for (session, protocol) in [(&old, OLDEST_PROTOCOL - 1), (&new, PROTOCOL + 1)] {
        let hello = session.client().hello(protocol);
        let info = session.call(DEADLINE, hello).await.unwrap();
        assert_eq!(info.protocol, PROTOCOL);
    }
    let call = old.client().listening_ports(1, 100);
    let refused = old.call(DEADLINE, call).await.unwrap_err().to_string();
    assert!(
        refused.contains("no longer understands this rum"),
        "{refused}"
    );
    let (events, _events) = roam::channel();
    let (_keep, stop) = roam::channel::<()>();
    let call = old.client().watch_listeners(1, 100, events, stop);
    assert_eq!(
        old.call(DEADLINE, call).await.unwrap_err().to_string(),
        refused
    );
    let call = new.client().listening_ports(1, 100);
    assert_eq!(new.call(DEADLINE, call).await.unwrap().ports, [80]);
}

#[tokio::test]
async fn the_basic_calls_answer() {
    let mut bench = bench();
    let session = bench.connect().await;
    let client = session.client();
    bench.listen(&[443, 80, 8080]).await;
    let info = session
        .call(DEADLINE, client.hello(PROTOCOL))
        .await
        .unwrap();
    assert_eq!((info.instance, info.hint.as_str()), (7, "poll"));
    let ping = session.call(DEADLINE, client.ping()).await.unwrap();
    assert!(ping.ready);
    // Fresh: nothing has hinted at this one.
    bench.kernel.with(|state| state.sockets.push(socket(81)));
    let all = session
        .call(DEADLINE, client.listening_ports(1, 1000))
        .await
        .unwrap();
    assert_eq!(all.ports, [80, 81, 443]);
    let error = session
        .call(DEADLINE, client.listening_ports(6000, 5000))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("`5000-6000`"), "{error}");
    bench.kernel.with(|state| state.fail = 1);
    session
        .call(DEADLINE, client.listening_ports(1, 1000))
        .await
        .expect_err("a failed dump is no empty answer");
}

#[tokio::test]
async fn two_streams_with_ranges_of_their_own() {
    let mut bench = bench();
    bench.listen(&[100, 200]).await;
    let (low, high) = (bench.connect().await, bench.connect().await);
    let watch = |session: &Session<RumAgentClient>, min, max| {
        let (events, rx) = roam::channel();
        let (keep, stop) = roam::channel::<()>();
        let client = session.client().clone();
        let call = async move { client.watch_listeners(min, max, events, stop).await };
        (Box::pin(call), rx, keep)
    };
    let (low_call, mut low_rx, _keep_low) = watch(&low, 1, 150);
    let (high_call, mut high_rx, keep_high) = watch(&high, 151, 300);
    let test = async {
        let WatchEvent::Snapshot {
            listeners, source, ..
        } = next(&mut low_rx).await
        else {
            panic!("a snapshot was due");
        };
        assert_eq!((ports(&listeners), source.as_str()), (vec![100], "poll"));
        let WatchEvent::Snapshot { listeners, .. } = next(&mut high_rx).await else {
            panic!("a snapshot was due");
        };
        assert_eq!(ports(&listeners), [200]);
        bench.listen(&[101, 200]).await;
        let WatchEvent::Delta { opened, closed, .. } = next(&mut low_rx).await else {
            panic!("a delta was due");
        };
        assert_eq!((ports(&opened), closed), (vec![101], vec![100]));
        bench.listen(&[101]).await;
        let WatchEvent::Delta { closed, .. } = next(&mut high_rx).await else {
            panic!("a delta was due");
        };
        assert_eq!(closed, [200], "what is outside the range was not told");
        drop(keep_high);
    };
    let low_call = tokio::time::timeout(DEADLINE, low_call);
    tokio::select! {
        biased; // the call comes first: it binds the channel
        _ = low_call => panic!("nobody stopped this stream"),
        (high, ()) = async { tokio::join!(high_call, test) } => high.unwrap(),
    }
}

/// The next event that is no heartbeat.
async fn next(events: &mut Rx<WatchEvent>) -> WatchEvent {
    loop {
        let event = tokio::time::timeout(DEADLINE, events.recv()).await.unwrap();
        let event = event.unwrap().expect("the stream goes on");
        if !matches!(*event, WatchEvent::Heartbeat { .. }) {
            return (*event).clone();
        }
    }
}

#[tokio::test]
async fn a_stream_that_is_not_read_delays_nobody_and_then_gets_a_snapshot() {
    let mut bench = bench();
    bench.listen(&[1]).await;
    let session = bench.connect().await;
    let (events, mut rx) = roam::channel();
    let (_keep, stop) = roam::channel::<()>();
    let call = session.client().watch_listeners(1, 65535, events, stop);
    let hub = bench.service.hub.clone();
    let test = async {
        assert!(matches!(next(&mut rx).await, WatchEvent::Snapshot { .. }));
        // More than credit and log hold together.
        let last = crate::port_set::hub::LOG_CHANGES as u64 * 2;
        for _ in 0..last {
            hub.publish(Change {
                generation: hub.current().generation + 1,
                changed: vec![Listener::bare(1)],
                ..Change::default()
            });
            tokio::task::yield_now().await;
        }
        let mut again = false;
        loop {
            let generation = match next(&mut rx).await {
                WatchEvent::Snapshot { generation, .. } => {
                    again = true;
                    generation
                }
                WatchEvent::Delta { generation, .. } | WatchEvent::Heartbeat { generation } => {
                    generation
                }
            };
            if generation == hub.current().generation {
                break;
            }
        }
        assert!(again, "the gap was bridged by a snapshot");
    };
    tokio::select! {
        biased; // the call comes first: it binds the channel
        result = call => panic!("the stream ended: {:?}", result.is_ok()),
        () = test => {}
    }
}

#[tokio::test(start_paused = true)]
async fn a_quiet_stream_has_a_heart() {
    let mut bench = bench();
    bench.listen(&[]).await;
    let session = bench.connect().await;
    let (events, mut rx) = roam::channel();
    let (_keep, stop) = roam::channel::<()>();
    let call = session.client().watch_listeners(1, 65535, events, stop);
    let test = async {
        assert!(matches!(next(&mut rx).await, WatchEvent::Snapshot { .. }));
        for _ in 0..3 {
            let event = rx.recv().await.unwrap().unwrap();
            assert!(matches!(*event, WatchEvent::Heartbeat { generation: 1 }));
        }
    };
    tokio::select! {
        biased; // the call comes first: it binds the channel
        result = call => panic!("the stream ended: {:?}", result.is_ok()),
        () = test => {}
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_which_nobody_takes_anything_ends() {
    let mut bench = bench();
    let session = bench.connect().await;
    bench.listen(&[80]).await;
    let hull = bench.service.hub.hull();
    let (tx, _rx) = roam::channel();
    let (_stop, stop_rx) = roam::channel();
    let ended = session.client().watch_listeners(1, 100, tx, stop_rx).await;
    let Err(roam::RoamError::User(why)) = ended else {
        panic!("{ended:?}");
    };
    assert_eq!(why, "the host takes no more");
    assert_eq!(*hull.borrow(), None);
}
