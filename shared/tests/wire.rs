//! The wire of a session, as it was when protocol 1 came: hosts and agents that speak it are out there, so a
//! host and an agent of today say the very same bytes and understand them.
//!
//! `fixtures/wire/session-1.bin` is what both said, in turns: one byte for who (0: the host), four of a length
//! (big-endian), then so many bytes. A test that fails here has changed the wire: then [`PROTOCOL`] has to be
//! raised, and this file stays as what an older peer says. `RUM_WRITE_FIXTURES=1` writes it anew.

use std::path::{Path, PathBuf};
use std::time::Duration;

use roam::{Rx, Tx};
use rum_shared::listener::{BoundAddr, Change, Device, Holder, Listener, Process};
use rum_shared::stream::rpc::{
    AgentInfo, CAP_LISTENERS, CAP_WATCH, ListeningPortsResponse, PROTOCOL, ReadyResponse, RumAgent,
    RumAgentClient, RumAgentDispatcher, WatchEvent, v1,
};
use rum_shared::stream::session::{Limits, Session, serve};
use rum_shared::transport::Stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Nobody waits for it; it ends a test that hangs.
const DEADLINE: Duration = Duration::from_secs(60);

fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/wire/session-1.bin")
}

/// A listener with everything that one can have.
fn listener(port: u16) -> Listener {
    let process = |pid| Process {
        pid,
        name: "node".into(),
        program: "node".into(),
        script: "vite".into(),
        command: "node vite --host".into(),
    };
    Listener {
        addresses: vec![BoundAddr {
            device: 7,
            ..BoundAddr::new("fe80::1".parse().expect("an address"), true)
        }],
        uid: 1000,
        inode: 12,
        process: Some(process(4)),
        others: vec![Holder {
            address: BoundAddr::new("127.0.0.1".parse().expect("an address"), false),
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
    }
}

fn events() -> Vec<WatchEvent> {
    vec![
        WatchEvent::Snapshot {
            generation: 1,
            source: "tracepoint".into(),
            listeners: vec![listener(80)],
        },
        Change {
            generation: 2,
            opened: vec![listener(81)],
            changed: vec![Listener::bare(80)],
            closed: vec![82],
        }
        .into(),
        WatchEvent::Heartbeat { generation: 2 },
    ]
}

fn info() -> AgentInfo {
    AgentInfo {
        protocol: 1,
        version: "0.1.0".into(),
        hostname: "guest".into(),
        boot_id: "boot".into(),
        instance: 3,
        source: "netlink".into(),
        hint: "tracepoint".into(),
        capabilities: vec![CAP_WATCH.into(), CAP_LISTENERS.into()],
    }
}

#[derive(Clone)]
struct Agent;

impl RumAgent for Agent {
    async fn hello(&self, protocol: u32) -> AgentInfo {
        assert_eq!(protocol, 1);
        info()
    }

    async fn ping(&self) -> Result<ReadyResponse, String> {
        Ok(ReadyResponse { ready: true })
    }

    async fn listening_ports(&self, min: u16, max: u16) -> Result<ListeningPortsResponse, String> {
        match (min, max) {
            (1, 65535) => Ok(ListeningPortsResponse {
                ports: vec![80, 5000],
            }),
            _ => Err("no".into()),
        }
    }

    async fn watch_ports(
        &self,
        _: u16,
        _: u16,
        items: Tx<v1::WatchEvent>,
        _: Rx<()>,
    ) -> Result<(), String> {
        for event in events() {
            let sent = items.send(event.into()).await;
            sent.map_err(|error: roam::TxError| error.to_string())?;
        }
        Ok(())
    }

    async fn watch_listeners(
        &self,
        _: u16,
        _: u16,
        items: Tx<WatchEvent>,
        _: Rx<()>,
    ) -> Result<(), String> {
        for event in events() {
            let sent = items.send(event).await;
            sent.map_err(|error: roam::TxError| error.to_string())?;
        }
        Ok(())
    }
}

/// Asks an agent at the other end of `stream` for everything, one after the other.
async fn ask(stream: UnixStream) {
    let session = Session::<RumAgentClient>::connect(Stream::Unix(stream), Limits::HOST);
    let session = session.await.expect("a session");
    let client = session.client();
    let told = session.call(DEADLINE, client.hello(1)).await;
    assert_eq!(told.expect("hello"), info());
    let told = session.call(DEADLINE, client.ping()).await;
    assert!(told.expect("ping").ready);
    let told = session.call(DEADLINE, client.listening_ports(1, 65535));
    assert_eq!(told.await.expect("ports").ports, [80, 5000]);
    let told = session.call(DEADLINE, client.listening_ports(2, 2)).await;
    assert_eq!(told.expect_err("refused").to_string(), "no");

    let (items, mut received) = roam::channel();
    let (_keep, stop) = roam::channel::<()>();
    let told = session.call(DEADLINE, client.watch_listeners(1, 9, items, stop));
    told.await.expect("a stream");
    for event in events() {
        let item = received.recv().await.expect("an item");
        assert_eq!(*item.expect("one more"), event);
    }
    let (items, mut received) = roam::channel();
    let (_keep, stop) = roam::channel::<()>();
    let told = session.call(DEADLINE, client.watch_ports(1, 9, items, stop));
    told.await.expect("a stream");
    for event in events() {
        let item = received.recv().await.expect("an item");
        assert_eq!(*item.expect("one more"), v1::WatchEvent::from(event));
    }
}

async fn answer(stream: UnixStream) {
    let served = serve(
        Stream::Unix(stream),
        Limits::AGENT,
        RumAgentDispatcher::new(Agent),
    );
    served.await.expect("a session");
}

/// Who said what, in turns.
type Turns = Vec<(u8, Vec<u8>)>;

fn recorded() -> Turns {
    let bytes = std::fs::read(file()).expect("the fixture");
    let (mut turns, mut rest) = (Turns::new(), &bytes[..]);
    while let [who, a, b, c, d, more @ ..] = rest {
        let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        turns.push((*who, more[..length].to_vec()));
        rest = &more[length..];
    }
    turns
}

/// Plays `who` to the other end of `stream`: says what was said, and awaits what the other said.
async fn play(who: u8, mut stream: UnixStream) {
    for (turn, (speaker, bytes)) in recorded().into_iter().enumerate() {
        if speaker == who {
            stream.write_all(&bytes).await.expect("it listens");
            continue;
        }
        let mut said = vec![0; bytes.len()];
        stream.read_exact(&mut said).await.expect("it speaks");
        assert!(said == bytes, "turn {turn}: {said:?}\nonce: {bytes:?}");
    }
}

/// What host and agent of today say to each other.
async fn record(host: UnixStream, agent: UnixStream) -> Turns {
    let (mut host, mut agent) = (host, agent);
    let mut turns = Turns::new();
    let (mut to_host, mut to_agent) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        let (who, bytes) = tokio::select! {
            biased;
            read = agent.read(&mut to_host) => (1, to_host[..read.expect("a socket")].to_vec()),
            read = host.read(&mut to_agent) => (0, to_agent[..read.expect("a socket")].to_vec()),
        };
        if bytes.is_empty() {
            return turns;
        }
        let other = if who == 0 { &mut agent } else { &mut host };
        other.write_all(&bytes).await.expect("a socket");
        match turns.last_mut() {
            Some((before, all)) if *before == who => all.extend(bytes),
            _ => turns.push((who, bytes)),
        }
    }
}

fn pair() -> (UnixStream, UnixStream) {
    UnixStream::pair().expect("two sockets")
}

#[tokio::test]
async fn a_host_and_an_agent_of_today_understand_those_of_protocol_1() {
    assert_eq!(
        PROTOCOL, 1,
        "a later one needs a fixture of its own beside this"
    );
    if std::env::var_os("RUM_WRITE_FIXTURES").is_some() {
        let ((host, outer), (agent, inner)) = (pair(), pair());
        let (turns, (), ()) = tokio::join!(record(outer, inner), ask(host), answer(agent));
        let turns = turns.into_iter().map(|(who, bytes)| {
            let length = u32::try_from(bytes.len()).expect("some hundred bytes");
            [&[who], &length.to_be_bytes()[..], &bytes].concat()
        });
        std::fs::write(file(), turns.collect::<Vec<_>>().concat()).expect("the fixture");
    }
    let (host, agent) = pair();
    let host = tokio::time::timeout(DEADLINE, async { tokio::join!(ask(host), play(1, agent)) });
    host.await.expect("a host of today and an agent of then");
    let (host, agent) = pair();
    let agent = tokio::time::timeout(DEADLINE, async {
        tokio::join!(play(0, host), answer(agent))
    });
    agent.await.expect("an agent of today and a host of then");
}
