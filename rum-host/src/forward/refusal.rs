//! Step 5 of the data flow: why a client was reset, in words.

use crate::plan::Destination;
use rum_shared::bytes::channel::DialStatus;

/// Why a client was reset before it reached a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The guest's kernel or agent refused it.
    Agent(DialStatus),
    /// No agent answered within [`LINK_DEADLINE`](super::LINK_DEADLINE).
    NoAgent,
    /// The channel broke the protocol, or a local error occurred.
    Failed,
}

impl Refusal {
    /// The reason in words, for a client of `guest`.
    pub fn words(self, guest: Destination) -> &'static str {
        let elsewhere = guest.ip.is_some();
        match self {
            Self::Agent(DialStatus::Refused) if elsewhere => "nothing listens there",
            Self::Agent(DialStatus::Unreachable) if elsewhere => {
                "the guest does not reach that address"
            }
            Self::Agent(DialStatus::Denied) if elsewhere => {
                "the agent does not know addresses: it is older than this rum"
            }
            Self::Agent(DialStatus::Refused) => "nothing listens on it in the guest",
            Self::Agent(DialStatus::Unreachable) => {
                "the address it listens on cannot be reached in the guest"
            }
            Self::Agent(DialStatus::TimedOut) => {
                "the guest did not answer: its program accepts no connections, or a firewall drops them"
            }
            Self::Agent(DialStatus::NoLocalPort) => {
                "the guest has no free local port for one more connection"
            }
            Self::Agent(DialStatus::Denied) => "the agent does not allow it",
            Self::NoAgent => "no agent answered",
            // `open` never returns the first two.
            Self::Agent(DialStatus::Connected | DialStatus::Exhausted | DialStatus::Failed)
            | Self::Failed => "the connection could not be made",
        }
    }
}
