//! How often something may happen: pure schedules. Time is passed in.
//!
//! [`RateLimit`] lets the first few actions of a burst through at once and spaces the rest, so that a
//! storm of hints costs a bounded number of dumps a second. [`Share`] limits polling to a share of a
//! processor, however slow that is. [`Backoff`] spaces attempts that fail, [`LogThrottle`] log lines
//! that repeat.

use std::time::Duration;

use tokio::time::Instant;

/// Dumps that may follow each other without a pause.
pub const BURST: u32 = 4;
/// Least distance between dumps in a storm: at most a thousand a second.
pub const MIN_DISTANCE: Duration = Duration::from_millis(1);
/// The distance is also at least this many times what the last dump cost, so that an expensive
/// source (/proc with many connections) does not eat a core.
pub const COST_FACTOR: u32 = 4;

/// A leaky bucket of [`BURST`] actions.
#[derive(Debug)]
pub struct RateLimit {
    /// When the bucket will be empty again.
    empty_at: Instant,
    distance: Duration,
    not_before: Instant,
}

impl RateLimit {
    /// A schedule whose first burst is available at once.
    pub fn new(now: Instant) -> Self {
        Self {
            empty_at: now,
            distance: MIN_DISTANCE,
            not_before: now,
        }
    }

    /// The earliest moment for the next action; in the past if it may happen now.
    pub fn earliest(&self) -> Instant {
        let room = self.distance * (BURST - 1);
        let bucket = self.empty_at.checked_sub(room).unwrap_or(self.empty_at);
        bucket.max(self.not_before)
    }

    /// Counts an action that began at `began` and used `cost` of processor time. Elapsed time does not
    /// count: an action that was stopped or waited for a processor took long, yet cost little.
    pub fn count(&mut self, began: Instant, cost: Duration) {
        self.distance = MIN_DISTANCE.max(cost * COST_FACTOR);
        self.empty_at = self.empty_at.max(began) + self.distance;
    }

    /// Allows no action before `moment`.
    pub fn hold_until(&mut self, moment: Instant) {
        self.not_before = moment;
    }
}

/// Longest pause that [`Share`] asks for, whatever an action has cost: as often as the slow poll.
pub const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// A share of a processor: over time, actions use at most one part in `parts` of it. Unused time, up
/// to `room`, is saved and lets some actions follow each other sooner.
#[derive(Debug)]
pub struct Share {
    parts: u32,
    room: Duration,
    /// When the actions so far will have used exactly their share.
    even_at: Instant,
}

impl Share {
    /// A share of which nothing has been used yet.
    pub fn new(now: Instant, parts: u32, room: Duration) -> Self {
        Self {
            parts,
            room,
            even_at: now,
        }
    }

    /// The earliest moment for the next action; in the past if it may happen now.
    pub fn earliest(&self) -> Instant {
        self.even_at.checked_sub(self.room).unwrap_or(self.even_at)
    }

    /// Counts an action that began at `began` and used `cost` of processor time.
    pub fn count(&mut self, began: Instant, cost: Duration) {
        let pause = cost.saturating_mul(self.parts);
        let most = self.room + LONGEST_PAUSE;
        let from = self.even_at.max(began);
        let owed = (from - began).saturating_add(pause).min(most);
        self.even_at = began + owed;
    }
}

/// Pauses between attempts that fail: each twice as long as the one before it, up to a longest one.
#[derive(Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    /// A sequence of pauses that begins with `first`.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            failures: 0,
        }
    }

    /// Counts a failure. Returns the pause before the next attempt.
    pub fn fail(&mut self) -> Duration {
        let pause = self.first.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        pause.min(self.longest)
    }

    /// The failures since the last success.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// An attempt has succeeded: the next failure starts the sequence anew.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

/// Time between two log lines of one [`LogThrottle`].
const LOG_EVERY: Duration = Duration::from_secs(10);

/// Lets one log line through each [`LOG_EVERY`].
#[derive(Debug, Default)]
pub struct LogThrottle(Option<Instant>);

