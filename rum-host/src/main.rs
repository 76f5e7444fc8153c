//! The binary `rum`: hidden modes first, then the command line.

use std::ffi::OsString;
use std::process::ExitCode;

/// Run by the loader, before the Rust runtime has SIGPIPE ignored.
#[used]
// SAFETY: the loader calls what lies there once, with a single thread; what is called needs nothing else.
#[unsafe(link_section = ".init_array")]
static NOTE: extern "C" fn() = rum_host::signals::note;

fn main() -> ExitCode {
    rum_host::stack::raise();
    // Before any thread or runtime exists: some of the modes need a single thread.
    match rum_host::guest::process::dispatch_internal(agent) {
        Some(code) => code,
        None => rum_host::stack::with_enough(rum_host::main),
    }
}

/// `rum` carries its agent, so that there is one file to install and no two versions to differ.
/// Where a file in memory may not be executed (`vm.memfd_noexec`), rum itself is the agent.
fn agent(args: Vec<OsString>) -> ExitCode {
    use clap::Parser as _;
    let error = rum_host::guest::payload::become_agent(&args);
    rum_shared::lines::stderr(rum_shared::lines::lost_line).say(format!(
        "rum: the agent takes more memory than it needs: {error}\n"
    ));
    let name = OsString::from("rum-agent");
    rum_agent::cli::main_with(rum_agent::cli::Args::parse_from(
        std::iter::once(name).chain(args),
    ))
}
