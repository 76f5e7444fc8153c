//! Tests of when a client is given up and when it is reset.

#![allow(clippy::unwrap_used)]

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use rum_shared::bytes::channel::DialStatus;
use rum_shared::bytes::relay;
use rum_shared::transport::Endpoint;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::connection::SLOW;
use super::dialer::LINK_DEADLINE;
use super::*;
use crate::clock::stopped::Clock;
use crate::stream::client::LinkState;

struct Fixture {
    clock: Clock,
    _dir: tempfile::TempDir,
    agent: UnixListener,
    link: watch::Sender<LinkState>,
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
        let dialer = Dialer::new(endpoint.into(), link.subscribe());
        let cut = CancellationToken::new();
        let forwarder = Forwarder::new(Destination::own(5000), &dialer, cut.clone());
        forwarder.bind(ANYWHERE, false, None).unwrap();
        let task = forwarder.task();
        Self {
            clock: Clock::stop(),
            _dir: dir,
            agent,
            link,
            cut,
            forwarder,
            task: tokio::spawn(task.run()),
        }
    }

    async fn client(&self) -> TcpStream {
        let at = self.forwarder.addr().unwrap();
        let client = TcpStream::connect(at.0).await.unwrap();
        self.clock.settle().await;
        client
    }

    /// A connected client, and the far end of its channel.
    async fn connected(&self) -> (TcpStream, UnixStream) {
        let client = self.client().await;
        let (mut channel, _) = self.agent.accept().await.unwrap();
        assert_eq!(channel.read_u16().await.unwrap(), 5000);
        channel.write_u8(DialStatus::Connected as u8).await.unwrap();
        self.clock.settle().await;
        (client, channel)
    }

    /// The next channel, however long the pause before it is.
    async fn dialled(&self) -> UnixStream {
        loop {
            tokio::select! {
                biased;
                accepted = self.agent.accept() => return accepted.unwrap().0,
                () = self.clock.advance(crate::stream::backoff::FIRST) => {}
            }
        }
    }

    fn refused(&self) -> u64 {
        self.forwarder.stats().refused.load(Relaxed)
    }
}

/// How `client` ended: `None` while it is open.
fn end(client: &TcpStream) -> Option<io::ErrorKind> {
    match client.try_read(&mut [0; 1]) {
        Ok(_) => Some(io::ErrorKind::UnexpectedEof),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        Err(error) => Some(error.kind()),
    }
}

const ANYWHERE: HostAddr = HostAddr(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0));
const RESET: Option<io::ErrorKind> = Some(io::ErrorKind::ConnectionReset);
const MOMENT: Duration = Duration::from_millis(2);

#[tokio::test]
async fn a_program_that_does_not_accept_is_waited_for() {
    let fixture = Fixture::new();
    let client = fixture.client().await;
    let (mut channel, _) = fixture.agent.accept().await.unwrap();
    assert_eq!(channel.read_u16().await.unwrap(), 5000);
    fixture.clock.advance(SLOW + MOMENT).await;
    let stats = fixture.forwarder.stats();
    let counts = || [&stats.waiting, &stats.slow].map(|count| count.load(Relaxed));
    assert_eq!(counts(), [1, 1]);
    fixture.clock.advance(Duration::from_secs(120)).await;
    assert_eq!((end(&client), fixture.refused()), (None, 0));
    channel.write_u8(DialStatus::Connected as u8).await.unwrap();
    fixture.clock.settle().await;
    assert_eq!((end(&client), counts()), (None, [0, 0]));
}

#[tokio::test]
async fn an_answer_that_gets_lost_is_asked_for_again() {
    let fixture = Fixture::new();
    let client = fixture.client().await;
    let (lost, _) = fixture.agent.accept().await.unwrap();
    fixture.clock.advance(LINK_DEADLINE * 3).await;
    drop(lost);
    let mut channel = fixture.dialled().await;
    assert_eq!(channel.read_u16().await.unwrap(), 5000);
    channel.write_u8(DialStatus::Connected as u8).await.unwrap();
    fixture.clock.settle().await;
    assert_eq!((end(&client), fixture.refused()), (None, 0));
}

