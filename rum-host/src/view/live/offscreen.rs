//! The live view without a terminal, for whoever measures what a frame costs: all that a terminal
//! would be sent is made, and goes nowhere.

use std::io::{Sink, sink};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use ratatui::backend::CrosstermBackend;
use ratatui::layout::Rect;

use crate::status::model::Update;

use super::app::App;
use super::terminal::Screen;

/// The view and the screen that nobody sees.
#[derive(Debug)]
pub struct Offscreen {
    app: App,
    screen: Screen<CrosstermBackend<Sink>>,
    area: Rect,
}

impl Offscreen {
    /// A view of `width` columns and `height` rows that knows nothing yet.
    pub fn new(width: u16, height: u16) -> Self {
        Self {
            app: App::new("dev", true, false, true),
            screen: Screen::new(CrosstermBackend::new(sink())),
            area: Rect::new(0, 0, width, height),
        }
    }

    /// Takes note of what `rum up` told.
    pub fn update(&mut self, update: &Update, now: Timestamp) {
        self.app.update(update, now);
    }

    /// The next frame is drawn whole.
    pub fn forget(&mut self) {
        self.screen.forget();
    }

    /// Draws what differs from the frame before.
    ///
    /// # Errors
    /// None that a screen without a terminal is known to have.
    pub fn paint(&mut self, now: Timestamp) -> std::io::Result<()> {
        self.screen
            .paint(&mut self.app, self.area, now, &TimeZone::UTC)
    }
}
