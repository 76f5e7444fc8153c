//! The live view of `rum ports --watch` on a terminal.

mod app;
mod desktop;
mod draw;
mod log;
mod panel;
mod selection;
mod table;
mod terminal;
mod text;
#[cfg(test)]
mod tests;
