#![allow(clippy::unwrap_used)]

use super::*;
use rum_shared::bytes::channel::Connected;
use rum_shared::listener::{BoundAddr, Change, Listener};
use rustix::net::{AddressFamily, SocketFlags, socket_with};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, UnixStream};
use tokio::task::JoinSet;
use tokio::time::Instant;

fn bound(ip: &str, dual_stack: bool) -> BoundAddr {
    BoundAddr::new(ip.parse().unwrap(), dual_stack)
}

fn listener(port: u16, addresses: &[BoundAddr]) -> Listener {
    Listener {
        addresses: addresses.to_vec(),
        ..Listener::bare(port)
    }
}

/// A forwarder whose set holds `listeners`.
fn forwarder(listeners: Vec<Listener>) -> ChannelServer {
    let hub = Arc::new(Hub::default());
    hub.publish(Change {
        generation: 1,
        opened: listeners,
        ..Change::default()
    });
    ChannelServer::new(hub, false, CancellationToken::new())
}

/// A port that nothing listens on and that nobody else gets as long as the socket is held.
fn silent_port() -> (TcpSocket, u16) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = socket.local_addr().unwrap().port();
    (socket, port)
}

#[tokio::test]
async fn listeners_are_dialled_where_they_are() {
    for (ip, known) in [
        ("127.0.0.1", true),
        ("127.0.0.1", false),
        ("::1", true),
        ("::1", false),
        ("127.0.0.2", true),
    ] {
        let server = TcpListener::bind((ip, 0)).await.unwrap();
        let address = server.local_addr().unwrap();
        let known = if known {
            vec![listener(address.port(), &[bound(ip, false)])]
        } else {
            vec![]
        };
        let tcp = forwarder(known)
            .dial(Destination::own(address.port()))
            .await
            .unwrap();
        assert_eq!(tcp.peer_addr().unwrap(), address);
        server.accept().await.unwrap();
    }
}

#[tokio::test]
async fn what_cannot_be_dialled_has_a_reason() {
    let (_held, port) = silent_port();
    let dial = async |listeners, port| {
        forwarder(listeners)
            .dial(Destination::own(port))
            .await
            .unwrap_err()
    };
    assert_eq!(dial(vec![], port).await, DialStatus::Refused);
    assert_eq!(dial(vec![], 0).await, DialStatus::Denied);
    // An address that is not of this machine (TEST-NET-1, RFC 5737) is not dialled.
    let foreign = listener(port, &[bound("192.0.2.1", false)]);
    assert_eq!(dial(vec![foreign], port).await, DialStatus::Unreachable);
    let scoped = listener(port, &[bound("fe80::1", false)]);
    assert_eq!(dial(vec![scoped], port).await, DialStatus::Unreachable);
}

#[tokio::test]
async fn an_address_is_dialled_whoever_has_it() {
    let dial = async |ip: &str, port| {
        let destination = SocketAddr::new(ip.parse().unwrap(), port).into();
        forwarder(vec![]).dial(destination).await
    };
    for ip in ["127.0.0.3", "::1"] {
        let server = TcpListener::bind((ip, 0)).await.unwrap();
        let address = server.local_addr().unwrap();
        // It is not known where it is, as another machine's is not.
        let tcp = dial(ip, address.port()).await.unwrap();
        assert_eq!(tcp.peer_addr().unwrap(), address);
        server.accept().await.unwrap();
        drop(server);
        let refused = dial(ip, address.port()).await.unwrap_err();
        assert_eq!(refused, DialStatus::Refused);
    }
    assert_eq!(dial("127.0.0.1", 0).await.unwrap_err(), DialStatus::Denied);
    // A port without an interface means nothing at a link-local address.
    assert!(dial("fe80::1", 80).await.is_err());
}

#[tokio::test]
async fn a_header_that_is_not_known_is_denied() {
    for said in [&[0, 0, 5][..], &[0, 0, 0]] {
        let (mut host, guest) = UnixStream::pair().unwrap();
        host.write_all(said).await.unwrap();
        forwarder(vec![]).serve(Stream::Unix(guest)).await;
        assert_eq!(host.read_u8().await.unwrap(), DialStatus::Denied as u8);
    }
}

#[tokio::test]
async fn a_channel_carries_bytes_both_ways_and_ends() {
    let server = TcpListener::bind("[::1]:0").await.unwrap();
    let port = server.local_addr().unwrap().port();
    let (host, guest) = UnixStream::pair().unwrap();
    let forwarder = forwarder(vec![listener(port, &[bound("::1", false)])]);
    let host = Stream::Unix(host);
    // The host's end is a relay too, with a client behind it.
    let entry = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(entry.local_addr().unwrap());
    let (client, accepted) = tokio::join!(client, entry.accept());
    let (mut client, accepted) = (client.unwrap(), accepted.unwrap().0);
    let host = async {
        let Connected::Framed(host) = channel::open(host, Destination::own(port))
            .await
            .unwrap()
            .unwrap()
        else {
            panic!("a socket that nobody asked for");
        };
        relay(
            accepted,
            host,
            &Counters::default(),
            &Turn::default(),
            &CancellationToken::new(),
        )
        .await
    };
    let program = async {
        let mut tcp = server.accept().await.unwrap().0;
        let mut request = String::new();
        tcp.read_to_string(&mut request).await.unwrap();
        // The request has ended, the reply is still to come.
        tcp.write_all(format!("re: {request}").as_bytes())
            .await
            .unwrap();
    };
    let user = async {
        client.write_all(b"hello").await.unwrap();
        client.shutdown().await.unwrap();
        let mut reply = String::new();
        client.read_to_string(&mut reply).await.unwrap();
        assert_eq!(reply, "re: hello");
    };
    let guest = forwarder.serve(Stream::Unix(guest));
    let ((), outcome, (), ()) = tokio::join!(guest, host, program, user);
    assert_eq!(outcome, rum_shared::bytes::relay::Outcome::Finished);
}

