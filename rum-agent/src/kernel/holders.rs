//! Details for step 2: whether the processes shown as holders of sockets still hold them.
//!
//! A socket may outlive the process that opened it, or change hands: by fork, by SCM_RIGHTS, by
//! exec. No event reports that. A pidfd reports the end of a process at no cost until then; for the
//! rest, each call of [`Holders::check`] inspects a few sockets, in turn.
//!
//! Invariants: a socket reported as stale is forgotten here until it is noted again; at most
//! [`MAX_WATCHED`] descriptors are held, and one call inspects at most [`CHECKS`] sockets.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::mem::MaybeUninit;
use std::ops::Bound;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::identity;
use super::process::{Held, still_holds};

/// Most processes whose end is watched, each with a descriptor; [`Holders::check`] finds the
/// others. More than the listening processes of nearly every guest.
pub const MAX_WATCHED: usize = 256;
/// Sockets inspected in one call, which comes with the host's poll each second: some 5 microseconds
/// each.
pub const CHECKS: usize = 16;
/// Process ends read in one system call.
const ENDS: usize = 32;

/// A socket: its port and inode.
pub type Key = (u16, u64);

/// A socket whose holder must be looked up again, and the process to check first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stale {
    /// The socket.
    pub key: Key,
    /// The process that was shown, which may still hold the socket.
    pub pid: u32,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Holders {
    shown: BTreeMap<Key, (u32, u64)>,
    processes: HashMap<u32, Shown>,
    /// An epoll instance with the pidfds in it.
    ends: Option<AsyncFd<OwnedFd>>,
    /// The socket inspected last.
    last: Key,
}

/// A process that is shown as a holder.
#[derive(Debug)]
struct Shown {
    name: String,
    program: String,
    /// Number of sockets for which it is shown.
    sockets: usize,
    /// None where its end cannot be watched. Closing the pidfd removes it from the epoll instance.
    _pidfd: Option<OwnedFd>,
}

impl Holders {
    /// Records that `held` is shown for `key`. False if the process has ended since it was found.
    pub fn note(&mut self, key: Key, held: &Held) -> bool {
        self.forget(key);
        let process = &held.process;
        let pid = process.pid;
        if !self.processes.contains_key(&pid) {
            let pidfd = match self.watch(pid) {
                Err(Errno::SRCH) => return false,
                other => other.ok().flatten(),
            };
            let shown = Shown {
                name: process.name.clone(),
                program: process.program.clone(),
                sockets: 0,
                _pidfd: pidfd,
            };
            self.processes.insert(pid, shown);
        }
        if let Some(shown) = self.processes.get_mut(&pid) {
            shown.sockets += 1;
            self.shown.insert(key, (pid, held.fd));
        }
        true
    }

    /// Forgets what is shown for the sockets of `port`, except those that `stay`.
    pub fn retain(&mut self, port: u16, stay: impl Fn(u64) -> bool) {
        let of_port = self.shown.range((port, 0)..=(port, u64::MAX));
        let gone: Vec<Key> = of_port
            .map(|(key, _)| *key)
            .filter(|(_, i)| !stay(*i))
            .collect();
        gone.into_iter().for_each(|key| self.forget(key));
    }

    fn forget(&mut self, key: Key) {
        let Some((pid, _)) = self.shown.remove(&key) else {
            return;
        };
        if let Some(shown) = self.processes.get_mut(&pid) {
            shown.sockets -= 1;
            if shown.sockets == 0 {
                self.processes.remove(&pid);
            }
        }
    }

    /// Removes `pid` and returns the sockets for which it was shown.
    fn drop_process(&mut self, pid: u32) -> Vec<Stale> {
        let of_it = self.shown.iter().filter(|(_, (other, _))| *other == pid);
        let stale: Vec<Stale> = of_it.map(|(key, _)| Stale { key: *key, pid }).collect();
        stale.iter().for_each(|stale| self.forget(stale.key));
        stale
    }

    /// Watches for the end of `pid` until the returned pidfd is closed. `None` at [`MAX_WATCHED`].
    fn watch(&mut self, pid: u32) -> Result<Option<OwnedFd>, Errno> {
        let watched = self
            .processes
            .values()
            .filter(|shown| shown._pidfd.is_some());
        if watched.count() >= MAX_WATCHED {
            return Ok(None);
        }
        let raw = i32::try_from(pid)
            .ok()
            .and_then(Pid::from_raw)
            .ok_or(Errno::SRCH)?;
        let pidfd = pidfd_open(raw, PidfdFlags::empty())?;
        if self.ends.is_none() {
            let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
            // SAFETY: an `OwnedFd` is the same open descriptor until it is dropped; the AsyncFd
            // that owns it deregisters it first.
            let ends = unsafe { AsyncFd::register_with_interest(epoll, Interest::READABLE) };
            self.ends = Some(ends.map_err(|_| Errno::NOMEM)?);
        }
        if let Some(ends) = &self.ends {
            let data = epoll::EventData::new_u64(u64::from(pid));
            epoll::add(ends, &pidfd, data, epoll::EventFlags::IN)?;
        }
        Ok(Some(pidfd))
    }

    /// The sockets of processes that ended. Cancel-safe; never completes while no process is
    /// watched.
    pub async fn ended(&mut self) -> Vec<Stale> {
        let pids = match &self.ends {
            Some(ends) => ends.async_io(Interest::READABLE, ended).await,
            None => return std::future::pending().await,
        };
        match pids {
            Ok(pids) => pids
                .into_iter()
                .flat_map(|pid| self.drop_process(pid))
                .collect(),
            Err(error) => {
                // Not watched again; the checks remain.
                tracing::debug!("the end of processes cannot be watched: {error}");
                self.ends = None;
                Vec::new()
            }
        }
    }

