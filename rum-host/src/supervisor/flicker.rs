//! Pauses of a forward that are too short to be told. A dev server tries a port before it takes it: it
//! listens, closes and listens again within milliseconds. Its user wants to read once that it is
//! forwarded, above all where rum's lines stand among the program's own.
//!
//! That a port is forwarded is said at once: programs wait for it. That it no longer is waits for
//! [`PAUSE`]: when the same address leads to the same guest port by then, neither is said. Likewise a
//! block that was told is not told again ([`Blocks`]).
//!
//! Invariants: pure; lines only, so nothing else knows of this; what is held is said before anything else
//! about its port, when its time has come, and at the end.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::ReportedBlock;
use crate::forward::bind_failure::BindFailure;
use crate::forward::holder::Taken;
use crate::plan::{Destination, HostAddr, Key};
use crate::ui::notice::Notice;

/// A program that tries a port is back on it after a millisecond or a few, also on a busy machine. A
/// line that comes this late is still at once for a human.
pub const PAUSE: Duration = Duration::from_millis(50);

/// The forwards that have stopped just now, which nobody was told yet.
#[derive(Debug, Default)]
pub(super) struct Pauses(BTreeMap<Key, Pause>);

#[derive(Debug)]
struct Pause {
    until: Instant,
    host: HostAddr,
    guest: Destination,
    stopped: Notice,
}

impl Pauses {
    /// Says `notice`, unless it begins or ends a pause.
    pub fn say(&mut self, notice: Notice, now: Instant, say: &mut (dyn FnMut(Notice) + Send)) {
        match &notice {
            Notice::Stopped {
                key, host, guest, ..
            } => {
                let key = *key;
                let pause = Pause {
                    until: now + PAUSE,
                    host: *host,
                    guest: *guest,
                    stopped: notice,
                };
                // A forward stops once, but for one that was bound elsewhere meanwhile.
                if let Some(before) = self.0.insert(key, pause) {
                    say(before.stopped);
                }
                return;
            }
            Notice::Forwarded {
                key, host, guest, ..
            } => {
                if let Some(pause) = self.0.remove(key) {
                    if (pause.host, pause.guest) == (*host, *guest) && now < pause.until {
                        return;
                    }
                    say(pause.stopped);
                }
            }
            Notice::Blocked { key, .. } => {
                let pause = self.0.remove(&key.forward());
                pause.into_iter().for_each(|pause| say(pause.stopped));
            }
            Notice::Cut { guest, .. } => self.tell(|pause| pause.guest == *guest, say),
            _ => {}
        }
        say(notice);
    }

    /// When [`Self::over`] has something to say.
    pub fn wake(&self) -> Option<Instant> {
        self.0.values().map(|pause| pause.until).min()
    }

    /// Says what is no pause.
    pub fn over(&mut self, now: Instant, say: &mut (dyn FnMut(Notice) + Send)) {
        if self.wake().is_some_and(|at| at <= now) {
            self.tell(|pause| pause.until <= now, say);
        }
    }

    /// Says all that is held.
    pub fn end(&mut self, say: &mut (dyn FnMut(Notice) + Send)) {
        self.tell(|_| true, say);
    }

    fn tell(&mut self, which: impl Fn(&Pause) -> bool, say: &mut (dyn FnMut(Notice) + Send)) {
        let all = std::mem::take(&mut self.0).into_iter();
        let (told, held) = all.partition(|(_, pause)| which(pause));
        self.0 = held;
        let told: BTreeMap<Key, Pause> = told;
        told.into_values().for_each(|pause| say(pause.stopped));
    }
}

/// What the user was told of forwards that were blocked and have gone just now.
#[derive(Debug, Default)]
pub(super) struct Blocks(BTreeMap<Key, Block>);

#[derive(Debug)]
struct Block {
    until: Instant,
    told: ReportedBlock,
    taken: Option<Taken>,
}

impl Blocks {
    /// `key` is gone, of which the user was `told`.
    pub fn gone(&mut self, key: Key, told: ReportedBlock, taken: Option<Taken>, now: Instant) {
        let until = now + PAUSE;
        let block = Block { until, told, taken };
        self.0.insert(key, block);
    }

    /// What was told of `key`, if `at` is blocked again, for the same reason as far as `is_same` knows.
    pub fn again(
        &mut self,
        key: Key,
        at: HostAddr,
        is_same: impl Fn(&BindFailure) -> bool,
        now: Instant,
    ) -> Option<(ReportedBlock, Option<Taken>)> {
        let block = self.0.remove(&key)?;
        let same = block.told.at == at && block.told.reason.as_ref().is_some_and(is_same);
        (same && now < block.until).then_some((block.told, block.taken))
    }

