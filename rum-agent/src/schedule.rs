//! When to dump: pure schedules that are told the time.
//!
//! [`RateLimit`] lets the first few dumps of a burst through at once and spaces the rest, so that a
//! storm of hints costs a bounded number of dumps a second. [`Share`] keeps what polls within a share
//! of a processor, however slow that is. [`Recheck`] remembers hinted
//! ports that no dump has shown yet: the tracepoint fires just before the kernel hashes the
//! socket, so the first dump after it can come too early.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// Dumps that may follow each other without a pause.
pub const BURST: u32 = 4;
/// Least distance between dumps in a storm: at most a thousand a second.
pub const MIN_DISTANCE: Duration = Duration::from_millis(1);
/// The distance is also at least this many times what the last dump cost, so that an expensive
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

    /// The earliest moment for the next action; in the past when it may happen now.
    pub fn earliest(&self) -> Instant {
        let room = self.distance * (BURST - 1);
        let bucket = self.empty_at.checked_sub(room).unwrap_or(self.empty_at);
        bucket.max(self.not_before)
    }

    /// Counts an action that began at `began` and has taken `cost` of processor time: one that was
    /// stopped on its way, or waited for a processor, took long and yet cost nothing.
    pub fn count(&mut self, began: Instant, cost: Duration) {
        self.distance = MIN_DISTANCE.max(cost * COST_FACTOR);
        self.empty_at = self.empty_at.max(began) + self.distance;
    }

    /// Allows nothing before `moment`.
    pub fn hold_until(&mut self, moment: Instant) {
        self.not_before = moment;
    }
}

/// Longest pause that [`Share`] asks for, whatever an action has cost: as often as the slow poll.
pub const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// A share of a processor: over time, actions take at most one part in `parts` of it. Saved up time,
/// at most `room`, lets some follow each other sooner.
#[derive(Debug)]
pub struct Share {
    parts: u32,
    room: Duration,
    /// When the actions so far will have taken their share and no more.
    even_at: Instant,
}

impl Share {
    /// A share of which nothing is used yet.
    pub fn new(now: Instant, parts: u32, room: Duration) -> Self {
        Self {
            parts,
            room,
            even_at: now,
        }
    }

    /// The earliest moment for the next action; in the past when it may happen now.
    pub fn earliest(&self) -> Instant {
        self.even_at.checked_sub(self.room).unwrap_or(self.even_at)
    }

    /// Counts an action that began at `began` and has taken `cost` of processor time.
    pub fn count(&mut self, began: Instant, cost: Duration) {
        let pause = cost.saturating_mul(self.parts);
        let most = self.room + LONGEST_PAUSE;
        let from = self.even_at.max(began);
        let owed = (from - began).saturating_add(pause).min(most);
        self.even_at = began + owed;
    }
}

/// The hinted ports that are still to be seen. Port 0 stands for a port that the hint could
/// not name (`listen()` without `bind()`); it is looked for until the tries are used up. Each port
/// has tries of its own, so that new ones do not keep up the search for those that were closed
/// before anybody looked.
#[derive(Debug, Default)]
pub struct Recheck(BTreeMap<u16, Tries>);

/// How the search for a port stands.
#[derive(Debug, Default)]
struct Tries {
    used: usize,
    /// When the next look is due; `None` before the first, which is due at once.
    due: Option<Instant>,
    /// Something stopped on the port since it was hinted.
    ended: bool,
}

impl Tries {
    fn is_due(&self, now: Instant) -> bool {
        self.due.is_none_or(|due| due <= now)
    }
}

impl Recheck {
    /// Whether `port` is being looked for.
    pub fn contains(&self, port: u16) -> bool {
        self.0.contains_key(&port)
    }

