//! Ports, agents and updates for the tests, after the mock-ups.

use jiff::Timestamp;

use crate::status::model::{
    AgentState, AgentStatus, Bytes, ConfigStatus, Connections, Event, Op, PortStatus, ProcessName,
    Reason, State, Update, What,
};

use super::super::app::App;
use crate::view::samples;

pub const NOW: &str = "2026-11-23T09:14:10Z";

pub fn now() -> Timestamp {
    NOW.parse().unwrap()
}

pub fn named(name: &str, pid: u32) -> Option<ProcessName> {
    Some(samples::process(pid, name))
}

/// A port with no facts but its state.
pub fn port(number: u16, state: State) -> PortStatus {
    let bound = matches!(state, State::Forwarded | State::Draining);
    let host = bound.then(|| format!("127.0.0.1:{number}"));
    PortStatus {
        url: host.as_ref().map(|host| format!("http://{host}")),
        host,
        reason: None,
        process: None,
        uid: None,
        detected_us: None,
        forwarded_us: None,
        ..samples::port(number, state)
    }
}

pub fn forwarded(number: u16) -> PortStatus {
    PortStatus {
        detected_us: Some(210),
        forwarded_us: Some(412),
        process: named("node", 1873),
        uid: Some(1000),
        ..port(number, State::Forwarded)
    }
}

pub fn because(code: &str, message: &str, port: PortStatus) -> PortStatus {
    PortStatus {
        reason: Some(Reason {
            code: code.into(),
            message: message.into(),
            hint: None,
            holder: None,
        }),
        ..port
    }
}

pub fn conflict() -> PortStatus {
    PortStatus {
        reason: Some(Reason {
            code: "host-port-taken".into(),
            message: "127.0.0.1:5432 is taken by postgres (pid 4121)".into(),
            hint: Some("free it, or set on_conflict = \"next\"".into()),
            holder: named("postgres", 4121),
        }),
        previous_state: Some(State::Pending),
        process: named("postgres", 902),
        uid: Some(999),
        label: Some("db".into()),
        ..port(5432, State::Conflict)
    }
}

pub fn draining() -> PortStatus {
    PortStatus {
        connections: Connections {
            now: 1,
            total: 7,
            refused: 0,
        },
        bytes: Bytes {
            to_guest: 1300,
            to_host: 35_000_000,
        },
        ..because(
            "closed",
            "nothing listens any more",
            port(8080, State::Draining),
        )
    }
}

pub fn agent(state: AgentState) -> AgentStatus {
    AgentStatus {
        state,
        since: "2026-11-23T09:00:00.000Z".into(),
        ..samples::agent()
    }
}

pub fn lost_agent() -> AgentStatus {
    AgentStatus {
        since: "2026-11-23T09:14:04.000Z".into(),
        reason: Some("vsock reset".into()),
        retry_ms: Some(2000),
        attempts: 2,
        ..agent(AgentState::Lost)
    }
}

pub fn snapshot(ports: Vec<PortStatus>) -> Update {
    Update::Snapshot {
        seq: 1,
        gap: false,
        ports,
        agent: agent(AgentState::Connected),
        outside: Vec::new(),
        config: ConfigStatus {
            file: Some("/home/me/rum.toml".into()),
            loaded: "2026-11-23T09:00:00.000Z".into(),
            range: Some("5000-6000,8080".into()),
            error: None,
        },
    }
}

pub fn event(at: &str, what: What) -> Update {
    Update::Events(vec![Event {
        seq: 2,
        at: format!("2026-11-23T{at}Z"),
        what,
    }])
}

pub fn changed(at: &str, port: PortStatus) -> Update {
    let op = Op::Changed;
    event(at, What::Port { op, port })
}

/// The usual view: the ports of the mock-up after their events.
pub fn usual() -> App {
    let mut app = App::new("dev", true, false, true);
    app.update(
        &snapshot(vec![
            port(5432, State::Pending),
            draining(),
            because("excluded", "excluded", port(5999, State::Ignored)),
            because("not-in-range", "not in range", port(22, State::OutOfRange)),
        ]),
        now(),
    );
    let (op, added) = (Op::Added, forwarded(3000));
    app.update(
        &event("09:14:02.871", What::Port { op, port: added }),
        now(),
    );
    app.update(&changed("09:14:03.120", conflict()), now());
    let busy = PortStatus {
        connections: Connections {
            now: 2,
            total: 9,
            refused: 1,
        },
        ..forwarded(3000)
    };
    app.update(&changed("09:14:04", busy), now());
    app
}
