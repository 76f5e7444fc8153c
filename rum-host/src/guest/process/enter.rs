//! Runs a command in a running guest.
//!
//! This process moves into the guest's namespaces, starts the command there and waits for it
//! outside the PID namespace. Its exit code is the command's, 128 + N after signal N, or one of
//! 125, 126 and 127 as in env(1). The command gets the caller's environment plus `RUM_GUEST`, its
//! standard streams, signal mask and ignored signals; every other descriptor is closed. The command
//! of an ordinary user has the user's ids and no capabilities. Its working directory is the
//! caller's, the same inode: if the guest has none or a different one under that path, the command
//! does not run, unless the caller names a directory.
//!
//! Signals: those of the terminal reach the command directly. Those that a process sends are passed
//! on (`FORWARDED`). With [`Job::Own`] the command gets a process group of its own, like a job of
//! a shell, so that the group id is valid inside the guest too. When the command stops, this
//! process stops as well, so that the calling shell notices.
//!
//! Invariant: this process, the only one that can reap the command, is never stopped while the
//! guest is being ended. The kernel continues it for that (`waking`), and it does not stop again
//! afterwards.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode};

use nix::sys::signal::{SigHandler, SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use rum_shared::lines;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, FdFlags};
use rustix::process::{Pid, PidfdFlags, WaitOptions};
use rustix::thread::ThreadNameSpaceType;

use super::{
    EXIT_FAILED, EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND, Failure, bad_arguments, number,
    open_descriptors, rights, signals, waking,
};
use crate::hint::holder;
use crate::hint::holder::UNHELD;
use crate::signals as inherited_signals;
use crate::stack;

/// Signals that a process sends to us and we pass on to the command.
const FORWARDED: [Signal; 7] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGTSTP,
];
/// Environment variable that names the guest in which a command runs.
const GUEST_VARIABLE: &str = "RUM_GUEST";
/// `si_code` is above 0 when the kernel generated the signal, for instance for a terminal
/// (sigaction(2)).
const LAST_USER_CODE: i32 = 0;

/// The process group in which a command runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    /// The caller's group, which receives the terminal's signals as well.
    Shared,
    /// A group of its own, if all three standard streams are one terminal that is ours to give. A
    /// member of a pipeline must not take the terminal from the others.
    Own,
}

impl Job {
    /// The value's word on the hidden command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Own => "own",
        }
    }
}

/// Runs a command in a guest: `PIDFD ALIVE_FD JOB ISOLATION DIR NAME CMD…`, where an empty DIR
/// means the caller's.
pub fn run(args: Vec<OsString>) -> ExitCode {
    enter(args).unwrap_or_else(|failure| {
        let mut text = format!("error: {}\n", failure.message);
        if let Some(hint) = failure.hint {
            text += &format!("hint: {hint}\n");
        }
        tell(&text);
        ExitCode::from(EXIT_FAILED)
    })
}

/// Writes to the caller's stderr, for one second at most because this process's signals are
/// blocked. No writer thread: a process with several threads cannot fork into another PID namespace
/// (clone(2)).
fn tell(text: &str) {
    lines::say_without_thread(text);
}

