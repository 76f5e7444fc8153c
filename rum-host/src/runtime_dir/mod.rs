//! The runtime directory of a guest: it has the guest's sockets, and other `rum` processes find the
//! guest by it.
//!
//! Each guest has one directory, `BASE/NAME`, with mode 0700 and owned by this user. BASE is
//!
//! 1. `$RUM_RUNTIME_DIR`, if set;
//! 2. `/run/rum` for root;
//! 3. `$XDG_RUNTIME_DIR/rum`, if that is set and owned by this user;
//! 4. `/run/user/UID/rum`, if `/run/user/UID` exists and is owned by this user;
//! 5. `/tmp/rum-UID`.
//!
//! A directory is in use only while its `lock` file is locked with flock(2). `rum up` takes the
//! lock and passes the open file to the guest's keeper, so the lock is held until both are gone.
//! The next owner of the lock may take over whatever a dead predecessor left.
//!
//! Invariants: rum uses nothing in a directory that is a symlink, belongs to another user or is
//! accessible to others. Only a holder of the lock removes files, and only through the directory
//! that it opened, so it cannot remove those of a successor.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags};

mod base;
mod error;
pub mod isolation;
mod kept;
mod process_id;
mod running;
#[cfg(test)]
mod tests;

pub(crate) use base::{INSIDE, inside, to_hide};
pub use base::{base, passed_over};
pub use error::RuntimeDirError;
use error::io_error;
pub use kept::Mended;
pub use process_id::ProcessId;
pub use running::{RunningGuest, list, list_in};

use crate::runtime_dir::isolation::Isolation;

/// Longest name of a guest, in bytes.
pub const MAX_NAME: usize = 64;
/// Longest path that fits into `sockaddr_un.sun_path` with its final NUL (unix(7)).
pub const MAX_SOCKET_PATH: usize = 107;
/// How long a new `rum up` waits until the keeper of a dead predecessor releases the lock. That
/// takes milliseconds, and longer on a loaded machine.
const LOCK_WAIT: Duration = Duration::from_secs(2);
/// Pause between two attempts at a lock that is about to be released.
const LOCK_PAUSE: Duration = Duration::from_millis(10);
/// Longest content that is read from a file; none of rum's files is longer.
const MAX_FILE: usize = 4096;

const LOCK: &str = "lock";
const STATE: &str = "guest";
const STATE_NEW: &str = "guest.new";
const RPC: &str = "agent-rpc.sock";
const CHANNEL: &str = "agent-channel.sock";
const CONTROL: &str = "control.sock";
const STREAMS: &str = "streams.sock";
const QMP: &str = "qmp.sock";
/// A pipe whose writing end a namespace guest's init holds for as long as it lives.
const ALIVE: &str = "alive";
const CONSOLE: &str = "console.sock";
const CONSOLE_LOCK: &str = "console.lock";
const VHOST: &str = "vhost.sock";
const VSOCK: &str = "vm.vsock";
/// The socket on which the agent of a VM knocks (see `rum_shared::transport`).
const KNOCK: &str = "vm.vsock_2224";
/// All files that rum creates in the directory. `lock` is last, since it guards the others.
const FILES: [&str; 14] = [
    ALIVE,
    RPC,
    CHANNEL,
    CONTROL,
    STREAMS,
    QMP,
    CONSOLE,
    CONSOLE_LOCK,
    VHOST,
    VSOCK,
    KNOCK,
    STATE,
    STATE_NEW,
    LOCK,
];

/// Checks that `name` is valid for a guest: 1 to [`MAX_NAME`] of `[A-Za-z0-9._-]`, not starting
/// with a dot.
pub fn check_name(name: &str) -> Result<(), RuntimeDirError> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let fits = (1..=MAX_NAME).contains(&name.len());
    if fits && !name.starts_with('.') && name.bytes().all(good) {
        return Ok(());
    }
    Err(RuntimeDirError::Name {
        name: name.to_owned(),
    })
}

