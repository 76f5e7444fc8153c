//! `rum ports`: the ports of a guest, once or for as long as its `rum up` lives.
//!
//! Data goes to stdout, in a form for its reader: a table or the live view on a terminal;
//! tab-separated lines, event lines or JSON elsewhere. Notes for people go to stderr. A reader that
//! goes away (`| head -1`) ends the command, and is not an error.

use std::io::{self, IsTerminal, Write};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::cli::ports::PortsArgs;
use crate::config::Settings;
use crate::control::client::Feed;
use crate::control::{find, offline};
use crate::error::RumError;
use crate::exit;
use crate::guest::GuestError;
use crate::status::model::{ControlInfo, Since, Stay, Update};
use crate::view::Mirror;
use crate::view::changes::{Changes, Numbered};
use crate::view::json;
use crate::view::lines::Lines;
use crate::view::live;
use crate::view::table::{self, Look};

/// Width of the table where the terminal does not know its own, in columns.
const DEFAULT_WIDTH: usize = 80;

/// Runs `rum ports`; `settings` are those of the configuration that was named or is at hand.
///
/// # Errors
/// No such guest runs, its `rum up` does not answer, or stdout cannot be written.
pub async fn ports(
    args: &PortsArgs,
    settings: Option<&Settings>,
    quiet: bool,
) -> Result<u8, RumError> {
    let configured = settings.map(|settings| settings.name.as_str());
    let name = args.name.as_deref().or(configured);
    let guest = match find(name) {
        Ok(guest) => guest,
        Err(error) if args.watch => return Err(error.into()),
        Err(error) => return without_up(error, args, settings, quiet).await,
    };
    let stay = args.watch.then_some(Stay::Follow);
    let mut feed = Feed::open(&guest, args.all, stay, args.since.clone()).await?;
    if args.watch {
        let terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
        if terminal && !args.json && args.since.is_none() {
            return live::run(guest, feed, args.all, colored()).await;
        }
        return follow(feed, args).await;
    }
    let update = feed.next().await?;
    list(feed.info(), &update, args, quiet)
}

/// No `rum up` runs: the agent of a VM can still be queried.
async fn without_up(
    error: GuestError,
    args: &PortsArgs,
    settings: Option<&Settings>,
    quiet: bool,
) -> Result<u8, RumError> {
    let absent = matches!(
        error,
        GuestError::NotRunning { .. } | GuestError::NoneRunning
    );
    let meant = |settings: &&Settings| args.name.as_ref().is_none_or(|n| *n == settings.name);
    let Some(settings) = settings.filter(|_| absent).filter(meant) else {
        return Err(error.into());
    };
    let Some(answer) = offline::snapshot(settings).await else {
        return Err(error.into());
    };
    let (info, update) = answer?;
    if !quiet {
        note(&format!(
            "No `rum up` runs for guest `{}`, so nothing is forwarded; this is what its agent says\n\
             hint: start it with `rum up`",
            settings.name
        ));
    }
    list(&info, &update, args, quiet)
}

/// Prints the ports once.
fn list(
    info: &ControlInfo,
    update: &Update,
    args: &PortsArgs,
    quiet: bool,
) -> Result<u8, RumError> {
    let mut known = Mirror::default();
    known.apply(update);
    if args.json {
        print(&json::document(info, &known, args.all))?;
        return Ok(exit::OK);
    }
    let terminal = io::stdout().is_terminal();
    let look = look(args.all);
    let text = if terminal {
        table::table(&known, &look)
    } else {
        table::lines_for_programs(&known, args.all)
    };
    print(&text)?;
    for line in table::warnings(&known, look.now, &look.zone) {
        note(&line);
    }
    if text.is_empty() && !quiet {
        note(&table::nothing(info, &known));
        if !terminal && let Some(line) = table::outside(&known) {
            note(&line);
        }
    }
    if terminal && !quiet {
        let in_force = table::in_force(&known, look.now, &look.zone);
        for line in table::footer(&known, args.all).into_iter().chain(in_force) {
            note(&line);
        }
    }
    Ok(exit::OK)
}

/// The look of the table on stdout.
fn look(all: bool) -> Look {
    let width = rustix::termios::tcgetwinsize(rustix::stdio::stdout());
    let width = width.map_or(0, |size| usize::from(size.ws_col));
    Look {
        width: if width == 0 { DEFAULT_WIDTH } else { width },
        all,
        color: colored(),
        now: Timestamp::now(),
        zone: TimeZone::system(),
    }
}

fn colored() -> bool {
    anstream::AutoStream::choice(&io::stdout()) != anstream::ColorChoice::Never
}

/// Prints events until `rum up` or the reader is gone.
async fn follow(mut feed: Feed, args: &PortsArgs) -> Result<u8, RumError> {
    let mut changes = Changes::new(args.all, resumed_at(feed.info(), args.since.as_ref()));
    let info = feed.info().clone();
    let mut lines = Lines::new(TimeZone::system());
    let mut tell = |told: Vec<Numbered>| {
        let text: String = if args.json {
            told.iter()
                .map(|change| json::line(&info, change))
                .collect()
        } else {
            let now = Timestamp::now();
            let lines = told
                .iter()
                .filter_map(|(_, change)| lines.line(change, now));
            lines.collect()
        };
        print(&text)
    };
    let mut told = vec![changes.start()];
    while tell(told)? && !changes.ended() {
        told = tokio::select! {
            update = feed.next() => match update {
                Ok(update) => changes.update(update),
                Err(error) => changes.lost(error.to_string()),
            },
            () = reader_gone() => break,
        };
    }
    Ok(exit::OK)
}

/// Number of the last event that the reader has: 0 if it was of another boot.
fn resumed_at(info: &ControlInfo, since: Option<&Since>) -> u64 {
    let since = since.filter(|since| since.boot == info.boot);
    since.map_or(0, |since| since.seq)
}

/// Completes when stdout has no reader any more; only a pipe shows that before a write.
async fn reader_gone() {
    // SAFETY: descriptor 1 stays open and the same as long as this process lives: nothing here
    // closes it or puts another file in its place.
    let stdout =
        unsafe { AsyncFd::register_with_interest(rustix::stdio::stdout(), Interest::ERROR) };
    if let Ok(stdout) = stdout
        && stdout.ready(Interest::ERROR).await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

/// Writes data to stdout at once; returns whether it still has a reader.
fn print(text: &str) -> Result<bool, RumError> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(RumError::new("cannot write to stdout").caused_by(error)),
    }
}

/// Writes a line to stderr. A closed stderr is not a failure.
fn note(line: &str) {
    let _ = writeln!(anstream::stderr(), "{line}");
}
