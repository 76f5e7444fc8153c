//! Details of step 4: the next host address to try for a forward, and the addresses that are
//! already reserved.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Instant;

use super::{HostAddr, MAX_NEXT_TRIES, OnConflict, Want};
use crate::plan::policy::{PortBlock, others, overlap};

/// The next address to try for `want`: first its own, then, where the policy allows it, the other
/// ports of its block that are not reserved.
pub(super) fn candidate(
    want: &Want,
    tried: &BTreeSet<u16>,
    blocks: &[PortBlock],
    reserved: &[&Reserved],
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
    let port = others(want, blocks).find_map(free)?;
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
        if let Some(full) = reserved.iter().find(|ports| ports.is_full(word)) {
            port = u16::try_from(full.next_with_room(word)? * 64).ok()?;
            if port > last {
                return None;
            }
            continue;
        }
        let taken = reserved.iter().fold(0, |all, ports| all | ports.bits[word]);
        let free = !taken & !(bit - 1);
        let offset = u16::try_from(free.trailing_zeros()).ok()?;
        // A word without a free port has 64 trailing zeros, which leads to the next word.
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

/// Host addresses that are wanted or bound, with the number of times each one is.
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

    /// The IP addresses, without ports.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.0.keys().copied()
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The ports that are reserved on addresses that overlap `ip`.
    fn overlapping(&self, ip: IpAddr) -> impl Iterator<Item = &Ports> {
        let there = self.0.iter().filter(move |(there, _)| overlap(**there, ip));
        there.map(|(_, ports)| ports)
    }
}

/// A multiset of ports. Thousands of forwards may each walk over thousands of ports in search of a
/// free one. So there is one bit for each port, and a full word skips 64 ports at once.
#[derive(Debug)]
struct Ports {
    times: BTreeMap<u16, u32>,
    bits: Box<[u64]>,
    /// The words of `bits` that are full, so that 64 of these are skipped at once, too.
    full: [u64; WORDS.div_ceil(64)],
}

/// Number of words for all ports.
const WORDS: usize = (u16::MAX as usize + 1) / 64;

impl Default for Ports {
    fn default() -> Self {
        Self {
            times: BTreeMap::new(),
            bits: vec![0; WORDS].into_boxed_slice(),
            full: Default::default(),
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
        if self.bits[word] == u64::MAX {
            self.full[word / 64] |= 1 << (word % 64);
        }
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
            self.full[word / 64] &= !(1 << (word % 64));
        }
    }

    fn is_full(&self, word: usize) -> bool {
        self.full[word / 64] & (1 << (word % 64)) != 0
    }

    /// The first word from `word` on that is not full.
    fn next_with_room(&self, word: usize) -> Option<usize> {
        let mut at = word / 64;
        let mut room = !self.full[at] & (u64::MAX << (word % 64));
        while room == 0 {
            at += 1;
            room = !*self.full.get(at)?;
        }
        let offset = usize::try_from(room.trailing_zeros()).ok()?;
        Some(at * 64 + offset)
    }
}

/// Host addresses that an attempt found in use, each until its next retry. Where many forwards
/// search for a port, one attempt at an address serves all of them.
#[derive(Debug, Default)]
pub(super) struct Taken {
    ports: Reserved,
    until: BTreeSet<(Instant, HostAddr)>,
}

impl Taken {
    pub(super) fn ports(&self) -> &Reserved {
        &self.ports
    }

    pub(super) fn insert(&mut self, at: HostAddr, until: Instant) {
        if self.until.insert((until, at)) {
            self.ports.insert(at);
        }
    }

    /// Removes the addresses whose retry is due.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some((until, at)) = self.until.first().copied().filter(|(at, _)| *at <= now) {
            self.until.remove(&(until, at));
            self.ports.remove(at);
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
