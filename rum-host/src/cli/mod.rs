//! The command line: definitions and help texts. What a command does is elsewhere.

pub mod agent;
mod candidates;
pub mod ports;
pub mod ssh;
pub mod tools;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand};
use clap_complete::engine::ArgValueCandidates;
use rum_shared::range::PortRanges;

use crate::cli::candidates::guests;
use crate::config::{Overrides, values};
use crate::plan::policy::Binds;
use crate::ui::{Color, LogFormat, Style};

/// Widest help text; longer lines are hard to read.
const MAX_WIDTH: usize = 100;

/// What listens inside a Linux guest is reachable on this machine at once.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "rum",
    version,
    max_term_width = MAX_WIDTH,
    arg_required_else_help = true,
    after_help = "Examples:
  rum up --range 5000-6000 -- python3 -m http.server 5000
  rum init                    write a rum.toml
  rum up                      forward as rum.toml says, until Ctrl+C
  rum exec -- psql            run a program in the guest"
)]
pub struct Cli {
    /// Options and command.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of all commands.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Global options")]
pub struct GlobalArgs {
    /// Print errors and problems only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// More log output on stderr (-vv: everything; RUST_LOG=FILTER is finer)
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
    /// Colour: auto, always or never; NO_COLOR=1 means never
    #[arg(
        long,
        global = true,
        value_name = "WHEN",
        default_value = "auto",
        hide_possible_values = true
    )]
    pub color: Color,
    /// Log format: text, or json for one object a line, what `rum up` says included
    #[arg(
        long,
        global = true,
        value_name = "FORMAT",
        default_value = "text",
        hide_possible_values = true
    )]
    pub log_format: LogFormat,
}

impl GlobalArgs {
    /// The output settings in these options.
    pub fn style(&self) -> Style {
        Style {
            color: self.color,
            format: self.log_format,
            quiet: self.quiet,
            verbose: self.verbose,
        }
    }
}

/// The commands.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Start the guest and forward what listens in it
    #[command(
        after_help = "What to forward is read from rum.toml in the current directory.
With --range no file is needed. Ends with Ctrl+C, or when CMD ends.
With --log-format json a line about a port has `notice` (forwarded, stopped,
blocked, cut), `guest` and `host`, next to `timestamp`, `level` and `message`.

A namespace guest is no security boundary: its programs have your files and
your rights. It has its own network, processes and /proc, no way to rum's
sockets and, unless --privileged is given, only the capabilities that root has
in a container.

Examples:
  rum up --range 5000-6000 -- python3 -m http.server 5000
  rum up -c dev.toml

Exit codes:
  0      stopped as asked, CMD ended with 0, or the guest powered off
  N      CMD ended with N; 125 to 127 as from env(1) where it was not run
  1      the start failed, or the guest did
  2      the command line or rum.toml is wrong
  128+N  ended by signal N, after cleaning up"
    )]
    Up(UpArgs),
    /// Stop a running `rum up`
    #[command(
        after_help = "Returns when it has ended. Connections get the drain time to finish.
With --force one that does not answer gets signals: SIGTERM, then SIGKILL.

Exit codes:
  0  it has ended
  1  no such guest is running, or its `rum up` does not answer
  2  the command line is wrong"
    )]
    Down(DownArgs),
    /// List the guest's ports, or follow changes
    Ports(ports::PortsArgs),
    /// Wait until a port of the guest is forwarded
    Wait(ports::WaitArgs),
    /// Run a program in the guest of a running `rum up`
    #[command(after_help = "Examples:
  rum exec -- ss -ltn
  rum exec --name dev -- sh -c 'echo $HOSTNAME'

Exit codes:
  N      CMD ended with N (128+N: by signal N)
  2      the command line is wrong
  125    rum failed, CMD was not run
  126    CMD cannot be executed
  127    CMD was not found")]
    Exec(ExecArgs),
    /// Open a shell in the guest of a running `rum up`
    #[command(after_help = "Starts $SHELL, or /bin/sh. Exit codes are those of `rum exec`.")]
    Shell(ShellArgs),
    /// Open a shell in a VM, or run a program in it, by ssh
    Ssh(ssh::SshArgs),
    /// Print a block for ~/.ssh/config, for scp, rsync, git and editors
    SshConfig(ssh::SshConfigArgs),
    /// Relay between stdin, stdout and a port of a VM
    #[command(hide = true)]
    SshProxy(ssh::SshProxyArgs),
    /// Install rum-agent in a VM that rum did not start
    #[command(subcommand)]
    Agent(agent::AgentCommand),
    /// Attach to the serial console of a VM that rum booted
    #[command(
        after_help = "Ctrl+] detaches; the VM goes on. Without a terminal as stdin it only shows.
