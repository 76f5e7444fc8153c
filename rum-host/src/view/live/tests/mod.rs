//! Snapshots of frames, and keys.

#![allow(clippy::unwrap_used)]

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use jiff::tz::TimeZone;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Color;

use crate::status::model::{AgentState, AgentStatus, Bytes, Op, PortStatus, State, Update, What};

use super::app::{App, Mode, Redraw};
use super::keys::Effect;
use super::terminal::Screen;
use crate::view::words;
use samples::*;

mod bounds;
mod samples;

fn key(app: &mut App, code: KeyCode) -> Effect {
    app.key(KeyEvent::new(code, KeyModifiers::NONE))
}

fn keys(app: &mut App, text: &str) {
    for c in text.chars() {
        key(app, KeyCode::Char(c));
    }
}

fn buffer(app: &mut App, width: u16, height: u16) -> Buffer {
    let mut screen = Screen::new(TestBackend::new(width, height));
    let area = Rect::new(0, 0, width, height);
    screen.paint(app, area, now(), &TimeZone::UTC).unwrap();
    screen.backend_mut().buffer().clone()
}

fn frame(app: &mut App, width: u16, height: u16) -> String {
    let buffer = buffer(app, width, height);
    let rows = buffer.content().chunks(usize::from(width).max(1));
    let line = |row: &[ratatui::buffer::Cell]| {
        let mut line = String::new();
        let mut skip = 0;
        for cell in row {
            if skip == 0 {
                line.push_str(cell.symbol());
                skip = words::width(cell.symbol());
            }
            skip = skip.saturating_sub(1);
        }
        line.trim_end().to_owned()
    };
    rows.map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn usual_frames() {
    for (width, height) in [(80, 24), (120, 30), (140, 12), (60, 10), (40, 5), (60, 8)] {
        let text = frame(&mut usual(), width, height);
        insta::assert_snapshot!(format!("usual-{width}x{height}"), text);
    }
    // No size causes a panic.
    for width in [0, 1, 2, 59, 60, 61, 75, 76, 300] {
        for height in [0, 1, 2, 7, 8, 9, 100] {
            for mode in ["", "/x", "?", "\n"] {
                let mut app = usual();
                frame(&mut app, width, height);
                keys(&mut app, mode.trim());
                key(&mut app, KeyCode::PageDown);
                if mode == "\n" {
                    key(&mut app, KeyCode::Enter);
                }
                frame(&mut app, width, height);
            }
        }
    }
}

#[test]
fn while_nothing_listens() {
    let mut app = App::new("dev", true, false, true);
    insta::assert_snapshot!("asking", frame(&mut app, 80, 10));
    app.update(&snapshot(vec![]), now());
    insta::assert_snapshot!("empty", frame(&mut app, 80, 14));
    let mut app = App::new("vm", false, false, true);
    app.update(&snapshot(vec![port(22, State::OutOfRange)]), now());
    insta::assert_snapshot!("empty-vm", frame(&mut app, 60, 14));
}

#[test]
fn an_agent_that_is_lost_is_counted_in_seconds() {
    let mut app = usual();
    assert_eq!(app.tick(now()), None, "nothing is counted");
    let update = event("09:14:04", What::Agent(lost_agent()));
    assert_eq!(app.update(&update, now()), Redraw::Soon);
    insta::assert_snapshot!("agent-lost", frame(&mut app, 80, 24));
    assert_eq!(key(&mut app, KeyCode::Char('r')), Effect::Retry);
    let tick = app.tick("2026-11-23T09:14:10.250Z".parse().unwrap());
    assert_eq!(tick.unwrap().as_millis(), 750, "until the next full second");
    let awaited = AgentStatus {
        state: AgentState::Awaited,
        source: None,
        ..lost_agent()
    };
    app.update(&event("09:14:05", What::Agent(awaited)), now());
    insta::assert_snapshot!("agent-awaited", frame(&mut app, 100, 12));
    app.update(
        &event("09:14:06", What::Agent(agent(AgentState::Connected))),
        now(),
    );
    assert!(!app.is_stale());
}

#[test]
fn the_agents_loss_is_one_line_however_many_ports() {
    let mut app = usual();
    let lines = |app: &App| app.picture().log.entries().count();
    let before = lines(&app);
    app.update(&event("09:14:04", What::Agent(lost_agent())), now());
    let lost = PortStatus {
        previous_state: Some(State::Forwarded),
        ..because("agent-lost", "the agent is lost", port(3000, State::Lost))
    };
    app.update(&changed("09:14:04", lost.clone()), now());
    app.update(&changed("09:14:05", forwarded(3000)), now());
    assert_eq!(lines(&app), before + 1);
    // A real change meanwhile has its own line.
    app.update(&changed("09:14:06", lost), now());
    app.update(&changed("09:14:07", port(3000, State::Conflict)), now());
    let last = app.picture().log.entries().next().unwrap();
    assert_eq!(last.text, "3000 lost -> conflict");
}

#[test]
fn rum_that_is_gone_is_said_and_awaited() {
    let mut app = usual();
    let bye = event("09:14:09", What::Bye("ended by SIGTERM".into()));
    assert_eq!(app.update(&bye, now()), Redraw::Soon);
    app.lost("the connection was closed", now());
    let text = frame(&mut app, 80, 16);
    insta::assert_snapshot!("gone", text);
    assert_eq!(key(&mut app, KeyCode::Char('r')), Effect::Look);
    assert!(app.is_stale());
    app.update(&snapshot(vec![forwarded(3000)]), now());
    let text = frame(&mut app, 80, 16);
    assert!(
        text.contains("rum up is back") && text.contains("[live]"),
        "{text}"
    );
    // Without a goodbye; then the same rum is found again.
    app.lost("killed", now());
    assert!(frame(&mut app, 80, 16).contains("rum up does not answer: killed; waiting"));
    app.update(&Update::Events(vec![]), now());
    assert!(!app.is_stale());
}

#[test]
fn filter() {
    let mut app = usual();
    keys(&mut app, "/NOdq");
    assert!(frame(&mut app, 80, 12).contains("No port matches"));
    key(&mut app, KeyCode::Backspace);
    insta::assert_snapshot!("filter-typed", frame(&mut app, 80, 12));
    key(&mut app, KeyCode::Enter);
    insta::assert_snapshot!("filter", frame(&mut app, 80, 12));
    assert_eq!(key(&mut app, KeyCode::Esc), Effect::None);
    assert_eq!(app.rows().len(), 3);
    for (needle, want) in [
        ("543", 5432),
        ("conflict", 5432),
        ("DB", 5432),
        ("drain", 8080),
    ] {
        keys(&mut app, "/");
        app.paste(&format!("{needle}\n"));
        let found: Vec<_> = app.rows().iter().map(|p| p.port).collect();
        assert_eq!(found, [want], "{needle}");
        key(&mut app, KeyCode::Esc);
    }
    app.paste("q");
    assert_eq!(app.filter, "", "pasted keys do nothing elsewhere");
}

#[test]
fn help_and_details() {
    let mut app = usual();
    keys(&mut app, "?");
    insta::assert_snapshot!("help", frame(&mut app, 80, 24));
    key(&mut app, KeyCode::Down);
    insta::assert_snapshot!("help-60x10", frame(&mut app, 60, 10));
    key(&mut app, KeyCode::Esc);
    key(&mut app, KeyCode::Enter);
    insta::assert_snapshot!("details-conflict", frame(&mut app, 80, 24));
    key(&mut app, KeyCode::Down);
    insta::assert_snapshot!("details-forwarded", frame(&mut app, 80, 24));
    let (op, port) = (Op::Removed, forwarded(3000));
    app.update(&event("09:14:08.5", What::Port { op, port }), now());
    insta::assert_snapshot!("details-gone", frame(&mut app, 80, 24));
    key(&mut app, KeyCode::Esc);
    assert_eq!(app.mode, Mode::Table);
    assert_eq!(key(&mut app, KeyCode::Esc), Effect::None, "never quits");
}

#[test]
fn frozen_is_the_picture_not_the_truth() {
    let mut app = usual();
    keys(&mut app, " ");
    let before = frame(&mut app, 80, 14);
    insta::assert_snapshot!("frozen", before);
    assert_eq!(
        app.update(&changed("09:14:09", port(5432, State::Forwarded)), now()),
        Redraw::No
    );
    assert_eq!(frame(&mut app, 80, 14), before);
    // Whatever makes all rows doubtful is shown nevertheless.
    app.update(&event("09:14:04", What::Agent(lost_agent())), now());
    let text = frame(&mut app, 80, 14);
    assert!(
        text.contains("AGENT LOST") && text.contains("[frozen] [agent lost]"),
        "{text}"
    );
    keys(&mut app, " ");
    assert!(frame(&mut app, 80, 14).contains("conflict -> forwarded"));
}

#[test]
fn without_colour_everything_is_still_there() {
    let mut app = usual();
    app.color = false;
    app.update(&event("09:14:04", What::Agent(lost_agent())), now());
    for mode in ["", "?"] {
        keys(&mut app, mode);
        let buffer = buffer(&mut app, 120, 30);
        let plain = |c: &ratatui::buffer::Cell| c.fg == Color::Reset && c.bg == Color::Reset;
        assert!(buffer.content().iter().all(plain));
    }
    let (mut with, mut without) = (usual(), usual());
    without.color = false;
    assert_eq!(frame(&mut with, 80, 24), frame(&mut without, 80, 24));
}

#[test]
fn only_colours_that_a_theme_decides_on() {
    let mut app = usual();
    for part in ["", "?", "?", "a"] {
        keys(&mut app, part);
        for cell in buffer(&mut app, 120, 30).content() {
            for color in [cell.fg, cell.bg] {
                assert!(!matches!(color, Color::Rgb(..) | Color::Indexed(_)));
            }
            assert_eq!(cell.bg, Color::Reset, "the background stays the theme's");
        }
    }
}

#[test]
fn the_selection_follows_its_port() {
    let mut app = App::new("dev", true, false, true);
    app.update(&snapshot(vec![forwarded(3000), forwarded(4000)]), now());
    frame(&mut app, 80, 24);
    keys(&mut app, "j");
    for (number, state) in [(80, State::Forwarded), (3500, State::Conflict)] {
        let (op, port) = (Op::Added, port(number, state));
        app.update(&event("09:14:05", What::Port { op, port }), now());
    }
    let text = frame(&mut app, 80, 24);
    assert!(text.contains("> 4000"), "{text}");
    keys(&mut app, "s");
    assert!(frame(&mut app, 80, 24).contains("> 4000"), "in every order");
}

#[test]
fn keys_have_their_effects() {
    let mut app = usual();
    frame(&mut app, 80, 24);
    assert_eq!(key(&mut app, KeyCode::Char('o')), Effect::None);
    assert!(frame(&mut app, 80, 24).contains("nothing to open"));
    assert_eq!(key(&mut app, KeyCode::Char('y')), Effect::None);
    keys(&mut app, "j");
    let url = "http://127.0.0.1:3000".to_owned();
    assert_eq!(key(&mut app, KeyCode::Char('o')), Effect::Open(url));
    let host = "127.0.0.1:3000".to_owned();
    assert_eq!(key(&mut app, KeyCode::Char('y')), Effect::Copy(host));
    let all = key(&mut app, KeyCode::Char('a'));
    assert_eq!(all, Effect::Watch { all: true });
    insta::assert_snapshot!("all", frame(&mut app, 80, 12));
    assert_eq!(key(&mut app, KeyCode::Char('q')), Effect::Quit);
    let ctrl = |c| KeyEvent::new(KeyCode::Char(c), KeyModifiers::CONTROL);
    keys(&mut app, "/");
    assert_eq!(app.key(ctrl('c')), Effect::Quit, "also while typing");
    assert_eq!(app.key(ctrl('z')), Effect::Suspend);
    assert_eq!(key(&mut app, KeyCode::Char('q')), Effect::None);
    assert_eq!(app.filter, "q");
}

#[test]
fn counters_alone_are_not_urgent_and_not_told() {
    let mut app = usual();
    let lines = app.picture().log.entries().count();
    let busy = PortStatus {
        bytes: Bytes {
            to_guest: 1,
            to_host: 2,
        },
        ..conflict()
    };
    assert_eq!(
        app.update(&changed("09:14:05", busy), now()),
        Redraw::Lazily
    );
    assert_eq!(app.update(&Update::Events(vec![]), now()), Redraw::No);
    assert_eq!(app.picture().log.entries().count(), lines);
}
