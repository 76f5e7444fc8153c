#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use rustix::net::SendFlags;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, UnixStream};
use tokio_util::task::AbortOnDropHandle;

use super::*;

mod direct;

/// Generous: only a broken build waits this long.
const PATIENCE: Duration = Duration::from_secs(60);
const MEGA: usize = 1024 * 1024;

/// A relay that runs, and the far end of its TCP connection.
struct Rig {
    tcp: TcpStream,
    counters: Arc<Counters>,
    cut: CancellationToken,
    running: AbortOnDropHandle<Outcome>,
}

impl Rig {
    async fn start(channel: UnixStream) -> Self {
        let (tcp, near) = tcp_pair().await;
        Self::over(tcp, near, channel)
    }

    fn over(tcp: TcpStream, near: TcpStream, channel: UnixStream) -> Self {
        let counters = Arc::new(Counters::default());
        let cut = CancellationToken::new();
        let running = tokio::spawn({
            let (counters, cut) = (Arc::clone(&counters), cut.clone());
            async move {
                let turn = Turn::default();
                relay(near, Stream::Unix(channel), &counters, &turn, &cut).await
            }
        });
        Self {
            tcp,
            counters,
            cut,
            running: AbortOnDropHandle::new(running),
        }
    }

    /// A relay and the raw far end of its channel.
    async fn raw() -> (Self, UnixStream) {
        let (channel, far) = UnixStream::pair().unwrap();
        (Self::start(channel).await, far)
    }

    /// Two relays, as on host and agent: a client's and a guest program's.
    async fn two() -> (Self, Self) {
        let (host, agent) = UnixStream::pair().unwrap();
        (Self::start(host).await, Self::start(agent).await)
    }

    async fn outcome(self) -> Outcome {
        let outcome = tokio::time::timeout(PATIENCE, self.running).await;
        outcome.expect("the relay does not end").unwrap()
    }
}

async fn connected() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (far, near) = tokio::join!(TcpStream::connect(address), listener.accept());
    (far.unwrap(), near.unwrap().0)
}

pub(super) async fn tcp_pair() -> (TcpStream, TcpStream) {
    let (far, near) = connected().await;
    // Small, so that a test need not move much to fill them.
    for socket in [&far, &near] {
        sockopt::set_socket_recv_buffer_size(socket, 64 * 1024).unwrap();
        sockopt::set_socket_send_buffer_size(socket, 64 * 1024).unwrap();
    }
    (far, near)
}

fn frame(payload: &[u8]) -> Vec<u8> {
    [&length(payload.len()), payload].concat()
}

async fn read_to_end(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut all = vec![];
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut all)).await;
    read.expect("no end in sight").map(|_| all)
}

/// What arrives before the reset that must come; panics at a clean end.
async fn read_to_reset(stream: &mut TcpStream) -> Vec<u8> {
    let mut all = vec![];
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut all)).await;
    let error = read.expect("no end in sight").expect_err("a clean end");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    all
}

/// Closes with a reset instead of an end.
fn reset(stream: TcpStream) {
    prepare(&stream);
}

/// One side asks and ends, the other reads to the end before it answers.
async fn half_close(mut asks: Rig, mut answers: Rig) {
    asks.tcp.write_all(b"request").await.unwrap();
    asks.tcp.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut answers.tcp).await.unwrap(), b"request");
    answers.tcp.write_all(b"an answer").await.unwrap();
    answers.tcp.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut asks.tcp).await.unwrap(), b"an answer");
    for (counters, from, to) in [(&asks.counters, 7, 9), (&answers.counters, 9, 7)] {
        assert_eq!(counters.from_tcp.load(Ordering::Relaxed), from);
        assert_eq!(counters.to_tcp.load(Ordering::Relaxed), to);
    }
    assert_eq!(asks.outcome().await, Outcome::Finished);
    assert_eq!(answers.outcome().await, Outcome::Finished);
}

#[tokio::test]
async fn each_side_may_end_first() {
    let (host, agent) = Rig::two().await;
    half_close(host, agent).await;
    let (host, agent) = Rig::two().await;
    half_close(agent, host).await;
}

