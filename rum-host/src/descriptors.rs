//! The limit of open file descriptors (RLIMIT_NOFILE). `rum up` raises its soft limit to the hard
//! limit; its children get the original limit back.
//!
//! A relayed connection needs two or three descriptors, and a login shell's soft limit is 1024. But
//! a program that uses select(2) breaks with descriptors above that, so the user's command must not
//! inherit the raised limit (systemd.exec(5), LimitNOFILE=).
//!
//! At the limit, a client must not be accepted before the descriptors for its onward connection are
//! reserved. So [placeholder descriptors](stand_in) are opened beforehand: a [`Reserve`] has them
//! for the next connection, and each accepted client takes them along.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The limit as it was before [`raise`].
static GIVEN: OnceLock<Rlimit> = OnceLock::new();

/// Raises the soft limit to the hard one.
pub fn raise() {
    let given = *GIVEN.get_or_init(|| getrlimit(Resource::Nofile));
    let raised = Rlimit {
        current: given.maximum,
        ..given
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "the limit of open files stays at {:?}", given.current);
    }
}

/// Takes a [`raise`] back, in a child between fork and exec: one system call, and nothing else.
///
/// # Errors
/// As setrlimit(2); lowering needs no privilege.
pub fn restore() -> io::Result<()> {
    match GIVEN.get() {
        Some(given) => Ok(setrlimit(Resource::Nofile, *given)?),
        None => Ok(()),
    }
}

/// The most descriptors that this process may have open.
pub fn limit() -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    limit.map_or(usize::MAX, |limit| {
        usize::try_from(limit).unwrap_or(usize::MAX)
    })
}

/// Whether `error` reports a lack of descriptors or of memory, which may pass.
pub fn is_exhaustion(error: &io::Error) -> bool {
    let exhausted = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    Errno::from_io_error(error).is_some_and(|errno| exhausted.contains(&errno))
}

/// Opens a placeholder descriptor, to be closed when another one is needed. It is a duplicate of
/// stderr, which costs the kernel only a slot in the descriptor table.
///
/// # Errors
/// As fcntl(2) with F_DUPFD: EMFILE at the limit.
pub fn stand_in() -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stderr(), 0)?)
}

/// The descriptors that a connection needs beside its client's socket: its channel to the agent
/// and, until that is closed, the socket that the agent hands over through it.
type Places = [OwnedFd; 2];

/// Descriptors reserved for the next connection. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Reserve(Arc<Mutex<Option<Places>>>);

impl Reserve {
    /// Takes the descriptors for one connection.
    ///
    /// # Errors
    /// As [`stand_in`].
    pub fn take(&self) -> io::Result<Room> {
        let places = match self.swap(None) {
            Some(places) => places,
            None => [stand_in()?, stand_in()?],
        };
        Ok(Room {
            places: Some(places),
            reserve: self.clone(),
        })
    }

    fn swap(&self, places: Option<Places>) -> Option<Places> {
        // Nothing can panic under the lock.
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut kept, places)
    }
}

/// Descriptors reserved for one connection. If dropped unused, they go back to the [`Reserve`].
#[derive(Debug)]
pub struct Room {
    places: Option<Places>,
    reserve: Reserve,
}

impl Room {
    /// Closes the placeholders to free their descriptors. Another thread may be first to use them.
    pub fn vacate(mut self) {
        self.places = None;
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Some(places) = self.places.take() {
            // If another room came back before, this closes its placeholders.
            self.reserve.swap(Some(places));
        }
    }
}
