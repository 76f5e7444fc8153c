//! Port ranges, as a user writes them: `5000-6000`, `3000-3999,5000-6000,8080`.
//!
//! Invariants: a [`PortRange`] has `1 <= min <= max`; a [`PortRanges`] is sorted, holds no
//! empty range, and no two of its ranges overlap or touch. So `contains` is a binary search
//! and two equal sets of ports are equal values.

use std::fmt;
use std::str::FromStr;

/// TCP ports from `min` to `max`, both included, 1 to 65535.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortRange {
    min: u16,
    max: u16,
}

/// Why a text is not a port range. `Display` says what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// Nothing between two commas, or an empty text.
    #[error("an empty range; write a port or a range, such as `8080` or `5000-6000`")]
    Empty,
    /// Not a decimal number.
    #[error("`{0}` is not a port number; write a number from 1 to 65535")]
    NotANumber(String),
    /// A number that no port has: 0, or above 65535.
    #[error("port {0} does not exist; ports go from 1 to 65535")]
    OutOfRange(String),
    /// `max` before `min`.
    #[error("the range {0}-{1} is reversed; write `{1}-{0}`")]
    Reversed(u16, u16),
}

impl PortRange {
    /// All ports.
    pub const ALL: Self = Self {
        min: 1,
        max: u16::MAX,
    };

    /// The ports from `min` to `max`, both included.
    ///
    /// # Errors
    /// [`RangeError::OutOfRange`] for port 0, [`RangeError::Reversed`] when `max < min`.
    pub fn new(min: u16, max: u16) -> Result<Self, RangeError> {
        if min == 0 || max == 0 {
            return Err(RangeError::OutOfRange("0".into()));
        }
        if max < min {
            return Err(RangeError::Reversed(min, max));
        }
        Ok(Self { min, max })
    }

    /// The one port `port`; `None` for 0.
    pub fn single(port: u16) -> Option<Self> {
        Self::new(port, port).ok()
    }

    /// The lowest port.
    pub fn min(self) -> u16 {
        self.min
    }

    /// The highest port.
    pub fn max(self) -> u16 {
        self.max
    }

    /// Whether `port` lies in the range.
    pub fn contains(self, port: u16) -> bool {
        (self.min..=self.max).contains(&port)
    }

    /// The smallest range that covers both.
    pub fn hull(self, other: Self) -> Self {
        Self {
            min: self.min.min(other.min),
            max: self.max.max(other.max),
        }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min == self.max {
            write!(f, "{}", self.min)
        } else {
            write!(f, "{}-{}", self.min, self.max)
        }
    }
}

impl FromStr for PortRange {
    type Err = RangeError;

    fn from_str(text: &str) -> Result<Self, RangeError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(RangeError::Empty);
        }
        match text.split_once('-') {
            None => {
                let port = parse_port(text)?;
                Self::new(port, port)
            }
            Some((min, max)) => Self::new(parse_port(min)?, parse_port(max)?),
        }
    }
}

fn parse_port(text: &str) -> Result<u16, RangeError> {
    let text = text.trim();
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(RangeError::NotANumber(text.into()));
    }
    match text.parse::<u16>() {
        Ok(0) | Err(_) => Err(RangeError::OutOfRange(text.into())),
        Ok(port) => Ok(port),
    }
}

/// A set of ports: sorted ranges that neither overlap nor touch. May be empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct PortRanges(Vec<PortRange>);

impl PortRanges {
    /// The union of `ranges`.
    pub fn new(ranges: impl IntoIterator<Item = PortRange>) -> Self {
        let mut all: Vec<_> = ranges.into_iter().collect();
        all.sort_unstable();
        let mut merged: Vec<PortRange> = Vec::with_capacity(all.len());
        for range in all {
            match merged.last_mut() {
                Some(last) if range.min <= last.max.saturating_add(1) => {
                    last.max = last.max.max(range.max);
                }
                _ => merged.push(range),
            }
        }
        Self(merged)
    }

    /// Whether `port` is in the set.
    pub fn contains(&self, port: u16) -> bool {
        let after = self.0.partition_point(|range| range.min <= port);
        after > 0 && self.0[after - 1].contains(port)
    }

    /// Whether the set holds no port.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The ranges, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = PortRange> + '_ {
        self.0.iter().copied()
    }

    /// The smallest single range that covers the set; `None` when it is empty.
    pub fn hull(&self) -> Option<PortRange> {
        Some(self.0.first()?.hull(*self.0.last()?))
    }

    /// The ports of either set.
    pub fn union(&self, other: &Self) -> Self {
        Self::new(self.iter().chain(other.iter()))
    }

    /// The ports of both sets.
    pub fn intersection(&self, other: &Self) -> Self {
        let (mut a, mut b) = (self.iter().peekable(), other.iter().peekable());
        let mut both = Vec::new();
        while let (Some(x), Some(y)) = (a.peek(), b.peek()) {
            both.extend(PortRange::new(x.min.max(y.min), x.max.min(y.max)).ok());
            // The one that ends first meets nothing more of the other set.
            if x.max <= y.max {
                a.next()
            } else {
                b.next()
            };
        }
        Self(both)
    }

    /// The ports of this set that are not in `other`.
    pub fn difference(&self, other: &Self) -> Self {
        let mut gaps = Vec::with_capacity(other.0.len() + 1);
        let mut from = Some(1);
        for range in other.iter() {
            gaps.extend(from.and_then(|from| PortRange::new(from, range.min - 1).ok()));
            from = range.max.checked_add(1);
        }
        gaps.extend(from.and_then(|from| PortRange::new(from, u16::MAX).ok()));
        self.intersection(&Self(gaps))
    }

    /// Each port plus `by`. What would lie outside 1 to 65535 is left out.
    pub fn shifted(&self, by: i32) -> Self {
        let last = i32::from(u16::MAX);
        let moved = |port: u16| i32::from(port).saturating_add(by).clamp(0, last + 1);
        let ranges = self.iter().filter_map(|range| {
            let min = u16::try_from(moved(range.min).max(1)).ok()?;
            let max = u16::try_from(moved(range.max).min(last)).ok()?;
            PortRange::new(min, max).ok()
        });
        Self(ranges.collect())
    }
}

