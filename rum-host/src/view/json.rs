//! Ports as JSON: one document, or one object for each change, each on one line.
//!
//! All objects start with the same fields (`schema_version`, `boot`, `seq`); lines add a `type` and
//! its fields. A missing value is `null`, never a missing key. The words are those of
//! [`crate::status::model`], whose version rises only when a field is removed or renamed, so
//! readers ignore what they do not know.
//!
//! Invariant: one object is one line that is safe for a terminal: everything that a terminal could
//! act on is escaped as JSON or cleaned.

// The derive of Facet generates `Guest` for `Guest<'_>`.
#![allow(elided_lifetimes_in_paths)]

use facet::Facet;

use super::changes::{Change, Numbered};
use crate::status::mirror::Mirror;
use crate::status::model::{
    AgentStatus, ConfigStatus, ControlInfo, Op, PortStatus, SCHEMA_VERSION,
};

/// The fields that identify the guest.
#[derive(Facet)]
struct Guest<'a> {
    name: &'a str,
    kind: &'a str,
}

impl<'a> Guest<'a> {
    fn of(info: &'a ControlInfo) -> Self {
        Self {
            name: &info.name,
            kind: &info.kind,
        }
    }
}

/// The output of `rum ports --json`.
#[derive(Facet)]
struct Document<'a> {
    schema_version: u32,
    boot: &'a str,
    seq: u64,
    guest: Guest<'a>,
    agent: Option<&'a AgentStatus>,
    config: Option<&'a ConfigStatus>,
    ports: Vec<&'a PortStatus>,
    outside: &'a [u16],
}

/// One line of `rum ports --watch --json`.
#[derive(Facet)]
struct Line<'a, Body> {
    schema_version: u32,
    r#type: &'a str,
    boot: &'a str,
    seq: u64,
    at: Option<&'a str>,
    #[facet(flatten)]
    body: Body,
}

#[derive(Facet)]
struct Nothing {}

#[derive(Facet)]
struct Hello<'a> {
    guest: Guest<'a>,
    version: &'a str,
    pid: u32,
    started: &'a str,
}

#[derive(Facet)]
struct Port<'a> {
    op: &'a str,
    port: &'a PortStatus,
}

#[derive(Facet)]
struct Agent<'a> {
    agent: &'a AgentStatus,
}

#[derive(Facet)]
struct Config<'a> {
    config: &'a ConfigStatus,
}

#[derive(Facet)]
struct Bye<'a> {
    reason: &'a str,
}

/// The whole state as one object and a line feed. Ports in hidden states are included only if
/// `all`.
pub fn document(info: &ControlInfo, known: &Mirror, all: bool) -> String {
    render(&Document {
        schema_version: SCHEMA_VERSION,
        boot: &info.boot,
        seq: known.seq,
        guest: Guest::of(info),
        agent: known.agent.as_ref(),
        config: known.config.as_ref(),
        ports: known
            .ports()
            .filter(|port| all || !port.state.is_hidden())
            .collect(),
        outside: &known.outside,
    })
}

/// One change as one object and a line feed.
pub fn line(info: &ControlInfo, (seq, change): &Numbered) -> String {
    let head = Head { info, seq: *seq };
    match change {
        Change::Start => head.line(
            "hello",
            None,
            Hello {
                guest: Guest::of(info),
                version: &info.version,
                pid: info.pid,
                started: &info.started,
            },
        ),
        Change::Gap => head.line("gap", None, Nothing {}),
        Change::Existing(port) => {
            let op = "existing";
            head.line("port", None, Port { op, port })
        }
        Change::Synced => head.line("synced", None, Nothing {}),
        Change::Port { at, op, port, .. } => {
            let op = match op {
                Op::Added => "added",
                Op::Changed => "changed",
                Op::Removed => "removed",
            };
            head.line("port", Some(at), Port { op, port })
        }
        Change::Agent { at, agent } => head.line("agent", at.as_deref(), Agent { agent }),
        Change::Config { at, config } => head.line("config", at.as_deref(), Config { config }),
        Change::Bye { at, reason } => head.line("bye", at.as_deref(), Bye { reason }),
    }
}

/// The fields that all lines start with.
struct Head<'a> {
    info: &'a ControlInfo,
    seq: u64,
}

