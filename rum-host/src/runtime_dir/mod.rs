//! The runtime directory of a guest: where its sockets are and how two `rum` find each other.
//!
//! One directory a guest, `BASE/NAME`, mode 0700 and ours; BASE is
//!
//! 1. `$RUM_RUNTIME_DIR`, if set;
//! 2. `/run/rum` for root;
//! 3. `$XDG_RUNTIME_DIR/rum`, if that is set and ours;
//! 4. `/run/user/UID/rum`, if `/run/user/UID` exists and is ours;
//! 5. `/tmp/rum-UID`.
//!
//! A directory counts only while its `lock` file is held with flock(2). `rum up` takes the lock
//! and hands the open file down to the guest's keeper, so that it is held until both are gone:
//! whoever gets it may take over whatever a dead predecessor left.
//!
//! Invariants: nothing of a directory is used that is a symlink, belongs to another user or that
//! others may enter. Only a holder of the lock removes files, and only through the directory it
//! opened, so that it cannot hit those of a successor.

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
/// How long a new `rum up` waits for the keeper of a dead predecessor to let go of the lock. It
/// takes milliseconds; a loaded machine gets more.
const LOCK_WAIT: Duration = Duration::from_secs(2);
/// Pause between two looks at a lock that is about to become free.
const LOCK_PAUSE: Duration = Duration::from_millis(10);
/// No file of ours is longer: what is read from them is cut here.
const MAX_FILE: usize = 4096;

const LOCK: &str = "lock";
const STATE: &str = "guest";
const STATE_NEW: &str = "guest.new";
const RPC: &str = "agent-rpc.sock";
const CHANNEL: &str = "agent-channel.sock";
const CONTROL: &str = "control.sock";
const STREAMS: &str = "streams.sock";
const QMP: &str = "qmp.sock";
/// The pipe of which a namespace guest's init has the writing end, for as long as it lives.
const ALIVE: &str = "alive";
const CONSOLE: &str = "console.sock";
const CONSOLE_LOCK: &str = "console.lock";
const VHOST: &str = "vhost.sock";
const VSOCK: &str = "vm.vsock";
/// Where the agent of a VM knocks (see `rum_shared::transport`).
const KNOCK: &str = "vm.vsock_2224";
/// Everything rum ever creates in the directory; `lock` is last, since it guards the others.
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

/// Whether `name` may name a guest: 1 to [`MAX_NAME`] of `[A-Za-z0-9._-]`, not a dot first.
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

/// The runtime directory of a guest of ours, held until this is dropped, which removes it.
#[derive(Debug)]
pub struct RuntimeDir {
    name: String,
    path: PathBuf,
    held: Mutex<Held>,
    /// What was published last.
    state: Mutex<Option<String>>,
}

/// What makes it ours.
#[derive(Debug)]
struct Held {
    dir: OwnedFd,
    lock: OwnedFd,
}

impl RuntimeDir {
    /// Makes the directory of the guest `name`, or takes over that of a dead one. May sleep for
    /// [`LOCK_WAIT`] while the helpers of a `rum` that has just died go away.
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
            // What is missing needs no removing; what cannot be removed fails at its bind.
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
        // Nothing that can panic is done between two writes under the lock.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes into the lock who holds it.
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

    /// Where the agent of a namespace guest takes RPC connections.
    pub fn rpc_socket(&self) -> PathBuf {
        self.path.join(RPC)
    }

    /// Where the agent of a namespace guest takes forward channels.
    pub fn channel_socket(&self) -> PathBuf {
        self.path.join(CHANNEL)
    }

    /// Where `rum up` answers other `rum` processes.
    pub fn control_socket(&self) -> PathBuf {
        self.path.join(CONTROL)
    }

    /// Where `rum up` gives them connections into a VM.
    pub fn streams_socket(&self) -> PathBuf {
        self.path.join(STREAMS)
    }

    /// Where the QEMU of a VM takes commands.
    pub fn qmp_socket(&self) -> PathBuf {
        self.path.join(QMP)
    }

