//! The limit of open descriptors: `rum up` takes what it may have, its children get what it was
//! given.
//!
//! A relayed connection needs two or three descriptors, and a login shell's soft limit is 1024. But
//! a program that uses select(2) breaks with descriptors above that, so the user's command must not
//! inherit the raised limit (systemd.exec(5), LimitNOFILE=).

use std::sync::OnceLock;

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
pub fn restore() -> std::io::Result<()> {
    match GIVEN.get() {
        Some(given) => Ok(setrlimit(Resource::Nofile, *given)?),
        None => Ok(()),
    }
}
