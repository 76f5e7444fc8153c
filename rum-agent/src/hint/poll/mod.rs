//! The rungs without events for `listen()`: a look at the socket counters now and then.
//!
//! A thread looks at the counters ([`looks`]); the event loop hears only of a change. Both the looks
//! and the dumps they lead to are paced by what they cost, so that a guest on a slow processor, an
//! emulated one above all, spends no more of it than another.
//!
//! Invariant: the counters only wake. Two opposite changes cancel out in them, so a full dump is
//! due regularly, whatever they say.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tracing::info;

use self::looks::Looks;
use crate::kernel::sockstat::Sockstat;
use crate::schedule::Share;

mod looks;

/// How often to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Time between two looks at the counters. A look costs about 6 us, its wake-up more.
    pub counters: Duration,
    /// There is a full dump at least this often.
    pub full_dump: Duration,
}

/// Where nothing else tells of a `listen()`: 1 % of a core for a delay of 2 ms on average.
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

/// Dumps after a change take at most one part in so many of a processor: as often as looks find
/// one, up to 0.2 ms a dump, which are some hundred listeners.
const SHARE: u32 = 20;
/// What may be saved up of that: a change that comes alone is looked at without a delay.
const ROOM: Duration = Duration::from_millis(500);
/// A full dump to which nothing led is due after so many times what the last dump took, if that
/// is more than [`Rate::full_dump`].
const UNLED: u32 = 200;
/// But after this at most, as often as the host's poll.
const UNLED_MAX: Duration = Duration::from_secs(1);

/// The looks and when they lead to a dump.
pub struct Poll {
    /// None where there are no counters or no thread.
    looks: Option<Looks>,
    /// The counters have changed since the last wake.
    changed: bool,
    /// A dump follows for which this has woken.
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

    /// How often it looks.
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
        // What is due by itself has its own pace.
        let earliest = self.share.earliest();
        if self.changed && earliest > Instant::now() {
            sleep_until(earliest).await;
        }
        self.changed = false;
        self.woke = true;
        self.due = Instant::now() + self.rate.full_dump;
    }

    /// Counts what a dump has cost that began at `began`, if this has woken for it.
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
            // Those that others asked for do not count.
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
        // Each 100 ms, and 6 that were saved up.
        assert!((104..=108).contains(&dumps), "{dumps}");
    }

    /// What a cancelled wait has noticed, the next one tells.
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
