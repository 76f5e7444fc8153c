//! Init: PID 1 of a guest. Starts the agent, restarts it when it ends, and reaps every process.
//!
//! Init never runs a command of the user, so no command's end ends the guest. It reads no signal
//! but SIGCHLD; only its lifeline asks it to end the guest.
//!
//! If the agent has no tracepoint, further threads handle the seccomp notifications of the guest's
//! programs ([`crate::hint::holder`]). They block every signal too, and share only a pipe with this
//! loop.

use std::ffi::OsString;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser as _;
use nix::sys::signal::{self, SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use nix::sys::wait::WaitStatus as NixStatus;
use nix::unistd::{ForkResult, Pid as NixPid};
use rum_agent::cli;
use rum_agent::hint::HintKind;
use rum_agent::kernel::tracepoint::Tracepoint;
use rum_shared::lines;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, FdFlags};
use rustix::process::{Pid, WaitOptions, WaitStatus};

use super::keeper::{inherited, read_lifeline};
use super::status::Status;
use super::{
    AGENT, ENDING, Failure, KILL, SELF, TERMINATE, bad_arguments, number, signals, sysv, waking,
};
use crate::hint::holder::{Door, Holder};
use crate::hint::seccomp;

/// Pause before restarting an agent that died twice within [`WELL`]; doubled each further time, up
/// to [`MAX_PAUSE`]. The agent's sockets stay open meanwhile, so clients wait in the backlog.
const MIN_PAUSE: Duration = Duration::from_millis(50);
/// Longest pause: a broken agent costs little, and a repaired one is back soon.
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// An agent that ran this long was healthy, so it is restarted at once. The longest pause bounds
/// the restart rate either way.
const WELL: Duration = MAX_PAUSE;
/// Interval at which init checks for remaining processes while the guest ends. Init gets no SIGCHLD
/// for processes that were started from outside.
const LOOK: Duration = Duration::from_millis(10);

/// Runs init: `ALIVE_FD AGENT_ARGS…`.
pub fn run(args: Vec<OsString>) -> ExitCode {
    match Init::new(args).and_then(|mut init| init.serve()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.send();
            ExitCode::FAILURE
        }
    }
}

/// State of the agent.
enum Agent {
    Running { pid: Pid, since: Instant },
    StartAt(Instant),
}

/// The pauses between restarts of the agent.
#[derive(Debug, Default)]
struct Pauses {
    next: Duration,
}

impl Pauses {
    /// Pause before the next start, given how long the dead agent had lived.
    fn after(&mut self, lived: Duration) -> Duration {
        if lived >= WELL {
            self.next = Duration::ZERO;
        }
        let pause = self.next;
        self.next = (pause * 2).clamp(MIN_PAUSE, MAX_PAUSE);
        pause
    }
}

/// How far the guest's end has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// Every process got SIGTERM.
    Asked,
    /// Every process gets SIGKILL.
    Killed,
}

struct Init {
    args: Vec<OsString>,
    /// Writing end of the pipe `alive`: a byte, and init's end, continue every
    /// [enter](super::enter).
    alive: OwnedFd,
    signals: SignalFd,
    holder: Option<Arc<Holder>>,
    /// Keeps the socket name taken even where no holder listens.
    _door: Door,
    agent: Agent,
    pauses: Pauses,
    ending: Option<Ending>,
}

impl Init {
    fn new(args: Vec<OsString>) -> Result<Self, Failure> {
        // Outside a PID namespace of its own, ending the guest would kill every process of the
        // user.
        if !rustix::process::getpid().is_init() {
            return Err(bad_arguments());
        }
        let mut args = args.into_iter();
        let alive = inherited(number(&mut args)?)?;
        let args: Vec<_> = args.collect();
        waking::by(rustix::stdio::stdin())
            .map_err(|error| Failure::new("init cannot watch its lifeline", error))?;
        let signals = signals::watch(&SigSet::all())?;
        let door = Door::new().map_err(|error| Failure::new("init cannot take a name", error))?;
        let holder = wants_holder(&args)
            .then(|| Holder::start(&door).ok())
            .flatten();
        let agent = start_agent(&args, holder.as_deref())?;
        Status::Ready.send();
        Ok(Self {
            args,
            alive,
            signals,
            holder,
            _door: door,
            agent,
            pauses: Pauses::default(),
            ending: None,
        })
    }

