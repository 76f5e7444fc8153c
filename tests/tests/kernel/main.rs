//! What rum assumes of the kernel, as executable tests: a kernel that behaves differently
//! fails here and not in a user's hands. Each test has a network namespace of its own.

#![allow(clippy::unwrap_used)]

mod dumps;
mod hints;
mod notify;
mod old;

use std::future::Future;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use rum_agent::kernel::Socket;
use rum_tests::netns;
use rustix::net::{AddressFamily, SocketType, bind, ipproto, listen, socket_with, sockopt};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What never happens on a working kernel may take this long to be given up.
const DEADLINE: Duration = Duration::from_secs(60);

/// Held for writing by a test that starts processes. A new process holds copies of all our
/// descriptors until its exec, so that what another test closes meanwhile stays open that long.
static STARTS_PROCESSES: RwLock<()> = RwLock::new(());

/// Runs a test body in a namespace of its own, while no process is started.
fn in_netns(f: impl FnOnce() + Send) {
    let _lock = STARTS_PROCESSES
        .read()
        .unwrap_or_else(PoisonError::into_inner);
    netns::in_netns(f);
}

/// Runs a test body that starts processes, alone, in a namespace of its own.
fn alone_in_netns(f: impl FnOnce() + Send) {
    let _lock = STARTS_PROCESSES
        .write()
        .unwrap_or_else(PoisonError::into_inner);
    netns::in_netns(f);
}

/// Runs an async test body in a namespace of its own, on one thread.
fn in_async_netns<F: Future<Output = ()>>(f: impl FnOnce() -> F + Send) {
    in_netns(|| {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(async { within(f()).await });
    });
}

/// The future's value; a panic when the deadline passes.
async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future)
        .await
        .expect("what the test waits for did not happen")
}

/// Waits for a condition that nothing tells of.
fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "never: {what}");
        std::thread::yield_now();
    }
}

/// Options of a listener.
#[derive(Default, Clone, Copy)]
struct Options {
    v6_only: bool,
    mptcp: bool,
    twin: bool,
}

/// A TCP socket that is bound and does not listen.
fn bound(addr: &str, options: Options) -> OwnedFd {
    let addr: SocketAddr = addr.parse().unwrap();
    let family = if addr.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let protocol = options.mptcp.then_some(ipproto::MPTCP);
    let flags = rustix::net::SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::STREAM, flags, protocol).unwrap();
    sockopt::set_socket_reuseaddr(&socket, true).unwrap();
    if addr.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, options.v6_only).unwrap();
    }
    if options.twin {
        sockopt::set_socket_reuseport(&socket, true).unwrap();
    }
    bind(&socket, &addr).unwrap();
    socket
}

/// A listener with options.
fn listener_with(addr: &str, options: Options) -> OwnedFd {
    let socket = bound(addr, options);
    listen(&socket, 16).unwrap();
    socket
}

/// A plain listener (an IPv6 one on `::` is dual-stack).
fn listener(addr: &str) -> OwnedFd {
    listener_with(addr, Options::default())
}

/// One of several SO_REUSEPORT twins.
fn twin(addr: &str) -> OwnedFd {
    let twin = true;
    listener_with(
        addr,
        Options {
            twin,
            ..Options::default()
        },
    )
}

/// The ports of a dump, sorted, one entry for each socket.
fn ports(sockets: &[Socket]) -> Vec<u16> {
    let mut ports: Vec<_> = sockets.iter().map(|socket| socket.port).collect();
    ports.sort_unstable();
    ports
}

/// Allows as many descriptors as the machine does: some tests hold thousands.
fn allow_many_descriptors() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let current = maximum;
    setrlimit(Resource::Nofile, Rlimit { current, maximum }).unwrap();
}
