//! User and group ids in the guest of an ordinary user.
//!
//! The user's own ids are mapped to themselves, so that files keep their owner and programs that
//! refuse root run; or to root's, on request. If /etc/subuid and /etc/subgid give the user ranges,
//! newuidmap(1) and newgidmap(1) map the other ids from 0 on to those, as podman does. Otherwise no
//! other ids exist inside: nothing can then belong to a group such as `tty`.
//!
//! Both programs must run outside the user namespace, after it was made. So a child forked
//! beforehand waits for the namespace and then runs them.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::wait::WaitStatus;
use nix::unistd::{ForkResult, Pid as NixPid};
use rustix::pipe::PipeFlags;

/// Most ranges of a user that are used; newuidmap(1) accepts more, but no real setup has more.
const MAX_RANGES: usize = 16;

/// How one kind of id is mapped.
struct Kind {
    program: &'static str,
    ranges: &'static str,
    map: &'static str,
}

const USERS: Kind = Kind {
    program: "newuidmap",
    ranges: "/etc/subuid",
    map: "uid_map",
};
const GROUPS: Kind = Kind {
    program: "newgidmap",
    ranges: "/etc/subgid",
    map: "gid_map",
};
/// The child's exit code: one bit for each program that succeeded.
const DONE: [i32; 2] = [1, 2];

/// The child that runs the mapping programs.
pub struct Mapper {
    child: NixPid,
    go: OwnedFd,
    own: [Own; 2],
}

/// One of the user's own ids.
#[derive(Debug, Clone, Copy)]
struct Own {
    outside: u32,
    inside: u32,
}

impl Mapper {
    /// Starts the child; `root`: the user becomes root. Must be called before this process, which
    /// has one thread, enters the user namespace.
    pub fn start(root: bool) -> io::Result<Self> {
        let own = [
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
        ]
        .map(|outside| Own {
            outside,
            inside: if root { 0 } else { outside },
        });
        let target = rustix::process::getpid().as_raw_pid();
        let (wait, go) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        // SAFETY: this process has one thread, so its child may do whatever the parent could.
        match unsafe { nix::unistd::fork() }? {
            ForkResult::Child => {
                drop(go);
                let code = match rustix::io::read(&wait, &mut [0; 1]) {
                    Ok(1) => by_programs(target, own),
                    // End of file: no user namespace was made.
                    _ => 0,
                };
                // SAFETY: ends the child without running exit handlers of the parent.
                unsafe { libc::_exit(code) }
            }
            ForkResult::Parent { child } => Ok(Self { child, go, own }),
        }
    }

    /// Maps the ids of the user namespace that this process is now in. This process must be
    /// dumpable, because the mapping programs check the owner of /proc/PID.
    ///
    /// # Errors
    /// Not even the user's own ids could be mapped; with the file that could not be written.
    pub fn map(self) -> Result<(), (&'static str, io::Error)> {
        let _ = rustix::io::write(&self.go, &[1]);
        drop(self.go);
        let code = match nix::sys::wait::waitpid(self.child, None) {
            Ok(WaitStatus::Exited(_, code)) => code,
            _ => 0,
        };
        let [uid, gid] = self.own;
        if code & DONE[0] == 0 {
            write(USERS.map, &format!("{} {} 1", uid.inside, uid.outside))?;
        }
        if code & DONE[1] == 0 {
            // Without privilege, a gid map can be written only once setgroups(2) is off
            // (user_namespaces(7)).
            write("setgroups", "deny")?;
            write(GROUPS.map, &format!("{} {} 1", gid.inside, gid.outside))?;
        }
        Ok(())
    }
}

fn write(file: &'static str, text: &str) -> Result<(), (&'static str, io::Error)> {
    fs::write(format!("/proc/self/{file}"), text).map_err(|error| (file, error))
}

/// In the child: runs both programs on the process `target`. Returns which of them succeeded.
fn by_programs(target: i32, own: [Own; 2]) -> i32 {
    let uid = own[0].outside;
    let name = user_name(uid);
    let mut code = 0;
    for ((kind, own_id), done) in [USERS, GROUPS].iter().zip(own).zip(DONE) {
        let text = fs::read_to_string(kind.ranges).unwrap_or_default();
        let ranges = ranges(&text, uid, name.as_deref());
        if ranges.is_empty() {
            continue;
        }
        let extents = extents(own_id, &ranges);
        let status = Command::new(kind.program)
            .arg(target.to_string())
            .args(extents.iter().flatten().map(u32::to_string))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if status.is_ok_and(|status| status.success()) {
            code |= done;
        }
    }
    code
}

