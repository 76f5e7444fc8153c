//! Arguments of `rum ports` and `rum wait`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueHint};
use clap_complete::engine::ArgValueCandidates;

use super::candidates::{guests, ports};
use crate::config::values;
use crate::status::model::Since;

/// Arguments of `rum ports`.
#[derive(Debug, Clone, Default, Args)]
#[command(
    after_help = r#"States: forwarded, draining, pending, lost, conflict, refused-privileged;
with --all also ignored and out-of-range. All but forwarded have a reason.
CONNS: open now / total since the port was bound. IN/OUT: bytes to the guest and
to the host.

Where stdout is not a terminal, a port is a line without header, its columns
separated by tabs: port, state, host address, process[pid], reason, guest
addresses, connections now, connections in all, bytes to the guest, bytes to
the host, since (UTC), label; - is nothing.

Examples:
  rum ports --json | jq '.ports[] | select(.state == "conflict").reason'
  rum ports --watch --json | jq -c '[.type, .op, .port.port, .port.state]'

Exit codes:
  0  the ports were listed, or the watched `rum up` ended
  1  no such guest is running, or its `rum up` does not answer
  2  the command line or rum.toml is wrong"#
)]
pub struct PortsArgs {
    /// Name of the guest [default: the one in rum.toml, or the only one]
    #[arg(long, value_parser = values::name, add = ArgValueCandidates::new(guests))]
    pub name: Option<String>,
    /// Read FILE instead of rum.toml
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// Show every port of the guest, not only those that are to be forwarded
    #[arg(short, long)]
    pub all: bool,
    /// Print JSON: one document, with --watch an object a line
    #[arg(long)]
    pub json: bool,
    /// Follow what happens: a live view on a terminal, else a line an event
    #[arg(short, long)]
    pub watch: bool,
    /// With --watch, go on after event SEQ of the run BOOT, both from the JSON
    #[arg(long, requires = "watch", value_name = "BOOT:SEQ", value_parser = since)]
    pub since: Option<Since>,
}

/// `BOOT:SEQ`, as the two are in the JSON.
fn since(text: &str) -> Result<Since, String> {
    let parsed = text.split_once(':').and_then(|(boot, seq)| {
        let hex = boot.len() == 16 && boot.bytes().all(|byte| byte.is_ascii_hexdigit());
        let boot = hex.then(|| boot.to_ascii_lowercase())?;
        let seq = seq.parse().ok()?;
        Some(Since { boot, seq })
    });
    parsed.ok_or_else(|| {
        "write the boot (16 hexadecimal digits) and the number of the event, such as \
         00c0ffee00c0ffee:42"
            .to_owned()
    })
}

/// A duration to wait for; 0 is refused, since it leaves no time for a check.
fn timeout(text: &str) -> Result<Duration, String> {
    let write = |why: String| format!("{why}; write for instance 500ms, 30s or 5m, at most 1h");
    match values::duration(text) {
        Ok(Duration::ZERO) => Err(write("there is no time to look".to_owned())),
        Ok(duration) => Ok(duration),
        Err(invalid) => Err(write(invalid.message)),
    }
}

/// Arguments of `rum wait`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Waits also for `rum up` itself. Prints the host address, such as
127.0.0.1:5000.

Examples:
  rum wait 5432 && psql -h 127.0.0.1
  curl http://$(rum wait 3000 --timeout 2m)/

Exit codes:
  0    it is forwarded (with --gone: nothing listens on it any more)
  1    it is not going to be: ignored, out of range, or not allowed
  2    the command line or rum.toml is wrong
  124  the time is over
  125  `rum up` ended, or rum failed"
)]
pub struct WaitArgs {
    /// Port of the guest, or host port of a static forward
    #[arg(
        value_name = "PORT",
        value_parser = clap::value_parser!(u16).range(1..),
        add = ArgValueCandidates::new(ports)
    )]
    pub port: u16,
    /// Wait until nothing listens on it any more
    #[arg(long)]
    pub gone: bool,
    /// How long to wait, such as 500ms, 30s or 5m
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = timeout)]
    pub timeout: Duration,
    /// Name of the guest [default: the one in rum.toml, or the only one]
    #[arg(long, value_parser = values::name, add = ArgValueCandidates::new(guests))]
    pub name: Option<String>,
}
