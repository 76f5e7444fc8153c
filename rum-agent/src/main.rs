//! The binary `rum-agent`.

use std::process::ExitCode;

use clap::Parser;
use rum_agent::cli;

fn main() -> ExitCode {
    cli::main_with(cli::Args::parse())
}
