//! Draws the live view: header, banners, table or a panel, what happened, keys. Pure: moment and
//! time zone come in, and an unchanged state gives an unchanged frame.
//!
//! Ages would make an idle view redraw itself every second, so times are those of the clock on
//! the wall; only a lost agent is counted in seconds.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};

use crate::control::model::{AgentState, State};
use crate::supervisor::GRACE;

use super::app::{App, Mode};
use super::table::narrow;
use super::{panel, table, text};

/// Less than this is one line.
const SMALLEST: (u16, u16) = (60, 8);
/// Most lines of the log below the table.
const MAX_LOG: u16 = 8;
/// Most lines of one banner.
const MAX_BANNER: usize = 2;

/// Where things are.
#[derive(Debug, Clone, Copy)]
struct Parts {
    header: Rect,
    banner: Rect,
    body: Rect,
    /// Of no height where there is no room.
    log: Rect,
    footer: Rect,
}

fn parts(area: Rect, banner: usize) -> Parts {
    let line = |y, height| Rect {
        y,
        height,
        ..area
    };
    let banner = narrow(banner).min(area.height.saturating_sub(6));
    // One line for the title of the log.
    let log = match ((area.height.saturating_sub(4)) / 4).min(MAX_LOG) {
        0 => 0,
        lines => lines + 1,
    };
    let body = area.height.saturating_sub(2 + banner + log);
    // A body without rows is of no use.
    let (body, log) = match body {
        0..3 => (body + log, 0),
        _ => (body, log),
    };
    let y = area.y + 1;
    Parts {
        header: line(area.y, 1),
        banner: line(y, banner),
        body: line(y + banner, body),
        log: line(y + banner + body, log),
        footer: line(y + banner + body + log, 1),
    }
}

/// How many rows of the table a screen of `area` has room for.
pub fn table_height(app: &App, area: Rect, now: Timestamp) -> usize {
    let body = parts(area, banners(app, area.width, now).len()).body;
    usize::from(body.height.saturating_sub(1))
}

/// Draws everything. `app` must have been settled for this area.
pub fn draw(app: &App, buf: &mut Buffer, now: Timestamp, tz: &TimeZone) {
    let area = buf.area;
    if area.width < SMALLEST.0 || area.height < SMALLEST.1 {
        if !area.is_empty() {
            let line = format!(
                "{}: {} [{}]",
                text::fit(&app.name, 16),
                counts(app, true),
                status(app)
            );
            let line = text::fit(&line, usize::from(area.width));
            buf.set_stringn(area.x, area.y, line, usize::from(area.width), Style::new());
        }
        return;
    }
    let banners = banners(app, area.width, now);
    let parts = parts(area, banners.len());
    header(app, parts.header, buf, now, tz);
    for (row, line) in parts.banner.rows().zip(&banners) {
        buf.set_line(row.x, row.y, line, row.width);
    }
    let whole = Rect {
        height: parts.body.height + parts.log.height,
        ..parts.body
    };
    match &app.mode {
        Mode::Help => panel::scrolled(panel::help(app, whole.width), app.scroll, whole, buf),
        Mode::Details(port) => {
            let lines = panel::details(app, port, whole.width, now, tz);
            panel::scrolled(lines, app.scroll, whole, buf);
        }
        Mode::Table | Mode::Filter => {
            table::draw(app, parts.body, buf, now, tz);
            if app.rows().is_empty() {
                let inner = Rect {
                    y: parts.body.y + 1,
                    height: parts.body.height.saturating_sub(1),
                    ..parts.body
                };
                panel::scrolled(panel::empty(app, whole.width), 0, inner, buf);
            }
            log(app, parts.log, buf, tz);
        }
    }
    footer(app, parts.footer, buf);
}

fn bold() -> Style {
    Style::new().add_modifier(Modifier::BOLD)
}

fn colored(app: &App, color: Color) -> Style {
    match app.color {
        true => Style::new().fg(color),
        false => Style::new(),
    }
}

/// One word on whether what is seen is the case.
fn status(app: &App) -> &'static str {
    match app.known().agent.as_ref().map(|agent| agent.state) {
        _ if app.gone.is_some() => "lost",
        Some(AgentState::Lost) => "agent lost",
        Some(AgentState::Awaited) | None => "waiting",
        Some(AgentState::Connected) => "live",
    }
}

