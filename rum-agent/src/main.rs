//! The binary `rum-agent`.

use std::process::ExitCode;

use clap::Parser;
use rum_agent::boot::{self, Role};
use rum_agent::cli::{self, Args};

fn main() -> ExitCode {
    // What `ps` and `top` show, whatever file this was executed from.
    let _ = rustix::thread::set_name(c"rum-agent");
    let name = std::env::args_os().next().unwrap_or_default();
    match Role::of(std::process::id(), &name.to_string_lossy()) {
        None => cli::main_with(Args::parse()),
        Some(Role::First) => boot::first(),
        Some(Role::Keeper) => boot::keep(),
    }
}
