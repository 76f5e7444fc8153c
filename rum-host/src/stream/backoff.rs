//! The delays between attempts to reach an agent.
//!
//! Exponential from [`FIRST`] to [`LAST`], each delay drawn from the upper half of its step,
//! so that many hosts do not knock in step. Invariant: `FIRST / 2 <= delay <= LAST`.

use std::time::Duration;

/// The first step.
pub const FIRST: Duration = Duration::from_millis(50);
/// The longest step: an agent that is there again is found within the period of the poll, and an
/// attempt in vain costs little.
pub const LAST: Duration = Duration::from_secs(1);

/// A sequence of growing delays.
#[derive(Debug)]
pub struct Backoff {
    step: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { step: FIRST }
    }
}

impl Backoff {
    /// The delay before the next attempt.
    pub fn next_delay(&mut self) -> Duration {
        let step = self.step;
        self.step = (step * 2).min(LAST);
        step.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// An attempt has succeeded: start anew.
    pub fn reset(&mut self) {
        self.step = FIRST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_the_cap_and_start_anew() {
        let mut backoff = Backoff::default();
        let mut step = FIRST;
        for _ in 0..20 {
            let delay = backoff.next_delay();
            assert!(step / 2 <= delay && delay <= step, "{delay:?} of {step:?}");
            step = (step * 2).min(LAST);
        }
        assert_eq!(step, LAST);
        backoff.reset();
        assert!(backoff.next_delay() <= FIRST);
    }
}
