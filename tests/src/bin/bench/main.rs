//! The benchmark: `cargo run --release -p rum-tests --bin bench [-- latency|idle|dumps|vm]`.
//!
//! Everything runs in one network namespace made for it; nothing is installed. Figures are
//! printed as a Markdown table. It needs root (the tracepoint, the namespace).
//!
//! - latency: from `listen()` returning in the guest to the first byte of a host connection
//!   through the forward, and from `close()` to a refused connect; one clock
//!   (CLOCK_MONOTONIC, one kernel), a prober in a process of its own, all samples kept.
//! - idle: processor time (`/proc/PID/schedstat`) and resident memory of host and agent while
//!   nothing happens, the 1 s poll running.
//! - vm: the first of these in a virtual machine; needs `tests/vm-assets`. Only when named.
//! - dumps: cost of one dump of the listeners with 0 and with 10,000 established connections.

#![allow(clippy::print_stdout)] // The table is the output.

mod dumps;
mod idle;
mod latency;
mod stats;
mod vm;

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match &args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["prober"] => {
            latency::prober();
            return ExitCode::SUCCESS;
        }
        ["connector", addr] => {
            dumps::connector(addr);
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    let number = |name: &str, default: usize| {
        let at = args.iter().position(|a| a == name);
        let value = at.and_then(|i| args.get(i + 1)?.parse().ok());
        value.unwrap_or(default)
    };
    let samples = number("--samples", 500);
    let seconds = number("--seconds", 60);
    let named: Vec<&str> = args
        .iter()
        .map(String::as_str)
        .filter(|a| ["latency", "idle", "dumps", "vm"].contains(a))
        .collect();
    let wanted = |name: &str| named.is_empty() || named.contains(&name);
    rum_tests::netns::in_netns(|| {
        if wanted("latency") {
            latency::run(samples);
        }
        if wanted("idle") {
            idle::run(seconds as u64);
        }
        if wanted("dumps") {
            dumps::run();
        }
        if named.contains(&"vm") {
            vm::run(samples.min(200));
        }
    });
    ExitCode::SUCCESS
}
