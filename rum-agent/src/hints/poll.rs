//! The rungs without events for `listen()`: a look at the socket counters now and then.
//!
//! Invariant: the counters only wake. Two opposite changes cancel out in them, so a full dump is
//! due regularly, whatever they say.

use std::io;
use std::time::Duration;

use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tracing::info;

use crate::kernel::sockstat::{Fingerprint, Sockstat};

/// How often to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Time between two looks at the counters. A look costs about 3 us, its wake-up more.
    pub counters: Duration,
    /// There is a full dump at least this often.
    pub full_dump: Duration,
}

/// Where nothing else tells of a `listen()`: 1 to 2 % of a core for a delay of 2 ms on average.
pub const FAST: Rate = Rate {
    counters: Duration::from_millis(4),
    full_dump: Duration::from_millis(100),
};
/// Beside seccomp notifications, for the few that they do not tell of (io_uring, a program of
/// another ABI) and for shutdown(2) of a listener: found after 250 ms on average, for three
/// hundredths of a percent of a core. Slower gains nothing, since the host's poll of once a
/// second finds them after 1 to 2 s; ten times a second would cost as much as all the rest.
pub const SAFETY: Rate = Rate {
    counters: Duration::from_millis(500),
    full_dump: Duration::from_secs(2),
};

/// The looks.
pub struct Poll {
    counters: Option<Sockstat>,
    last: Option<Fingerprint>,
    ticks: Interval,
    woken: Instant,
    rate: Rate,
}

impl Poll {
    /// Reads the counters at `rate`, from now on.
    pub fn open(rate: Rate) -> Self {
        let full_dump = rate.full_dump;
        let counters = Sockstat::open()
            .inspect_err(|e| info!("no socket counters, dumping every {full_dump:?}: {e}"))
            .ok();
        let every = match counters {
            Some(_) => rate.counters,
            None => full_dump,
        };
        let now = Instant::now();
        let mut ticks = interval_at(now + every, every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            counters,
            last: None,
            ticks,
            woken: now,
            rate,
        }
    }

    /// How often it looks.
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Completes when the counters differ or a full dump is due.
    pub async fn next(&mut self) {
        loop {
            let now = self.ticks.tick().await;
            let due = now >= self.woken + self.rate.full_dump;
            if self.differs() || due {
                self.woken = now;
                return;
            }
        }
    }

    /// Whether the counters differ from the last look. They are read before the dump, so what
    /// changes during the dump is seen by the next look. Unreadable ones tell nothing: the
    /// regular full dump goes on.
    fn differs(&mut self) -> bool {
        let Some(counters) = &mut self.counters else {
            return false;
        };
        let read: io::Result<Fingerprint> = counters.read();
        match read {
            Ok(now) if self.last.as_ref() == Some(&now) => false,
            Ok(now) => {
                self.last = Some(now);
                true
            }
            Err(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn without_counters_a_full_dump_comes_regularly() {
        let now = Instant::now();
        let mut poll = Poll {
            counters: None,
            last: None,
            ticks: interval_at(now + FAST.counters, FAST.counters),
            woken: now,
            rate: FAST,
        };
        poll.next().await;
        assert_eq!(now.elapsed(), FAST.full_dump);
        poll.next().await;
        assert_eq!(now.elapsed(), FAST.full_dump * 2);
    }
}
