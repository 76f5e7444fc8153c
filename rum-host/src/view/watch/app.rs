//! What the live view knows and shows: a pure state machine. Updates and keys go in, effects come
//! out; it reads no clock and knows no terminal.
//!
//! Invariants: everything of a frozen view but the agent's and rum's state stays as it was;
//! the view never ends by itself; no key stops or changes anything but the view.

use std::time::Duration;

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use jiff::Timestamp;

use crate::control::model::{AgentState, Event, Op, PortStatus, Update, What};
use crate::view::Known;

use super::log::Log;
use super::selection::{Move, Selection};
use super::text;

/// Longest filter, in characters.
const MAX_FILTER: usize = 64;

/// What a key asks of the rest of the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Nothing but another frame.
    None,
    /// End.
    Quit,
    /// Give the terminal back and stop, as Ctrl+Z does.
    Suspend,
    /// Draw everything anew.
    Repaint,
    /// Open this URL.
    Open(String),
    /// Put this into the clipboard.
    Copy(String),
    /// Look for `rum up`, or try the agent, at once.
    Retry,
    /// Watch again, with hidden ports or without.
    Watch {
        /// With them.
        all: bool,
    },
}

/// How soon another frame is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Redraw {
    /// Nothing visible changed.
    No,
    /// Counters changed.
    Lazily,
    /// Something else did.
    Soon,
}

/// The order of the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sort {
    /// Problems, then the rest; each by port.
    Problems,
    /// By port.
    Port,
    /// By the name of the process.
    Process,
    /// Latest change first.
    Latest,
}

impl Sort {
    fn next(self) -> Self {
        match self {
            Self::Problems => Self::Port,
            Self::Port => Self::Process,
            Self::Process => Self::Latest,
            Self::Latest => Self::Problems,
        }
    }

    fn told(self) -> &'static str {
        match self {
            Self::Problems => "sorted: problems first",
            Self::Port => "sorted by port",
            Self::Process => "sorted by process",
            Self::Latest => "sorted: latest change first",
        }
    }
}

/// What fills the screen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// The table.
    Table,
    /// The table, while a filter is typed.
    Filter,
    /// All about the selected port; its last status, also after it has gone.
    Details(Box<PortStatus>),
    /// Keys and marks.
    Help,
}

/// What a frame is made of; a frozen view keeps one.
#[derive(Debug, Clone, Default)]
pub struct Picture {
    /// The ports and the rest.
    pub known: Known,
    /// What happened.
    pub log: Log,
}

/// The state of the view.
#[derive(Debug)]
pub struct App {
    /// The guest's name.
    pub name: String,
    /// Whether the guest is one in which `rum exec` runs programs.
    pub has_exec: bool,
    /// Whether colours may be used.
    pub color: bool,
    /// Whether hidden ports are shown.
    pub all: bool,
    /// What is looked for.
    pub filter: String,
    /// The order of the rows.
    pub sort: Sort,
    /// What fills the screen.
    pub mode: Mode,
    /// The first line shown of details or help.
    pub scroll: usize,
    /// Said in the footer until the next key.
    pub notice: Option<String>,
    /// Why `rum up` is gone, while it is.
    pub gone: Option<String>,
    /// When the agent's latest status came: its `retry_ms` counts from here.
    pub agent_at: Timestamp,
    /// The selected row and the rows in view.
    pub selection: Selection,
    live: Picture,
    frozen: Option<Box<Picture>>,
}

impl App {
    /// A view that knows nothing yet.
    pub fn new(name: &str, has_exec: bool, all: bool, color: bool) -> Self {
        Self {
            name: name.to_owned(),
            has_exec,
            color,
            all,
            filter: String::new(),
            sort: Sort::Problems,
            mode: Mode::Table,
            scroll: 0,
            notice: None,
            gone: None,
            agent_at: Timestamp::UNIX_EPOCH,
            selection: Selection::default(),
            live: Picture::default(),
            frozen: None,
        }
    }

    /// What is to be seen.
    pub fn picture(&self) -> &Picture {
        self.frozen.as_deref().unwrap_or(&self.live)
    }

    /// What is the case, even while the view is frozen.
    pub fn known(&self) -> &Known {
        &self.live.known
    }

    /// Whether painting is frozen.
    pub fn is_frozen(&self) -> bool {
        self.frozen.is_some()
    }

    /// Whether nobody can say that the rows are still true.
    pub fn is_stale(&self) -> bool {
        let agent = self.known().agent.as_ref();
        self.gone.is_some() || agent.is_none_or(|a| a.state != AgentState::Connected)
    }

