//! `rum ports --watch` without a terminal: one line for each event, for people and logs.
//!
//! A line has the local time, then the port and its change, or `agent`, `config` or `rum` and its
//! change. Changes of numbers alone (connections, bytes, attempts) have no line. At the start, and
//! after a gap, each port has a line with the time of its last change.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use rum_shared::text::printable;

use super::changes::Change;
use super::words;
use crate::status::model::{AgentState, AgentStatus, ConfigStatus, Op, PortStatus, State};

/// Formats changes as lines.
#[derive(Debug)]
pub struct Lines {
    zone: TimeZone,
    agent: Option<AgentState>,
    config: Option<ConfigStatus>,
}

impl Lines {
    /// Lines with times in `zone`.
    pub fn new(zone: TimeZone) -> Self {
        Self {
            zone,
            agent: None,
            config: None,
        }
    }

    /// The line for `change`, with its line feed, if it needs one. `now` is used for a change
    /// without a time.
    pub fn line(&mut self, change: &Change, now: Timestamp) -> Option<String> {
        let (at, text) = match change {
            Change::Start | Change::Synced => return None,
            Change::Gap => (None, "events were missed; as it is now:".to_owned()),
            Change::Existing(port) => (Some(&port.since), describe(port, None)),
            Change::Port {
                at,
                op,
                before,
                port,
            } => (Some(at), happened(*op, before.as_ref(), port)?),
            Change::Agent { at, agent } => {
                let known = self.agent.replace(agent.state);
                let news = known != Some(agent.state);
                (
                    at.as_ref().or(Some(&agent.since)),
                    news.then(|| of_agent(agent))?,
                )
            }
            Change::Config { at, config } => {
                let known = self.config.replace(config.clone());
                let news = match &known {
                    Some(known) => known != config,
                    // The normal case needs no line.
                    None => config.error.is_some(),
                };
                (at.as_ref(), news.then(|| of_config(config))?)
            }
            Change::Bye { at, reason } => (at.as_ref(), format!("rum up has ended: {reason}")),
        };
        let time = match at {
            Some(at) => at.parse().unwrap_or(now),
            None => now,
        };
        let time = words::moment(time, now, &self.zone, true);
        Some(printable(&format!("{time} {text}")) + "\n")
    }
}

/// The port's name for users: its number, with a suffix such as `#2` while connections of a
/// predecessor drain.
fn name(port: &PortStatus) -> String {
    match port.id.rsplit_once('#') {
        Some((_, number)) => format!("{}#{number}", port.called()),
        None => port.called(),
    }
}

fn happened(op: Op, before: Option<&PortStatus>, port: &PortStatus) -> Option<String> {
    let same = before.is_some_and(|before| {
        let reason = |port: &PortStatus| {
            let reason = port.reason.as_ref()?;
            Some((reason.code.clone(), reason.holder.clone()))
        };
        before.state == port.state && before.host == port.host && reason(before) == reason(port)
    });
    match op {
        // The last status of a port that became hidden has the reason.
        Op::Removed if port.state.is_hidden() => Some(describe(port, before)),
        Op::Removed => Some(format!("{} closed", name(port))),
        Op::Changed if same => None,
        Op::Added | Op::Changed => Some(describe(port, before)),
    }
}

/// `5432 pending -> conflict: 127.0.0.1:5432 is taken by postgres (pid 4121)`.
fn describe(port: &PortStatus, before: Option<&PortStatus>) -> String {
    let mut text = name(port);
    if let Some(before) = before.filter(|before| before.state != port.state) {
        text += &format!(" {} ->", before.state);
    }
    text += &format!(" {}", port.state);
    match (&port.reason, &port.host) {
        (_, Some(host)) if port.state == State::Forwarded => {
            text += &format!(" {host}");
            let waited_for = before.map(|before| before.state).or(port.previous_state);
            // Only the machine's latency is shown, not the time of a wait for the user.
            let fresh = matches!(waited_for, None | Some(State::Pending | State::Draining));
            if fresh {
                text += &words::latencies(port);
            }
        }
        (Some(reason), _) => text += &format!(": {}", reason.message),
        (None, _) => {}
    }
    text
}

/// `agent lost: vsock reset; retry in 2.0 s`.
pub(super) fn of_agent(agent: &AgentStatus) -> String {
    let mut text = match agent.state {
        AgentState::Awaited => "agent awaited".to_owned(),
        AgentState::Connected => "agent connected".to_owned(),
        AgentState::Lost => "agent lost".to_owned(),
    };
    if let Some(source) = agent
        .source
        .as_ref()
        .filter(|_| agent.state == AgentState::Connected)
    {
        text += &format!(" (source: {source})");
    }
    if let Some(reason) = &agent.reason {
        text += &format!(": {reason}");
    }
    if let Some(retry) = agent.retry_ms {
        text += &format!("; retry in {}", words::latency(retry.saturating_mul(1000)));
    }
    text
}