/// `2 forwarded  1 conflict  2 hidden`.
fn counts(app: &App, short: bool) -> String {
    let known = &app.picture().known;
    let count = |wanted: &dyn Fn(State) -> bool| known.ports().filter(|p| wanted(p.state)).count();
    let mut out = vec![format!(
        "{} forwarded",
        count(&|s| s == State::Forwarded)
    )];
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
    add(count(&State::is_hidden), if app.all { "unused" } else { "hidden" });
    out.join(if short { ", " } else { "  " })
}

fn header(app: &App, area: Rect, buf: &mut Buffer, now: Timestamp, tz: &TimeZone) {
    let mut tags = String::new();
    if app.is_frozen() {
        tags.push_str("[frozen] ");
    }
    tags.push_str(&format!("[{}]", status(app)));
    let room = usize::from(area.width).saturating_sub(text::width(&tags) + 3);
    // From everything to the least.
    let line = (0..5)
        .map(|less| header_line(app, less, now, tz))
        .find(|line| line.width() <= room)
        .unwrap_or_else(|| header_line(app, 5, now, tz));
    buf.set_line(area.x, area.y, &line, narrow(room));
    let x = area.right().saturating_sub(narrow(text::width(&tags) + 1));
    let style = match (app.is_stale(), app.is_frozen()) {
        (true, _) => colored(app, Color::Red).patch(bold()),
        (false, true) => colored(app, Color::Cyan).patch(bold()),
        (false, false) => colored(app, Color::Green),
    };
    buf.set_stringn(x, area.y, tags, usize::from(area.width), style);
}

