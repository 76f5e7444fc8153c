//! Decides when a machine whose guest has rebooted is started again. Pure.
//!
//! An ordinary reboot costs no pause. A guest that reboots soon after each start gets longer and
//! longer pauses, so that it does not occupy the host. A guest whose agent does not come back in
//! several boots is given up, loudly: rum is useless without an agent.

use std::time::Duration;

/// A boot that lasts at least this long is good: services are up, and a watchdog without its
/// keep-alive would have fired.
const STEADY: Duration = Duration::from_secs(60);
/// Short boots in a row that are followed by the next one without a pause: the user tries something
/// out.
const FREE: u32 = 3;
/// The first pause, which doubles, and the longest one.
const PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(32);
/// Boots in a row without an agent before the guest is given up. The first boot of an image may end
/// in a reboot.
const MAX_DEAF: u32 = 5;

/// The record of the boots so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reboots {
    /// Boots in a row without an agent.
    deaf: u32,
    /// How many of those are too many.
    max_deaf: u32,
    /// Short boots in a row.
    short: u32,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Start it again after this pause.
    Start(Duration),
    /// Leave it: so many boots in a row had no agent.
    GiveUp(u32),
}

impl Reboots {
    /// Before the first boot. A guest whose boots are all `the_same`, a kernel with its initramfs,
    /// is given up after the first boot without an agent.
    pub fn new(the_same: bool) -> Self {
        Self {
            deaf: 0,
            max_deaf: if the_same { 1 } else { MAX_DEAF },
            short: 0,
        }
    }

    /// A boot ended in a reboot after `lived`; `agent`: whether its agent was up.
    pub fn next(&mut self, lived: Duration, agent: bool) -> Next {
        if agent {
            self.deaf = 0;
            // The agent can come up, so a failure is worth another try.
            self.max_deaf = MAX_DEAF;
        } else {
            self.deaf += 1;
        }
        if self.deaf >= self.max_deaf {
            return Next::GiveUp(self.deaf);
        }
        self.short = if lived < STEADY {
            self.short.saturating_add(1)
        } else {
            0
        };
        Next::Start(match self.short.checked_sub(FREE + 1) {
            None => Duration::ZERO,
            // Shifted no further than the longest pause.
            Some(more) => (PAUSE * (1 << more.min(5))).min(MAX_PAUSE),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_secs(59);

    fn pause(next: Next) -> u64 {
        match next {
            Next::Start(pause) => pause.as_secs(),
            Next::GiveUp(times) => panic!("given up after {times}"),
        }
    }

    #[test]
    fn pauses_grow_to_a_bound_and_a_steady_boot_forgives() {
        let mut reboots = Reboots::new(true);
        let pauses: Vec<_> = (0..11).map(|_| pause(reboots.next(SHORT, true))).collect();
        assert_eq!(pauses, [0, 0, 0, 1, 2, 4, 8, 16, 32, 32, 32]);
        assert_eq!(pause(reboots.next(STEADY, true)), 0);
        assert_eq!(pause(reboots.next(SHORT, true)), 0);
    }

    #[test]
    fn boots_without_an_agent_are_given_up() {
        // Long ones too: a guest without its agent is of no use, however long it runs.
        let mut image = Reboots::new(false);
        for _ in 1..MAX_DEAF {
            assert_eq!(pause(image.next(STEADY, false)), 0);
        }
        assert_eq!(image.next(STEADY, false), Next::GiveUp(MAX_DEAF));

        let mut kernel = Reboots::new(true);
        assert_eq!(kernel.next(SHORT, false), Next::GiveUp(1));
        let mut kernel = Reboots::new(true);
        assert_eq!(pause(kernel.next(SHORT, true)), 0);
        assert_eq!(pause(kernel.next(SHORT, false)), 0);
        // An agent ends the row.
        assert_eq!(pause(kernel.next(SHORT, true)), 0);
        for _ in 1..MAX_DEAF {
            pause(kernel.next(SHORT, false));
        }
        assert_eq!(kernel.next(SHORT, false), Next::GiveUp(MAX_DEAF));
    }
}
