//! The first connection to an agent as a state machine: what happens on it goes in, what to report and how
//! long to wait comes out. Pure: it opens nothing, and is told the time.
//!
//! ```text
//!   +-------------- `answered` -------------+
//!   |                                       v
//! Down { knocked, silent }     Up { agent, streaming, first, heard } <-- `heard`, `knocked`
//!   ^   ^                                   |
//!   |   +------------- `ended` -------------+
//!   +--- `ended`: the dial has failed
//! ```
//!
//! An agent that ends its connections again and again is tried less often: a connection that lasted
//! [`STEADY`] starts the delays anew, of the shorter ones only one in a row does (an agent that restarts).

use std::time::{Duration, Instant};

use rum_shared::stream::rpc::HEARTBEAT_DEADLINE;
use rum_shared::stream::session::SessionError;
use rum_shared::transport::SILENCE;
use tokio::sync::mpsc::error::SendError;

use super::{AgentEvent, LinkState};
use crate::stream::backoff::Backoff;
use crate::stream::validate::clean_error;

/// A connection that lasted this long was a good one.
const STEADY: Duration = Duration::from_millis(500);

/// How a connection ended.
#[derive(Debug)]
pub(super) enum End {
    /// Nobody receives the events any more: nothing is left to do.
    Stopped,
    /// It could not be made, it broke, or the agent broke a rule. Why, in words.
    Failed(String),
    /// No heartbeat came in time. Nothing says that the connection has ended.
    Silent,
    /// The agent knocks, though its stream has not ended: it has restarted, or has given that up.
    Superseded,
}

impl From<String> for End {
    fn from(reason: String) -> Self {
        Self::Failed(reason)
    }
}

impl From<SessionError> for End {
    fn from(error: SessionError) -> Self {
        Self::Failed(clean_error(error))
    }
}

impl<T> From<SendError<T>> for End {
    fn from(_: SendError<T>) -> Self {
        Self::Stopped
    }
}

#[derive(Debug)]
enum State {
    /// The agent is awaited or being dialled.
    Down {
        /// It has knocked already.
        knocked: bool,
        /// The agent that fell silent, if the last one did.
        silent: Option<u64>,
    },
    /// The agent has answered.
    Up {
        /// Its [`rum_shared::stream::rpc::AgentInfo::instance`].
        agent: u64,
        /// False: it is polled.
        streaming: bool,
        /// When it first told something.
        first: Option<Instant>,
        /// When it was last heard.
        heard: Instant,
    },
}

/// The first connection to an agent, one after the other.
#[derive(Debug)]
pub(super) struct Connection {
    state: State,
    /// Whether the agent knocks, and is not dialled before.
    knocks: bool,
    backoff: Backoff,
    /// The last connection that told something was a short one.
    was_short: bool,
}

impl Connection {
    /// Before the first attempt.
    pub fn new(knocks: bool) -> Self {
        Self {
            state: State::Down {
                knocked: false,
                silent: None,
            },
            knocks,
            backoff: Backoff::default(),
            was_short: false,
        }
    }

    /// Whether the agent has to knock before it is dialled.
    pub fn awaits_knock(&self) -> bool {
        self.knocks && !matches!(self.state, State::Down { knocked: true, .. })
    }

    /// `agent` has answered at `now`. Whether it has taken the place of one that fell silent.
    pub fn answered(&mut self, agent: u64, streaming: bool, now: Instant) -> bool {
        let up = State::Up {
            agent,
            streaming,
            first: None,
            heard: now,
        };
        match std::mem::replace(&mut self.state, up) {
            State::Down { silent, .. } => silent.is_some_and(|silent| silent != agent),
            State::Up { .. } => false,
        }
    }

    /// The agent has told something at `now`.
    pub fn heard(&mut self, now: Instant) {
        if let State::Up { first, heard, .. } = &mut self.state {
            first.get_or_insert(now);
            *heard = now;
        }
    }

    /// The agent has knocked, which it does while nobody reads its stream. Whether ours is stale: one
    /// that was heard lately has begun after the knock was sent.
    pub fn knocked(&self, now: Instant) -> bool {
        let silence = |heard| now.saturating_duration_since(heard);
        match self.state {
            State::Up {
                streaming, heard, ..
            } => streaming && silence(heard) > SILENCE,
            State::Down { .. } => false,
        }
    }

    /// The connection, or the attempt to make it, has ended at `now`. What to report, and how long to
    /// wait before the next attempt; `None`: there is none.
    pub fn ended(&mut self, end: End, now: Instant) -> Option<(AgentEvent, Duration)> {
        let (reason, fell_silent, knocked) = match end {
            End::Stopped => return None,
            End::Failed(reason) => (reason, false, false),
            End::Silent => {
                let seconds = HEARTBEAT_DEADLINE.as_secs();
                (format!("no heartbeat for {seconds} s"), true, false)
            }
            End::Superseded => ("the agent asks for a new connection".into(), true, true),
        };
        let silent = match self.state {
            State::Down { silent, .. } => silent,
            State::Up { agent, first, .. } => {
                if let Some(first) = first {
                    self.lasted(now.saturating_duration_since(first));
                }
                fell_silent.then_some(agent)
            }
        };
        self.state = State::Down { knocked, silent };
        let delay = self.backoff.next_delay();
        let retry = (!self.awaits_knock()).then_some(delay);
        Some((AgentEvent::Lost { reason, retry }, delay))
    }

    /// A connection has told something for so long.
    fn lasted(&mut self, time: Duration) {
        let short = time < STEADY;
        if !(short && self.was_short) {
            self.backoff.reset();
        }
        self.was_short = short;
    }

