//! Step 4 of the data flow: the 1 s poll, as a safety net under the stream.
//!
//! A poll is a snapshot of an uncertain moment between its request and its answer, so it must
//! not overrule the stream: it says nothing about a port for which an event arrived after the
//! request was sent. What then still differs is a *suspect*; only when a second poll, sent at
//! least [`CONFIRM_AFTER`] later, finds the same difference is it repaired, and counted. In a
//! healthy run the count is 0.
//!
//! Invariants: pure (`now` comes in); at most one suspect a port; an event acquits its port.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

/// A difference must last this long before it is acted on.
pub const CONFIRM_AFTER: Duration = Duration::from_millis(100);
/// Events older than this can't be newer than a poll's request: the calls have a shorter
/// deadline.
const FORGET_AFTER: Duration = Duration::from_secs(30);

/// A difference that two polls agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repair {
    /// The port is open and no event said so.
    Opened(u16),
    /// The port is closed and no event said so.
    Closed(u16),
}

/// What the polls of a connection have found so far.
#[derive(Debug, Default)]
pub struct Reconciler {
    /// When the stream last said something about a port.
    events: HashMap<u16, Instant>,
    /// When the stream last said everything.
    snapshot: Option<Instant>,
    /// Ports whose state differed in the last poll: what the poll saw, and when it was sent.
    suspects: BTreeMap<u16, (bool, Instant)>,
    /// How many ports had to be repaired.
    pub repaired: u64,
}

impl Reconciler {
    /// The stream said something about `port`.
    pub fn event(&mut self, port: u16, now: Instant) {
        self.suspects.remove(&port);
        self.events.insert(port, now);
        if self.events.len() > usize::from(u16::MAX) / 4 {
            self.events
                .retain(|_, at| now.saturating_duration_since(*at) < FORGET_AFTER);
        }
    }

    /// The stream said what every port is.
    pub fn snapshot(&mut self, now: Instant) {
        self.suspects.clear();
        self.events.clear();
        self.snapshot = Some(now);
    }

    /// A poll sent at `sent` found `open` where the stream had told of `known`, both ascending.
    /// Returns the confirmed differences. Ask again after [`CONFIRM_AFTER`] while
    /// [`Reconciler::has_suspects`].
    pub fn poll(
        &mut self,
        sent: Instant,
        known: impl IntoIterator<Item = u16>,
        open: &[u16],
    ) -> Vec<Repair> {
        if self.snapshot.is_some_and(|at| at >= sent) {
            return Vec::new();
        }
        let mut suspects = BTreeMap::new();
        let mut repairs = Vec::new();
        for (port, is_open) in differences(known, open) {
            if self.events.get(&port).is_some_and(|at| *at >= sent) {
                continue;
            }
            match self.suspects.get(&port) {
                Some((seen, since)) if *seen == is_open => {
                    if sent.saturating_duration_since(*since) >= CONFIRM_AFTER {
                        repairs.push(if is_open {
                            Repair::Opened(port)
                        } else {
                            Repair::Closed(port)
                        });
                    } else {
                        suspects.insert(port, (is_open, *since));
                    }
                }
                _ => {
                    suspects.insert(port, (is_open, sent));
                }
            }
        }
        self.suspects = suspects;
        self.repaired += repairs.len() as u64;
        repairs
    }

    /// Whether a second poll should follow soon.
    pub fn has_suspects(&self) -> bool {
        !self.suspects.is_empty()
    }
}

/// The ports of only one of two ascending lists: whether it is `open`.
fn differences(known: impl IntoIterator<Item = u16>, open: &[u16]) -> Vec<(u16, bool)> {
    let mut open = open.iter().copied().peekable();
    let mut differences = Vec::new();
    for known in known {
        while let Some(port) = open.next_if(|port| *port < known) {
            differences.push((port, true));
        }
        if open.next_if_eq(&known).is_none() {
            differences.push((known, false));
        }
    }
    differences.extend(open.map(|port| (port, true)));
    differences
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(start: Instant, n: u64) -> Instant {
        start + Duration::from_millis(n)
    }

    #[test]
    fn a_difference_is_repaired_by_the_second_poll_and_counted_once() {
        let (mut r, t) = (Reconciler::default(), Instant::now());
        r.snapshot(t);
        assert_eq!(r.poll(ms(t, 1), [1, 2], &[2, 3]), []);
        assert!(r.has_suspects());
        assert_eq!(r.poll(ms(t, 50), [1, 2], &[2, 3]), [], "too soon");
        let repairs = r.poll(ms(t, 101), [1, 2], &[2, 3]);
        assert_eq!(repairs, [Repair::Closed(1), Repair::Opened(3)]);
        assert_eq!(r.repaired, 2);
        assert_eq!(r.poll(ms(t, 300), [2, 3], &[2, 3]), []);
        assert!(!r.has_suspects());
    }

    #[test]
    fn an_answer_delayed_past_an_event_says_nothing() {
        let (mut r, t) = (Reconciler::default(), Instant::now());
        r.snapshot(t);
        // Sent at 1, the port opened at 2, the answer (of before) comes at 3; again and again.
        for round in 0..5 {
            let at = round * 1000;
            r.event(7, ms(t, at + 2));
            assert_eq!(r.poll(ms(t, at + 1), [7], &[]), []);
            assert!(!r.has_suspects());
        }
        // A snapshot overrules every poll sent before it.
        r.snapshot(ms(t, 9000));
        assert_eq!(r.poll(ms(t, 8999), [7], &[]), []);
        assert!(!r.has_suspects());
    }

    #[test]
    fn an_event_between_two_polls_acquits() {
        let (mut r, t) = (Reconciler::default(), Instant::now());
        r.poll(t, [], &[7]);
        r.event(7, ms(t, 10));
        assert_eq!(r.poll(ms(t, 1000), [], &[7]), []);
        assert_eq!(r.poll(ms(t, 2000), [], &[7]), [Repair::Opened(7)]);
    }

    #[test]
    fn a_port_that_flaps_between_polls_is_not_confirmed() {
        let (mut r, t) = (Reconciler::default(), Instant::now());
        for round in 0..4 {
            let open: &[u16] = if round % 2 == 0 { &[7] } else { &[] };
            assert_eq!(r.poll(ms(t, round * 1000), [], open), []);
        }
        assert_eq!(r.repaired, 0);
    }
}
