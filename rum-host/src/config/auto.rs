//! `[auto_ports]` and its rules, each by itself; [`super::clash`] compares them.

use rum_shared::range::{PortRange, PortRanges, RangeError};

use super::check::{Check, Place};
use super::raw::{AutoPortsConfig, Config, RuleConfig};
use super::{Overrides, values};
use crate::error::located::Problem;
use crate::plan::policy::{AutoPolicy, Binds, OnConflict, Pattern, Rule, RuleAction};

/// Most rules; each is compared with every listener.
pub const MAX_RULES: usize = 256;

impl Check<'_> {
    pub(super) fn auto(&mut self, raw: &Config, overrides: &Overrides) -> Option<AutoPolicy> {
        let at = self.root.table("auto_ports");
        let file = raw.auto_ports.as_ref();
        let ranges = match (&overrides.ranges, file) {
            (Some(ranges), _) => ranges.clone(),
            (None, Some(file)) => self.ranges(at, "range", &file.range),
            (None, None) => return None,
        };
        let bind = match overrides.bind {
            Some(bind) => bind,
            None => file.map_or(Binds::LOCALHOST, |file| self.binds(at, &file.bind)),
        };
        let mut auto = AutoPolicy {
            bind,
            ..AutoPolicy::new(ranges)
        };
        if let Some(file) = file {
            self.details(at, file, &mut auto);
            if overrides.ranges.is_none() {
                self.in_range(at, &auto);
            }
        }
        Some(auto)
    }

    fn details(&mut self, at: Place<'_>, file: &AutoPortsConfig, auto: &mut AutoPolicy) {
        auto.on_conflict = match file.on_conflict.as_str() {
            "wait" => OnConflict::Wait,
            "next" => OnConflict::Next,
            other => {
                let message = format!("`on_conflict` cannot be `{other}`");
                let hint = "write \"wait\" to take the port when it is free, or \"next\" to take \
                            the next free one";
                self.problem(at, "on_conflict", "not known here", message, hint);
                OnConflict::Wait
            }
        };
        if let Some(text) = &file.drain {
            auto.drain = Some(self.text(at, "drain", text, values::duration));
        }
        if let Some(text) = &file.exclude {
            auto.exclude = self.ranges(at, "exclude", text);
        }
        if file.rule.len() > MAX_RULES {
            let message = format!("{} rules are too many", file.rule.len());
            let hint = format!("write at most {MAX_RULES}; `guest` and `process` can hold many");
            self.problem(at, "rule", "the first of them", message, hint);
        }
        for (index, raw) in file.rule.iter().take(MAX_RULES).enumerate() {
            let rule = self.rule(at, index, raw);
            auto.rules.push(rule);
        }
    }

    fn rule(&mut self, auto: Place<'_>, index: usize, raw: &RuleConfig) -> Rule {
        let at = auto.item("rule", index);
        if raw.guest.is_none() && raw.process.is_none() && raw.command.is_none() {
            self.problems.push(Problem::new(
                auto.header("rule", index).unwrap_or(0..0),
                "has none of `guest`, `process` and `command`",
                format!("rule {} does not say what it is for", index + 1),
                "add `guest = \"5000-5100\"`, `process = \"postgres*\"` or `command = \"*vite*\"`",
            ));
        }
        let guest = raw.guest.as_deref();
        let guest = guest.map(|text| self.ranges(at, "guest", text));
        let process = raw.process.as_deref();
        let process = process
            .map(|text| self.text(at, "process", text, values::pattern))
            .map(|text| Pattern::new(&text));
        let command = raw.command.as_deref();
        let command = command
            .map(|text| self.text(at, "command", text, values::command))
            .map(|text| Pattern::new(&text));
        let host = raw.host.and_then(|host| self.port(at, "host", host));
        let bind = raw.bind.as_ref().map(|texts| self.binds(at, texts));
        let label = self.label(at, raw.label.as_deref());
        let drain = raw.drain.as_deref();
        let drain = drain.map(|text| self.text(at, "drain", text, values::duration));
        let action = match raw.action.as_str() {
            "forward" => {
                if let Some(host) = host {
                    self.host(at, host, guest.as_ref());
                }
                RuleAction::Forward { host, bind }
            }
            "ignore" => {
                let keys = [("host", raw.host.is_some()), ("bind", raw.bind.is_some())];
                for (key, _) in keys.iter().filter(|(_, present)| *present) {
                    let message = format!("a port that is ignored has no `{key}`");
                    let hint = format!("remove `{key}`, or write `action = \"forward\"`");
                    self.problem(at, key, "not with `action = \"ignore\"`", message, hint);
                }
                RuleAction::Ignore
            }
            other => {
                let message = format!("`action` cannot be `{other}`");
                let hint = "write \"forward\" or \"ignore\"";
                self.problem(at, "action", "not known here", message, hint);
                RuleAction::Ignore
            }
        };
        Rule {
            guest,
            process,
            command,
            action,
            label,
            drain,
        }
    }

    /// The host ports that follow `host` must exist.
    fn host(&mut self, at: Place<'_>, host: u16, guest: Option<&PortRanges>) {
        let Some(guest) = guest else {
            let message = "`host` needs `guest`: the first of these ports goes to it";
            let hint = "add `guest = \"5000-5100\"`, or remove `host`";
            self.problem(at, "host", "for which guest port?", message, hint);
            return;
        };
        let Some(hull) = guest.hull() else { return };
        let more = hull.max() - hull.min();
        if host.checked_add(more).is_none() {
            let last = u32::from(host) + u32::from(more);
            let message = format!(
                "guest port {} would go to host port {last}, which does not exist",
                hull.max()
            );
            let label = format!("goes on to {last}");
            // A range that starts at port 1 and ends at 65535 has room for port 1 only.
            let hint = format!("write `host = {}` or less", u16::MAX - more);
            self.problem(at, "host", &label, message, hint);
        }
    }

    /// Rules for ports that are not forwarded at all are a mistake.
    fn in_range(&mut self, at: Place<'_>, auto: &AutoPolicy) {
        if auto.ranges.is_empty() {
            return;
        }
        for (index, rule) in auto.rules.iter().enumerate() {
            let Some(guest) = &rule.guest else { continue };
            let outside = guest.difference(&auto.ranges);
            let Some(first) = outside.iter().next() else {
                continue;
            };
            let problem = Problem::new(
                at.item("rule", index).span("guest").unwrap_or(0..0),
                format!("{first} is outside the range"),
                format!("rule {} is for ports that are not forwarded", index + 1),
                format!(
                    "widen the range: `range = \"{}\"`",
                    auto.ranges.union(guest)
                ),
            );
            self.problems
                .push(problem.and(at.span("range"), "the range"));
        }
    }

    /// Reads a list of ports.
    fn ranges(&mut self, at: Place<'_>, key: &str, text: &str) -> PortRanges {
        let whole = at.span(key).unwrap_or(0..0);
        // Without escapes a part of the text is the same part of the source.
        let inner = whole.start + 1..whole.end.saturating_sub(1);
        let plain = self.source.get(inner.clone()) == Some(text);
        let mut good = Vec::new();
        let mut start = inner.start;
        for part in text.split(',') {
            match part.parse::<PortRange>() {
                Ok(range) => good.push(range),
                Err(error) => {
                    let span = if plain && !part.is_empty() {
                        start..start + part.len()
                    } else {
                        whole.clone()
                    };
                    let label = match &error {
                        RangeError::Reversed(..) => "ends before it starts",
                        _ => "not a range of ports",
                    };
                    let (message, hint) = range_words(&error);
                    self.problems.push(Problem::new(span, label, message, hint));
                }
            }
            start += part.len() + 1;
        }
        PortRanges::new(good)
    }
}

/// Splits a range's error into what is wrong and what to write.
fn range_words(error: &RangeError) -> (String, String) {
    let text = error.to_string();
    let (message, hint) = text.split_once("; ").unwrap_or((&text, ""));
    (message.to_owned(), hint.to_owned())
}
