//! Arguments of the small commands around `rum up`.

use std::path::PathBuf;

use clap::{Args, ValueEnum, ValueHint};
use rum_shared::range::PortRanges;

use crate::config::{Overrides, values};
use crate::plan::policy::Binds;

/// A kind of guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// A network namespace
    Namespace,
    /// A VM that rum boots
    Qemu,
    /// A domain of libvirt
    Libvirt,
    /// A VM by its CID
    Vsock,
    /// A VM by a Unix socket
    Unix,
}

/// Arguments of `rum init`.
#[derive(Debug, Clone, Default, Args)]
#[command(after_help = "Never writes over a file.

Examples:
  rum init
  rum init --name dev --range 3000-3999,8080
  rum init --kind qemu

Exit codes:
  0      written
  1      it cannot be written, or is there already
  2      the command line is wrong")]
pub struct InitArgs {
    /// Write FILE instead of rum.toml
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// Name of the guest [default: default]
    #[arg(long, value_parser = values::name)]
    pub name: Option<String>,
    /// Kind of the guest: namespace, qemu, libvirt, vsock or unix [default: namespace]
    #[arg(long, value_name = "KIND", hide_possible_values = true)]
    pub kind: Option<Kind>,
    /// Ports to forward when something listens [default: 5000-6000]
    #[arg(long, value_name = "R")]
    pub range: Option<PortRanges>,
}

/// Arguments of `rum check`: those of `rum up` that decide what is forwarded.
#[derive(Debug, Clone, Default, Args)]
#[command(
    after_help = "What would be forwarded goes to stdout, warnings about this machine to
stderr. Nothing is started and nothing is changed.

Examples:
  rum check
  rum check -c dev.toml --range 5000-6000

Exit codes:
  0      the configuration is valid, whatever the warnings say
  2      the command line or rum.toml is wrong"
)]
pub struct CheckArgs {
    /// Read FILE instead of rum.toml
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// As `rum up --range`
    #[arg(long, value_name = "R")]
    pub range: Option<PortRanges>,
    /// As `rum up --name`
    #[arg(long, value_parser = values::name)]
    pub name: Option<String>,
    /// As `rum up --bind`
    #[arg(long, value_name = "ADDR", value_parser = values::binds)]
    pub bind: Option<Binds>,
}

impl CheckArgs {
    /// The overrides of the file.
    pub fn overrides(&self) -> Overrides {
        Overrides {
            ranges: self.range.clone(),
            bind: self.bind,
            name: self.name.clone(),
            root: false,
            privileged: false,
        }
    }
}

/// Arguments of `rum doctor`.
#[derive(Debug, Clone, Default, Args)]
#[command(
    after_help = "Each line is something that was tried just now: `ok`, `warn` where
something is slower or missing that few need, `fail` where `rum up` cannot work.

Exit codes:
  0      a namespace guest works
  1      it does not
  2      the command line is wrong"
)]
pub struct DoctorArgs {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// A shell that completes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// bash
    Bash,
    /// zsh
    Zsh,
    /// fish
    Fish,
}

/// Arguments of `rum completions`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "The script asks `rum` itself, so it knows the running guests. Load it
when the shell starts, so that it fits the `rum` that is installed:
  bash   echo 'source <(rum completions bash)' >> ~/.bashrc
  zsh    echo 'source <(rum completions zsh)' >> ~/.zshrc    (after compinit)
  fish   echo 'rum completions fish | source' >> ~/.config/fish/config.fish

Exit codes:
  0      printed
  2      the command line is wrong"
)]
pub struct CompletionsArgs {
    /// bash, zsh or fish
    #[arg(hide_possible_values = true)]
    pub shell: Shell,
}

/// Arguments of `rum man`.
#[derive(Debug, Clone, Default, Args)]
#[command(after_help = "Examples:
  rum man | man -l -
  rum man /usr/local/share/man/man1

Exit codes:
  0      printed or written
  1      DIR cannot be written to
  2      the command line is wrong")]
pub struct ManArgs {
    /// Write rum.1, rum-up.1 and so on into DIR
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub dir: Option<PathBuf>,
}
