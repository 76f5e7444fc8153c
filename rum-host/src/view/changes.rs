//! Turns the updates of a `rum up` into single changes for a watcher, without the ports that it
//! does not want to see.
//!
//! Without `--all`, hidden states do not exist for the watcher: a port that becomes hidden is
//! removed, a port that becomes visible is added. So this module keeps the visible ports by id, as
//! last reported. After a resumption they are unknown at first; then `previous_state` shows how a
//! change looks to the watcher.
//!
//! Invariants: [`Change::Start`] comes once, first; every snapshot ends with [`Change::Synced`],
//! and so do the events that a resumption catches up on; nothing follows [`Change::Bye`].

use std::collections::HashMap;

use crate::status::journal::BATCH;
use crate::status::model::{AgentStatus, ConfigStatus, Event, Op, PortStatus, State, Update, What};

/// One change, as reported to a watcher.
#[derive(Debug, Clone, PartialEq, Eq)]
// Changes are made one at a time and not kept.
#[allow(clippy::large_enum_variant)]
pub enum Change {
    /// The watch starts.
    Start,
    /// Events were missed; earlier changes are void, and a snapshot follows.
    Gap,
    /// A port of a snapshot.
    Existing(PortStatus),
    /// The snapshot is complete, or the resumption has caught up.
    Synced,
    /// A port changed.
    Port {
        /// When: RFC 3339, UTC.
        at: String,
        /// How.
        op: Op,
        /// The last reported status; `None` if the port is new, or unknown after a resumption.
        before: Option<PortStatus>,
        /// The current status; for [`Op::Removed`], the last one.
        port: PortStatus,
    },
    /// The agent's current or new state.
    Agent {
        /// When it changed; `None` in a snapshot.
        at: Option<String>,
        /// The state.
        agent: AgentStatus,
    },
    /// The configuration that is or has come into force.
    Config {
        /// When it changed; `None` in a snapshot.
        at: Option<String>,
        /// The configuration.
        config: ConfigStatus,
    },
    /// rum has ended or no longer answers.
    Bye {
        /// When, if rum itself reported it.
        at: Option<String>,
        /// Why, in words.
        reason: String,
    },
}

/// A [`Change`] with the number of its event.
pub type Numbered = (u64, Change);

/// Turns updates into changes.
#[derive(Debug)]
pub struct Changes {
    all: bool,
    seq: u64,
    ended: bool,
    /// Whether `shown` is complete, which it is after a snapshot.
    complete: bool,
    /// Whether [`Change::Synced`] was reported.
    synced: bool,
    shown: HashMap<String, PortStatus>,
}

impl Changes {
    /// For a watcher that wants `all` ports, or only those that are not hidden. It has all events
    /// up to `since`; 0 means none.
    pub fn new(all: bool, since: u64) -> Self {
        Self {
            all,
            seq: since,
            ended: false,
            complete: false,
            synced: false,
            shown: HashMap::new(),
        }
    }

    /// The change before the first update.
    pub fn start(&self) -> Numbered {
        (self.seq, Change::Start)
    }

    /// The changes that `update` means for the watcher, in order.
    pub fn update(&mut self, update: Update) -> Vec<Numbered> {
        let mut out = Vec::new();
        if self.ended {
            return out;
        }
        match update {
            Update::Snapshot {
                seq,
                gap,
                mut ports,
                agent,
                config,
                outside: _,
            } => {
                self.seq = seq;
                if gap {
                    out.push((seq, Change::Gap));
                }
                ports.retain(|port| self.all || !port.state.is_hidden());
                self.shown = ports.iter().map(|p| (p.id.clone(), p.clone())).collect();
                self.complete = true;
                out.push((seq, Change::Agent { at: None, agent }));
                out.push((seq, Change::Config { at: None, config }));
                out.extend(ports.into_iter().map(|port| (seq, Change::Existing(port))));
                out.push((seq, Change::Synced));
                self.synced = true;
            }
            Update::Events(events) => {
                // A full batch is followed by more events.
                let caught_up = events.len() < BATCH;
                for event in events {
                    self.seq = event.seq;
                    out.extend(self.event(event).map(|change| (self.seq, change)));
                }
                if caught_up && !self.ended && !std::mem::replace(&mut self.synced, true) {
                    out.push((self.seq, Change::Synced));
                }
            }
        }
        out
    }

