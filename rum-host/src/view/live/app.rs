//! State of the live view. Updates and keys (see [`super::keys`]) change it, and frames are drawn
//! from it. It reads no clock and knows no terminal.
//!
//! Invariants: in a frozen view, only the states of agent and rum change; the view never ends by
//! itself.

use std::time::Duration;

use jiff::Timestamp;

use crate::status::model::{AgentState, Event, Op, PortStatus, Update, What};
use crate::view::Mirror;

use super::selection::Selection;
use crate::view::live::events::Log;
use crate::view::words;

/// How soon the next frame is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Redraw {
    /// Nothing visible changed.
    No,
    /// Counters changed.
    Lazily,
    /// Something else changed.
    Soon,
}

/// The order of the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sort {
    /// Problems, then the rest; each by port.
    Problems,
    /// By port number.
    Port,
    /// By process name.
    Process,
    /// Latest change first.
    Latest,
}

impl Sort {
    /// The order after this one.
    pub fn next(self) -> Self {
        match self {
            Self::Problems => Self::Port,
            Self::Port => Self::Process,
            Self::Process => Self::Latest,
            Self::Latest => Self::Problems,
        }
    }

    /// The message for the user.
    pub fn told(self) -> &'static str {
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
    /// The table, while the user types a filter.
    Filter,
    /// Details of the selected port: its last status, even after it is gone.
    Details(Box<PortStatus>),
    /// Keys and marks.
    Help,
}

/// The content of a frame; a frozen view keeps one.
#[derive(Debug, Clone, Default)]
pub struct Picture {
    /// The state of the ports and of rum.
    pub known: Mirror,
    /// The latest events.
    pub log: Log,
}

/// The state of the view.
#[derive(Debug)]
pub struct App {
    /// The guest's name.
    pub name: String,
    /// Whether `rum exec` can run programs in the guest.
    pub has_exec: bool,
    /// Whether colours may be used.
    pub color: bool,
    /// Whether hidden ports are shown.
    pub all: bool,
    /// The filter's text.
    pub filter: String,
    /// The order of the rows.
    pub sort: Sort,
    /// What fills the screen.
    pub mode: Mode,
    /// The first visible line of details or help.
    pub scroll: usize,
    /// A message in the footer until the next key.
    pub notice: Option<String>,
    /// Why `rum up` is gone, while it is.
    pub gone: Option<String>,
    /// When the agent's latest status arrived; its `retry_ms` counts from then.
    pub agent_at: Timestamp,
    /// The selected row and the rows in view.
    pub selection: Selection,
    live: Picture,
    frozen: Option<Box<Picture>>,
}

impl App {
    /// A view without any data.
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

    /// The content to draw.
    pub fn picture(&self) -> &Picture {
        self.frozen.as_deref().unwrap_or(&self.live)
    }

    /// The current state, even while the view is frozen.
    pub fn known(&self) -> &Mirror {
        &self.live.known
    }

    /// Whether the view is frozen.
    pub fn is_frozen(&self) -> bool {
        self.frozen.is_some()
    }

    /// Freezes the view, or unfreezes it.
    pub fn freeze(&mut self) {
        self.frozen = match self.frozen.take() {
            Some(_) => None,
            None => Some(Box::new(self.live.clone())),
        };
    }

    /// Whether the rows may be outdated.
    pub fn is_stale(&self) -> bool {
        let agent = self.known().agent.as_ref();
        self.gone.is_some() || agent.is_none_or(|a| a.state != AgentState::Connected)
    }

    /// The rows in order: ports that are not hidden and match the filter.
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

    /// Adjusts the selection to the rows, of which `height` fit, and limits the scroll position to
    /// `scroll`. To be called before each frame.
    pub fn settle(&mut self, height: usize, scroll: usize) {
        self.scroll = self.scroll.min(scroll);
        let mut selection = std::mem::take(&mut self.selection);
        selection.settle(&ids(&self.rows()), height);
        self.selection = selection;
        if let Mode::Details(port) = &self.mode {
            let now = self.picture().known.port(port);
            if let Some(now) = now.cloned() {
                self.mode = Mode::Details(Box::new(now));
            }
        }
    }

    /// Applies an update of `rum up`.
    pub fn update(&mut self, update: &Update, now: Timestamp) -> Redraw {
        let mut redraw = Redraw::No;
        // After a goodbye, only a snapshot is a new start.
        let begins = matches!(update, Update::Snapshot { .. }) || self.known().bye.is_none();
        if begins && self.gone.take().is_some() {
            self.live.log.say(now, "rum up is back", false);
            self.notice = None;
            redraw = Redraw::Soon;
        }
        match update {
            Update::Snapshot { gap, ports, .. } => {
                self.live.log.note_all(&self.live.known, ports);
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
                self.gone = Some(words::shown(&format!("rum up ended: {reason}")));
                Redraw::Soon
            }
            What::Port { .. } | What::Config(_) => Redraw::Soon,
        };
        self.live.log.note(&self.live.known, event);
        self.live.known.apply(&Update::Events(vec![event.clone()]));
        redraw
    }

    fn only_counts(&self, port: &PortStatus) -> bool {
        self.known().port(port).is_some_and(|old| {
            let mut old = old.clone();
            (old.connections, old.bytes) = (port.connections, port.bytes);
            old == *port
        })
    }

    /// Notes that `rum up` no longer answers. After a goodbye, that stays the reason.
    pub fn lost(&mut self, reason: &str, now: Timestamp) {
        if self.gone.is_none() {
            let text = words::shown(&format!("rum up does not answer: {reason}"));
            self.live.log.say(now, &text, true);
            self.gone = Some(text);
        }
    }

    /// When the next frame is due without any event: while the agent is missing, the view counts
    /// seconds.
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
}

/// The ids of `rows`.
pub fn ids<'a>(rows: &[&'a PortStatus]) -> Vec<&'a str> {
    rows.iter().map(|p| p.id.as_str()).collect()
}

/// Whether `needle`, in lower case, occurs in one of the port's names.
fn matches(port: &PortStatus, needle: &str) -> bool {
    let holds = |text: &str| text.to_lowercase().contains(needle);
    needle.is_empty()
        || holds(&port.called())
        || holds(port.state.as_str())
        || port.process.as_ref().is_some_and(|p| holds(&p.name))
        || port.label.as_deref().is_some_and(holds)
        || port.host.as_deref().is_some_and(holds)
}