#[tokio::test]
async fn too_many_channels_are_told_so() {
    let forwarder = forwarder(vec![]);
    let (host, guest) = UnixStream::pair().unwrap();
    let places = forwarder.places.clone();
    let _all = places.acquire_many(MAX_CHANNELS as u32).await.unwrap();
    let (refused, ()) = tokio::join!(
        channel::open(Stream::Unix(host), Destination::own(80)),
        forwarder.serve(Stream::Unix(guest))
    );
    assert_eq!(refused.unwrap().unwrap_err(), DialStatus::Exhausted);
}

#[tokio::test]
async fn a_socket_is_handed_over_where_that_is_wanted() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = server.local_addr().unwrap().port();
    let mut forwarder = forwarder(vec![]);
    forwarder.hand_over = true;
    let (host, guest) = UnixStream::pair().unwrap();
    let (connected, (), accepted) = tokio::join!(
        channel::open(Stream::Unix(host), Destination::own(port)),
        forwarder.serve(Stream::Unix(guest)),
        server.accept()
    );
    let Connected::Direct(mut tcp) = connected.unwrap().unwrap() else {
        panic!("no socket");
    };
    tcp.write_all(b"one hop").await.unwrap();
    tcp.shutdown().await.unwrap();
    let mut text = String::new();
    accepted.unwrap().0.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "one hop");
}

#[tokio::test(start_paused = true)]
async fn a_host_that_says_nothing_is_left_some_time_later_for_a_few_channels() {
    let forwarder = forwarder(vec![]);
    let start = Instant::now();
    let mut left = JoinSet::new();
    let mut hosts = vec![];
    for _ in 0..MAX_READY + 2 {
        let (host, guest) = UnixStream::pair().unwrap();
        hosts.push(host);
        let serve = forwarder.clone().serve(Stream::Unix(guest));
        left.spawn(async move {
            serve.await;
            start.elapsed().as_secs()
        });
    }
    let mut after = left.join_all().await;
    after.sort_unstable();
    let (hasty, patient) = after.split_at(2);
    assert_eq!(hasty, [HEADER_DEADLINE.as_secs(); 2]);
    assert_eq!(patient, [READY_DEADLINE.as_secs(); MAX_READY]);
}

/// A listener whose accept queue is full, and who is in it.
fn full() -> (std::net::TcpListener, Vec<std::os::fd::OwnedFd>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let address = listener.local_addr().unwrap();
    // The backlog of 0 has room for one; what comes then waits for its first answer.
    let waiting = (0..2).map(|_| {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None);
        let socket = socket.unwrap();
        let _ = rustix::net::connect(&socket, &address);
        socket
    });
    let waiting = waiting.collect();
    (listener, waiting)
}

#[tokio::test]
async fn a_full_accept_queue_is_waited_for() {
    let (listener, waiting) = full();
    let port = listener.local_addr().unwrap().port();
    let forwarder = forwarder(vec![]);
    let mut dial = std::pin::pin!(forwarder.dial(Destination::own(port)));
    tokio::select! {
        biased;
        dialled = &mut dial => panic!("{dialled:?}"),
        () = std::future::ready(()) => {}
    }
    assert_eq!(forwarder.waiting.available_permits(), MAX_WAITING - 1);
    drop(waiting);
    listener.set_nonblocking(true).unwrap();
    let listener = TcpListener::from_std(listener).unwrap();
    let accept = async { while listener.accept().await.is_ok() {} };
    tokio::select! {
        dialled = dial => drop(dialled.unwrap()),
        () = accept => unreachable!(),
    }
    assert_eq!(forwarder.waiting.available_permits(), MAX_WAITING);
}

#[tokio::test]
async fn a_dial_ends_when_its_host_leaves() {
    let (listener, _waiting) = full();
    let port = listener.local_addr().unwrap().port();
    let (mut host, guest) = UnixStream::pair().unwrap();
    host.write_all(&port.to_be_bytes()).await.unwrap();
    let forwarder = forwarder(vec![]);
    let places = forwarder.places.clone();
    let serving = tokio::spawn(forwarder.serve(Stream::Unix(guest)));
    while places.available_permits() == MAX_CHANNELS {
        tokio::task::yield_now().await;
    }
    drop(host);
    serving.await.unwrap();
    assert_eq!(places.available_permits(), MAX_CHANNELS);
}

#[tokio::test]
async fn a_host_that_leaves_before_its_answer_resets_the_program() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = server.local_addr().unwrap().port();
    let (mut host, guest) = UnixStream::pair().unwrap();
    host.write_all(&port.to_be_bytes()).await.unwrap();
    drop(host);
    forwarder(vec![]).serve(Stream::Unix(guest)).await;
    let mut program = server.accept().await.unwrap().0;
    let error = program.read(&mut [0]).await.expect_err("a clean end");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn those_who_wait_leave_room_for_others() {
    let (listener, _waiting) = full();
    let open = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let [port, open_port] = [&listener, &open].map(|l| l.local_addr().unwrap().port());
    let forwarder = forwarder(vec![]);
    let _others = forwarder
        .waiting
        .try_acquire_many(MAX_WAITING as u32)
        .unwrap();
    assert_eq!(
        forwarder.dial(Destination::own(port)).await.unwrap_err(),
        DialStatus::Exhausted
    );
    forwarder.dial(Destination::own(open_port)).await.unwrap();
}