    /// The rows: what is not hidden and passes the filter, in order.
    pub fn rows(&self) -> Vec<&PortStatus> {
        let needle = self.filter.to_lowercase();
        let ports = self.picture().known.ports();
        let mut rows: Vec<_> = ports
            .filter(|p| (self.all || !p.state.is_hidden()) && matches(p, &needle))
            .collect();
        match self.sort {
            Sort::Port => {}
            Sort::Problems => rows.sort_by_key(|p| !p.state.is_problem()),
            Sort::Process => rows.sort_by_key(|p| {
                let name = p.process.as_ref().map(|p| p.name.as_str());
                (name.is_none(), name)
            }),
            Sort::Latest => rows.sort_by(|a, b| b.since.cmp(&a.since)),
        }
        rows
    }

    /// The selected port.
    pub fn selected(&self) -> Option<&PortStatus> {
        self.rows().get(self.selection.row()).copied()
    }

    /// Makes the selection fit the rows, of which `height` have room. To be called before each
    /// frame.
    pub fn settle(&mut self, height: usize) {
        let mut selection = std::mem::take(&mut self.selection);
        selection.settle(&ids(&self.rows()), height);
        self.selection = selection;
        if let Mode::Details(port) = &self.mode {
            let now = self.picture().known.ports().find(|p| p.id == port.id);
            if let Some(now) = now.cloned() {
                self.mode = Mode::Details(Box::new(now));
            }
        }
    }

    /// Takes note of what `rum up` told.
    pub fn update(&mut self, update: &Update, now: Timestamp) -> Redraw {
        let mut redraw = Redraw::No;
        if self.known().bye.is_none() && self.gone.take().is_some() {
            self.live.log.say(now, "rum up is back", false);
            redraw = Redraw::Soon;
        }
        match update {
            Update::Snapshot { gap, .. } => {
                if self.gone.take().is_some() {
                    self.live.log.say(now, "rum up is back", false);
                }
                if *gap {
                    let text = "some events were missed; the table is complete again";
                    self.live.log.say(now, text, true);
                }
                self.agent_at = now;
                self.live.known.apply(update);
                redraw = Redraw::Soon;
            }
            Update::Events(events) => {
                for event in events {
                    redraw = redraw.max(self.event(event, now));
                }
            }
        }
        redraw
    }

    fn event(&mut self, event: &Event, now: Timestamp) -> Redraw {
        let redraw = match &event.what {
            What::Port { .. } if self.is_frozen() => Redraw::No,
            What::Port { op, port } if *op == Op::Changed && self.only_counts(port) => {
                Redraw::Lazily
            }
            What::Agent(_) => {
                self.agent_at = now;
                Redraw::Soon
            }
            What::Bye(reason) => {
                self.gone = Some(text::shown(reason));
                Redraw::Soon
            }
            What::Port { .. } | What::Config(_) => Redraw::Soon,
        };
        self.live.log.note(&self.live.known, event);
        self.live.known.apply(&Update::Events(vec![event.clone()]));
        redraw
    }

    fn only_counts(&self, port: &PortStatus) -> bool {
        let old = self.known().ports().find(|p| p.id == port.id);
        old.is_some_and(|old| {
            let mut old = old.clone();
            (old.connections, old.bytes) = (port.connections, port.bytes);
            old == *port
        })
    }

    /// `rum up` is gone. If it said goodbye, that stays the reason.
    pub fn lost(&mut self, reason: &str, now: Timestamp) {
        if self.gone.is_none() {
            let reason = text::shown(reason);
            let text = format!("rum up ended: {reason}");
            self.live.log.say(now, &text, true);
            self.gone = Some(reason);
        }
    }

    /// When the next frame is due though nothing happened: seconds are counted while the agent
    /// is not there.
    pub fn tick(&self, now: Timestamp) -> Option<Duration> {
        let agent = self.known().agent.as_ref()?;
        if self.gone.is_some() || agent.state == AgentState::Connected {
            return None;
        }
        let since = agent.since.parse().unwrap_or(self.agent_at);
        let into = now.duration_since(since).as_millis().rem_euclid(1000);
        Some(Duration::from_millis(
            1000 - u64::try_from(into).unwrap_or(0),
        ))
    }

    /// Text that was pasted: part of a filter, or nothing.
    pub fn paste(&mut self, text: &str) {
        if self.mode == Mode::Filter {
            self.filter = self
                .filter
                .chars()
                .chain(text.chars())
                .filter(|c| !c.is_control())
                .take(MAX_FILTER)
                .collect();
        }
    }

