#![allow(clippy::unwrap_used)]

use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

use super::*;

mod gate;

/// Generous: only a broken build waits this long.
const PATIENCE: Duration = Duration::from_secs(60);

/// Dials a `CONNECT` device that reads the request, answers `answer` and closes if `close`.
async fn connect_to(answer: &'static [u8], close: bool) -> (io::Result<Stream>, String) {
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("v.sock");
    let device = UnixListener::bind(&socket).unwrap();
    let transport = Transport::from(Endpoint::Connect { socket });
    let serve = async {
        let (mut stream, _) = device.accept().await.unwrap();
        let mut request = vec![];
        while request.last() != Some(&b'\n') {
            request.push(stream.read_u8().await.unwrap());
        }
        stream.write_all(answer).await.unwrap();
        (
            String::from_utf8(request).unwrap(),
            (!close).then_some(stream),
        )
    };
    let (dialled, (request, _kept)) = tokio::join!(transport.dial(Service::Channel), serve);
    (dialled, request)
}

#[tokio::test]
async fn connect_asks_for_the_port_and_takes_no_byte_too_many() {
    let (dialled, request) = connect_to(b"OK 1073741824\nafter", true).await;
    assert_eq!(request, "CONNECT 2223\n");
    let mut rest = String::new();
    dialled.unwrap().read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "after");
}

#[tokio::test]
async fn connect_says_when_nobody_listens() {
    for answer in [&b""[..], b"OK 12"] {
        let error = connect_to(answer, true).await.0.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{error}");
        assert!(error.to_string().contains("2223"), "{error}");
    }
}

#[tokio::test]
async fn connect_answers_are_checked_and_bounded() {
    for answer in [&b"HTTP/1.1 400\r\n"[..], b"OKAY\n", &[b'x'; 200]] {
        let error = connect_to(answer, false).await.0.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
    }
}