/// The runtime directory of a guest, locked by this process. Dropping it removes the directory.
#[derive(Debug)]
pub struct RuntimeDir {
    name: String,
    path: PathBuf,
    held: Mutex<Held>,
    /// The state that was published last.
    state: Mutex<Option<String>>,
}

/// The open directory and its lock.
#[derive(Debug)]
struct Held {
    dir: OwnedFd,
    lock: OwnedFd,
}

impl RuntimeDir {
    /// Creates the directory of the guest `name`, or takes over that of a dead one. May sleep for
    /// `LOCK_WAIT` while the helpers of a `rum` that has just died exit.
    pub fn create(name: &str) -> Result<Self, RuntimeDirError> {
        Self::create_in(&base(), name)
    }

    /// As [`RuntimeDir::create`], below `base`.
    pub fn create_in(base: &Path, name: &str) -> Result<Self, RuntimeDirError> {
        check_name(name)?;
        let base = std::path::absolute(base).map_err(|source| RuntimeDirError::Io {
            action: "find",
            path: base.to_owned(),
            source,
        })?;
        let path = base.join(name);
        let longest = path.join(CHANNEL);
        if longest.as_os_str().len() > MAX_SOCKET_PATH {
            return Err(RuntimeDirError::TooLong { path: longest });
        }
        private_dir(&base)?;
        let (dir, lock) = take(name, &path)?;
        if kept::is_live(&path) {
            let (name, pid) = (name.to_owned(), None);
            return Err(RuntimeDirError::Running { name, pid });
        }
        for file in FILES.iter().filter(|file| **file != LOCK) {
            // A missing file needs no removal; a file that cannot be removed fails at its bind.
            let _ = rustix::fs::unlinkat(&dir, *file, AtFlags::empty());
        }
        let this = Self {
            name: name.to_owned(),
            path,
            held: Mutex::new(Held { dir, lock }),
            state: Mutex::default(),
        };
        this.sign(&this.held())?;
        Ok(this)
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // Nothing between two writes under the lock can panic.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes this process's id into the lock file.
    fn sign(&self, held: &Held) -> Result<(), RuntimeDirError> {
        let me = ProcessId::current().map_err(self.io("write", LOCK))?;
        rustix::fs::ftruncate(&held.lock, 0)
            .and_then(|()| rustix::io::pwrite(&held.lock, format!("{me}\n").as_bytes(), 0))
            .map_err(|source| self.io("write", LOCK)(source.into()))?;
        Ok(())
    }

    fn io(
        &self,
        action: &'static str,
        file: &str,
    ) -> impl FnOnce(io::Error) -> RuntimeDirError + use<> {
        let path = self.path.join(file);
        move |source| RuntimeDirError::Io {
            action,
            path,
            source,
        }
    }

    /// The guest's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The directory, an absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The socket on which the agent of a namespace guest accepts RPC connections.
    pub fn rpc_socket(&self) -> PathBuf {
        self.path.join(RPC)
    }

    /// The socket on which the agent of a namespace guest accepts forward channels.
    pub fn channel_socket(&self) -> PathBuf {
        self.path.join(CHANNEL)
    }

    /// The socket on which `rum up` answers other `rum` processes.
    pub fn control_socket(&self) -> PathBuf {
        self.path.join(CONTROL)
    }

    /// The socket on which `rum up` gives other `rum` processes connections into a VM.
    pub fn streams_socket(&self) -> PathBuf {
        self.path.join(STREAMS)
    }

    /// The socket on which a VM's QEMU accepts commands.
    pub fn qmp_socket(&self) -> PathBuf {
        self.path.join(QMP)
    }

    /// The socket of a VM's serial console.
    pub fn console_socket(&self) -> PathBuf {
        self.path.join(CONSOLE)
    }

    /// The socket between QEMU and the VM's vsock device, if that is a separate process.
    pub fn vhost_socket(&self) -> PathBuf {
        self.path.join(VHOST)
    }

    /// The socket on which that device accepts connections to the VM.
    pub fn vsock_socket(&self) -> PathBuf {
        self.path.join(VSOCK)
    }

    /// A duplicate of the lock, for the helper that must outlive this process.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(crate) fn lock(&self) -> io::Result<OwnedFd> {
        self.held().lock.try_clone()
    }