    /// How it stands, for others.
    pub fn link(&self) -> LinkState {
        match self.state {
            State::Down { .. } => LinkState::Down,
            State::Up {
                streaming: false, ..
            } => LinkState::Polling,
            State::Up { heard, .. } => LinkState::Streaming(heard),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::stream::backoff::FIRST;

    const MOMENT: Duration = Duration::from_millis(1);

    /// A connection whose agent 1 streams, and when it was heard.
    fn up() -> (Connection, Instant) {
        let now = Instant::now();
        let mut connection = Connection::new(true);
        assert!(!connection.answered(1, true, now));
        connection.heard(now);
        (connection, now)
    }

    fn failed() -> End {
        End::Failed("it broke".into())
    }

    /// What a loss is said to be: why, and whether another attempt is made without a knock.
    fn lost(connection: &mut Connection, end: End, now: Instant) -> (String, bool) {
        match connection.ended(end, now) {
            Some((AgentEvent::Lost { reason, retry }, _)) => (reason, retry.is_some()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_agent_that_answers_is_up_until_its_connection_ends() {
        let now = Instant::now();
        let mut connection = Connection::new(false);
        assert_eq!(connection.link(), LinkState::Down);
        connection.heard(now);
        assert_eq!(connection.link(), LinkState::Down, "nobody to be heard");
        assert!(!connection.answered(1, true, now));
        assert_eq!(connection.link(), LinkState::Streaming(now));
        connection.heard(now + MOMENT);
        assert_eq!(connection.link(), LinkState::Streaming(now + MOMENT));
        let lost = lost(&mut connection, failed(), now + MOMENT);
        assert_eq!(lost, ("it broke".into(), true));
        assert_eq!(connection.link(), LinkState::Down);
        connection.answered(1, false, now);
        connection.heard(now + MOMENT);
        assert_eq!(connection.link(), LinkState::Polling);
    }

    #[test]
    fn nothing_follows_when_nobody_receives_the_events() {
        let (mut connection, now) = up();
        assert!(connection.ended(End::Stopped, now).is_none());
        assert!(Connection::new(true).ended(End::Stopped, now).is_none());
    }

    #[test]
    fn an_agent_that_knocks_is_awaited_until_it_has() {
        let now = Instant::now();
        let mut connection = Connection::new(true);
        assert!(connection.awaits_knock());
        assert!(!lost(&mut connection, failed(), now).1);
        let (mut connection, now) = up();
        let silent = lost(&mut connection, End::Silent, now);
        assert_eq!(silent, ("no heartbeat for 4 s".into(), false));
        let (mut connection, now) = up();
        assert!(lost(&mut connection, End::Superseded, now).1);
        assert!(!connection.awaits_knock());
        // One knock is for one attempt.
        assert!(!lost(&mut connection, failed(), now).1);
        assert!(connection.awaits_knock());

        let mut polled = Connection::new(false);
        assert!(!polled.awaits_knock());
        assert!(lost(&mut polled, failed(), now).1);
        assert!(!polled.awaits_knock());
    }

    #[test]
    fn a_knock_ends_a_stream_that_is_silent_and_no_other() {
        let (mut connection, now) = up();
        assert!(!connection.knocked(now + SILENCE));
        assert!(connection.knocked(now + SILENCE + MOMENT));
        connection.heard(now + SILENCE);
        assert!(!connection.knocked(now + SILENCE + MOMENT));
        connection.ended(failed(), now);
        assert!(!connection.knocked(now + SILENCE * 2), "it is down");
        connection.answered(1, false, now);
        assert!(!connection.knocked(now + SILENCE * 2), "it is polled");
    }

    #[test]
    fn only_another_agent_takes_the_place_of_one_that_fell_silent() {
        for (end, succeeds) in [
            (failed(), false),
            (End::Silent, true),
            (End::Superseded, true),
        ] {
            let (mut connection, now) = up();
            connection.ended(end, now);
            // Attempts in vain change nothing.
            connection.ended(failed(), now);
            assert_eq!(connection.answered(2, true, now), succeeds);
            // It did not fall silent itself.
            connection.ended(failed(), now);
            assert!(!connection.answered(3, true, now));
        }
        let (mut connection, now) = up();
        connection.ended(End::Silent, now);
        assert!(!connection.answered(1, true, now), "the same agent");
    }

    #[test]
    fn delays_grow_unless_a_connection_was_steady_or_the_first_short_one() {
        let now = Instant::now();
        let mut connection = Connection::new(false);
        let mut delay = |lasted: Option<Duration>| {
            if let Some(lasted) = lasted {
                connection.answered(1, true, now);
                connection.heard(now);
                connection.heard(now + lasted);
                return connection.ended(failed(), now + lasted).unwrap().1;
            }
            connection.ended(failed(), now).unwrap().1
        };
        // Of a delay one knows the upper half of its step.
        let step = |delay: Duration, step: u32| FIRST * step / 2 <= delay && delay <= FIRST * step;
        assert!(step(delay(None), 1));
        assert!(step(delay(None), 2));
        assert!(step(delay(Some(MOMENT)), 1), "excused");
        assert!(step(delay(Some(STEADY - MOMENT)), 2));
        assert!(step(delay(None), 4));
        assert!(step(delay(Some(MOMENT)), 8), "one in a row is excused");
        assert!(step(delay(Some(STEADY)), 1));
        assert!(step(delay(Some(MOMENT)), 1), "excused again");
        assert!(step(delay(Some(MOMENT)), 2));
        // An agent that answers and tells nothing is no better than none.
        connection.answered(1, true, now);
        let silent = connection.ended(failed(), now + STEADY).unwrap().1;
        assert!(step(silent, 4));
    }
}
