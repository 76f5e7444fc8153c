//! What a program wants to listen on that the kernel asks about: its descriptor, looked at from
//! outside while it waits.
//!
//! It saves the agent a look at everything for each `listen()` on a port that nobody wants to know
//! of, and on a Unix socket. It is no fact: another thread of the program may put another socket in
//! the place of this one before the call goes on. Such a port is found by the host's poll.
//!
//! Invariant: nothing here waits for what a program of the guest does. What turns out to be no socket
//! is closed by a thread that may wait for whoever serves its file system; until that has ended,
//! nothing else is looked at.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::thread::{self, JoinHandle};

use rustix::io::Errno;
use rustix::net::{AddressFamily, getsockname};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::seccomp::Call;

/// `PIDFD_THREAD` (pidfd_open(2), Linux 6.9): any thread, not only the first of a process.
const THREAD: PidfdFlags = PidfdFlags::from_bits_retain(libc::O_EXCL as u32);

/// Looks at descriptors.
#[derive(Debug, Default)]
pub struct Looker {
    /// Who asked last: mostly it is the same.
    last: Option<(u32, OwnedFd)>,
    closing: Option<JoinHandle<()>>,
}

impl Looker {
    /// The TCP port that `call` is about; 0 for one that is not known (yet), none where it is no
    /// TCP socket.
    pub fn port(&mut self, call: &Call) -> Option<u16> {
        self.look(call).unwrap_or(Some(0))
    }

    fn look(&mut self, call: &Call) -> io::Result<Option<u16>> {
        if self.closing.as_ref().is_some_and(|t| !t.is_finished()) {
            return Err(Errno::BUSY.into());
        }
        let file = match self.take(call) {
            // The number may be somebody else's by now.
            Err(Errno::SRCH) if self.last.take().is_some() => self.take(call)?,
            other => other?,
        };
        let address = match getsockname(&file) {
            Err(Errno::NOTSOCK) => {
                self.closing = Some(thread::Builder::new().spawn(|| drop(file))?);
                return Err(Errno::NOTSOCK.into());
            }
            other => other?,
        };
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

fn open(pid: u32) -> rustix::io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid as i32).ok_or(Errno::SRCH)?;
    match pidfd_open(pid, THREAD) {
        // An older kernel knows processes only.
        Err(Errno::INVAL) => pidfd_open(pid, PidfdFlags::empty()),
        other => other,
    }
}
