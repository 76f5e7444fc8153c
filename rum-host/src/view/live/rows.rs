//! The table of the live view: one row for each port, with columns as the width allows.
//!
//! Invariant: columns depend only on the width of the screen and on the longest host address, so
//! they hardly ever move.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};

use crate::status::model::{PortStatus, State};

use super::app::{App, Sort};
use crate::view::columns::Column;
use crate::view::words::{self, Tone};

/// Smallest and largest width of the host column; the smallest fits `127.0.0.1:65535`.
const HOST: (usize, usize) = (15, 24);
/// Smallest screen widths for the process; for guest, connections and time; for labels.
const WIDER: [u16; 3] = [76, 110, 134];

fn is_sorted(column: Column, by: Sort) -> bool {
    matches!(
        (column, by),
        (Column::Port, Sort::Port)
            | (Column::Process, Sort::Process)
            | (Column::Since, Sort::Latest)
    )
}

/// The columns with their widths.
fn columns(width: u16, rows: &[&PortStatus]) -> Vec<(Column, usize)> {
    let host = rows.iter().filter_map(|p| p.host.as_deref());
    let host = host.map(words::width).max().unwrap_or(0);
    let mut columns = vec![
        (Column::Port, 5),
        // Includes two for the mark.
        (Column::State, 20),
        (Column::Host, host.clamp(HOST.0, HOST.1)),
    ];
    if width >= WIDER[1] {
        columns.extend([
            (Column::Process, 18),
            (Column::Guest, 11),
            (Column::Connections, 9),
            (Column::Since, 8),
        ]);
    } else if width >= WIDER[0] {
        columns.push((Column::Process, 14));
    }
    if width >= WIDER[2] {
        columns.push((Column::Label, 12));
    }
    // Two for the mark of the selected row, and one after each column.
    let taken: usize = columns.iter().map(|(_, width)| width + 1).sum();
    let rest = usize::from(width).saturating_sub(2 + taken);
    columns.push((Column::Reason, rest));
    columns
}

/// A mark that distinguishes states without colour.
pub fn mark(state: State) -> char {
    match state {
        State::Forwarded => ' ',
        State::Draining => '~',
        State::Pending => '.',
        State::Conflict | State::RefusedPrivileged => '!',
        State::Ignored | State::OutOfRange => '-',
        State::Lost => '?',
    }
}

/// The style of a state: one of the terminal's own 16 colours, so that it suits the theme.
pub fn style(state: State, color: bool) -> Style {
    let style = Style::new();
    if !color {
        return if state.is_problem() {
            style.add_modifier(Modifier::BOLD)
        } else {
            style
        };
    }
    match Tone::from(state) {
        Tone::Good => style.fg(Color::Green),
        Tone::Passing => style.fg(Color::Magenta),
        Tone::Problem => style.fg(Color::Red),
        Tone::Hidden => style.add_modifier(Modifier::DIM),
    }
}

/// Draws the titles and the visible rows.
pub fn draw(app: &App, area: Rect, buf: &mut Buffer, now: Timestamp, tz: &TimeZone) {
    let rows = app.rows();
    let columns = columns(area.width, &rows);
    let height = usize::from(area.height.saturating_sub(1));
    let first = app.selection.offset();
    let place = (rows.len() > height).then(|| {
        let last = (first + height).min(rows.len());
        format!("{}-{last} of {}", first + 1, rows.len())
    });
    let mut x = area.x + 2;
    for (column, width) in &columns {
        // The title of the last column shares its line with the position.
        let shared = place.as_ref().filter(|_| *column == Column::Reason);
        if shared.is_some_and(|place| place.len() + column.title().len() + 2 > *width) {
            break;
        }
        let mut style = Style::new().add_modifier(Modifier::BOLD);
        if is_sorted(*column, app.sort) {
            style = style.add_modifier(Modifier::UNDERLINED);
        }
        let lead = if *column == Column::State { 2 } else { 0 };
        buf.set_stringn(
            x + lead,
            area.y,
            column.title(),
            width.saturating_sub(usize::from(lead)),
            style,
        );
        x = x.saturating_add(narrow(*width) + 1);
    }
    if let Some(place) = place {
        let x = area.right().saturating_sub(narrow(place.len()));
        let dim = Style::new().add_modifier(Modifier::DIM);
        buf.set_stringn(x, area.y, &place, usize::from(area.width), dim);
    }
    for (line, port) in rows.iter().enumerate().skip(first).take(height) {
        let y = area.y + 1 + narrow(line - first);
        let selected = line == app.selection.row();
        row(app, port, selected, &columns, (area, y), buf, (now, tz));
    }
}

fn row(
    app: &App,
    port: &PortStatus,
    selected: bool,
    columns: &[(Column, usize)],
    (area, y): (Rect, u16),
    buf: &mut Buffer,
    when: (Timestamp, &TimeZone),
) {
    let stale = app.is_stale();
    let base = match (selected, stale) {
        (true, _) => Style::new().add_modifier(Modifier::REVERSED),
        (false, true) => Style::new().add_modifier(Modifier::DIM),
        (false, false) => Style::new(),
    };
    buf.set_style(Rect::new(area.x, y, area.width, 1), base);
    if selected {
        buf.set_stringn(area.x, y, ">", 1, base);
    }
    let labelled = columns.iter().any(|(column, _)| *column == Column::Label);
    let processed = columns.iter().any(|(column, _)| *column == Column::Process);
    let mut x = area.x + 2;
    for (column, width) in columns {
        let text = match column {
            Column::State => {
                let mark = if stale { '?' } else { mark(port.state) };
                format!("{mark} {}", port.state)
            }
            Column::Reason => words::shown(&why(port, labelled, processed)),
            column => column.cell(port, when.0, when.1),
        };
        let style = match column {
            Column::State if !selected && !stale => base.patch(style(port.state, app.color)),
            _ => base,
        };
        let text = words::cut(&text, *width).into_owned();
        buf.set_stringn(x, y, text, *width, style);
        x = x.saturating_add(narrow(*width) + 1);
    }
}

/// The reason; without one, facts that have no column.
fn why(port: &PortStatus, labelled: bool, processed: bool) -> String {
    let mut words = Vec::new();
    if !processed && let Some(process) = &port.process {
        words.push(words::process(process));
    }
    let reason = words::reason(port);
    if !reason.is_empty() {
        // The reason comes first, as the room may be small.
        words.insert(0, reason);
    } else if port.destination.is_some() {
        words.push(format!("to {}", port.called()));
    } else if !labelled {
        words.extend(port.label.clone());
    }
    if port.state == State::Forwarded && port.connections.now > 0 {
        words.push(words::conns(&port.connections));
    }
    if words.is_empty() {
        "-".to_owned()
    } else {
        words.join("  ")
    }
}

/// Converts a width or height that is known to fit a screen.
pub fn narrow(n: usize) -> u16 {
    u16::try_from(n).unwrap_or(u16::MAX)
}
