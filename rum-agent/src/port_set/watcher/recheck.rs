//! Step 2 of the data flow: the ports that a hint named and that no dump has shown yet. Pure.
//!
//! The kernel's event fires just before the kernel hashes the socket, so the first dump after it can
//! come too early. Such a port is looked at again, a few times within [`PAUSES`].
//!
//! Invariants: each port has tries of its own, so that new hints do not prolong the search for ports
//! that closed before any dump; a port leaves when a dump shows it or when its tries are used up.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// Pauses between the dumps that look for a port, counted from the first dump after its hint.
///
/// Together 63 ms: the seccomp notification comes before `listen()`, and the program still has to get
/// a processor to execute it.
pub(super) const PAUSES: [Duration; 7] = [
    Duration::ZERO,
    Duration::from_millis(1),
    Duration::from_millis(2),
    Duration::from_millis(4),
    Duration::from_millis(8),
    Duration::from_millis(16),
    Duration::from_millis(32),
];

/// The expected ports. Port 0 stands for one that the hint could not name (`listen()` without
/// `bind()`): no dump shows it, so it stays until its tries are used up.
#[derive(Debug, Default)]
pub(super) struct Recheck(BTreeMap<u16, Tries>);

/// State of the search for one port.
#[derive(Debug, Default)]
struct Tries {
    used: usize,
    /// When the next dump is due; `None` before the first, which is due at once.
    due: Option<Instant>,
    /// A hint said that a listener on the port ended, after the one that the search is for.
    ended: bool,
}

impl Tries {
    fn is_due(&self, now: Instant) -> bool {
        self.due.is_none_or(|due| due <= now)
    }
}

impl Recheck {
    /// A hint says that something listens on `port`; 0 for an unknown one.
    pub(super) fn expect(&mut self, port: u16) {
        self.0.insert(port, Tries::default());
    }

    /// A hint says that a listener on `port` ended: the expected one, or its predecessor.
    pub(super) fn ended(&mut self, port: u16) {
        if let Some(tries) = self.0.get_mut(&port) {
            tries.ended = true;
        }
    }

    /// When the next repeated dump is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.0.values().filter_map(|tries| tries.due).min()
    }

    /// The ports that a dump at `now` should show.
    pub(super) fn due_ports(&self, now: Instant) -> impl Iterator<Item = u16> + '_ {
        let due = self.0.iter().filter(move |(_, tries)| tries.is_due(now));
        due.map(|(port, _)| *port)
    }

    /// Whether `port` is expected.
    pub(super) fn contains(&self, port: u16) -> bool {
        self.0.contains_key(&port)
    }

    /// Whether the next dump for `port` is the last one, if it begins at `now`: a port that it misses
    /// does not listen.
    pub(super) fn is_last(&self, port: u16, now: Instant) -> bool {
        let tries = self.0.get(&port);
        tries.is_some_and(|tries| tries.used == PAUSES.len() && tries.is_due(now))
    }

    /// Whether two dumps have missed `port` already although no hint told of its end.
    pub(super) fn hides(&self, port: u16) -> bool {
        let tries = self.0.get(&port);
        tries.is_some_and(|tries| tries.used >= 2 && !tries.ended)
    }

    /// A dump has begun at `now`, for the ports that were due and perhaps others; `shown` says whether
    /// it shows a port. A dump before a port's time uses up no try.
    pub(super) fn looked(&mut self, now: Instant, shown: impl Fn(u16) -> bool) {
        self.0.retain(|port, tries| {
            if *port != 0 && shown(*port) {
                return false;
            }
            if !tries.is_due(now) {
                return true;
            }
            let Some(pause) = PAUSES.get(tries.used) else {
                return false;
            };
            tries.due = Some(now + *pause);
            tries.used += 1;
            true
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_again_ends() {
        let mut recheck = Recheck::default();
        let mut now = Instant::now();
        recheck.looked(now, |_| false);
        assert_eq!(recheck.due(), None, "nothing was expected");
        recheck.expect(80);
        for wait in PAUSES {
            assert!(!recheck.is_last(80, now));
            recheck.looked(now, |_| false);
            assert_eq!(recheck.due(), Some(now + wait));
            now += wait;
        }
        recheck.looked(now - PAUSES[1], |_| false);
        assert_eq!(
            recheck.due(),
            Some(now),
            "a look before its time does not count"
        );
        assert!(recheck.is_last(80, now));
        recheck.looked(now, |_| false);
        assert_eq!(recheck.due(), None);
        assert!(!recheck.contains(80));
    }

    #[test]
    fn a_port_that_was_seen_is_no_longer_looked_for() {
        let now = Instant::now();
        let mut recheck = Recheck::default();
        recheck.expect(80);
        recheck.expect(0);
        recheck.looked(now, |port| port == 80);
        assert!(!recheck.contains(80) && recheck.contains(0));
        assert_eq!(recheck.due(), Some(now));
    }

    #[test]
    fn new_hints_do_not_keep_up_the_search_for_old_ports() {
        let mut recheck = Recheck::default();
        let mut now = Instant::now();
        recheck.expect(80);
        for port in 1000..1020 {
            recheck.expect(port);
            assert!(recheck.due_ports(now).any(|due| due == port));
            recheck.looked(now, |seen| seen == port);
            now += Duration::from_millis(10);
        }
        assert!(!recheck.contains(80));
        assert_eq!(recheck.due(), None);
    }

    #[test]
    fn what_is_late_hides_unless_it_ended() {
        let mut recheck = Recheck::default();
        let now = Instant::now();
        recheck.ended(81);
        recheck.expect(80);
        for hides in [false, false, true] {
            assert_eq!(recheck.hides(80), hides);
            recheck.looked(recheck.due().unwrap_or(now), |_| false);
        }
        recheck.ended(80);
        assert!(recheck.contains(80) && !recheck.hides(80) && !recheck.contains(81));
        recheck.expect(80);
        recheck.looked(now, |_| false);
        recheck.looked(now, |_| false);
        assert!(recheck.hides(80), "the end was of what was before");
    }

    #[test]
    fn a_port_that_is_hinted_anew_has_all_its_tries() {
        let mut recheck = Recheck::default();
        let now = Instant::now();
        for _ in 0..=PAUSES.len() {
            recheck.expect(80);
            recheck.looked(now, |_| false);
            assert!(recheck.contains(80) && !recheck.hides(80) && !recheck.is_last(80, now));
        }
    }
}
