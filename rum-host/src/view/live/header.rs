//! The top of the live view: guest, agent and counts, and banners for problems that concern all
//! rows. Pure.
//!
//! Invariant: whatever makes the rows doubtful is shown here, even in a frozen view.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};

use crate::status::model::{AgentState, State};

use super::app::App;
use crate::view::live::rows::narrow;
use crate::view::words;

/// Most lines of one banner.
const MAX_BANNER: usize = 2;

/// Emphasis that works without colour.
pub fn bold() -> Style {
    Style::new().add_modifier(Modifier::BOLD)
}

/// One of the terminal's 16 colours, if colours are on.
pub fn colored(app: &App, color: Color) -> Style {
    if app.color {
        Style::new().fg(color)
    } else {
        Style::new()
    }
}

/// One word for how current the view is.
pub fn status(app: &App) -> &'static str {
    match app.known().agent.as_ref().map(|agent| agent.state) {
        _ if app.gone.is_some() => "lost",
        Some(AgentState::Lost) => "agent lost",
        Some(AgentState::Awaited) | None => "waiting",
        Some(AgentState::Connected) => "live",
    }
}

/// `2 forwarded  1 conflict  2 hidden`.
pub fn counts(app: &App, short: bool) -> String {
    let known = &app.picture().known;
    let count = |wanted: &dyn Fn(State) -> bool| known.ports().filter(|p| wanted(p.state)).count();
    let mut out = vec![format!("{} forwarded", count(&|s| s == State::Forwarded))];
    let mut add = |n: usize, what: &str| {
        if n > 0 {
            out.push(format!("{n} {what}"));
        }
    };
    if short {
        let problems = count(&State::is_problem);
        add(problems, if problems == 1 { "problem" } else { "problems" });
    } else {
        for state in State::ALL {
            if state != State::Forwarded && !state.is_hidden() {
                add(count(&|s| s == state), state.as_str());
            }
        }
    }
    add(
        count(&State::is_hidden),
        if app.all { "unused" } else { "hidden" },
    );
    out.join(if short { ", " } else { "  " })
}

/// Draws the first line, with as much as fits.
pub fn header(app: &App, area: Rect, buf: &mut Buffer, now: Timestamp, tz: &TimeZone) {
    let mut tags = String::new();
    if app.is_frozen() {
        tags.push_str("[frozen] ");
    }
    tags.push_str(&format!("[{}]", status(app)));
    let room = usize::from(area.width).saturating_sub(words::width(&tags) + 3);
    let line = (0..5)
        .map(|less| header_line(app, less, now, tz))
        .find(|line| line.width() <= room)
        .unwrap_or_else(|| header_line(app, 5, now, tz));
    buf.set_line(area.x, area.y, &line, narrow(room));
    let x = area.right().saturating_sub(narrow(words::width(&tags) + 1));
    let style = match (app.is_stale(), app.is_frozen()) {
        (true, _) => colored(app, Color::Red).patch(bold()),
        (false, true) => colored(app, Color::Cyan).patch(bold()),
        (false, false) => colored(app, Color::Green),
    };
    buf.set_stringn(x, area.y, tags, usize::from(area.width), style);
}

fn header_line(app: &App, less: u8, now: Timestamp, tz: &TimeZone) -> Line<'static> {
    let name = words::fit(&app.name, if less < 3 { 64 } else { 16 });
    let mut spans = vec![Span::styled(" rum  ", bold()), Span::styled(name, bold())];
    if let Some(agent) = app.known().agent.as_ref().filter(|_| less < 5) {
        let (word, color) = match agent.state {
            AgentState::Connected => ("connected", Color::Green),
            AgentState::Awaited => ("awaited", Color::Magenta),
            AgentState::Lost => ("LOST", Color::Red),
        };
        let style = match app.gone {
            Some(_) => Style::new().add_modifier(Modifier::DIM),
            None => colored(app, color),
        };
        spans.push("  agent: ".into());
        spans.push(Span::styled(word, style));
        if less < 2 {
            let since = words::since(&agent.since, now, tz);
            let since = since
                .get(..5)
                .filter(|_| since.contains(':'))
                .unwrap_or(&since);
            spans.push(format!(" since {since}").into());
        }
        if let Some(source) = agent.source.as_ref().filter(|_| less < 3) {
            let source = words::fit(source, 16);
            spans.push(match less {
                0 => format!("  source: {source}").into(),
                _ => format!(" ({source})").into(),
            });
        }
        if agent.repaired > 0 && less < 2 {
            spans.push(format!("  {} repaired", agent.repaired).into());
        }
    }
    spans.push("   ".into());
    spans.push(counts(app, less > 3).into());
    Line::from(spans)
}

/// The banners above the table, for problems that concern all rows.
pub fn banners(app: &App, width: u16, now: Timestamp) -> Vec<Line<'static>> {
    let mut out = Vec::new();
    let mut add = |text: String, style: Style| {
        let columns = usize::from(width).saturating_sub(2);
        let lines = words::wrap(&text, columns, MAX_BANNER).into_iter();
        out.extend(lines.map(|line| Line::styled(format!(" {line}"), style)));
    };
    let alarm = colored(app, Color::Red).patch(bold());
    if let Some(reason) = &app.gone {
        add(
            format!("{reason}; waiting for it to come back (q quits)"),
            alarm,
        );
        return out;
    }
    let known = app.known();
    if let Some(agent) = known
        .agent
        .as_ref()
        .filter(|a| a.state != AgentState::Connected)
    {
        let since = agent.since.parse().unwrap_or(app.agent_at);
        let seconds = now.duration_since(since).as_secs();
        let mut text = match agent.state {
            AgentState::Lost => format!("AGENT LOST {}", words::age(seconds)),
            _ => format!("Waiting for the agent {}", words::age(seconds)),
        };
        if let Some(reason) = &agent.reason {
            text.push_str(&format!(": {reason}"));
        }
        if let Some(ms) = agent.retry_ms {
            let left = i128::from(ms) - now.duration_since(app.agent_at).as_millis();
            let left = (left + 999).div_euclid(1000);
            let attempt = agent.attempts.saturating_add(1);
            text.push_str(&match left {
                1.. => format!("  retry {attempt} in {left}s (r now)"),
                _ => format!("  retry {attempt} now"),
            });
        }
        add(text, alarm);
        if agent.state == AgentState::Lost {
            let grace = i64::try_from(agent.grace_ms / 1000).unwrap_or(i64::MAX);
            let text = if seconds < grace {
                format!(
                    "Forwards stay for {grace} s, new connections wait; those to a VM may break"
                )
            } else {
                "Automatic forwards are closed until the agent is back".to_owned()
            };
            add(text, Style::new());
        }
    }
    if let Some(error) = known.config.as_ref().and_then(|c| c.error.as_ref()) {
        add(
            format!("! configuration not in force: {error}"),
            colored(app, Color::Yellow).patch(bold()),
        );
    }
    out
}
