//! What rum tells its user while it runs, and the log.
//!
//! [`Notice`] is the closed list of lines. They are data and go to stdout; where a command of
//! the user owns stdout, to stderr. The log always goes to stderr.
//!
//! A terminal that is stopped with Ctrl+S, or a pager that nobody scrolls, blocks a write for
//! ever. So a thread of its own writes, behind a bounded queue: [`Output::say`] never waits and
//! forwarding never depends on a reader. Lines that found no room are counted, and the count is
//! told.
//!
//! Invariants: one line, or one error, is one write; no line contains a control character; a
//! reader that went away ([`Output::closed`]) is not an error; with `--log-format json` every line
//! of the log and every notice is a JSON object (`json`).

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender, TrySendError};
use std::time::Duration;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::cli::{Color, GlobalArgs, LogFormat};
use crate::error::{self, RumError};
use crate::notice::Notice;

pub(crate) mod json;

/// Lines that wait for a slow reader: more than the largest burst, 500 listeners at once.
const QUEUE: usize = 4096;

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
    queue: SyncSender<Item>,
    omitted: Arc<AtomicU64>,
    closed: CancellationToken,
    quiet: bool,
    format: LogFormat,
}

#[derive(Debug)]
enum Item {
    /// Whole lines.
    Text(String),
    /// Everything before it was written.
    Flush(Sender<()>),
}

impl Output {
    /// Starts the writer.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn start(target: Target, quiet: bool, format: LogFormat) -> io::Result<Self> {
        match target {
            Target::Stdout => Self::to(io::stdout(), quiet, format),
            Target::Stderr => Self::to(io::stderr(), quiet, format),
        }
    }

    /// Starts a writer to `to`.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn to(to: impl Write + Send + 'static, quiet: bool, format: LogFormat) -> io::Result<Self> {
        let (queue, items) = mpsc::sync_channel(QUEUE);
        let output = Self {
            queue,
            omitted: Arc::default(),
            closed: CancellationToken::new(),
            quiet,
            format,
        };
        let (omitted, closed) = (output.omitted.clone(), output.closed.clone());
        std::thread::Builder::new()
            .name("output".into())
            .spawn(move || {
                // Whatever the reason, nobody reads any more.
                let _ = write_all(to, &items, &omitted, format);
                closed.cancel();
            })?;
        Ok(output)
    }

    /// Prints a line. Never waits.
    pub fn say(&self, notice: &Notice) {
        if self.quiet && !notice.is_problem() {
            return;
        }
        self.queue(match self.format {
            LogFormat::Text => notice.to_string().replace(char::is_control, "?") + "\n",
            LogFormat::Json => json::notice(notice, Timestamp::now()),
        });
    }

    /// Prints an error as [`error::report`] does. Never waits.
    pub fn report(&self, error: &RumError) {
        self.queue(error::for_stderr(error, self.format));
    }

    fn queue(&self, text: String) {
        if let Err(TrySendError::Full(_)) = self.queue.try_send(Item::Text(text)) {
            self.omitted.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Cancelled when the reader has gone, as after `rum up | head -1`.
    pub fn closed(&self) -> &CancellationToken {
        &self.closed
    }

    /// Waits until everything said so far is written, at most for `limit`. For the very end;
    /// blocks the thread.
    pub fn flush(&self, limit: Duration) {
        let (done, wait) = mpsc::channel();
        if self.queue.try_send(Item::Flush(done)).is_ok() {
            // An error is the reader's end or the limit: nothing more can be done.
            let _ = wait.recv_timeout(limit);
        }
    }
}

fn write_all(
    mut to: impl Write,
    items: &Receiver<Item>,
    omitted: &AtomicU64,
    format: LogFormat,
) -> io::Result<()> {
    for item in items {
        match item {
            Item::Text(text) => to.write_all(text.as_bytes())?,
            Item::Flush(done) => {
                to.flush()?;
                // Gone if it waited too long.
                let _ = done.send(());
            }
        }
        let lost = omitted.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let message = format!("{lost} lines were not shown: the reader was too slow");
            let line = match format {
                LogFormat::Text => format!("({message})\n"),
                LogFormat::Json => json::omitted(&message, Timestamp::now()),
            };
            to.write_all(line.as_bytes())?;
        }
    }
    Ok(())
}

/// Prints a line to stderr, for commands that say little. That nobody reads it is no error.
pub(crate) fn tell(line: &str) {
    let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// Sets up colour and the log. Once per process.
///
/// The log's level is that of `-q` and `-v`, unless `RUST_LOG` says otherwise.
///
/// # Errors
/// `RUST_LOG` is not a filter.
pub fn init(args: &GlobalArgs) -> Result<(), RumError> {
    let choice = match args.color {
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
            let level = level(args);
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
        .with_writer(io::stderr)
        .with_ansi(ansi)
        .with_target(args.verbose > 0);
    // A second set-up is a test's; the first stays.
    let _ = if args.log_format == LogFormat::Json {
        // The form of `json`: what a record is about next to its message.
        log.with_ansi(false)
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .try_init()
    } else if io::stderr().is_terminal() && args.verbose == 0 {
        log.without_time().try_init()
    } else {
        log.try_init()
    };
    Ok(())
}

fn level(args: &GlobalArgs) -> LevelFilter {
    match (args.quiet, args.verbose) {
        (true, _) => LevelFilter::ERROR,
        (false, 0) => LevelFilter::WARN,
        (false, 1) => LevelFilter::INFO,
        (false, 2) => LevelFilter::DEBUG,
        (false, _) => LevelFilter::TRACE,
    }
}

#[cfg(test)]
mod tests;
