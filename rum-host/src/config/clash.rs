//! Finds collisions between static forwards, the ranges, and the rules that move ports.
//!
//! Everything that `[auto_ports]` may bind is in a [`PortBlock`]. Two blocks with the same distance
//! between guest and host ports cannot collide, since a host port then has one guest port; all
//! other pairs must not share a host port.

use std::ops::Range;

use rum_shared::range::{PortRange, PortRanges};

use super::Overrides;
use super::check::{Check, Placed};
use crate::error::located::Problem;
use crate::plan::policy::{AutoPolicy, Binds, PortBlock};

/// Ports below need privilege: a fix proposes none unless the user's value was there.
const FIRST_FREE: u16 = 1024;

impl Check<'_> {
    /// Finds one collision of each rule, and those of the ranges.
    pub(super) fn clashes(
        &mut self,
        auto: &AutoPolicy,
        forwards: &[Placed],
        overrides: &Overrides,
    ) {
        let all = auto.port_blocks();
        for one in &all {
            let Some(rule) = one.rule else {
                self.covered(auto, one, forwards, overrides);
                continue;
            };
            let found = match statics_in(one, forwards).next() {
                Some(other) => Some(self.on_static(auto, rule, one, &all, forwards, other)),
                None => self.on_other(auto, rule, one, &all, forwards),
            };
            self.problems.extend(found);
        }
    }

    /// Position of the key that sets the host ports of rule `rule`.
    fn place(&self, rule: usize) -> Option<Range<usize>> {
        let at = self.root.table("auto_ports").item("rule", rule);
        let keys = ["host", "bind", "guest", "process", "command"];
        keys.iter().find_map(|key| at.span(key))
    }

    /// A rule takes the host port of the static forward `other`.
    fn on_static(
        &self,
        auto: &AutoPolicy,
        rule: usize,
        one: &PortBlock,
        all: &[PortBlock],
        forwards: &[Placed],
        other: &Placed,
    ) -> Problem {
        let port = other.0.host.0.port();
        let hint = match one.offset {
            0 => format!("leave it out: {}", exclude(auto, [port])),
            _ => elsewhere(auto, rule, one, all, forwards),
        };
        let message = format!(
            "rule {} takes host port {port}, which is a static forward",
            rule + 1
        );
        let span = self.place(rule).unwrap_or(0..0);
        Problem::new(span, leads(one, port), message, hint).and(
            other.1.clone(),
            format!("`{}` is a static forward", other.0.host),
        )
    }

    /// A rule that moves ports takes those of an earlier rule, or of ports that stay.
    fn on_other(
        &self,
        auto: &AutoPolicy,
        rule: usize,
        one: &PortBlock,
        all: &[PortBlock],
        forwards: &[Placed],
    ) -> Option<Problem> {
        if one.offset == 0 {
            return None;
        }
        let host = one.host();
        let (other, shared) = all
            .iter()
            .filter(|other| other.offset != one.offset && other.bind.overlap(&one.bind))
            .filter(|other| other.offset == 0 || other.rule < one.rule)
            .map(|other| (other, other.host().intersection(&host)))
            .find(|(_, shared)| !shared.is_empty())?;
        let port = shared.hull()?.min();
        let free = elsewhere(auto, rule, one, all, forwards);
        let auto_ports = self.root.table("auto_ports");
        let (message, hint, place) = match other.rule {
            Some(other) => (
                format!(
                    "rules {} and {} both take host port {port}",
                    other + 1,
                    rule + 1
                ),
                free,
                self.place(other),
            ),
            None => {
                let exclude = exclude(auto, shared.iter().flat_map(|r| r.min()..=r.max()));
                (
                    format!(
                        "rule {} takes host port {port}, which the range covers",
                        rule + 1
                    ),
                    format!("{free}, or leave the ports out of the range: {exclude}"),
                    auto_ports.span("range"),
                )
            }
        };
        let span = self.place(rule).unwrap_or(0..0);
        let problem = Problem::new(span, leads(one, port), message, hint);
        Some(problem.and(place, leads(other, port)))
    }

    /// The automatic forward of a port would bind the host port of a static forward.
    fn covered(
        &mut self,
        auto: &AutoPolicy,
        rest: &PortBlock,
        forwards: &[Placed],
        overrides: &Overrides,
    ) {
        let clash: Vec<_> = statics_in(rest, forwards).collect();
        let Some((first, host)) = clash.first() else {
            return;
        };
        let ports = single(clash.iter().map(|(f, _)| f.host.0.port()));
        let left = auto.ranges.difference(&ports);
        let from_file = overrides.ranges.is_none();
        let hint = match (left.is_empty(), from_file) {
            (true, true) => "remove [auto_ports]: the static forwards cover it".to_owned(),
            (true, false) => "remove `--range`: the static forwards cover it".to_owned(),
            (false, true) => format!("leave it out: `range = \"{left}\"`"),
            (false, false) => format!("leave it out: `--range {left}`"),
        };
        let port = first.host.0.port();
        let taken = format!("`{}` is a static forward", first.host);
        let message = format!("the range covers host port {port}, which is a static forward");
        let range = self.root.table("auto_ports").span("range");
        let problem = match range.filter(|_| from_file) {
            Some(range) => {
                let label = format!("covers {port}");
                Problem::new(range, label, message, hint).and(host.clone(), taken)
            }
            None => Problem::new(host.clone().unwrap_or(0..0), taken, message, hint),
        };
        self.problems.push(problem);
    }
}

