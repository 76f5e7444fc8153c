//! Init: PID 1 of a guest. Starts the agent, starts it again when it ends, reaps everything.
//!
//! It never runs a command of the user's, so that nothing a command does ends the guest. It reads
//! no signal but SIGCHLD: asked to end the guest it is through its lifeline only.
//!
//! Where the agent has no tracepoint, further threads hold the programs' notifications
//! ([`crate::hint::holder`]); they block every signal too, and share nothing with this loop but a pipe.

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

/// Pause before an agent is started again that died twice within [`WELL`]; doubled with each
/// further time up to [`MAX_PAUSE`]. Its sockets stay open meanwhile, so that who dials waits in
/// the backlog.
const MIN_PAUSE: Duration = Duration::from_millis(50);
/// Longest pause: an agent that cannot start costs little, one that can again is soon back.
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// An agent that lived this long was well, and is started again at once: that is no more often.
const WELL: Duration = MAX_PAUSE;
/// While the guest is being ended: how often to look whether anybody is left, since the end of
/// the processes that were started from outside is not announced to init.
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

/// What there is of the agent.
enum Agent {
    Running { pid: Pid, since: Instant },
    StartAt(Instant),
}

/// The pauses before an agent is started again.
#[derive(Debug, Default)]
struct Pauses {
    next: Duration,
}

impl Pauses {
    /// The agent died that has lived so long. The pause before the next.
    fn after(&mut self, lived: Duration) -> Duration {
        if lived >= WELL {
            self.next = Duration::ZERO;
        }
        let pause = self.next;
        self.next = (pause * 2).clamp(MIN_PAUSE, MAX_PAUSE);
        pause
    }
}

/// How the guest is being ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// Everybody was asked.
    Asked,
    /// Everybody is killed.
    Killed,
}

struct Init {
    args: Vec<OsString>,
    /// The pipe `alive`: what is written there, and our end, continues every [enter](super::enter).
    alive: OwnedFd,
    signals: SignalFd,
    holder: Option<Arc<Holder>>,
    /// Its name stays taken also where nobody listens.
    _door: Door,
    agent: Agent,
    pauses: Pauses,
    ending: Option<Ending>,
}

impl Init {
    fn new(args: Vec<OsString>) -> Result<Self, Failure> {
        // Elsewhere, to end the guest would be to end every process of the user.
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
                    // The keeper is gone. Our end is the end of everything inside.
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

    /// Asks everybody; who is stopped is woken up to hear it.
    fn terminate(&mut self) {
        self.ending = Some(Ending::Asked);
        for signal in [Signal::SIGTERM, Signal::SIGCONT] {
            let _ = signal_everybody(Some(signal));
        }
    }

    /// Whether it is being ended and nobody is left.
    fn is_over(&self) -> bool {
        let signal = match self.ending {
            None => return false,
            Some(Ending::Asked) => None,
            // Again each time: somebody may just have come in from outside.
            Some(Ending::Killed) => Some(Signal::SIGKILL),
        };
        // Who is stopped outside does not reap what has ended inside. It is full only if that went on for
        // minutes, and then our end does the same.
        let _ = rustix::io::write(&self.alive, &[ENDING]);
        signal_everybody(signal) == Err(nix::errno::Errno::ESRCH)
    }
}

/// From PID 1, -1 is everybody else in the PID namespace (kill(2)).
fn signal_everybody(signal: Option<Signal>) -> nix::Result<()> {
    signal::kill(NixPid::from_raw(-1), signal)
}

/// To whoever reads rum's stderr, if anybody does.
fn tell(line: &str) {
    lines::stderr(lines::lost_line).say(format!("rum: {line}\n"));
}

fn describe(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (_, Some(signal)) => format!("was killed by signal {signal}"),
        (code, None) => format!("ended with exit code {}", code.unwrap_or(-1)),
    }
}

/// Whether the agent is to be woken by notifications: it is told to be, or has no tracepoint and
/// nobody is asked about us already. To be called before there is another thread.
fn wants_holder(args: &[OsString]) -> bool {
    let told = std::iter::once(&OsString::new())
        .chain(args)
        .cloned()
        .collect::<Vec<_>>();
    match cli::Args::try_parse_from(told).map(|args| args.hint) {
        Ok(Some(hint)) => hint == HintKind::Seccomp,
        Ok(None) => !has_tracepoint() && can_install(),
        // The agent says it.
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

/// Tries in a child, which is all that the filter is for: it stays with who installed it.
fn can_install() -> bool {
    // SAFETY: this process has one thread, so that its child may do whatever it could do itself.
    match unsafe { nix::unistd::fork() } {
        Ok(ForkResult::Child) => {
            let installed =
                rustix::thread::set_no_new_privs(true).is_ok() && seccomp::install().is_ok();
            // SAFETY: ends the process, without a word to what it shares with its parent.
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
            // SAFETY: the child has what was open at the fork, and the holder never closes it.
            let fd = unsafe { BorrowedFd::borrow_raw(fd) };
            rustix::io::fcntl_setfd(fd, FdFlags::empty())?;
        }
        Ok(SigSet::empty().thread_set_mask()?)
    };
    // SAFETY: two system calls; there may be other threads, whose locks are not touched.
    unsafe { command.pre_exec(prepare) };
    let child = command
        .spawn()
        .map_err(|error| Failure::io("cannot start the agent", &error))?;
    if let Some(holder) = holder {
        holder.repeat();
    }
    Ok(Agent::Running {
        // Reaped with everybody else's children, by its id: std's handle is not needed.
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
