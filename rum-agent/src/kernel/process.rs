//! Details for step 2: which process holds a listening socket.
//!
//! `/proc/PID/fd` has a link `socket:[INODE]` for each descriptor that is a socket. There is no
//! index from inode to process, so the descriptors are walked until every inode is found: first
//! those of the process that the hint named, nearly always the right one, then those of all
//! processes by id.
//!
//! Invariants: the caller bounds a walk by a number of descriptors, and the walk returns where to
//! continue; a process that cannot be read or ends meanwhile is skipped. The answer is for display
//! and for rules; nothing else depends on it.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rum_shared::listener::Process;
use rustix::fs::{Mode, OFlags, RawDir, SeekFrom, fstat, openat, readlinkat};
use rustix::io::Errno;

use super::identity;

/// Most descriptors inspected in one call, at one or two microseconds each: bounds the time spent
/// on what is only a name.
pub const MAX_DESCRIPTORS: usize = 20_000;
/// Descriptors of a process that are inspected before all others.
const NEWEST: u64 = 16;
/// Most processes inspected in one call, for the same reason.
pub const MAX_PROCESSES: usize = 10_000;

/// Position of a walk through all processes: lower pids, and lower descriptors of the same pid,
/// were inspected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pid: u32,
    fd: u64,
}

impl Place {
    /// Before the first process.
    pub const START: Self = Self { pid: 0, fd: 0 };
}

/// The process that holds a socket, and its descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The process.
    pub process: Process,
    /// Its descriptor.
    pub fd: u64,
}

/// Result of a walk.
#[derive(Debug, Default)]
pub struct Found {
    /// By inode.
    pub held: HashMap<u64, Held>,
    /// Where to continue; None when the last process was inspected, or every inode was found.
    pub rest: Option<Place>,
}

/// A walk that has not begun.
#[derive(Debug)]
pub struct Walk<'a> {
    /// The inodes whose holders are wanted.
    pub inodes: &'a [u64],
    /// A process or thread that is inspected first, within half of `descriptors`.
    pub first: Option<u32>,
    /// Where to begin after it.
    pub from: Place,
    /// Most descriptors to inspect.
    pub descriptors: usize,
    /// Set when the result is no longer wanted.
    pub stop: &'a AtomicBool,
}

impl Walk<'_> {
    /// Runs the walk. Of several holders of one socket it returns the first found.
    ///
    /// Takes some milliseconds on a busy machine: not for the path between a hint and its report.
    pub fn find(&self) -> Found {
        self.find_in(Path::new("/proc"))
    }

    fn find_in(&self, proc: &Path) -> Found {
        let mut search = Search {
            proc,
            stop: self.stop,
            wanted: self.inodes.iter().copied().filter(|i| *i != 0).collect(),
            held: HashMap::new(),
            descriptors: self.descriptors,
            link: Vec::new(),
        };
        // A hint may name a thread; its directory exists, but is not that of a process.
        let mut first = self.first.and_then(|id| identity::process_of(proc, id));
        if let Some(pid) = first {
            // Half is for the others: a process with more descriptors that is named again and again
            // would leave nothing for the walk through all.
            let kept = self.descriptors / 2;
            search.descriptors -= kept;
            let unfinished = search.process(pid, 0).is_some();
            search.descriptors += kept;
            first = first.filter(|_| !unfinished);
        }
        let rest = search.others(first, self.from);
        Found {
            rest: rest.filter(|_| !search.wanted.is_empty()),
            held: search.held,
        }
    }
}

/// Whether descriptor `fd` of process `pid` is the socket `inode`. One system call.
pub fn still_holds(pid: u32, fd: u64, inode: u64) -> bool {
    let link = rustix::fs::readlink(format!("/proc/{pid}/fd/{fd}"), Vec::new());
    link.is_ok_and(|link| socket_inode(link.as_bytes()) == Some(inode))
}

struct Search<'a> {
    proc: &'a Path,
    stop: &'a AtomicBool,
    wanted: HashSet<u64>,
    held: HashMap<u64, Held>,
    /// Descriptors that may still be inspected.
    descriptors: usize,
    /// Reused for each link.
    link: Vec<u8>,
}

