//! `rum ports`: a table for people, and tab-separated lines for programs.
//!
//! Ports with problems come first, hidden ones (only with `--all`) last, each group sorted by port.
//! The table fits the terminal. A column is as wide as its contents, up to a limit; if there is too
//! little room, the least important columns are left out, and the last one takes the rest and is
//! cut with `…`. The lines for programs have no header, are never cut, and always have the same
//! columns ([`COLUMNS`]).
//!
//! Invariants: text from the guest is cleaned before it gets into a cell, so one port is one line
//! and no cell contains a tab; colour adds nothing to the words.

use std::collections::BTreeSet;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use rum_shared::text::printable;
use unicode_width::UnicodeWidthStr;

use super::columns::Column;
use super::lines;
use super::words::{self, Tone};
use crate::status::mirror::Mirror;
use crate::status::model::{AgentState, ControlInfo, PortStatus, State};

/// Smallest width of a terminal that shows all columns, in columns.
const WIDE: usize = 100;
/// The gap between two columns.
const GAP: &str = "  ";
/// Columns are left out only once the reason is cut down to this width.
const MIN_REASON: usize = 16;
const BOLD: &str = "\u{1b}[1m";
const DIM: &str = "\u{1b}[2m";
const RED: &str = "\u{1b}[1;31m";
const GREEN: &str = "\u{1b}[32m";
const MAGENTA: &str = "\u{1b}[35m";
const PLAIN: &str = "\u{1b}[0m";

/// How to draw a table.
#[derive(Debug, Clone)]
pub struct Look {
    /// The terminal's width, in columns.
    pub width: usize,
    /// Whether hidden ports are shown.
    pub all: bool,
    /// Whether there is colour.
    pub color: bool,
    /// The current time.
    pub now: Timestamp,
    /// The time zone of displayed times.
    pub zone: TimeZone,
}

/// The sets of columns and their widths.
impl Column {
    const NARROW: [Self; 5] = [
        Self::Port,
        Self::State,
        Self::Host,
        Self::Process,
        Self::Reason,
    ];
    const WIDE: [Self; 10] = [
        Self::Port,
        Self::State,
        Self::Host,
        Self::Process,
        Self::Guest,
        Self::Connections,
        Self::Bytes,
        Self::Since,
        Self::Label,
        Self::Reason,
    ];
    /// The columns to leave out for lack of room, the first one first.
    const OPTIONAL: [Self; 7] = [
        Self::Label,
        Self::Bytes,
        Self::Since,
        Self::Guest,
        Self::Connections,
        Self::Process,
        Self::Host,
    ];

    /// The greatest width. The columns not listed have short texts made by rum.
    fn limit(self) -> usize {
        match self {
            Self::Process | Self::Label => 16,
            Self::Host | Self::Guest => 24,
            _ => usize::MAX,
        }
    }

    fn text(self, port: &PortStatus, look: &Look) -> String {
        match &port.process {
            Some(process) if self == Self::Process && look.width < WIDE => {
                words::or_nothing(Some(&process.name))
            }
            _ => self.cell(port, look.now, &look.zone),
        }
    }
}

/// The ports in the order of the table.
fn ordered(known: &Mirror, all: bool) -> Vec<&PortStatus> {
    let mut ports: Vec<_> = known
        .ports()
        .filter(|port| all || !port.state.is_hidden())
        .collect();
    // The sort is stable: within a rank, ports stay sorted by number.
    ports.sort_by_key(|port| match port.state {
        state if state.is_problem() => State::ALL.iter().position(|other| *other == state),
        state if state.is_hidden() => Some(State::ALL.len() + 1),
        _ => Some(State::ALL.len()),
    });
    ports
}

/// The table with its header, one line feed after each line. Empty if no port is visible.
pub fn table(known: &Mirror, look: &Look) -> String {
    let ports = ordered(known, look.all);
    if ports.is_empty() {
        return String::new();
    }
    let mut columns: Vec<Column> = if look.width < WIDE {
        Column::NARROW.into()
    } else {
        Column::WIDE.into()
    };
    if ports.iter().all(|port| port.label.is_none()) {
        columns.retain(|column| *column != Column::Label);
    }
    // Each column with its title and its cells.
    let mut filled: Vec<(Column, Vec<String>)> = columns
        .into_iter()
        .map(|column| {
            let cells = ports.iter().map(|port| column.text(port, look));
            let title = std::iter::once(column.title().to_owned());
            (column, title.chain(cells).collect())
        })
        .collect();
    let widths = fit_columns(&mut filled, look.width);
    let mut out = String::new();
    for row in 0..=ports.len() {
        let port = row.checked_sub(1).map(|index| ports[index]);
        let mut line = String::new();
        for ((column, cells), width) in filled.iter().zip(&widths) {
            let cell = words::cut(&cells[row], *width);
            let style = style(port.map(|port| port.state), *column).filter(|_| look.color);
            if !line.is_empty() {
                line += GAP;
            }
            let padding = match column {
                Column::Reason => 0,
                _ => width.saturating_sub(cell.width()),
            };
            match style {
                Some(style) => line += &format!("{style}{cell}{PLAIN}"),
                None => line += &*cell,
            }
            line.extend(std::iter::repeat_n(' ', padding));
        }
        out += line.trim_end();
        out.push('\n');
    }
    out
}

