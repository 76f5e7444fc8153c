//! The benchmark: `cargo run --release -p rum-tests --bin bench [-- latency|idle|dumps]`;
//! `-- --help` says the rest.
//!
//! Everything runs in one network namespace made for it; nothing is installed. Figures are
//! printed as a Markdown table. It needs root (the tracepoint, the namespace).
//!
//! - latency: from `listen()` returning in the guest to the first byte of a host connection
//!   through the forward, and from `close()` to a refused connect; one clock
//!   (CLOCK_MONOTONIC, one kernel), a prober in a process of its own, all samples kept.
//! - idle: processor time (`/proc/PID/schedstat`) and resident memory of host and agent while
//!   nothing happens, the 1 s poll running.
//! - dumps: cost of one dump of the listeners with 0 and with 10,000 established connections.

#![allow(clippy::print_stdout)] // The table is the output.

mod dumps;
mod idle;
mod latency;
mod stats;

use std::process::ExitCode;

const HELP: &str = "Measures rum and prints Markdown tables. Needs root.

Usage: bench [OPTIONS] [latency] [idle] [dumps]

  latency  from listen() to the first byte on the host, from close() to refused
  idle     processor time and memory while nothing happens
  dumps    one dump of the listeners, with 0 and with 10,000 connections
Without a name all three are measured, which takes some minutes. Build with --release.

Options:
  --samples N  how often latency is measured [default: 500]
  --seconds N  how long idle is measured [default: 60]
  -h, --help   print this
";

const MEASUREMENTS: [&str; 3] = ["latency", "idle", "dumps"];

/// What the command line asks for.
struct Wanted {
    named: Vec<String>,
    samples: usize,
    seconds: u64,
}

impl Wanted {
    /// None if only the help is wanted.
    fn parse(args: &[String]) -> Result<Option<Self>, String> {
        let mut this = Self {
            named: Vec::new(),
            samples: 500,
            seconds: 60,
        };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let mut number = || match args.next().map(|n| n.parse::<u32>()) {
                Some(Ok(n)) if n > 0 => Ok(n),
                _ => Err(format!("{arg} needs a number above 0")),
            };
            match arg.as_str() {
                "-h" | "--help" => return Ok(None),
                "--samples" => this.samples = number()? as usize,
                "--seconds" => this.seconds = number()?.into(),
                name if MEASUREMENTS.contains(&name) => this.named.push(arg.clone()),
                _ => return Err(format!("there is no measurement or option `{arg}`")),
            }
        }
        Ok(Some(this))
    }

    fn measures(&self, name: &str) -> bool {
        self.named.is_empty() || self.named.iter().any(|n| n == name)
    }
}

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
    let wanted = match Wanted::parse(&args) {
        Ok(Some(wanted)) => wanted,
        Ok(None) => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(problem) => {
            eprintln!("error: {problem}\nhint: `bench --help` says what there is");
            return ExitCode::from(2);
        }
    };
    rum_tests::netns::in_netns(|| {
        if wanted.measures("latency") {
            latency::run(wanted.samples);
        }
        if wanted.measures("idle") {
            idle::run(wanted.seconds);
        }
        if wanted.measures("dumps") {
            dumps::run();
        }
    });
    ExitCode::SUCCESS
}
