//! What a program wants to listen on that the kernel asks about: its descriptor, looked at from
//! outside while it waits.
//!
//! It saves the agent a look at everything for each `listen()` on a port that nobody wants to know
//! of, and on a Unix socket. It is no fact: another thread of the program may put another socket in
//! the place of this one before the call goes on. Such a port is found by the host's poll.
//!
//! Invariant: nothing here waits for what a program of the guest does. Our duplicate may be the last of its
//! file, when the program has closed its own meanwhile or was killed. To close that can take long: a
//! connected socket with SO_LINGER waits for its peer, and what is no socket for whoever serves its file
//! system. So a thread that may wait closes; when [`CLOSING`] wait for it, nothing else is looked at.

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

/// Duplicates that wait to be closed, of the programs under one filter: a burst of `listen()` finds room,
/// and those of all filters fit into the usual limit of descriptors twice.
const CLOSING: usize = 4;
/// Stack of the thread that closes, in bytes: it does nothing else.
const STACK: usize = 32 * 1024;

/// Looks at descriptors.
#[derive(Debug, Default)]
pub struct Looker {
    /// Who asked last: mostly it is the same.
    last: Option<(u32, OwnedFd)>,
    /// What was looked at.
    file: Option<OwnedFd>,
    closer: Closer,
}

impl Looker {
    /// Lets go of what was looked at. To be called when the program no longer waits.
    pub fn let_go(&mut self) {
        if let Some(file) = self.file.take() {
            self.closer.close(file);
        }
    }

    /// The TCP port that `call` is about; 0 for one that is not known (yet), none where it is no
    /// TCP socket.
    pub fn port(&mut self, call: &Call) -> Option<u16> {
        self.look(call).unwrap_or(Some(0))
    }

    fn look(&mut self, call: &Call) -> io::Result<Option<u16>> {
        self.let_go();
        if !self.closer.has_room() {
            return Err(Errno::BUSY.into());
        }
        let file = match self.take(call) {
            // The number may be somebody else's by now.
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

    /// A duplicate of the descriptor.
    fn take(&mut self, call: &Call) -> rustix::io::Result<OwnedFd> {
        let (_, process) = match self.last.take().filter(|(pid, _)| *pid == call.pid) {
            Some(last) => self.last.insert(last),
            None => self.last.insert((call.pid, open(call.pid)?)),
        };
        pidfd_getfd(process, call.fd, PidfdGetfdFlags::empty())
    }
}

/// Closes files, and waits for them where that takes long.
#[derive(Debug, Default)]
struct Closer {
    queue: Option<Sender<OwnedFd>>,
    waiting: Arc<AtomicUsize>,
    /// What could not be handed over for want of a thread. It takes the room of what waits.
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

/// The thread ends with the queue. If there is none, nobody takes anything from the queue.
fn start(waiting: &Arc<AtomicUsize>) -> Sender<OwnedFd> {
    let (queue, files) = mpsc::channel();
    let waiting = waiting.clone();
    let close = move || {
        for file in files {
            drop::<OwnedFd>(file);
            waiting.fetch_sub(1, Ordering::AcqRel);
        }
    };
    // Its failure drops the receiver, which the sender sees.
    let _ = thread::Builder::new()
        .name("rum-closer".to_owned())
        .stack_size(STACK)
        .spawn(close);
    queue
}

fn open(pid: u32) -> rustix::io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid as i32).ok_or(Errno::SRCH)?;
    match pidfd_open(pid, THREAD) {
        // An older kernel knows processes only.
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

    /// How long a socket lingers, far above anything that a loaded machine needs to let go of it.
    const LINGER: Duration = Duration::from_secs(120);

    /// A socket whose last close takes as long as [`LINGER`], or until the other end is gone.
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
