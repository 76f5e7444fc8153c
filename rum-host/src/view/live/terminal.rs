//! The terminal: taking it, giving it back, and writing frames to it.
//!
//! Invariants: whoever took the terminal gives it back on every way out, also by a panic; a frame
//! that differs in nothing from the one before writes not a byte.

use std::io::{self, BufWriter, Stdout, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use crossterm::event::{DisableBracketedPaste, EnableBracketedPaste};
use crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use crossterm::{cursor, execute};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use ratatui::backend::{Backend, ClearType, CrosstermBackend};
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use super::app::App;
use super::draw;

/// A whole frame of a large screen goes out in one write.
const FRAME: usize = 256 * 1024;

/// Whether the terminal is ours.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// The terminal, in raw mode and on its alternate screen, until this is dropped.
#[derive(Debug)]
pub struct Taken(());

impl Taken {
    /// Takes the terminal. Once per process at a time.
    ///
    /// # Errors
    /// There is none, or it cannot be set.
    pub fn take() -> io::Result<Self> {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            // First, so that the message is read on the screen that stays.
            give_back();
            before(info);
        }));
        let taken = Self(());
        taken.again()?;
        Ok(taken)
    }

    /// Takes it again after others had it: a shell, while this process was stopped.
    ///
    /// # Errors
    /// As [`Taken::take`].
    pub fn again(&self) -> io::Result<()> {
        TAKEN.store(true, Ordering::SeqCst);
        // It may not be as it was left, which crossterm does not look at.
        disable_raw_mode()?;
        enable_raw_mode()?;
        execute!(
            io::stdout(),
            EnterAlternateScreen,
            EnableBracketedPaste,
            cursor::Hide
        )
    }

    /// Stops this process as Ctrl+Z does, and comes back when it is continued.
    ///
    /// # Errors
    /// As [`Taken::take`].
    pub fn stop(&self) -> io::Result<()> {
        give_back();
        // To this very thread, so that it does not return before it is continued. In a group
        // that nobody could continue the kernel ignores it.
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGTSTP)?;
        self.again()
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        give_back();
    }
}

/// The terminal as it was. Errors are of no use: there is nothing else to be done.
fn give_back() {
    if TAKEN.swap(false, Ordering::SeqCst) {
        let _ = execute!(
            io::stdout(),
            DisableBracketedPaste,
            cursor::Show,
            LeaveAlternateScreen
        );
        let _ = disable_raw_mode();
    }
}

/// Size of the terminal, 80x24 where nobody knows.
pub fn size() -> Rect {
    let size = rustix::termios::tcgetwinsize(rustix::stdio::stdout());
    match size {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => Rect::new(0, 0, size.ws_col, size.ws_row),
        _ => Rect::new(0, 0, 80, 24),
    }
}

/// Something that frames are drawn on.
#[derive(Debug)]
pub struct Screen<B: Backend> {
    backend: B,
    /// What is on it; None: unknown.
    last: Option<Buffer>,
}

impl Screen<CrosstermBackend<BufWriter<Stdout>>> {
    /// This process's stdout.
    pub fn stdout() -> Self {
        Screen::new(CrosstermBackend::new(BufWriter::with_capacity(
            FRAME,
            io::stdout(),
        )))
    }

    /// Writes a control sequence that shows nothing.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn send(&mut self, sequence: &str) -> io::Result<()> {
        self.backend.write_all(sequence.as_bytes())?;
        Write::flush(&mut self.backend)
    }
}

impl<B: Backend> Screen<B> {
    /// Draws on `backend`. Sizes come from outside: it is never asked for its own.
    pub fn new(backend: B) -> Self {
        Self {
            backend,
            last: None,
        }
    }

    /// Forgets what is on the screen: the next frame is drawn whole.
    pub fn forget(&mut self) {
        self.last = None;
    }

    /// Brings the screen up to date with `app`.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn paint(
        &mut self,
        app: &mut App,
        area: Rect,
        now: Timestamp,
        tz: &TimeZone,
    ) -> Result<(), B::Error> {
        let (rows, scroll) = draw::room(app, area, now, tz);
        app.settle(rows, scroll);
        let mut next = Buffer::empty(area);
        draw::draw(app, &mut next, now, tz);
        if self.last.as_ref() == Some(&next) {
            return Ok(());
        }
        let last = match self.last.take() {
            Some(last) if last.area == area => last,
            _ => {
                self.backend.clear_region(ClearType::All)?;
                Buffer::empty(area)
            }
        };
        self.backend.draw(last.diff(&next).into_iter())?;
        self.backend.flush()?;
        self.last = Some(next);
        Ok(())
    }

    /// What it draws on.
    #[cfg(test)]
    pub fn backend_mut(&mut self) -> &mut B {
        &mut self.backend
    }
}
