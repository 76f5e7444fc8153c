//! The terminal: taking it, restoring it, and writing frames to it.
//!
//! Invariants: the terminal is restored on every way out, also after a panic; a frame without a
//! difference to the previous one writes no byte.

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

/// Size of the output buffer: a whole frame of a large screen goes out in one write.
const FRAME: usize = 256 * 1024;

/// Whether the terminal is in our mode.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// The terminal in raw mode and on its alternate screen, until this is dropped.
#[derive(Debug)]
pub struct Taken(());

impl Taken {
    /// Takes the terminal. Only one value may exist in a process.
    ///
    /// # Errors
    /// There is no terminal, or its mode cannot be set.
    pub fn take() -> io::Result<Self> {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            // First, so that the message appears on the screen that stays.
            give_back();
            before(info);
        }));
        let taken = Self(());
        taken.again()?;
        Ok(taken)
    }

    /// Takes the terminal again after a shell had it, while this process was stopped.
    ///
    /// # Errors
    /// As [`Taken::take`].
    pub fn again(&self) -> io::Result<()> {
        TAKEN.store(true, Ordering::SeqCst);
        // The mode may have changed meanwhile, which crossterm does not check.
        disable_raw_mode()?;
        enable_raw_mode()?;
        execute!(
            io::stdout(),
            EnterAlternateScreen,
            EnableBracketedPaste,
            cursor::Hide
        )
    }

    /// Stops this process as Ctrl+Z does. Returns when it is continued.
    ///
    /// # Errors
    /// As [`Taken::take`].
    pub fn stop(&self) -> io::Result<()> {
        give_back();
        // raise(3) signals this very thread, so it does not return before the process is continued.
        // The kernel ignores the signal in an orphaned process group, which nobody could continue.
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGTSTP)?;
        self.again()
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        give_back();
    }
}

/// Restores the terminal. Errors are ignored: nothing else can be done.
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

/// Size of the terminal; 80x24 if it is unknown.
pub fn size() -> Rect {
    let size = rustix::termios::tcgetwinsize(rustix::stdio::stdout());
    match size {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => Rect::new(0, 0, size.ws_col, size.ws_row),
        _ => Rect::new(0, 0, 80, 24),
    }
}

/// A screen to draw frames on.
#[derive(Debug)]
pub struct Screen<B: Backend> {
    backend: B,
    /// The current content; `None`: unknown.
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

    /// Writes a control sequence that displays nothing.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn send(&mut self, sequence: &str) -> io::Result<()> {
        self.backend.write_all(sequence.as_bytes())?;
        Write::flush(&mut self.backend)
    }
}

impl<B: Backend> Screen<B> {
    /// Draws on `backend`. The caller passes sizes; the backend is never asked for its own.
    pub fn new(backend: B) -> Self {
        Self {
            backend,
            last: None,
        }
    }

    /// Forgets the content of the screen, so that the next frame is a full redraw.
    pub fn forget(&mut self) {
        self.last = None;
    }

    /// Updates the screen to `app`.
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

    /// The backend.
    #[cfg(test)]
    pub fn backend_mut(&mut self) -> &mut B {
        &mut self.backend
    }
}
