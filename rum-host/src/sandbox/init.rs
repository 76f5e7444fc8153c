//! Init: PID 1 of a guest. Starts the agent, starts it again when it ends, reaps everything.
//!
//! It never runs a command of the user's, so that nothing a command does ends the guest. It reads
//! no signal but SIGCHLD: asked to end the guest it is through its lifeline only.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{self, SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use nix::unistd::Pid as NixPid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, WaitStatus};

use super::keeper::read_lifeline;
use super::status::Status;
use super::{AGENT, Failure, SELF, TERMINATE, signals};

/// Pause before a dead agent is started again; doubled each time up to [`MAX_PAUSE`]. Its sockets
/// stay open meanwhile, so that who dials waits in the backlog.
const MIN_PAUSE: Duration = Duration::from_millis(50);
/// Longest pause: an agent that cannot start costs little, one that can again is soon back.
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// An agent that lived this long was well: the next pause is [`MIN_PAUSE`] again.
const WELL: Duration = Duration::from_secs(10);
/// While the guest is being ended: how often to look whether anybody is left, since the end of
/// the processes that were started from outside is not announced to init.
const LOOK: Duration = Duration::from_millis(10);

/// Runs init: `AGENT_ARGS…`.
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

struct Init {
    args: Vec<OsString>,
    signals: SignalFd,
    agent: Agent,
    pause: Duration,
    ending: bool,
}

impl Init {
    fn new(args: Vec<OsString>) -> Result<Self, Failure> {
        let signals = signals::watch(&SigSet::all())?;
        let agent = start_agent(&args)?;
        Status::Ready.send();
        Ok(Self {
            args,
            signals,
            agent,
            pause: MIN_PAUSE,
            ending: false,
        })
    }

    fn serve(&mut self) -> Result<(), Failure> {
        let stdin = rustix::stdio::stdin();
        loop {
            if self.ending && nobody_is_left() {
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
            _ if self.ending => LOOK,
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
            if since.elapsed() >= WELL {
                self.pause = MIN_PAUSE;
            }
            self.agent = Agent::StartAt(Instant::now() + self.pause);
            self.pause = (self.pause * 2).min(MAX_PAUSE);
            if !self.ending {
                eprintln!("rum: the agent {}, starting it again", describe(status));
            }
        }
    }

    fn revive(&mut self) {
        let Agent::StartAt(at) = self.agent else {
            return;
        };
        let now = Instant::now();
        if self.ending || now < at {
            return;
        }
        self.agent = start_agent(&self.args).unwrap_or_else(|failure| {
            eprintln!("rum: {}", failure.message);
            Agent::StartAt(now + MAX_PAUSE)
        });
    }

    /// Asks everybody; who is stopped is woken up to hear it.
    fn terminate(&mut self) {
        self.ending = true;
        for signal in [Signal::SIGTERM, Signal::SIGCONT] {
            let _ = signal::kill(NixPid::from_raw(-1), signal);
        }
    }
}

/// From PID 1, -1 is everybody else in the PID namespace (kill(2)).
fn nobody_is_left() -> bool {
    signal::kill(NixPid::from_raw(-1), None) == Err(nix::errno::Errno::ESRCH)
}

fn describe(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (_, Some(signal)) => format!("was killed by signal {signal}"),
        (code, None) => format!("ended with exit code {}", code.unwrap_or(-1)),
    }
}

fn start_agent(args: &[OsString]) -> Result<Agent, Failure> {
    let mut command = Command::new(SELF);
    command
        .arg0("rum")
        .arg(AGENT)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    // SAFETY: this process has one thread, and the mask is all that is touched.
    unsafe { command.pre_exec(|| Ok(SigSet::empty().thread_set_mask()?)) };
    let child = command
        .spawn()
        .map_err(|error| Failure::new("cannot start the agent", error))?;
    Ok(Agent::Running {
        // Reaped with everybody else's children, by its id: std's handle is not needed.
        pid: Pid::from_child(&child),
        since: Instant::now(),
    })
}