/// Name of the user `uid` from /etc/passwd, else from the environment. newuidmap(1) checks it.
fn user_name(uid: u32) -> Option<String> {
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let known = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    known.or_else(|| std::env::var("USER").ok())
}

/// The user's ranges (first id, count) in the text of a subuid(5) file.
fn ranges(text: &str, uid: u32, name: Option<&str>) -> Vec<(u32, u32)> {
    let uid = uid.to_string();
    let of_user = text.lines().filter_map(|line| {
        let (user, range) = line.trim().split_once(':')?;
        let (first, count) = range.split_once(':')?;
        let range: (u32, u32) = (first.parse().ok()?, count.parse().ok()?);
        let fits = range.1 > 0 && range.0.checked_add(range.1).is_some();
        (fits && (user == uid || Some(user) == name)).then_some(range)
    });
    of_user.take(MAX_RANGES).collect()
}

/// Extents (first id inside, first outside, count) that map `own`, and the other ids from 0 on to
/// `ranges`.
fn extents(own: Own, ranges: &[(u32, u32)]) -> Vec<[u32; 3]> {
    let mut extents = vec![[own.inside, own.outside, 1]];
    let own = own.inside;
    let mut inside: u32 = 0;
    for &(mut outside, mut count) in ranges {
        while count > 0 {
            if inside == own {
                inside += 1;
            }
            let free = match own.checked_sub(inside) {
                Some(below) => below,
                // The largest id is reserved: -1 means "no change" (chown(2)).
                None => u32::MAX - inside,
            };
            let length = count.min(free);
            if length == 0 {
                return extents;
            }
            extents.push([inside, outside, length]);
            inside += length;
            outside += length;
            count -= length;
        }
    }
    extents
}

/// Id of the group that owns terminals.
pub fn tty_group() -> u32 {
    /// The id on Debian and most other distributions.
    const USUAL: u32 = 5;
    let groups = fs::read_to_string(Path::new("/etc/group")).unwrap_or_default();
    let tty = groups.lines().find_map(|line| line.strip_prefix("tty:"));
    tty.and_then(|rest| rest.split(':').nth(1)?.parse().ok())
        .unwrap_or(USUAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same(id: u32) -> Own {
        Own {
            outside: id,
            inside: id,
        }
    }

    #[test]
    fn root_is_the_user_and_the_others_are_given() {
        let root = Own {
            outside: 1001,
            inside: 0,
        };
        assert_eq!(
            extents(root, &[(100_000, 10), (200_000, 65_536)]),
            [[0, 1001, 1], [1, 100_000, 10], [11, 200_000, 65_536]]
        );
        assert_eq!(extents(root, &[]), [[0, 1001, 1]]);
    }

    #[test]
    fn the_own_id_is_itself_and_the_others_are_given() {
        assert_eq!(
            extents(same(1001), &[(100_000, 65_536)]),
            [[1001, 1001, 1], [0, 100_000, 1001], [1002, 101_001, 64_535]]
        );
        // Two ranges; the first ends below the user's own id.
        assert_eq!(
            extents(same(10), &[(100, 4), (200, 10)]),
            [[10, 10, 1], [0, 100, 4], [4, 200, 6], [11, 206, 4]]
        );
        assert_eq!(extents(same(0), &[(100, 2)]), [[0, 0, 1], [1, 100, 2]]);
        assert_eq!(extents(same(9), &[(100, 2)]), [[9, 9, 1], [0, 100, 2]]);
        assert_eq!(extents(same(2), &[(100, 2)]), [[2, 2, 1], [0, 100, 2]]);
        assert_eq!(extents(same(7), &[]), [[7, 7, 1]]);
        // No id is mapped twice, whatever the ranges are.
        let all = extents(same(u32::MAX - 1), &[(1, u32::MAX - 1), (1, u32::MAX - 1)]);
        assert_eq!(all, [[u32::MAX - 1, u32::MAX - 1, 1], [0, 1, u32::MAX - 1]]);
    }

    #[test]
    fn ranges_are_those_of_the_user() {
        let text = "root:1:2\nme:100000:65536\n1001:5:1\nmeme:7:7\nme:x:1\nme:1\nme:3:0\n\n\
                    me:4294967295:9\n";
        assert_eq!(ranges(text, 1001, Some("me")), [(100_000, 65_536), (5, 1)]);
        assert_eq!(ranges(text, 1002, None), []);
        assert_eq!(
            ranges(&"me:1:1\n".repeat(99), 1, Some("me")).len(),
            MAX_RANGES
        );
    }
}
