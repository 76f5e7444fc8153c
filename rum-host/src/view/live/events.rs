//! The log under the table: the latest events, newest first. Pure.

use std::collections::VecDeque;

use jiff::Timestamp;

use crate::status::model::{AgentState, AgentStatus, Event, Op, PortStatus, State, What};
use crate::view::Mirror;

use crate::view::words::{latencies, shown};

/// Lines kept: a few screens.
const KEPT: usize = 500;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Time of the event, by the clock of `rum up`.
    pub at: Option<Timestamp>,
    /// The id of the port, if it is about one.
    pub id: Option<String>,
    /// The event, cleaned.
    pub text: String,
    /// Whether the user should act.
    pub problem: bool,
}

/// The latest entries.
#[derive(Debug, Clone, Default)]
pub struct Log(VecDeque<Entry>);

impl Log {
    /// Adds a line that is not about a port.
    pub fn say(&mut self, at: Timestamp, text: &str, problem: bool) {
        self.push(Entry {
            at: Some(at),
            id: None,
            text: shown(text),
            problem,
        });
    }

    /// Adds a line for `event`, if it needs one. `known` is the state before the event.
    pub fn note(&mut self, known: &Mirror, event: &Event) {
        let line = match &event.what {
            What::Port { op, port } => {
                let before = known.port(port);
                port_text(*op, before, port).map(|text| (text, port.state.is_problem()))
            }
            What::Agent(agent) => agent_text(known.agent.as_ref(), agent)
                .map(|text| (text, agent.state != AgentState::Connected)),
            What::Config(config) => Some(match &config.error {
                Some(error) => (format!("configuration not in force: {error}"), true),
                None => ("configuration read again".to_owned(), false),
            }),
            What::Bye(reason) => Some((format!("rum up ended: {reason}"), true)),
        };
        let Some((text, problem)) = line else {
            return;
        };
        self.push(Entry {
            at: event.at.parse().ok(),
            id: match &event.what {
                What::Port { port, .. } => Some(port.id.clone()),
                _ => None,
            },
            text: shown(&text),
            problem,
        });
    }

    /// Adds lines for the changes in a snapshot's `ports`, in the order of their times.
    pub fn note_all(&mut self, known: &Mirror, ports: &[PortStatus]) {
        let is_news = |port: &&PortStatus| {
            let before = known.port(port);
            !port.state.is_hidden()
                && before.is_none_or(|p| p.state != port.state || p.since != port.since)
        };
        let mut news: Vec<_> = ports.iter().filter(is_news).collect();
        news.sort_by(|a, b| a.since.cmp(&b.since));
        for port in news {
            if let Some(text) = port_text(Op::Added, None, port) {
                self.push(Entry {
                    at: port.since.parse().ok(),
                    id: Some(port.id.clone()),
                    text: shown(&text),
                    problem: port.state.is_problem(),
                });
            }
        }
    }

    fn push(&mut self, entry: Entry) {
        self.0.truncate(KEPT - 1);
        self.0.push_front(entry);
    }

    /// The lines, newest first.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.0.iter()
    }
}

/// `None` if only counters differ. Also `None` for the changes of all ports when the agent is lost
/// or returns: that has its own line.
fn port_text(op: Op, before: Option<&PortStatus>, port: &PortStatus) -> Option<String> {
    if op == Op::Removed {
        return Some(format!("{} closed", port.called()));
    }
    let old = before.map(|p| p.state).filter(|_| op == Op::Changed);
    let went_back = |p: &PortStatus| p.state == State::Lost && p.previous_state == Some(port.state);
    if op == Op::Changed && (port.state == State::Lost || before.is_some_and(went_back)) {
        return None;
    }
    // The message of a reason may count connections; code and holder do not.
    let why = |p: &PortStatus| p.reason.clone().map(|r| (r.code, r.holder));
    let same =
        before.is_some_and(|p| p.state == port.state && p.host == port.host && why(p) == why(port));
    if same && op == Op::Changed {
        return None;
    }
    let mut text = port.called();
    if let Some(old) = old.filter(|old| *old != port.state) {
        text.push_str(&format!(" {old} ->"));
    }
    text.push_str(&format!(" {}", port.state));
    match (port.state, &port.reason) {
        (State::Forwarded, _) => text.push_str(&latencies(port)),
        (_, Some(reason)) => text.push_str(&format!(": {}", reason.message)),
        (_, None) => {}
    }
    Some(text)
}

/// `None` if this is only another attempt.
fn agent_text(before: Option<&AgentStatus>, agent: &AgentStatus) -> Option<String> {
    if before.is_some_and(|b| b.state == agent.state && b.source == agent.source) {
        return None;
    }
    let why = |text: &str| match &agent.reason {
        Some(reason) => format!("{text}: {reason}"),
        None => text.to_owned(),
    };
    Some(match (agent.state, &agent.source) {
        (AgentState::Connected, Some(source)) => format!("agent connected (source: {source})"),
        (AgentState::Connected, None) => "agent connected".to_owned(),
        (AgentState::Lost, _) => why("agent lost"),
        (AgentState::Awaited, _) => why("waiting for the agent"),
    })
}
