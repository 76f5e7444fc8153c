//! Listeners in the guest outside the configured ranges, as the poll finds them: for example a
//! JVM's JMX port, which is any free port. No event wakes for these ports, so they become known a
//! second or two late.
//!
//! Invariants: pure; a port is reported once, and only after two polls in a row have shown it, so
//! that short-lived listeners are not reported; at most [`MAX_TOLD`] reports are made.

use std::collections::BTreeSet;

/// Most reports in one run. `rum ports --all` shows the rest.
pub(super) const MAX_TOLD: u32 = 5;
/// Lower ports belong to system services (RFC 6335, section 6), which a guest has anyway.
const FIRST_USER_PORT: u16 = 1024;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Outside {
    last: BTreeSet<u16>,
    /// Ports that the last two polls have both shown.
    listening: BTreeSet<u16>,
    known: BTreeSet<u16>,
    reports: u32,
}

impl Outside {
    /// Handles a poll that has shown `ports`. Returns the ports to report, if any.
    pub fn polled(&mut self, ports: &BTreeSet<u16>) -> Option<Vec<u16>> {
        self.listening = ports.intersection(&self.last).copied().collect();
        self.last.clone_from(ports);
        let new = self.listening.range(FIRST_USER_PORT..);
        let new: Vec<u16> = new
            .copied()
            .filter(|port| self.known.insert(*port))
            .collect();
        if new.is_empty() || self.reports == MAX_TOLD {
            return None;
        }
        self.reports += 1;
        Some(new)
    }

    /// The ports outside the ranges on which a program listens.
    pub fn listening(&self) -> impl Iterator<Item = u16> + '_ {
        self.listening.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_stays_is_told_once_and_not_without_end() {
        let mut outside = Outside::default();
        let mut polled = |ports: &[u16]| outside.polled(&ports.iter().copied().collect());
        assert_eq!(polled(&[22, 8000]), None, "it may be gone at once");
        assert_eq!(polled(&[22, 8000, 8001]), Some(vec![8000]));
        assert_eq!(polled(&[22, 8000]), None);
        polled(&[]);
        polled(&[8000]);
        assert_eq!(polled(&[8000]), None, "once");
        let mut reports = 1;
        for port in 9000..9100 {
            polled(&[port]);
            reports += u32::from(polled(&[port]).is_some());
        }
        assert_eq!(reports, MAX_TOLD);
        assert!(outside.listening().eq([9099]));
    }
}
