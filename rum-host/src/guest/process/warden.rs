//! The warden: runs the third-party programs that a VM consists of, and ensures that they end with
//! rum.
//!
//! These programs cannot watch a lifeline, so the warden does, and kills them with SIGKILL at its
//! end of file. If the warden is killed, their parent death signal ends them. That signal is
//! reliable here: it fires at the end of the *thread* that started them, and the warden has only
//! one. The warden removes their files after their end, while it still holds the lock.
//!
//! The first program starts at once, each further one on a byte [`START`] in the lifeline. When one
//! of them ends, the others are killed: a VM is all of them or nothing.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};

use nix::sys::signal::SigSet;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};

use super::keeper::{inherited, read_lifeline};
use super::status::Status;
use super::{Failure, START, bad_arguments, number, signals, waking};
use crate::runtime_dir;

/// A device next to QEMU ends when QEMU does, and its end may be seen first. Time to wait for the
/// program whose end is the reason.
const REASON_WAIT: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// Runs the warden: `DIR LOCK_FD (COUNT PROGRAM ARGS…)…`, where COUNT includes the program. The
/// programs' output goes to the warden's standard error.
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
    let programs = command_lines(args)?;
    let dir = runtime_dir::open_private(path)
        .map_err(|error| Failure::new("cannot open the runtime directory", error))?;
    // A directory that is not ours may hold files of somebody else, which the cleanup would remove.
    if !runtime_dir::is_at(&lock, &dir) {
        return Err(bad_arguments());
    }
    // Only SIGKILL and SIGSTOP end or stop the warden, and no terminal sends it a signal.
    let _blocked = signals::watch(&SigSet::all())?;
    let _ = rustix::process::setsid();
    waking::by(rustix::stdio::stdin())
        .map_err(|error| Failure::new("cannot watch the lifeline", error))?;

    let ended = watch(programs);
    if matches!(ended, Ok(None)) {
        runtime_dir::clean(dir.as_fd(), CWD, path);
    }
    drop(lock);
    let ended = ended?.unwrap_or_else(|| "was ended by rum".to_owned());
    Status::Ended(ended).send();
    Ok(())
}

fn command_lines(
    mut args: impl Iterator<Item = OsString>,
) -> Result<VecDeque<Vec<OsString>>, Failure> {
    let mut programs = VecDeque::new();
    while let Some(count) = args.next() {
        let count = number(&mut std::iter::once(count))?;
        let line: Vec<_> = args.by_ref().take(count.unsigned_abs() as usize).collect();
        if line.is_empty() || line.len() != count.unsigned_abs() as usize {
            return Err(bad_arguments());
        }
        programs.push_back(line);
    }
    Ok(programs)
}

/// A program of the VM. Killed and reaped when dropped.
struct Program {
    name: String,
    child: Child,
    pidfd: OwnedFd,
}

impl Program {
    fn start(line: &[OsString]) -> Result<Self, Failure> {
        let (program, args) = line.split_first().ok_or_else(bad_arguments)?;
        let name = Path::new(program).file_name().unwrap_or(program);
        let name = name.to_string_lossy().into_owned();
        let failed = |error| Failure::new(&format!("cannot start {name}"), error);
        let log = rustix::io::dup(rustix::stdio::stderr()).map_err(|error| failed(error.into()))?;
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(log);
        let warden = rustix::process::getpid();
        let bind = move || {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            if rustix::process::getppid() != Some(warden) {
                return Err(std::io::ErrorKind::NotFound.into());
            }
            Ok(SigSet::empty().thread_set_mask()?)
        };
        // SAFETY: this process has one thread, so its child may do whatever the parent could.
        unsafe { command.pre_exec(bind) };
        let child = command.spawn().map_err(failed)?;
        let pidfd = rustix::process::pidfd_open(Pid::from_child(&child), PidfdFlags::empty())
            .map_err(|error| failed(error.into()))?;
        Ok(Self { name, child, pidfd })
    }

    /// How the program ended, if it has.
    fn end(&mut self) -> Option<String> {
        let status = self.child.try_wait().ok()??;
        Some(format!("{} {}", self.name, describe(status)))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Both fail only if the program was already reaped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs the programs until one of them or rum ends, then ends the others. Returns how the first one
/// ended; None if rum did.
fn watch(mut waiting: VecDeque<Vec<OsString>>) -> Result<Option<String>, Failure> {
    let mut running: Vec<Program> = Vec::new();
    let mut start = |running: &mut Vec<Program>| -> Result<(), Failure> {
        if let Some(line) = waiting.pop_front() {
            running.push(Program::start(&line)?);
        }
        Ok(())
    };
    start(&mut running)?;
    let stdin = rustix::stdio::stdin();
    loop {
        let programs = running.iter().map(|program| &program.pidfd);
        let mut fds: Vec<_> = programs.map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        fds.push(PollFd::new(&stdin, PollFlags::IN));
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(Failure::new("cannot watch the VM", error)),
        }
        let lifeline = fds.pop().is_some_and(|fd| !fd.revents().is_empty());
        if fds.iter().any(|fd| !fd.revents().is_empty()) {
            break;
        }
        match lifeline.then(read_lifeline) {
            Some(Some(START)) => start(&mut running)?,
            Some(Some(_)) | None => {}
            Some(None) => return Ok(None),
        }
    }
    // The program started last is the one that the others serve.
    if let Some(last) = running.last() {
        let _ = poll(
            &mut [PollFd::new(&last.pidfd, PollFlags::IN)],
            Some(&REASON_WAIT),
        );
    }
    let end = running.iter_mut().rev().find_map(Program::end);
    Ok(Some(end.unwrap_or_else(|| "ended".to_owned())))
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(0), _) => "ended".to_owned(),
        (Some(code), _) => format!("failed with exit code {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn lines(args: &[&str]) -> Result<VecDeque<Vec<OsString>>, Failure> {
        command_lines(args.iter().map(OsString::from))
    }

    #[test]
    fn command_lines_are_counted() {
        let read = lines(&["2", "a", "1", "1", "b"]).unwrap();
        assert_eq!(read.len(), 2);
        assert_eq!((read[0][0].as_os_str(), read[0].len()), ("a".as_ref(), 2));
        assert_eq!(read[1].as_slice(), [OsString::from("b")]);
        assert!(lines(&[]).unwrap().is_empty());
        for bad in [&["0"][..], &["2", "a"], &["x", "a"], &["-1", "a"], &["1"]] {
            assert!(lines(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_program_that_is_not_there_is_a_failure_with_its_name() {
        let Err(failure) = Program::start(&["/no/such/program".into()]) else {
            panic!("started");
        };
        assert!(failure.message.starts_with("cannot start program: "));
    }
}
