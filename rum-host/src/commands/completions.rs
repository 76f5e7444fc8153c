//! `rum completions`: what a shell offers after Tab.
//!
//! The script that a shell loads knows nothing: it calls `rum` with [`VARIABLE`] set to the
//! shell's name and the words of the line as arguments, and [`answer`] prints what fits. So names
//! of running guests are those of this moment.
//!
//! Invariant: guests that cannot be looked for are not offered, and nothing is said about it; a
//! shell's prompt is no place for an error.

use std::io;
use std::time::Duration;

use clap::CommandFactory as _;
use clap_complete::engine::CompletionCandidate;
use clap_complete::env::{Bash, CompleteEnv, EnvCompleter, Fish, Shells, Zsh};

use crate::cli::Cli;
use crate::cli::tools::{CompletionsArgs, Shell};
use crate::control::client::Feed;
use crate::error::RumError;
use crate::exit;
use crate::runtime_dir::{self, RunningGuest};
use crate::status::model::{State, Update};

/// Set by the shell's script when it asks.
const VARIABLE: &str = "RUM_COMPLETE";
/// How long somebody who has pressed Tab waits for a guest's ports.
const PATIENCE: Duration = Duration::from_millis(500);
/// The command that is completed, looked for in the PATH.
const BIN: &str = "rum";

/// Runs `rum completions`.
///
/// # Errors
/// stdout cannot be written to.
pub fn run(args: &CompletionsArgs) -> Result<u8, RumError> {
    let failed = |error| RumError::new("cannot make the script").caused_by(error);
    super::print(&script(args.shell).map_err(failed)?)?;
    Ok(exit::OK)
}

fn script(shell: Shell) -> io::Result<String> {
    let shell: &dyn EnvCompleter = match shell {
        Shell::Bash => &Bash,
        Shell::Zsh => &Zsh,
        Shell::Fish => &Fish,
    };
    let mut script = Vec::new();
    shell.write_registration(VARIABLE, BIN, BIN, BIN, &mut script)?;
    String::from_utf8(script).map_err(io::Error::other)
}

/// Answers a shell that asks, and ends this process then. To be called before anything is
/// printed and before any thread exists.
pub(crate) fn answer() {
    CompleteEnv::with_factory(Cli::command)
        .var(VARIABLE)
        .shells(Shells(&[&Bash, &Zsh, &Fish]))
        .complete();
}

/// The running guests, for `--name`.
pub(crate) fn guests() -> Vec<CompletionCandidate> {
    let running = runtime_dir::list().unwrap_or_default();
    running
        .into_iter()
        .map(|guest| {
            let kind = guest.kind.map(|kind| {
                let kind = rum_shared::text::clean(&kind, rum_shared::listener::MAX_NAME);
                format!("guest of kind {kind}").into()
            });
            CompletionCandidate::new(guest.name).help(kind)
        })
        .collect()
}

/// The ports of all running guests, for commands that take one. An option `--name` on the same
/// line is not known here, so that a port may be offered that another guest has.
pub fn ports() -> Vec<CompletionCandidate> {
    let running = runtime_dir::list().unwrap_or_default();
    let mut ports: Vec<_> = running.iter().flat_map(running_ports).collect();
    ports.sort_by_key(|(port, _)| *port);
    ports.dedup_by_key(|(port, _)| *port);
    let candidate = |(port, state): (u16, State)| {
        CompletionCandidate::new(port.to_string()).help(Some(state.as_str().into()))
    };
    ports.into_iter().map(candidate).collect()
}

/// What is known of the ports of `guest`; empty where its `rum up` does not tell at once.
fn running_ports(guest: &RunningGuest) -> Vec<(u16, State)> {
    let ask = async {
        let mut feed = Feed::open(guest, false, None, None).await.ok()?;
        match feed.next().await.ok()? {
            Update::Snapshot { ports, .. } => {
                Some(ports.iter().map(|p| (p.port, p.state)).collect())
            }
            Update::Events(_) => None,
        }
    };
    let Ok(runtime) = crate::small_runtime() else {
        return Vec::new();
    };
    let answer = runtime.block_on(async { tokio::time::timeout(PATIENCE, ask).await });
    answer.ok().flatten().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use clap_complete::engine::complete;

    use super::*;

    fn offered(words: &[&str]) -> Vec<String> {
        let words: Vec<_> = words.iter().map(Into::into).collect();
        let last = words.len() - 1;
        let found = complete(&mut Cli::command(), words, last, None).unwrap();
        let text = |c: CompletionCandidate| c.get_value().to_str().unwrap().to_owned();
        found.into_iter().map(text).collect()
    }

    #[test]
    fn commands_options_and_values_are_offered() {
        assert_eq!(offered(&["rum", "do"]), ["down", "doctor"]);
        assert_eq!(offered(&["rum", "init", "--ra"]), ["--range"]);
        assert_eq!(
            offered(&["rum", "completions", ""])[..3],
            ["bash", "zsh", "fish"]
        );
        assert_eq!(offered(&["rum", "--log-format", "j"]), ["json"]);
        assert!(!offered(&["rum", ""]).contains(&"man".to_owned()), "hidden");
    }

    #[test]
    fn scripts_call_rum() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = script(shell).unwrap();
            assert!(script.contains(VARIABLE), "{script}");
            assert!(script.contains(BIN), "{script}");
        }
    }
}