impl fmt::Display for PortRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, range) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            write!(f, "{range}")?;
        }
        Ok(())
    }
}

impl FromStr for PortRanges {
    type Err = RangeError;

    /// Parses a comma-separated list; the parts may overlap.
    fn from_str(text: &str) -> Result<Self, RangeError> {
        let ranges: Result<Vec<_>, _> = text.split(',').map(str::parse).collect();
        Ok(Self::new(ranges?))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn ranges(text: &str) -> Result<String, String> {
        text.parse::<PortRanges>()
            .map(|r| r.to_string())
            .map_err(|e| e.to_string())
    }

    #[test]
    fn lists_are_sorted_and_merged() {
        assert_eq!(
            ranges("8080, 3000-3999,5000-6000").unwrap(),
            "3000-3999,5000-6000,8080"
        );
        assert_eq!(ranges("1-10,11-20,15-30").unwrap(), "1-30");
        assert_eq!(ranges("65535,1-65534").unwrap(), "1-65535");
    }

    #[test]
    fn errors_say_what_to_write() {
        assert!(ranges("6000-5000").unwrap_err().contains("`5000-6000`"));
        assert!(ranges("0-10").unwrap_err().contains("1 to 65535"));
        assert!(ranges("70000").unwrap_err().contains("70000"));
        assert!(ranges("http").unwrap_err().contains("`http`"));
        assert!(ranges("5000-").unwrap_err().contains("not a port number"));
        assert!(ranges("+5").unwrap_err().contains("not a port number"));
        assert!(ranges("5000,,6000").unwrap_err().contains("empty"));
        assert!(ranges("").unwrap_err().contains("empty"));
    }

    proptest! {
        #[test]
        fn a_set_contains_exactly_its_ranges(
            parts in prop::collection::vec((1u16.., 1u16..), 0..8), port: u16,
        ) {
            let parts: Vec<_> = parts.into_iter()
                .map(|(a, b)| PortRange::new(a.min(b), a.max(b)).unwrap()).collect();
            let set = PortRanges::new(parts.clone());
            prop_assert_eq!(set.contains(port), parts.iter().any(|r| r.contains(port)));
            let list: Vec<_> = set.iter().collect();
            for pair in list.windows(2) {
                prop_assert!(u32::from(pair[0].max()) + 1 < u32::from(pair[1].min()));
            }
            if !set.is_empty() {
                prop_assert_eq!(set.to_string().parse::<PortRanges>().unwrap(), set);
            }
        }

        #[test]
        fn sets_are_combined_port_by_port(
            parts in prop::collection::vec((1u16..60, 0u16..9, any::<bool>()), 0..12), by in -70i32..70,
        ) {
            let set = |which| PortRanges::new(parts.iter().filter(|p| p.2 == which)
                .map(|(min, more, _)| PortRange::new(*min, min + more).unwrap()));
            let (a, b) = (set(true), set(false));
            let (union, both, only_a) = (a.union(&b), a.intersection(&b), a.difference(&b));
            let shifted = a.shifted(by);
            for port in 1..140u16 {
                let (in_a, in_b) = (a.contains(port), b.contains(port));
                prop_assert_eq!(union.contains(port), in_a || in_b);
                prop_assert_eq!(both.contains(port), in_a && in_b);
                prop_assert_eq!(only_a.contains(port), in_a && !in_b);
                let before = u16::try_from(i32::from(port) - by).unwrap_or(0);
                prop_assert_eq!(shifted.contains(port), a.contains(before));
            }
            // Still in the one form that a set has.
            for set in [both, only_a, shifted] {
                prop_assert_eq!(PortRanges::new(set.iter()), set);
            }
        }

        #[test]
        fn shifting_stops_at_the_last_port(min in 65_000u16.., by in 0i32..70_000) {
            let moved = PortRanges::new([PortRange::new(min, u16::MAX).unwrap()]).shifted(by);
            prop_assert_eq!(moved.is_empty(), i32::from(min) + by > 65_535);
            prop_assert!(moved.iter().all(|r| i32::from(r.min()) == i32::from(min) + by));
        }

        #[test]
        fn no_text_panics(text in ".{0,20}") {
            let _ = text.parse::<PortRanges>();
        }
    }
}
