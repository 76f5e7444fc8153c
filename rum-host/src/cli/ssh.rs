//! Arguments of `rum ssh` and its kin.

use std::ffi::OsString;

use clap::Args;
use clap_complete::engine::ArgValueCandidates;

use crate::cli::candidates::guests;
use crate::config::values;
use crate::guest::qemu::login::{User, user_name};

/// A user with an `@`.
fn user_at(text: &str) -> Result<User, String> {
    let user = text
        .strip_suffix('@')
        .ok_or("write a user as `USER@`, a guest as `--name NAME`, and a program behind `--`")?;
    user_name(user)
}

/// Arguments of `rum ssh`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Runs ssh, connected through `rum up`: no address, no forward and no port in the
range are needed. A VM that rum boots from an image knows a key of rum's own,
and ssh logs in as the image's usual user. For other VMs ssh uses your keys.
Waits for a VM that rum boots. CMD is read by the guest's shell, as with ssh.
For scp, rsync, git and editors there is `rum ssh-config`.

Examples:
  rum ssh
  rum ssh -- uname -a
  rum ssh --name web root@

Exit codes:
  N      that of the shell or CMD, as ssh has it
  2      the command line is wrong
  255    rum or ssh failed"
)]
pub struct SshArgs {
    /// Name of the guest [default: the one in rum.toml, or the only one]
    #[arg(long, value_parser = values::name, add = ArgValueCandidates::new(guests))]
    pub name: Option<String>,
    /// Give CMD a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// User to log in as [default: the image's, or as ssh decides]
    #[arg(value_name = "USER@", value_parser = user_at)]
    pub user: Option<User>,
    /// Program to run, with its arguments
    #[arg(last = true, value_name = "CMD", value_hint = clap::ValueHint::CommandWithArguments)]
    pub command: Vec<OsString>,
}

/// Arguments of `rum ssh-config`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "The host is rum-NAME. It can be reached while its `rum up` runs.

Examples:
  rum ssh-config >> ~/.ssh/config
  scp file rum-dev:

Exit codes:
  0      printed
  1      no such guest is running, or it has no ssh
  2      the command line is wrong"
)]
pub struct SshConfigArgs {
    /// Name of the guest [default: the one in rum.toml, or the only one]
    #[arg(long, value_parser = values::name, add = ArgValueCandidates::new(guests))]
    pub name: Option<String>,
    /// User to log in as [default: the image's, or as ssh decides]
    #[arg(value_name = "USER@", value_parser = user_at)]
    pub user: Option<User>,
}

/// Arguments of `rum ssh-proxy`.
#[derive(Debug, Clone, Args)]
pub struct SshProxyArgs {
    /// Name of the guest
    #[arg(long, value_parser = values::name)]
    pub name: Option<String>,
    /// Port of the guest
    pub port: u16,
}
