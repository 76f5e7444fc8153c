//! Finds the port of a pending `listen()`: duplicates the program's socket while the kernel holds
//! the call.
//!
//! This saves the agent a dump for each `listen()` on a port outside its range, and on a Unix
//! socket. The result is only a hint: another thread of the program may replace the socket before
//! the call goes on. The host's poll finds such a port.
//!
//! Invariant: nothing here waits for a program of the guest. Our duplicate may be the last
//! reference to its file, if the program closed its own meanwhile or was killed. Closing it can
//! then take long: a connected socket with SO_LINGER waits for its peer, and another file for its
//! file system. So a thread of its own closes it. While [`CLOSING`] files wait for that thread, no
//! further socket is inspected.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, SendError, Sender};
use std::thread;

use rustix::io::Errno;
use rustix::net::{AddressFamily, getsockname};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::hint::seccomp::Call;

/// `PIDFD_THREAD` (pidfd_open(2), Linux 6.9): any thread, not only the first of a process.
const THREAD: PidfdFlags = PidfdFlags::from_bits_retain(libc::O_EXCL as u32);

/// Duplicates that wait to be closed, of the programs under one filter. Enough for a burst of
/// `listen()`; those of all filters together are half the usual limit of descriptors.
const CLOSING: usize = 4;
/// Stack of the closing thread, in bytes: it does nothing else.
const STACK: usize = 32 * 1024;

/// Inspects the sockets of programs.
#[derive(Debug, Default)]
pub struct Looker {
    /// The last process that called `listen()`: mostly the next is the same.
    last: Option<(u32, OwnedFd)>,
    /// The duplicate last inspected.
    file: Option<OwnedFd>,
    closer: Closer,
}

impl Looker {
    /// Closes the duplicate. Called when the program no longer waits.
    pub fn let_go(&mut self) {
        if let Some(file) = self.file.take() {
            self.closer.close(file);
        }
    }

    /// TCP port of `call`; `Some(0)` if not known (yet), None if the descriptor is not a TCP
    /// socket.
    pub fn port(&mut self, call: &Call) -> Option<u16> {
        self.look(call).unwrap_or(Some(0))
    }

    fn look(&mut self, call: &Call) -> io::Result<Option<u16>> {
        self.let_go();
        if !self.closer.has_room() {
            return Err(Errno::BUSY.into());
        }
        let file = match self.take(call) {
            // The id may belong to another process by now.
            Err(Errno::SRCH) if self.last.take().is_some() => self.take(call)?,
            other => other?,
        };
        let file = self.file.insert(file);
        let address = getsockname(&*file)?;
        Ok(match address.address_family() {
            AddressFamily::INET | AddressFamily::INET6 => {
                Some(SocketAddr::try_from(address)?.port())
            }
            _ => None,
        })
    }

    /// Duplicates the descriptor.
    fn take(&mut self, call: &Call) -> rustix::io::Result<OwnedFd> {
        let (_, process) = match self.last.take().filter(|(pid, _)| *pid == call.pid) {
            Some(last) => self.last.insert(last),
            None => self.last.insert((call.pid, open(call.pid)?)),
        };
        pidfd_getfd(process, call.fd, PidfdGetfdFlags::empty())
    }
}

/// Closes files on a thread of its own where that may take long.
#[derive(Debug, Default)]
struct Closer {
    queue: Option<Sender<OwnedFd>>,
    waiting: Arc<AtomicUsize>,
    /// Files that wait because no thread could be started. They count towards [`CLOSING`].
    kept: Vec<OwnedFd>,
}

impl Closer {
    fn has_room(&self) -> bool {
        self.waiting.load(Ordering::Acquire) < CLOSING
    }

    fn close(&mut self, file: OwnedFd) {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        let queue = self.queue.get_or_insert_with(|| start(&self.waiting));
        if let Err(SendError(file)) = queue.send(file) {
            self.kept.push(file);
        }
    }
}

/// Starts the thread, which ends with the queue. If it cannot be started, nothing takes from the
/// queue.
fn start(waiting: &Arc<AtomicUsize>) -> Sender<OwnedFd> {
    let (queue, files) = mpsc::channel();
    let waiting = waiting.clone();
    let close = move || {
        for file in files {
            drop::<OwnedFd>(file);
            waiting.fetch_sub(1, Ordering::AcqRel);
        }
    };
    // On failure the receiver is dropped, which the sender notices.
    let _ = thread::Builder::new()
        .name("rum-closer".to_owned())
        .stack_size(STACK)
        .spawn(close);
    queue
}

fn open(pid: u32) -> rustix::io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid as i32).ok_or(Errno::SRCH)?;
    match pidfd_open(pid, THREAD) {
        // A kernel before 6.9 opens processes only.
        Err(Errno::INVAL) => pidfd_open(pid, PidfdFlags::empty()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::{ErrorKind, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    use rustix::net::sockopt::set_socket_linger;

    use super::*;

    /// How long a socket lingers: far longer than a loaded machine needs to close one.
    const LINGER: Duration = Duration::from_secs(120);

    /// A socket whose last close takes [`LINGER`], or until the other end is gone.
    fn lingering() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let far = listener.accept().unwrap().0;
        near.set_nonblocking(true).unwrap();
        while near.write(&[0; 65_536]).map_err(|e| e.kind()) != Err(ErrorKind::WouldBlock) {}
        set_socket_linger(&near, Some(LINGER)).unwrap();
        (near, far)
    }

    #[test]
    fn nobody_waits_for_a_socket_that_lingers() {
        let mut looker = Looker::default();
        let mut others = vec![];
        let start = Instant::now();
        for _ in 0..CLOSING {
            assert!(looker.closer.has_room());
            let (near, far) = lingering();
            looker.file = Some(near.into());
            looker.let_go();
            others.push(far);
        }
        assert!(start.elapsed() < LINGER / 2);
        assert!(!looker.closer.has_room(), "nothing else is looked at");
        drop(others);
        while !looker.closer.has_room() {
            assert!(start.elapsed() < LINGER, "they have ended");
            thread::yield_now();
        }
    }
}