    fn serve(&mut self) -> Result<(), Failure> {
        let stdin = rustix::stdio::stdin();
        loop {
            if self.is_over() {
                sysv::remove_segments();
                return Ok(());
            }
            let mut fds = [
                PollFd::new(&self.signals, PollFlags::IN),
                PollFd::new(&stdin, PollFlags::IN),
            ];
            match poll(&mut fds, self.timeout().as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(Failure::new("init cannot wait", error)),
            }
            let [signal, lifeline] = fds.map(|fd| !fd.revents().is_empty());
            if signal {
                while let Ok(Some(_)) = self.signals.read_signal() {}
                self.reap();
            }
            if lifeline {
                match read_lifeline() {
                    Some(TERMINATE) => self.terminate(),
                    Some(KILL) => self.ending = Some(Ending::Killed),
                    Some(_) => {}
                    // The keeper is gone. Init's end ends everything inside.
                    None => return Ok(()),
                }
            }
            self.revive();
        }
    }

    fn timeout(&self) -> Option<Timespec> {
        let wait = match self.agent {
            _ if self.ending.is_some() => LOOK,
            Agent::Running { .. } => return None,
            Agent::StartAt(at) => at.saturating_duration_since(Instant::now()),
        };
        // Both are a few seconds at most.
        Timespec::try_from(wait).ok()
    }

    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let Agent::Running { pid: agent, since } = self.agent else {
                continue;
            };
            if pid != agent || !(status.exited() || status.signaled()) {
                continue;
            }
            let pause = self.pauses.after(since.elapsed());
            self.agent = Agent::StartAt(Instant::now() + pause);
            if self.ending.is_none() {
                tell(&format!(
                    "the agent {}, starting it again",
                    describe(status)
                ));
            }
        }
    }

    fn revive(&mut self) {
        let Agent::StartAt(at) = self.agent else {
            return;
        };
        let now = Instant::now();
        if self.ending.is_some() || now < at {
            return;
        }
        self.agent = start_agent(&self.args, self.holder.as_deref()).unwrap_or_else(|failure| {
            tell(&failure.message);
            Agent::StartAt(now + MAX_PAUSE)
        });
    }

    /// Sends SIGTERM to every process, and continues the stopped ones so that they receive it.
    fn terminate(&mut self) {
        self.ending = Some(Ending::Asked);
        for signal in [Signal::SIGTERM, Signal::SIGCONT] {
            let _ = signal_everybody(Some(signal));
        }
    }

    /// Whether the guest is being ended and no process is left.
    fn is_over(&self) -> bool {
        let signal = match self.ending {
            None => return false,
            Some(Ending::Asked) => None,
            // Repeated, since a process may just have entered from outside.
            Some(Ending::Killed) => Some(Signal::SIGKILL),
        };
        // A stopped [enter](super::enter) does not reap its command, so each round writes the byte
        // that continues it. The pipe is full only after minutes of this; init's end then has the
        // same effect.
        let _ = rustix::io::write(&self.alive, &[ENDING]);
        signal_everybody(signal) == Err(nix::errno::Errno::ESRCH)
    }
}

/// From PID 1, the target -1 is every other process in the PID namespace (kill(2)).
fn signal_everybody(signal: Option<Signal>) -> nix::Result<()> {
    signal::kill(NixPid::from_raw(-1), signal)
}