#[test]
fn vsock_errors_say_what_they_mean() {
    let said = |error: Errno| {
        let error = dial::no_vsock(error.into(), tokio_vsock::VsockAddr::new(42, 2222));
        (error.kind(), error.to_string())
    };
    for (errno, kind, text) in [
        (Errno::CONNRESET, io::ErrorKind::ConnectionRefused, "2222"),
        (Errno::NODEV, io::ErrorKind::NotFound, "CID 42"),
        (Errno::TIMEDOUT, io::ErrorKind::TimedOut, "CID 42"),
        (Errno::ACCESS, io::ErrorKind::PermissionDenied, "denied"),
    ] {
        let said = said(errno);
        assert!(said.0 == kind && said.1.contains(text), "{said:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_dial_has_a_deadline() {
    let start = tokio::time::Instant::now();
    let error = connect_to(b"OK", false).await.0.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    assert_eq!(start.elapsed(), DIAL_DEADLINE);
}

#[tokio::test(start_paused = true)]
async fn a_full_backlog_is_waited_for() {
    let dir = TempDir::new().unwrap();
    let [rpc, channel] = ["rpc", "channel"].map(|name| dir.path().join(name));
    let mut acceptor = ListenAddr::Unix(channel.clone()).bind().unwrap();
    let Acceptor::Unix(listener) = &acceptor else {
        unreachable!("that is what was bound");
    };
    rustix::net::listen(listener, 0).unwrap();
    let transport = Transport::from(Endpoint::Unix {
        rpc,
        channel,
        net: None,
    });
    let _first = transport.dial(Service::Channel).await.unwrap();
    let start = tokio::time::Instant::now();
    // Nobody accepts: until the deadline.
    let error = transport.dial(Service::Channel).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    assert_eq!(start.elapsed(), DIAL_DEADLINE);
    // Somebody does, and it is tried again soon.
    let accept = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        acceptor.accept().await.unwrap()
    };
    let (second, _accepted) = tokio::join!(transport.dial(Service::Channel), accept);
    second.unwrap();
    let late = start.elapsed() - DIAL_DEADLINE - Duration::from_secs(1);
    assert!(late <= Duration::from_millis(2), "{late:?}");
}

#[tokio::test]
async fn unix_endpoints_have_a_socket_a_service() {
    let dir = TempDir::new().unwrap();
    let [rpc, channel] = ["rpc", "channel"].map(|name| dir.path().join(name));
    let mut acceptor = ListenAddr::Unix(channel.clone()).bind().unwrap();
    let transport = Transport::from(Endpoint::Unix {
        rpc,
        channel,
        net: None,
    });
    let mut dialled = transport.dial(Service::Channel).await.unwrap();
    let (mut accepted, cid) = acceptor.accept().await.unwrap();
    assert_eq!(cid, None);
    dialled.write_all(b"x").await.unwrap();
    assert_eq!(accepted.read_u8().await.unwrap(), b'x');
    let error = transport.dial(Service::Rpc).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
}

#[test]
fn listen_addresses_read_as_they_are_written() {
    for text in ["vsock:2222", "unix:/run/a b.sock", "fd:3"] {
        assert_eq!(text.parse::<ListenAddr>().unwrap().to_string(), text);
    }
    for (text, hint) in [
        ("2222", "`vsock:PORT`"),
        ("tcp:1", "`vsock:PORT`"),
        ("vsock:", "`vsock:2222`"),
        ("vsock:-1", "`vsock:2222`"),
        ("vsock:4294967295", "`vsock:2222`"),
        ("unix:", "`unix:/run/"),
        ("fd:2", "`fd:3`"),
        ("fd:+3", "`fd:3`"),
        ("fd:4000000000", "`fd:3`"),
    ] {
        let error = text.parse::<ListenAddr>().unwrap_err();
        assert!(error.contains(hint), "{text}: {error}");
    }
}

#[tokio::test]
async fn socket_files_are_private_and_replaced_only_when_stale() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("s");
    let bind = || ListenAddr::Unix(path.clone()).bind();
    let first = bind().unwrap();
    let mode = path.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(bind().unwrap_err().kind(), io::ErrorKind::AddrInUse);
    drop(first);
    let mut second = bind().unwrap();
    let dial = UnixStream::connect(&path);
    let (accepted, dialled) = tokio::join!(second.accept(), dial);
    dialled.unwrap();
    accepted.unwrap();
    drop(second);

    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "precious").unwrap();
    assert_eq!(bind().unwrap_err().kind(), io::ErrorKind::AddrInUse);
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

#[tokio::test]
async fn an_inherited_listener_is_checked_and_used() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("s");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let mut acceptor = ListenAddr::Fd(listener.as_raw_fd()).bind().unwrap();
    let (accepted, dialled) = tokio::join!(acceptor.accept(), UnixStream::connect(&path));
    accepted.unwrap();

    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let file = tempfile::tempfile().unwrap();
    for (fd, why) in [
        (dialled.unwrap().as_raw_fd(), "not a listening socket"),
        (file.as_raw_fd(), "not a listening socket"),
        (tcp.as_raw_fd(), "neither a Unix nor a vsock socket"),
        (1_000_000_000, "cannot be used"),
    ] {
        let error = ListenAddr::Fd(fd).bind().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(error.to_string().contains(why), "{error}");
    }
}

#[tokio::test]
async fn cleared_knocks_wake_nobody() {
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("v.sock");
    let path = dir.path().join("v.sock_2224");
    let mut knocks = Transport::from(Endpoint::Connect { socket }).knocks();
    assert!(knocks.listen());
    let target = KnockTarget::Unix(path.clone());
    target.knock().await.unwrap();
    tokio::time::timeout(PATIENCE, knocks.ready())
        .await
        .unwrap();
    for _ in 0..3 {
        target.knock().await.unwrap();
    }
    knocks.clear();
    let mut next = Box::pin(knocks.ready());
    assert!(futures_poll(next.as_mut()).await.is_pending());
    target.knock().await.unwrap();
    tokio::time::timeout(PATIENCE, next).await.unwrap();
    drop(knocks);
    assert!(!path.exists());
    target.knock().await.unwrap_err();
    let mut none = Transport::from(Endpoint::Vsock { cid: 3 }).knocks();
    assert!(!none.can_arrive());
    none.ready().await;
    assert!(futures_poll(pin!(none.next())).await.is_pending());
}

