//! The agent's side: from a [`ListenAddr`] to accepted [`Stream`]s, and how a Unix socket file
//! is made.

use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use tokio::net::UnixListener;
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener};

use super::Stream;

/// Backlog of every listening socket: a client that opens some hundred connections at once is
/// not turned away while the agent is busy with the first.
pub const BACKLOG: i32 = 1024;

/// Where an agent listens: `vsock:PORT`, `unix:PATH` or `fd:N` (an inherited listening socket).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddr {
    /// AF_VSOCK, any CID of ours.
    Vsock(u32),
    /// A path, created with mode 0600.
    Unix(PathBuf),
    /// An inherited listening socket, Unix or vsock.
    Fd(RawFd),
}

impl ListenAddr {
    /// Binds and listens. Call it inside a tokio runtime.
    ///
    /// A socket file that nobody listens on any more is replaced; the file stays when the
    /// [`Acceptor`] is dropped. An inherited descriptor is duplicated and the original marked
    /// close-on-exec: it listens until the process ends.
    ///
    /// # Errors
    /// What the system says; [`io::ErrorKind::AddrInUse`] when a live socket has the path,
    /// [`io::ErrorKind::InvalidInput`] when `fd:N` is not a listening socket of a known family.
    pub fn bind(&self) -> io::Result<Acceptor> {
        match self {
            Self::Unix(path) => bind_unix(path).map(Acceptor::Unix),
            Self::Vsock(port) => {
                let listener = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, *port))?;
                // The crate listens with 128; listening again only changes the backlog.
                rustix::net::listen(&listener, BACKLOG)?;
                Ok(Acceptor::Vsock(listener))
            }
            Self::Fd(number) => inherit(*number),
        }
    }
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vsock(port) => write!(f, "vsock:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Fd(number) => write!(f, "fd:{number}"),
        }
    }
}

impl FromStr for ListenAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |value: &str, what: &str, example: &str| {
            // `parse` would take a sign.
            if value.starts_with('+') {
                return Err(format!("`{value}` is not {what}; write `{example}`"));
            }
            value
                .parse::<u32>()
                .map_err(|_| format!("`{value}` is not {what}; write `{example}`"))
        };
        match text.split_once(':') {
            Some(("vsock", port)) => match number(port, "a vsock port", "vsock:2222")? {
                // VMADDR_PORT_ANY (vsock(7)): the kernel would pick one that nobody knows.
                u32::MAX => Err(format!("`{port}` is not a vsock port; write `vsock:2222`")),
                port => Ok(Self::Vsock(port)),
            },
            Some(("unix", "")) => Err("the path is empty; write `unix:/run/rum.sock`".into()),
            Some(("unix", path)) => Ok(Self::Unix(path.into())),
            Some(("fd", value)) => {
                let what = "the number of an inherited socket";
                let value = number(value, what, "fd:3")?;
                match RawFd::try_from(value) {
                    Ok(fd) if fd > 2 => Ok(Self::Fd(fd)),
                    _ => Err(format!("`{value}` is not {what}; write `fd:3`")),
                }
            }
            _ => Err(format!(
                "`{text}` is not a place to listen; write `vsock:PORT`, `unix:PATH` or `fd:N`"
            )),
        }
    }
}

/// A listening socket of the agent.
#[derive(Debug)]
pub enum Acceptor {
    /// Unix socket.
    Unix(UnixListener),
    /// AF_VSOCK.
    Vsock(VsockListener),
}

impl Acceptor {
    /// The next connection and the peer's CID, if it has one. Cancel-safe.
    ///
    /// # Errors
    /// As accept(2). Most pass (EMFILE, ECONNABORTED): pause and call again.
    pub async fn accept(&mut self) -> io::Result<(Stream, Option<u32>)> {
        match self {
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Stream::Unix(stream), None))
            }
            Self::Vsock(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((Stream::Vsock(stream), Some(peer.cid())))
            }
        }
    }
}

