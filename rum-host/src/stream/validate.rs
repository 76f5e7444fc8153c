//! What an agent may say: everything it sends passes through here, once, and is checked
//! (ports, lists, generations) and cleaned (text) before anything else sees it.

use rum_shared::listener::{Device, Holder, Listener, MAX_COMMAND, Process};
use rum_shared::range::PortRange;
use rum_shared::stream::rpc::{AgentInfo, WatchEvent, validate_listener};
use rum_shared::text::clean;

/// Longest word (version, host name, capability) that is kept, in characters.
const MAX_WORD: usize = 64;
/// Longest error text of an agent that is kept, in characters.
const MAX_ERROR: usize = 200;
/// At most this many capabilities are kept.
const MAX_CAPABILITIES: usize = 32;
/// At most this many entries of a list are believed: there are no more ports.
const MAX_PORTS: usize = 65_535;

/// The agent's introduction, cleaned.
pub(super) fn clean_info(info: AgentInfo) -> AgentInfo {
    let word = |text: &str| clean(text, MAX_WORD);
    AgentInfo {
        protocol: info.protocol,
        version: word(&info.version),
        hostname: word(&info.hostname),
        boot_id: word(&info.boot_id),
        instance: info.instance,
        source: word(&info.source),
        hint: word(&info.hint),
        capabilities: info
            .capabilities
            .iter()
            .take(MAX_CAPABILITIES)
            .map(|c| word(c))
            .collect(),
    }
}

/// An error of or about the agent, as text for people.
pub(super) fn clean_error(error: impl ToString) -> String {
    clean(&error.to_string(), MAX_ERROR)
}

fn clean_process(process: &Process) -> Process {
    Process {
        pid: process.pid,
        name: clean(&process.name, MAX_WORD),
        program: clean(&process.program, MAX_WORD),
        script: clean(&process.script, MAX_WORD),
        command: clean(&process.command, MAX_COMMAND),
    }
}

fn clean_holder(holder: &Holder) -> Holder {
    Holder {
        address: holder.address,
        process: clean_process(&holder.process),
    }
}

fn clean_device(device: &Device) -> Device {
    Device {
        index: device.index,
        name: clean(&device.name, MAX_WORD),
    }
}

/// The answer to a poll: the ports within `range`, sorted, without duplicates. `None` when it has
/// more entries than there are ports.
pub(super) fn clean_ports(mut ports: Vec<u16>, range: PortRange) -> Option<Vec<u16>> {
    if ports.len() > MAX_PORTS {
        return None;
    }
    ports.retain(|port| range.contains(*port));
    ports.sort_unstable();
    ports.dedup();
    Some(ports)
}

/// How many ports `event` is about.
pub(super) fn items(event: &WatchEvent) -> usize {
    match event {
        WatchEvent::Snapshot { listeners, .. } => listeners.len(),
        WatchEvent::Delta {
            opened,
            changed,
            closed,
            ..
        } => opened.len() + changed.len() + closed.len(),
        WatchEvent::Heartbeat { .. } => 0,
    }
}

/// Refuses lists with more entries than there are ports.
fn bounded(length: usize) -> Result<(), String> {
    match length {
        0..=MAX_PORTS => Ok(()),
        _ => Err(format!("a list of {length} ports, more than there are")),
    }
}

/// Checks the items of one stream.
#[derive(Debug)]
pub struct StreamValidator {
    range: PortRange,
    generation: Option<u64>,
}

impl StreamValidator {
    /// A stream of listeners in `range`.
    pub fn new(range: PortRange) -> Self {
        Self {
            range,
            generation: None,
        }
    }

    /// A clean copy of `event`.
    ///
    /// # Errors
    /// Which rule it breaks, for people. The stream cannot be trusted any further.
    pub fn check(&mut self, event: &WatchEvent) -> Result<WatchEvent, String> {
        match event {
            WatchEvent::Snapshot {
                generation,
                source,
                listeners,
            } => {
                self.generation = Some(*generation);
                Ok(WatchEvent::Snapshot {
                    generation: *generation,
                    source: clean(source, MAX_WORD),
                    listeners: self.listeners(listeners)?,
                })
            }
            WatchEvent::Delta {
                generation,
                opened,
                changed,
                closed,
            } => {
                match self.generation {
                    None => return Err("a change came before the first snapshot".to_owned()),
                    Some(last) if *generation <= last => {
                        return Err(format!("generation {generation} came after {last}"));
                    }
                    Some(_) => self.generation = Some(*generation),
                }
                bounded(closed.len())?;
                if let Some(port) = closed.iter().find(|p| !self.range.contains(**p)) {
                    return Err(format!("closed port {port} is outside {}", self.range));
                }
                Ok(WatchEvent::Delta {
                    generation: *generation,
                    opened: self.listeners(opened)?,
                    changed: self.listeners(changed)?,
                    closed: closed.clone(),
                })
            }
            WatchEvent::Heartbeat { generation } => Ok(WatchEvent::Heartbeat {
                generation: *generation,
            }),
        }
    }

