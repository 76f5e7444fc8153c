//! `rum wait`: until a port of the guest is forwarded, or gone.
//!
//! What is the case is decided by [`verdict`] from everything that is known, at the first snapshot
//! and after each update of it, so nothing is polled. Only a `rum up` that is not there yet is
//! looked for again and again.

use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use rum_shared::range::PortRanges;
use rum_shared::text::clean;
use tokio::time::Instant;

use crate::cli::ports::WaitArgs;
use crate::control::client::{ControlError, Feed};
use crate::control::find;
use crate::error::RumError;
use crate::exit;
use crate::guest::GuestError;
use crate::status::model::{AgentState, PortStatus, Reason, State, Stay};
use crate::view::Mirror;

/// Pause between two looks for a `rum up`.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What is the case with what is waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    /// It is so; the host address if there is one.
    Met(Option<String>),
    /// It is not going to be so, for this reason.
    Never(Why),
    /// Not yet.
    NotYet(Why),
}

/// In words, with what can be done about it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Why {
    message: String,
    hint: Option<String>,
}

impl Why {
    fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: None,
        }
    }

    fn of(state: State, reason: Option<&Reason>) -> Self {
        let Some(reason) = reason else {
            return Self::new(format!("it is {state}"));
        };
        Self {
            message: format!("{state}: {}", reason.message),
            hint: reason.hint.clone(),
        }
    }

    fn error(self, start: &str, code: u8) -> RumError {
        let text = clean(&format!("{start}{}", self.message), usize::MAX);
        let error = RumError::new(text).exit(code);
        match self.hint {
            Some(hint) => error.hint(clean(&hint, usize::MAX)),
            None => error,
        }
    }
}

/// Runs `rum wait` on the guest `name`, or on the only one.
///
/// # Errors
/// With the exit codes of the command's help.
pub async fn wait(args: &WaitArgs, name: Option<&str>) -> Result<u8, RumError> {
    let deadline = Instant::now() + args.timeout;
    let mut latest = Why::new("no `rum up` is running");
    latest.hint = Some("start one with `rum up`".to_owned());
    let waited = tokio::time::timeout_at(deadline, until_met(args, name, &mut latest)).await;
    let Ok(met) = waited else {
        let what = if args.gone { "gone" } else { "forwarded" };
        let (port, time) = (args.port, args.timeout);
        let start = format!("port {port} is not {what} after {time:?}; ");
        return Err(latest.error(&start, exit::TIMEOUT));
    };
    if let Some(host) = met? {
        // Whoever does not read it has got the exit code.
        let _ = writeln!(std::io::stdout(), "{}", clean(&host, usize::MAX));
    }
    Ok(exit::OK)
}

/// Ends when it is as it should be, or cannot be; `latest` is what is in the way.
async fn until_met(
    args: &WaitArgs,
    name: Option<&str>,
    latest: &mut Why,
) -> Result<Option<String>, RumError> {
    let mut feed = connect(args, name, latest).await?;
    tracing::debug!("following the `rum up` of guest `{}`", feed.info().name);
    let mut known = Mirror::default();
    loop {
        let update = feed.next().await;
        let update = update.map_err(|error| RumError::from(error).exit(exit::LOST))?;
        known.apply(&update);
        if let Some(reason) = &known.bye {
            let why = Why::new(format!("`rum up` has ended: {reason}"));
            return Err(why.error("", exit::LOST));
        }
        match verdict(args.port, args.gone, &known) {
            Verdict::Met(host) => return Ok(host),
            Verdict::NotYet(why) => *latest = why,
            Verdict::Never(why) => {
                let start = format!("port {} is not going to be forwarded; ", args.port);
                return Err(why.error(&start, exit::FAILED));
            }
        }
    }
}

