//! Details for step 2: which process holds a listening socket.
//!
//! `/proc/PID/fd` has a link `socket:[INODE]` for each descriptor that is a socket. There is no
//! index from inode to process, so the descriptors are walked until every inode is found: first
//! those of the process that the hint named, which nearly always is the one.
//!
//! Invariants: the walk is bounded by a number of descriptors that the caller gives; a process that may not be read or
//! that ends meanwhile is passed over. The answer is for people to read, nothing depends on it.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rum_shared::listener::{MAX_NAME, Process};
use rustix::fs::{Mode, OFlags, RawDir, SeekFrom, fstat, openat, readlinkat};
use rustix::io::Errno;

/// How many descriptors the agent looks at in one call, at one or two microseconds each: a bound on
/// the time that it is busy with what is only a name.
pub const MAX_DESCRIPTORS: usize = 20_000;
/// How many descriptors of a process are looked at before all others.
const NEWEST: u64 = 16;
/// At most this many processes are looked at in one call, for the same reason.
pub const MAX_PROCESSES: usize = 10_000;

/// The processes that hold the sockets with these inodes; `first_pid` is looked at first, and at most
/// `descriptors` descriptors in all, as long as nobody raises `stop`. Of several holders of one socket the
/// first found is named. An inode without a readable holder is missing from the answer.
///
/// Takes some milliseconds on a busy machine: not for the path between a hint and its report.
pub fn find(
    inodes: &[u64],
    first_pid: Option<u32>,
    descriptors: usize,
    stop: &AtomicBool,
) -> HashMap<u64, Process> {
    find_in(Path::new("/proc"), inodes, first_pid, descriptors, stop)
}

fn find_in(
    proc: &Path,
    inodes: &[u64],
    first_pid: Option<u32>,
    descriptors: usize,
    stop: &AtomicBool,
) -> HashMap<u64, Process> {
    let mut search = Search {
        stop,
        wanted: inodes.iter().copied().filter(|i| *i != 0).collect(),
        found: HashMap::new(),
        descriptors,
        link: Vec::new(),
    };
    if let Some(pid) = first_pid.filter(|pid| *pid != 0) {
        search.process(proc, pid);
    }
    if search.is_over() {
        return search.found;
    }
    let others = fs::read_dir(proc)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| Some(*pid) != first_pid)
        .take(MAX_PROCESSES);
    for pid in others {
        search.process(proc, pid);
        if search.is_over() {
            break;
        }
    }
    search.found
}

struct Search<'a> {
    /// Raised when nobody wants to know any more.
    stop: &'a AtomicBool,
    wanted: HashSet<u64>,
    found: HashMap<u64, Process>,
    /// How many descriptors may still be looked at.
    descriptors: usize,
    /// Reused for each link.
    link: Vec<u8>,
}

impl Search<'_> {
    fn is_over(&self) -> bool {
        self.wanted.is_empty() || self.descriptors == 0 || self.stop.load(Ordering::Relaxed)
    }

    /// Looks at one process. It may end or be out of reach: then there is nothing to find.
    fn process(&mut self, proc: &Path, pid: u32) {
        if let Ok(held) = self.descriptors(proc, pid)
            && !held.is_empty()
        {
            let process = Process {
                pid,
                name: name(proc, pid),
            };
            for inode in held {
                self.found.insert(inode, process.clone());
            }
        }
    }

    /// The wanted inodes among the descriptors of a process; they are wanted no more.
    fn descriptors(&mut self, proc: &Path, pid: u32) -> io::Result<Vec<u64>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = openat(
            rustix::fs::CWD,
            proc.join(format!("{pid}/fd")),
            flags,
            Mode::empty(),
        )?;
        let mut held = Vec::new();
        let newest = newest(&dir)?;
        let mut buffer = [MaybeUninit::uninit(); 4096];
        for numbers in [newest..u64::MAX, 0..newest] {
            // To read on would make the kernel fill a page of entries.
            if self.is_over() {
                break;
            }
            // The position in this directory is the number, after two for `.` and `..`
            // (proc_readfd_common, fs/proc/fd.c).
            rustix::fs::seek(&dir, SeekFrom::Start(numbers.start + 2))?;
            let mut entries = RawDir::new(&dir, &mut buffer);
            while let Some(entry) = entries.next() {
                if self.is_over() {
                    break;
                }
                let entry = entry?;
                let number = entry.file_name().to_str().ok().and_then(|n| n.parse().ok());
                if number.is_none_or(|number| !numbers.contains(&number)) {
                    continue;
                }
                self.descriptors -= 1;
                let link = std::mem::take(&mut self.link);
                let link = match readlinkat(&dir, entry.file_name(), link) {
                    Ok(link) => link,
                    // What may be done with a process is the same for all its descriptors
                    // (proc(5)).
                    Err(error @ (Errno::ACCESS | Errno::PERM)) => return Err(error.into()),
                    // Closed meanwhile.
                    Err(_) => continue,
                };
                if let Some(inode) = socket_inode(link.as_bytes())
                    && self.wanted.remove(&inode)
                {
                    held.push(inode);
                }
                self.link = link.into_bytes();
            }
        }
        Ok(held)
    }
}

