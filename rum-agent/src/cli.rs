//! The agent's command line. `rum` re-executes itself as the agent and uses it too.

use std::io::{IsTerminal, stderr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use clap::{ArgAction, Parser};
use rum_shared::lines;
use rum_shared::transport::{KnockTarget, ListenAddr};
use rum_shared::{CHANNEL_PORT, RPC_PORT};
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{Level, debug, info, warn};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::hint::{HintError, HintKind};
use crate::kernel::tracepoint::ThreadName;
use crate::port_set::source::SourceKind;
use crate::server::{AgentError, Config};

/// Tells the host what listens in this guest, and connects it
#[derive(Debug, Clone, Parser)]
#[command(name = "rum-agent", version, max_term_width = 100)]
pub struct Args {
    /// Where the host calls: `vsock:PORT`, `unix:PATH` or `fd:N`
    #[arg(long, value_name = "WHERE", default_value_t = ListenAddr::Vsock(RPC_PORT))]
    pub rpc: ListenAddr,

    /// Where the host opens connections: `vsock:PORT`, `unix:PATH` or `fd:N`
    #[arg(long, value_name = "WHERE", default_value_t = ListenAddr::Vsock(CHANNEL_PORT))]
    pub channel: ListenAddr,

    /// Read the listening sockets from `netlink` or `proc` only [default: the best there is]
    #[arg(long)]
    pub source: Option<SourceKind>,

    /// Be woken by the `tracepoint`, by `seccomp` or by a `poll` only [default: the best there is]
    #[arg(long)]
    pub hint: Option<HintKind>,

    /// The inherited pipe with word of each `listen()`, for `seccomp`
    #[arg(long, value_name = "FD", hide = true, value_parser = clap::value_parser!(i32).range(3..))]
    pub notified: Option<i32>,

    /// The inherited file to say in of which ports there should be word
    #[arg(long, value_name = "FD", hide = true, value_parser = clap::value_parser!(i32).range(3..))]
    #[arg(requires = "notified")]
    pub wanted: Option<i32>,

    /// The name of the host's threads, which share this kernel and make no listener of this guest
    #[arg(long, value_name = "COMM", hide = true)]
    pub host_threads: Option<ThreadName>,

    /// Where to say that the agent is ready: `auto` (the host, over vsock), `off` or `unix:PATH`
    #[arg(long, value_name = "WHERE", default_value = "auto")]
    pub knock: Knock,

    /// Serve this vsock peer as well as the host (1 is this machine itself); may be repeated
    #[arg(long, value_name = "CID")]
    pub allow_cid: Vec<u32>,

    /// Hand connected sockets to the host, which must share this kernel and be trusted with them
    #[arg(long)]
    pub hand_over: bool,

    /// Log problems only
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,

    /// More log output (-vv: everything)
    #[arg(short, long, action = ArgAction::Count)]
    pub verbose: u8,

    /// Log JSON objects, one a line
    #[arg(long)]
    pub log_json: bool,
}

/// The value of `--knock`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Knock {
    /// At the host if the RPC is on vsock, else nowhere.
    Auto,
    /// Nowhere.
    Off,
    /// At a Unix socket.
    Unix(PathBuf),
}

impl FromStr for Knock {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "auto" => Ok(Self::Auto),
            None if text == "off" => Ok(Self::Off),
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(path.into())),
            _ => Err("write `auto`, `off` or `unix:PATH`".into()),
        }
    }
}

impl From<Args> for Config {
    fn from(args: Args) -> Self {
        let knock = match args.knock {
            Knock::Auto if matches!(args.rpc, ListenAddr::Vsock(_)) => Some(KnockTarget::Vsock),
            Knock::Auto | Knock::Off => None,
            Knock::Unix(path) => Some(KnockTarget::Unix(path)),
        };
        Self {
            rpc: args.rpc,
            channel: args.channel,
            source: args.source,
            hint: args.hint,
            notified: args.notified,
            wanted: args.wanted,
            host_threads: args.host_threads,
            knock,
            allow_cid: args.allow_cid,
            hand_over: args.hand_over,
        }
    }
}