/// How often the lock of a directory is tried for, and the pause in between: whoever has it makes a
/// socket, which takes microseconds, or keeps others away, which must not hold us for long.
const LOCK_TRIES: (usize, Duration) = (500, Duration::from_millis(1));

/// Binds a Unix socket at `path` with mode 0600, replacing a stale one.
pub(super) fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    let address = SocketAddrUnix::new(path)?;
    let socket = unix_socket()?;
    let _lock = lock_directory(path);
    // On a socket that is not bound yet, this is the mode its file will be born with
    // (unix_bind, net/unix/af_unix.c): there is no moment with a wider one.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    match rustix::net::bind(&socket, &address) {
        Err(Errno::ADDRINUSE) => {
            remove_stale(path, &address)?;
            rustix::net::bind(&socket, &address)?;
        }
        bound => bound?,
    }
    rustix::net::listen(&socket, BACKLOG)?;
    UnixListener::from_std(socket.into())
}

/// A lock of the directory of `path`, which ends when it is dropped: of two that find a stale file,
/// or one that is bound and not listened on yet, the later would remove what the earlier has made.
/// None where it cannot be had: then that can happen.
fn lock_directory(path: &Path) -> Option<std::fs::File> {
    let dir = match path.parent() {
        Some(dir) if dir != Path::new("") => dir,
        _ => Path::new("."),
    };
    let dir = std::fs::File::open(dir).ok()?;
    let (tries, pause) = LOCK_TRIES;
    for _ in 0..tries {
        match rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Some(dir),
            Err(Errno::WOULDBLOCK) => std::thread::sleep(pause),
            Err(_) => break,
        }
    }
    tracing::debug!(path = %path.display(), "made without a lock of its directory");
    None
}

fn unix_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    Ok(socket)
}

/// Removes the socket file at `path` if nobody listens on it.
fn remove_stale(path: &Path, address: &SocketAddrUnix) -> io::Result<()> {
    let in_use = |why: &str| {
        let message = format!("{}: {why}", path.display());
        Err(io::Error::new(io::ErrorKind::AddrInUse, message))
    };
    if !path.symlink_metadata()?.file_type().is_socket() {
        return in_use("a file that is not a socket is in the way");
    }
    match rustix::net::connect(&unix_socket()?, address) {
        Err(Errno::CONNREFUSED) => std::fs::remove_file(path),
        Err(Errno::NOENT) => Ok(()),
        // EAGAIN is a full backlog: alive, too.
        Ok(()) | Err(Errno::AGAIN) => in_use("another process listens there"),
        Err(other) => Err(other.into()),
    }
}

/// A listener from the inherited descriptor `number`.
fn inherit(number: RawFd) -> io::Result<Acceptor> {
    let wrong = |why: &str| {
        let message = format!("fd:{number} {why}");
        io::Error::new(io::ErrorKind::InvalidInput, message)
    };
    // SAFETY: the borrow ends with this function and is only handed to system calls that
    // answer EBADF (or ENOTSOCK) for a number that is not open (or not a socket).
    let inherited = unsafe { BorrowedFd::borrow_raw(number) };
    let own = rustix::io::fcntl_dupfd_cloexec(inherited, 3)
        .map_err(|e| wrong(&format!("cannot be used: {}", io::Error::from(e))))?;
    if !sockopt::socket_acceptconn(&own).unwrap_or(false) {
        return Err(wrong("is not a listening socket"));
    }
    rustix::io::fcntl_setfd(inherited, rustix::io::FdFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&own, true)?;
    match sockopt::socket_domain(&own)? {
        AddressFamily::UNIX => UnixListener::from_std(own.into()).map(Acceptor::Unix),
        AddressFamily::VSOCK => Ok(Acceptor::Vsock(own.into())),
        _ => Err(wrong("is neither a Unix nor a vsock socket")),
    }
}