fn enter(args: Vec<OsString>) -> Result<ExitCode, Failure> {
    let mut args = args.into_iter();
    let [pidfd, alive] = [number(&mut args)?, number(&mut args)?];
    let job = match args.next() {
        Some(word) if word == Job::Own.word() => Job::Own,
        _ => Job::Shared,
    };
    let isolation = super::isolation(&mut args)?;
    let workdir = args.next().ok_or_else(bad_arguments)?;
    let name = args.next().ok_or_else(bad_arguments)?;
    let program = args.next().ok_or_else(bad_arguments)?;

    close_on_exec().map_err(|error| Failure::new("cannot look at /proc/self/fd", error))?;
    let [pidfd, alive] = [inherited(pidfd)?, inherited(alive)?];
    waking::by(&alive).map_err(|error| Failure::new("cannot watch the guest", error))?;

    let mask = SigSet::thread_get_mask().map_err(|error| Failure::new("no signal mask", error))?;
    let mut watched: SigSet = FORWARDED.into_iter().collect();
    watched.add(Signal::SIGCHLD);
    watched.add(Signal::SIGCONT);
    // With SIGTTOU blocked, a background process can hand over the terminal (tcsetpgrp(3)).
    watched.add(Signal::SIGTTOU);
    let signals = signals::watch(&watched)?;
    // The signal with which this process stops itself, so its default is restored in case the
    // caller ignores it.
    // SAFETY: no handler is installed.
    let _ = unsafe { nix::sys::signal::signal(Signal::SIGTSTP, SigHandler::SigDfl) };
    let mut terminal = (job == Job::Own).then(Terminal::ours).flatten();

    let workdir = Workdir::of(workdir)?;
    move_into(pidfd.as_fd())?;
    if !isolation.privileged {
        rights::bound().map_err(|error| {
            Failure::new("cannot take capabilities from the command", error)
                .hint("`rum up --privileged` leaves it all of them")
        })?;
    }
    workdir
        .go()
        .map_err(|failure| {
            if isolation.private_tmp { failure.hint(
                "name another directory of the guest with --workdir; its /tmp is its own (private_tmp)",
            ) } else { failure }
        })?;
    let args: Vec<_> = args.collect();
    let start = |holder| {
        let mut command = Command::new(&program);
        command.args(&args).env(GUEST_VARIABLE, &name);
        let prepare = Prepare {
            mask,
            own_group: terminal.is_some(),
            privileged: isolation.privileged,
            holder,
        };
        start(command, prepare)
    };
    let started = match start(holder::find()) {
        Err(error) if error.raw_os_error() == Some(UNHELD.raw_os_error()) => start(None),
        started => started,
    };
    let child = match started {
        Ok(child) => child,
        Err(error) => return not_started(&program, &error),
    };
    let code = wait(&child, &signals, terminal.as_mut());
    if let Some(terminal) = &mut terminal {
        terminal.take_back();
    }
    code
}

/// Takes over the inherited descriptor `fd`.
fn inherited(fd: i32) -> Result<OwnedFd, Failure> {
    // SAFETY: used for one fcntl, which fails if the number is not open.
    rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(fd) }).map_err(|_| bad_arguments())?;
    // SAFETY: it is open, as just checked, and nothing else in this process uses it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Marks everything but the standard streams close-on-exec, so that a command inside gets no
/// descriptor of the host that its caller did not pass.
fn close_on_exec() -> io::Result<()> {
    for fd in open_descriptors()? {
        // SAFETY: used for one fcntl, which fails for the descriptor that read the directory: it is
        // closed by now.
        let _ = rustix::io::fcntl_setfd(unsafe { BorrowedFd::borrow_raw(fd) }, FdFlags::CLOEXEC);
    }
    Ok(())
}

/// Moves into the namespaces of the process behind `pidfd`, including those for its children.
/// Afterwards the working directory is the root directory of the guest's mounts.
fn move_into(pidfd: BorrowedFd<'_>) -> Result<(), Failure> {
    let spaces = ThreadNameSpaceType::NETWORK
        | ThreadNameSpaceType::PROCESS_ID
        | ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME;
    // A guest of root has no user namespace of its own, and setns(2) refuses with EINVAL to enter
    // the current one.
    let result =
        rustix::thread::move_into_thread_name_spaces(pidfd, spaces | ThreadNameSpaceType::USER);
    match result {
        Err(Errno::INVAL) => rustix::thread::move_into_thread_name_spaces(pidfd, spaces),
        other => other,
    }
    .map_err(|error| match error {
        Errno::SRCH => Failure::new("cannot enter the guest", "it has ended"),
        error => Failure::new("cannot enter the guest", error),
    })
}

/// The working directory of the command.
enum Workdir {
    /// A named directory, whatever the guest has there.
    Named(PathBuf),
    /// The caller's directory, identified by device and inode.
    Callers { path: PathBuf, id: FileId },
}

/// Device and inode.
type FileId = (u64, u64);

impl Workdir {
    /// Must be called before this process enters the guest.
    fn of(named: OsString) -> Result<Self, Failure> {
        if !named.is_empty() {
            return Ok(Self::Named(named.into()));
        }
        let look = || Ok((std::env::current_dir()?, file_id(".")?));
        look()
            .map(|(path, id)| Self::Callers { path, id })
            .map_err(|error: io::Error| {
                // The kernel's name of the directory, also if it was deleted.
                let path = std::fs::read_link("/proc/self/cwd").unwrap_or_else(|_| ".".into());
                no_workdir(&path, &error)
            })
    }

