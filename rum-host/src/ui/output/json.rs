//! `--log-format json`: messages and log as JSON objects, one for each line.
//!
//! Log records, notices and errors share one form: `timestamp` (RFC 3339, UTC), `level`, and
//! `message`, the line for people. A notice adds its word in `notice`, and its subject in further
//! fields; empty fields are left out.
//!
//! Invariant: one record is one line, and no string in it contains a control character.

use facet::Facet;
use jiff::Timestamp;
use miette::Diagnostic as _;
use rum_shared::text::printable;

use crate::error::RumError;
use crate::plan::Destination;
use crate::plan::reconcile::Repair;
use crate::status::model::{ProcessName, Reason};
use crate::status::rows::not_bound;
use crate::ui::notice::Notice;

/// One line.
#[derive(Debug, Clone, Default, Facet)]
struct Record {
    timestamp: String,
    level: String,
    message: String,
    /// The kind of notice.
    #[facet(skip_serializing_if = Option::is_none)]
    notice: Option<String>,
    /// The host address.
    #[facet(skip_serializing_if = Option::is_none)]
    host: Option<String>,
    /// The guest port.
    #[facet(skip_serializing_if = Option::is_none)]
    guest: Option<u16>,
    /// The destination of a forward to an address in the guest's networks.
    #[facet(skip_serializing_if = Option::is_none)]
    destination: Option<String>,
    /// Number of connections that drain or were reset.
    #[facet(skip_serializing_if = Option::is_none)]
    connections: Option<u64>,
    /// The reason.
    #[facet(skip_serializing_if = Option::is_none)]
    reason: Option<Why>,
    /// The place in a file.
    #[facet(skip_serializing_if = Option::is_none)]
    place: Option<String>,
    /// What the user can do.
    #[facet(skip_serializing_if = Option::is_none)]
    hint: Option<String>,
}

/// A [`Reason`] without empty fields.
#[derive(Debug, Clone, Default, Facet)]
struct Why {
    #[facet(skip_serializing_if = Option::is_none)]
    code: Option<String>,
    message: String,
    #[facet(skip_serializing_if = Option::is_none)]
    hint: Option<String>,
    #[facet(skip_serializing_if = Option::is_none)]
    holder: Option<ProcessName>,
}

impl Why {
    fn text(message: &str) -> Self {
        Self {
            message: printable(message),
            ..Self::default()
        }
    }
}

impl From<Reason> for Why {
    fn from(reason: Reason) -> Self {
        Self {
            code: Some(reason.code),
            message: printable(&reason.message),
            hint: reason.hint,
            holder: reason.holder.map(|holder| ProcessName {
                name: printable(&holder.name),
                ..holder
            }),
        }
    }
}

impl Record {
    fn new(at: Timestamp, level: &str, message: &str) -> Self {
        Self {
            timestamp: format!("{at:.6}"),
            level: level.to_owned(),
            message: printable(message),
            ..Self::default()
        }
    }

    fn line(&self) -> String {
        // This fails only for types that JSON cannot express.
        facet_json::to_string(self).expect("a record is numbers and strings") + "\n"
    }
}

/// The line for `notice`, printed at `at`.
pub(super) fn notice(notice: &Notice, at: Timestamp) -> String {
    let level = if notice.is_problem() { "WARN" } else { "INFO" };
    let plain = Record::new(at, level, &notice.to_string());
    let about = |word: &str| Record {
        notice: Some(word.to_owned()),
        ..plain
    };
    let why = |reason: &str| Some(Why::text(reason));
    let leading = |guest: &Destination, record: Record| Record {
        guest: Some(guest.port),
        destination: guest.address(),
        ..record
    };
    match notice {
        Notice::AgentConnected { .. } => about("agent-connected"),
        Notice::AgentAwaited { reason } => Record {
            reason: why(reason),
            ..about("agent-awaited")
        },
        Notice::AgentMissing { .. } => about("agent-missing"),
        Notice::AgentLost { reason, .. } => Record {
            reason: why(reason),
            ..about("agent-lost")
        },
        Notice::NoBoundary => about("no-boundary"),
        Notice::GuestRebooted => about("guest-rebooted"),
        Notice::AutoForwardsDropped => about("grace-over"),
        Notice::Forwarded { host, guest, .. } => Record {
            host: Some(host.to_string()),
            ..leading(guest, about("forwarded"))
        },
        Notice::Stopped {
            guest, connections, ..
        } => Record {
            connections: Some((*connections).into()),
            ..leading(guest, about("stopped"))
        },
        Notice::Blocked {
            host,
            guest,
            reason,
            ..
        } => Record {
            host: Some(host.to_string()),
            reason: Some(not_bound(*host, reason, reason.hint()).into()),
            ..leading(guest, about("blocked"))
        },
        Notice::AddressGone { ip, .. } => Record {
            host: Some(ip.to_string()),
            ..about("address-gone")
        },
        Notice::AddressBack { ip } => Record {
            host: Some(ip.to_string()),
            ..about("address-back")
        },
        Notice::Cut { guest, connections } => Record {
            connections: Some(*connections as u64),
            ..leading(guest, about("cut"))
        },
        Notice::Repaired(Repair::Opened(port) | Repair::Closed(port)) => Record {
            guest: Some(*port),
            ..about("repaired")
        },
        Notice::Outside { ports, .. } => Record {
            guest: ports.first().copied(),
            ..about("outside")
        },
        Notice::Guest(progress) => about(progress.word()),
        Notice::GuestEnded { reason } => Record {
            reason: why(reason),
            ..about("guest-ended")
        },
        Notice::GuestKilled { .. } => about("guest-killed"),
        Notice::Reloaded { .. } | Notice::Unchanged => about("reloaded"),
        Notice::NotReloaded => about("not-reloaded"),
        Notice::RestartNeeded => about("next-time"),
        Notice::Stopping { .. } => about("stopping"),
    }
    .line()
}

/// The line that reports lost lines.
pub(super) fn omitted(message: &str, at: Timestamp) -> String {
    Record {
        notice: Some("omitted".to_owned()),
        ..Record::new(at, "WARN", message)
    }
    .line()
}

/// The lines for `error`, which ends this process: one for each mistake of a configuration.
pub(crate) fn error(error: &RumError, at: Timestamp) -> String {
    let mut causes = Vec::new();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        causes.push(cause.to_string());
        source = cause.source();
    }
    let Some(config) = error.config() else {
        return Record {
            reason: (!causes.is_empty()).then(|| Why::text(&causes.join(": "))),
            hint: error.one_line_hint().map(|hint| printable(&hint)),
            ..Record::new(at, "ERROR", &error.to_string())
        }
        .line();
    };
    let line = |problem: &crate::error::Located| {
        Record {
            place: Some(printable(problem.place())),
            hint: problem.help().map(|hint| printable(&hint.to_string())),
            ..Record::new(at, "ERROR", &problem.to_string())
        }
        .line()
    };
    config.problems().iter().map(line).collect()
}