    fn listeners(&self, listeners: &[Listener]) -> Result<Vec<Listener>, String> {
        bounded(listeners.len())?;
        let check = |listener: &Listener| {
            validate_listener(listener, self.range)?;
            Ok(Listener {
                process: listener.process.as_ref().map(clean_process),
                others: listener.others.iter().map(clean_holder).collect(),
                devices: listener.devices.iter().map(clean_device).collect(),
                unreachable: listener.unreachable.as_deref().map(clean_error),
                ..listener.clone()
            })
        };
        listeners.iter().map(check).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delta(generation: u64, port: u16) -> WatchEvent {
        WatchEvent::Delta {
            generation,
            opened: vec![Listener::bare(port)],
            changed: vec![],
            closed: vec![],
        }
    }

    fn started() -> StreamValidator {
        let range: PortRange = "5000-6000".parse().expect("a range");
        let mut validator = StreamValidator::new(range);
        let snapshot = WatchEvent::Snapshot {
            generation: 4,
            source: "tracepoint".into(),
            listeners: vec![],
        };
        assert_eq!(validator.check(&snapshot), Ok(snapshot));
        validator
    }

    #[test]
    fn generations_must_rise() {
        let mut validator = started();
        assert!(validator.check(&delta(5, 5000)).is_ok());
        assert!(validator.check(&delta(9, 5001)).is_ok(), "may skip");
        assert!(validator.check(&delta(9, 5002)).is_err(), "duplicate");
        assert!(validator.check(&delta(3, 5002)).is_err(), "backward");
    }

    #[test]
    fn a_change_before_the_snapshot_is_refused() {
        let mut validator = StreamValidator::new(PortRange::ALL);
        assert!(validator.check(&delta(1, 5000)).is_err());
    }

    #[test]
    fn ports_outside_the_range_are_refused() {
        let mut validator = started();
        let error = validator.check(&delta(5, 22)).expect_err("outside");
        assert!(error.contains("22"), "{error}");
        let closed = WatchEvent::Delta {
            generation: 6,
            opened: vec![],
            changed: vec![],
            closed: vec![22],
        };
        assert!(validator.check(&closed).is_err());
    }

    #[test]
    fn names_are_cleaned() {
        let mut validator = started();
        let mut listener = Listener::bare(5000);
        listener.process = Some(Process {
            pid: 1,
            name: "a\x1b[31mb\n".into(),
            ..Process::default()
        });
        let event = WatchEvent::Delta {
            generation: 5,
            opened: vec![listener],
            changed: vec![],
            closed: vec![],
        };
        let Ok(WatchEvent::Delta { opened, .. }) = validator.check(&event) else {
            panic!("a valid change was refused");
        };
        let name = &opened[0].process.as_ref().expect("kept").name;
        assert!(!name.chars().any(char::is_control), "{name:?}");
    }

    #[test]
    fn poll_answers_are_put_in_order() {
        let range = "10-20".parse().expect("a range");
        let ports = clean_ports(vec![20, 9, 10, 20, 21, 0], range);
        assert_eq!(ports, Some(vec![10, 20]));
        assert_eq!(clean_ports(vec![10; MAX_PORTS + 1], range), None);
    }

    #[test]
    fn more_ports_than_there_are_are_refused() {
        let mut validator = started();
        let mut event = WatchEvent::Delta {
            generation: 5,
            opened: vec![],
            changed: vec![],
            closed: vec![5000; MAX_PORTS + 1],
        };
        let error = validator.check(&event).expect_err("too many");
        assert!(error.contains("65536 ports"), "{error}");
        event = WatchEvent::Snapshot {
            generation: 6,
            source: String::new(),
            listeners: vec![Listener::bare(5000); MAX_PORTS + 1],
        };
        assert!(validator.check(&event).is_err());
    }
}