#[tokio::test]
async fn half_close_survives_a_transport_that_loses_it() {
    let (host, mut a) = UnixStream::pair().unwrap();
    let (mut b, agent) = UnixStream::pair().unwrap();
    // Carries bytes, and no end of either side as long as it runs.
    let _device = AbortOnDropHandle::new(tokio::spawn(async move {
        let (mut a_in, mut a_out) = a.split();
        let (mut b_in, mut b_out) = b.split();
        let lossy = async |from: &mut tokio::net::unix::ReadHalf<'_>,
                           to: &mut tokio::net::unix::WriteHalf<'_>| {
            let _ = tokio::io::copy(from, to).await;
            std::future::pending::<()>().await;
        };
        tokio::join!(lossy(&mut a_in, &mut b_out), lossy(&mut b_in, &mut a_out));
    }));
    half_close(Rig::start(host).await, Rig::start(agent).await).await;
}

#[tokio::test]
async fn a_tcp_reset_crosses_as_a_reset() {
    let (rig, mut far) = Rig::raw().await;
    let Rig { tcp, running, .. } = rig;
    reset(tcp);
    assert_eq!(read_to_end(&mut far).await.unwrap(), RESET);
    assert_eq!(running.await.unwrap(), Outcome::TcpReset);

    let (mut host, agent) = Rig::two().await;
    reset(agent.tcp);
    assert_eq!(read_to_reset(&mut host.tcp).await, b"");
    assert_eq!(host.outcome().await, Outcome::ChannelReset);
}

#[tokio::test]
async fn what_was_said_before_a_reset_is_delivered() {
    let (mut tcp, near) = tcp_pair().await;
    let (channel, mut far) = UnixStream::pair().unwrap();
    // A server that answers early and closes with its request unread.
    tcp.write_all(b"413 too large").await.unwrap();
    reset(tcp);
    far.write_all(&frame(b"the rest of the request"))
        .await
        .unwrap();
    let (unused, _) = tcp_pair().await;
    let rig = Rig::over(unused, near, channel);
    let expected = [frame(b"413 too large"), RESET.to_vec()].concat();
    assert_eq!(read_to_end_or_reset(&mut far).await, expected);
    assert_eq!(rig.outcome().await, Outcome::TcpReset);
}

/// A Unix socket whose peer closed with bytes unread says ECONNRESET after its data.
async fn read_to_end_or_reset(stream: &mut UnixStream) -> Vec<u8> {
    let mut all = vec![];
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut all)).await;
    let _ = read.expect("no end in sight");
    all
}

#[tokio::test]
async fn a_reset_is_seen_while_only_down_is_open() {
    let (mut rig, mut far) = Rig::raw().await;
    rig.tcp.shutdown().await.unwrap();
    let mut end = END;
    far.read_exact(&mut end).await.unwrap();
    assert_eq!(end, END);
    let Rig { tcp, running, .. } = rig;
    reset(tcp);
    assert_eq!(read_to_end(&mut far).await.unwrap(), RESET);
    assert_eq!(running.await.unwrap(), Outcome::TcpReset);
}

#[tokio::test]
async fn a_channel_that_breaks_resets_tcp_after_its_data() {
    let too_long = [frame(b"data"), vec![0, 16, 0, 0]].concat();
    let after_end = [frame(b"data"), END.to_vec(), frame(b"more")].concat();
    for (said, outcome) in [
        (
            [frame(b"data"), RESET.to_vec()].concat(),
            Outcome::ChannelReset,
        ),
        (frame(b"data"), Outcome::ChannelLost),
        (frame(b"data and more")[..8].to_vec(), Outcome::ChannelLost),
        (too_long, Outcome::ChannelLost),
    ] {
        let (mut rig, mut far) = Rig::raw().await;
        far.write_all(&said).await.unwrap();
        drop(far);
        assert_eq!(read_to_reset(&mut rig.tcp).await, b"data");
        assert_eq!(rig.outcome().await, outcome);
    }
    let (rig, mut far) = Rig::raw().await;
    far.write_all(&after_end).await.unwrap();
    assert_eq!(rig.outcome().await, Outcome::ChannelLost);
}

