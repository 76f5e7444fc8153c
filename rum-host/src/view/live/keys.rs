//! The keys of the live view. Pure: what happens outside the view is an [`Effect`].
//!
//! Invariants: no key stops or changes anything but the view; Esc never ends the view, Ctrl+C
//! always does.

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use crate::status::model::PortStatus;

use super::app::{App, Mode, ids};
use super::selection::Move;

/// Longest filter, in characters.
const MAX_FILTER: usize = 64;

/// What a key asks the loop to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Nothing but another frame.
    None,
    /// End the view.
    Quit,
    /// Restore the terminal and stop the process, as Ctrl+Z does.
    Suspend,
    /// Redraw everything.
    Repaint,
    /// Open this URL.
    Open(String),
    /// Copy this to the clipboard.
    Copy(String),
    /// Search for `rum up` at once.
    Look,
    /// Try a lost agent at once.
    Retry,
    /// Start a new watch, with or without hidden ports.
    Watch {
        /// With hidden ports.
        all: bool,
    },
}

impl App {
    /// Handles pasted text: it extends a filter, or is ignored.
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

    /// Handles a key.
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

    fn retry(&mut self) -> Effect {
        if self.gone.is_some() {
            return Effect::Look;
        }
        if self.is_stale() {
            return Effect::Retry;
        }
        self.notice = Some("the agent is connected: nothing to retry".to_owned());
        Effect::None
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

    /// The port that a key applies to.
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