    /// The ports that are to be looked for at `now`.
    pub fn due_ports(&self, now: Instant) -> impl Iterator<Item = u16> + '_ {
        let due = self.0.iter().filter(move |(_, tries)| tries.is_due(now));
        due.map(|(port, _)| *port)
    }

    /// Whether `port` is being looked for and was not there at once, although nothing was heard of
    /// its end.
    pub fn hides(&self, port: u16) -> bool {
        let tries = self.0.get(&port);
        tries.is_some_and(|tries| tries.used >= 2 && !tries.ended)
    }

    /// When the next look is due.
    pub fn due(&self) -> Option<Instant> {
        self.0.values().filter_map(|tries| tries.due).min()
    }

    /// A hint said that something listens on `port`, or on an unknown one for 0.
    pub fn expect(&mut self, port: u16) {
        self.0.insert(port, Tries::default());
    }

    /// A hint said that something stopped on `port`: what was expected there, or what was before.
    pub fn ended(&mut self, port: u16) {
        if let Some(tries) = self.0.get_mut(&port) {
            tries.ended = true;
        }
    }

    /// A look began at `now`, for the ports that were due and perhaps others; `seen` says whether it
    /// showed a port. A look before a port's time uses up no try.
    pub fn looked(&mut self, now: Instant, seen: impl Fn(u16) -> bool) {
        self.0.retain(|port, tries| {
            if *port != 0 && seen(*port) {
                return false;
            }
            if !tries.is_due(now) {
                return true;
            }
            let Some(pause) = LOOK_AGAIN.get(tries.used) else {
                return false;
            };
            tries.due = Some(now + *pause);
            tries.used += 1;
            true
        });
    }

    /// Whether a look for `port` that begins at `now` is the last: what it misses is not there.
    pub fn is_last(&self, port: u16, now: Instant) -> bool {
        let tries = self.0.get(&port);
        tries.is_some_and(|tries| tries.used == LOOK_AGAIN.len() && tries.is_due(now))
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
    fn looking_again_ends() {
        let mut again = Recheck::default();
        let mut now = Instant::now();
        again.looked(now, |_| false);
        assert_eq!(again.due(), None, "nothing was expected");
        again.expect(80);
        for wait in LOOK_AGAIN {
            assert!(!again.is_last(80, now));
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
        assert!(again.is_last(80, now));
        again.looked(now, |_| false);
        assert_eq!(again.due(), None);
        assert!(!again.contains(80));
    }

    #[test]
    fn a_port_that_was_seen_is_no_longer_looked_for() {
        let now = Instant::now();
        let mut again = Recheck::default();
        again.expect(80);
        again.expect(0);
        again.looked(now, |port| port == 80);
        assert!(!again.contains(80) && again.contains(0));
        assert_eq!(again.due(), Some(now));
    }

    #[test]
    fn new_hints_do_not_keep_up_the_search_for_old_ports() {
        let mut again = Recheck::default();
        let mut now = Instant::now();
        again.expect(80);
        for port in 1000..1020 {
            again.expect(port);
            assert!(again.due_ports(now).any(|due| due == port));
            again.looked(now, |seen| seen == port);
            now += Duration::from_millis(10);
        }
        assert!(!again.contains(80));
        assert_eq!(again.due(), None);
    }

    #[test]
    fn what_is_late_hides_unless_it_ended() {
        let mut again = Recheck::default();
        let now = Instant::now();
        again.ended(81);
        again.expect(80);
        for hides in [false, false, true] {
            assert_eq!(again.hides(80), hides);
            again.looked(again.due().unwrap_or(now), |_| false);
        }
        again.ended(80);
        assert!(again.contains(80) && !again.hides(80) && !again.contains(81));
        again.expect(80);
        again.looked(now, |_| false);
        again.looked(now, |_| false);
        assert!(again.hides(80), "the end was of what was before");
    }

    #[test]
    fn a_port_that_is_hinted_anew_has_all_its_tries() {
        let mut again = Recheck::default();
        let now = Instant::now();
        for _ in 0..=LOOK_AGAIN.len() {
            again.expect(80);
            again.looked(now, |_| false);
            assert!(again.contains(80) && !again.hides(80) && !again.is_last(80, now));
        }
    }
}
