//! How the agent stands: the one state of it on the host, of which rows, `rum ports` and the supervisor take
//! what they need.
//!
//! ```text
//! Awaited ──► Current ◄──► Stale ──► Forgotten ──► Current
//! ```
//!
//! Pure: the supervisor says what happened, and when. An agent is there once it has *told* what listens; to
//! be connected is not enough.

use std::time::{Duration, Instant};

use rum_shared::stream::rpc::AgentInfo;

use super::model::{AgentState, AgentStatus};

/// How current what rum knows of the guest's listeners is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Knowledge {
    /// The agent has told nothing yet, for this reason if one is known.
    Awaited(Option<String>),
    /// The agent tells.
    Current,
    /// The agent was lost; what it told last is kept for a while.
    Stale {
        /// Since when.
        since: Instant,
        /// Why.
        reason: String,
    },
    /// It did not come back: nothing is kept.
    Forgotten {
        /// Why it was lost.
        reason: String,
    },
}

/// What the user is to be told of an attempt that failed; of the others nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The first one, before any agent was there.
    Awaited,
    /// The one that ended what was current.
    Lost,
}

/// The agent in the guest.
#[derive(Debug)]
pub struct Agent {
    knowledge: Knowledge,
    /// Who it is, or was.
    info: Option<AgentInfo>,
    /// Attempts that failed since it was there.
    attempts: u32,
    /// When the next one is made, from the failure of the last.
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
    /// What is known of the guest's listeners.
    pub fn knowledge(&self) -> &Knowledge {
        &self.knowledge
    }

    /// Whether none was there yet.
    pub fn is_awaited(&self) -> bool {
        matches!(self.knowledge, Knowledge::Awaited(_))
    }

    /// One answers, who says that it is `info`. Whether the guest has been booted since the one before.
    pub fn introduced(&mut self, info: AgentInfo) -> bool {
        let before = self.info.replace(info);
        let boots = before.iter().chain(&self.info).map(|info| &info.boot_id);
        let boots: Vec<_> = boots.filter(|boot| !boot.is_empty()).collect();
        matches!(boots[..], [before, now] if before != now)
    }

    /// It has told what listens. Whether that was not current before.
    pub fn told(&mut self) -> bool {
        (self.attempts, self.retry) = (0, None);
        std::mem::replace(&mut self.knowledge, Knowledge::Current) != Knowledge::Current
    }

    /// A connection to it failed or ended at `now`; the next attempt is made after `retry`.
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

    /// When what it told is to be forgotten, `grace` after it was lost.
    pub fn forget_at(&self, grace: Duration) -> Option<Instant> {
        match self.knowledge {
            Knowledge::Stale { since, .. } => Some(since + grace),
            _ => None,
        }
    }

    /// Forgets what it told, if it is time to; whether it was.
    pub fn forget(&mut self, grace: Duration, now: Instant) -> bool {
        if self.forget_at(grace).is_none_or(|at| at > now) {
            return false;
        }
        let reason = self.reason().unwrap_or_default();
        self.knowledge = Knowledge::Forgotten { reason };
        true
    }

    /// Why it is not there.
    fn reason(&self) -> Option<String> {
        match &self.knowledge {
            Knowledge::Awaited(reason) => reason.clone(),
            Knowledge::Current => None,
            Knowledge::Stale { reason, .. } | Knowledge::Forgotten { reason } => {
                Some(reason.clone())
            }
        }
    }

    /// What `rum ports` shows of it, but for the time since when. Forwards of a lost one stay for `grace`; the
    /// poll has `repaired` so many ports.
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

    /// State, reason, when it is tried again and how often it was.
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
