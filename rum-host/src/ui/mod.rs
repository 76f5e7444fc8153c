//! Output for the user: the messages, their form and their colours.

use clap::ValueEnum;

pub mod notice;
pub mod output;
pub mod render;

/// The form of the log, and of the messages of `rum up`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people
    #[default]
    Text,
    /// JSON objects, one a line
    Json,
}

/// When to use colour.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set
    #[default]
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// The form and the amount of the output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Style {
    /// When to use colour.
    pub color: Color,
    /// The form of log and messages.
    pub format: LogFormat,
    /// Whether to print problems only.
    pub quiet: bool,
    /// How many steps more verbose the log is.
    pub verbose: u8,
}