    /// Inspects the next few sockets. Returns those whose shown process no longer holds them, or
    /// has become another program.
    pub fn check(&mut self) -> Vec<Stale> {
        let after = (Bound::Excluded(self.last), Bound::Unbounded);
        let up_to = (Bound::Unbounded, Bound::Included(self.last));
        let in_turn = self.shown.range(after).chain(self.shown.range(up_to));
        let next: Vec<_> = in_turn.take(CHECKS).map(|(key, at)| (*key, *at)).collect();
        let mut stale = Vec::new();
        let mut same = None;
        for (key, (pid, fd)) in next {
            self.last = key;
            if !still_holds(pid, fd, key.1) {
                self.forget(key);
                stale.push(Stale { key, pid });
            } else if same != Some(pid) {
                same = Some(pid);
                if self
                    .processes
                    .get(&pid)
                    .is_some_and(|shown| !shown.is_the_same(pid))
                {
                    stale.extend(self.drop_process(pid));
                }
            }
        }
        stale
    }
}

impl Shown {
    /// Whether the process `pid` still runs the program that is shown.
    fn is_the_same(&self, pid: u32) -> bool {
        let proc = Path::new("/proc");
        let program = identity::program(proc, pid);
        // Compared only if it was readable.
        self.name == identity::short_name(proc, pid)
            && (program.is_empty() || self.program == program)
    }
}

/// The processes in `ends` that have ended.
fn ended(ends: &OwnedFd) -> io::Result<Vec<u32>> {
    let mut events = [MaybeUninit::uninit(); ENDS];
    let (ended, _) = epoll::wait(ends, &mut events, Some(&Timespec::default()))?;
    let pids = ended
        .iter()
        .filter_map(|event| u32::try_from(event.data.u64()).ok());
    let pids: Vec<u32> = pids.collect();
    if pids.is_empty() {
        Err(io::ErrorKind::WouldBlock.into())
    } else {
        Ok(pids)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::net::TcpListener;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::MetadataExt;
    use std::process::{Child, Command, Stdio};

    use rum_shared::listener::Process;

    use super::*;

    fn inode(socket: &TcpListener) -> u64 {
        let file = format!("/proc/self/fd/{}", socket.as_raw_fd());
        std::fs::metadata(file).unwrap().ino()
    }

    fn held(pid: u32, fd: u64) -> Held {
        let process = Process {
            pid,
            ..identity::read(Path::new("/proc"), pid)
        };
        Held { process, fd }
    }

    fn sleeper() -> Child {
        let mut command = Command::new("sleep");
        command.arg("1000").stdin(Stdio::null()).spawn().unwrap()
    }

    #[tokio::test]
    async fn the_end_of_a_process_makes_its_sockets_stale_once() {
        let mut child = sleeper();
        let mut holders = Holders::default();
        let pid = child.id();
        for port in [80, 81, 82] {
            assert!(holders.note((port, 1), &held(pid, 0)));
        }
        holders.retain(81, |_| false);
        holders.retain(82, |inode| inode == 1);
        child.kill().unwrap();
        let ended = holders.ended().await;
        let keys: Vec<Key> = ended.iter().map(|stale| stale.key).collect();
        assert_eq!(keys, [(80, 1), (82, 1)]);
        assert!(holders.processes.is_empty() && holders.shown.is_empty());
        child.wait().unwrap();
        assert!(!holders.note((80, 1), &held(pid, 0)), "it is gone");
    }

    #[tokio::test]
    async fn a_socket_that_changed_hands_is_found_in_turn() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let own = std::process::id();
        let fd = socket.as_raw_fd() as u64;
        let mut holders = Holders::default();
        for port in 1..=2 * CHECKS as u16 {
            assert!(holders.note((port, inode(&socket)), &held(own, fd)));
        }
        assert!(holders.check().is_empty() && holders.check().is_empty());
        assert_eq!(holders.processes.len(), 1);
        // As if the socket had been closed and its descriptor number reused.
        holders.note((7, 1), &held(own, fd));
        let stale: Vec<Stale> = (0..3).flat_map(|_| holders.check()).collect();
        assert_eq!(
            stale,
            [Stale {
                key: (7, 1),
                pid: own
            }]
        );
    }

    #[tokio::test]
    async fn another_program_in_the_same_process_is_noticed() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let fd = socket.as_raw_fd() as u64;
        let own = std::process::id();
        let mut before = held(own, fd);
        before.process.program = "before exec".to_owned();
        let mut holders = Holders::default();
        for port in [80, 81] {
            holders.note((port, inode(&socket)), &before);
        }
        assert_eq!(holders.check().len(), 2);
        assert!(holders.check().is_empty(), "told once");
    }

    #[tokio::test]
    async fn no_more_than_so_many_are_watched() {
        let mut children: Vec<Child> = (0..3).map(|_| sleeper()).collect();
        let mut holders = Holders::default();
        for fake in 0..MAX_WATCHED as u32 {
            let shown = Shown {
                name: String::new(),
                program: String::new(),
                sockets: 1,
                _pidfd: Some(
                    pidfd_open(Pid::from_child(&children[0]), PidfdFlags::empty()).unwrap(),
                ),
            };
            holders.processes.insert(u32::MAX - fake, shown);
        }
        assert!(holders.note((80, 1), &held(children[0].id(), 0)));
        assert!(holders.processes[&children[0].id()]._pidfd.is_none());
        for child in &mut children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let stale = holders.check();
        assert_eq!(stale.len(), 1, "found all the same");
    }
}
