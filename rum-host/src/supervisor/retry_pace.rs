//! Decides when an occupied host port is tried again: soon, as long as that costs next to nothing.
//!
//! One attempt costs some microseconds, but where another program occupies a whole range, there are
//! thousands of them. So the cost of attempts is measured, and the pause after each is long enough
//! that all attempts together use at most 1/[`SHARE`] of a core.
//!
//! Invariant: pure; the executor measures the attempts.

use std::time::Duration;

use crate::plan::CONFLICT_RETRY;

/// All attempts together take at most this fraction of a core (1/N), which goes unnoticed. 1,000
/// occupied ports are still tried each [`CONFLICT_RETRY`].
const SHARE: u32 = 20;
/// After this many tries, earlier measurements count half. The average follows a change within a
/// few rounds, and does not jump with one of them.
const MEMORY: u32 = 1024;

/// Recent cost of attempts.
#[derive(Debug, Default)]
pub(super) struct RetryPace {
    spent: Duration,
    forwards: u32,
}

impl RetryPace {
    /// Notes that trying `forwards` more forwards, or continuing with earlier ones, took `spent`.
    pub fn measured(&mut self, spent: Duration, forwards: u32) {
        self.spent += spent;
        self.forwards = self.forwards.saturating_add(forwards);
        while self.forwards > MEMORY {
            self.spent /= 2;
            self.forwards /= 2;
        }
    }

    /// The pause before the next try of a forward, while `waiting` forwards wait.
    pub fn pause(&self, waiting: usize) -> Duration {
        let waiting = u32::try_from(waiting).unwrap_or(u32::MAX);
        let round = (self.spent / self.forwards.max(1)).saturating_mul(waiting);
        round.saturating_mul(SHARE).max(CONFLICT_RETRY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_are_tried_soon_and_many_take_no_more_than_their_share() {
        let mut pace = RetryPace::default();
        assert_eq!(pace.pause(65_535), CONFLICT_RETRY, "nothing is known yet");
        let one = Duration::from_micros(10);
        pace.measured(one * 100, 100);
        assert_eq!(pace.pause(1000), CONFLICT_RETRY);
        assert_eq!(pace.pause(20_000), one * 20_000 * SHARE);
    }

    #[test]
    fn what_attempts_cost_is_followed() {
        let mut pace = RetryPace::default();
        let (cheap, dear) = (Duration::from_micros(10), Duration::from_millis(1));
        pace.measured(dear * MEMORY, MEMORY);
        // A forward that searches for another port takes several turns.
        pace.measured(dear * MEMORY, 0);
        assert_eq!(pace.pause(100), dear * 2 * 100 * SHARE);
        for _ in 0..20 {
            pace.measured(cheap * MEMORY, MEMORY);
        }
        assert_eq!(pace.pause(100), CONFLICT_RETRY);
    }
}