/// Leaves out columns until the rest fits into `width`. Returns the widths of the others.
fn fit_columns(filled: &mut Vec<(Column, Vec<String>)>, width: usize) -> Vec<usize> {
    let natural = |(column, cells): &(Column, Vec<String>)| {
        let widest = cells.iter().map(|cell| cell.width()).max();
        widest.unwrap_or(0).min(column.limit())
    };
    let mut drop_next = Column::OPTIONAL.iter();
    loop {
        let mut widths: Vec<usize> = filled.iter().map(natural).collect();
        let last = widths.pop().unwrap_or(0);
        let rest = width.saturating_sub(widths.iter().map(|width| width + GAP.len()).sum());
        if rest >= last.min(MIN_REASON) {
            widths.push(last.min(rest));
            return widths;
        }
        match drop_next.next() {
            Some(dropped) => filled.retain(|(column, _)| column != dropped),
            // A terminal this narrow wraps lines, which shows more than cutting them to almost
            // nothing.
            None => {
                widths.push(last.min(MIN_REASON));
                return widths;
            }
        }
    }
}

fn style(state: Option<State>, column: Column) -> Option<&'static str> {
    let Some(state) = state else {
        return Some(BOLD);
    };
    match Tone::from(state) {
        Tone::Hidden => Some(DIM),
        _ if column != Column::State => None,
        Tone::Problem => Some(RED),
        Tone::Good => Some(GREEN),
        Tone::Passing => Some(MAGENTA),
    }
}

/// The columns of [`lines_for_programs`], in order.
pub const COLUMNS: [&str; 12] = [
    "port",
    "state",
    "host address",
    "process[pid]",
    "reason",
    "guest addresses",
    "connections now",
    "connections in all",
    "bytes to the guest",
    "bytes to the host",
    "since",
    "label",
];

/// One line for each port, its [`COLUMNS`] separated by tabs; `-` stands for an empty value. Times
/// are UTC.
pub fn lines_for_programs(known: &Mirror, all: bool) -> String {
    let line = |port: &PortStatus| {
        let cells: [String; COLUMNS.len()] = [
            port.port.to_string(),
            port.state.to_string(),
            words::or_nothing(port.host.as_deref()),
            words::or_nothing(port.process.as_ref().map(words::process).as_deref()),
            words::or_nothing(port.reason.as_ref().map(|why| why.message.as_str())),
            words::or_nothing(Some(&port.guest_addresses.join(","))),
            port.connections.now.to_string(),
            port.connections.total.to_string(),
            port.bytes.to_guest.to_string(),
            port.bytes.to_host.to_string(),
            words::or_nothing(Some(&port.since)),
            words::or_nothing(port.label.as_deref()),
        ];
        cells.join("\t") + "\n"
    };
    ordered(known, all).into_iter().map(line).collect()
}

/// The message if no port is visible.
pub fn nothing(info: &ControlInfo, known: &Mirror) -> String {
    let watched = match known
        .config
        .as_ref()
        .and_then(|config| config.range.as_ref())
    {
        Some(range) => format!("watching tcp {range}"),
        None => "no range is forwarded automatically".to_owned(),
    };
    let name = printable(&info.name);
    let text = match known.ports().len() {
        0 => format!("Nothing in \"{name}\" is listening yet; {watched}"),
        _ => format!("Nothing in \"{name}\" is to be forwarded; {watched}"),
    };
    printable(&text)
}

/// Lines about what makes the table wrong or outdated: the agent is missing, or the file's
/// configuration is not in force.
pub fn warnings(known: &Mirror, now: Timestamp, zone: &TimeZone) -> Vec<String> {
    let agent = known.agent.as_ref();
    let agent = agent.filter(|agent| agent.state != AgentState::Connected);
    let agent = agent.map(|agent| {
        let since = words::since(&agent.since, now, zone);
        format!("{} (since {since})", lines::of_agent(agent))
    });
    let config = known.config.as_ref();
    let config = config.filter(|config| config.error.is_some());
    let all = agent.into_iter().chain(config.map(lines::of_config));
    all.map(|line| printable(&line)).collect()
}

/// A line that names the configuration in force, for a user at a terminal; `None` without a file.
pub fn in_force(known: &Mirror, now: Timestamp, zone: &TimeZone) -> Option<String> {
    let config = known.config.as_ref()?;
    let file = config.file.as_ref()?;
    let loaded = words::since(&config.loaded, now, zone);
    let line = format!("configuration: {file}, loaded {loaded}");
    Some(printable(&line))
}

/// Lines below the table for a user at a terminal: what is hidden, and what to do about the first
/// problem.
pub fn footer(known: &Mirror, all: bool) -> Vec<String> {
    let mut out = Vec::new();
    let hidden = || known.ports().filter(|port| port.state.is_hidden());
    if !all && hidden().next().is_some() {
        let states: BTreeSet<&str> = hidden().map(|port| port.state.as_str()).collect();
        let states: Vec<_> = states.into_iter().collect();
        out.push(format!(
            "{} hidden ({}): --all",
            hidden().count(),
            states.join(", ")
        ));
    }
    out.extend(outside(known).filter(|_| !all));
    let ports = ordered(known, false);
    let problems = ports.iter().filter(|port| port.state.is_problem());
    let step = problems.filter_map(|port| {
        let reason = port.reason.as_ref()?;
        Some((port.called(), &reason.message, reason.hint.as_ref()?))
    });
    if let Some((port, message, hint)) = step.into_iter().next() {
        out.push(printable(&format!("{port}: {message}")));
        out.push(printable(&format!("hint: {hint}")));
    }
    out
}

/// The message that programs listen outside the range, so that the table does not have their ports.
pub fn outside(known: &Mirror) -> Option<String> {
    let range = known.config.as_ref()?.range.as_ref()?;
    let line = crate::ui::notice::outside(&known.outside, range);
    (!known.outside.is_empty()).then(|| printable(&line))
}

#[cfg(test)]
mod tests;
