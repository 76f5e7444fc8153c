//! The rungs without events for `listen()`: regular reads of the socket counters.
//!
//! A thread reads the counters (`looks`) and wakes the event loop only on a change. The cost of
//! the reads, and of the dumps that they cause, limits their rate, so that a guest on a slow (above
//! all an emulated) processor spends no larger share of it.
//!
//! Invariant: the counters only wake. Two opposite changes cancel out in them, so a full dump is
//! due regularly in any case.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tracing::info;

use self::looks::Looks;
use crate::kernel::sockstat::Sockstat;
use crate::schedule::Share;

mod looks;

/// How often to check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Time between two reads of the counters. A read costs about 6 us, its wake-up more.
    pub counters: Duration,
    /// There is a full dump at least this often.
    pub full_dump: Duration,
}

/// Without any event for `listen()`: 1 % of a core for a delay of 2 ms on average.
pub const FAST: Rate = Rate {
    counters: Duration::from_millis(4),
    full_dump: Duration::from_millis(100),
};
/// In addition to seccomp notifications, for calls that they do not cover (io_uring, programs of
/// another ABI) and for shutdown(2) of a listener: found after 250 ms on average, for three
/// hundredths of a percent of a core. A slower rate gains nothing, since the host's poll of once a
/// second finds such changes after 1 to 2 s; ten times a second would cost as much as everything
/// else.
pub const SAFETY: Rate = Rate {
    counters: Duration::from_millis(500),
    full_dump: Duration::from_secs(2),
};

/// Dumps after a change take at most this fraction of a processor: one per read as long as a dump
/// takes up to 0.2 ms, which is some hundred listeners.
const SHARE: u32 = 20;
/// Unused time that may accumulate: a single change is dumped without delay.
const ROOM: Duration = Duration::from_millis(500);
/// A full dump without a change is due after this multiple of the last dump's cost, if that is
/// longer than [`Rate::full_dump`].
const UNLED: u32 = 200;
/// But after at most this time, the interval of the host's poll.
const UNLED_MAX: Duration = Duration::from_secs(1);

/// Reads the counters and decides when a dump is due.
pub struct Poll {
    /// None where there are no counters or no thread.
    looks: Option<Looks>,
    /// The counters have changed since the last wake.
    changed: bool,
    /// A dump follows that this wake caused.
    woke: bool,
    share: Share,
    /// When a full dump is due, changed or not.
    due: Instant,
    rate: Rate,
}

impl Poll {
    /// Reads the counters at `rate`, from now on.
    pub fn open(rate: Rate) -> Self {
        let start = |counters| Looks::start(counters, rate.counters);
        let looks = Sockstat::open()
            .and_then(start)
            .inspect_err(|e| {
                info!(
                    "no looks at socket counters, dumping every {:?}: {e}",
                    rate.full_dump
                )
            })
            .ok();
        Self::with(looks, rate)
    }

    fn with(looks: Option<Looks>, rate: Rate) -> Self {
        let now = Instant::now();
        Self {
            looks,
            changed: false,
            woke: false,
            share: Share::new(now, SHARE, ROOM),
            due: now + rate.full_dump,
            rate,
        }
    }

    /// The rate in use.
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Completes when the counters differ or a full dump is due. Cancel-safe.
    pub async fn next(&mut self) {
        if !self.changed {
            tokio::select! {
                () = super::some(self.looks.as_ref().map(Looks::changed)) => self.changed = true,
                () = sleep_until(self.due) => {}
            }
        }
        // The regular dump has its own rate.
        let earliest = self.share.earliest();
        if self.changed && earliest > Instant::now() {
            sleep_until(earliest).await;
        }
        self.changed = false;
        self.woke = true;
        self.due = Instant::now() + self.rate.full_dump;
    }

    /// Accounts for a dump that began at `began`, if this source caused it.
    pub fn dumped(&mut self, began: Instant, cost: Duration) {
        if std::mem::take(&mut self.woke) {
            self.share.count(began, cost);
            let pause = cost.saturating_mul(UNLED).min(UNLED_MAX);
            self.due = self.due.max(began + pause);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn without_counters_a_full_dump_comes_regularly() {
        let now = Instant::now();
        let mut poll = Poll::with(None, FAST);
        poll.next().await;
        assert_eq!(now.elapsed(), FAST.full_dump);
        poll.next().await;
        assert_eq!(now.elapsed(), FAST.full_dump * 2);
    }

    #[tokio::test(start_paused = true)]
    async fn dear_dumps_are_rarer_and_a_lone_change_waits_for_none() {
        let ms = Duration::from_millis;
        let mut poll = Poll::with(None, FAST);
        let mut began = Instant::now();
        for _ in 0..10 {
            poll.next().await;
            began = Instant::now();
            poll.dumped(began, ms(5));
            // Dumps with another cause do not count.
            poll.dumped(began, ms(500));
        }
        poll.changed = true;
        poll.next().await;
        assert_eq!(began.elapsed(), Duration::ZERO);
        for _ in 0..9 {
            poll.dumped(Instant::now(), ms(5));
            poll.changed = true;
            poll.next().await;
        }
        let before = Instant::now();
        poll.dumped(before, ms(5));
        poll.next().await;
        assert_eq!(before.elapsed(), ms(5) * UNLED);
        poll.dumped(Instant::now(), Duration::MAX);
        poll.next().await;
        assert_eq!(before.elapsed(), ms(5) * UNLED + UNLED_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn changes_without_end_lead_to_a_share_of_dumps() {
        let mut poll = Poll::with(None, FAST);
        let began = Instant::now();
        let mut dumps = 0;
        while began.elapsed() < Duration::from_secs(10) {
            poll.changed = true;
            poll.next().await;
            poll.dumped(Instant::now(), Duration::from_millis(5));
            dumps += 1;
        }
        // One each 100 ms, and 6 from accumulated time.
        assert!((104..=108).contains(&dumps), "{dumps}");
    }

    /// A change seen by a cancelled wait is returned by the next one.
    #[tokio::test(start_paused = true)]
    async fn a_change_is_not_lost_when_its_wait_is_cancelled() {
        let mut poll = Poll::with(None, FAST);
        for _ in 0..40 {
            poll.woke = true;
            poll.dumped(Instant::now(), Duration::from_millis(5));
        }
        poll.changed = true;
        let wait = Duration::from_millis(1);
        assert!(tokio::time::timeout(wait, poll.next()).await.is_err());
        assert!(poll.changed);
    }
}
