//! Signals that end `rum up`, and the signal dispositions that it inherits from its caller.
//!
//! A signal that the caller ignores stays ignored: SIGHUP under nohup(1), SIGINT and SIGQUIT in a
//! background job of a shell without job control. The same holds for the user's commands: they
//! inherit ignored signals from us (execve(2)), as they would without rum.
//!
//! The Rust runtime ignores SIGPIPE before `main`, and `std::process` resets it to the default in
//! children. So [`note`] has to run before the runtime starts, and [`restore`] runs last between
//! fork and exec of each helper and of the command.

use std::io;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::signal::{self, SigHandler, Signal as Number};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that were ignored when this process started: bit N - 1 stands for signal N.
static IGNORED: AtomicU64 = AtomicU64::new(0);

/// All signals of Linux (`_NSIG` in the kernel's headers), one bit each.
const SIGNALS: i32 = 64;

/// Signals whose disposition this process changes without installing a handler. exec(2) resets
/// handlers, but not these.
const CHANGED: [Number; 3] = [Number::SIGPIPE, Number::SIGCHLD, Number::SIGTSTP];

/// Notes which signals are ignored. The program loader calls this before Rust's runtime starts, so
/// it uses nothing of that runtime.
pub extern "C" fn note() {
    for number in 1..=SIGNALS {
        if is_ignored_now(number) {
            IGNORED.fetch_or(bit(number), Ordering::Relaxed);
        }
    }
}

fn bit(number: i32) -> u64 {
    1 << (number - 1)
}

fn is_ignored_now(number: i32) -> bool {
    // SAFETY: the structure holds plain integers, for which zero is valid.
    let mut now: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: nothing is installed; the kernel only writes the current action to `now`.
    let result = unsafe { libc::sigaction(number, ptr::null(), &raw mut now) };
    result == 0 && now.sa_sigaction == libc::SIG_IGN
}

/// Whether the caller ignores the signal.
fn is_ignored(number: i32) -> bool {
    (1..=SIGNALS).contains(&number) && IGNORED.load(Ordering::Relaxed) & bit(number) != 0
}

/// Restores the caller's dispositions in a child between fork and exec: ignored signals are
/// ignored, the others have their default. Makes system calls only.
pub fn restore() {
    for number in CHANGED {
        // SAFETY: no handler is installed.
        let _ = unsafe { signal::signal(number, SigHandler::SigDfl) };
    }
    for number in (1..=SIGNALS).filter(|number| is_ignored(*number)) {
        // SAFETY: no handler is installed.
        unsafe { libc::signal(number, libc::SIG_IGN) };
    }
}

/// The signals that end `rum up`, except those that its caller ignores.
#[derive(Debug)]
pub(crate) struct Signals {
    int: Option<Signal>,
    term: Option<Signal>,
    hup: Option<Signal>,
}

impl Signals {
    /// Installs the handlers.
    ///
    /// # Errors
    /// As sigaction(2).
    pub(crate) fn new() -> io::Result<Self> {
        // If SIGCHLD stayed ignored, the exit codes of children would be lost (sigaction(2)).
        // SAFETY: no handler is installed.
        unsafe { signal::signal(Number::SIGCHLD, SigHandler::SigDfl) }?;
        let listen = |kind: SignalKind| {
            if is_ignored(kind.as_raw_value()) {
                Ok(None)
            } else {
                signal(kind).map(Some)
            }
        };
        Ok(Self {
            int: listen(SignalKind::interrupt())?,
            term: listen(SignalKind::terminate())?,
            hup: listen(SignalKind::hangup())?,
        })
    }

    /// Returns the number of the next signal. Cancel-safe.
    pub(crate) async fn next(&mut self) -> i32 {
        tokio::select! {
            () = received(&mut self.int) => SignalKind::interrupt(),
            () = received(&mut self.term) => SignalKind::terminate(),
            () = received(&mut self.hup) => SignalKind::hangup(),
        }
        .as_raw_value()
    }
}

async fn received(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}