impl Search<'_> {
    fn is_over(&self) -> bool {
        self.wanted.is_empty() || self.descriptors == 0 || self.stop.load(Ordering::Relaxed)
    }

    /// Inspects all processes from `from` on, except `first`. Returns where it had to stop.
    fn others(&mut self, first: Option<u32>, from: Place) -> Option<Place> {
        if self.is_over() {
            return Some(from);
        }
        // By pid (proc_pid_readdir, fs/proc/base.c).
        let all = fs::read_dir(self.proc).into_iter().flatten().flatten();
        let pids = all
            .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
            .filter(|pid| *pid >= from.pid && Some(*pid) != first);
        for (index, pid) in pids.enumerate() {
            if index == MAX_PROCESSES {
                return Some(Place { pid, fd: 0 });
            }
            let fd = if pid == from.pid { from.fd } else { 0 };
            if let Some(fd) = self.process(pid, fd) {
                return Some(Place { pid, fd });
            }
        }
        None
    }

    /// Inspects the descriptors of one process from `from` on; returns where it had to stop. Finds
    /// nothing if the process ended or cannot be read.
    fn process(&mut self, pid: u32, from: u64) -> Option<u64> {
        let mut held = Vec::new();
        let rest = self.descriptors(pid, from, &mut held).ok().flatten();
        if !held.is_empty() {
            let process = identity::read(self.proc, pid);
            for (inode, fd) in held {
                let process = process.clone();
                self.held.insert(inode, Held { process, fd });
            }
        }
        rest
    }

    /// Moves the wanted inodes among the descriptors of a process to `held`.
    fn descriptors(
        &mut self,
        pid: u32,
        from: u64,
        held: &mut Vec<(u64, u64)>,
    ) -> io::Result<Option<u64>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let path = self.proc.join(format!("{pid}/fd"));
        let dir = openat(rustix::fs::CWD, path, flags, Mode::empty())?;
        let newest = newest(&dir)?;
        if from == 0 && newest > 0 {
            // Few enough to inspect again below.
            self.some(&dir, newest, 2 * NEWEST, held)?;
        }
        self.some(&dir, from, u64::MAX, held)
    }

    /// As [`Self::descriptors`], at most `most` of them; returns where it had to stop.
    fn some(
        &mut self,
        dir: &OwnedFd,
        from: u64,
        most: u64,
        held: &mut Vec<(u64, u64)>,
    ) -> io::Result<Option<u64>> {
        if self.is_over() {
            return Ok(Some(from));
        }
        // The position in this directory is the number, after two for `.` and `..`
        // (proc_readfd_common, fs/proc/fd.c).
        rustix::fs::seek(dir, SeekFrom::Start(from + 2))?;
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut entries = RawDir::new(dir, &mut buffer);
        let mut looked = 0;
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let number = entry.file_name().to_str().ok().and_then(|n| n.parse().ok());
            let Some(number) = number.filter(|number| *number >= from) else {
                continue;
            };
            if looked == most {
                break;
            }
            if self.is_over() {
                return Ok(Some(number));
            }
            looked += 1;
            self.descriptors -= 1;
            let link = std::mem::take(&mut self.link);
            let link = match readlinkat(dir, entry.file_name(), link) {
                Ok(link) => link,
                // Access is the same for all descriptors of a process (proc(5)).
                Err(error @ (Errno::ACCESS | Errno::PERM)) => return Err(error.into()),
                // Closed meanwhile.
                Err(_) => continue,
            };
            if let Some(inode) = socket_inode(link.as_bytes())
                && self.wanted.remove(&inode)
            {
                held.push((inode, number));
            }
            self.link = link.into_bytes();
        }
        Ok(None)
    }
}

/// Where the search for the newest descriptors begins: they mostly have the highest numbers. 0
/// before Linux 6.2; since then the directory's size is the number of descriptors (proc_fd_getattr,
/// fs/proc/fd.c).
fn newest(dir: &OwnedFd) -> rustix::io::Result<u64> {
    let count = u64::try_from(fstat(dir)?.st_size).unwrap_or(0);
    Ok(count.saturating_sub(NEWEST))
}

