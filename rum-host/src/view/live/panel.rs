//! The panels that replace the table: details of a port, help, and advice while nothing listens.
//! Pure.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};

use crate::status::model::{PortStatus, State};

use super::app::App;
use super::header::bold;
use crate::view::live::rows;
use crate::view::words;

/// Width of the column of names in the details.
const NAMES: usize = 13;
/// Most lines of one value.
const MAX_LINES: usize = 8;

const KEYS: [(&str, &str); 16] = [
    ("Up Down  j k", "select a port; the selection follows it"),
    ("PgUp PgDn", "a page up, down"),
    ("g G  Home End", "first, last"),
    ("Enter", "all about the selected port"),
    ("o", "open its URL in the browser"),
    ("y", "copy its host address (OSC 52)"),
    ("/", "filter by port, process, label, state"),
    ("s", "sort: problems, port, process, latest"),
    ("a", "hidden ports too (ignored, out of range)"),
    ("Space", "freeze the picture; rum goes on"),
    ("r", "try a lost agent, or look for rum up, at once"),
    ("Ctrl+L", "draw everything anew"),
    ("Ctrl+Z", "stop the view, `fg` goes on"),
    ("Esc", "back; never quits"),
    ("?", "this help"),
    ("q  Ctrl+C", "quit the view; rum up goes on"),
];

/// Draws `lines` from line `scroll` on. If more lines follow, the last visible one says so.
pub fn scrolled(lines: &[Line<'static>], scroll: usize, area: Rect, buf: &mut Buffer) {
    let height = usize::from(area.height);
    let goes_on = lines.len() > scroll + height;
    let lines = lines.iter().skip(scroll);
    for (i, (row, line)) in area.rows().zip(lines).enumerate() {
        if goes_on && i + 1 == height {
            buf.set_stringn(row.x, row.y, "  (PgDn: more)", row.width.into(), bold())
        } else {
            buf.set_line(row.x, row.y, line, row.width)
        };
    }
}

/// Help: keys, marks, and the rest of the state of this `rum up`.
pub fn help(app: &App, width: u16, now: Timestamp, tz: &TimeZone) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    lines.extend(KEYS.iter().map(|(key, what)| {
        Line::from(vec![
            Span::styled(format!("  {key:<15}"), bold()),
            (*what).into(),
        ])
    }));
    let mut marks = vec![Span::raw("  Marks: ")];
    for (states, word) in [
        (State::Conflict, "problem"),
        (State::Pending, "pending"),
        (State::Draining, "draining"),
        (State::Ignored, "not forwarded"),
        (State::Lost, "nobody knows"),
    ] {
        let style = rows::style(states, app.color).patch(bold());
        marks.push(Span::styled(rows::mark(states).to_string(), style));
        marks.push(format!(" {word}   ").into());
    }
    lines.push(Line::from(marks));
    let columns = usize::from(width).saturating_sub(4);
    for text in about(app, now, tz) {
        let wrapped = words::wrap(&text, columns, MAX_LINES).into_iter();
        lines.extend(wrapped.map(|line| Line::from(format!("  {line}"))));
    }
    lines
}

/// One line each for agent and configuration.
fn about(app: &App, now: Timestamp, tz: &TimeZone) -> Vec<String> {
    let known = app.known();
    let mut lines = Vec::new();
    if let Some(agent) = &known.agent {
        let mut line = "Agent".to_owned();
        for (word, value) in [(" ", &agent.version), (" on ", &agent.hostname)] {
            if let Some(value) = value {
                line.push_str(&format!("{word}{value}"));
            }
        }
        line.push_str(&format!(" since {}", words::since(&agent.since, now, tz)));
        if let Some(source) = &agent.source {
            line.push_str(&format!(", events from {source}"));
        }
        line.push_str(&format!(", {} repaired", agent.repaired));
        lines.push(line);
    }
    if let Some(config) = &known.config {
        let file = config.file.as_deref().unwrap_or("the command line");
        let range = config.range.as_deref().unwrap_or("no range");
        let loaded = words::since(&config.loaded, now, tz);
        lines.push(format!("Forwards {range}, from {file} read {loaded}"));
    }
    lines
}

