//! From the raw file to [`Settings`]: ranges, addresses, and what collides with what.
//!
//! Invariant: a [`Settings`] that comes out has no two forwards that would bind the same host
//! address and port; a collision later is somebody else's socket.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::time::Duration;

use rum_shared::range::{PortRange, PortRanges, RangeError};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::plan::{AutoPolicy, DRAIN, GuestPort, HostAddr, OnConflict, Policy, StaticForward};

use super::error::Problem;
use super::overlap::{collide, without};
use super::raw::Config;
use super::values::{self, Invalid};
use super::{DEFAULT_BIND, DEFAULT_NAME, Overrides, Settings};

/// Most static forwards; each costs a listening socket.
pub const MAX_FORWARDS: usize = 1024;

/// Checks `raw`, which was read from `text`, as was `document`.
pub(super) fn settings(
    text: &str,
    document: &DeTable<'_>,
    raw: &Config,
    overrides: &Overrides,
) -> Result<Settings, Vec<Problem>> {
    let mut check = Check {
        source: text,
        root: Place(Some(document)),
        problems: Vec::new(),
    };
    let settings = check.settings(raw, overrides);
    if check.problems.is_empty() {
        Ok(settings)
    } else {
        Err(check.problems)
    }
}

/// A table of the document, to look up where a key's value is; absent for defaults.
#[derive(Clone, Copy)]
pub(super) struct Place<'a>(Option<&'a DeTable<'a>>);

impl<'a> Place<'a> {
    fn value(self, key: &str) -> Option<&'a Spanned<DeValue<'a>>> {
        let found = self.0?.iter().find(|(name, _)| name.get_ref() == key);
        found.map(|(_, value)| value)
    }

    fn table(self, key: &str) -> Self {
        Self(self.value(key).and_then(|v| v.get_ref().as_table()))
    }

    fn item(self, key: &str, index: usize) -> Self {
        let items = self.value(key).and_then(|v| v.get_ref().as_array());
        Self(items.and_then(|items| items.get(index)?.get_ref().as_table()))
    }

    /// Where the value of `key` is.
    pub(super) fn span(self, key: &str) -> Option<Range<usize>> {
        self.value(key).map(Spanned::span)
    }
}

/// A static forward with where its host port is written.
type Placed = (StaticForward, Option<Range<usize>>);

/// Values that are wrong become a default, so that the rest is checked too.
pub(super) struct Check<'a> {
    source: &'a str,
    root: Place<'a>,
    problems: Vec<Problem>,
}