    /// A key.
    pub fn key(&mut self, key: KeyEvent) -> Effect {
        if key.kind == KeyEventKind::Release {
            return Effect::None;
        }
        self.notice = None;
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            match key.code {
                KeyCode::Char('c') => return Effect::Quit,
                KeyCode::Char('z') => return Effect::Suspend,
                KeyCode::Char('l') => return Effect::Repaint,
                KeyCode::Char('u') if self.mode == Mode::Filter => self.filter.clear(),
                _ => {}
            }
            return Effect::None;
        }
        if self.mode == Mode::Filter {
            self.filter_key(key.code);
            return Effect::None;
        }
        match key.code {
            KeyCode::Char('q') => return Effect::Quit,
            KeyCode::Char('r') => return self.retry(),
            KeyCode::Char('?') => self.show(match self.mode {
                Mode::Help => Mode::Table,
                _ => Mode::Help,
            }),
            KeyCode::Char('/') => self.show(Mode::Filter),
            KeyCode::Char(' ') => self.freeze(),
            KeyCode::Esc if self.mode == Mode::Table => self.filter.clear(),
            KeyCode::Esc => self.show(Mode::Table),
            code if self.mode == Mode::Help => self.scroll_key(code),
            code => return self.table_key(code),
        }
        Effect::None
    }

    fn show(&mut self, mode: Mode) {
        self.mode = mode;
        self.scroll = 0;
    }

    fn freeze(&mut self) {
        self.frozen = match self.frozen.take() {
            Some(_) => None,
            None => Some(Box::new(self.live.clone())),
        };
    }

    fn retry(&mut self) -> Effect {
        if self.gone.is_none() {
            self.notice = Some("rum up is there; nothing to look for".to_owned());
            return Effect::None;
        }
        Effect::Retry
    }

    fn filter_key(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.mode = Mode::Table,
            KeyCode::Esc => {
                self.filter.clear();
                self.mode = Mode::Table;
            }
            KeyCode::Backspace => {
                self.filter.pop();
            }
            KeyCode::Up => self.go(Move::Up(1)),
            KeyCode::Down => self.go(Move::Down(1)),
            KeyCode::Char(c) if !c.is_control() && self.filter.chars().count() < MAX_FILTER => {
                self.filter.push(c);
            }
            _ => {}
        }
    }

    fn scroll_key(&mut self, code: KeyCode) {
        self.scroll = match code {
            KeyCode::Up | KeyCode::Char('k') => self.scroll.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => self.scroll + 1,
            KeyCode::PageUp => self.scroll.saturating_sub(self.selection.page()),
            KeyCode::PageDown => self.scroll + self.selection.page(),
            KeyCode::Home | KeyCode::Char('g') => 0,
            _ => self.scroll,
        };
    }

    fn table_key(&mut self, code: KeyCode) -> Effect {
        match code {
            KeyCode::PageUp | KeyCode::PageDown if self.mode != Mode::Table => {
                self.scroll_key(code);
            }
            KeyCode::Up | KeyCode::Char('k') => self.go(Move::Up(1)),
            KeyCode::Down | KeyCode::Char('j') => self.go(Move::Down(1)),
            KeyCode::PageUp => self.go(Move::Up(self.selection.page())),
            KeyCode::PageDown => self.go(Move::Down(self.selection.page())),
            KeyCode::Home | KeyCode::Char('g') => self.go(Move::First),
            KeyCode::End | KeyCode::Char('G') => self.go(Move::Last),
            KeyCode::Enter => match self.selected().cloned() {
                Some(port) if self.mode == Mode::Table => self.show(Mode::Details(Box::new(port))),
                _ => self.show(Mode::Table),
            },
            KeyCode::Char('s') => {
                self.sort = self.sort.next();
                self.notice = Some(self.sort.told().to_owned());
            }
            KeyCode::Char('a') => {
                self.all = !self.all;
                return Effect::Watch { all: self.all };
            }
            KeyCode::Char('o') => match self.subject().and_then(|p| p.url.clone()) {
                Some(url) => return Effect::Open(url),
                None => self.notice = Some("this port is not forwarded: nothing to open".into()),
            },
            KeyCode::Char('y') => match self.subject().and_then(|p| p.host.clone()) {
                Some(host) => return Effect::Copy(host),
                None => self.notice = Some("this port has no host address to copy".into()),
            },
            _ => {}
        }
        Effect::None
    }

    /// The port that a key is about.
    fn subject(&self) -> Option<&PortStatus> {
        match &self.mode {
            Mode::Details(port) => Some(port),
            _ => self.selected(),
        }
    }

    fn go(&mut self, to: Move) {
        let mut selection = std::mem::take(&mut self.selection);
        selection.go(&ids(&self.rows()), to);
        self.selection = selection;
        if let (Mode::Details(_), Some(port)) = (&self.mode, self.selected().cloned()) {
            self.show(Mode::Details(Box::new(port)));
        }
    }
}

fn ids<'a>(rows: &[&'a PortStatus]) -> Vec<&'a str> {
    rows.iter().map(|p| p.id.as_str()).collect()
}

/// Whether `needle`, in lower case, is in what people know a port by.
fn matches(port: &PortStatus, needle: &str) -> bool {
    let holds = |text: &str| text.to_lowercase().contains(needle);
    needle.is_empty()
        || holds(&port.port.to_string())
        || holds(port.state.as_str())
        || port.process.as_ref().is_some_and(|p| holds(&p.name))
        || port.label.as_deref().is_some_and(holds)
        || port.host.as_deref().is_some_and(holds)
}