    /// Forgets what is no pause any more.
    pub fn over(&mut self, now: Instant) {
        self.0.retain(|_, block| now < block.until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::GuestPort;

    const PORT: Destination = Destination::own(5000);

    fn host(port: u16) -> HostAddr {
        HostAddr(([127, 0, 0, 1], port).into())
    }

    fn forwarded(port: u16) -> Notice {
        Notice::Forwarded {
            key: Key::Auto(GuestPort(5000)),
            host: host(port),
            guest: PORT,
            instead_of: None,
        }
    }

    fn stopped(port: u16) -> Notice {
        Notice::Stopped {
            key: Key::Auto(GuestPort(5000)),
            host: host(port),
            guest: PORT,
            connections: 0,
            drain: None,
        }
    }

    fn cut(guest: Destination) -> Notice {
        let connections = 1;
        Notice::Cut { guest, connections }
    }

    /// What is said when these notices come, each so many milliseconds after the first.
    fn said(notices: &[(u64, Notice)]) -> Vec<Notice> {
        let start = Instant::now();
        let mut pauses = Pauses::default();
        let mut said = Vec::new();
        let mut say = |notice| said.push(notice);
        for (ms, notice) in notices {
            let now = start + Duration::from_millis(*ms);
            pauses.over(now, &mut say);
            pauses.say(notice.clone(), now, &mut say);
        }
        pauses.end(&mut say);
        assert_eq!(pauses.wake(), None);
        said
    }

    #[test]
    fn a_port_that_is_back_at_once_never_stopped() {
        let (on, off) = (forwarded(5000), stopped(5000));
        let probed = [(0, on.clone()), (1, off.clone()), (3, on.clone())];
        assert_eq!(said(&probed), vec![on.clone()]);
        let again = probed
            .into_iter()
            .chain([(4, off.clone()), (53, on.clone())]);
        assert_eq!(said(&again.collect::<Vec<_>>()), vec![on.clone()]);
        let late = [(0, on.clone()), (1, off.clone()), (51, on.clone())];
        assert_eq!(said(&late), [on.clone(), off.clone(), on.clone()]);
        let once = [(0, on.clone()), (1, off.clone())];
        assert_eq!(said(&once), [on, off]);
    }

    #[test]
    fn a_port_that_is_back_elsewhere_did_stop() {
        let moved = [(0, stopped(5000)), (1, forwarded(5001))];
        assert_eq!(said(&moved), [stopped(5000), forwarded(5001)]);
        let twice = [(0, stopped(5000)), (1, stopped(5001))];
        assert_eq!(said(&twice), [stopped(5000), stopped(5001)]);
    }

    #[test]
    fn nothing_about_a_port_is_said_before_it_and_nothing_else_waits() {
        let other = cut(Destination::own(5001));
        let come = [(0, stopped(5000)), (1, other.clone()), (2, cut(PORT))];
        assert_eq!(said(&come), [other, stopped(5000), cut(PORT)]);
        let blocked = Notice::Blocked {
            key: Key::AutoBeside(GuestPort(5000), [127, 0, 0, 2].into()),
            host: host(5000),
            guest: PORT,
            reason: BindFailure::Privileged,
        };
        let come = [(0, stopped(5000)), (1, blocked.clone())];
        assert_eq!(said(&come), [stopped(5000), blocked]);
    }

    #[test]
    fn a_block_that_is_there_again_at_once_is_no_news() {
        let (key, now) = (Key::Auto(GuestPort(5000)), Instant::now());
        let told = || ReportedBlock {
            at: host(5000),
            reason: Some(BindFailure::Privileged),
        };
        let again = |at, is_same: bool, ms| {
            let mut blocks = Blocks::default();
            blocks.gone(key, told(), None, now);
            let now = now + Duration::from_millis(ms);
            let told = blocks.again(key, at, |_| is_same, now);
            assert!(blocks.again(key, at, |_| true, now).is_none(), "once");
            told.is_some()
        };
        assert!(again(host(5000), true, 49));
        assert!(!again(host(5000), true, 50));
        assert!(!again(host(5000), false, 0));
        assert!(!again(host(5001), true, 0));
        let mut blocks = Blocks::default();
        blocks.gone(key, told(), None, now);
        blocks.over(now + PAUSE);
        assert!(blocks.0.is_empty());
    }
}
