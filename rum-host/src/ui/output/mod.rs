//! What rum tells its user while it runs, and the log.
//!
//! [`Notice`] is the closed list of lines. They are data and go to stdout; where a command of
//! the user owns stdout, to stderr. The log always goes to stderr.
//!
//! Neither waits for a reader, and no failure of one ends anything ([`rum_shared::lines`]), so
//! forwarding never depends on a reader: but when the reader of stdout goes away ([`Output::closed`]),
//! as head(1) does, `rum up` has nothing more to do. Lines and log share one queue to stderr.
//!
//! Invariants: one line, or one error, is one write; no line contains a control character; with `--log-format json` every line
//! of the log and every notice is a JSON object (`json`).

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

/// Where the lines go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The usual.
    Stdout,
    /// A command of the user owns stdout.
    Stderr,
}

/// The way to the user. Clones share one queue.
#[derive(Debug, Clone)]
pub struct Output {
    lines: Lines,
    closed: CancellationToken,
    quiet: bool,
    format: LogFormat,
}

impl Output {
    /// The way to one of the standard streams.
    pub fn start(target: Target, quiet: bool, format: LogFormat) -> Self {
        match target {
            Target::Stdout => Self::to(Standard::Stdout, quiet, format),
            // Only tells of things: that nobody reads it is no reason to end.
            Target::Stderr => Self {
                lines: lines::stderr(tell_lost(format)).clone(),
                closed: CancellationToken::new(),
                quiet,
                format,
            },
        }
    }

    /// The way to `to`.
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

    /// Prints a line. Never waits.
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

    /// Cancelled when the reader has gone, as after `rum up | head -1`.
    pub fn closed(&self) -> &CancellationToken {
        &self.closed
    }

    /// Waits until everything said so far is written, at most for `limit`. For the very end;
    /// blocks the thread.
    pub fn flush(&self, limit: Duration) {
        self.lines.flush(limit);
    }
}

/// How lost lines are told among the others.
fn tell_lost(format: LogFormat) -> TellLost {
    match format {
        LogFormat::Text => lines::lost_line,
        LogFormat::Json => |missing| json::omitted(&lines::lost(missing), Timestamp::now()),
    }
}

/// Prints a line to stderr, for commands that say little. That nobody reads it is no error.
pub(crate) fn tell(line: &str) {
    lines::say_on_stderr(&format!("{line}\n"));
}

/// Sets up colour and the log. Once per process.
///
/// The log's level is that of `-q` and `-v`, unless `RUST_LOG` says otherwise.
///
/// # Errors
/// `RUST_LOG` is not a filter.
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
            // Libraries stay one step quieter: their debug lines are not ours.
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
    // A second set-up is a test's; the first stays.
    let _ = if style.format == LogFormat::Json {
        // The form of `json`: what a record is about next to its message.
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
