//! A runtime directory that somebody else removes while it is in use: logind at the end of the last
//! session, a cleaner of /tmp, a hand.
//!
//! What others need to find a guest is made anew: directory, lock, state; the control socket's own
//! server makes that one. The guest's keeper still holds the lock that was removed, so a successor
//! no longer waits for it: it takes over what it finds, as ever.
//!
//! Invariant: nothing is taken from another `rum up`: where that has the lock, nothing is touched.

use std::os::unix::net::UnixStream;

use super::*;

/// What became of a directory.
#[derive(Debug, PartialEq, Eq)]
pub enum Mended {
    /// Nothing was missing.
    Whole,
    /// It was, and is there again.
    Anew,
}

impl RuntimeDir {
    /// Makes anew what is missing of the directory.
    ///
    /// # Errors
    /// Another `rum up` has the name by now, or the system's.
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

/// Whether a `rum up` answers in the directory `path`, whose lock nobody holds: somebody has removed
/// the lock that it had.
pub(super) fn is_live(path: &Path) -> bool {
    UnixStream::connect(path.join(CONTROL)).is_ok()
}