What the guest writes reaches the terminal as it is, as with ssh.

Exit codes:
  0  detached, or the guest has ended
  1  no such guest is running, or it has no console
  2  the command line is wrong"
    )]
    Console(ConsoleArgs),
    /// Write a rum.toml with a comment on each key
    Init(tools::InitArgs),
    /// Say what `rum up` would forward, and what is in its way
    Check(tools::CheckArgs),
    /// Check what rum can do on this machine
    Doctor(tools::DoctorArgs),
    /// Print a script that completes `rum` commands in a shell
    Completions(tools::CompletionsArgs),
    /// Print the man page, or write all of them
    #[command(hide = true)]
    Man(tools::ManArgs),
}

/// Arguments of `rum up`.
#[derive(Debug, Clone, Default, Args)]
pub struct UpArgs {
    /// Read FILE instead of rum.toml
    #[arg(short, long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// Forward these ports when something listens, such as 3000-3999,8080
    #[arg(long, value_name = "R")]
    pub range: Option<PortRanges>,
    /// Name of the guest, for `rum exec` [default: the name in rum.toml]
    #[arg(long, value_parser = values::name)]
    pub name: Option<String>,
    /// Host address of automatic forwards [default: localhost]
    #[arg(long, value_name = "ADDR", value_parser = values::binds)]
    pub bind: Option<Binds>,
    /// Discard what the guest wrote to its image
    #[arg(long)]
    pub reset: bool,
    /// Be root in a namespace guest, as an ordinary user
    #[arg(long)]
    pub root: bool,
    /// Leave root's programs in a namespace guest all of root's capabilities
    #[arg(long)]
    pub privileged: bool,
    /// One more argument for the agent
    #[arg(long, hide = true, value_name = "ARG", allow_hyphen_values = true)]
    pub agent_arg: Vec<String>,
    /// Ask the agent once a second instead of following its events
    #[arg(long, hide = true)]
    pub no_stream: bool,
    /// Where it begins.
    #[command(flatten)]
    pub workdir: WorkdirArg,
    /// Program to run in the guest, with its arguments
    #[arg(last = true, value_name = "CMD", value_hint = clap::ValueHint::CommandWithArguments)]
    pub command: Vec<OsString>,
}

impl UpArgs {
    /// The overrides of the file.
    pub fn overrides(&self) -> Overrides {
        Overrides {
            ranges: self.range.clone(),
            bind: self.bind,
            name: self.name.clone(),
            root: self.root,
            privileged: self.privileged,
        }
    }
}

/// Arguments of `rum down`.
#[derive(Debug, Clone, Args)]
pub struct DownArgs {
    /// Name of the guest [default: the one in rum.toml, or the only one]
    #[arg(long, value_parser = values::name, add = ArgValueCandidates::new(guests))]
    pub name: Option<String>,
    /// Cut connections and kill what runs in the guest
    #[arg(long)]
    pub force: bool,
}

/// Arguments of `rum exec`.
#[derive(Debug, Clone, Args)]
pub struct ExecArgs {
    /// Name of the guest [default: the one in rum.toml, or the only one]
    #[arg(long, value_parser = values::name, add = ArgValueCandidates::new(guests))]
    pub name: Option<String>,
    /// Where it begins.
    #[command(flatten)]
    pub workdir: WorkdirArg,
    /// Program to run, with its arguments
    #[arg(
        required = true,
        trailing_var_arg = true,
        value_name = "CMD",
        value_hint = clap::ValueHint::CommandWithArguments
    )]
    pub command: Vec<OsString>,
}

/// Arguments of `rum shell`.
#[derive(Debug, Clone, Args)]
pub struct ShellArgs {
    /// Name of the guest [default: the one in rum.toml, or the only one]
    #[arg(long, value_parser = values::name, add = ArgValueCandidates::new(guests))]
    pub name: Option<String>,
    /// Where it begins.
    #[command(flatten)]
    pub workdir: WorkdirArg,
}

/// The working directory of a program in the guest.
#[derive(Debug, Clone, Default, Args)]
pub struct WorkdirArg {
    /// Directory of the guest to run it in [default: this one]
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    workdir: Option<PathBuf>,
}

impl WorkdirArg {
    /// The directory; empty for the caller's.
    pub fn path(&self) -> PathBuf {
        self.workdir.clone().unwrap_or_default()
    }
}

/// Arguments of `rum console`.
#[derive(Debug, Clone, Args)]
pub struct ConsoleArgs {
    /// Name of the guest [default: the one in rum.toml, or the only one]
    #[arg(long, value_parser = values::name)]
    pub name: Option<String>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::CommandFactory;

