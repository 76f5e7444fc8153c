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
        Some(Role::Child) => match boot::settle() {
            // Its log goes to the guest's console, where only problems are of interest.
            Ok(()) => cli::main_with(Args::parse_from([&*name, "--quiet".as_ref()])),
            Err(error) => {
                rum_shared::lines::say_on_stderr(&format!(
                    "error: the agent cannot leave the initramfs: {error}\n"
                ));
                ExitCode::FAILURE
            }
        },
    }
}