/// The static forwards that collide with `one`.
fn statics_in<'a>(one: &PortBlock, forwards: &'a [Placed]) -> impl Iterator<Item = &'a Placed> {
    let (host, bind) = (one.host(), one.bind);
    forwards.iter().filter(move |(forward, _)| {
        host.contains(forward.host.0.port()) && bind.overlap(&forward.binds)
    })
}

/// `15000 is for guest:5000`
fn leads(one: &PortBlock, port: u16) -> String {
    format!("{port} is for guest:{}", i32::from(port) - one.offset)
}

fn single(ports: impl IntoIterator<Item = u16>) -> PortRanges {
    PortRanges::new(ports.into_iter().filter_map(PortRange::single))
}

/// The `exclude` of `auto` with `ports` in it.
fn exclude(auto: &AutoPolicy, ports: impl IntoIterator<Item = u16>) -> String {
    format!("`exclude = \"{}\"`", auto.exclude.union(&single(ports)))
}

/// A `host` for rule `rule` that collides with nothing.
fn elsewhere(
    auto: &AutoPolicy,
    rule: usize,
    one: &PortBlock,
    all: &[PortBlock],
    forwards: &[Placed],
) -> String {
    let here = |binds: &Binds| one.bind.overlap(binds);
    let others = all.iter().filter(|t| t.rule != one.rule && here(&t.bind));
    let statics = forwards.iter().filter(|(f, _)| here(&f.binds));
    let statics = statics.map(|(f, _)| f.host.0.port());
    let taken = others.fold(single(statics), |all, t| all.union(&t.host()));
    let free = PortRanges::new([PortRange::ALL]).difference(&taken);
    let guest = auto.rules[rule].guest.as_ref();
    let Some(guest) = guest.and_then(PortRanges::hull) else {
        return "write another `host`".to_owned();
    };
    let more = guest.max() - guest.min();
    let now = u16::try_from(i32::from(guest.min()) + one.offset).unwrap_or(FIRST_FREE);
    let fit = |from: u16| {
        let starts = free.iter().map(|gap| (gap.min().max(from), gap.max()));
        starts
            .filter(|(min, max)| min.checked_add(more).is_some_and(|last| last <= *max))
            .map(|(min, _)| min)
            .next()
    };
    match fit(now).or_else(|| fit(FIRST_FREE)) {
        Some(host) => format!("write `host = {host}`"),
        None => "write another `host`, or fewer ports in `guest`".to_owned(),
    }
}