/// Runs the agent as this process until SIGTERM or SIGINT. Logs to stderr.
pub fn main_with(args: Args) -> ExitCode {
    let held_back = crate::kernel::privilege::hold_back();
    start_log(args.quiet, args.verbose, args.log_json);
    if let Err(error) = held_back {
        warn!("CAP_SYS_ADMIN stays in force: {error}");
    }
    raise_descriptor_limit();
    if matches!(args.rpc, ListenAddr::Vsock(_)) {
        stay_in_memory();
    }
    let code = match run_process(args.into()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut text = format!("error: {}\n", crate::chain(&*error));
            if let Some(hint) = hint(&*error) {
                text += &format!("hint: {hint}\n");
            }
            lines::stderr(lines::lost_line).say(text);
            ExitCode::FAILURE
        }
    };
    lines::flush_stderr();
    code
}

/// Has the kernel of a VM keep what this process uses of its file and its data from now on, some
/// MB, in memory: read from the disk again for each use, as where memory is short, it answers
/// nobody.
fn stay_in_memory() {
    let flags = MlockAllFlags::CURRENT | MlockAllFlags::ONFAULT;
    if let Err(error) = mlockall(flags) {
        debug!("not kept in memory: {error}");
    }
}

fn run_process(config: Config) -> Result<(), Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let shutdown = CancellationToken::new();
        // A task, since waking this root future costs a system call each time.
        let mut agent = JoinSet::new();
        agent.spawn(crate::run(config, shutdown.clone()));
        tokio::select! {
            Some(result) = agent.join_next() => return Ok(result??),
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        info!("stopping");
        shutdown.cancel();
        while let Some(result) = agent.join_next().await {
            result??;
        }
        Ok(())
    })
}

fn start_log(quiet: bool, verbose: u8, json: bool) {
    let level = match verbose {
        0 if quiet => Level::WARN,
        0 => Level::INFO,
        1 => Level::DEBUG,
        _ => Level::TRACE,
    };
    let ours = Targets::new()
        .with_target("rum_agent", level)
        .with_target("rum_shared", level);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(|| lines::stderr(lines::lost_line).clone())
        .with_ansi(stderr().is_terminal())
        .with_target(verbose > 0);
    let log = tracing_subscriber::registry().with(ours);
    // Fails where the process has a log already, which then gets our lines.
    let _ = if json {
        let lines = lines.with_ansi(false).json().flatten_event(true);
        let lines = lines.with_current_span(false).with_span_list(false);
        log.with(lines).try_init()
    } else {
        log.with(lines).try_init()
    };
}

/// Takes as many descriptors as this process may have: a channel needs two.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        debug!(
            "the limit of open files stays at {:?}: {error}",
            limit.current
        );
    }
}

/// What can be done about `error`.
fn hint(error: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    match error.downcast_ref::<AgentError>()? {
        AgentError::Listen {
            addr: ListenAddr::Vsock(_),
            ..
        } => Some(
            "vsock needs the kernel module `vmw_vsock_virtio_transport`; outside a VM use `--rpc unix:PATH --channel unix:PATH`",
        ),
        AgentError::Hint(HintError::Tracepoint(error)) => {
            error.hint().or(Some("leave out `--hint`"))
        }
        AgentError::Hint(HintError::Seccomp) => Some("leave out `--hint`"),
        AgentError::Source(_) => Some("leave out `--source`"),
        AgentError::Listen { .. } | AgentError::Part(_) => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use clap::CommandFactory;

    fn config(args: &[&str]) -> Config {
        let args = std::iter::once(&"rum-agent").chain(args);
        Args::try_parse_from(args).unwrap().into()
    }

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn the_defaults_are_those_of_a_vm() {
        let config = config(&[]);
        assert_eq!(config.rpc, ListenAddr::Vsock(2222));
        assert_eq!(config.channel, ListenAddr::Vsock(2223));
        assert_eq!(config.knock, Some(KnockTarget::Vsock));
        assert_eq!((config.source, config.hint), (None, None));
        assert_eq!(config.allow_cid, [0; 0]);
    }

    #[test]
    fn knocking_follows_the_transport_unless_told() {
        let unix = ["--rpc", "unix:/a", "--channel", "unix:/b"];
        assert_eq!(config(&unix).knock, None);
        let told = config(&["--rpc", "unix:/a", "--knock", "unix:/k"]);
        assert_eq!(told.knock, Some(KnockTarget::Unix("/k".into())));
        assert_eq!(config(&["--knock", "off"]).knock, None);
    }

    #[test]
    fn wrong_words_are_answered_with_the_right_ones() {
        for (flag, says) in [
            ("--source", "`netlink` or `proc`"),
            ("--hint", "`tracepoint`, `seccomp` or `poll`"),
            ("--knock", "`auto`, `off` or `unix:PATH`"),
        ] {
            let error = Args::try_parse_from(["rum-agent", flag, "x"]).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
        }
    }
}
