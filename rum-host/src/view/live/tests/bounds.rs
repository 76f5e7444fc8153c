//! What holds for any input: hostile text, wide characters, many ports, few bytes.

use std::cell::Cell;
use std::io::Write;
use std::rc::Rc;

use crossterm::event::KeyCode;
use jiff::tz::TimeZone;
use ratatui::backend::CrosstermBackend;
use ratatui::layout::Rect;

use crate::status::model::{
    AgentStatus, ConfigStatus, Connections, PortStatus, Reason, State, Update, What,
};

use super::super::app::App;
use super::super::terminal::Screen;
use super::samples::*;
use super::{buffer, frame, key, keys};

/// Whatever the peer sends, the screen neither shows nor obeys a control sequence.
#[test]
fn hostile_text_is_harmless() {
    let evil = "\u{1b}]0;x\u{7}\u{202e}漢字\u{9b}2J\r\n👩\u{200d}👩\u{feff}é".to_owned();
    let evil = || evil.clone();
    let hostile = |number, state| PortStatus {
        id: evil(),
        proto: evil(),
        guest_addresses: vec![evil()],
        destination: Some(evil()),
        host: Some(evil()),
        reason: Some(Reason {
            code: evil(),
            message: evil(),
            hint: Some(evil()),
            holder: named(&evil(), 1),
        }),
        process: named(&evil(), 2),
        label: Some(evil()),
        url: Some(evil()),
        since: evil(),
        ..port(number, state)
    };
    let mut app = App::new(&evil(), true, true, true);
    app.update(&snapshot(vec![hostile(1, State::Conflict)]), now());
    app.update(&changed("x", hostile(2, State::Forwarded)), now());
    app.update(
        &event(
            "\u{1b}[2J",
            What::Agent(AgentStatus {
                reason: Some(evil()),
                source: Some(evil()),
                since: evil(),
                ..lost_agent()
            }),
        ),
        now(),
    );
    let config = ConfigStatus {
        file: Some(evil()),
        loaded: evil(),
        range: Some(evil()),
        error: Some(evil()),
    };
    app.update(&event("1", What::Config(config)), now());
    let check = |app: &mut App| {
        for (width, height) in [(140, 40), (80, 24), (60, 10), (40, 5)] {
            for cell in buffer(app, width, height).content() {
                let symbol = cell.symbol();
                assert_eq!(rum_shared::text::clean(symbol, 99), symbol);
            }
        }
    };
    check(&mut app);
    key(&mut app, KeyCode::Enter);
    check(&mut app);
    app.lost(&evil(), now());
    check(&mut app);
    key(&mut app, KeyCode::Esc);
    keys(&mut app, "/");
    app.paste(&evil());
    check(&mut app);
    app.notice = Some(evil());
    check(&mut app);
}

#[test]
fn wide_characters_do_not_move_columns() {
    let mut app = App::new("dev", true, false, true);
    let wide = PortStatus {
        process: named("漢字漢字漢字漢字漢字", 7),
        reason: None,
        ..forwarded(3000)
    };
    app.update(&snapshot(vec![wide, draining()]), now());
    insta::assert_snapshot!("wide", frame(&mut app, 80, 10));
}

#[test]
fn a_thousand_ports() {
    let mut app = App::new("dev", true, false, true);
    app.update(&snapshot((1000..2000).map(forwarded).collect()), now());
    frame(&mut app, 80, 24);
    keys(&mut app, "G");
    let text = frame(&mut app, 80, 24);
    assert!(
        text.contains("> 1999") && text.contains("of 1000"),
        "{text}"
    );
    key(&mut app, KeyCode::PageUp);
    keys(&mut app, "k");
    insta::assert_snapshot!("thousand", frame(&mut app, 80, 24));
}

/// Counts the written bytes.
#[derive(Clone, Default)]
struct Tally(Rc<Cell<usize>>);

impl Write for Tally {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.set(self.0.get() + bytes.len());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A terminal that only counts bytes.
struct Counted(Screen<CrosstermBackend<Tally>>, Tally);

impl Counted {
    fn new() -> Self {
        let tally = Tally::default();
        let backend = CrosstermBackend::new(tally.clone());
        Self(Screen::new(backend), tally)
    }

    /// The number of bytes of the next frame.
    fn paint(&mut self, app: &mut App, width: u16) -> usize {
        let area = Rect::new(0, 0, width, 30);
        self.0.paint(app, area, now(), &TimeZone::UTC).unwrap();
        self.1.0.take()
    }
}

#[test]
fn an_idle_view_writes_nothing_and_a_change_little() {
    let (mut app, mut screen) = (usual(), Counted::new());
    assert!(
        screen.paint(&mut app, 120) > 1000,
        "the first frame is whole"
    );
    assert_eq!(screen.paint(&mut app, 120), 0);
    app.update(&Update::Events(vec![]), now());
    assert_eq!(screen.paint(&mut app, 120), 0, "rum is alive, nothing else");
    app.update(&changed("09:14:05", draining()), now());
    assert_eq!(screen.paint(&mut app, 120), 0, "the same once more");
    let busy = PortStatus {
        connections: Connections {
            now: 3,
            total: 9,
            refused: 0,
        },
        ..draining()
    };
    app.update(&changed("09:14:05", busy), now());
    let bytes = screen.paint(&mut app, 120);
    assert!((1..100).contains(&bytes), "a counter: {bytes}");
    // A state changes its row, the counts and the log.
    let bound = port(5432, State::Forwarded);
    app.update(&changed("09:14:06", bound), now());
    let bytes = screen.paint(&mut app, 120);
    assert!((1..1024).contains(&bytes), "a state: {bytes}");
    screen.0.forget();
    assert!(screen.paint(&mut app, 120) > 1000);
    assert!(screen.paint(&mut app, 100) > 1000, "another size");
    assert_eq!(screen.paint(&mut app, 100), 0);
}
