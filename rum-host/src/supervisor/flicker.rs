//! Suppresses messages about pauses of a forward that are too short to report. A dev server tries a
//! port before it takes it: it listens, closes and listens again within milliseconds. Its user
//! wants to read once that the port is forwarded, above all where rum's lines stand among the
//! program's own.
//!
//! That a port is forwarded is reported at once, as programs wait for it. That it stopped is held
//! back for [`PAUSE`]: if the same address leads to the same guest port again by then, neither is
//! reported. Likewise, a reported block is not reported again ([`Blocks`]).
//!
//! Invariants: pure; only messages are affected, never state; a message held back is sent before
//! any other about its port, when its time has come, and at the end.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::ReportedBlock;
use crate::forward::bind_failure::BindFailure;
use crate::forward::holder::Taken;
use crate::plan::{Destination, HostAddr, Key};
use crate::ui::notice::Notice;

/// A program that tries a port listens on it again after a few milliseconds, even on a busy
/// machine. To a human, a line with this delay still comes at once.
pub const PAUSE: Duration = Duration::from_millis(50);

/// Forwards that have just stopped, which was not reported yet.
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
    /// Reports `notice`, unless it begins or ends a pause.
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
                // A forward stops once, unless it was bound elsewhere meanwhile.
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
            Notice::Cut { guest, .. } => self.release(|pause| pause.guest == *guest, say),
            _ => {}
        }
        say(notice);
    }

    /// When [`Self::over`] has something to report.
    pub fn wake(&self) -> Option<Instant> {
        self.0.values().map(|pause| pause.until).min()
    }

    /// Reports the stops that turned out to be final.
    pub fn over(&mut self, now: Instant, say: &mut (dyn FnMut(Notice) + Send)) {
        if self.wake().is_some_and(|at| at <= now) {
            self.release(|pause| pause.until <= now, say);
        }
    }

    /// Reports everything held back.
    pub fn end(&mut self, say: &mut (dyn FnMut(Notice) + Send)) {
        self.release(|_| true, say);
    }

    fn release(&mut self, which: impl Fn(&Pause) -> bool, say: &mut (dyn FnMut(Notice) + Send)) {
        let all = std::mem::take(&mut self.0).into_iter();
        let (due, held) = all.partition(|(_, pause)| which(pause));
        self.0 = held;
        let due: BTreeMap<Key, Pause> = due;
        due.into_values().for_each(|pause| say(pause.stopped));
    }
}

/// Reports about blocked forwards that have just gone.
#[derive(Debug, Default)]
pub(super) struct Blocks(BTreeMap<Key, Block>);

#[derive(Debug)]
struct Block {
    until: Instant,
    reported: ReportedBlock,
    taken: Option<Taken>,
}

impl Blocks {
    /// Notes that `key` is gone, after the user was told of its block.
    pub fn gone(&mut self, key: Key, reported: ReportedBlock, taken: Option<Taken>, now: Instant) {
        let until = now + PAUSE;
        let block = Block {
            until,
            reported,
            taken,
        };
        self.0.insert(key, block);
    }

    /// The earlier report about `key`, if `at` is blocked again, for the same reason according to
    /// `is_same`.
    pub fn again(
        &mut self,
        key: Key,
        at: HostAddr,
        is_same: impl Fn(&BindFailure) -> bool,
        now: Instant,
    ) -> Option<(ReportedBlock, Option<Taken>)> {
        let block = self.0.remove(&key)?;
        let same = block.reported.at == at && block.reported.reason.as_ref().is_some_and(is_same);
        (same && now < block.until).then_some((block.reported, block.taken))
    }

    /// Forgets the blocks whose pause is over.
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

    /// The notices that are reported, given notices and their times in milliseconds.
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
        let reported = || ReportedBlock {
            at: host(5000),
            reason: Some(BindFailure::Privileged),
        };
        let again = |at, is_same: bool, ms| {
            let mut blocks = Blocks::default();
            blocks.gone(key, reported(), None, now);
            let now = now + Duration::from_millis(ms);
            let reported = blocks.again(key, at, |_| is_same, now);
            assert!(blocks.again(key, at, |_| true, now).is_none(), "once");
            reported.is_some()
        };
        assert!(again(host(5000), true, 49));
        assert!(!again(host(5000), true, 50));
        assert!(!again(host(5000), false, 0));
        assert!(!again(host(5001), true, 0));
        let mut blocks = Blocks::default();
        blocks.gone(key, reported(), None, now);
        blocks.over(now + PAUSE);
        assert!(blocks.0.is_empty());
    }
}
