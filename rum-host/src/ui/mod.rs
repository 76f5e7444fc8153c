//! The edge: what is said to the user, and how it is written.

use clap::ValueEnum;

pub mod notice;
pub mod output;
pub mod render;

/// The form of the log, and of what `rum up` says.
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

/// How what is said looks, and how much of it there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Style {
    /// When to use colour.
    pub color: Color,
    /// The form.
    pub format: LogFormat,
    /// Less than usual.
    pub quiet: bool,
    /// How much more than usual of the log.
    pub verbose: u8,
}