    /// Publishes atomically what other processes need to enter the guest.
    pub fn publish(
        &self,
        kind: &str,
        inside: Option<(ProcessId, Isolation)>,
    ) -> Result<(), RuntimeDirError> {
        let mut text = format!("kind {kind}\n");
        if let Some((init, isolation)) = inside {
            text.push_str(&format!("init {init}\nisolation {}\n", isolation.word()));
        }
        self.write_state(&text)?;
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
        Ok(())
    }

    fn write_state(&self, text: &str) -> Result<(), RuntimeDirError> {
        let new = self.path.join(STATE_NEW);
        fs::File::create(&new)
            .and_then(|mut file| {
                // Whatever the umask: other processes of this user read it.
                file.set_permissions(fs::Permissions::from_mode(0o600))?;
                file.write_all(text.as_bytes())
            })
            .and_then(|()| fs::rename(&new, self.path.join(STATE)))
            .map_err(self.io("write", STATE))
    }
}

impl Drop for RuntimeDir {
    fn drop(&mut self) {
        clean(self.held().dir.as_fd(), CWD, &self.path);
    }
}

/// Removes all of rum's files from `dir`, and the directory itself at `path` relative to `base`.
/// Errors are ignored: the next owner of the name takes over what is left.
pub(crate) fn clean(dir: BorrowedFd<'_>, base: BorrowedFd<'_>, path: &Path) {
    for file in FILES {
        let _ = rustix::fs::unlinkat(dir, file, AtFlags::empty());
    }
    // A successor's directory has its lock in it, or the successor recreates it: rmdir harms
    // neither.
    let _ = rustix::fs::unlinkat(base, path, AtFlags::REMOVEDIR);
}

/// Opens the directory that contains the guest's directory `path`. Also returns the guest's name in
/// it.
pub(crate) fn open_base(path: &Path) -> Result<(OwnedFd, &Path), RuntimeDirError> {
    let (Some(base), Some(name)) = (path.parent(), path.file_name()) else {
        let name = path.display().to_string();
        return Err(RuntimeDirError::Name { name });
    };
    let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
    let base = rustix::fs::open(base, flags, Mode::empty()).map_err(io_error("open", base))?;
    Ok((base, Path::new(name)))
}

/// Creates the pipe that shows whether the guest lives, and opens it. It is opened for reading too,
/// as opening it only for writing would wait for a reader (fifo(7)).
pub(crate) fn make_alive(dir: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    let mode = Mode::RUSR | Mode::WUSR;
    rustix::fs::mkfifoat(dir, ALIVE, mode)?;
    // Whatever the umask.
    rustix::fs::chmodat(dir, ALIVE, mode, AtFlags::empty())?;
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, ALIVE, flags, Mode::empty())
}

/// Opens the pipe of the guest with the directory `path` for reading, once for each reader.
///
/// # Errors
/// As open(2); the guest has no such pipe.
pub(crate) fn open_alive(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path.join(ALIVE), flags, Mode::empty())?)
}

/// Opens `path` as a directory that is safe to use.
pub(crate) fn open_private(path: &Path) -> Result<OwnedFd, RuntimeDirError> {
    let refuse = |problem: String| RuntimeDirError::Unsafe {
        path: path.to_owned(),
        problem,
    };
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| match error {
        rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP => {
            refuse("is not a directory, or is a symbolic link".to_owned())
        }
        error => io_error("open", path)(error),
    })?;
    let stat = rustix::fs::fstat(&dir).map_err(io_error("look at", path))?;
    if stat.st_uid != rustix::process::geteuid().as_raw() {
        return Err(refuse(format!(
            "belongs to another user (uid {})",
            stat.st_uid
        )));
    }
    let mode = stat.st_mode & 0o7777;
    if mode & 0o077 != 0 {
        return Err(refuse(format!(
            "may be entered by others (its mode is {mode:04o}, not 0700)"
        )));
    }
    Ok(dir)
}

