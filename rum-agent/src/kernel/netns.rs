//! Step 1: whether a process is in the agent's network namespace.
//!
//! The tracepoint reports every `listen()` of the machine, also in containers. The socket of a
//! process in another network namespace is hardly ever in ours.
//!
//! Invariant: a namespace that cannot be read counts as ours. A socket stays in the namespace in
//! which it was created, whichever process listens on it, so the answer only delays a dump and
//! never replaces it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A network namespace: device and inode of its file. `None` where that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetNs(Option<(u64, u64)>);

impl NetNs {
    /// The namespace of the calling thread.
    pub fn own() -> Self {
        Self::of(Path::new("/proc/thread-self"))
    }

    /// Whether the process or thread `pid` is in another namespace. One system call, which needs
    /// ptrace access (ptrace(2)).
    pub fn excludes(self, pid: u32) -> bool {
        let other = Self::of(Path::new(&format!("/proc/{pid}")));
        matches!((self.0, other.0), (Some(own), Some(other)) if own != other)
    }

    fn of(process: &Path) -> Self {
        let file = fs::metadata(process.join("ns/net"));
        Self(file.ok().map(|file| (file.dev(), file.ino())))
    }

    /// A namespace without any process.
    #[cfg(test)]
    pub fn nobodys() -> Self {
        Self(Some((0, 0)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::Read;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn only_what_is_known_to_be_elsewhere_is() {
        let here = NetNs::own();
        assert!(!here.excludes(std::process::id()));
        assert!(!here.excludes(u32::MAX), "nobody");
        assert!(!NetNs(None).excludes(std::process::id()));
        assert!(NetNs::nobodys().excludes(std::process::id()));
    }

    #[test]
    fn a_process_in_a_namespace_of_its_own_is_elsewhere() {
        let mut unshare = Command::new("unshare");
        unshare.args(["--map-root-user", "--net", "sh", "-c", "echo in; read _"]);
        let unshare = unshare.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = unshare.spawn().unwrap();
        let mut said = [0; 3];
        child.stdout.take().unwrap().read_exact(&mut said).unwrap();
        assert!(NetNs::own().excludes(child.id()));
        // It reads the end of its input.
        drop(child.stdin.take());
        child.wait().unwrap();
    }
}
