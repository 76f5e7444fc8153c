//! The live view of `rum ports --watch` on a terminal.
//!
//! `app` is the state, `keys` changes it, `draw` makes a frame of it, `terminal` writes the
//! differences, and `follow` brings the updates. This module has the one loop that connects them.
//! It waits for the next event, and draws when something visible has changed: at most once in
//! `FRAME`, and for counters alone at most once in `COUNTERS`.
//!
//! Invariants: an idle view wakes only for updates, and writes nothing; the terminal is restored
//! however the view ends; the view outlives its `rum up`.

use std::time::Duration;

use crossterm::event::{Event, EventStream};
use crossterm::style::force_color_output;
use futures_util::StreamExt;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::control::client::Feed;
use crate::error::RumError;
use crate::exit;
use crate::guest;
use crate::runtime_dir::RunningGuest;

use crate::view::live::follow::{Link, Told};
use app::{App, Redraw};
use keys::Effect;
use terminal::{Screen, Taken};

mod app;
mod desktop;
mod draw;
mod events;
mod follow;
mod header;
mod keys;
#[doc(hidden)]
pub mod offscreen;
mod panel;
mod rows;
mod selection;
mod terminal;
#[cfg(test)]
mod tests;

/// Shortest time between two frames: a burst of events is one frame.
const FRAME: Duration = Duration::from_millis(33);
/// Like [`FRAME`], if only counters differ.
const COUNTERS: Duration = Duration::from_secs(1);

/// How long the first frame waits for data.
const FIRST: Duration = Duration::from_millis(150);

/// Shows the ports of `guest` until the user quits, which returns 0, or a signal ends the view,
/// which returns 128 + its number. `all` includes hidden ports. Both stdin and stdout must be
/// terminals.
///
/// # Errors
/// The terminal cannot be used.
pub async fn run(guest: RunningGuest, feed: Feed, all: bool, color: bool) -> Result<u8, RumError> {
    let io = |error: std::io::Error| {
        RumError::new("cannot use the terminal")
            .caused_by(error)
            .hint("`rum ports --watch | cat` prints lines instead")
    };
    let signals = Signals::new().map_err(io)?;
    // `color` already respects NO_COLOR.
    force_color_output(color);
    let taken = Taken::take().map_err(io)?;
    let now = Instant::now();
    let mut view = View {
        app: App::new(
            &guest.name,
            feed.info().kind == guest::NAMESPACE,
            all,
            color,
        ),
        link: Link::new(&guest.name, feed, all),
        guest,
        screen: Screen::stdout(),
        taken,
        tasks: JoinSet::new(),
        tz: TimeZone::system(),
        drawn: now.checked_sub(COUNTERS).unwrap_or(now),
        due: Some(now + FIRST),
    };
    view.run(signals).await.map_err(io)
}

/// The signals that the view handles.
struct Signals {
    int: Signal,
    term: Signal,
    hup: Signal,
    cont: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            int: signal(SignalKind::interrupt())?,
            term: signal(SignalKind::terminate())?,
            hup: signal(SignalKind::hangup())?,
            cont: signal(SignalKind::from_raw(rustix::process::Signal::CONT.as_raw()))?,
        })
    }

    /// The next signal. Cancel-safe.
    async fn next(&mut self) -> SignalKind {
        tokio::select! {
            _ = self.int.recv() => SignalKind::interrupt(),
            _ = self.term.recv() => SignalKind::terminate(),
            _ = self.hup.recv() => SignalKind::hangup(),
            _ = self.cont.recv() => SignalKind::from_raw(rustix::process::Signal::CONT.as_raw()),
        }
    }
}

/// The state of the loop.
struct View {
    app: App,
    guest: RunningGuest,
    link: Link,
    screen: Screen<ratatui::backend::CrosstermBackend<std::io::BufWriter<std::io::Stdout>>>,
    taken: Taken,
    /// Tasks that keys started; each may end with a message.
    tasks: JoinSet<Option<String>>,
    tz: TimeZone,
    /// Time of the last frame.
    drawn: Instant,
    due: Option<Instant>,
}