    /// Must be called after this process entered the guest.
    fn go(self) -> Result<(), Failure> {
        let (path, id) = match self {
            Self::Named(path) => (path, None),
            Self::Callers { path, id } => (path, Some(id)),
        };
        std::env::set_current_dir(&path).map_err(|error| no_workdir(&path, &error))?;
        match id {
            Some(id) if file_id(".").ok() != Some(id) => {
                Err(no_workdir(&path, &"the guest has another directory there"))
            }
            _ => Ok(()),
        }
    }
}

fn file_id(path: &str) -> io::Result<FileId> {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::metadata(path)?;
    Ok((meta.dev(), meta.ino()))
}

fn no_workdir(path: &std::path::Path, why: &dyn std::fmt::Display) -> Failure {
    let path = path.to_string_lossy();
    let what = format!(
        "cannot run the command in the directory `{}`",
        path.escape_debug()
    );
    Failure::new(&what, why).hint("name another directory of the guest with --workdir")
}

/// The steps between fork and exec.
struct Prepare {
    mask: SigSet,
    own_group: bool,
    privileged: bool,
    holder: Option<OwnedFd>,
}

fn start(mut command: Command, to_do: Prepare) -> io::Result<Child> {
    let me = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?;
    let prepare = move || {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        // getppid returns 0 in the new PID namespace whether or not the parent lives, so the pipe
        // is polled instead.
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        if poll(&mut [PollFd::new(&me, PollFlags::IN)], Some(&now))? > 0 {
            return Err(Errno::SRCH.into());
        }
        if let Some(holder) = &to_do.holder {
            holder::enlist(holder)?;
        }
        // Drop capabilities after installing the filter, which needs CAP_SYS_ADMIN.
        if !to_do.privileged {
            rights::reduce()?;
        }
        if to_do.own_group {
            rustix::process::setpgid(None, None)?;
            rustix::termios::tcsetpgrp(rustix::stdio::stdin(), rustix::process::getpid())?;
        }
        inherited_signals::restore();
        stack::restore()?;
        Ok(to_do.mask.thread_set_mask()?)
    };
    // SAFETY: this process has one thread, so its child may do whatever the parent could.
    unsafe { command.pre_exec(prepare) };
    command.spawn()
}

fn not_started(program: &OsStr, error: &io::Error) -> Result<ExitCode, Failure> {
    let code = match error.raw_os_error().map(Errno::from_raw_os_error) {
        // fork fails with ENOMEM in a PID namespace whose first process has ended
        // (pid_namespaces(7)).
        Some(Errno::NOMEM) => {
            return Err(Failure::new(
                "cannot enter the guest",
                "it has ended, or there is no memory left",
            ));
        }
        Some(Errno::AGAIN) => return Err(Failure::io("cannot start a process", error)),
        Some(Errno::NOENT) => EXIT_NOT_FOUND,
        // execvp(3) also reports EACCES when it may not search a directory of the PATH.
        Some(Errno::ACCESS) if !is_there(program) => EXIT_NOT_FOUND,
        _ => EXIT_NOT_EXECUTABLE,
    };
    let program = program.to_string_lossy();
    tell(&match code {
        EXIT_NOT_FOUND => format!("error: there is no command `{}`\n", program.escape_debug()),
        _ => format!("error: cannot run `{}`: {error}\n", program.escape_debug()),
    });
    Ok(ExitCode::from(code))
}

fn is_there(program: &OsStr) -> bool {
    let is_path = program.as_encoded_bytes().contains(&b'/');
    let path = std::env::var_os("PATH").unwrap_or_default();
    is_path || std::env::split_paths(&path).any(|dir| dir.join(program).exists())
}

