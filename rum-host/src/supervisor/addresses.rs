//! Host addresses that this machine loses and regains while ports are bound to them (step 5): those
//! of a VPN, a bridge, a cable.
//!
//! The kernel keeps a listening socket when its address goes, and the socket serves again when the
//! address is back. So nothing is bound again; only the rows and the messages follow the address.
//! Each second rum tries to bind each address, which takes some microseconds for an address,
//! however many ports it has, and needs no knowledge of interfaces and routes.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use super::{Context, Supervisor};
use crate::clock;
use crate::plan::{Binding, HostAddr};
use crate::ui::notice::Notice;

/// Longest time that a missing address goes unnoticed.
const LOOK: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    /// Missing addresses, and whether the user was told.
    gone: BTreeMap<IpAddr, bool>,
    /// When to check next; `None` while there is nothing to check.
    at: Option<Instant>,
}

impl Addresses {
    /// Whether the machine had `ip` at the last check.
    pub fn has(&self, ip: IpAddr) -> bool {
        !self.gone.contains_key(&ip)
    }

    /// Notes that `at` was bound: if its address was missing, the next check is due at once.
    pub fn bound(&mut self, at: HostAddr) {
        if !self.has(at.0.ip()) {
            self.at = None;
        }
    }

    /// When to check.
    pub fn wake(&self) -> Option<Instant> {
        self.at
    }

    /// Checks `all`, the addresses that are bound or wanted. Returns those that have gone since the
    /// last check, and those that are back after the user was told that they were gone.
    fn look(
        &mut self,
        all: impl Iterator<Item = IpAddr>,
        is_here: impl Fn(IpAddr) -> Option<bool>,
        now: Instant,
    ) -> [Vec<IpAddr>; 2] {
        if self.at.is_some_and(|at| now < at) {
            return Default::default();
        }
        let known = std::mem::take(&mut self.gone);
        let (mut gone, mut back) = (Vec::new(), Vec::new());
        self.at = None;
        for ip in all.filter(|ip| can_go(*ip)) {
            self.at = Some(now + LOOK);
            let reported = known.get(&ip).copied();
            let was_here = reported.is_none();
            let here = is_here(ip).unwrap_or(was_here);
            match (reported, here) {
                (None, false) => gone.push(ip),
                (Some(true), true) => back.push(ip),
                _ => {}
            }
            if !here {
                self.gone.insert(ip, reported == Some(true));
            }
        }
        [gone, back]
    }
}

/// Every machine has its loopback addresses, and the unspecified address is always there.
fn can_go(ip: IpAddr) -> bool {
    !ip.is_loopback() && !ip.is_unspecified()
}

/// Whether this machine has `ip`. `None` if that cannot be determined, for lack of a descriptor.
fn is_here(ip: IpAddr) -> Option<bool> {
    match UdpSocket::bind((ip, 0)) {
        Ok(_) => Some(true),
        Err(error) if error.kind() == ErrorKind::AddrNotAvailable => Some(false),
        Err(_) => None,
    }
}

impl Supervisor {
    /// Checks which host addresses exist, if a check is due.
    pub(super) fn look_at_addresses(&mut self, context: &mut Context<'_>) {
        let all = self.planner.addresses();
        let [gone, back] = self.addresses.look(all, is_here, clock::now());
        for ip in gone {
            // Forwards on an address that was never there are blocked, and each reports that
            // itself.
            let forwards = self.note_bound_at(ip);
            if forwards > 0 {
                self.addresses.gone.insert(ip, true);
                context.say(Notice::AddressGone { ip, forwards });
            }
        }
        for ip in back {
            self.note_bound_at(ip);
            context.say(Notice::AddressBack { ip });
        }
    }

    /// Marks the rows of all forwards bound at `ip` as changed. Returns their number.
    fn note_bound_at(&mut self, ip: IpAddr) -> usize {
        let bound = self.planner.bindings().filter_map(|binding| match binding {
            Binding::Bound { want, at } if at.0.ip() == ip => Some(want.guest.port),
            _ => None,
        });
        bound.map(|port| self.notes.port(port)).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_goes_and_comes_is_seen_once_each() {
        let ip = IpAddr::from([192, 0, 2, 1]);
        let loopback = IpAddr::from([127, 0, 0, 1]);
        let now = Instant::now();
        let mut addresses = Addresses::default();
        let all = || [loopback, ip].into_iter();
        let at = |second| now + Duration::from_secs(second);
        let nothing = [vec![], vec![]];
        assert_eq!(addresses.look(all(), |_| Some(true), at(0)), nothing);
        let gone = addresses.look(all(), |_| Some(false), at(1));
        assert_eq!(gone, [vec![ip], vec![]]);
        addresses.gone.insert(ip, true);
        assert!(!addresses.has(ip) && addresses.has(loopback));
        let too_soon = addresses.look(all(), |_| Some(true), at(1));
        assert_eq!((too_soon, addresses.has(ip)), (nothing.clone(), false));
        let unknown = addresses.look(all(), |_| None, at(2));
        assert_eq!((unknown, addresses.has(ip)), (nothing.clone(), false));
        let back = addresses.look(all(), |_| Some(true), at(3));
        assert_eq!((back, addresses.has(ip)), ([vec![], vec![ip]], true));
        // The return of an address is reported only if its loss was.
        addresses.look(all(), |_| Some(false), at(4));
        assert_eq!(addresses.look(all(), |_| Some(true), at(5)), nothing);
        assert_eq!(addresses.wake(), Some(at(6)));
        // Without an address that can go, there is no check.
        addresses.look([loopback].into_iter(), |_| Some(false), at(6));
        assert_eq!(addresses.wake(), None);
    }
}