/// Writes to rum's stderr, whether or not anyone reads it.
fn tell(line: &str) {
    lines::stderr(lines::lost_line).say(format!("rum: {line}\n"));
}

fn describe(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (_, Some(signal)) => format!("was killed by signal {signal}"),
        (code, None) => format!("ended with exit code {}", code.unwrap_or(-1)),
    }
}

/// Whether seccomp notifications wake the agent: on request, or if there is no tracepoint and no
/// other supervisor is active. Must be called before there is another thread.
fn wants_holder(args: &[OsString]) -> bool {
    let told = std::iter::once(&OsString::new())
        .chain(args)
        .cloned()
        .collect::<Vec<_>>();
    match cli::Args::try_parse_from(told).map(|args| args.hint) {
        Ok(Some(hint)) => hint == HintKind::Seccomp,
        Ok(None) => !has_tracepoint() && can_install(),
        // The agent reports the bad argument itself.
        Err(_) => false,
    }
}

fn has_tracepoint() -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build();
    runtime.is_ok_and(|runtime| {
        let _inside = runtime.enter();
        Tracepoint::open(None).is_ok()
    })
}

/// Installs a filter in a child as a trial: a filter cannot be removed from its process.
fn can_install() -> bool {
    // SAFETY: this process has one thread, so its child may do whatever the parent could.
    match unsafe { nix::unistd::fork() } {
        Ok(ForkResult::Child) => {
            let installed =
                rustix::thread::set_no_new_privs(true).is_ok() && seccomp::install().is_ok();
            // SAFETY: ends the child without running exit handlers of the parent.
            unsafe { libc::_exit(i32::from(!installed)) }
        }
        Ok(ForkResult::Parent { child }) => {
            nix::sys::wait::waitpid(child, None) == Ok(NixStatus::Exited(child, 0))
        }
        Err(_) => false,
    }
}

fn start_agent(args: &[OsString], holder: Option<&Holder>) -> Result<Agent, Failure> {
    let mut command = Command::new(SELF);
    command
        .arg0("rum")
        .arg(AGENT)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let fds = holder.map(|holder| holder.for_agent().map(|fd| fd.as_raw_fd()));
    if let Some([pipe, wanted]) = fds {
        command.arg("--notified").arg(pipe.to_string());
        command.arg("--wanted").arg(wanted.to_string());
    }
    let prepare = move || {
        for fd in fds.into_iter().flatten() {
            // SAFETY: the child has the descriptors that were open at the fork, and the holder
            // never closes this one.
            let fd = unsafe { BorrowedFd::borrow_raw(fd) };
            rustix::io::fcntl_setfd(fd, FdFlags::empty())?;
        }
        Ok(SigSet::empty().thread_set_mask()?)
    };
    // SAFETY: the closure makes two system calls and takes no lock that another thread may hold.
    unsafe { command.pre_exec(prepare) };
    let child = command
        .spawn()
        .map_err(|error| Failure::io("cannot start the agent", &error))?;
    if let Some(holder) = holder {
        holder.repeat();
    }
    Ok(Agent::Running {
        // Reaped by id with all other children: std's handle is not needed.
        pid: Pid::from_child(&child),
        since: Instant::now(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_agent_that_dies_again_and_again_is_waited_for() {
        let mut pauses = Pauses::default();
        assert_eq!(pauses.after(Duration::ZERO), Duration::ZERO);
        assert_eq!(pauses.after(Duration::ZERO), MIN_PAUSE);
        assert_eq!(pauses.after(WELL / 2), MIN_PAUSE * 2);
        for _ in 0..10 {
            pauses.after(Duration::ZERO);
        }
        assert_eq!(pauses.after(WELL / 2), MAX_PAUSE);
        assert_eq!(pauses.after(WELL), Duration::ZERO);
        assert_eq!(pauses.after(WELL), Duration::ZERO);
        assert_eq!(pauses.after(Duration::ZERO), MIN_PAUSE);
    }
}
