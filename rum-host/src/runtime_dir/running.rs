//! The running guests: those whose directories are locked.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};

use super::{
    CONSOLE, CONSOLE_LOCK, CONTROL, LOCK, ProcessId, RuntimeDirError, STATE, STREAMS, base,
    check_name, open_private, read_holder, read_text,
};
use crate::runtime_dir::isolation::Isolation;

/// A guest that a `rum up` of this user holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningGuest {
    /// Its name.
    pub name: String,
    /// Its runtime directory.
    pub path: PathBuf,
    /// The `rum up` that holds it, if known.
    pub rum: Option<ProcessId>,
    /// Its kind; `None` while it starts.
    pub kind: Option<String>,
    /// Its first process, for kinds that run on this machine's kernel.
    pub init: Option<ProcessId>,
    /// Its isolation, for those kinds.
    pub isolation: Isolation,
}

impl RunningGuest {
    /// A guest that starts, with only its name and directory known.
    #[cfg(test)]
    pub fn starting(name: &str, path: impl Into<PathBuf>) -> Self {
        Self {
            name: name.to_owned(),
            path: path.into(),
            rum: None,
            kind: None,
            init: None,
            isolation: Isolation::default(),
        }
    }

    /// The control socket of its `rum up`.
    pub fn control_socket(&self) -> PathBuf {
        self.path.join(CONTROL)
    }

    /// The socket on which its `rum up` gives connections into it, if it is a VM.
    pub fn streams_socket(&self) -> PathBuf {
        self.path.join(STREAMS)
    }

    /// The socket of a VM's serial console.
    pub fn console_socket(&self) -> PathBuf {
        self.path.join(CONSOLE)
    }

    /// Whether its `rum up`, or a helper of it, still exists.
    pub(crate) fn is_held(&self) -> bool {
        open_private(&self.path).is_ok_and(|dir| holder_of(&dir).is_some())
    }

    /// The file that the client attached to that console locks with flock(2).
    pub fn console_lock(&self) -> PathBuf {
        self.path.join(CONSOLE_LOCK)
    }
}

/// The running guests of this user, sorted by name.
pub fn list() -> Result<Vec<RunningGuest>, RuntimeDirError> {
    list_in(&base())
}

/// As [`list`], below `base`.
pub fn list_in(base: &Path) -> Result<Vec<RunningGuest>, RuntimeDirError> {
    match fs::symlink_metadata(base) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        _ => open_private(base)?,
    };
    let entries = fs::read_dir(base).map_err(|source| RuntimeDirError::Io {
        action: "read",
        path: base.to_owned(),
        source,
    })?;
    let mut running: Vec<_> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| check_name(name).is_ok())
        .filter_map(|name| look(base, name))
        .collect();
    running.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(running)
}

fn open_in(dir: &OwnedFd, file: &str) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, file, flags, Mode::empty()).ok()
}

/// Opens the lock file of a directory if it is locked.
fn holder_of(dir: &OwnedFd) -> Option<OwnedFd> {
    let lock = open_in(dir, LOCK)?;
    // If the lock was free, this holds it for an instant; a `rum up` that collides with us tries
    // again.
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared) {
        Ok(()) => None,
        Err(_) => Some(lock),
    }
}

/// The guest in the directory `name`; `None` if the directory is not locked, or is not safe to
/// read.
fn look(base: &Path, name: String) -> Option<RunningGuest> {
    let path = base.join(&name);
    let dir = open_private(&path).ok()?;
    let rum = read_holder(&holder_of(&dir)?);
    if rum.is_some_and(|rum| !rum.is_alive()) {
        // Its helpers are about to end the guest.
        return None;
    }
    let state = open_in(&dir, STATE).map(read_text).unwrap_or_default();
    let field = |key: &str| {
        state
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))
    };
    Some(RunningGuest {
        rum,
        kind: field("kind").map(str::to_owned),
        init: field("init").and_then(|text| text.parse().ok()),
        isolation: field("isolation")
            .and_then(Isolation::parse)
            .unwrap_or_default(),
        name,
        path,
    })
}
