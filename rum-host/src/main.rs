//! The binary `rum`: hidden modes first, then the command line.

use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> ExitCode {
    // Before any thread or runtime exists: some of the modes need a single thread.
    match rum_host::sandbox::dispatch_internal(agent) {
        Some(code) => code,
        None => rum_host::main(),
    }
}

/// `rum` is its own agent, so that there is one file to install and no two versions to differ.
fn agent(args: Vec<OsString>) -> ExitCode {
    use clap::Parser as _;
    let name = OsString::from("rum-agent");
    rum_agent::cli::main_with(rum_agent::cli::Args::parse_from(
        std::iter::once(name).chain(args),
    ))
}