#[tokio::test(start_paused = true)]
async fn who_cannot_listen_for_knocks_tries_again() {
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("v.sock");
    let transport = Transport::from(Endpoint::Connect { socket });
    let path = dir.path().join("v.sock_2224");
    let [mut first, mut second] = [(); 2].map(|()| transport.knocks());
    assert!(first.listen());
    assert!(!second.listen());
    let mut heard = Box::pin(second.next());
    assert!(futures_poll(heard.as_mut()).await.is_pending());
    drop(first);
    let target = KnockTarget::Unix(path.clone());
    let knocking = async {
        while target.knock().await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::join!(heard, knocking);
    // Who does not listen removes nobody's file.
    drop(transport.knocks());
    assert!(path.exists());
}

#[tokio::test(start_paused = true)]
async fn knocks_are_heard_after_their_socket_was_taken_away() {
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("v.sock");
    let transport = Transport::from(Endpoint::Connect { socket });
    let path = dir.path().join("v.sock_2224");
    let target = KnockTarget::Unix(path.clone());
    let mut knocks = transport.knocks();
    assert!(knocks.listen());
    std::fs::remove_file(&path).unwrap();
    let knocking = async {
        while target.knock().await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::join!(knocks.next(), knocking);

    // Another's is left alone, and is none of ours.
    std::fs::remove_file(&path).unwrap();
    let mut other = ListenAddr::Unix(path.clone()).bind().unwrap();
    assert!(!knocks.listen());
    drop(knocks);
    target.knock().await.unwrap();
    other.accept().await.unwrap();
}

/// Two that find a stale file at once, or none: one has the place, and can be reached there.
#[test]
fn of_two_that_bind_one_path_one_does() {
    let dir = TempDir::new().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .unwrap();
    for round in 0..300 {
        let path = dir.path().join(format!("s{round}"));
        if round % 2 == 0 {
            drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        }
        let ready = AtomicUsize::new(0);
        let bind = || {
            let _in_it = runtime.enter();
            ready.fetch_add(1, Ordering::Relaxed);
            while ready.load(Ordering::Relaxed) < 2 {
                std::thread::yield_now();
            }
            ListenAddr::Unix(path.clone()).bind()
        };
        let ends = std::thread::scope(|scope| {
            let threads = [(); 2].map(|()| scope.spawn(bind));
            threads.map(|thread| thread.join().unwrap())
        });
        let bound = ends.iter().filter(|end| end.is_ok()).count();
        assert_eq!(bound, 1, "round {round}: {ends:?}");
        std::os::unix::net::UnixStream::connect(&path).unwrap();
    }
}

/// One poll of `future`, without a waker that matters.
async fn futures_poll<F: Future>(mut future: Pin<&mut F>) -> Poll<F::Output> {
    std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
}

#[tokio::test]
async fn a_vsock_listener_binds_and_can_be_inherited() {
    // VMADDR_PORT_ANY: a free port, so that tests do not meet.
    let bound = ListenAddr::Vsock(u32::MAX).bind();
    let Acceptor::Vsock(first) = bound.expect("this test needs AF_VSOCK: modprobe vsock") else {
        panic!("not a vsock listener");
    };
    let address = first.local_addr().unwrap();
    let again = ListenAddr::Vsock(address.port()).bind().unwrap_err();
    assert_eq!(again.kind(), io::ErrorKind::AddrInUse);
    match ListenAddr::Fd(first.as_raw_fd()).bind().unwrap() {
        Acceptor::Vsock(second) => assert_eq!(second.local_addr().unwrap(), address),
        Acceptor::Unix(_) => panic!("a vsock listener was taken for a Unix one"),
    }
}
