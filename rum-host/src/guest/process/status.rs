//! Reports of a guest's helpers to rum: lines of text on their standard output, a pipe.
//!
//! On success: `net COOKIE` and `init PID` from the keeper and `ready` from init, the last two in
//! either order. On failure: `error …` and perhaps `hint …`. When the guest has ended: `ended …`.
//! End of file means that both helpers are gone.

use std::fmt;

use super::Failure;

/// Longest line, in bytes. The writer truncates a longer one, and the reader refuses it.
pub const MAX_LINE: usize = 2048;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// Init's id, as seen from outside.
    Init(u32),
    /// The guest's network namespace, on kernels that have a cookie for it.
    Net(u64),
    /// Everything is set up and the agent was started.
    Ready,
    /// Setting up failed, for this reason.
    Error(String),
    /// What can be done about the error of the line before.
    Hint(String),
    /// How init ended, as the end of a sentence.
    Ended(String),
}

impl Status {
    /// Parses a line without its newline; None if it is not a status line.
    pub fn parse(line: &str) -> Option<Self> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        Some(match word {
            "init" => Self::Init(rest.parse().ok().filter(|pid| *pid > 0)?),
            "net" => Self::Net(rest.parse().ok()?),
            "ready" => Self::Ready,
            "error" => Self::Error(rest.to_owned()),
            "hint" => Self::Hint(rest.to_owned()),
            "ended" => Self::Ended(rest.to_owned()),
            _ => return None,
        })
    }

    /// Writes the line to standard output. A failed write is ignored: then no reader is left.
    pub(super) fn send(&self) {
        write(&self.line());
    }

    fn line(&self) -> String {
        let mut line = self.to_string().replace(['\n', '\r'], " ");
        while line.len() >= MAX_LINE {
            line.pop();
        }
        line + "\n"
    }
}

/// Writes at most two lines, no more than PIPE_BUF: all or nothing, and never interleaved with
/// another writer's (pipe(7)).
fn write(lines: &str) {
    let _ = rustix::io::write(rustix::stdio::stdout(), lines.as_bytes());
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Init(pid) => write!(f, "init {pid}"),
            Self::Net(cookie) => write!(f, "net {cookie}"),
            Self::Ready => f.write_str("ready"),
            Self::Error(text) => write!(f, "error {text}"),
            Self::Hint(text) => write!(f, "hint {text}"),
            Self::Ended(text) => write!(f, "ended {text}"),
        }
    }
}

impl Failure {
    /// Reports the failure to rum.
    pub(super) fn send(self) {
        let hint = self.hint.map(|hint| Status::Hint(hint).line());
        write(&(Status::Error(self.message).line() + &hint.unwrap_or_default()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_round_trip_and_others_are_refused() {
        let text = || "no /proc: gone away".to_owned();
        for status in [
            Status::Init(7),
            Status::Net(4097),
            Status::Ready,
            Status::Error(text()),
            Status::Hint(text()),
            Status::Ended(text()),
        ] {
            assert_eq!(Status::parse(&status.to_string()), Some(status));
        }
        for line in ["", "init", "init x", "init 0", "init -1", "hello", "READY"] {
            assert_eq!(Status::parse(line), None, "{line:?}");
        }
    }
}
