//! The output of a running rum: messages and the log.
//!
//! [`Notice`] is the closed list of messages. They are data and go to stdout, or to stderr where a
//! command of the user owns stdout. The log always goes to stderr.
//!
//! Neither waits for a reader, and no write error ends anything ([`rum_shared::lines`]), so
//! forwarding never depends on a reader. One exception: when the reader of stdout goes away
//! ([`Output::closed`]), as head(1) does, `rum up` has nothing more to do. Messages and log share
//! one queue to stderr.
//!
//! Invariants: one line, or one error, is one write; no line contains a control character; with
//! `--log-format json`, every log record and every notice is a JSON object (`json`).

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use jiff::Timestamp;
use rum_shared::lines::{self, Lines, Standard, TellLost};
use rum_shared::text::printable;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::notice::Notice;
use super::{Color, LogFormat, Style, render};
use crate::error::RumError;

pub(crate) mod json;

/// Where the messages go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The default.
    Stdout,
    /// For a command of the user that owns stdout.
    Stderr,
}

/// Prints messages. Clones share one queue.
#[derive(Debug, Clone)]
pub struct Output {
    lines: Lines,
    closed: CancellationToken,
    quiet: bool,
    format: LogFormat,
}

impl Output {
    /// An output to one of the standard streams.
    pub fn start(target: Target, quiet: bool, format: LogFormat) -> Self {
        match target {
            Target::Stdout => Self::to(Standard::Stdout, quiet, format),
            // Messages on stderr are only informative, so a closed stderr does not end rum.
            Target::Stderr => Self {
                lines: lines::stderr(tell_lost(format)).clone(),
                closed: CancellationToken::new(),
                quiet,
                format,
            },
        }
    }

    /// An output to `to`.
    pub fn to(to: impl Write + Send + 'static, quiet: bool, format: LogFormat) -> Self {
        let closed = CancellationToken::new();
        let hung_up = {
            let closed = closed.clone();
            move || closed.cancel()
        };
        Self {
            lines: Lines::start(to, tell_lost(format), hung_up),
            closed,
            quiet,
            format,
        }
    }

    /// Prints a message. Never waits.
    pub fn say(&self, notice: &Notice) {
        if self.quiet && !notice.is_problem() {
            return;
        }
        self.lines.say(match self.format {
            LogFormat::Text => printable(&notice.to_string()) + "\n",
            LogFormat::Json => json::notice(notice, Timestamp::now()),
        });
    }

    /// Prints an error as [`render::report`] does. Never waits.
    pub fn report(&self, error: &RumError) {
        self.lines.say(render::for_stderr(error, self.format));
    }

    /// Cancelled when the reader is gone, as after `rum up | head -1`.
    pub fn closed(&self) -> &CancellationToken {
        &self.closed
    }

    /// Waits until all messages are written, at most for `limit`. For the end of the process;
    /// blocks the thread.
    pub fn flush(&self, limit: Duration) {
        self.lines.flush(limit);
    }
}

/// How lost lines are reported.
fn tell_lost(format: LogFormat) -> TellLost {
    match format {
        LogFormat::Text => lines::lost_line,
        LogFormat::Json => |missing| json::omitted(&lines::lost(missing), Timestamp::now()),
    }
}

/// Prints a line to stderr, for commands with little output. A closed stderr is no error.
pub(crate) fn tell(line: &str) {
    lines::say_on_stderr(&format!("{line}\n"));
}

/// Sets up colour and the log. Once per process.
///
/// `-q` and `-v` set the log's level, unless `RUST_LOG` is set.
///
/// # Errors
/// `RUST_LOG` is not a valid filter.
pub fn init(style: &Style) -> Result<(), RumError> {
    let choice = match style.color {
        Color::Auto => anstream::ColorChoice::Auto,
        Color::Always => anstream::ColorChoice::Always,
        Color::Never => anstream::ColorChoice::Never,
    };
    choice.write_global();
    let filter = match std::env::var("RUST_LOG") {
        Ok(text) if !text.is_empty() => EnvFilter::try_new(&text).map_err(|error| {
            RumError::usage("RUST_LOG cannot be read")
                .caused_by(error)
                .hint("write RUST_LOG=debug, or RUST_LOG=rum_host=debug")
        })?,
        _ => {
            let level = level(style);
            // Libraries log one step less: their debug lines are not about rum.
            let others = if level >= LevelFilter::DEBUG {
                LevelFilter::INFO
            } else {
                level
            };
            EnvFilter::new(format!(
                "{others},roam_core=error,rum={level},rum_host={level},rum_agent={level},rum_shared={level}"
            ))
        }
    };
    let ansi = anstream::AutoStream::choice(&io::stderr()) != anstream::ColorChoice::Never;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(lines::Log::default)
        .with_ansi(ansi)
        .with_target(style.verbose > 0);
    // Only tests call this twice; the first call wins.
    let _ = if style.format == LogFormat::Json {
        // The form of `json`: the fields of a record beside its message.
        log.with_ansi(false)
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .try_init()
    } else if io::stderr().is_terminal() && style.verbose == 0 {
        log.without_time().try_init()
    } else {
        log.try_init()
    };
    Ok(())
}

fn level(style: &Style) -> LevelFilter {
    match (style.quiet, style.verbose) {
        (true, _) => LevelFilter::ERROR,
        (false, 0) => LevelFilter::WARN,
        (false, 1) => LevelFilter::INFO,
        (false, 2) => LevelFilter::DEBUG,
        (false, _) => LevelFilter::TRACE,
    }
}

#[cfg(test)]
mod tests;
