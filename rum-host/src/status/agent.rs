//! State of the link to the agent: the host's only copy, which rows, `rum ports` and the supervisor
//! read.
//!
//! ```text
//! Awaited ──► Current ◄──► Stale ──► Forgotten ──► Current
//! ```
//!
//! Pure: the supervisor reports what happened, and when. The link is `Current` only once the agent
//! has *reported* its listeners; a connection is not enough.

use std::time::{Duration, Instant};

use rum_shared::stream::rpc::AgentInfo;

use super::model::{AgentState, AgentStatus};

/// How current rum's knowledge of the guest's listeners is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Knowledge {
    /// The agent has reported nothing yet, for this reason if known.
    Awaited(Option<String>),
    /// The agent reports its listeners.
    Current,
    /// The agent was lost. Its last report is kept for a while.
    Stale {
        /// Since when.
        since: Instant,
        /// Why.
        reason: String,
    },
    /// The agent did not come back. Its report is discarded.
    Forgotten {
        /// Why it was lost.
        reason: String,
    },
}

/// A failed attempt that the user is told about. Other failures are not reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The first failure, before any agent was there.
    Awaited,
    /// The failure that ended [`Knowledge::Current`].
    Lost,
}

/// The agent in the guest.
#[derive(Debug)]
pub struct Agent {
    knowledge: Knowledge,
    /// The agent, or the last one.
    info: Option<AgentInfo>,
    /// Failed attempts since the agent was there.
    attempts: u32,
    /// When the next attempt is made, counted from the last failure.
    retry: Option<Duration>,
}

impl Default for Agent {
    fn default() -> Self {
        Self {
            knowledge: Knowledge::Awaited(None),
            info: None,
            attempts: 0,
            retry: None,
        }
    }
}

impl Agent {
    /// How current the knowledge of the guest's listeners is.
    pub fn knowledge(&self) -> &Knowledge {
        &self.knowledge
    }

    /// Whether no agent has reported yet.
    pub fn is_awaited(&self) -> bool {
        matches!(self.knowledge, Knowledge::Awaited(_))
    }

    /// Notes that an agent answers as `info`. Returns whether the guest has rebooted since the
    /// previous one.
    pub fn introduced(&mut self, info: AgentInfo) -> bool {
        let before = self.info.replace(info);
        let boots = before.iter().chain(&self.info).map(|info| &info.boot_id);
        let boots: Vec<_> = boots.filter(|boot| !boot.is_empty()).collect();
        matches!(boots[..], [before, now] if before != now)
    }

    /// Notes that the agent has reported its listeners. Returns whether the knowledge was not
    /// current before.
    pub fn told(&mut self) -> bool {
        (self.attempts, self.retry) = (0, None);
        std::mem::replace(&mut self.knowledge, Knowledge::Current) != Knowledge::Current
    }

    /// Notes that a connection to the agent failed or ended at `now`; the next attempt is made
    /// after `retry`.
    pub fn failed(
        &mut self,
        reason: String,
        retry: Option<Duration>,
        now: Instant,
    ) -> Option<Failure> {
        self.attempts = self.attempts.saturating_add(1);
        self.retry = retry;
        let (next, failure) = match self.knowledge {
            Knowledge::Awaited(None) => (Knowledge::Awaited(Some(reason)), Some(Failure::Awaited)),
            Knowledge::Awaited(Some(_)) => (Knowledge::Awaited(Some(reason)), None),
            Knowledge::Current => (Knowledge::Stale { since: now, reason }, Some(Failure::Lost)),
            Knowledge::Stale { since, .. } => (Knowledge::Stale { since, reason }, None),
            Knowledge::Forgotten { .. } => (Knowledge::Forgotten { reason }, None),
        };
        self.knowledge = next;
        failure
    }

    /// When to discard the agent's report: `grace` after the loss.
    pub fn forget_at(&self, grace: Duration) -> Option<Instant> {
        match self.knowledge {
            Knowledge::Stale { since, .. } => Some(since + grace),
            _ => None,
        }
    }

    /// Discards the agent's report if that is due. Returns whether it was.
    pub fn forget(&mut self, grace: Duration, now: Instant) -> bool {
        if self.forget_at(grace).is_none_or(|at| at > now) {
            return false;
        }
        let reason = self.reason().unwrap_or_default();
        self.knowledge = Knowledge::Forgotten { reason };
        true
    }

