//! Kind `namespace`: namespaces on this machine, from rum's side.
//!
//! rum binds the agent's two sockets in the runtime directory. It passes them on, listening,
//! through keeper and init to the agent (see [`crate::guest::process`]). So the sockets exist
//! before the agent, and a client that dials while the agent restarts waits in their backlog.
//!
//! The pipe to the keeper is the lifeline: the guest lives as long as rum keeps it open.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rum_shared::netns::NetCookie;
use rum_shared::transport::Endpoint;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::FdFlags;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::{GuestEnd, GuestError, Stopped};
use crate::descriptors;
use crate::guest::process::enter::Job;
use crate::guest::process::status::{MAX_LINE, Status};
use crate::guest::process::{ENTER, Failure, KEEPER, SELF, TERMINATE};
use crate::runtime_dir::isolation::Isolation;
use crate::runtime_dir::{self, ProcessId, RuntimeDir};
use crate::signals;
use crate::stack;

/// Setting up takes milliseconds. A machine that needs longer than this has a problem.
const START_DEADLINE: Duration = Duration::from_secs(20);
/// How long to wait for a killed process. Only a process stuck in the kernel takes longer.
const KILL_DEADLINE: Duration = Duration::from_secs(10);
/// Connections that may wait for the agent: the default of net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// A running guest.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    isolation: Isolation,
    dir: PathBuf,
    /// Reading end of the pipe that init closes first when the guest ends.
    alive: OwnedFd,
    keeper: Child,
    lifeline: Option<ChildStdin>,
    status: StatusLines,
    init: ProcessId,
    pidfd: AsyncFd<OwnedFd>,
    end: Option<GuestEnd>,
    /// The socket files of the agent.
    _places: [OwnedFd; 2],
}

