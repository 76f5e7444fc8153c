//! The limit of open descriptors: `rum up` takes what it may have, its children get what it was
//! given.
//!
//! A relayed connection needs two or three descriptors, and a login shell's soft limit is 1024. But
//! a program that uses select(2) breaks with descriptors above that, so the user's command must not
//! inherit the raised limit (systemd.exec(5), LimitNOFILE=).
//!
//! At the limit whoever waits for a connection must not be accepted before there is room for what
//! leads on from there. So room is taken beforehand, by descriptors that [stand in](stand_in) for
//! those to come: a [`Reserve`] has it for one connection, and whoever is accepted takes it along.

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

/// How many this process may have open.
pub fn limit() -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    limit.map_or(usize::MAX, |limit| {
        usize::try_from(limit).unwrap_or(usize::MAX)
    })
}

/// Whether `error` says that there is no descriptor or no memory left, which passes.
pub fn is_exhaustion(error: &io::Error) -> bool {
    let exhausted = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    Errno::from_io_error(error).is_some_and(|errno| exhausted.contains(&errno))
}

/// A descriptor that is good for nothing but to be closed when another one is needed: a copy of
/// stderr, which costs the kernel no more than its place.
///
/// # Errors
/// As fcntl(2) with F_DUPFD: EMFILE at the limit.
pub fn stand_in() -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stderr(), 0)?)
}

/// What a connection needs beside its client's socket: its channel to the agent and, until that
/// is closed, the socket that comes through it.
type Places = [OwnedFd; 2];

/// Room for the next connection. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Reserve(Arc<Mutex<Option<Places>>>);

impl Reserve {
    /// Room for one connection.
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

/// Room for one connection. Dropped unused it is for the next.
#[derive(Debug)]
pub struct Room {
    places: Option<Places>,
    reserve: Reserve,
}

impl Room {
    /// Makes the room free. Another thread may be quicker to use it.
    pub fn vacate(mut self) {
        self.places = None;
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Some(places) = self.places.take() {
            // Closes the places of another one that came back before.
            self.reserve.swap(Some(places));
        }
    }
}
