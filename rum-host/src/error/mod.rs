//! [`RumError`]: the one error that `main` prints.
//!
//! Modules have their own error types where a caller has to distinguish cases. They convert them to
//! a [`RumError`] for the user: a message without a full stop, causes, a hint if the user can do
//! something, and an exit code.
//!
//! Invariant: plain data, which names no other module of rum's; [`crate::ui::render`] prints it.

use std::error::Error as StdError;
use std::fmt;

use crate::exit;

pub mod located;

pub use located::{ConfigError, Located, Problem};

/// An error for the user.
#[derive(Debug)]
pub struct RumError(Box<Inner>);

#[derive(Debug)]
struct Inner {
    message: String,
    hint: Option<String>,
    example: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
    config: Option<ConfigError>,
    exit: u8,
}

impl RumError {
    /// An error with exit code [`exit::FAILED`].
    pub fn new(message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            message: message.into(),
            hint: None,
            example: None,
            source: None,
            config: None,
            exit: exit::FAILED,
        }))
    }

    /// An error with exit code [`exit::USAGE`].
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(message).exit(exit::USAGE)
    }

    /// What the user can do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Lines to print verbatim below the hint.
    #[must_use]
    pub fn example(mut self, lines: impl Into<String>) -> Self {
        self.0.example = Some(lines.into());
        self
    }

    /// The cause, printed below the message.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Sets another exit code.
    #[must_use]
    pub fn exit(mut self, code: u8) -> Self {
        self.0.exit = code;
        self
    }

    /// The hint and the example lines on one line, if there is a hint.
    pub(crate) fn one_line_hint(&self) -> Option<String> {
        let lines = self.0.example.iter().flat_map(|lines| lines.lines());
        let example: Vec<_> = lines.collect();
        let hint = self.0.hint.as_ref()?;
        Some(
            format!("{hint} {}", example.join("; "))
                .trim_end()
                .to_owned(),
        )
    }

    /// The hint, if any.
    pub(crate) fn to_do(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// The lines below the hint.
    pub(crate) fn lines(&self) -> impl Iterator<Item = &str> {
        self.0.example.iter().flat_map(|lines| lines.lines())
    }

    /// The mistakes of a configuration, if this error reports any.
    pub(crate) fn config(&self) -> Option<&ConfigError> {
        self.0.config.as_ref()
    }

    /// The exit code of the process.
    pub fn exit_code(&self) -> u8 {
        self.0.exit
    }
}

impl From<ConfigError> for RumError {
    fn from(error: ConfigError) -> Self {
        let mut this = Self::usage(error.to_string());
        this.0.config = Some(error);
        this
    }
}

impl fmt::Display for RumError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl StdError for RumError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}