/// Waits for the command's end, passes signals on to it, and stops when it stops.
fn wait(
    child: &Child,
    signals: &SignalFd,
    mut terminal: Option<&mut Terminal>,
) -> Result<ExitCode, Failure> {
    let failed = |error: Errno| Failure::new("cannot wait for the command", error);
    let pid = Pid::from_child(child);
    loop {
        match poll(&mut [PollFd::new(signals, PollFlags::IN)], None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(failed(error)),
        }
        while let Ok(Some(info)) = signals.read_signal() {
            let number = info.ssi_signo.try_into().unwrap_or(0);
            let Ok(signal) = Signal::try_from(number) else {
                continue;
            };
            // The command is not reaped yet, so its id cannot have been reused.
            if signal == Signal::SIGCONT {
                go_on(pid, terminal.as_deref_mut());
            } else if info.ssi_code <= LAST_USER_CODE && FORWARDED.contains(&signal) {
                let _ = nix::sys::signal::kill(nix_pid(pid), signal);
            }
        }
        let options = WaitOptions::NOHANG | WaitOptions::UNTRACED;
        while let Some((_, status)) =
            rustix::process::waitpid(Some(pid), options).map_err(failed)?
        {
            if status.stopped() {
                stop_too(terminal.as_deref_mut());
            } else {
                let signal = status.terminating_signal().map(|signal| 128 + signal);
                let code = signal.or(status.exit_status()).unwrap_or(-1);
                return Ok(ExitCode::from(u8::try_from(code).unwrap_or(EXIT_FAILED)));
            }
        }
    }
}

/// The command has stopped: stop too, so that the parent notices, unless a SIGCONT arrived since.
/// Does nothing in an orphaned process group (setpgid(2)): no shell would continue us there.
fn stop_too(terminal: Option<&mut Terminal>) {
    if let Some(terminal) = terminal {
        terminal.take_back();
    }
    // SIGTSTP is blocked, so it stays pending. A later SIGCONT discards it (signal(7)); an earlier
    // SIGCONT is pending as well, and the caller reads it next.
    if nix::sys::signal::raise(Signal::SIGTSTP).is_err() {
        return;
    }
    let stop: SigSet = std::iter::once(Signal::SIGTSTP).collect();
    let waiting = pending();
    if !waiting.contains(Signal::SIGCONT) {
        // This process stops here.
        let _ = stop.thread_unblock();
        let _ = stop.thread_block();
    } else if waiting.contains(Signal::SIGTSTP) {
        // The signal is pending, so this does not block. We raised it ourselves: it is not passed
        // on.
        let _ = stop.wait();
    }
}

/// The pending signals of this process.
fn pending() -> SigSet {
    let mut set = SigSet::empty().as_ref().to_owned();
    // SAFETY: the kernel writes a signal set there.
    unsafe { libc::sigpending(&raw mut set) };
    // SAFETY: it was a valid set before the call, and stays one.
    unsafe { SigSet::from_sigset_t_unchecked(set) }
}

/// This process was continued: continue the command.
fn go_on(pid: Pid, terminal: Option<&mut Terminal>) {
    match terminal {
        Some(terminal) => {
            terminal.give_to(pid);
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::CONT);
        }
        None => {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::CONT);
        }
    }
}

fn nix_pid(pid: Pid) -> nix::unistd::Pid {
    nix::unistd::Pid::from_raw(pid.as_raw_nonzero().get())
}

/// The terminal behind all three standard streams, and our process group, which owned it.
struct Terminal {
    group: Pid,
    /// Whether the command has the terminal. A shell that moves us into the background takes it
    /// back.
    is_given: bool,
}

impl Terminal {
    /// None if the terminal is not ours to give. The command takes it when it starts.
    fn ours() -> Option<Self> {
        let stdin = rustix::stdio::stdin();
        let group = rustix::process::getpgrp();
        let is_ours = rustix::termios::tcgetpgrp(stdin) == Ok(group)
            && rustix::termios::isatty(rustix::stdio::stdout())
            && rustix::termios::isatty(rustix::stdio::stderr());
        is_ours.then_some(Self {
            group,
            is_given: true,
        })
    }

    fn take_back(&mut self) {
        if std::mem::take(&mut self.is_given) {
            // Fails if the terminal has hung up meanwhile, which needs no handling.
            let _ = rustix::termios::tcsetpgrp(rustix::stdio::stdin(), self.group);
        }
    }

    /// Gives the terminal to `group`, but only if a shell has put us into the foreground.
    fn give_to(&mut self, group: Pid) {
        let stdin = rustix::stdio::stdin();
        if rustix::termios::tcgetpgrp(stdin) == Ok(self.group) {
            self.is_given = rustix::termios::tcsetpgrp(stdin, group).is_ok();
        }
    }
}
