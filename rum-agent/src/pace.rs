//! When to dump: pure schedules that are told the time.
//!
//! [`Pace`] lets the first few dumps of a burst through at once and spaces the rest, so that a
//! storm of hints costs a bounded number of dumps a second. [`LookAgain`] remembers hinted
//! ports that no dump has shown yet: the tracepoint fires just before the kernel hashes the
//! socket, so the first dump after it can come too early.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

/// Dumps that may follow each other without a pause.
pub const BURST: u32 = 4;
/// Least distance between dumps in a storm: at most a thousand a second.
pub const MIN_DISTANCE: Duration = Duration::from_millis(1);
/// The distance is also at least this many times what the last dump took, so that an expensive
/// source (/proc with many connections) does not eat a core.
pub const COST_FACTOR: u32 = 4;

/// How long after the last look the next one follows, while a hinted port is missing.
///
/// Together 63 ms: a program that was asked about its `listen()` still has to get a processor
/// before it listens.
pub const LOOK_AGAIN: [Duration; 7] = [
    Duration::ZERO,
    Duration::from_millis(1),
    Duration::from_millis(2),
    Duration::from_millis(4),
    Duration::from_millis(8),
    Duration::from_millis(16),
    Duration::from_millis(32),
];

/// A leaky bucket of [`BURST`] actions.
#[derive(Debug)]
pub struct Pace {
    /// When the bucket will be empty again.
    empty_at: Instant,
    distance: Duration,
    not_before: Instant,
}

impl Pace {
    /// A schedule whose first burst is available at once.
    pub fn new(now: Instant) -> Self {
        Self {
            empty_at: now,
            distance: MIN_DISTANCE,
            not_before: now,
        }
    }

    /// The earliest moment for the next action; in the past when it may happen now.
    pub fn earliest(&self) -> Instant {
        let room = self.distance * (BURST - 1);
        let bucket = self.empty_at.checked_sub(room).unwrap_or(self.empty_at);
        bucket.max(self.not_before)
    }

    /// Counts an action that began at `began` and has taken `cost`.
    pub fn count(&mut self, began: Instant, cost: Duration) {
        self.distance = MIN_DISTANCE.max(cost * COST_FACTOR);
        self.empty_at = self.empty_at.max(began) + self.distance;
    }

    /// Allows nothing before `moment`.
    pub fn hold_until(&mut self, moment: Instant) {
        self.not_before = moment;
    }
}

/// The hinted ports that are still to be seen. Port 0 stands for a port that the hint could
/// not name (`listen()` without `bind()`); it is looked for until the tries are used up.
#[derive(Debug, Default)]
pub struct LookAgain {
    ports: BTreeSet<u16>,
    step: usize,
    due: Option<Instant>,
}

impl LookAgain {
    /// Whether `port` is being looked for.
    pub fn contains(&self, port: u16) -> bool {
        self.ports.contains(&port)
    }

    /// The ports that are being looked for.
    pub fn ports(&self) -> impl Iterator<Item = u16> + '_ {
        self.ports.iter().copied()
    }

    /// Whether what is looked for was not there at once.
    pub fn is_late(&self) -> bool {
        self.step >= 2
    }

    /// When the next look is due.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// A hint said that something listens on `port`, or on an unknown one for 0.
    pub fn expect(&mut self, port: u16) {
        self.ports.insert(port);
        self.step = 0;
        self.due = None;
    }

    /// A look began at `now`; `seen` says whether it showed a port. A look before its time
    /// uses up no try.
    pub fn looked(&mut self, now: Instant, seen: impl Fn(u16) -> bool) {
        let last = self.is_last(now);
        self.ports.retain(|port| *port == 0 || !seen(*port));
        if last {
            self.ports.clear();
        }
        if !self.ports.is_empty() && self.due.is_some_and(|due| now < due) {
            return;
        }
        self.due = None;
        if !self.ports.is_empty() {
            self.due = Some(now + LOOK_AGAIN[self.step]);
            self.step += 1;
        }
    }

    /// Whether a look that begins at `now` is the last: what it misses is not there.
    pub fn is_last(&self, now: Instant) -> bool {
        self.step == LOOK_AGAIN.len() && self.due.is_some_and(|due| due <= now)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_burst_passes_and_a_storm_is_spaced() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
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
        let mut pace = Pace::new(start);
        for _ in 0..BURST {
            pace.count(start, Duration::from_millis(50));
        }
        assert_eq!(pace.earliest(), start + Duration::from_millis(200));
    }

    #[test]
    fn nothing_happens_before_a_hold_ends() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        pace.hold_until(start + Duration::from_secs(1));
        assert_eq!(pace.earliest(), start + Duration::from_secs(1));
    }

    #[test]
    fn looking_again_ends() {
        let mut again = LookAgain::default();
        let mut now = Instant::now();
        again.looked(now, |_| false);
        assert_eq!(again.due(), None, "nothing was expected");
        again.expect(80);
        for wait in LOOK_AGAIN {
            assert!(!again.is_last(now));
            again.looked(now, |_| false);
            assert_eq!(again.due(), Some(now + wait));
            now += wait;
        }
        again.looked(now - LOOK_AGAIN[1], |_| false);
        assert_eq!(
            again.due(),
            Some(now),
            "a look before its time does not count"
        );
        assert!(again.is_last(now));
        again.looked(now, |_| false);
        assert_eq!(again.due(), None);
        assert!(!again.contains(80));
    }

    #[test]
    fn a_port_that_was_seen_is_no_longer_looked_for() {
        let now = Instant::now();
        let mut again = LookAgain::default();
        again.expect(80);
        again.expect(0);
        again.looked(now, |port| port == 80);
        assert!(!again.contains(80) && again.contains(0));
        assert_eq!(again.due(), Some(now));
    }
}
