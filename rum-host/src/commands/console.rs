//! `rum console`: the serial console of a VM that a `rum up` elsewhere booted.
//!
//! QEMU's console is a Unix socket that takes one client at a time; a second one would wait in its
//! backlog without a word. So whoever attaches holds a lock on a file of the runtime directory (not on
//! its `lock`, which is rum up's).
//!
//! The guest's bytes reach the terminal unchanged: that is what a console is. Invariant: the
//! terminal is as it was when this returns, whatever ended it; signals that would end the process
//! are read, not suffered.

use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::control;
use crate::error::RumError;

/// Ctrl+], as in telnet and virsh: what no program in a guest wants.
const DETACH: u8 = 0x1d;
/// Bytes that are moved at once.
const CHUNK: usize = 4096;

/// Attaches to the console of the guest `name`, or of the only one, until it is detached, the
/// guest ends, or a signal says so.
///
/// # Errors
/// There is no such guest, it has no console, or somebody else is attached.
pub fn attach(name: Option<&str>) -> Result<(), RumError> {
    let guest = control::find(name)?;
    if let Some(kind) = guest.kind.as_deref().filter(|kind| *kind != "qemu") {
        return Err(
            RumError::new(format!("a guest of kind `{kind}` has no console of rum's"))
                .hint("consoles are those of VMs that rum boots, of kind `qemu`"),
        );
    }
    let path = guest.console_socket();
    let failed = |action: &str, error: io::Error| {
        RumError::new(format!("cannot {action} the console of `{}`", guest.name)).caused_by(error)
    };
    let mut private = std::fs::OpenOptions::new();
    private.write(true).create(true).truncate(false).mode(0o600);
    let lock = private
        .open(guest.console_lock())
        .map_err(|error| failed("find", error))?;
    rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
        RumError::new(format!(
            "another `rum console` is attached to `{}`",
            guest.name
        ))
        .hint("detach it with Ctrl+]")
    })?;
    let console = UnixStream::connect(&path).map_err(|error| failed("open", error))?;
    let stdin = io::stdin();
    let interactive = stdin.is_terminal();
    if interactive {
        eprintln!(
            "Console of {}; Ctrl+] detaches, Enter wakes it up",
            guest.name
        );
    }
    let signals = watch_signals().map_err(|error| failed("watch", error))?;
    let raw = if interactive {
        Some(Raw::enter().map_err(|error| failed("show", error.into()))?)
    } else {
        None
    };
    let ended = relay(&console, &signals, interactive);
    drop(raw);
    let ended = ended.map_err(|error| failed("relay", error))?;
    if interactive {
        eprintln!("\n{ended}");
    }
    Ok(())
}

fn watch_signals() -> io::Result<SignalFd> {
    let mut signals = SigSet::empty();
    for signal in [
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGQUIT,
    ] {
        signals.add(signal);
    }
    signals.thread_block()?;
    Ok(SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)?)
}

/// The terminal in raw mode, until this is dropped.
struct Raw(Termios);

impl Raw {
    fn enter() -> rustix::io::Result<Self> {
        let stdin = rustix::stdio::stdin();
        let before = tcgetattr(stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin, OptionalActions::Now, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Drain, &self.0);
    }
}

/// Moves bytes until there is a reason not to, which it returns.
fn relay(console: &UnixStream, signals: &SignalFd, write: bool) -> io::Result<&'static str> {
    let stdin = rustix::stdio::stdin();
    let mut buffer = [0; CHUNK];
    loop {
        let mut fds = vec![
            PollFd::new(console, PollFlags::IN),
            PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN),
        ];
        if write {
            fds.push(PollFd::new(&stdin, PollFlags::IN));
        }
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<_> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        if ready[0] {
            let count = retry(|| rustix::io::read(console, &mut buffer))?;
            if count == 0 {
                return Ok("The guest has ended");
            }
            let mut stdout = io::stdout().lock();
            match stdout
                .write_all(&buffer[..count])
                .and_then(|()| stdout.flush())
            {
                // `rum console | head` has seen enough.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok("Detached"),
                done => done?,
            }
        }
        if ready[1] {
            return Ok("Detached by a signal");
        }
        if ready.get(2) == Some(&true) {
            let count = retry(|| rustix::io::read(stdin, &mut buffer))?;
            let typed = &buffer[..count];
            let end = typed.iter().position(|byte| *byte == DETACH);
            (&*console).write_all(&typed[..end.unwrap_or(count)])?;
            if end.is_some() || count == 0 {
                return Ok("Detached");
            }
        }
    }
}

fn retry(mut call: impl FnMut() -> rustix::io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            // How a socket ends whose QEMU was killed.
            Err(Errno::CONNRESET) => return Ok(0),
            done => return Ok(done?),
        }
    }
}
