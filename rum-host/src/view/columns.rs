//! The columns that table and live view share.

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::words;
use crate::status::model::PortStatus;

/// A column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Column {
    Port,
    State,
    Host,
    Process,
    Guest,
    Connections,
    Bytes,
    Since,
    Label,
    Reason,
}

impl Column {
    pub fn title(self) -> &'static str {
        match self {
            Self::Port => "PORT",
            Self::State => "STATE",
            Self::Host => "HOST",
            Self::Process => "PROCESS",
            Self::Guest => "GUEST",
            Self::Connections => "CONNS",
            Self::Bytes => "IN/OUT",
            Self::Since => "SINCE",
            Self::Label => "LABEL",
            Self::Reason => "REASON",
        }
    }

    /// The cleaned text of the cell for `port`.
    pub fn cell(self, port: &PortStatus, now: Timestamp, zone: &TimeZone) -> String {
        match self {
            Self::Port => port.port.to_string(),
            Self::State => port.state.to_string(),
            Self::Host => words::or_nothing(port.host.as_deref()),
            Self::Process => {
                words::or_nothing(port.process.as_ref().map(words::process).as_deref())
            }
            Self::Guest if port.destination.is_some() => port.called(),
            Self::Guest => words::or_nothing(Some(&port.guest_addresses.join(","))),
            Self::Connections => format!("{}/{}", port.connections.now, port.connections.total),
            Self::Bytes => format!(
                "{}/{}",
                words::bytes(port.bytes.to_guest),
                words::bytes(port.bytes.to_host)
            ),
            Self::Since => words::since(&port.since, now, zone),
            Self::Label => words::or_nothing(port.label.as_deref()),
            Self::Reason => match (&port.reason, &port.destination) {
                (None, Some(_)) => format!("leads to {}", port.called()),
                (why, _) => words::or_nothing(why.as_ref().map(|why| why.message.as_str())),
            },
        }
    }
}
