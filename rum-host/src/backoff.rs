//! The delays between attempts to reach an agent.
//!
//! Exponential from [`FIRST`] to [`LAST`], each delay drawn from the upper half of its step,
//! so that many hosts do not knock in step. Invariant: `FIRST / 2 <= delay <= LAST`. Where an
//! attempt costs nobody anything the longest step is [`LAST_OF_VSOCK`].

use std::time::Duration;

/// The first step.
pub const FIRST: Duration = Duration::from_millis(50);
/// The longest step.
pub const LAST: Duration = Duration::from_secs(5);

/// The longest step for the kernel's vsock: it answers for a guest that has no agent yet, or holds
/// the attempt for two seconds, and nobody knocks when there is one.
pub const LAST_OF_VSOCK: Duration = Duration::from_secs(1);

/// A sequence of growing delays.
#[derive(Debug)]
pub struct Backoff {
    step: Duration,
    last: Duration,
}

impl Backoff {
    /// With `last` as the longest step.
    pub fn up_to(last: Duration) -> Self {
        Self { step: FIRST, last }
    }

    /// The delay before the next attempt.
    pub fn next_delay(&mut self) -> Duration {
        let step = self.step;
        self.step = (step * 2).min(self.last);
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
        for last in [LAST, LAST_OF_VSOCK] {
            let mut backoff = Backoff::up_to(last);
            let mut step = FIRST;
            for _ in 0..20 {
                let delay = backoff.next_delay();
                assert!(step / 2 <= delay && delay <= step, "{delay:?} of {step:?}");
                step = (step * 2).min(last);
            }
            assert_eq!(step, last);
            backoff.reset();
            assert!(backoff.next_delay() <= FIRST);
        }
    }
}