impl LogThrottle {
    /// Whether a line may be written at `now`. If so, it counts as written.
    pub fn allows(&mut self, now: Instant) -> bool {
        let allowed = self.0.is_none_or(|last| now - last >= LOG_EVERY);
        if allowed {
            self.0 = Some(now);
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_burst_passes_and_a_storm_is_spaced() {
        let start = Instant::now();
        let mut pace = RateLimit::new(start);
        let mut now = start;
        let mut dumps = 0;
        // A hint is always pending: as many dumps as the pace allows within a second.
        while now < start + Duration::from_secs(1) {
            now = now.max(pace.earliest());
            pace.count(now, Duration::ZERO);
            dumps += 1;
            if dumps == BURST {
                assert_eq!(now, start, "a burst is not delayed");
            }
        }
        assert!(
            (1000..1010).contains(&dumps),
            "{dumps} dumps in a storm of a second"
        );
        // After a pause the next burst is free again.
        assert!(pace.earliest() <= now + Duration::from_secs(1));
    }

    #[test]
    fn an_expensive_source_is_asked_less_often() {
        let start = Instant::now();
        let mut pace = RateLimit::new(start);
        for _ in 0..BURST {
            pace.count(start, Duration::from_millis(50));
        }
        assert_eq!(pace.earliest(), start + Duration::from_millis(200));
    }

    /// When actions that cost `cost` each begin in two seconds, at least `floor` apart.
    fn in_two_seconds(share: &mut Share, start: Instant, floor: Duration, cost: Duration) -> usize {
        let mut now = start;
        let mut count = 0;
        while now < start + Duration::from_secs(2) {
            share.count(now, cost);
            count += 1;
            now = (now + floor).max(share.earliest());
        }
        count
    }

    #[test]
    fn a_share_slows_down_only_what_takes_more() {
        let start = Instant::now();
        let ms = Duration::from_millis;
        let share = || Share::new(start, 50, ms(100));
        // A fiftieth of 4 ms is 80 us.
        let cheap = in_two_seconds(&mut share(), start, ms(4), Duration::from_micros(79));
        assert_eq!(cheap, 500);
        let dear = in_two_seconds(&mut share(), start, ms(4), Duration::from_micros(400));
        // Each 20 ms, and 5 that were saved up.
        assert!((105..=107).contains(&dear), "{dear}");
    }

    #[test]
    fn one_action_that_is_dear_delays_nothing_after_a_rest() {
        let start = Instant::now();
        let ms = Duration::from_millis;
        let mut share = Share::new(start, 50, ms(100));
        share.count(start, ms(1));
        assert!(share.earliest() <= start);
        share.count(start, ms(1));
        share.count(start, ms(1));
        assert_eq!(share.earliest(), start + ms(50));
        let later = start + Duration::from_secs(1);
        share.count(later, ms(2));
        assert!(share.earliest() <= later, "rest is saved up");
    }

    #[test]
    fn a_share_owes_a_bounded_pause() {
        let start = Instant::now();
        let mut share = Share::new(start, 50, Duration::from_millis(100));
        for cost in [Duration::from_secs(3), Duration::MAX] {
            share.count(start, cost);
            assert_eq!(share.earliest(), start + LONGEST_PAUSE);
        }
    }

    #[test]
    fn nothing_happens_before_a_hold_ends() {
        let start = Instant::now();
        let mut pace = RateLimit::new(start);
        pace.hold_until(start + Duration::from_secs(1));
        assert_eq!(pace.earliest(), start + Duration::from_secs(1));
    }

    #[test]
    fn pauses_double_up_to_the_longest_and_start_anew() {
        let ms = Duration::from_millis;
        let mut backoff = Backoff::new(ms(10), ms(500));
        for pause in [10, 20, 40, 80, 160, 320, 500, 500] {
            assert_eq!(backoff.fail(), ms(pause));
        }
        assert_eq!(backoff.failures(), 8);
        for _ in 0..40 {
            assert_eq!(backoff.fail(), ms(500));
        }
        backoff.reset();
        assert_eq!((backoff.failures(), backoff.fail()), (0, ms(10)));
    }

    #[test]
    fn what_happens_all_the_time_is_logged_now_and_then() {
        let now = Instant::now();
        let mut log = LogThrottle::default();
        assert!(log.allows(now));
        assert!(!log.allows(now + LOG_EVERY - Duration::from_millis(1)));
        assert!(log.allows(now + LOG_EVERY));
        assert!(!log.allows(now + LOG_EVERY));
    }
}
