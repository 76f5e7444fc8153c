//! Errors of a runtime directory, and their hints.

use std::io;
use std::path::{Path, PathBuf};

use super::{MAX_NAME, MAX_SOCKET_PATH};
use crate::limits;

/// Why there is no runtime directory.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeDirError {
    /// The name is not valid for a guest.
    #[error("{name:?} cannot be the name of a guest")]
    Name {
        /// The name.
        name: String,
    },
    /// Another `rum up` holds the name.
    #[error("the guest `{name}` is already running{}", by(.pid))]
    Running {
        /// The guest.
        name: String,
        /// The process that holds it, where it is known.
        pid: Option<u32>,
    },
    /// The path exists and is not safe to use.
    #[error("{} {problem}", path.display())]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// The problem, as the end of a sentence.
        problem: String,
    },
    /// A socket's path in the directory would be too long to bind.
    #[error("the path {} is too long for a socket ({} bytes, at most {MAX_SOCKET_PATH})", path.display(), path.as_os_str().len())]
    TooLong {
        /// The longest of the guest's sockets.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// The action that failed.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
}

fn by(pid: &Option<u32>) -> String {
    pid.map_or(String::new(), |pid| format!(" (process {pid})"))
}

impl RuntimeDirError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Name { .. } => Some(format!(
                "1 to {MAX_NAME} letters, digits, dots, dashes and underscores, not a dot first"
            )),
            Self::Running { name, .. } => Some(format!(
                "`rum ports --name {name}` shows it, `rum down --name {name}` ends it; or give this one \
                 another name"
            )),
            Self::Unsafe { .. } => Some(
                "set RUM_RUNTIME_DIR to a directory that only you may enter (mode 0700), or to one \
                 that does not exist yet: rum makes it"
                    .to_owned(),
            ),
            Self::TooLong { .. } => {
                Some("choose a shorter name, or set RUM_RUNTIME_DIR to a shorter path".to_owned())
            }
            Self::Io { source, .. } => Some(
                limits::hint(source)
                    .unwrap_or("RUM_RUNTIME_DIR can name another directory for rum's sockets")
                    .to_owned(),
            ),
        }
    }
}

pub(super) fn io_error(
    action: &'static str,
    path: &Path,
) -> impl FnOnce(rustix::io::Errno) -> RuntimeDirError {
    move |source| RuntimeDirError::Io {
        action,
        path: path.to_owned(),
        source: source.into(),
    }
}