#[tokio::test]
async fn a_channel_that_breaks_after_its_end_resets_what_is_left() {
    let (mut rig, mut far) = Rig::raw().await;
    far.write_all(&END).await.unwrap();
    assert_eq!(read_to_end(&mut rig.tcp).await.unwrap(), b"");
    drop(far);
    let Rig {
        mut tcp, running, ..
    } = rig;
    assert_eq!(running.await.unwrap(), Outcome::ChannelLost);
    // The end was read, so the reset shows where bytes still could go.
    let write = async { while tcp.write_all(b"x").await.is_ok() {} };
    tokio::time::timeout(PATIENCE, write)
        .await
        .expect("no reset");
}

#[tokio::test]
async fn a_broken_write_side_does_not_hide_what_can_be_read() {
    let (mut tcp, near) = tcp_pair().await;
    let (channel, mut far) = UnixStream::pair().unwrap();
    // An agent that answered and went: our writes fail, its bytes are there.
    tcp.write_all(b"upload").await.unwrap();
    far.write_all(&[frame(&[7; 1000]), frame(b"data")].concat())
        .await
        .unwrap();
    drop(far);
    let mut rig = Rig::over(tcp, near, channel);
    assert_eq!(read_to_reset(&mut rig.tcp).await.len(), 1004);
    assert_eq!(rig.outcome().await, Outcome::ChannelLost);
}

#[tokio::test]
async fn a_cut_resets_both_sides() {
    let (mut rig, mut far) = Rig::raw().await;
    far.write_all(&frame(b"data")).await.unwrap();
    rig.tcp.read_exact(&mut [0; 4]).await.unwrap();
    rig.cut.cancel();
    assert_eq!(read_to_reset(&mut rig.tcp).await, b"");
    assert_eq!(read_to_end(&mut far).await.unwrap(), RESET);
    assert_eq!(rig.outcome().await, Outcome::Cut);
}

#[tokio::test]
async fn a_dropped_relay_never_looks_finished() {
    let (mut rig, mut far) = Rig::raw().await;
    far.write_all(&frame(b"data")).await.unwrap();
    rig.tcp.read_exact(&mut [0; 4]).await.unwrap();
    rig.running.abort();
    assert_eq!(read_to_reset(&mut rig.tcp).await, b"");
    assert_eq!(read_to_end(&mut far).await.unwrap(), b"");
}

#[tokio::test]
async fn a_reset_frame_never_lands_inside_another() {
    for (sent, expected) in [(4, &RESET[..]), (20, &[])] {
        let (writer, mut far) = tokio::io::duplex(10);
        let mut frames = FrameWriter {
            writer,
            inside: false,
        };
        let written = tokio::select! {
            biased;
            done = frames.write(&[7; 20][..sent]) => done.is_ok(),
            () = std::future::ready(()) => false,
        };
        assert_eq!(written, sent == 4);
        far.read_exact(&mut [0; 20][..sent.min(10)]).await.unwrap();
        frames.try_reset().await;
        assert_eq!(read_to_end(&mut far).await.unwrap(), expected);
    }
}

/// Writes `bytes` bytes of a pattern and ends.
async fn send(stream: &mut (impl AsyncWrite + Unpin), bytes: usize) {
    let pattern: Vec<u8> = (0..bytes).map(|n| (n % 251) as u8).collect();
    stream.write_all(&pattern).await.unwrap();
    stream.shutdown().await.unwrap();
}

async fn check(stream: &mut (impl AsyncRead + Unpin), bytes: usize) {
    let all = read_to_end(stream).await.unwrap();
    assert_eq!(all.len(), bytes);
    let wrong = all
        .iter()
        .zip(0usize..)
        .find(|(byte, n)| **byte != (n % 251) as u8);
    if let Some((byte, n)) = wrong {
        let around = &all[n.saturating_sub(4)..bytes.min(n + 8)];
        panic!("byte {n} is {byte}, expected {}: {around:?}", n % 251);
    }
}

