//! How fast an agent may tell of changes: a token bucket, so that one that tells without end costs
//! a part of a processor and not all of it.
//!
//! What is too much is not refused but read later: the agent's own `send` then waits (roam's
//! credit), and an honest one coalesces meanwhile. Pure: the clock comes in as an argument.
//!
//! Invariants: an honest agent is never held up ([`BURST`] is two complete sets); one pause is at
//! most [`LONGEST`], so that a stream that is held up still looks alive.

use std::time::{Duration, Instant};

/// Items (listeners and closed ports) that may come at once.
pub const BURST: u64 = 2 * 65_536;
/// Items a second for as long as it likes: 2,000 listeners that open and close each second.
pub const RATE: u64 = 4096;
/// The longest pause; less than what makes a stream count as silent.
pub const LONGEST: Duration = Duration::from_millis(500);

/// What may still come.
#[derive(Debug)]
pub struct TokenBucket {
    /// In millionths of an item; below 0: too much has come.
    left: i64,
    at: Instant,
}

/// Millionths.
const UNIT: i64 = 1_000_000;
const FULL: i64 = BURST as i64 * UNIT;

impl TokenBucket {
    /// A full one.
    pub fn new(now: Instant) -> Self {
        Self {
            left: FULL,
            at: now,
        }
    }

    /// `items` have come at `now`: how long to wait before the next are read.
    pub fn spend(&mut self, items: usize, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.at).as_micros();
        // Saturated, it is full again all the same.
        let passed = i64::try_from(passed).unwrap_or(i64::MAX);
        self.at = now;
        let earned = passed.saturating_mul(RATE as i64);
        // Nothing at all costs as well: it was read.
        let spent = i64::try_from(items).unwrap_or(i64::MAX).saturating_add(1);
        let spent = spent.saturating_mul(UNIT);
        self.left = self.left.saturating_add(earned).min(FULL);
        // A debt is forgotten beyond one burst: what comes later is not worse for it.
        self.left = self.left.saturating_sub(spent).max(-FULL);
        match u64::try_from(-self.left) {
            Ok(debt) => Duration::from_micros(debt / RATE).min(LONGEST),
            Err(_) => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_complete_sets_and_what_an_honest_agent_tells_pass_at_once() {
        let mut now = Instant::now();
        let mut allowance = TokenBucket::new(now);
        for _ in 0..2 {
            assert_eq!(allowance.spend(65_535, now), Duration::ZERO);
        }
        now += Duration::from_secs(60);
        for _ in 0..100_000 {
            // 2,000 changes a second.
            now += Duration::from_micros(500);
            assert_eq!(allowance.spend(1, now), Duration::ZERO);
        }
    }

    #[test]
    fn a_flood_is_slowed_to_the_rate() {
        let start = Instant::now();
        let mut now = start;
        let mut allowance = TokenBucket::new(now);
        let mut items = 0;
        while now < start + Duration::from_secs(100) {
            now += allowance.spend(99, now);
            items += 100;
        }
        let most = BURST + 101 * RATE;
        assert!((100 * RATE..most).contains(&items), "{items} of {most}");
    }

    #[test]
    fn no_pause_is_long_and_no_number_too_large() {
        let now = Instant::now();
        let mut allowance = TokenBucket::new(now);
        for _ in 0..3 {
            allowance.spend(usize::MAX, now);
            assert_eq!(allowance.spend(usize::MAX, now), LONGEST);
        }
        let later = now + Duration::from_secs(1 << 40);
        assert_eq!(allowance.spend(1, later), Duration::ZERO);
    }
}