    /// Where a VM's serial console is.
    pub fn console_socket(&self) -> PathBuf {
        self.path.join(CONSOLE)
    }

    /// Between QEMU and the VM's vsock device, where that is a process of its own.
    pub fn vhost_socket(&self) -> PathBuf {
        self.path.join(VHOST)
    }

    /// Where that device takes connections to the VM.
    pub fn vsock_socket(&self) -> PathBuf {
        self.path.join(VSOCK)
    }

    /// The lock, to be inherited by the helper that must outlive us.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub(crate) fn lock(&self) -> io::Result<OwnedFd> {
        self.held().lock.try_clone()
    }

    /// Publishes what others need to enter the guest, at once or not at all.
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
                // Whatever the umask says: others of this user read it.
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

/// Removes everything of ours from `dir`, and the directory itself if it is `path`, which starts at
/// `base`. Errors are of no use here: the next owner of the name takes over what is left.
pub(crate) fn clean(dir: BorrowedFd<'_>, base: BorrowedFd<'_>, path: &Path) {
    for file in FILES {
        let _ = rustix::fs::unlinkat(dir, file, AtFlags::empty());
    }
    // A successor's directory has its lock in it, or it makes a new one: rmdir hurts neither.
    let _ = rustix::fs::unlinkat(base, path, AtFlags::REMOVEDIR);
}

/// The directory in which the guest's directory `path` is, and the guest's name in it.
pub(crate) fn open_base(path: &Path) -> Result<(OwnedFd, &Path), RuntimeDirError> {
    let (Some(base), Some(name)) = (path.parent(), path.file_name()) else {
        let name = path.display().to_string();
        return Err(RuntimeDirError::Name { name });
    };
    let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
    let base = rustix::fs::open(base, flags, Mode::empty()).map_err(io_error("open", base))?;
    Ok((base, Path::new(name)))
}

/// Makes the pipe that says whether the guest lives, and opens it for writing. That is for reading as
/// well, or it would have to wait for a reader (fifo(7)).
pub(crate) fn make_alive(dir: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    let mode = Mode::RUSR | Mode::WUSR;
    rustix::fs::mkfifoat(dir, ALIVE, mode)?;
    // Whatever the umask says.
    rustix::fs::chmodat(dir, ALIVE, mode, AtFlags::empty())?;
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, ALIVE, flags, Mode::empty())
}

/// Opens the pipe of the guest with the directory `path` for reading, anew for each reader.
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

/// Makes `path`, or opens it if it is there and safe to use.
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

/// Gives the owner of the directory `path`, who is this user, the rights that a umask such as 0777
/// took away as it was made. Nobody else has any there.
fn allow_owner(path: &Path) -> rustix::io::Result<()> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::PATH | OFlags::CLOEXEC;
    let Ok(dir) = rustix::fs::open(path, flags, Mode::empty()) else {
        // What is wrong with it is said when it is opened.
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

/// Makes or opens the file of the lock in `dir`, which is at `path`.
fn open_lock(dir: &OwnedFd, path: &Path) -> Result<OwnedFd, RuntimeDirError> {
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    rustix::fs::openat(dir, LOCK, flags, mode)
        .and_then(|lock| {
            // Whatever the umask says: others of this user read it.
            rustix::fs::fchmod(&lock, mode)?;
            Ok(lock)
        })
        .map_err(io_error("open", &path.join(LOCK)))
}

/// Makes or opens the directory and takes its lock.
fn take(name: &str, path: &Path) -> Result<(OwnedFd, OwnedFd), RuntimeDirError> {
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        let attempt = private_dir(path).and_then(|dir| match open_lock(&dir, path) {
            Ok(lock) => Ok((dir, lock)),
            Err(error) => {
                // Of no use to anybody. One that has something in it stays.
                let _ = rustix::fs::unlinkat(CWD, path, AtFlags::REMOVEDIR);
                Err(error)
            }
        });
        let late = Instant::now() >= deadline;
        match attempt {
            Ok((dir, lock)) => {
                match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                    // The lock of a directory that was removed under our feet locks nothing.
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
            // Removed by its last owner between two of our steps.
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
