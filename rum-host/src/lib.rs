//! The host side of rum: the library behind the command `rum`.
//!
//! `commands::up` is the entry point. The six steps of ARCHITECTURE.md are in [`hint`] (1),
//! [`stream`] (3), [`plan`] and [`supervisor`] (4), [`forward`] (5, and 6 with rum-shared's relay).

use std::process::ExitCode;

use clap::Parser as _;

use crate::cli::ports::{PortsArgs, WaitArgs};
use crate::cli::ssh::{SshArgs, SshConfigArgs, SshProxyArgs};
use crate::cli::{Cli, Command, ConsoleArgs, DownArgs, GlobalArgs, UpArgs};
use crate::error::RumError;

pub mod agent;
pub mod cli;
mod clock;
pub mod commands;
pub mod config;
pub mod control;
mod descriptors;
pub mod error;
pub mod exit;
pub mod forward;
pub mod guest;
pub mod hint;
mod limits;
pub mod plan;
pub mod reason;
mod runtime;
pub mod runtime_dir;
pub mod signals;
pub mod stack;
pub mod status;
pub mod stream;
pub mod supervisor;
pub mod ui;
pub mod view;

/// Our version. An agent of another version is served as far as it is compatible.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Runs the command line of this process; the exit code is documented in each command's help.
pub fn main() -> ExitCode {
    commands::completions::answer();
    let cli = Cli::parse();
    let outcome = ui::output::init(&cli.global.style()).and_then(|()| match &cli.command {
        Command::Up(args) => run_up(args, &cli.global),
        Command::Down(args) => run_down(args),
        Command::Ports(args) => run_ports(args, &cli.global),
        Command::Wait(args) => run_wait(args),
        Command::Exec(args) => Err(run_inside(args.name.clone(), |name| {
            commands::exec::exec(name, &args.workdir.path(), &args.command)
        })),
        Command::Console(args) => run_console(args),
        Command::Shell(args) => Err(run_inside(args.name.clone(), |name| {
            commands::exec::shell(name, &args.workdir.path())
        })),
        Command::Ssh(args) => Err(run_ssh(args)),
        Command::SshConfig(args) => run_ssh_config(args),
        Command::SshProxy(args) => run_ssh_proxy(args),
        Command::Agent(command) => commands::agent::run(command),
        Command::Init(args) => commands::init::run(args),
        Command::Check(args) => runtime::small()
            .and_then(|runtime| runtime.block_on(commands::check::run(args, &cli.global))),
        Command::Doctor(args) => commands::doctor::run(args, &cli.global),
        Command::Completions(args) => commands::completions::run(args),
        Command::Man(args) => commands::man::run(args),
    });
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            ui::render::report(&error, cli.global.log_format);
            ExitCode::from(error.exit_code())
        }
    }
}

/// More threads than this do not make relays faster.
const MAX_WORKERS: usize = 8;

fn run_up(args: &UpArgs, global: &GlobalArgs) -> Result<u8, RumError> {
    let settings = config::load(args.config.as_deref(), &args.overrides())?;
    descriptors::raise();
    // One processor is left to the programs at both ends of the relays. On two processors, a single
    // worker is also the fastest way from an event to a bound port, as no task moves between
    // threads.
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    // No other process has threads with this name. The agent of a namespace guest shares the kernel
    // with us, and tells our listeners from the guest's by it.
    let threads = format!("rum-{:08x}", fastrand::u32(..));
    let workers = cores.saturating_sub(1).clamp(1, MAX_WORKERS);
    let runtime = rum_shared::threads::can_start(workers).and_then(|()| {
        tokio::runtime::Builder::new_multi_thread()
            .thread_name(&threads)
            .thread_stack_size(rum_shared::threads::STACK)
            .worker_threads(workers)
            .enable_all()
            .build()
    });
    let runtime = runtime.map_err(limits::failed("start the threads that forward"))?;
    let outcome = runtime.block_on(commands::up::up(args, &settings, global, &threads));
    // A thread that searches /proc must not keep an ended rum alive.
    runtime.shutdown_background();
    outcome
}

/// The guest's name: the command's `--name`, else that of `rum.toml`, else none.
fn guest_name(name: Option<&String>) -> Result<Option<String>, RumError> {
    match name {
        Some(name) => Ok(Some(name.clone())),
        None => config::current_name(),
    }
}

fn run_down(args: &DownArgs) -> Result<u8, RumError> {
    let name = guest_name(args.name.as_ref())?;
    let message = runtime::small()?.block_on(commands::down::down(name.as_deref(), args.force))?;
    if let Some(message) = message {
        ui::output::tell(&message);
    }
    Ok(exit::OK)
}

fn run_console(args: &ConsoleArgs) -> Result<u8, RumError> {
    let name = guest_name(args.name.as_ref())?;
    commands::console::attach(name.as_deref())?;
    Ok(exit::OK)
}

fn run_ports(args: &PortsArgs, global: &GlobalArgs) -> Result<u8, RumError> {
    let settings = match (&args.name, &args.config) {
        // The user did not name this file, so its mistakes do not matter here.
        (Some(_), None) => config::current(None).ok().flatten(),
        (_, file) => config::current(file.as_deref())?,
    };
    runtime::small()?.block_on(commands::ports::ports(
        args,
        settings.as_ref(),
        global.quiet,
    ))
}

fn run_wait(args: &WaitArgs) -> Result<u8, RumError> {
    let name = guest_name(args.name.as_ref())?;
    runtime::small()?.block_on(commands::wait::wait(args, name.as_deref()))
}

/// Replaces this process by ssh. Returns only on error.
fn run_ssh(args: &SshArgs) -> RumError {
    match guest_name(args.name.as_ref()) {
        Ok(name) => commands::ssh::ssh(name.as_deref(), args),
        Err(error) => error,
    }
}

fn run_ssh_config(args: &SshConfigArgs) -> Result<u8, RumError> {
    let name = guest_name(args.name.as_ref())?;
    commands::print(&commands::ssh::config(name.as_deref(), args)?)?;
    Ok(exit::OK)
}

fn run_ssh_proxy(args: &SshProxyArgs) -> Result<u8, RumError> {
    let guest = commands::ssh::find(args.name.as_deref())?;
    let runtime = runtime::small()?;
    let relayed = runtime.block_on(commands::ssh::proxy(&guest, args.port));
    // A thread that reads stdin must not keep an ended rum alive.
    runtime.shutdown_background();
    relayed.map(|()| exit::OK)
}

/// `exec` and `shell`: replaces this process by one that enters the guest. Returns only on error.
fn run_inside(
    name: Option<String>,
    enter: impl FnOnce(Option<&str>) -> guest::GuestError,
) -> RumError {
    let error = match guest_name(name.as_ref()) {
        Ok(name) => enter(name.as_deref()).into(),
        Err(error) => error,
    };
    error.exit(exit::NOT_RUN)
}