/// A watch on the `rum up`, once there is one.
async fn connect(args: &WaitArgs, name: Option<&str>, latest: &mut Why) -> Result<Feed, RumError> {
    let lost = |error: RumError| error.exit(exit::LOST);
    loop {
        match find(name) {
            // Nobody knows of ports outside the range, unless asked: they may not be gone.
            Ok(guest) => match Feed::open(&guest, args.gone, Some(Stay::Wait), None).await {
                Ok(feed) => return Ok(feed),
                Err(error @ (ControlError::Version { .. } | ControlError::Full { .. })) => {
                    return Err(lost(error.into()));
                }
                // Just starting, or just ending.
                Err(error @ ControlError::Gone { .. }) => {
                    let hint = Some(error.hint().to_owned());
                    let message = error.to_string();
                    *latest = Why { message, hint };
                }
            },
            Err(error @ (GuestError::NotRunning { .. } | GuestError::NoneRunning)) => {
                let (message, hint) = (error.to_string(), error.hint());
                *latest = Why { message, hint };
            }
            Err(error) => return Err(lost(error.into())),
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// What is the case with `port`, a port of the guest's own or the host port of a static forward.
fn verdict(port: u16, gone: bool, known: &Mirror) -> Verdict {
    let rows: Vec<_> = known.ports().filter(|row| is_meant(port, row)).collect();
    if gone {
        verdict_gone(port, &rows, known)
    } else {
        verdict_forwarded(port, &rows, known)
    }
}

fn is_meant(port: u16, row: &PortStatus) -> bool {
    let host = || {
        let id = row.id.strip_prefix("static:")?;
        // Behind the `#` is which of its predecessors drains.
        let address = id.split('#').next()?;
        address.parse::<SocketAddr>().ok()
    };
    row.destination.is_none() && row.port == port || host().is_some_and(|host| host.port() == port)
}

fn verdict_forwarded(port: u16, rows: &[&PortStatus], known: &Mirror) -> Verdict {
    if let Some(row) = rows.iter().find(|row| row.state == State::Forwarded) {
        return Verdict::Met(row.host.clone());
    }
    let never = |state| {
        matches!(
            state,
            State::Ignored | State::OutOfRange | State::RefusedPrivileged
        )
    };
    // One that may still come counts more than one that cannot.
    let hopeful = rows.iter().find(|row| !never(row.state));
    if let Some(row) = hopeful.or(rows.first()) {
        let why = Why::of(row.state, row.reason.as_ref());
        return match hopeful {
            Some(_) => Verdict::NotYet(why),
            None => Verdict::Never(why),
        };
    }
    let range = known.config.as_ref().map(|config| config.range.as_deref());
    match range {
        Some(None) => Verdict::Never(Why {
            message: "no range is forwarded automatically".to_owned(),
            hint: Some(format!("set `range` in [auto_ports] to take in {port}")),
        }),
        Some(Some(range)) if !may_contain(range, port) => Verdict::Never(Why {
            message: format!("out-of-range: not in range = \"{range}\""),
            hint: Some(format!("widen `range` to take in {port}")),
        }),
        _ => Verdict::NotYet(agent_or(known, "nothing listens on it in the guest")),
    }
}

/// A range that this version cannot read may contain anything.
fn may_contain(range: &str, port: u16) -> bool {
    range
        .parse::<PortRanges>()
        .map_or(true, |ranges| ranges.contains(port))
}

fn verdict_gone(port: u16, rows: &[&PortStatus], known: &Mirror) -> Verdict {
    let silent = |row: &PortStatus| {
        let reason = row.reason.as_ref();
        reason.is_some_and(|reason| reason.code == "not-listening")
    };
    if let Some(row) = rows.iter().find(|row| !silent(row)) {
        // Its hint would be about how to forward it.
        let hint = None;
        let why = Why::of(row.state, row.reason.as_ref());
        return Verdict::NotYet(Why { hint, ..why });
    }
    // Without the agent nobody knows.
    match known.agent.as_ref().map(|agent| agent.state) {
        Some(AgentState::Connected) => Verdict::Met(None),
        _ => Verdict::NotYet(agent_or(known, &format!("nothing is known of port {port}"))),
    }
}

/// That the agent is not there, and why; or `otherwise`.
fn agent_or(known: &Mirror, otherwise: &str) -> Why {
    let Some(agent) = &known.agent else {
        return Why::new(otherwise);
    };
    let what = match agent.state {
        AgentState::Connected => return Why::new(otherwise),
        AgentState::Awaited => "the agent in the guest has not answered yet",
        AgentState::Lost => "the agent in the guest is lost",
    };
    match &agent.reason {
        Some(reason) => Why::new(format!("{what}: {reason}")),
        None => Why::new(what),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::model::Update;
    use crate::view::samples::{lost_agent, port, snapshot};

    fn known(ports: Vec<PortStatus>) -> Mirror {
        let mut known = Mirror::default();
        known.apply(&snapshot(7, false, ports));
        known
    }

    fn is(state: State) -> Mirror {
        known(vec![port(5000, state)])
    }

    fn met(host: &str) -> Verdict {
        Verdict::Met(Some(host.to_owned()))
    }

    fn not_yet(verdict: &Verdict, part: &str) -> bool {
        matches!(verdict, Verdict::NotYet(why) if why.message.contains(part))
    }

    fn never(verdict: &Verdict, part: &str) -> bool {
        matches!(verdict, Verdict::Never(why) if why.message.contains(part))
    }

    #[test]
    fn forwarded_is_met_and_what_may_pass_is_waited_for() {
        assert_eq!(
            verdict(5000, false, &is(State::Forwarded)),
            met("127.0.0.1:5000")
        );
        for state in [
            State::Pending,
            State::Conflict,
            State::Draining,
            State::Lost,
        ] {
            let verdict = verdict(5000, false, &is(state));
            assert!(not_yet(&verdict, state.as_str()), "{verdict:?}");
        }
        let empty = known(vec![]);
        assert!(not_yet(&verdict(5000, false, &empty), "nothing listens"));
        assert!(not_yet(
            &verdict(5000, false, &Mirror::default()),
            "nothing listens"
        ));
    }

    #[test]
    fn what_cannot_be_is_told_at_once() {
        for state in [State::Ignored, State::OutOfRange, State::RefusedPrivileged] {
            let verdict = verdict(5000, false, &is(state));
            assert!(never(&verdict, state.as_str()), "{verdict:?}");
        }
        let mut empty = known(vec![]);
        assert!(never(&verdict(2999, false, &empty), "3000-9000"));
        if let Some(config) = &mut empty.config {
            config.range = None;
        }
        assert!(never(&verdict(5000, false, &empty), "no range"));
        // A static forward leads there, whatever becomes of an automatic one.
        let mut by_hand = port(5000, State::Pending);
        by_hand.id = "static:127.0.0.1:8080".into();
        let both = known(vec![port(5000, State::Ignored), by_hand]);
        assert!(not_yet(&verdict(5000, false, &both), "pending"));
    }

    #[test]
    fn a_static_forward_is_known_by_its_host_port_too() {
        let mut by_hand = port(80, State::Forwarded);
        by_hand.id = "static:127.0.0.1:8080".into();
        by_hand.host = Some("127.0.0.1:8080".into());
        let known = known(vec![by_hand]);
        assert_eq!(verdict(8080, false, &known), met("127.0.0.1:8080"));
        assert_eq!(verdict(80, false, &known), met("127.0.0.1:8080"));
        let mut drains = port(80, State::Draining);
        drains.id = "static:127.0.0.1:8080#2".into();
        assert!(is_meant(8080, &drains) && !is_meant(8081, &drains));
    }

    #[test]
    fn gone_is_when_nothing_listens_and_the_agent_says_so() {
        let mut known = known(vec![]);
        assert_eq!(verdict(5000, true, &known), Verdict::Met(None));
        assert_eq!(verdict(5000, true, &is(State::Pending)), Verdict::Met(None));
        for state in State::ALL {
            if state != State::Pending {
                let verdict = verdict(5000, true, &is(state));
                assert!(not_yet(&verdict, state.as_str()), "{verdict:?}");
            }
        }
        known.agent = Some(lost_agent());
        assert!(not_yet(&verdict(5000, true, &known), "lost: vsock reset"));
        assert!(not_yet(
            &verdict(5000, true, &Mirror::default()),
            "nothing is known"
        ));
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_is_over_when_it_is() {
        for seconds in [1, 3600] {
            let timeout = Duration::from_secs(seconds);
            let args = WaitArgs {
                port: 5000,
                gone: false,
                timeout,
                name: None,
            };
            let start = Instant::now();
            let error = wait(&args, Some("nobody-has-this-name")).await;
            let error = error.expect_err("nothing runs");
            assert_eq!(error.exit_code(), exit::TIMEOUT);
            assert_eq!(start.elapsed(), timeout);
        }
    }

    #[test]
    fn a_heartbeat_changes_nothing() {
        let mut known = is(State::Forwarded);
        known.apply(&Update::Events(vec![]));
        assert_eq!(verdict(5000, false, &known), met("127.0.0.1:5000"));
    }
}