impl<'a> Head<'a> {
    fn line<Body: Facet<'a>>(&self, kind: &'a str, at: Option<&'a str>, body: Body) -> String {
        render(&Line {
            schema_version: SCHEMA_VERSION,
            r#type: kind,
            boot: &self.info.boot,
            seq: self.seq,
            at,
            body,
        })
    }
}

fn render<'a, T: Facet<'a>>(value: &T) -> String {
    let text = facet_json::to_string(value).expect("numbers, texts, lists and structs have a JSON");
    rum_shared::text::printable(&text) + "\n"
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::Value;

    use super::*;
    use crate::status::model::{State, Update, What};
    use crate::view::changes::Changes;
    use crate::view::samples::{event, info, lost_agent, port, snapshot};

    fn known(ports: Vec<PortStatus>) -> Mirror {
        let mut known = Mirror::default();
        known.apply(&snapshot(7, false, ports));
        known
    }

    fn ports(document: &Value) -> Vec<&Value> {
        let ports = document["ports"].as_array().unwrap();
        ports.iter().map(|port| &port["port"]).collect()
    }

    #[test]
    fn the_document() {
        let mut dressed = port(5000, State::Forwarded);
        dressed.label = Some("web".into());
        dressed.url = Some("http://127.0.0.1:5000/".into());
        dressed.previous_state = Some(State::Pending);
        dressed.connections.now = 2;
        dressed.bytes.to_host = u64::from(u32::MAX) * 2;
        let known = known(vec![
            dressed,
            port(5432, State::Conflict),
            port(22, State::Ignored),
        ]);
        let text = document(&info(), &known, false);
        assert_eq!(text.matches('\n').count(), 1);
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(ports(&value), [5000, 5432]);
        insta::assert_snapshot!(serde_json::to_string_pretty(&value).unwrap());
        let all: Value = serde_json::from_str(&document(&info(), &known, true)).unwrap();
        assert_eq!(ports(&all), [22, 5000, 5432]);
    }

    #[test]
    fn an_empty_document_is_whole() {
        let text = document(&info(), &Mirror::default(), false);
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["ports"], Value::Array(vec![]));
        assert_eq!(value["agent"], Value::Null);
    }

    #[test]
    fn lines() {
        let mut changes = Changes::new(false, 0);
        let hidden = port(5001, State::Ignored);
        let mut changes_made = vec![changes.start()];
        changes_made.extend(changes.update(snapshot(
            7,
            false,
            vec![port(5000, State::Forwarded), hidden.clone()],
        )));
        let shown = PortStatus {
            previous_state: Some(State::Ignored),
            ..port(5001, State::Pending)
        };
        let changed = |seq, port| {
            let op = Op::Changed;
            event(seq, What::Port { op, port })
        };
        changes_made.extend(changes.update(Update::Events(vec![
            changed(8, shown),
            changed(9, hidden),
            event(10, What::Agent(lost_agent())),
        ])));
        changes_made.extend(changes.update(snapshot(900, true, vec![])));
        changes_made.extend(changes.update(Update::Events(vec![event(
            901,
            What::Bye("stopped".into()),
        )])));
        let text: String = changes_made
            .iter()
            .map(|change| line(&info(), change))
            .collect();
        for line in text.lines() {
            let value: Value = serde_json::from_str(line).unwrap();
            assert_eq!(value["schema_version"], SCHEMA_VERSION);
            assert_eq!(value["boot"], "00c0ffee00c0ffee");
            assert!(value["seq"].is_u64() && value["type"].is_string());
        }
        insta::assert_snapshot!(text);
    }

    #[test]
    fn hostile_text_does_no_harm() {
        let mut evil = port(5000, State::Conflict);
        let name = "\u{1b}[2J\u{9b}31m\u{202e}\"\\\n\r\t\u{7f}漢";
        evil.process.as_mut().unwrap().name = name.into();
        evil.reason.as_mut().unwrap().message = name.into();
        let change = (1, Change::Existing(evil));
        let text = line(&info(), &change);
        assert_eq!(text.trim_end_matches('\n').find(char::is_control), None);
        assert!(!text.contains('\u{202e}'));
        let value: Value = serde_json::from_str(&text).unwrap();
        let name = value["port"]["process"]["name"].as_str().unwrap();
        assert!(name.ends_with('漢') && name.contains("\"\\"), "{name}");
    }
}