/// The number from which on the newest descriptors are looked for first: the highest mostly are. 0
/// before Linux 6.2, since when the size of the directory is how many there are (proc_fd_getattr,
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

/// The kernel's short name of a process, empty when it cannot be read; at most [`MAX_NAME`]
/// bytes. Any bytes may be in it: what is not UTF-8 is replaced.
fn name(proc: &Path, pid: u32) -> String {
    let bytes = fs::read(proc.join(format!("{pid}/comm"))).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let mut end = text.len().min(MAX_NAME);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::net::TcpListener;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::symlink;

    use super::*;

    static GO_ON: AtomicBool = AtomicBool::new(false);

    #[test]
    fn our_own_listener_is_found_with_and_without_the_hint() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let link = fs::read_link(format!("/proc/self/fd/{}", listener.as_raw_fd())).unwrap();
        let inode = socket_inode(link.to_str().unwrap().as_bytes()).unwrap();
        let own = std::process::id();
        let name = fs::read_to_string("/proc/self/comm").unwrap();
        for first in [None, Some(own), Some(1), Some(0), Some(u32::MAX)] {
            let found = find(&[inode, 0, u64::MAX], first, usize::MAX, &GO_ON);
            assert_eq!(found.len(), 1);
            assert_eq!(found[&inode].pid, own);
            assert_eq!(found[&inode].name, name.trim_end());
        }
    }

    #[test]
    fn among_many_descriptors_the_newest_is_found_soon_and_the_oldest_at_all() {
        let inode = |socket: &TcpListener| {
            let link = fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
            socket_inode(link.to_str().unwrap().as_bytes()).unwrap()
        };
        let oldest = TcpListener::bind("127.0.0.1:0").unwrap();
        let fill = || rustix::io::fcntl_dupfd_cloexec(&oldest, 0).unwrap();
        let _many: Vec<_> = (0..4 * NEWEST).map(|_| fill()).collect();
        let own = std::process::id();
        assert!(fs::metadata("/proc/self/fd").unwrap().len() > 4 * NEWEST);
        let dir = openat(
            rustix::fs::CWD,
            "/proc/self/fd",
            OFlags::DIRECTORY,
            Mode::empty(),
        );
        assert!(super::newest(&dir.unwrap()).unwrap() > 2 * NEWEST);
        // Other tests of this process have some of the newest, or leave it an old number.
        let soon = || {
            let newest = TcpListener::bind("127.0.0.1:0").unwrap();
            find(&[inode(&newest)], Some(own), 2 * NEWEST as usize, &GO_ON).len() == 1
        };
        assert!((0..50).any(|_| soon()));
        let found = find(&[inode(&oldest)], Some(own), usize::MAX, &GO_ON);
        assert_eq!(found.len(), 1);
        let stop = AtomicBool::new(true);
        assert!(find(&[inode(&oldest)], Some(own), usize::MAX, &stop).is_empty());
    }

    #[test]
    fn names_are_bounded_and_odd_entries_passed_over() {
        let proc = tempfile::tempdir().unwrap();
        let make = |pid: &str, comm: &[u8], links: &[&str]| {
            let dir = proc.path().join(pid);
            fs::create_dir_all(dir.join("fd")).unwrap();
            fs::write(dir.join("comm"), comm).unwrap();
            for (fd, link) in links.iter().enumerate() {
                symlink(link, dir.join("fd").join(fd.to_string())).unwrap();
            }
        };
        make("7", &[0xff; 200], &["pipe:[5]", "socket:[x]", "socket:[5]"]);
        make(
            "8",
            "né\n".as_bytes(),
            &["/dev/null", "socket:[6", "socket:[6]"],
        );
        make("self", b"no pid", &["socket:[9]"]);
        fs::create_dir(proc.path().join("9")).unwrap();

        let found = find_in(proc.path(), &[5, 6, 9], Some(9), MAX_DESCRIPTORS, &GO_ON);
        assert_eq!(found.len(), 2);
        assert_eq!(found[&6].name, "né");
        assert_eq!(found[&6].pid, 8);
        assert!(found[&5].name.len() <= MAX_NAME);
        assert!(found[&5].name.starts_with('\u{fffd}'));
        assert!(find_in(proc.path(), &[5], Some(7), 0, &GO_ON).is_empty());
        assert_eq!(find_in(proc.path(), &[5], Some(7), 3, &GO_ON).len(), 1);
    }
}
