//! The keeper: makes a guest's namespaces and ensures that the guest ends with rum.
//!
//! The keeper is inside all of the guest's namespaces but the PID namespace, so it outlives every
//! process inside and cleans up after them. It waits for only two things: its lifeline and init.

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::SigSet;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, FdFlags};
use rustix::process::{Pid, PidfdFlags, Signal};

use super::mounts::Furnishing;
use super::status::Status;
use super::{
    Failure, INIT, KILL, SELF, TERMINATE, bad_arguments, number, open_descriptors, rights, setup,
    signals, waking,
};
use crate::runtime_dir;

/// Time for init to end when rum is gone: it kills everything inside and removes the shared memory
/// that is left, which takes milliseconds.
const KILL_DEADLINE: Duration = Duration::from_secs(1);

/// Runs the keeper: `DIR LOCK_FD RPC_FD CHANNEL_FD ISOLATION AGENT_ARGS…`.
pub fn run(args: Vec<OsString>) -> ExitCode {
    match keep(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.send();
            ExitCode::FAILURE
        }
    }
}

fn keep(args: Vec<OsString>) -> Result<(), Failure> {
    let mut args = args.into_iter();
    let path = args.next().ok_or_else(bad_arguments)?;
    let path = Path::new(&path);
    let lock = inherited(number(&mut args)?)?;
    let sockets = [number(&mut args)?, number(&mut args)?];
    let isolation = super::isolation(&mut args)?;
    let failed = |error| Failure::new("cannot open the runtime directory", error);
    let dir = runtime_dir::open_private(path).map_err(failed)?;
    // A directory that is not ours may hold files of somebody else, which the cleanup would remove.
    if !runtime_dir::is_at(&lock, &dir) {
        return Err(bad_arguments());
    }
    // Opened first: the guest's mounts, which become ours, hide the directory.
    let (base, name) = runtime_dir::open_base(path).map_err(failed)?;
    let kept = [dir.as_raw_fd(), base.as_raw_fd(), lock.as_raw_fd()];
    close_all_but(&[kept.as_slice(), sockets.as_slice()].concat())
        .map_err(|error| Failure::new("cannot look at /proc/self/fd", error))?;

    // Only SIGKILL and SIGSTOP end or stop the keeper, and no terminal sends it a signal.
    let _blocked = signals::watch(&SigSet::all())?;
    let _ = rustix::process::setsid();
    waking::by(rustix::stdio::stdin())
        .map_err(|error| Failure::new("cannot watch the lifeline", error))?;
    let alive = runtime_dir::make_alive(dir.as_fd())
        .map_err(|error| Failure::io("cannot make a pipe", &error.into()))?;

    let caller = setup::caller();
    let guest = setup::unshare(isolation.root).and_then(|()| {
        // After the id mapping: a non-dumpable process's /proc/self/uid_map belongs to root.
        rights::guard();
        if let Some(net) = setup::net_cookie() {
            Status::Net(net.0).send();
        }
        let [rpc, channel] = sockets.map(|fd| OsString::from(format!("fd:{fd}")));
        let mut agent = vec!["--rpc".into(), rpc, "--channel".into(), channel];
        agent.extend(args);
        let path = path.to_owned();
        let furnishing = Furnishing {
            isolation,
            path,
            caller,
        };
        start(alive, agent, furnishing)
    });
    let ended = guest.and_then(|(child, lifeline)| wait(child, lifeline));
    // Also when nothing was started: rum may be gone already. The lock is held until here, so no
    // other guest uses the directory.
    runtime_dir::clean(dir.as_fd(), base.as_fd(), name);
    drop(lock);
    Status::Ended(describe(ended?)).send();
    Ok(())
}

/// Closes the descriptors that rum's caller left open, which neither the keeper nor its children
/// need.
fn close_all_but(kept: &[i32]) -> std::io::Result<()> {
    for fd in open_descriptors()?.filter(|fd| !kept.contains(fd)) {
        // SAFETY: this process just begins and has opened none of them. The descriptor that read
        // the directory is closed by now; closing it again fails.
        unsafe { libc::close(fd) };
    }
    Ok(())
}