#[tokio::test]
async fn an_agent_without_room_is_asked_again() {
    let fixture = Fixture::new();
    let client = fixture.client().await;
    for _ in 0..20 {
        let mut channel = fixture.dialled().await;
        channel.write_u8(DialStatus::Exhausted as u8).await.unwrap();
    }
    let mut channel = fixture.dialled().await;
    let stats = fixture.forwarder.stats();
    assert_eq!((end(&client), stats.unserved.load(Relaxed)), (None, 1));
    channel.write_u8(DialStatus::Connected as u8).await.unwrap();
    while stats.unserved.load(Relaxed) > 0 {
        fixture.clock.settle().await;
    }
    assert_eq!((end(&client), fixture.refused()), (None, 0));
}

#[tokio::test]
async fn a_refusal_resets_and_is_remembered() {
    let fixture = Fixture::new();
    let client = fixture.client().await;
    let (mut channel, _) = fixture.agent.accept().await.unwrap();
    channel
        .write_u8(DialStatus::NoLocalPort as u8)
        .await
        .unwrap();
    fixture.clock.settle().await;
    assert_eq!((end(&client), fixture.refused()), (RESET, 1));
    let last = fixture.forwarder.stats().last_refusal();
    assert_eq!(last, Some(Refusal::Agent(DialStatus::NoLocalPort)));
}

#[tokio::test]
async fn a_client_that_is_reset_while_it_waits_is_gone() {
    let fixture = Fixture::new();
    let client = fixture.client().await;
    let (mut channel, _) = fixture.agent.accept().await.unwrap();
    assert_eq!(channel.read_u16().await.unwrap(), 5000);
    relay::prepare(&client);
    drop(client);
    fixture.clock.settle().await;
    assert_eq!(channel.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(fixture.refused(), 0);
}

#[tokio::test]
async fn an_agent_that_is_away_is_waited_for_as_long() {
    let fixture = Fixture::new();
    fixture.link.send_replace(LinkState::Down);
    let first = fixture.client().await;
    fixture.clock.advance(LINK_DEADLINE / 2).await;
    let second = fixture.client().await;
    fixture.clock.advance(LINK_DEADLINE / 2 + MOMENT).await;
    assert_eq!(end(&first), RESET);
    assert_eq!(end(&second), None);
    // The agent is back; it was not dialled meanwhile.
    fixture.link.send_replace(LinkState::Polling);
    let (mut channel, _) = fixture.agent.accept().await.unwrap();
    assert_eq!(channel.read_u16().await.unwrap(), 5000);
    channel.write_u8(DialStatus::Connected as u8).await.unwrap();
    fixture.clock.advance(LINK_DEADLINE * 2).await;
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
async fn without_a_drain_time_connections_go_on_and_are_those_of_the_next() {
    let fixture = Fixture::new();
    let (client, _channel) = fixture.connected().await;
    let day = Duration::from_secs(86_400);
    fixture.forwarder.close(None);
    fixture.clock.advance(day).await;
    assert_eq!(end(&client), None);
    // Binding again cancels the pending reset.
    fixture.forwarder.close(Some(day));
    fixture.forwarder.bind(ANYWHERE, false, None).unwrap();
    let (other, _other) = fixture.connected().await;
    fixture.clock.advance(day * 2).await;
    assert_eq!((end(&client), end(&other)), (None, None));
    assert_eq!(fixture.forwarder.stats().active.load(Relaxed), 2);
    fixture.forwarder.stop(Duration::ZERO);
    fixture.clock.advance(MOMENT).await;
    assert_eq!((end(&client), end(&other)), (RESET, RESET));
    assert_eq!(fixture.task.await.unwrap(), 2);
}

#[tokio::test]
async fn two_addresses_are_one_forward() {
    let fixture = Fixture::new();
    let first = fixture.forwarder.addr().unwrap();
    let v6 = SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), first.0.port());
    fixture.forwarder.bind(HostAddr(v6), true, None).unwrap();
    assert_eq!(fixture.forwarder.addresses(), [first, HostAddr(v6)]);
    for at in [first.0, v6, first.0, v6] {
        let _client = TcpStream::connect(at).await.unwrap();
        fixture.agent.accept().await.unwrap();
    }
    assert_eq!(fixture.forwarder.stats().accepted.load(Relaxed), 4);
    assert!(fixture.forwarder.unbind(v6.ip()).is_some());
    assert!(TcpStream::connect(v6).await.is_err());
    TcpStream::connect(first.0).await.unwrap();
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
