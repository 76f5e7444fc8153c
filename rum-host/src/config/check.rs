//! From the raw file to [`Settings`]: checks ranges and addresses, and finds collisions.
//!
//! Invariant: in a [`Settings`] no two forwards would bind the same host address and port; a later
//! collision is with a socket of another program. [`super::auto`] checks `[auto_ports]`,
//! [`super::clash`] finds collisions.

use std::net::SocketAddr;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::guest::GuestKind;
use crate::plan::policy::{Binds, DRAIN, Destination, HostAddr, Policy, StaticForward};

use super::destination;
use super::raw::{Config, PortOrAddress, Texts};
use super::values::{self, Invalid};
use super::{DEFAULT_NAME, Overrides, Settings};
use crate::error::located::Problem;

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

    pub(super) fn table(self, key: &str) -> Self {
        Self(self.value(key).and_then(|v| v.get_ref().as_table()))
    }

    pub(super) fn item(self, key: &str, index: usize) -> Self {
        let items = self.value(key).and_then(|v| v.get_ref().as_array());
        Self(items.and_then(|items| items.get(index)?.get_ref().as_table()))
    }

    /// Where the item `index` of `key` starts.
    pub(super) fn header(self, key: &str, index: usize) -> Option<Range<usize>> {
        let items = self.value(key).and_then(|v| v.get_ref().as_array());
        items.and_then(|items| items.get(index).map(Spanned::span))
    }

    /// Where the value of `key` is.
    pub(super) fn span(self, key: &str) -> Option<Range<usize>> {
        self.value(key).map(Spanned::span)
    }
}

/// A static forward with where its host port is written.
pub(super) type Placed = (StaticForward, Option<Range<usize>>);

/// Wrong values become a default, so that the rest is checked too.
pub(super) struct Check<'a> {
    pub(super) source: &'a str,
    pub(super) root: Place<'a>,
    pub(super) problems: Vec<Problem>,
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
        let mut guest = self.guest(root.table("guest"), &guest);
        if let GuestKind::Namespace(isolation) = &mut guest {
            isolation.root |= overrides.root;
            isolation.privileged |= overrides.privileged;
        }
        let drain = match &raw.drain {
            Some(drain) => self.text(root, "drain", drain, values::duration),
            None => DRAIN,
        };
        let keepalive = raw.keepalive.as_deref();
        let keepalive = keepalive.map(|text| self.text(root, "keepalive", text, values::keepalive));
        let forwards = self.forwards(raw);
        let auto = self.auto(raw, overrides);
        if let Some(auto) = &auto {
            self.clashes(auto, &forwards, overrides);
        }
        Settings {
            name,
            guest,
            policy: Policy {
                statics: forwards.into_iter().map(|(forward, _)| forward).collect(),
                auto,
                drain,
                keepalive,
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

    pub(super) fn binds(&mut self, at: Place<'_>, texts: &Texts) -> Binds {
        let read = match texts {
            Texts::One(text) => values::binds(text),
            Texts::Many(texts) => {
                values::binds_of(&texts.iter().map(String::as_str).collect::<Vec<_>>())
            }
        };
        read.unwrap_or_else(|invalid| {
            let label = "cannot be used as `bind`";
            self.problem(at, "bind", label, invalid.message, invalid.hint);
            Binds::LOCALHOST
        })
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

    pub(super) fn label(&mut self, at: Place<'_>, text: Option<&str>) -> Option<String> {
        text.map(|text| self.text(at, "label", text, values::label))
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
            let guest = self.destination(at, &entry.guest);
            let binds = self.binds(at, &entry.bind);
            let (Some(host), Some(guest)) = (host, guest) else {
                continue;
            };
            let host = SocketAddr::new(binds.first(), host);
            let span = at.span("host");
            let collides =
                |f: &StaticForward| f.host.0.port() == host.port() && f.binds.overlap(&binds);
            if let Some((other, first)) = forwards.iter().find(|(f, _)| collides(f)) {
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
                    binds,
                    guest,
                    label: self.label(at, entry.label.as_deref()),
                },
                span,
            ));
        }
        forwards
    }

    fn destination(&mut self, at: Place<'_>, guest: &PortOrAddress) -> Option<Destination> {
        let text = match guest {
            PortOrAddress::Port(port) => {
                return self.port(at, "guest", *port).map(Destination::own);
            }
            PortOrAddress::Address(text) => text,
        };
        let read = |text: &str| destination::destination(text).map(Some);
        self.text(at, "guest", text, read)
    }

    pub(super) fn port(&mut self, at: Place<'_>, key: &str, value: i64) -> Option<u16> {
        let port = u16::try_from(value).ok().filter(|port| *port != 0);
        if port.is_none() {
            let message = format!("{key} port {value} does not exist");
            let hint = "write a number from 1 to 65535";
            self.problem(at, key, "not a port", message, hint);
        }
        port
    }
}
