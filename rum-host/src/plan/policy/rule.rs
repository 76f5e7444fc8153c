//! Rules: which guest ports and processes they match, and what happens to those.

use std::fmt;
use std::time::Duration;

use rum_shared::listener::{MAX_COMMAND, Process};
use rum_shared::range::PortRanges;
use rum_shared::text::clean;
use wildmatch::WildMatch;

use super::Binds;

/// Longest list of ports that a message quotes, in characters.
const MAX_QUOTED: usize = 60;
/// Longest pattern, in characters: as long as the text that it is compared with may be.
pub const MAX_PATTERN: usize = MAX_COMMAND;

/// A pattern for process names or command lines: `*` matches any text, `?` any one character.
#[derive(Clone, PartialEq)]
pub struct Pattern(WildMatch);

/// Patterns with equal texts are equal.
impl Eq for Pattern {}

impl Pattern {
    /// The pattern `text`, cut to [`MAX_PATTERN`] characters.
    pub fn new(text: &str) -> Self {
        Self(WildMatch::new(&clean(text, MAX_PATTERN)))
    }

    /// Whether the pattern matches the whole of `name`.
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
        /// The host port of the rule's first guest port; the others follow. `None`: the same
        /// numbers as in the guest.
        host: Option<u16>,
        /// The host addresses; `None`: those of the `AutoPolicy`.
        bind: Option<Binds>,
    },
    /// Do not forward it.
    Ignore,
}

/// One `[[auto_ports.rule]]`: its conditions and its action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The guest ports that it matches; `None`: all.
    pub guest: Option<PortRanges>,
    /// The names of processes that it matches; `None`: all.
    pub process: Option<Pattern>,
    /// The command lines that it matches; `None`: all.
    pub command: Option<Pattern>,
    /// What happens to a matching port.
    pub action: RuleAction,
    /// The user's name for the ports.
    pub label: Option<String>,
    /// How long connections may go on after their listener closes; `None`: that of the
    /// `AutoPolicy`.
    pub drain: Option<Duration>,
}

impl Rule {
    /// Whether the rule needs a process to decide.
    pub(super) fn asks_for_process(&self) -> bool {
        self.process.is_some() || self.command.is_some()
    }

    /// Whether the rule matches `process`: its short name, its executable's or its script's file
    /// name, and its command line.
    pub(super) fn is_for(&self, process: &Process) -> bool {
        // An unknown file name is empty, and `*` would match it.
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

/// The conditions, as in `rum.toml`.
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