#[tokio::test]
async fn a_blocked_direction_blocks_its_writer_and_nobody_else() {
    // Far more than the buffers hold on the whole way.
    const BLOCKED: usize = 10 * MEGA;
    for host_is_slow in [true, false] {
        let (host, agent) = Rig::two().await;
        let (mut slow, mut quick) = if host_is_slow {
            (host, agent)
        } else {
            (agent, host)
        };
        let (mut slow_in, mut slow_out) = slow.tcp.split();
        let (mut quick_in, mut quick_out) = quick.tcp.split();
        let flood = send(&mut quick_out, BLOCKED);
        let rest = async {
            // The slow side reads nothing before all it says was heard.
            tokio::join!(
                send(&mut slow_out, 10 * MEGA),
                check(&mut quick_in, 10 * MEGA)
            );
            let taken = quick.counters.from_tcp.load(Ordering::Relaxed) as usize;
            assert!(taken < BLOCKED, "{taken} bytes went nowhere");
            check(&mut slow_in, BLOCKED).await;
        };
        tokio::join!(flood, rest);
        assert_eq!(slow.outcome().await, Outcome::Finished);
        assert_eq!(quick.outcome().await, Outcome::Finished);
    }
}

#[tokio::test]
async fn an_idle_relay_holds_no_buffer() {
    let (_far, tcp) = tcp_pair().await;
    let (channel, _peer) = UnixStream::pair().unwrap();
    let (counters, cut) = (Counters::default(), CancellationToken::new());
    let turn = Turn::default();
    let relay = relay(tcp, Stream::Unix(channel), &counters, &turn, &cut);
    let size = size_of_val(&relay);
    assert!(size < 2048, "{size} bytes a relay");
}

/// What Linux does (sk_clone_lock, net/core/sock.c): whoever accepts relies on it.
#[tokio::test]
async fn what_a_listener_accepts_is_prepared_as_it_is() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    prepare(&listener);
    let address = listener.local_addr().unwrap();
    let (_client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    let accepted = accepted.unwrap().0;
    assert!(accepted.nodelay().unwrap());
    assert!(sockopt::socket_keepalive(&accepted).unwrap());
    let linger = sockopt::socket_linger(&accepted).unwrap();
    assert_eq!(linger, Some(Duration::ZERO));
}

/// Writes until nothing moves any more.
async fn push(stream: &mut TcpStream) {
    let quiet = Duration::from_millis(200);
    while let Ok(written) = tokio::time::timeout(quiet, stream.write(&[7; 65_536])).await {
        written.unwrap();
    }
}

#[tokio::test]
async fn a_reset_crosses_a_channel_that_is_full() {
    let (near, far) = Rig::two().await;
    let Rig {
        mut tcp, running, ..
    } = near;
    push(&mut tcp).await;
    reset(tcp);
    let ended = tokio::time::timeout(PATIENCE, running).await;
    assert_eq!(ended.expect("it is not seen").unwrap(), Outcome::TcpReset);
    let Rig {
        mut tcp, running, ..
    } = far;
    let ended = tokio::time::timeout(PATIENCE, running).await;
    assert_eq!(
        ended.expect("it is not told").unwrap(),
        Outcome::ChannelLost
    );
    assert!(!read_to_reset(&mut tcp).await.is_empty());
}

#[tokio::test]
async fn what_is_behind_a_slow_reader_when_all_is_over_is_delivered() {
    /// More than TCP holds, less than TCP, a buffer and the channel do.
    const SOME: usize = 500_000;
    let (mut rig, mut far) = Rig::raw().await;
    rig.tcp.shutdown().await.unwrap();
    let mut end = END;
    far.read_exact(&mut end).await.unwrap();
    let said: Vec<u8> = (0..SOME).map(|n| (n % 251) as u8).collect();
    let said: Vec<u8> = said.chunks(10_000).flat_map(frame).chain(END).collect();
    far.write_all(&said).await.unwrap();
    // The other relay has finished, and closes.
    drop(far);
    tokio::time::sleep(2 * incoming::STUCK).await;
    check(&mut rig.tcp, SOME).await;
    assert_eq!(rig.outcome().await, Outcome::Finished);
}
