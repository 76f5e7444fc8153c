//! Statuses for tests, as a `rum up` sends them.

use crate::status::model::{
    AgentState, AgentStatus, Bytes, ConfigStatus, Connections, ControlInfo, Event, PortStatus,
    ProcessName, Reason, State, Update, What,
};

/// The time of all samples.
pub const SINCE: &str = "2026-11-23T09:14:02.871Z";

/// An automatic forward of port `number` in `state`.
pub fn port(number: u16, state: State) -> PortStatus {
    let bound = matches!(state, State::Forwarded | State::Draining | State::Lost);
    PortStatus {
        id: format!("guest:{number}"),
        proto: "tcp".into(),
        port: number,
        guest_addresses: vec!["127.0.0.1".into()],
        destination: None,
        host: bound.then(|| format!("127.0.0.1:{number}")),
        host_addresses: Vec::new(),
        state,
        previous_state: None,
        reason: (state != State::Forwarded).then(|| reason(number, state)),
        process: Some(process(1873, "node")),
        command: None,
        other_holders: Vec::new(),
        uid: Some(1000),
        label: None,
        url: None,
        connections: Connections::default(),
        bytes: Bytes::default(),
        since: SINCE.into(),
        detected_us: Some(310),
        forwarded_us: (state == State::Forwarded).then_some(95),
    }
}

/// A process.
pub fn process(pid: u32, name: &str) -> ProcessName {
    let name = name.into();
    ProcessName { pid, name }
}

fn reason(number: u16, state: State) -> Reason {
    let (code, message, hint) = match state {
        State::Conflict => (
            "host-port-taken",
            format!("127.0.0.1:{number} is taken by postgres (pid 4121)"),
            Some("free it, or set on_conflict = \"next\""),
        ),
        State::RefusedPrivileged => (
            "host-port-privileged",
            format!("binding 127.0.0.1:{number} needs privilege"),
            Some("allow it with `sysctl net.ipv4.ip_unprivileged_port_start=0`"),
        ),
        State::Draining => ("closed", "closed; 1 connection left".into(), None),
        State::Ignored => ("excluded", "excluded by `exclude`".into(), None),
        State::OutOfRange => ("not-in-range", "not in 3000-9000".into(), None),
        State::Lost => ("agent-lost", "the agent is lost".into(), None),
        State::Pending | State::Forwarded => {
            ("not-listening", "nothing listens in the guest".into(), None)
        }
    };
    Reason {
        code: code.into(),
        message,
        hint: hint.map(str::to_owned),
        holder: (state == State::Conflict).then(|| process(4121, "postgres")),
    }
}

/// A connected agent.
pub fn agent() -> AgentStatus {
    AgentStatus {
        state: AgentState::Connected,
        since: SINCE.into(),
        reason: None,
        retry_ms: None,
        grace_ms: 15_000,
        attempts: 0,
        version: Some("0.1.0".into()),
        hostname: Some("dev".into()),
        source: Some("tracepoint".into()),
        repaired: 0,
    }
}

/// A lost agent.
pub fn lost_agent() -> AgentStatus {
    AgentStatus {
        state: AgentState::Lost,
        since: "2026-11-23T09:15:00.000Z".into(),
        reason: Some("vsock reset".into()),
        retry_ms: Some(2000),
        attempts: 3,
        ..agent()
    }
}

/// A configuration with only a range.
pub fn config() -> ConfigStatus {
    ConfigStatus {
        file: Some("/home/me/rum.toml".into()),
        loaded: SINCE.into(),
        range: Some("3000-9000".into()),
        error: None,
    }
}

/// A running `rum up`.
pub fn info() -> ControlInfo {
    ControlInfo {
        protocol: crate::status::model::CONTROL_PROTOCOL,
        version: "0.1.0".into(),
        name: "dev".into(),
        kind: "namespace".into(),
        pid: 4000,
        boot: "00c0ffee00c0ffee".into(),
        started: SINCE.into(),
    }
}

/// A snapshot with `ports`.
pub fn snapshot(seq: u64, gap: bool, ports: Vec<PortStatus>) -> Update {
    Update::Snapshot {
        seq,
        gap,
        ports,
        agent: agent(),
        outside: Vec::new(),
        config: config(),
    }
}

/// An event, a quarter of a second after [`SINCE`].
pub fn event(seq: u64, what: What) -> Event {
    let at = "2026-11-23T09:14:03.120Z".into();
    Event { seq, at, what }
}
