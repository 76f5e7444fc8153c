#![allow(clippy::unwrap_used)]

use std::path::Path;

use tokio::sync::watch;
use tokio_vsock::VMADDR_CID_LOCAL;

use super::*;
use rum_shared::bytes::channel;
use rum_shared::destination::Destination;
use rum_shared::stream::rpc::RumAgentClient;
use rum_shared::stream::rpc::WatchEvent;
use rum_shared::stream::session::Session;
use rum_shared::transport::{Endpoint, Service as Port, Transport};

/// No test waits for it; it ends one that hangs.
const DEADLINE: Duration = Duration::from_secs(60);

fn config(dir: &Path) -> Config {
    Config {
        rpc: ListenAddr::Unix(dir.join("rpc")),
        channel: ListenAddr::Unix(dir.join("channel")),
        source: None,
        hint: None,
        notified: None,
        wanted: None,
        host_threads: None,
        knock: None,
        allow_cid: vec![],
        hand_over: false,
    }
}

fn transport(dir: &Path) -> Transport {
    Transport::from(Endpoint::Unix {
        rpc: dir.join("rpc"),
        channel: dir.join("channel"),
        net: None,
    })
}

async fn connect(transport: &Transport) -> Session<RumAgentClient> {
    loop {
        // The agent may still be starting.
        if let Ok(stream) = transport.dial(Port::Rpc).await {
            return Session::connect(stream, Limits::HOST).await.unwrap();
        }
        tokio::task::yield_now().await;
    }
}

/// Runs an agent for `config` and `test` against it, then stops the agent.
async fn with_agent(config: Config, test: impl Future<Output = ()>) {
    let shutdown = CancellationToken::new();
    let agent = run(config, shutdown.clone());
    let test = async {
        tokio::time::timeout(DEADLINE, test).await.unwrap();
        shutdown.cancel();
    };
    let (result, ()) = tokio::join!(agent, test);
    result.unwrap();
}

#[tokio::test]
async fn a_real_listener_is_reported_reached_and_gone() {
    for (source, hint) in [
        (SourceKind::Netlink, Some(HintKind::Poll)),
        (SourceKind::Proc, Some(HintKind::Poll)),
        (SourceKind::Netlink, None),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let transport = transport(dir.path());
        let config = Config {
            source: Some(source),
            hint,
            ..config(dir.path())
        };
        with_agent(config, async {
            let session = connect(&transport).await;
            let client = session.client();
            let info = session.call(DEADLINE, client.hello(PROTOCOL)).await.unwrap();
            assert_eq!(info.source, source.word());
            // Bound, so that the port stays ours, but silent as yet.
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
            let port = socket.local_addr().unwrap().port();

            let (events, mut rx) = roam::channel();
            let (_keep, stop) = roam::channel::<()>();
            let call = client.watch_listeners(port, port, events, stop);
            let test = async {
                let first = rx.recv().await.unwrap().unwrap();
                assert!(
                    matches!(&*first, WatchEvent::Snapshot { listeners, .. } if listeners.is_empty()),
                    "what is silent was reported"
                );
                let listener = socket.listen(8).unwrap();
                loop {
                    let event = rx.recv().await.unwrap().unwrap();
                    if matches!(&*event, WatchEvent::Delta { opened, .. } if opened[0].port == port)
                    {
                        break;
                    }
                }
                let stream = transport.dial(Port::Channel).await.unwrap();
                let (connected, accepted) =
                    tokio::join!(channel::open(stream, Destination::own(port)), listener.accept());
                connected.unwrap().unwrap();
                drop((listener, accepted));
                loop {
                    let event = rx.recv().await.unwrap().unwrap();
                    if matches!(&*event, WatchEvent::Delta { closed, .. } if *closed == [port]) {
                        break;
                    }
                }
                let all = session.call(DEADLINE, client.listening_ports(port, port));
                assert_eq!(all.await.unwrap().ports, [0u16; 0]);
            };
            tokio::select! {
                biased; // the call comes first: it binds the channel
                result = call => panic!("the stream ended: {:?}", result.is_ok()),
                () = test => {}
            }
        })
        .await;
    }
}