    /// The end, if there was none yet: `rum up` no longer answers.
    pub fn lost(&mut self, reason: impl Into<String>) -> Vec<Numbered> {
        let mut out = Vec::new();
        if !self.ended {
            self.ended = true;
            let (at, reason) = (None, reason.into());
            out.push((self.seq, Change::Bye { at, reason }));
        }
        out
    }

    /// Whether [`Change::Bye`] was reported.
    pub fn ended(&self) -> bool {
        self.ended
    }

    fn event(&mut self, event: Event) -> Option<Change> {
        match event.what {
            What::Port { op, port } => self.port(event.at, op, port),
            What::Agent(agent) => Some(Change::Agent {
                at: Some(event.at),
                agent,
            }),
            What::Config(config) => Some(Change::Config {
                at: Some(event.at),
                config,
            }),
            What::Bye(reason) => {
                self.ended = true;
                Some(Change::Bye {
                    at: Some(event.at),
                    reason,
                })
            }
        }
    }

    fn port(&mut self, at: String, op: Op, port: PortStatus) -> Option<Change> {
        let visible = |state: State| self.all || !state.is_hidden();
        let before = self.shown.remove(&port.id);
        let was = before.is_some()
            || !self.complete && op != Op::Added && port.previous_state.is_none_or(visible);
        let is = op != Op::Removed && visible(port.state);
        let op = match (was, is) {
            (false, false) => return None,
            (false, true) => Op::Added,
            (true, true) => Op::Changed,
            (true, false) => Op::Removed,
        };
        if is {
            self.shown.insert(port.id.clone(), port.clone());
        }
        Some(Change::Port {
            at,
            op,
            before,
            port,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::samples::{agent, config, event, port, snapshot};

    fn words(changes: Vec<Numbered>) -> Vec<String> {
        let word = |change: Change| match change {
            Change::Start => "start".to_owned(),
            Change::Gap => "gap".to_owned(),
            Change::Existing(port) => format!("existing {}", port.port),
            Change::Synced => "synced".to_owned(),
            Change::Port { op, port, .. } => format!("{op:?} {} {}", port.port, port.state),
            Change::Agent { .. } => "agent".to_owned(),
            Change::Config { .. } => "config".to_owned(),
            Change::Bye { reason, .. } => format!("bye {reason}"),
        };
        changes
            .into_iter()
            .map(|(seq, change)| format!("{seq} {}", word(change)))
            .collect()
    }

    fn became(seq: u64, op: Op, number: u16, state: State, previous: State) -> Update {
        let mut port = port(number, state);
        port.previous_state = Some(previous);
        Update::Events(vec![event(seq, What::Port { op, port })])
    }

    #[test]
    fn a_snapshot_comes_first_then_events() {
        let mut changes = Changes::new(false, 0);
        let ports = vec![port(22, State::Ignored), port(5000, State::Forwarded)];
        assert_eq!(
            words(changes.update(snapshot(7, false, ports))),
            ["7 agent", "7 config", "7 existing 5000", "7 synced"]
        );
        assert!(words(changes.update(Update::Events(vec![]))).is_empty());
        let seen = Update::Events(vec![
            event(8, What::Agent(agent())),
            event(9, What::Config(config())),
            event(10, What::Bye("stopped".into())),
        ]);
        assert_eq!(
            words(changes.update(seen)),
            ["8 agent", "9 config", "10 bye stopped"]
        );
        assert!(changes.ended());
        assert!(changes.lost("gone").is_empty(), "said already");
        let late = became(11, Op::Added, 1, State::Forwarded, State::Pending);
        assert!(changes.update(late).is_empty());
    }

    #[test]
    fn hidden_ports_come_and_go_as_if_they_were_new() {
        let mut changes = Changes::new(false, 0);
        changes.update(snapshot(1, false, vec![port(5000, State::Forwarded)]));
        let mut seen = |update| words(changes.update(update));
        use State::{Forwarded, Ignored, OutOfRange, Pending};
        assert_eq!(
            seen(became(2, Op::Changed, 5000, Ignored, Forwarded)),
            ["2 Removed 5000 ignored"]
        );
        assert!(seen(became(3, Op::Changed, 5000, OutOfRange, Ignored)).is_empty());
        assert_eq!(
            seen(became(4, Op::Changed, 5000, Pending, Ignored)),
            ["4 Added 5000 pending"]
        );
        assert_eq!(
            seen(became(5, Op::Changed, 5000, Forwarded, Pending)),
            ["5 Changed 5000 forwarded"]
        );
        assert_eq!(
            seen(became(6, Op::Removed, 5000, Forwarded, Pending)),
            ["6 Removed 5000 forwarded"]
        );
        assert!(seen(became(7, Op::Added, 22, Ignored, Ignored)).is_empty());
        assert!(seen(became(8, Op::Removed, 22, Ignored, Ignored)).is_empty());
    }

    #[test]
    fn all_shows_the_hidden_ones_too() {
        let mut changes = Changes::new(true, 0);
        let first = changes.update(snapshot(1, false, vec![port(22, State::Ignored)]));
        assert!(words(first).contains(&"1 existing 22".to_owned()));
        let seen = changes.update(became(
            2,
            Op::Changed,
            22,
            State::OutOfRange,
            State::Ignored,
        ));
        assert_eq!(words(seen), ["2 Changed 22 out-of-range"]);
    }

    #[test]
    fn a_resumption_has_no_snapshot_and_takes_states_from_the_events() {
        let mut changes = Changes::new(false, 41);
        assert_eq!(words(vec![changes.start()]), ["41 start"]);
        assert_eq!(words(changes.update(Update::Events(vec![]))), ["41 synced"]);
        assert!(words(changes.update(Update::Events(vec![]))).is_empty());
        let mut seen = |update| words(changes.update(update));
        use State::{Conflict, Forwarded, Ignored};
        assert_eq!(
            seen(became(42, Op::Changed, 1, Forwarded, Conflict)),
            ["42 Changed 1 forwarded"]
        );
        assert_eq!(
            seen(became(43, Op::Changed, 2, Forwarded, Ignored)),
            ["43 Added 2 forwarded"]
        );
        assert_eq!(
            seen(became(44, Op::Changed, 2, Conflict, Forwarded)),
            ["44 Changed 2 conflict"]
        );
        assert_eq!(
            seen(became(45, Op::Changed, 3, Ignored, Forwarded)),
            ["45 Removed 3 ignored"]
        );
        assert!(seen(became(46, Op::Changed, 4, Ignored, Ignored)).is_empty());
        assert_eq!(
            seen(became(47, Op::Removed, 5, Forwarded, Conflict)),
            ["47 Removed 5 forwarded"]
        );
    }

    #[test]
    fn a_resumption_is_synced_when_it_has_caught_up() {
        let mut changes = Changes::new(true, 41);
        let many = (42..)
            .take(BATCH)
            .map(|seq| event(seq, What::Agent(agent())));
        let seen = words(changes.update(Update::Events(many.collect())));
        assert_eq!(seen.len(), BATCH, "{:?}", seen.last());
        let last = 42 + BATCH as u64;
        let seen = changes.update(Update::Events(vec![event(last, What::Agent(agent()))]));
        assert_eq!(
            words(seen),
            [format!("{last} agent"), format!("{last} synced")]
        );
    }

    #[test]
    fn a_gap_is_told_before_its_snapshot() {
        let mut changes = Changes::new(false, 3);
        let seen = changes.update(snapshot(900, true, vec![]));
        assert_eq!(
            words(seen),
            ["900 gap", "900 agent", "900 config", "900 synced"]
        );
        assert_eq!(
            words(changes.lost("rum up is gone")),
            ["900 bye rum up is gone"]
        );
    }
}