impl Check<'_> {
    fn settings(&mut self, raw: &Config, overrides: &Overrides) -> Settings {
        let root = self.root;
        let name = match (&overrides.name, &raw.name) {
            (Some(name), _) => name.clone(),
            (None, Some(name)) => self.text(root, "name", name, values::name),
            (None, None) => DEFAULT_NAME.to_owned(),
        };
        let guest = raw.guest.clone().unwrap_or_default();
        let guest = self.guest(root.table("guest"), &guest);
        let drain = match &raw.drain {
            Some(drain) => self.text(root, "drain", drain, values::duration),
            None => DRAIN,
        };
        let forwards = self.forwards(raw);
        let auto = self.auto(raw, overrides, drain);
        if let Some(auto) = &auto {
            self.covered(auto, &forwards, overrides);
        }
        Settings {
            name,
            guest,
            policy: Policy {
                statics: forwards.into_iter().map(|(forward, _)| forward).collect(),
                auto,
                drain,
            },
            origin: None,
        }
    }

    /// Reads a text value with `read`.
    pub(super) fn text<T: Default>(
        &mut self,
        at: Place<'_>,
        key: &str,
        text: &str,
        read: impl FnOnce(&str) -> Result<T, Invalid>,
    ) -> T {
        read(text).unwrap_or_else(|invalid| {
            let label = format!("cannot be used as `{key}`");
            self.problem(at, key, &label, invalid.message, invalid.hint);
            T::default()
        })
    }

    fn address(&mut self, at: Place<'_>, text: &str) -> IpAddr {
        self.text(at, "bind", text, |text| values::address(text).map(Address))
            .0
    }

    pub(super) fn problem(
        &mut self,
        at: Place<'_>,
        key: &str,
        label: &str,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        let span = at.span(key).unwrap_or(0..0);
        self.problems.push(Problem::new(span, label, message, hint));
    }

    fn forwards(&mut self, raw: &Config) -> Vec<Placed> {
        if raw.ports.len() > MAX_FORWARDS {
            let message = format!("{} static forwards are too many", raw.ports.len());
            let hint = format!("at most {MAX_FORWARDS}; forward a whole range with [auto_ports]");
            self.problem(self.root, "ports", "", message, hint);
        }
        let mut forwards: Vec<Placed> = Vec::new();
        for (i, entry) in raw.ports.iter().take(MAX_FORWARDS).enumerate() {
            let at = self.root.item("ports", i);
            let host = self.port(at, "host", entry.host);
            let guest = self.port(at, "guest", entry.guest);
            let bind = self.address(at, &entry.bind);
            let (Some(host), Some(guest)) = (host, guest) else {
                continue;
            };
            let host = SocketAddr::new(bind, host);
            let span = at.span("host");
            if let Some((other, first)) = forwards.iter().find(|(f, _)| collide(f.host.0, host)) {
                let message = if other.host.0 == host {
                    format!("host port {} is forwarded twice", host.port())
                } else {
                    format!("{host} and {} cannot both be bound", other.host)
                };
                let hint = "give one of the two another `host` port";
                let problem =
                    Problem::new(span.clone().unwrap_or(0..0), "taken already", message, hint);
                let problem = problem.and(first.clone(), format!("by guest:{}", other.guest));
                self.problems.push(problem);
            }
            forwards.push((
                StaticForward {
                    host: HostAddr(host),
                    guest: GuestPort(guest),
                },
                span,
            ));
        }
        forwards
    }

    fn port(&mut self, at: Place<'_>, key: &str, value: i64) -> Option<u16> {
        let port = u16::try_from(value).ok().filter(|port| *port != 0);
        if port.is_none() {
            let message = format!("{key} port {value} does not exist");
            let hint = "write a number from 1 to 65535";
            self.problem(at, key, "not a port", message, hint);
        }
        port
    }

    fn auto(&mut self, raw: &Config, overrides: &Overrides, drain: Duration) -> Option<AutoPolicy> {
        let at = self.root.table("auto_ports");
        let file = raw.auto_ports.as_ref();
        let ranges = match (&overrides.ranges, file) {
            (Some(ranges), _) => ranges.clone(),
            (None, Some(file)) => self.ranges(at, &file.range),
            (None, None) => return None,
        };
        let bind = match overrides.bind {
            Some(bind) => bind,
            None => self.address(at, file.map_or(DEFAULT_BIND, |file| &file.bind)),
        };
        let on_conflict = match file.map(|file| file.on_conflict.as_str()) {
            None | Some("wait") => OnConflict::Wait,
            Some("next") => OnConflict::Next,
            Some(other) => {
                let message = format!("`on_conflict` cannot be `{other}`");
                let hint = "write \"wait\" to take the port when it is free, or \"next\" to take \
                            the next free one";
                self.problem(at, "on_conflict", "not known here", message, hint);
                OnConflict::Wait
            }
        };
        let drain = match file.and_then(|file| file.drain.as_deref()) {
            Some(text) => self.text(at, "drain", text, values::duration),
            None => drain,
        };
        Some(AutoPolicy {
            ranges,
            bind,
            on_conflict,
            drain,
        })
    }

    fn ranges(&mut self, at: Place<'_>, text: &str) -> PortRanges {
        let whole = at.span("range").unwrap_or(0..0);
        // Without escapes a part of the text is the same part of the source.
        let inner = whole.start + 1..whole.end.saturating_sub(1);
        let plain = self.source.get(inner.clone()) == Some(text);
        let mut good = Vec::new();
        let mut start = inner.start;
        for part in text.split(',') {
            match part.parse::<PortRange>() {
                Ok(range) => good.push(range),
                Err(error) => {
                    let span = match plain && !part.is_empty() {
                        true => start..start + part.len(),
                        false => whole.clone(),
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

    /// The automatic forward of a port would bind what a static forward has.
    fn covered(&mut self, auto: &AutoPolicy, forwards: &[Placed], overrides: &Overrides) {
        let covered = |port: u16, at: IpAddr| {
            auto.ranges.contains(port)
                && collide(SocketAddr::new(at, port), SocketAddr::new(auto.bind, port))
        };
        let clash: Vec<_> = forwards
            .iter()
            .filter(|(f, _)| covered(f.host.0.port(), f.host.0.ip()))
            .collect();
        let Some((first, host)) = clash.first() else {
            return;
        };
        let ports: Vec<u16> = clash.iter().map(|(f, _)| f.host.0.port()).collect();
        let rest = without(&auto.ranges, &ports);
        let from_file = overrides.ranges.is_none();
        let hint = match (rest.is_empty(), from_file) {
            (true, true) => "remove [auto_ports]: the static forwards cover it".to_owned(),
            (true, false) => "remove `--range`: the static forwards cover it".to_owned(),
            (false, true) => format!("leave it out: `range = \"{rest}\"`"),
            (false, false) => format!("leave it out: `--range {rest}`"),
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

/// [`IpAddr`] with the loopback address as its default.
struct Address(IpAddr);

impl Default for Address {
    fn default() -> Self {
        Self(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST))
    }
}

/// Splits a range's error into what is wrong and what to write.
fn range_words(error: &RangeError) -> (String, String) {
    let text = error.to_string();
    let (message, hint) = text.split_once("; ").unwrap_or((&text, ""));
    (message.to_owned(), hint.to_owned())
}
