//! Which network namespace a socket belongs to.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Names a network namespace for as long as the machine runs (SO_NETNS_COOKIE, Linux 5.14).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetCookie(pub u64);

impl NetCookie {
    /// That of `socket`'s namespace.
    ///
    /// # Errors
    /// ENOTSOCK; ENOPROTOOPT of an older kernel.
    pub fn of(socket: impl AsFd) -> io::Result<Self> {
        /// From asm-generic/socket.h; no machine that rum knows has another number.
        const SO_NETNS_COOKIE: libc::c_int = 71;
        let mut cookie = 0_u64;
        let mut length: libc::socklen_t = 8;
        // SAFETY: the kernel writes at most `length` bytes, which `cookie` has.
        let done = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                SO_NETNS_COOKIE,
                (&raw mut cookie).cast(),
                &raw mut length,
            )
        };
        match done {
            0 => Ok(Self(cookie)),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