/// The text shown instead of rows.
pub fn empty(app: &App, width: u16) -> Vec<Line<'static>> {
    let known = &app.picture().known;
    let name = words::shown(&app.name);
    let hidden = known.ports().filter(|p| p.state.is_hidden()).count();
    let mut said = Vec::new();
    if !app.filter.is_empty() {
        said.push(format!("No port matches `{}`.", app.filter));
        said.push("Esc shows all again.".to_owned());
    } else if known.agent.is_none() {
        said.push(format!("Asking rum up for the ports of \"{name}\" ..."));
    } else {
        let range = known.config.as_ref().and_then(|c| c.range.as_ref());
        said.push(match range {
            Some(range) => format!("Nothing in \"{name}\" is listening yet. Watching tcp {range}."),
            None => format!("Nothing in \"{name}\" is listening yet."),
        });
        said.push(String::new());
        // The first port of the range: `5000-6000,8080`.
        let port = range
            .and_then(|r| r.split(['-', ',']).next())
            .filter(|p| p.parse::<u16>().is_ok())
            .unwrap_or("8000");
        let server = format!("python3 -m http.server {port}");
        said.push(if app.has_exec {
            format!("Try:  rum exec --name {name} -- {server}")
        } else {
            format!("Try, in the guest:  {server}")
        });
        if hidden > 0 && !app.all {
            said.push(format!(
                "{hidden} hidden (ignored or out of range): a shows them."
            ));
        }
    }
    let columns = usize::from(width).saturating_sub(4);
    let mut lines = vec![Line::default()];
    for text in said {
        let wrapped = words::wrap(&text, columns, MAX_LINES).into_iter();
        lines.extend(wrapped.map(|line| Line::from(format!("  {line}"))));
    }
    lines
}

/// Everything known about a port, and its events.
pub fn details(
    app: &App,
    port: &PortStatus,
    width: u16,
    now: Timestamp,
    tz: &TimeZone,
) -> Vec<Line<'static>> {
    let gone = app.picture().known.port(port).is_none();
    let columns = usize::from(width).saturating_sub(NAMES + 3);
    let state = rows::style(port.state, app.color).patch(bold());
    let mut title = vec![
        Span::styled(
            format!("  {}/{}  ", port.called(), words::fit(&port.proto, 8)),
            bold(),
        ),
        Span::styled(port.state.as_str(), state),
    ];
    if gone {
        title.push(" (this was its last state: it is closed)".into());
    } else if app.is_stale() {
        title.push(" (nobody knows whether that is still so)".into());
    }
    let mut lines = vec![Line::default(), Line::from(title), Line::default()];
    for (name, value) in facts(port, now, tz) {
        for (i, line) in words::wrap(&value, columns, MAX_LINES)
            .into_iter()
            .enumerate()
        {
            let name = if i == 0 { name } else { "" };
            let name = Span::styled(format!("  {name:<NAMES$}"), bold());
            lines.push(Line::from(vec![name, line.into()]));
        }
    }
    let log = app.picture().log.entries();
    let mut log = log
        .filter(|entry| entry.id.as_ref() == Some(&port.id))
        .peekable();
    if log.peek().is_some() {
        lines.push(Line::default());
    }
    for entry in log {
        let line = format!("  {} {}", words::clock_ms(entry.at, tz), entry.text);
        lines.push(Line::from(words::fit(&line, usize::from(width))));
    }
    lines
}

fn facts(port: &PortStatus, now: Timestamp, tz: &TimeZone) -> Vec<(&'static str, String)> {
    let mut facts = Vec::new();
    if let Some(reason) = &port.reason {
        facts.push(("Reason", reason.message.clone()));
        if let Some(hint) = &reason.hint {
            facts.push(("Hint", hint.clone()));
        }
        if let Some(holder) = &reason.holder {
            facts.push(("Held by", format!("{} on the host", words::process(holder))));
        }
    }
    let mut state = format!(
        "{} since {}",
        port.state,
        words::since(&port.since, now, tz)
    );
    if let Some(before) = port.previous_state {
        state.push_str(&format!(", before: {before}"));
    }
    facts.push(("State", state));
    let guest = match port.guest_addresses.as_slice() {
        _ if port.destination.is_some() => port.called(),
        [] => format!("port {}", port.port),
        addresses => format!("port {} on {}", port.port, addresses.join(", ")),
    };
    facts.push(("Guest", guest));
    if let Some(host) = &port.host {
        facts.push(("Host", host.clone()));
    }
    if let Some(url) = &port.url {
        facts.push(("URL", url.clone()));
    }
    let mut process = port
        .process
        .as_ref()
        .map(words::process)
        .unwrap_or_default();
    if let Some(uid) = port.uid {
        process.push_str(&format!(" uid {uid}"));
    }
    if !process.is_empty() {
        facts.push(("Process", process.trim_start().to_owned()));
    }
    if let Some(label) = &port.label {
        facts.push(("Label", label.clone()));
    }
    let c = &port.connections;
    facts.push((
        "Connections",
        format!("{} open, {} in all, {} refused", c.now, c.total, c.refused),
    ));
    facts.push((
        "Bytes",
        format!(
            "{} to the guest, {} to the host",
            words::bytes(port.bytes.to_guest),
            words::bytes(port.bytes.to_host)
        ),
    ));
    // Each number is from another clock, so they are never added.
    if let Some(us) = port.detected_us {
        facts.push((
            "Agent",
            format!("saw it {} after the kernel's event", words::latency(us)),
        ));
    }
    if let Some(us) = port.forwarded_us {
        facts.push((
            "Forward",
            format!("bound {} after the agent's message", words::latency(us)),
        ));
    }
    facts.push(("Id", port.id.clone()));
    facts
}
