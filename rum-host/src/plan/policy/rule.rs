//! Rules: which guest ports and processes, and what to do with them.

use std::fmt;
use std::time::Duration;

use rum_shared::listener::{MAX_COMMAND, Process};
use rum_shared::range::PortRanges;
use rum_shared::text::clean;
use wildmatch::WildMatch;

use super::Binds;

/// Longest list of ports that a message quotes, in characters.
const MAX_QUOTED: usize = 60;
/// Longest pattern, in characters: as long as what it is compared with may be.
pub const MAX_PATTERN: usize = MAX_COMMAND;

/// A pattern of the names of processes or of command lines: `*` is any text, `?` any one character.
#[derive(Clone, PartialEq)]
pub struct Pattern(WildMatch);

/// Equality of patterns is equality of texts.
impl Eq for Pattern {}

impl Pattern {
    /// The pattern `text`, of which [`MAX_PATTERN`] characters count.
    pub fn new(text: &str) -> Self {
        Self(WildMatch::new(&clean(text, MAX_PATTERN)))
    }

    /// Whether `name` is like it, from its first to its last character.
    pub fn matches(&self, name: &str) -> bool {
        self.0.matches(name)
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pattern({:?})", self.0.pattern())
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a rule does with a port that it matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuleAction {
    /// Forward it.
    Forward {
        /// The host port of the rule's first guest port; the others follow. `None`: the guest's
        /// own numbers.
        host: Option<u16>,
        /// The host addresses; `None`: those of the other ports.
        bind: Option<Binds>,
    },
    /// Leave it alone.
    Ignore,
}

/// One `[[auto_ports.rule]]`: what it asks for, and what it does then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The guest ports it is for; `None`: all.
    pub guest: Option<PortRanges>,
    /// The processes it is for, by name; `None`: all.
    pub process: Option<Pattern>,
    /// The processes it is for, by command line; `None`: all.
    pub command: Option<Pattern>,
    /// What it does.
    pub action: RuleAction,
    /// What the user calls the ports.
    pub label: Option<String>,
    /// How long connections may go on when their listener closes; `None`: as for the other ports.
    pub drain: Option<Duration>,
}

impl Rule {
    /// Whether it is for some processes only.
    pub(super) fn asks_for_process(&self) -> bool {
        self.process.is_some() || self.command.is_some()
    }

    /// Whether it is for `process`: by its short name, its executable's or its script's file name,
    /// and by its command line.
    pub(super) fn is_for(&self, process: &Process) -> bool {
        // What is not known is empty, and `*` would match that.
        let file_names = [&process.program, &process.script].into_iter();
        let file_names = file_names.filter(|name| !name.is_empty());
        let mut names = std::iter::once(&process.name).chain(file_names);
        let by_name = |pattern: &Pattern| names.any(|name| pattern.matches(name));
        let by_command = |pattern: &Pattern| pattern.matches(&process.command);
        self.process.as_ref().is_none_or(by_name) && self.command.as_ref().is_none_or(by_command)
    }

    /// What is added to a guest port to get its host port.
    pub(super) fn offset(&self) -> i32 {
        let first = self.guest.as_ref().and_then(PortRanges::hull);
        match (self.action, first) {
            (RuleAction::Forward { host, .. }, Some(first)) => {
                host.map_or(0, |host| i32::from(host) - i32::from(first.min()))
            }
            _ => 0,
        }
    }
}

/// Its conditions, as they are written.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let guest = self.guest.as_ref().map(|guest| {
            let ports = clean(&guest.to_string(), MAX_QUOTED);
            format!("guest = \"{ports}\"")
        });
        let process = self.process.as_ref();
        let process = process.map(|process| format!("process = \"{process}\""));
        let command = self.command.as_ref();
        let command = command.map(|command| format!("command = \"{command}\""));
        let conditions: Vec<_> = guest.into_iter().chain(process).chain(command).collect();
        f.write_str(&conditions.join(", "))
    }
}
