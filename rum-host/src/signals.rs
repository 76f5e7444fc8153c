//! Signals of `rum up`, and what its caller has decided about signals.
//!
//! A signal that the caller has us ignore stays ignored: SIGHUP under nohup(1), SIGINT and SIGQUIT
//! in a background job of a shell without job control. So it is for the user's commands, which
//! inherit from us what is ignored (execve(2)), as they would without rum.
//!
//! The Rust runtime ignores SIGPIPE before `main`, and `std::process` gives children the default back.
//! So [`note`] has to look before the runtime does, and [`restore`] is the last word between fork and
//! exec of each helper and of the command.

use std::io;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::signal::{self, SigHandler, Signal as Number};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What was ignored when this process began: bit N - 1 stands for signal N.
static IGNORED: AtomicU64 = AtomicU64::new(0);

/// All signals of Linux (`_NSIG` in the kernel's headers), one bit each.
const SIGNALS: i32 = 64;

/// Whose disposition this process changes for itself, though it installs no handler: those, an exec
/// would undo.
const CHANGED: [Number; 3] = [Number::SIGPIPE, Number::SIGCHLD, Number::SIGTSTP];

/// Notes what is ignored. To be called before Rust's runtime starts, by the program loader; it needs
/// nothing of that runtime.
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
    // SAFETY: a structure of plain integers, for which zero is a value.
    let mut now: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: nothing is installed, and the kernel writes what is, for numbers that it knows.
    let told = unsafe { libc::sigaction(number, ptr::null(), &raw mut now) };
    told == 0 && now.sa_sigaction == libc::SIG_IGN
}

/// Whether our caller has us ignore the signal.
fn is_ignored(number: i32) -> bool {
    (1..=SIGNALS).contains(&number) && IGNORED.load(Ordering::Relaxed) & bit(number) != 0
}

/// In a child between fork and exec: what the caller ignores is ignored, the rest is not. System calls
/// only.
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

/// The signals that end `rum up`, but those that its caller has it ignore.
#[derive(Debug)]
pub(crate) struct Signals {
    int: Option<Signal>,
    term: Option<Signal>,
    hup: Option<Signal>,
}

impl Signals {
    /// Begins to listen.
    ///
    /// # Errors
    /// As sigaction(2).
    pub(crate) fn new() -> io::Result<Self> {
        // Ignored, it would take the exit codes of children with it (sigaction(2)).
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

    /// The number of the next one. Cancel-safe.
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
