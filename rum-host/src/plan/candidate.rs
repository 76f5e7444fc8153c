//! Details of step 4: which host address a forward tries next, and which are spoken for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use super::{HostAddr, MAX_NEXT_TRIES, OnConflict, Want};
use crate::policy::{Territory, others, overlap};

/// The next address to try for `want`: its own first, then, where allowed, the other ports of
/// its territory that are in nobody's way.
pub(super) fn candidate(
    want: &Want,
    tried: &BTreeSet<u16>,
    territories: &[Territory],
    reserved: [&Reserved; 2],
) -> Option<HostAddr> {
    if !tried.contains(&want.host.0.port()) {
        return Some(want.host);
    }
    if want.on_conflict == OnConflict::Wait || tried.len() >= MAX_NEXT_TRIES {
        return None;
    }
    others(want, territories)
        .filter(|p| !tried.contains(p))
        .map(|p| HostAddr(SocketAddr::new(want.host.0.ip(), p)))
        .find(|at| !reserved.iter().any(|r| r.overlaps(*at)))
}

/// Host addresses that are wanted or bound, by port; as often as they are.
#[derive(Debug, Default)]
pub(super) struct Reserved(BTreeMap<u16, Vec<IpAddr>>);

impl Reserved {
    pub(super) fn insert(&mut self, at: HostAddr) {
        self.0.entry(at.0.port()).or_default().push(at.0.ip());
    }

    pub(super) fn remove(&mut self, at: HostAddr) {
        let Some(there) = self.0.get_mut(&at.0.port()) else {
            return;
        };
        if let Some(index) = there.iter().position(|ip| *ip == at.0.ip()) {
            there.swap_remove(index);
        }
        if there.is_empty() {
            self.0.remove(&at.0.port());
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn overlaps(&self, at: HostAddr) -> bool {
        let there = self.0.get(&at.0.port());
        there.is_some_and(|ips| ips.iter().any(|ip| overlap(*ip, at.0.ip())))
    }
}
