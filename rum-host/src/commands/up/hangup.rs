//! What SIGHUP means: the terminal is gone, or somebody wants the configuration to be read again.
//!
//! The kernel sends it when a terminal is closed, a shell passes it on, and people send it with
//! `kill -HUP`; the signal itself does not tell which. So the terminal is asked: a standard
//! stream that was one and is none any more, or a controlling terminal that cannot be opened
//! any more, means that it is gone.

use std::io::IsTerminal;
use std::time::Duration;

/// The kernel takes the terminal away shortly after it sent the signal, at the latest.
const AFTERWARDS: Duration = Duration::from_millis(100);

/// The terminals of this process when it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Terminals {
    /// stdin, stdout, stderr.
    streams: [bool; 3],
    controlling: bool,
}

impl Terminals {
    /// What they are now.
    pub(crate) fn now() -> Self {
        let streams = [
            std::io::stdin().is_terminal(),
            std::io::stdout().is_terminal(),
            std::io::stderr().is_terminal(),
        ];
        Self {
            streams,
            controlling: std::fs::File::open("/dev/tty").is_ok(),
        }
    }

    /// Whether one of these is gone, now or in a moment.
    pub(crate) async fn hung_up(self) -> bool {
        if self != Self::now() {
            return true;
        }
        if self.controlling {
            tokio::time::sleep(AFTERWARDS).await;
        }
        self != Self::now()
    }
}
