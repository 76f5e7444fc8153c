//! The live view without a terminal, for benchmarks of a frame: all output is generated and
//! discarded.

use std::io::{Sink, sink};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use ratatui::backend::CrosstermBackend;
use ratatui::layout::Rect;

use crate::status::model::Update;

use super::app::App;
use super::terminal::Screen;

/// The view and its invisible screen.
#[derive(Debug)]
pub struct Offscreen {
    app: App,
    screen: Screen<CrosstermBackend<Sink>>,
    area: Rect,
}

impl Offscreen {
    /// An empty view of `width` columns and `height` rows.
    pub fn new(width: u16, height: u16) -> Self {
        Self {
            app: App::new("dev", true, false, true),
            screen: Screen::new(CrosstermBackend::new(sink())),
            area: Rect::new(0, 0, width, height),
        }
    }

    /// Applies an update of `rum up`.
    pub fn update(&mut self, update: &Update, now: Timestamp) {
        self.app.update(update, now);
    }

    /// Makes the next frame a full redraw.
    pub fn forget(&mut self) {
        self.screen.forget();
    }

    /// Draws the differences to the previous frame.
    ///
    /// # Errors
    /// None known for a screen without a terminal.
    pub fn paint(&mut self, now: Timestamp) -> std::io::Result<()> {
        self.screen
            .paint(&mut self.app, self.area, now, &TimeZone::UTC)
    }
}