impl View {
    async fn run(&mut self, mut signals: Signals) -> std::io::Result<u8> {
        let mut events = EventStream::new();
        loop {
            if self.due.is_some_and(|due| due <= Instant::now()) {
                self.paint()?;
            }
            let due = self.due;
            tokio::select! {
                // A flood of updates must not keep the user from quitting.
                biased;
                signal = signals.next() => {
                    if signal != SignalKind::from_raw(rustix::process::Signal::CONT.as_raw()) {
                        let number = u8::try_from(signal.as_raw_value()).unwrap_or(0);
                        return Ok(exit::SIGNAL_BASE.saturating_add(number));
                    }
                    // The process was stopped, and a shell had the terminal.
                    self.taken.again()?;
                    self.screen.forget();
                    self.want(Redraw::Soon);
                }
                event = events.next() => match event {
                    Some(event) => {
                        if let Some(code) = self.event(event?)? {
                            return Ok(code);
                        }
                    }
                    None => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                },
                Some(said) = self.tasks.join_next() => {
                    if let Ok(Some(said)) = said {
                        self.app.notice = Some(said);
                        self.want(Redraw::Soon);
                    }
                }
                news = self.link.next() => self.link_news(news),
                () = async {
                    match due {
                        Some(due) => tokio::time::sleep_until(due).await,
                        None => std::future::pending().await,
                    }
                } => {}
            }
        }
    }

    fn paint(&mut self) -> std::io::Result<()> {
        let now = Timestamp::now();
        self.screen
            .paint(&mut self.app, terminal::size(), now, &self.tz)?;
        self.drawn = Instant::now();
        self.due = self.app.tick(now).map(|tick| self.drawn + tick);
        Ok(())
    }

    /// Schedules the next frame.
    fn want(&mut self, redraw: Redraw) {
        let pause = match redraw {
            Redraw::No => return,
            Redraw::Lazily => COUNTERS,
            Redraw::Soon => FRAME,
        };
        let at = self.drawn + pause;
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    fn link_news(&mut self, news: Told) {
        let now = Timestamp::now();
        let redraw = match news {
            Told::Update(update) => self.app.update(&update, now),
            Told::Gone(reason) => {
                self.app.lost(&reason, now);
                Redraw::Soon
            }
            Told::Useless(reason) => {
                self.app.notice = Some(reason);
                Redraw::Soon
            }
        };
        self.want(redraw);
    }

    /// Handles an input event. Returns the exit code if the user quits.
    fn event(&mut self, event: Event) -> std::io::Result<Option<u8>> {
        self.want(Redraw::Soon);
        let effect = match event {
            Event::Key(key) => self.app.key(key),
            Event::Paste(text) => {
                self.app.paste(&text);
                Effect::None
            }
            _ => Effect::None,
        };
        match effect {
            Effect::None => {}
            Effect::Quit => return Ok(Some(0)),
            Effect::Suspend => {
                self.taken.stop()?;
                self.screen.forget();
            }
            Effect::Repaint => self.screen.forget(),
            Effect::Open(url) => self.open(url),
            Effect::Copy(address) => {
                self.app.notice = Some(match desktop::copy(&address) {
                    Some(sequence) => {
                        self.screen.send(&sequence)?;
                        format!("asked the terminal to copy {address}")
                    }
                    None => "this is no address to copy".to_owned(),
                });
            }
            Effect::Look => self.link.hurry(),
            Effect::Retry => {
                self.tasks.spawn(follow::retry(self.guest.clone()));
            }
            Effect::Watch { all } => self.link.watch(all),
        }
        Ok(None)
    }

    fn open(&mut self, url: String) {
        self.app.notice = Some(match desktop::open(&url) {
            Ok(mut browser) => {
                let said = format!("opening {url}");
                self.tasks.spawn(async move {
                    let ended = browser.wait().await;
                    desktop::opened(&url, &ended)
                });
                said
            }
            Err(said) => said,
        });
    }
}
