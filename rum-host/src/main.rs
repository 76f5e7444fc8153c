//! The binary `rum`: hidden modes first, then the command line.

use std::ffi::OsString;
use std::process::ExitCode;

/// The loader runs this before the Rust runtime ignores SIGPIPE.
#[used]
// SAFETY: the loader calls this function once, in a single thread. The function needs nothing that
// `main` would set up.
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

/// `rum` carries its agent, so there is one file to install and the versions cannot differ. Where
/// executing a memfd is forbidden (`vm.memfd_noexec`), this process itself runs the agent's code.
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
