//! Network namespaces for tests: each test gets one of its own, with nothing in it but `lo`.
//!
//! A namespace belongs to a thread, so a test runs its body in a thread that has left the
//! machine's namespace; threads and processes started from there inherit it, and it is gone
//! with the last of them. Needs root (CAP_SYS_ADMIN); without it a test fails and says so,
//! since a test that is skipped is no test.
//!
//! No process is started here: a new process holds copies of all our descriptors until its
//! exec, and a listener that another test closes meanwhile would stay open that long.

use std::fs::File;
use std::io;
use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// The index of `lo`, the first interface of every network namespace.
pub const LO: u32 = 1;

/// Runs `f` in a new network namespace whose loopback interface is up. Panics of `f` pass.
///
/// # Panics
/// When there is no namespace to be had.
pub fn in_netns<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    let body = || {
        // SAFETY: of the things that threads share, a network namespace is none that memory
        // safety rests on; file descriptors stay shared.
        let unshared = unsafe { unshare_unsafe(UnshareFlags::NEWNET) };
        if let Err(error) = unshared {
            panic!("this test needs a network namespace of its own ({error}): run it as root");
        }
        set_lo_up().expect("lo can be set up in a new network namespace");
        f()
    };
    let result = thread::scope(|scope| {
        let name = thread::current().name().unwrap_or("netns").to_owned();
        thread::Builder::new()
            .name(name)
            .spawn_scoped(scope, body)
            .expect("a thread can be started")
            .join()
    });
    match result {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// The network namespace of process `pid`.
///
/// # Panics
/// When there is no such process.
pub fn of(pid: u32) -> File {
    File::open(format!("/proc/{pid}/ns/net")).expect("the process runs")
}

/// Runs `f` in `namespace`. Panics of `f` pass.
///
/// # Panics
/// When the caller is not root.
pub fn inside<T: Send>(namespace: &File, f: impl FnOnce() -> T + Send) -> T {
    let body = || {
        let kind = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(namespace.as_fd(), kind).expect("this test runs as root");
        f()
    };
    // A thread that has entered a namespace does not come back.
    match thread::scope(|scope| scope.spawn(body).join()) {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Sets `lo` of the calling thread's network namespace up (man 7 netdevice).
fn set_lo_up() -> io::Result<()> {
    // SAFETY: a struct of numbers, of which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    let socket = datagram_socket(AddressFamily::INET)?;
    // SAFETY: SIOCSIFFLAGS reads a struct ifreq, which `request` is.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request) };
    check(result)
}

/// Gives `lo` of the calling thread's network namespace another IPv6 address (man 7 ipv6) and
/// waits until it can be bound.
///
/// # Errors
/// What the system calls say; `AddrNotAvailable` when the address never becomes usable.
pub fn add_to_lo(address: Ipv6Addr) -> io::Result<()> {
    /// struct in6_ifreq of linux/ipv6.h.
    #[repr(C)]
    struct Request {
        address: [u8; 16],
        prefix_length: u32,
        interface: libc::c_int,
    }
    let request = Request {
        address: address.octets(),
        prefix_length: 64,
        interface: LO as libc::c_int,
    };
    let socket = datagram_socket(AddressFamily::INET6)?;
    // SAFETY: SIOCSIFADDR on an IPv6 socket reads a struct in6_ifreq, which `request` is.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFADDR as _, &request) };
    check(result)?;
    // The kernel makes an address usable in the background (duplicate address detection, even
    // if there is nothing to detect on `lo`).
    let start = Instant::now();
    loop {
        match UdpSocket::bind(SocketAddrV6::new(address, 0, 0, LO)) {
            Err(error)
                if error.kind() == io::ErrorKind::AddrNotAvailable
                    && start.elapsed() < Duration::from_secs(60) =>
            {
                thread::yield_now();
            }
            other => return other.map(drop),
        }
    }
}

fn datagram_socket(family: AddressFamily) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    Ok(socket_with(family, SocketType::DGRAM, flags, None)?)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