/// Takes over the inherited descriptor `fd` and marks it close-on-exec, so the guest does not get
/// it.
pub(super) fn inherited(fd: i32) -> Result<OwnedFd, Failure> {
    // SAFETY: used for one fcntl, which fails if the number is not open.
    rustix::io::fcntl_setfd(unsafe { BorrowedFd::borrow_raw(fd) }, FdFlags::CLOEXEC)
        .map_err(|_| bad_arguments())?;
    // SAFETY: it is open, as just checked, and nothing else in this process uses it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Starts init, which completes the setup between fork and exec. From then on only init has
/// `alive`.
fn start(
    alive: OwnedFd,
    agent: Vec<OsString>,
    furnishing: Furnishing,
) -> Result<(Child, ChildStdin), Failure> {
    let mut command = Command::new(SELF);
    command
        .arg0("rum")
        .arg(INIT)
        .arg(alive.as_raw_fd().to_string())
        .args(agent)
        .stdin(Stdio::piped());
    let enclose = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        rustix::io::fcntl_setfd(&alive, FdFlags::empty())?;
        setup::furnish(&furnishing).map_err(|failure| {
            failure.send();
            std::io::Error::other("reported")
        })
    };
    // SAFETY: this process has one thread, so its child may do whatever the parent could.
    unsafe { command.pre_exec(enclose) };
    let mut child = command
        .spawn()
        // If the child itself reported a failure, this is a second line: rum shows the first.
        .map_err(|error| Failure::io("cannot start the guest's init", &error))?;
    // The command holds our copy of the pipe.
    drop(command);
    Status::Init(child.id()).send();
    let lifeline = child.stdin.take().expect("its standard input is a pipe");
    Ok((child, lifeline))
}

/// Waits until init has ended, by itself or because rum is gone.
fn wait(mut child: Child, lifeline: ChildStdin) -> Result<ExitStatus, Failure> {
    let failed = |error: Errno| Failure::new("cannot watch the guest's init", error);
    let init = Pid::from_child(&child);
    let pidfd = rustix::process::pidfd_open(init, PidfdFlags::empty()).map_err(failed)?;
    let stdin = rustix::stdio::stdin();
    let mut kill_at = None;
    loop {
        let mut fds = [
            PollFd::new(&pidfd, PollFlags::IN),
            PollFd::new(&stdin, PollFlags::IN),
        ];
        let watched = if kill_at.is_none() { 2 } else { 1 };
        let left = kill_at.map(|at: Instant| at.saturating_duration_since(Instant::now()));
        // At most one second.
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut fds[..watched], timeout.as_ref()) {
            Ok(0) => {
                let _ = rustix::process::kill_process(init, Signal::KILL);
                break;
            }
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(failed(error)),
        }
        if !fds[0].revents().is_empty() {
            break;
        }
        match read_lifeline() {
            Some(TERMINATE) => {
                // The write fails only if init has ended, which the loop sees next.
                let _ = rustix::io::write(&lifeline, &[TERMINATE]);
            }
            Some(_) => {}
            None => {
                // The write fails only if init has ended, as above.
                let _ = rustix::io::write(&lifeline, &[KILL]);
                kill_at = Some(Instant::now() + KILL_DEADLINE);
            }
        }
    }
    child
        .wait()
        .map_err(|error| Failure::new("cannot wait for the guest's init", error))
}

/// The next byte of our lifeline, once poll reports it readable; None at end of file.
pub fn read_lifeline() -> Option<u8> {
    let mut byte = [0];
    loop {
        match rustix::io::read(rustix::stdio::stdin(), &mut byte) {
            Ok(1) => return Some(byte[0]),
            Err(Errno::INTR) => {}
            _ => return None,
        }
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(0), _) => "ended as asked".to_owned(),
        (Some(code), _) => format!("failed with exit code {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}
