//! Step 4 of the data flow: the 1 s poll, a safety net for the stream.
//!
//! A poll shows the ports at an unknown moment between its request and its answer, so it must not
//! overrule the stream. It says nothing about a port for which an event arrived after the request
//! was sent. A port that still differs is a *suspect*. It is repaired, and counted, only when a
//! second poll, sent at least [`CONFIRM_AFTER`] later, finds the same difference. In a healthy run
//! the count is 0.
//!
//! Invariants: pure (`now` comes in); at most one suspect for each port; an event clears its port.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

/// A difference must last this long before it is acted on.
pub const CONFIRM_AFTER: Duration = Duration::from_millis(100);
/// Events older than this precede every poll that is still pending, as the calls have a shorter
/// deadline.
const FORGET_AFTER: Duration = Duration::from_secs(30);

/// A difference that two polls agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repair {
    /// The port is open, and no event reported it.
    Opened(u16),
    /// The port is closed, and no event reported it.
    Closed(u16),
}

/// Findings of the polls of one connection.
#[derive(Debug, Default)]
pub struct Reconciler {
    /// Time of the stream's last event for each port.
    events: HashMap<u16, Instant>,
    /// Time of the stream's last snapshot.
    snapshot: Option<Instant>,
    /// Ports that differed in the last poll: whether the poll saw them open, and when it was sent.
    suspects: BTreeMap<u16, (bool, Instant)>,
    /// Number of ports that had to be repaired.
    pub repaired: u64,
}

impl Reconciler {
    /// Notes that the stream reported `port`.
    pub fn event(&mut self, port: u16, now: Instant) {
        self.suspects.remove(&port);
        self.events.insert(port, now);
        if self.events.len() > usize::from(u16::MAX) / 4 {
            self.events
                .retain(|_, at| now.saturating_duration_since(*at) < FORGET_AFTER);
        }
    }

    /// Notes that the stream sent a snapshot of all ports.
    pub fn snapshot(&mut self, now: Instant) {
        self.suspects.clear();
        self.events.clear();
        self.snapshot = Some(now);
    }

    /// Handles the answer `open` of a poll sent at `sent`, while the stream reports `known`; both
    /// are in ascending order. Returns the confirmed differences. Poll again after
    /// [`CONFIRM_AFTER`] while [`Reconciler::has_suspects`].
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

/// The ports in only one of two ascending lists, each with whether it is in `open`.
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
        // The request is sent at 1, the port opens at 2, and the outdated answer arrives at 3;
        // repeatedly.
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