impl Namespace {
    /// Starts the guest in `dir`.
    pub async fn start(
        dir: &RuntimeDir,
        isolation: Isolation,
        agent_args: &[String],
    ) -> Result<(Endpoint, Self), GuestError> {
        let rpc = listen(&dir.rpc_socket())?;
        let channel = listen(&dir.channel_socket())?;
        let pinned = |path| pin(path).map_err(io_error("make the agent's sockets"));
        let places = [pinned(dir.rpc_socket())?, pinned(dir.channel_socket())?];
        let lock = dir.lock().map_err(io_error("keep the lock"))?;
        let mut command = Command::new(SELF);
        command
            .arg0("rum")
            .arg(KEEPER)
            .arg(dir.path())
            .args([lock.as_fd(), rpc.as_fd(), channel.as_fd()].map(|fd| fd.as_raw_fd().to_string()))
            .arg(isolation.word())
            .args(agent_args)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        inherit(&mut command, &[lock.as_fd(), rpc.as_fd(), channel.as_fd()]);
        let mut keeper = command
            .spawn()
            .map_err(io_error("start the guest's keeper"))?;
        let lifeline = keeper.stdin.take();
        let stdout = keeper.stdout.take().expect("its standard output is a pipe");
        let mut status = StatusLines::new(stdout);

        // Our copies of the sockets are closed on return: once the agent and its parents are gone,
        // dialling fails.
        let (init, net) = tokio::time::timeout(START_DEADLINE, status.started())
            .await
            .unwrap_or_else(|_| Err(failure("its helper processes do not answer")))
            .map_err(GuestError::Setup)?;
        let ended = |_| GuestError::Setup(failure("it ended at once"));
        let init = ProcessId::of(init).map_err(ended)?;
        let pidfd = init.open().map_err(ended)?;
        if !keeper.id().is_some_and(|keeper| init.is_child_of(keeper)) {
            return Err(ended(io::ErrorKind::NotFound.into()));
        }
        // SAFETY: an `OwnedFd` keeps its descriptor number, and the `AsyncFd` owns it.
        let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }
            .map_err(|error| io_error("watch the guest")(error.into()))?;
        let alive = runtime_dir::open_alive(dir.path()).map_err(io_error("watch the guest"))?;
        let [rpc, channel] = places.each_ref().map(in_proc);
        let this = Self {
            name: dir.name().to_owned(),
            isolation,
            dir: dir.path().to_owned(),
            alive,
            keeper,
            lifeline,
            status,
            init,
            pidfd,
            end: None,
            _places: places,
        };
        let endpoint = Endpoint::Unix { rpc, channel, net };
        Ok((endpoint, this))
    }

    /// The guest's first process.
    pub fn init(&self) -> ProcessId {
        self.init
    }

    /// As [`super::Guest::spawn`].
    pub fn spawn(&self, command: &[OsString], workdir: &Path) -> Result<Child, GuestError> {
        let entrance = Entrance {
            name: &self.name,
            dir: &self.dir,
            init: self.pidfd.get_ref().as_fd(),
            isolation: self.isolation,
        };
        let enter = entrance.command(Job::Shared, workdir, command)?;
        Command::from(enter)
            .spawn()
            .map_err(io_error("start a command in the guest"))
    }

    /// As [`super::Guest::is_ending`].
    pub fn is_ending(&self) -> bool {
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // Ready (POLLHUP) once the pipe has no writer.
        let mut fds = [PollFd::new(&self.alive, PollFlags::empty())];
        poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
    }

    /// As [`super::Guest::ended`].
    pub async fn ended(&mut self) -> GuestEnd {
        if let Some(end) = &self.end {
            return end.clone();
        }
        // Wait for the pidfd and the keeper: a killed keeper is gone before the processes inside
        // are.
        let _ = self.pidfd.readable().await;
        // Its end of file also wakes a stopped keeper.
        self.lifeline = None;
        let keeper = self.keeper.wait().await;
        let reason = match (self.status.ended().await, keeper) {
            (Some(text), _) => format!("its init {text}"),
            (None, Ok(status)) => format!("its keeper ended ({status})"),
            (None, Err(_)) => "its keeper is gone".to_owned(),
        };
        self.end
            .insert(GuestEnd {
                reason,
                by_itself: false,
            })
            .clone()
    }

    /// As [`super::Guest::stop`].
    pub async fn stop(mut self, deadline: Duration) -> Stopped {
        if let Some(lifeline) = &mut self.lifeline {
            // The write fails only if the keeper has ended.
            let _ = lifeline.write_all(&[TERMINATE]).await;
        }
        if tokio::time::timeout(deadline, self.ended()).await.is_ok() {
            return Stopped::Clean;
        }
        self.lifeline = None;
        match tokio::time::timeout(KILL_DEADLINE, self.ended()).await {
            Ok(_) => Stopped::Killed,
            Err(_) => Stopped::Stuck,
        }
    }
}

fn failure(message: &str) -> Failure {
    Failure {
        message: message.to_owned(),
        hint: None,
    }
}

pub(super) fn io_error(action: &'static str) -> impl FnOnce(io::Error) -> GuestError {
    move |source| GuestError::Io { action, source }
}

fn listen(path: &Path) -> Result<UnixListener, GuestError> {
    let bind = || {
        // Only this user can enter the directory, so the mode does not matter until it is set.
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        rustix::net::listen(&listener, BACKLOG)?;
        Ok(listener)
    };
    bind().map_err(io_error("make the agent's sockets"))
}

/// Opens the socket file. The descriptor can be dialled even when no path leads to the file any
/// more, so removing the runtime directory does not break the forwards.
fn pin(path: PathBuf) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