/// The inode in `socket:[INODE]`.
fn socket_inode(link: &[u8]) -> Option<u64> {
    let inode = link.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(inode).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::net::TcpListener;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::symlink;

    use super::*;

    static GO_ON: AtomicBool = AtomicBool::new(false);

    /// An unbounded walk from the beginning.
    fn walk(inodes: &[u64]) -> Walk<'_> {
        Walk {
            inodes,
            first: None,
            from: Place::START,
            descriptors: usize::MAX,
            stop: &GO_ON,
        }
    }

    fn inode(socket: &TcpListener) -> u64 {
        let link = fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
        socket_inode(link.to_str().unwrap().as_bytes()).unwrap()
    }

    #[test]
    fn our_own_listener_is_found_with_and_without_the_hint() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let inode = inode(&listener);
        let own = std::process::id();
        let name = fs::read_to_string("/proc/self/comm").unwrap();
        let thread = rustix::thread::gettid().as_raw_nonzero().get() as u32;
        let inodes = [inode, 0];
        for first in [
            None,
            Some(own),
            Some(thread),
            Some(1),
            Some(0),
            Some(u32::MAX),
        ] {
            let found = Walk {
                first,
                ..walk(&inodes)
            };
            let found = found.find();
            assert_eq!((found.held.len(), found.rest), (1, None));
            let held = &found.held[&inode];
            assert_eq!(
                (held.process.pid, &*held.process.name),
                (own, name.trim_end())
            );
            assert_eq!(held.fd, listener.as_raw_fd() as u64);
            assert!(still_holds(own, held.fd, inode) && !still_holds(own, held.fd, inode + 1));
        }
        assert_eq!(walk(&[u64::MAX]).find().rest, None, "there is no more");
    }

    #[test]
    fn among_many_descriptors_the_newest_is_found_soon_and_the_oldest_at_all() {
        let oldest = TcpListener::bind("127.0.0.1:0").unwrap();
        let fill = || rustix::io::fcntl_dupfd_cloexec(&oldest, 0).unwrap();
        let _many: Vec<_> = (0..8 * NEWEST).map(|_| fill()).collect();
        let own = Some(std::process::id());
        assert!(fs::metadata("/proc/self/fd").unwrap().len() > 8 * NEWEST);
        let flags = OFlags::DIRECTORY;
        let dir = openat(rustix::fs::CWD, "/proc/self/fd", flags, Mode::empty());
        assert!(super::newest(&dir.unwrap()).unwrap() > 4 * NEWEST);
        // Other tests of this process hold some of the newest, or free an old number.
        let soon = || {
            let newest = TcpListener::bind("127.0.0.1:0").unwrap();
            let inodes = [inode(&newest)];
            let soon = Walk {
                first: own,
                descriptors: 2 * NEWEST as usize,
                ..walk(&inodes)
            };
            soon.find().held.len() == 1
        };
        assert!((0..50).any(|_| soon()));
        let inodes = [inode(&oldest)];
        let first = Walk {
            first: own,
            ..walk(&inodes)
        };
        assert_eq!(first.find().held.len(), 1);
        let stopped = Walk {
            stop: &AtomicBool::new(true),
            ..walk(&inodes)
        };
        assert!(stopped.find().held.is_empty());
    }

    #[test]
    fn a_walk_goes_on_where_the_last_one_ended_and_finds_everything() {
        let sockets: Vec<_> = (0..100)
            .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
            .collect();
        let inodes: Vec<u64> = sockets.iter().map(inode).collect();
        let mut found = HashMap::new();
        let mut place = Some(Place::START);
        let mut walks = 0;
        while let Some(from) = place {
            let missing: Vec<u64> = inodes
                .iter()
                .copied()
                .filter(|inode| !found.contains_key(inode))
                .collect();
            let part = Walk {
                from,
                descriptors: 40,
                ..walk(&missing)
            };
            let part = part.find();
            found.extend(part.held);
            assert!(
                part.rest.is_none_or(|rest| rest > from),
                "{from:?} {:?}",
                part.rest
            );
            place = part.rest;
            walks += 1;
        }
        assert_eq!(found.len(), inodes.len());
        assert!(walks > 2, "{walks}");
    }

    #[test]
    fn a_process_that_is_always_named_first_does_not_keep_the_walk_in_its_place() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let inodes = [inode(&listener)];
        // More of them than one walk inspects, before the listener's and after it.
        let fill = |from| rustix::io::fcntl_dupfd_cloexec(std::io::stderr(), from).unwrap();
        let _many: Vec<_> = (0..200).map(|_| fill(2000)).collect();
        let wanted = rustix::io::fcntl_dupfd_cloexec(&listener, 2000).unwrap();
        let _more: Vec<_> = (0..200).map(|_| fill(2000)).collect();
        drop(listener);
        let own = std::process::id();
        let mut place = Some(Place { pid: own, fd: 0 });
        let mut held = None;
        while held.is_none() {
            let part = Walk {
                first: Some(own),
                from: place.expect("it was not found"),
                descriptors: 100,
                ..walk(&inodes)
            };
            let part = part.find();
            assert!(!part.held.is_empty() || part.rest > place, "{place:?}");
            (held, place) = (part.held.get(&inodes[0]).cloned(), part.rest);
        }
        let fd = held.map(|held| held.fd);
        assert_eq!(fd, Some(wanted.as_raw_fd() as u64));
    }

    #[test]
    fn odd_entries_are_passed_over() {
        let proc = tempfile::tempdir().unwrap();
        let make = |pid: &str, links: &[&str]| {
            let dir = proc.path().join(pid);
            fs::create_dir_all(dir.join("fd")).unwrap();
            fs::write(dir.join("comm"), "né\n").unwrap();
            fs::write(dir.join("status"), format!("Name:\tx\nTgid:\t{pid}\n")).unwrap();
            for (fd, link) in links.iter().enumerate() {
                symlink(link, dir.join("fd").join(fd.to_string())).unwrap();
            }
        };
        make("7", &["pipe:[5]", "socket:[x]", "socket:[5]"]);
        make("8", &["/dev/null", "socket:[6", "socket:[6]"]);
        make("self", &["socket:[9]"]);
        fs::create_dir(proc.path().join("9")).unwrap();

        let first = |pid, descriptors, inodes| {
            let walk = Walk {
                first: Some(pid),
                descriptors,
                ..walk(inodes)
            };
            walk.find_in(proc.path())
        };
        let found = first(9, MAX_DESCRIPTORS, &[5, 6, 9]);
        assert_eq!((found.held.len(), found.rest), (2, None));
        let process = &found.held[&6].process;
        assert_eq!((process.pid, &*process.name), (8, "né"));
        assert!(first(7, 0, &[5]).held.is_empty());
        assert_eq!(first(7, 3, &[5]).held.len(), 1);
    }
}