fn header_line(app: &App, less: u8, now: Timestamp, tz: &TimeZone) -> Line<'static> {
    let name = text::fit(&app.name, if less < 3 { 64 } else { 16 });
    let mut spans = vec![Span::styled(" rum  ", bold()), Span::styled(name, bold())];
    if let Some(agent) = app.known().agent.as_ref().filter(|_| less < 5) {
        let (word, color) = match agent.state {
            AgentState::Connected => ("connected", Color::Green),
            AgentState::Awaited => ("awaited", Color::Yellow),
            AgentState::Lost => ("LOST", Color::Red),
        };
        let style = match app.gone {
            Some(_) => Style::new().add_modifier(Modifier::DIM),
            None => colored(app, color),
        };
        spans.push("  agent: ".into());
        spans.push(Span::styled(word, style));
        if less < 2 {
            let since = text::since(&agent.since, now, tz);
            let since = since.get(..5).filter(|_| since.contains(':')).unwrap_or(&since);
            spans.push(format!(" since {since}").into());
        }
        if let Some(source) = agent.source.as_ref().filter(|_| less < 3) {
            let source = text::fit(source, 16);
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

/// What is the matter with everything, above the table.
fn banners(app: &App, width: u16, now: Timestamp) -> Vec<Line<'static>> {
    let mut out = Vec::new();
    let mut add = |text: String, style: Style| {
        let columns = usize::from(width).saturating_sub(2);
        let lines = text::wrap(&text, columns, MAX_BANNER).into_iter();
        out.extend(lines.map(|line| Line::styled(format!(" {line}"), style)));
    };
    let alarm = colored(app, Color::Red).patch(bold());
    if let Some(reason) = &app.gone {
        add(
            format!("rum up ended: {reason}; waiting for it to come back (q quits)"),
            alarm,
        );
        return out;
    }
    let known = app.known();
    if let Some(agent) = known.agent.as_ref().filter(|a| a.state != AgentState::Connected) {
        let since = agent.since.parse().unwrap_or(app.agent_at);
        let seconds = now.duration_since(since).as_secs();
        let mut text = match agent.state {
            AgentState::Lost => format!("AGENT LOST {}", text::age(seconds)),
            _ => format!("Waiting for the agent {}", text::age(seconds)),
        };
        if let Some(reason) = &agent.reason {
            text.push_str(&format!(": {reason}"));
        }
        if let Some(ms) = agent.retry_ms {
            let left = i128::from(ms) - now.duration_since(app.agent_at).as_millis();
            let left = (left + 999).div_euclid(1000);
            let attempt = agent.attempts.saturating_add(1);
            text.push_str(&match left {
                1.. => format!("  retry {attempt} in {left}s"),
                _ => format!("  retry {attempt} now"),
            });
        }
        add(text, alarm);
        if agent.state == AgentState::Lost {
            let grace = i64::try_from(GRACE.as_secs()).unwrap_or(i64::MAX);
            let text = match seconds < grace {
                true => format!(
                    "Host ports stay bound for {grace} s; new connections wait for the agent, \
                     open ones may break"
                ),
                false => "Automatic forwards are closed until the agent is back".to_owned(),
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

fn log(app: &App, area: Rect, buf: &mut Buffer, tz: &TimeZone) {
    let mut rows = area.rows();
    let Some(title) = rows.next() else {
        return;
    };
    let rule = format!("-- events {}", "-".repeat(usize::from(area.width)));
    let dim = Style::new().add_modifier(Modifier::DIM);
    buf.set_stringn(title.x, title.y, rule, usize::from(title.width), dim);
    for (row, entry) in rows.zip(app.picture().log.entries()) {
        let width = usize::from(row.width);
        let line = format!("{} {}", text::clock_ms(entry.at, tz), entry.text);
        let style = match entry.problem {
            true => colored(app, Color::Red),
            false => Style::new(),
        };
        buf.set_stringn(row.x, row.y, text::fit(&line, width), width, style);
    }
}

fn footer(app: &App, area: Rect, buf: &mut Buffer) {
    let width = usize::from(area.width);
    let put = |buf: &mut Buffer, text: &str, style| {
        buf.set_stringn(area.x, area.y, text::fit(text, width), width, style);
    };
    let found = || {
        let all = app.picture().known.ports();
        let all = all.filter(|p| app.all || !p.state.is_hidden()).count();
        format!("{} of {all}", app.rows().len())
    };
    if let Some(notice) = &app.notice {
        put(buf, notice, bold());
    } else if app.mode == Mode::Filter {
        let line = format!("/{}_  {}  Enter keeps it  Esc clears it", app.filter, found());
        put(buf, &line, bold());
    } else {
        let filter = match app.filter.is_empty() {
            true => None,
            false => Some(format!("/{}  {}", text::fit(&app.filter, 20), found())),
        };
        keys(app, filter, area, buf);
    }
}

/// The keys that matter here, as many as there is room for; those that lead out always.
fn keys(app: &App, filter: Option<String>, area: Rect, buf: &mut Buffer) {
    let mut keys: Vec<(&str, &str)> = match app.mode {
        Mode::Help => vec![("Esc", "back"), ("j/k", "scroll")],
        Mode::Details(_) => vec![
            ("Esc", "back"),
            ("o", "open"),
            ("y", "copy"),
            ("j/k", "next port"),
            ("PgDn", "scroll"),
        ],
        _ => vec![("Enter", "details"), ("o", "open"), ("y", "copy")],
    };
    if matches!(app.mode, Mode::Table) {
        keys.push(match filter {
            Some(_) => ("Esc", "all again"),
            None => ("/", "filter"),
        });
        keys.push(("a", if app.all { "fewer" } else { "all" }));
    }
    keys.insert(
        keys.len().min(4),
        ("Space", if app.is_frozen() { "go on" } else { "freeze" }),
    );
    if app.gone.is_some() {
        keys.insert(0, ("r", "look now"));
    }
    if matches!(app.mode, Mode::Table) {
        keys.push(("s", "sort"));
    }
    let last = [("?", "help"), ("q", "quit")];
    let size = |key: &(&str, &str)| narrow(key.0.len() + key.1.len() + 3);
    let lead = filter.as_deref().map_or(0, |f| narrow(text::width(f)) + 2);
    let mut room = area
        .width
        .saturating_sub(lead + last.iter().map(size).sum::<u16>());
    keys.retain(|key| {
        let fits = size(key) <= room;
        room = room.saturating_sub(if fits { size(key) } else { 0 });
        fits
    });
    let mut spans = Vec::new();
    if let Some(filter) = filter {
        spans.push(Span::styled(filter, bold()));
        spans.push("  ".into());
    }
    for (key, what) in keys.into_iter().chain(last) {
        spans.push(Span::styled(key, bold()));
        spans.push(format!(" {what}  ").into());
    }
    buf.set_line(area.x, area.y, &Line::from(spans), area.width);
}