fn in_proc(file: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// Lets the child of `command`, and no other child, keep `fds` under their numbers.
pub(super) fn inherit(command: &mut Command, fds: &[BorrowedFd<'_>]) {
    inherit_std(command.as_std_mut(), fds);
}

fn inherit_std(command: &mut std::process::Command, fds: &[BorrowedFd<'_>]) {
    use std::os::unix::process::CommandExt;
    let numbers: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let keep = move || {
        for number in &numbers {
            // SAFETY: the child has the descriptors that were open at the fork; for any other,
            // fcntl fails.
            let fd = unsafe { BorrowedFd::borrow_raw(*number) };
            rustix::io::fcntl_setfd(fd, FdFlags::empty())?;
        }
        signals::restore();
        stack::restore()?;
        descriptors::restore()
    };
    // SAFETY: between fork and exec of a multi-threaded process only async-signal-safe calls are
    // allowed: this makes a few system calls, allocates nothing and takes no lock.
    unsafe { command.pre_exec(keep) };
}

/// What is needed to enter a guest.
#[derive(Debug)]
pub struct Entrance<'a> {
    /// The guest's name.
    pub name: &'a str,
    /// Its runtime directory.
    pub dir: &'a Path,
    /// A pidfd of its first process.
    pub init: BorrowedFd<'a>,
    /// How far the guest is isolated.
    pub isolation: Isolation,
}

impl Entrance<'_> {
    /// The command line that runs `command` in the guest, in `workdir` or, if that is empty, in the
    /// caller's working directory.
    pub fn command(
        &self,
        job: Job,
        workdir: &Path,
        command: &[OsString],
    ) -> Result<std::process::Command, GuestError> {
        use std::os::unix::process::CommandExt;
        if command.is_empty() {
            return Err(GuestError::NoCommand);
        }
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => GuestError::NoWayIn {
                name: self.name.to_owned(),
            },
            _ => io_error("enter the guest")(error),
        };
        let alive = runtime_dir::open_alive(self.dir).map_err(failed)?;
        let workdir = if workdir.as_os_str().is_empty() {
            PathBuf::new()
        } else {
            std::path::absolute(workdir).map_err(io_error("find the directory"))?
        };
        let mut enter = std::process::Command::new(SELF);
        enter
            .arg0("rum")
            .arg(ENTER)
            .args([self.init, alive.as_fd()].map(|fd| fd.as_raw_fd().to_string()))
            .args([job.word(), &self.isolation.word()])
            .arg(workdir)
            .arg(self.name)
            .args(command);
        inherit_std(&mut enter, &[self.init, alive.as_fd()]);
        let hold = move || {
            // Keeps the pipe open as long as the `Command` lives.
            let _ = &alive;
            Ok(())
        };
        // SAFETY: the closure does nothing.
        unsafe { enter.pre_exec(hold) };
        Ok(enter)
    }
}

/// The status lines of keeper and init, see [`crate::guest::process::status`].
#[derive(Debug)]
pub(super) struct StatusLines {
    pipe: ChildStdout,
    buffer: Vec<u8>,
}

impl StatusLines {
    pub(super) fn new(pipe: ChildStdout) -> Self {
        Self {
            pipe,
            buffer: Vec::new(),
        }
    }

    /// The next line; None at the end of the pipe or after a line that is not a status line.
    /// Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<Status> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<_> = self.buffer.drain(..=end).collect();
                return Status::parse(std::str::from_utf8(&line[..end]).ok()?);
            }
            if self.buffer.len() >= MAX_LINE {
                return None;
            }
            match self.pipe.read_buf(&mut self.buffer).await {
                Ok(1..) => {}
                _ => return None,
            }
        }
    }

    /// Init's id and the guest's network namespace, once the helpers report that everything is set
    /// up.
    async fn started(&mut self) -> Result<(u32, Option<NetCookie>), Failure> {
        let (mut init, mut net, mut ready) = (None, None, false);
        loop {
            if let (Some(init), true) = (init, ready) {
                return Ok((init, net));
            }
            match self.next().await {
                Some(Status::Init(pid)) => init = Some(pid),
                Some(Status::Net(cookie)) => net = Some(NetCookie(cookie)),
                Some(Status::Ready) => ready = true,
                Some(Status::Error(message)) => {
                    let hint = match self.next().await {
                        Some(Status::Hint(hint)) => Some(hint),
                        _ => None,
                    };
                    return Err(Failure { message, hint });
                }
                Some(Status::Hint(_)) => {}
                Some(Status::Ended(text)) => return Err(failure(&format!("its init {text}"))),
                None => return Err(failure("its helper processes ended without a word")),
            }
        }
    }

    /// The reason of the end, as the helpers report it.
    async fn ended(&mut self) -> Option<String> {
        while let Some(status) = self.next().await {
            if let Status::Ended(text) = status {
                return Some(text);
            }
        }
        None
    }
}
