//! Recovery of a runtime directory that is removed while in use: by logind at the end of the last
//! session, by a cleaner of /tmp, or by hand.
//!
//! [`RuntimeDir::mend`] recreates what others need to find the guest: directory, lock and state.
//! The control server recreates its own socket. The guest's keeper still holds the removed lock, so
//! a successor no longer waits for the keeper; it takes over what it finds, as always.
//!
//! Invariant: nothing is taken from another `rum up`: if that has the lock, nothing is touched.

use std::os::unix::net::UnixStream;

use super::*;

/// Result of [`RuntimeDir::mend`].
#[derive(Debug, PartialEq, Eq)]
pub enum Mended {
    /// Nothing was missing.
    Whole,
    /// Something was missing, and was recreated.
    Anew,
}

impl RuntimeDir {
    /// Recreates the missing parts of the directory.
    ///
    /// # Errors
    /// Another `rum up` has taken the name, or a system call failed.
    pub fn mend(&self) -> Result<Mended, RuntimeDirError> {
        let mut held = self.held();
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if is_at(&held.lock, &held.dir) && is_dir_at(&held.dir, &self.path) {
            let there = rustix::fs::statat(&held.dir, STATE, AtFlags::SYMLINK_NOFOLLOW);
            return match &*state {
                Some(text) if there.is_err() => {
                    self.write_state(text)?;
                    Ok(Mended::Anew)
                }
                _ => Ok(Mended::Whole),
            };
        }
        if let Some(base) = self.path.parent() {
            private_dir(base)?;
        }
        let dir = private_dir(&self.path)?;
        let lock = open_lock(&dir, &self.path)?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(RuntimeDirError::Running {
                    name: self.name.clone(),
                    pid: read_holder(&lock).map(ProcessId::pid),
                });
            }
            Err(error) => return Err(io_error("lock", &self.path)(error)),
        }
        *held = Held { dir, lock };
        self.sign(&held)?;
        if let Some(text) = &*state {
            self.write_state(text)?;
        }
        Ok(Mended::Anew)
    }
}

/// Whether `path` is the directory `dir`.
fn is_dir_at(dir: &OwnedFd, path: &Path) -> bool {
    let ours = rustix::fs::fstat(dir);
    let there = rustix::fs::lstat(path);
    matches!((ours, there), (Ok(a), Ok(b)) if (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
}

/// Whether a `rum up` answers in the directory `path` although its lock is free: its lock file was
/// removed.
pub(super) fn is_live(path: &Path) -> bool {
    UnixStream::connect(path.join(CONTROL)).is_ok()
}