#[tokio::test]
async fn sessions_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let transport = transport(dir.path());
    with_agent(config(dir.path()), async {
        let mut sessions = Vec::new();
        for _ in 0..MAX_SESSIONS {
            sessions.push(connect(&transport).await);
        }
        let stream = transport.dial(Port::Rpc).await.unwrap();
        assert!(
            Session::<RumAgentClient>::connect(stream, Limits::HOST)
                .await
                .is_err(),
            "a session too many"
        );
        // The others live, and one that ends makes room.
        let first = sessions.remove(0);
        let client = first.client();
        first.call(DEADLINE, client.ping()).await.unwrap();
        drop(first);
        loop {
            let stream = transport.dial(Port::Rpc).await.unwrap();
            if Session::<RumAgentClient>::connect(stream, Limits::HOST)
                .await
                .is_ok()
            {
                break;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn stopping_ends_sessions_and_channels() {
    let dir = tempfile::tempdir().unwrap();
    let transport = transport(dir.path());
    let shutdown = CancellationToken::new();
    let mut agents = JoinSet::new();
    agents.spawn(run(config(dir.path()), shutdown.clone()));
    let session = connect(&transport).await;
    let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = server.local_addr().unwrap().port();
    let stream = transport.dial(Port::Channel).await.unwrap();
    let _open = channel::open(stream, Destination::own(port))
        .await
        .unwrap()
        .unwrap();
    shutdown.cancel();
    let result = tokio::time::timeout(DEADLINE, agents.join_next()).await;
    result.unwrap().unwrap().unwrap().unwrap();
    tokio::time::timeout(DEADLINE, session.closed())
        .await
        .unwrap();
}

#[tokio::test]
async fn an_address_that_is_taken_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        rpc: ListenAddr::Unix(dir.path().join("missing/rpc")),
        ..config(dir.path())
    };
    let error = run(config, CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, AgentError::Listen { .. }), "{error}");
}

#[test]
fn only_the_host_is_served_over_vsock() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let _inside = runtime.enter();
    let dir = tempfile::tempdir().unwrap();
    let gate = |allow_cid: &[u32]| Gate {
        acceptor: ListenAddr::Unix(dir.path().join("s")).bind().unwrap(),
        what: "session",
        places: 2,
        full: Full::Refuse,
        allow_cid: allow_cid.to_vec(),
    };
    let admits = |peer, allow_cid: &[u32]| {
        let _ = std::fs::remove_file(dir.path().join("s"));
        gate(allow_cid).admits(peer, 1, &mut LogThrottle::default())
    };
    assert!(admits(None, &[]));
    assert!(admits(Some(VMADDR_CID_HOST), &[]));
    assert!(!admits(Some(VMADDR_CID_LOCAL), &[]));
    assert!(admits(Some(VMADDR_CID_LOCAL), &[7, VMADDR_CID_LOCAL]));
    assert!(admits(Some(VMADDR_CID_HOST), &[7]));
    assert!(!admits(Some(3), &[7, VMADDR_CID_LOCAL]));
    let _ = std::fs::remove_file(dir.path().join("s"));
    assert!(!gate(&[]).admits(None, 2, &mut LogThrottle::default()));
}

#[tokio::test(start_paused = true)]
async fn what_does_not_notice_the_end_is_aborted_after_a_grace_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("gate");
    let gate = Gate {
        acceptor: ListenAddr::Unix(path.clone()).bind().unwrap(),
        what: "session",
        places: 1,
        full: Full::Wait,
        allow_cid: vec![],
    };
    let stop = CancellationToken::new();
    let (begun, mut begins) = watch::channel(0);
    let run = gate.run(stop.clone(), move |stream| {
        begun.send_modify(|n| *n += 1);
        async move {
            let _stream = stream;
            std::future::pending().await
        }
    });
    let test = async {
        let _peer = tokio::net::UnixStream::connect(&path).await.unwrap();
        begins.wait_for(|n| *n == 1).await.unwrap();
        stop.cancel();
        Instant::now()
    };
    let ((), stopped) = tokio::join!(run, test);
    assert_eq!(stopped.elapsed(), STOP_GRACE);
}