    use super::*;

    /// What `rum ARGS` prints when it does not run a command, without colour, 80 columns wide.
    fn printed(args: &[&str]) -> (String, i32) {
        let command = Cli::command().term_width(80);
        let args = std::iter::once("rum").chain(args.iter().copied());
        let error = command.try_get_matches_from(args).unwrap_err();
        (error.to_string(), error.exit_code())
    }

    fn up(args: &[&str]) -> UpArgs {
        let args = ["rum", "up"].into_iter().chain(args.iter().copied());
        match Cli::try_parse_from(args).unwrap().command {
            Command::Up(up) => up,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn helps() {
        for (name, args) in [
            ("help", &["--help"][..]),
            ("help-up", &["help", "up"]),
            ("help-down", &["help", "down"]),
            ("help-ports", &["help", "ports"]),
            ("help-wait", &["wait", "-h"]),
            ("help-exec", &["help", "exec"]),
            ("help-shell", &["shell", "-h"]),
            ("help-ssh", &["ssh", "-h"]),
            ("help-ssh-config", &["ssh-config", "-h"]),
            ("help-console", &["help", "console"]),
            ("help-init", &["init", "-h"]),
            ("help-check", &["check", "-h"]),
            ("help-doctor", &["doctor", "-h"]),
            ("help-completions", &["completions", "-h"]),
            ("help-man", &["man", "-h"]),
            ("help-agent", &["agent", "-h"]),
            ("help-agent-binary", &["agent", "binary", "-h"]),
            ("help-agent-install", &["agent", "install", "-h"]),
            ("help-agent-seed", &["agent", "seed", "-h"]),
        ] {
            let (text, code) = printed(args);
            assert_eq!(code, 0);
            insta::assert_snapshot!(name, text);
            assert!(text.lines().all(|line| line.chars().count() <= 80));
        }
        let version = printed(&["--version"]);
        assert_eq!(
            version,
            (concat!("rum ", env!("CARGO_PKG_VERSION"), "\n").into(), 0)
        );
    }

    #[test]
    fn usage_errors_exit_with_2() {
        for (name, args) in [
            ("usage-range", &["up", "--range", "6000-5000"][..]),
            ("usage-bind", &["up", "--bind", "example.com"]),
            ("usage-name", &["exec", "--name", "../x", "ls"]),
            ("usage-no-dashes", &["up", "psql"]),
            ("usage-exec-nothing", &["exec"]),
            ("usage-misspelt", &["upp"]),
            ("usage-ssh-guest", &["ssh", "dev"]),
            ("usage-ssh-user", &["ssh", "-oProxyCommand=x@"]),
            ("usage-since", &["ports", "--watch", "--since", "42"]),
            (
                "usage-since-alone",
                &["ports", "--since", "00c0ffee00c0ffee:42"],
            ),
            ("usage-wait-port", &["wait", "0"]),
            ("usage-wait-timeout", &["wait", "5000", "--timeout", "30"]),
            ("usage-wait-zero", &["wait", "5000", "--timeout", "0"]),
            ("usage-quiet-verbose", &["-q", "-v", "up"]),
            ("usage-log-format", &["--log-format", "xml", "up"]),
            ("usage-completions", &["completions", "tcsh"]),
            (
                "usage-agent-ssh",
                &["agent", "install", "--ssh=-oProxyCommand=x"],
            ),
        ] {
            let (text, code) = printed(args);
            assert_eq!(code, i32::from(crate::exit::USAGE), "{args:?}");
            insta::assert_snapshot!(name, text);
        }
    }

    #[test]
    fn what_follows_belongs_to_the_program() {
        let args = up(&[
            "--range",
            "1-2,5",
            "--agent-arg=--hint=poll",
            "--",
            "a",
            "-q",
            "--",
            "b",
        ]);
        assert_eq!(args.command, ["a", "-q", "--", "b"]);
        assert_eq!(args.agent_arg, ["--hint=poll"]);
        assert_eq!(args.overrides().ranges.unwrap().to_string(), "1-2,5");
        for with in [&["--"][..], &[]] {
            let args = ["rum", "exec", "--name", "dev"];
            let args = args.iter().chain(with).chain(&["ls", "-l", "--name"]);
            let Command::Exec(exec) = Cli::try_parse_from(args).unwrap().command else {
                panic!("not exec");
            };
            assert_eq!(exec.command, ["ls", "-l", "--name"]);
            assert_eq!(exec.name.as_deref(), Some("dev"));
        }
        let cli = Cli::try_parse_from(["rum", "up", "-vv", "--color", "never"]).unwrap();
        assert_eq!((cli.global.verbose, cli.global.color), (2, Color::Never));
    }
}
