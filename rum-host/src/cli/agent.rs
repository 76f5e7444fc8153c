//! Arguments of `rum agent`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};

use crate::config::values;
use crate::guest::libvirt::DEFAULT_URI;

/// The commands of `rum agent`.
#[derive(Debug, Clone, Subcommand)]
pub enum AgentCommand {
    /// Install rum-agent in a running VM, or say how
    Install(InstallArgs),
    /// Write a disk for cloud-init that installs rum-agent in a VM
    Seed(SeedArgs),
    /// Write the program rum-agent to stdout
    #[command(
        after_help = "A static program for a Linux guest of this machine's architecture.

Examples:
  rum agent binary > rum-agent

Exit codes:
  0  written
  1  stdout cannot be written to
  2  the command line is wrong, or stdout is a terminal"
    )]
    Binary,
    /// Print the script that installs rum-agent
    #[command(
        after_help = "For a Linux guest with systemd, OpenRC or the init of busybox. As root there, with the
program beside it: `sh install-rum-agent`.

Examples:
  rum agent installer > install-rum-agent"
    )]
    Installer,
    /// Print the systemd unit of rum-agent
    #[command(after_help = "Examples:
  rum agent unit > rum-agent.service")]
    Unit,
}

/// Arguments of `rum agent install`.
#[derive(Debug, Clone, Default, Args)]
#[command(
    after_help = "For a VM that `rum up` did not make. Without --ssh and --domain the steps
are printed. With one of them they are shown and run; ssh and sudo may ask for passwords.

Examples:
  rum agent install
  rum agent install --ssh root@192.0.2.7
  rum agent install --ssh ssh://me@localhost:2022
  rum agent install --domain me@debian

Exit codes:
  0  printed, or installed and started
  1  a step failed
  2  the command line is wrong"
)]
pub struct InstallArgs {
    /// Install over ssh, where DEST is [USER@]HOST or what else ssh(1) takes
    #[arg(long, value_name = "DEST", value_parser = destination, value_hint = ValueHint::Hostname)]
    pub ssh: Option<String>,
    /// Install over ssh in a domain of libvirt, which gets a vsock device if it has none and whose address is looked up; USER is root if left out
    #[arg(long, value_name = "[USER@]NAME", value_parser = destination, conflicts_with = "ssh")]
    pub domain: Option<String>,
    /// The libvirt that has the domain
    #[arg(long, value_name = "URI", default_value = DEFAULT_URI, requires = "domain")]
    pub uri: String,
    /// Print the steps, run none
    #[arg(long)]
    pub print: bool,
}

/// Arguments of `rum agent seed`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "For images with cloud-init in VMs that `rum up` does not make: libvirt and
others. The VM needs FILE as one more disk, and a vsock device. cloud-init finds
it by its label (data source NoCloud) and installs the agent at each boot.

Examples:
  rum agent seed seed.img --ssh-key ~/.ssh/id_ed25519.pub
  virt-install --import --disk debian.qcow2 --disk seed.img,format=raw \\
    --vsock cid.auto=yes --name debian --memory 2048 --osinfo detect=on

Exit codes:
  0  written
  1  it cannot be written, or is there and no such disk
  2  the command line is wrong"
)]
pub struct SeedArgs {
    /// Where to write it; a seed disk of rum's there is replaced
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// Host name for the guest [default: its own]
    #[arg(long, value_parser = values::name)]
    pub name: Option<String>,
    /// File with a public key that may log in as the image's usual user
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub ssh_key: Option<PathBuf>,
    /// File with user data of your own for cloud-init
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub user_data: Option<PathBuf>,
    /// Write over whatever FILE is
    #[arg(long)]
    pub force: bool,
}

/// A destination for ssh, which must be no option and one word.
fn destination(text: &str) -> Result<String, String> {
    let odd = |c: char| c.is_whitespace() || c.is_control() || c == '\'';
    if text.is_empty() || text.starts_with('-') || text.contains(odd) {
        return Err("write a destination as for ssh(1), such as `root@192.0.2.7`".into());
    }
    Ok(text.to_owned())
}