/// Creates `path`, or opens it if it exists and is safe to use.
pub(crate) fn private_dir(path: &Path) -> Result<OwnedFd, RuntimeDirError> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => Err(RuntimeDirError::Io {
            action: "create",
            path: path.to_owned(),
            source,
        }),
        _ => {
            allow_owner(path).map_err(io_error("open", path))?;
            open_private(path)
        }
    }
}

/// Gives the owner of the directory `path`, which is this user, the rights that a umask such as
/// 0777 removed at its creation. No other user has any rights there.
fn allow_owner(path: &Path) -> rustix::io::Result<()> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::PATH | OFlags::CLOEXEC;
    let Ok(dir) = rustix::fs::open(path, flags, Mode::empty()) else {
        // Opening it reports what is wrong.
        return Ok(());
    };
    let stat = rustix::fs::fstat(&dir)?;
    let ours = stat.st_uid == rustix::process::geteuid().as_raw();
    if ours && stat.st_mode & 0o077 == 0 && stat.st_mode & 0o700 != 0o700 {
        // fchmod(2) refuses a descriptor that was opened with O_PATH.
        let path = format!("/proc/self/fd/{}", dir.as_raw_fd());
        rustix::fs::chmod(path, Mode::RWXU)?;
    }
    Ok(())
}

/// Creates or opens the lock file in `dir`, which is at `path`.
fn open_lock(dir: &OwnedFd, path: &Path) -> Result<OwnedFd, RuntimeDirError> {
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    rustix::fs::openat(dir, LOCK, flags, mode)
        .and_then(|lock| {
            // Whatever the umask: other processes of this user read it.
            rustix::fs::fchmod(&lock, mode)?;
            Ok(lock)
        })
        .map_err(io_error("open", &path.join(LOCK)))
}

/// Creates or opens the directory and takes its lock.
fn take(name: &str, path: &Path) -> Result<(OwnedFd, OwnedFd), RuntimeDirError> {
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        let attempt = private_dir(path).and_then(|dir| match open_lock(&dir, path) {
            Ok(lock) => Ok((dir, lock)),
            Err(error) => {
                // Without a lock the directory is useless. rmdir keeps it if it has contents.
                let _ = rustix::fs::unlinkat(CWD, path, AtFlags::REMOVEDIR);
                Err(error)
            }
        });
        let late = Instant::now() >= deadline;
        match attempt {
            Ok((dir, lock)) => {
                match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                    // The lock of a directory that was removed meanwhile is worthless.
                    Ok(()) if is_at(&lock, &dir) => return Ok((dir, lock)),
                    Ok(()) => {}
                    Err(rustix::io::Errno::WOULDBLOCK) => {
                        let holder = read_holder(&lock);
                        if late || holder.is_some_and(|holder| holder.is_alive()) {
                            return Err(RuntimeDirError::Running {
                                name: name.to_owned(),
                                pid: holder.map(|holder| holder.pid()),
                            });
                        }
                    }
                    Err(error) => return Err(io_error("lock", path)(error)),
                }
            }
            // The last owner removed it between two of our steps.
            Err(RuntimeDirError::Io { source, .. })
                if source.kind() == io::ErrorKind::NotFound
                    && !late
                    && path.parent().is_some_and(Path::exists) => {}
            Err(error) => return Err(error),
        }
        std::thread::sleep(LOCK_PAUSE);
    }
}

/// Whether `lock` is the lock file of the directory.
pub(crate) fn is_at(lock: &OwnedFd, dir: &OwnedFd) -> bool {
    let ours = rustix::fs::fstat(lock);
    let there = rustix::fs::statat(dir, LOCK, AtFlags::SYMLINK_NOFOLLOW);
    matches!((ours, there), (Ok(a), Ok(b)) if (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
}

fn read_text(file: impl AsFd) -> String {
    let mut buffer = [0; MAX_FILE];
    let length = rustix::io::pread(file, &mut buffer, 0).unwrap_or(0);
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

fn read_holder(lock: &OwnedFd) -> Option<ProcessId> {
    read_text(lock).trim().parse().ok()
}
