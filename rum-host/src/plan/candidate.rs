//! Details of step 4: which host address a forward tries next, and which are spoken for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

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
    let ip = want.host.0.ip();
    let reserved: Vec<&Ports> = reserved.iter().flat_map(|r| r.overlapping(ip)).collect();
    let free = |ports| first_free(&reserved, tried, ports);
    let port = others(want, territories).find_map(free)?;
    Some(HostAddr(SocketAddr::new(ip, port)))
}

/// The first of `ports` that is neither `reserved` nor `tried`.
fn first_free(
    reserved: &[&Ports],
    tried: &BTreeSet<u16>,
    ports: RangeInclusive<u16>,
) -> Option<u16> {
    let (mut port, last) = (*ports.start(), *ports.end());
    loop {
        let (word, bit) = Ports::place(port);
        let taken = reserved.iter().fold(0, |all, ports| all | ports.bits[word]);
        let free = !taken & !(bit - 1);
        let offset = u16::try_from(free.trailing_zeros()).ok()?;
        // A word without a free one has 64 trailing zeros: on to the next.
        let found = (port & !63).checked_add(offset)?;
        if found > last {
            return None;
        }
        if free != 0 && !tried.contains(&found) {
            return Some(found);
        }
        port = match free {
            0 => found,
            _ => found.checked_add(1)?,
        };
        if port > last {
            return None;
        }
    }
}

/// Host addresses that are wanted or bound; as often as they are.
#[derive(Debug, Default)]
pub(super) struct Reserved(BTreeMap<IpAddr, Ports>);

impl Reserved {
    pub(super) fn insert(&mut self, at: HostAddr) {
        let ports = self.0.entry(at.0.ip()).or_default();
        ports.insert(at.0.port());
    }

    pub(super) fn remove(&mut self, at: HostAddr) {
        let Some(ports) = self.0.get_mut(&at.0.ip()) else {
            return;
        };
        ports.remove(at.0.port());
        if ports.times.is_empty() {
            self.0.remove(&at.0.ip());
        }
    }

    /// Those without their ports.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.0.keys().copied()
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The ports that are spoken for where `ip` is to be bound.
    fn overlapping(&self, ip: IpAddr) -> impl Iterator<Item = &Ports> {
        let there = self.0.iter().filter(move |(there, _)| overlap(**there, ip));
        there.map(|(_, ports)| ports)
    }
}

/// A set of ports that knows how often each is in it. A forward that looks for another port may walk
/// over thousands of them, and thousands of forwards may: so there is a bit for each, and 64 are skipped
/// at once.
#[derive(Debug)]
struct Ports {
    times: BTreeMap<u16, u32>,
    bits: Box<[u64]>,
}

impl Default for Ports {
    fn default() -> Self {
        let words = (usize::from(u16::MAX) + 1) / 64;
        Self {
            times: BTreeMap::new(),
            bits: vec![0; words].into_boxed_slice(),
        }
    }
}

impl Ports {
    fn place(port: u16) -> (usize, u64) {
        (usize::from(port / 64), 1 << (port % 64))
    }

    fn insert(&mut self, port: u16) {
        let (word, bit) = Self::place(port);
        self.bits[word] |= bit;
        *self.times.entry(port).or_default() += 1;
    }

    fn remove(&mut self, port: u16) {
        let Some(times) = self.times.get_mut(&port) else {
            return;
        };
        *times -= 1;
        if *times == 0 {
            self.times.remove(&port);
            let (word, bit) = Self::place(port);
            self.bits[word] &= !bit;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_first_free_port_is_found_across_words_and_at_both_ends() {
        let mut ports = Ports::default();
        for port in (1..=700).chain(65_400..=65_535) {
            ports.insert(port);
        }
        ports.insert(500);
        let tried = BTreeSet::from([701, 702]);
        let free = |from, to| first_free(&[&ports], &tried, from..=to);
        assert_eq!(free(1, 65_535), Some(703));
        assert_eq!(free(1, 700), None);
        assert_eq!(free(1, 702), None);
        assert_eq!(free(1000, 1000), Some(1000));
        assert_eq!(free(65_399, 65_535), Some(65_399));
        assert_eq!(free(65_400, 65_535), None);
        ports.remove(500);
        assert_eq!(first_free(&[&ports], &tried, 1..=700), None, "once more");
        ports.remove(500);
        ports.remove(65_535);
        let free = |from, to| first_free(&[&ports], &tried, from..=to);
        assert_eq!(free(1, 700), Some(500));
        assert_eq!(free(65_400, 65_535), Some(65_535));
        assert_eq!(first_free(&[], &tried, 701..=703), Some(703));
    }
}
