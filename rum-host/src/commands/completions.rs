//! `rum completions`: prints a shell's completion script.
//!
//! The script contains no names: it calls `rum` with `VARIABLE` set to the shell's name and the
//! words of the line as arguments, and `answer` prints the candidates. So the names of running
//! guests are current.

use std::io;

use clap::CommandFactory as _;
use clap_complete::env::{Bash, CompleteEnv, EnvCompleter, Fish, Shells, Zsh};

use crate::cli::Cli;
use crate::cli::tools::{CompletionsArgs, Shell};
use crate::error::RumError;
use crate::exit;

/// Set by the shell's script when it asks for candidates.
const VARIABLE: &str = "RUM_COMPLETE";
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

/// Answers a shell's request for candidates and then ends this process. Must be called before
/// anything is printed and before any thread exists.
pub(crate) fn answer() {
    CompleteEnv::with_factory(Cli::command)
        .var(VARIABLE)
        .shells(Shells(&[&Bash, &Zsh, &Fish]))
        .complete();
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use clap_complete::engine::{CompletionCandidate, complete};

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
