//! When a client is given up, and when it is cut.

#![allow(clippy::unwrap_used)]

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::*;
use crate::clock::stopped::Clock;

struct Fixture {
    clock: Clock,
    _dir: tempfile::TempDir,
    agent: UnixListener,
    link: watch::Sender<LinkState>,
    _successions: watch::Sender<u64>,
    cut: CancellationToken,
    forwarder: Forwarder,
    task: tokio::task::JoinHandle<usize>,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let channel = dir.path().join("channel");
        let agent = UnixListener::bind(&channel).unwrap();
        let endpoint = Endpoint::Unix {
            rpc: dir.path().join("rpc"),
            channel,
            net: None,
        };
        let link = watch::Sender::new(LinkState::Polling);
        let successions = watch::Sender::new(0);
        let dialer = Dialer::new(endpoint, link.subscribe(), successions.subscribe());
        let cut = CancellationToken::new();
        let host = HostAddr(SocketAddr::from(([127, 0, 0, 1], 0)));
        let (forwarder, task) =
            Forwarder::bind(host, GuestPort(5000), &dialer, cut.clone()).unwrap();
        Self {
            clock: Clock::stop(),
            _dir: dir,
            agent,
            link,
            _successions: successions,
            cut,
            forwarder,
            task: tokio::spawn(task.run()),
        }
    }

    async fn client(&self) -> TcpStream {
        let client = TcpStream::connect(self.forwarder.addr().0).await.unwrap();
        self.clock.settle().await;
        client
    }

    /// A client whose channel is open, and its far end.
    async fn connected(&self) -> (TcpStream, UnixStream) {
        let client = self.client().await;
        let (mut channel, _) = self.agent.accept().await.unwrap();
        assert_eq!(channel.read_u16().await.unwrap(), 5000);
        channel.write_u8(DialStatus::Connected as u8).await.unwrap();
        self.clock.settle().await;
        (client, channel)
    }

    fn refused(&self) -> u64 {
        self.forwarder.stats().refused.load(Relaxed)
    }
}

/// How `client` stands: `None` while it lives.
fn end(client: &TcpStream) -> Option<io::ErrorKind> {
    match client.try_read(&mut [0; 1]) {
        Ok(_) => Some(io::ErrorKind::UnexpectedEof),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        Err(error) => Some(error.kind()),
    }
}

const RESET: Option<io::ErrorKind> = Some(io::ErrorKind::ConnectionReset);
const MOMENT: Duration = Duration::from_millis(2);

#[tokio::test]
async fn an_agent_that_does_not_answer_is_given_up() {
    let fixture = Fixture::new();
    let client = fixture.client().await;
    fixture.clock.advance(OPEN_DEADLINE - MOMENT).await;
    assert_eq!((end(&client), fixture.refused()), (None, 0));
    fixture.clock.advance(MOMENT * 2).await;
    assert_eq!((end(&client), fixture.refused()), (RESET, 1));
}

#[tokio::test]
async fn an_agent_that_is_away_is_waited_for_as_long() {
    let fixture = Fixture::new();
    fixture.link.send_replace(LinkState::Down);
    let first = fixture.client().await;
    fixture.clock.advance(OPEN_DEADLINE / 2).await;
    let second = fixture.client().await;
    fixture.clock.advance(OPEN_DEADLINE / 2 + MOMENT).await;
    assert_eq!(end(&first), RESET);
    assert_eq!(end(&second), None);
    // It is back, and was not dialled before.
    fixture.link.send_replace(LinkState::Polling);
    let (mut channel, _) = fixture.agent.accept().await.unwrap();
    assert_eq!(channel.read_u16().await.unwrap(), 5000);
    channel.write_u8(DialStatus::Connected as u8).await.unwrap();
    fixture.clock.advance(OPEN_DEADLINE * 2).await;
    assert_eq!(end(&second), None);
}

#[tokio::test]
async fn connections_have_the_drain_time_and_are_cut_after_it() {
    let drain = Duration::from_secs(7);
    let fixture = Fixture::new();
    let (client, _channel) = fixture.connected().await;
    let (ends, ended) = fixture.connected().await;
    fixture.clock.advance(drain * 2).await;
    fixture.forwarder.stop(drain);
    fixture.clock.advance(drain - MOMENT).await;
    assert_eq!((end(&client), end(&ends)), (None, None));
    drop((ends, ended));
    fixture.clock.advance(MOMENT * 2).await;
    assert_eq!(end(&client), RESET);
    assert_eq!(fixture.task.await.unwrap(), 1);
}

#[tokio::test]
async fn a_drain_is_over_with_the_last_connection() {
    let fixture = Fixture::new();
    let (client, channel) = fixture.connected().await;
    fixture.forwarder.stop(Duration::from_secs(7));
    fixture.clock.settle().await;
    assert!(!fixture.task.is_finished());
    drop((client, channel));
    fixture.clock.settle().await;
    assert!(fixture.task.is_finished());
    assert_eq!(fixture.task.await.unwrap(), 0);
}

#[tokio::test]
async fn a_client_that_waits_can_be_cut() {
    let fixture = Fixture::new();
    let client = fixture.client().await;
    fixture.cut.cancel();
    fixture.clock.settle().await;
    assert_eq!(end(&client), RESET);
}