/// `config not reloaded: rum.toml:3: the range is reversed`.
pub(super) fn of_config(config: &ConfigStatus) -> String {
    match (&config.error, &config.range) {
        (Some(error), _) => format!("config not reloaded: {error}"),
        (None, Some(range)) => format!("config loaded: watching tcp {range}"),
        (None, None) => "config loaded: static forwards only".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::status::model::{Update, What};
    use crate::view::changes::Changes;
    use crate::view::samples::{agent, config, event, lost_agent, port, process, snapshot};

    /// The lines of `updates` in UTC, on the day of the samples.
    fn lines(updates: Vec<Update>) -> String {
        let now = "2026-11-23T12:00:00Z".parse().unwrap();
        let mut lines = Lines::new(TimeZone::UTC);
        let mut changes = Changes::new(false, 0);
        let seen = updates
            .into_iter()
            .flat_map(|update| changes.update(update));
        seen.filter_map(|(_, change)| lines.line(&change, now))
            .collect()
    }

    fn ports(changes: Vec<(Op, PortStatus)>) -> Update {
        let event = |(seq, (op, port))| event(seq, What::Port { op, port });
        Update::Events((2..).zip(changes).map(event).collect())
    }

    #[test]
    fn the_life_of_ports() {
        let mut busy = port(3000, State::Forwarded);
        busy.connections.total = 9;
        let mut moved = busy.clone();
        moved.host = Some("127.0.0.1:3001".into());
        let mut second = port(3000, State::Forwarded);
        second.id = "guest:3000#2".into();
        let mut other = port(5432, State::Conflict);
        other.reason.as_mut().unwrap().holder = Some(process(7, "other"));
        other.reason.as_mut().unwrap().message = "127.0.0.1:5432 is taken by other (pid 7)".into();
        insta::assert_snapshot!(lines(vec![
            snapshot(
                1,
                false,
                vec![port(22, State::Ignored), port(80, State::RefusedPrivileged)]
            ),
            ports(vec![
                (Op::Added, port(3000, State::Pending)),
                (Op::Changed, port(3000, State::Forwarded)),
                (Op::Changed, busy),
                (Op::Changed, moved),
                (Op::Changed, port(3000, State::Draining)),
                (Op::Added, second),
                (Op::Removed, port(3000, State::Draining)),
                (Op::Added, port(5432, State::Pending)),
                (Op::Changed, port(5432, State::Conflict)),
                (Op::Changed, port(5432, State::Conflict)),
                (Op::Changed, other),
                (Op::Changed, port(5432, State::Forwarded)),
                (Op::Changed, port(5432, State::Ignored)),
                (Op::Changed, port(5432, State::Forwarded)),
                (Op::Changed, port(5432, State::Lost)),
            ]),
        ]));
    }

    #[test]
    fn agent_configuration_gap_and_bye() {
        let mut again = lost_agent();
        again.attempts = 4;
        let mut wrong = config();
        wrong.error = Some("rum.toml:3: the range is reversed".into());
        let events = [
            What::Agent(lost_agent()),
            What::Agent(again),
            What::Agent(agent()),
            What::Config(wrong),
            What::Config(config()),
        ];
        let events = (2..)
            .zip(events)
            .map(|(seq, what)| event(seq, what))
            .collect();
        insta::assert_snapshot!(lines(vec![
            snapshot(1, false, vec![]),
            Update::Events(events),
            snapshot(900, true, vec![port(3000, State::Forwarded)]),
            Update::Events(vec![event(901, What::Bye("stopped by SIGTERM".into()))]),
        ]));
    }

    #[test]
    fn hostile_text_is_cleaned() {
        let mut evil = port(5000, State::Conflict);
        evil.reason.as_mut().unwrap().message = "\u{1b}[2J\n09:00:00 5001\u{202e}".into();
        let text = lines(vec![snapshot(1, false, vec![evil])]);
        assert_eq!(text.lines().count(), 2, "{text}");
        assert_eq!(text.replace('\n', "").find(char::is_control), None);
        assert!(
            text.contains("\u{fffd}[2J\u{fffd}09:00:00 5001\u{fffd}"),
            "{text}"
        );
    }
}
