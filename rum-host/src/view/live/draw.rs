//! Draws the live view: header, banners, table or panel, events, keys. Pure: time and time zone
//! come in, and an unchanged state gives an unchanged frame.
//!
//! Ages would redraw an idle view every second, so times are clock times; only the loss of the
//! agent is counted in seconds.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};

use super::app::{App, Mode};
use super::header::{banners, bold, colored, counts, header, status};
use super::panel;
use crate::view::live::rows;
use crate::view::live::rows::narrow;
use crate::view::words;

/// A smaller screen shows one line only.
const SMALLEST: (u16, u16) = (60, 8);
/// Most lines of the log below the table.
const MAX_LOG: u16 = 8;

/// The areas of the screen.
#[derive(Debug, Clone, Copy)]
struct Parts {
    header: Rect,
    banner: Rect,
    body: Rect,
    /// Has no height if there is no room.
    log: Rect,
    footer: Rect,
}

impl Parts {
    /// The area of a panel.
    fn whole(&self) -> Rect {
        Rect {
            height: self.body.height + self.log.height,
            ..self.body
        }
    }
}

fn parts(area: Rect, banner: usize) -> Parts {
    let line = |y, height| Rect { y, height, ..area };
    let banner = narrow(banner).min(area.height.saturating_sub(6));
    // Includes one line for the log's title.
    let log = match ((area.height.saturating_sub(4)) / 4).min(MAX_LOG) {
        0 => 0,
        lines => lines + 1,
    };
    let body = area.height.saturating_sub(2 + banner + log);
    // A body without rows is useless.
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

/// How many table rows fit on a screen of `area`, and how far its panel can be scrolled.
pub fn room(app: &App, area: Rect, now: Timestamp, tz: &TimeZone) -> (usize, usize) {
    let parts = parts(area, banners(app, area.width, now).len());
    let rows = usize::from(parts.body.height.saturating_sub(1));
    let lines = panel(app, area.width, now, tz).map_or(0, |lines| lines.len());
    (
        rows,
        lines.saturating_sub(usize::from(parts.whole().height)),
    )
}

/// The panel that replaces table and log, if any.
fn panel(app: &App, width: u16, now: Timestamp, tz: &TimeZone) -> Option<Vec<Line<'static>>> {
    match &app.mode {
        Mode::Table | Mode::Filter => None,
        Mode::Help => Some(panel::help(app, width, now, tz)),
        Mode::Details(port) => Some(panel::details(app, port, width, now, tz)),
    }
}

/// Draws everything. `app` must have been settled for this area.
pub fn draw(app: &App, buf: &mut Buffer, now: Timestamp, tz: &TimeZone) {
    let area = buf.area;
    if area.width < SMALLEST.0 || area.height < SMALLEST.1 {
        if !area.is_empty() {
            let line = format!(
                "{} [{}] {}",
                words::fit(&app.name, 16),
                status(app),
                counts(app, true)
            );
            let line = words::fit(&line, usize::from(area.width));
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
    match panel(app, area.width, now, tz) {
        Some(lines) => panel::scrolled(&lines, app.scroll, parts.whole(), buf),
        None => {
            rows::draw(app, parts.body, buf, now, tz);
            if app.rows().is_empty() {
                let below = Rect {
                    y: parts.body.y + 1,
                    height: parts.body.height.saturating_sub(1),
                    ..parts.body
                };
                panel::scrolled(&panel::empty(app, area.width), 0, below, buf);
            }
            log(app, parts.log, buf, tz);
        }
    }
    footer(app, parts.footer, buf);
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
        let line = format!("{} {}", words::clock_ms(entry.at, tz), entry.text);
        let style = if entry.problem {
            colored(app, Color::Red)
        } else {
            Style::new()
        };
        buf.set_stringn(row.x, row.y, words::fit(&line, width), width, style);
    }
}

fn footer(app: &App, area: Rect, buf: &mut Buffer) {
    let width = usize::from(area.width);
    let put = |buf: &mut Buffer, text: &str, style| {
        buf.set_stringn(area.x, area.y, words::fit(text, width), width, style);
    };
    let found = || {
        let all = app.picture().known.ports();
        let all = all.filter(|p| app.all || !p.state.is_hidden()).count();
        format!("{} of {all}", app.rows().len())
    };
    if let Some(notice) = &app.notice {
        put(buf, notice, bold());
    } else if app.mode == Mode::Filter {
        let line = format!(
            "/{}_  {}  Enter keeps it  Esc clears it",
            app.filter,
            found()
        );
        put(buf, &line, bold());
    } else {
        let filter = if app.filter.is_empty() {
            None
        } else {
            Some(format!("/{}  {}", words::fit(&app.filter, 20), found()))
        };
        keys(app, filter, area, buf);
    }
}

/// The keys of the current mode, as many as fit; those that lead out always.
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
    } else if app.is_stale() && app.known().agent.is_some() {
        keys.insert(0, ("r", "retry now"));
    }
    if matches!(app.mode, Mode::Table) {
        keys.push(("s", "sort"));
    }
    let last = [("?", "help"), ("q", "quit")];
    let size = |key: &(&str, &str)| narrow(key.0.len() + key.1.len() + 3);
    let lead = filter.as_deref().map_or(0, |f| narrow(words::width(f)) + 2);
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
