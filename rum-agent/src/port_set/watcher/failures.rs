//! Dumps that fail: when to try again, and what the log says of it.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, warn};

use crate::chain;
use crate::kernel::DumpError;

/// Pause after the first dump that failed; doubled for each that follows.
const RETRY_FIRST: Duration = Duration::from_millis(10);
/// Longest pause between two dumps that fail.
const RETRY_MAX: Duration = Duration::from_millis(500);
/// Time between two log lines about dumps that keep failing.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// Dumps that failed in a row.
#[derive(Debug, Default)]
pub(super) struct Failures {
    count: u32,
    logged: Option<Instant>,
}

impl Failures {
    /// Counts and logs a failure; returns the pause before the next try.
    pub(super) fn count(&mut self, now: Instant, error: &DumpError) -> Duration {
        let pause = RETRY_FIRST.saturating_mul(1 << self.count.min(16));
        self.count += 1;
        if self.logged.is_none_or(|last| now - last >= LOG_EVERY) {
            self.logged = Some(now);
            let (reason, times) = (chain(error), self.count);
            warn!("the set of listeners is kept, since reading it failed ({times}x): {reason}");
        } else {
            debug!("reading the listeners failed again");
        }
        pause.min(RETRY_MAX)
    }
}
