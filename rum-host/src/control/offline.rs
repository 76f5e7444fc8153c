//! The ports of a running VM without a `rum up`: asks the VM's agent directly.
//!
//! Nothing is forwarded then, so every port is `pending` (or hidden) with the reason `not-running`.

use std::time::{Duration, Instant};

use rum_shared::listener::{Listener, ListenerSet};
use rum_shared::range::PortRange;
use rum_shared::stream::rpc::{AgentInfo, WatchEvent};
use tokio::sync::{mpsc, watch};

use crate::config::Settings;
use crate::error::RumError;
use crate::guest::GuestKind;
use crate::plan::policy::PROCESS_WAIT;
use crate::plan::{GuestPort, Key};
use crate::status::agent::{Agent, Knowledge};
use crate::status::journal::timestamp;
use crate::status::model::{
    AgentStatus, CONTROL_PROTOCOL, ConfigStatus, ControlInfo, PortStatus, State, Update,
};
use crate::status::rows::{Facts, not_running, rows};
use crate::stream::client::{AgentClient, AgentEvent, LinkState};

/// Deadline for the agent's report. On a transport where the agent must knock first, that takes up
/// to a second.
const DEADLINE: Duration = Duration::from_secs(5);

/// Asks the agent of the guest in `settings`. `None` for a kind of guest that lives only as long as
/// its `rum up`.
///
/// # Errors
/// The agent does not answer within some seconds.
pub async fn snapshot(settings: &Settings) -> Option<Result<(ControlInfo, Update), RumError>> {
    let endpoint = match &settings.guest {
        GuestKind::Namespace(_) => return None,
        kind => kind.running_endpoint()?,
    };
    let (events_tx, mut events) = mpsc::channel(8);
    let (_range, range) = watch::channel(PortRange::ALL);
    let (_poll, poll_now) = watch::channel(());
    let (_retry, retry_now) = watch::channel(());
    let client = AgentClient {
        transport: endpoint.into(),
        range,
        stream: true,
        retry_now,
    };
    let mut failure = None;
    let ask = async {
        let mut info = None;
        while let Some(event) = events.recv().await {
            match event {
                AgentEvent::Connected { info: new, .. } => info = Some(new),
                AgentEvent::Watch {
                    event: WatchEvent::Snapshot { listeners, .. },
                    ..
                } => return Some((info, ListenerSet::new(0, listeners))),
                AgentEvent::Watch { .. } => {}
                AgentEvent::Polled { ports, .. } => {
                    let listeners = ports.into_iter().map(Listener::bare);
                    return Some((info, ListenerSet::new(0, listeners)));
                }
                AgentEvent::Lost { reason, .. } => failure = Some(reason),
            }
        }
        None
    };
    let (link, _) = watch::channel(LinkState::Down);
    let answer = tokio::select! {
        answer = tokio::time::timeout(DEADLINE, ask) => answer.ok().flatten(),
        () = client.run(events_tx, link, poll_now) => None,
    };
    Some(match answer {
        Some((info, set)) => Ok(describe(settings, info, &set)),
        None => {
            let why = failure.unwrap_or_else(|| "it has not knocked".to_owned());
            Err(RumError::new(format!(
                "no `rum up` runs for guest `{}`, and its agent does not answer: {why}",
                settings.name
            ))
            .hint("look whether the guest and its agent run, then start `rum up`"))
        }
    })
}

fn describe(
    settings: &Settings,
    info: Option<AgentInfo>,
    set: &ListenerSet,
) -> (ControlInfo, Update) {
    let now = timestamp();
    let ports = set.iter().flat_map(|listener| port(settings, listener));
    let ports = ports
        .map(|row| PortStatus {
            since: now.clone(),
            ..row
        })
        .collect();
    let auto = settings.policy.auto.as_ref();
    let mut agent = Agent::default();
    info.map(|info| agent.introduced(info));
    agent.told();
    let update = Update::Snapshot {
        seq: 0,
        gap: false,
        ports,
        agent: AgentStatus {
            since: now.clone(),
            ..agent.status(Duration::ZERO, 0)
        },
        config: ConfigStatus {
            file: None,
            loaded: now.clone(),
            range: auto.map(|auto| auto.ranges.to_string()),
            error: None,
        },
        outside: Vec::new(),
    };
    let info = ControlInfo {
        protocol: CONTROL_PROTOCOL,
        version: crate::VERSION.to_owned(),
        name: settings.name.clone(),
        kind: settings.guest.name().to_owned(),
        pid: 0,
        boot: String::new(),
        started: now,
    };
    (info, update)
}

/// The rows of a listener: hidden if the policy hides it, otherwise not forwarded.
fn port(settings: &Settings, listener: &Listener) -> Vec<PortStatus> {
    let policy = &settings.policy;
    // The agent has already looked up the names of processes, so nothing waits for them.
    let since = Instant::now();
    let facts = Facts {
        port: GuestPort(listener.port),
        listener: Some(listener),
        verdict: Some(policy.judge(listener, since, since + PROCESS_WAIT)),
        label: policy.label(Key::Auto(GuestPort(listener.port)), Some(listener)),
        ranges: policy.auto.as_ref().map(|auto| auto.ranges.to_string()),
        forwards: Vec::new(),
        draining: Vec::new(),
        knowledge: &Knowledge::Current,
    };
    let is_static = policy.has_static(listener.port);
    let mut rows = rows(&facts);
    rows.retain(|row| row.state == State::Ignored || !is_static);
    if rows.is_empty() {
        rows.push(not_running(&facts));
    }
    rows
}