    /// Why the agent is not there.
    fn reason(&self) -> Option<String> {
        match &self.knowledge {
            Knowledge::Awaited(reason) => reason.clone(),
            Knowledge::Current => None,
            Knowledge::Stale { reason, .. } | Knowledge::Forgotten { reason } => {
                Some(reason.clone())
            }
        }
    }

    /// The status for `rum ports`, without `since`. Forwards of a lost agent stay for `grace`; the
    /// poll has repaired `repaired` ports.
    pub fn status(&self, grace: Duration, repaired: u64) -> AgentStatus {
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let word = |word: fn(&AgentInfo) -> &String| self.info.as_ref().map(word).cloned();
        AgentStatus {
            state: match self.knowledge {
                Knowledge::Awaited(_) => AgentState::Awaited,
                Knowledge::Current => AgentState::Connected,
                Knowledge::Stale { .. } | Knowledge::Forgotten { .. } => AgentState::Lost,
            },
            since: String::new(),
            reason: self.reason(),
            retry_ms: self.retry.map(milliseconds),
            grace_ms: milliseconds(grace),
            attempts: self.attempts,
            version: word(|info| &info.version),
            hostname: word(|info| &info.hostname),
            source: word(|info| &info.hint),
            repaired,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(15);
    const RETRY: Option<Duration> = Some(Duration::from_millis(50));

    fn info(boot_id: &str) -> AgentInfo {
        AgentInfo {
            protocol: 1,
            version: "1.2.3".into(),
            hostname: "dev".into(),
            boot_id: boot_id.into(),
            instance: 7,
            source: "netlink".into(),
            hint: "tracepoint".into(),
            capabilities: Vec::new(),
        }
    }

    /// State, reason, time of the next attempt and number of attempts.
    fn shown(agent: &Agent) -> (AgentState, Option<String>, Option<u64>, u32) {
        let status = agent.status(GRACE, 0);
        (
            status.state,
            status.reason,
            status.retry_ms,
            status.attempts,
        )
    }

    #[test]
    fn from_awaited_to_forgotten_and_back() {
        let (mut agent, now) = (Agent::default(), Instant::now());
        let why = |text: &str| Some(text.to_owned());
        assert!(agent.is_awaited());
        assert_eq!(shown(&agent), (AgentState::Awaited, None, None, 0));
        let first = agent.failed("refused".into(), RETRY, now);
        assert_eq!(first, Some(Failure::Awaited));
        assert_eq!(agent.failed("no answer".into(), RETRY, now), None);
        let awaited = (AgentState::Awaited, why("no answer"), Some(50), 2);
        assert_eq!(shown(&agent), awaited);

        assert!(!agent.introduced(info("a")));
        assert!(agent.is_awaited(), "it has told nothing yet");
        assert!(agent.told() && !agent.told());
        assert_eq!(shown(&agent), (AgentState::Connected, None, None, 0));
        assert!(!agent.forget(GRACE, now + GRACE));

        let lost = agent.failed("reset".into(), RETRY, now);
        assert_eq!(lost, Some(Failure::Lost));
        let later = now + GRACE - Duration::from_millis(1);
        assert_eq!(agent.failed("refused".into(), None, later), None);
        assert_eq!(shown(&agent), (AgentState::Lost, why("refused"), None, 2));
        assert_eq!(agent.forget_at(GRACE), Some(now + GRACE));
        assert!(!agent.forget(GRACE, later));
        assert!(agent.forget(GRACE, now + GRACE));
        assert!(!agent.forget(GRACE, now + GRACE) && agent.forget_at(GRACE).is_none());
        assert_eq!(agent.failed("no answer".into(), RETRY, now), None);
        let forgotten = Knowledge::Forgotten {
            reason: "no answer".into(),
        };
        assert_eq!(agent.knowledge(), &forgotten);
        assert!(agent.told());
    }

    #[test]
    fn another_boot_is_noticed_where_both_are_known() {
        let mut agent = Agent::default();
        let later = ["", "a", "a", "", "b", "a"].map(|boot| agent.introduced(info(boot)));
        assert_eq!(later, [false, false, false, false, false, true]);
    }
}
