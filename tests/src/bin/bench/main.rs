//! The benchmark: `cargo run --release --locked -p rum-tests --bin bench`; `-- --help` says the rest.
//!
//! Everything runs in one network namespace made for it; nothing is installed. It needs root
//! (the tracepoint, namespaces). Each section adds rows to one [`report::Report`], which is
//! written as JSON; tables, BENCHMARKS.md and its plots are made of that by [`render`].
//!
//! - latency: from `listen()` returning in the guest to the first byte of a host connection
//!   through the forward, and from `close()` to a refused connect; one clock
//!   (CLOCK_MONOTONIC, one kernel), a prober in a process of its own, all samples kept. Beside
//!   it the floor, a program that does only the unavoidable, and pasta.
//! - throughput: bytes, connections and requests through rum and its peers, in turns.
//! - cost: processor time (`schedstat` of all threads), wake-ups and memory of rum's processes
//!   while nothing happens, and while the guest does what rum has no part in.
//! - scale: many listeners and connections: time, memory, cost of one more change.
//! - dumps: cost of one dump of the listeners with 0 and with 10,000 connections.
//! - vm: a guest in a virtual machine, beside the raw vsock channel; needs `tests/vm-assets`.

#![allow(clippy::print_stdout)] // The table is the output.

mod busy;
mod cost;
mod dumps;
mod floor;
mod goals;
mod hold;
mod latency;
mod load;
mod options;
mod plot;
mod prober;
mod render;
mod report;
mod scale;
mod server;
mod throughput;
mod usage;
mod vm;
mod ways;

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use options::{HELP, Wanted};
use report::Report;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match &args[..] {
        // The processes that a measurement is made of.
        ["prober"] => {
            prober::run();
            Ok(())
        }
        ["busy"] => busy::run().map_err(|error| error.to_string()),
        [kind @ ("holder" | "connector"), addr, count] => match (count.parse(), *kind) {
            (Ok(count), "holder") => hold::holder(addr, count).map_err(|error| error.to_string()),
            (Ok(count), _) => hold::connector(addr, count).map_err(|error| error.to_string()),
            (Err(_), _) => Err(format!("`{count}` is no number")),
        },
        ["server", ports @ ..] => {
            let ports: Result<Vec<u16>, _> = ports.iter().map(|port| port.parse()).collect();
            match ports.as_deref() {
                Ok([port]) => server::run(*port, None).map_err(|error| error.to_string()),
                Ok([port, vsock]) => {
                    server::run(*port, Some((*vsock).into())).map_err(|error| error.to_string())
                }
                _ => Err("server PORT [VSOCK]".into()),
            }
        }
        ["floor-guest", first, last, pid] => match (first.parse(), last.parse(), pid.parse()) {
            (Ok(first), Ok(last), Ok(pid)) => {
                floor::guest_side(first, last, pid).map_err(|error| error.to_string())
            }
            _ => Err("floor-guest FIRST LAST PID".into()),
        },
        ["floor-host"] => floor::host_side().map_err(|error| error.to_string()),
        ["netns", program, args @ ..] => Err(ways::netns(program, args).to_string()),
        _ => match Wanted::parse(&args) {
            Ok(Some(wanted)) => run(&wanted),
            Ok(None) => {
                print!("{HELP}");
                Ok(())
            }
            Err(problem) => {
                eprintln!("error: {problem}\nhint: `bench --help` says what there is");
                return ExitCode::from(2);
            }
        },
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("error: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn run(wanted: &Wanted) -> Result<(), String> {
    if let Some(file) = &wanted.render {
        let at = |error| format!("{}: {error}", file.display());
        let report = Report::read(file).map_err(at)?;
        return write(&report, &wanted.into);
    }
    build()?;
    let mut report = Report::new();
    report.ask_versions();
    rum_tests::netns::in_netns(|| measure(wanted, &mut report));
    let written = report.write(&wanted.json);
    print!("{}", render::markdown(&report));
    let at = |error| format!("{}: {error}", wanted.json.display());
    written.map_err(at)?;
    eprintln!("\nThe figures are in {}", wanted.json.display());
    if wanted.everything() && !wanted.quick {
        return write(&report, &wanted.into);
    }
    eprintln!(
        "hint: `bench --render {}` makes BENCHMARKS.md of them",
        wanted.json.display()
    );
    Ok(())
}

fn write(report: &Report, into: &Path) -> Result<(), String> {
    render::write(report, into).map_err(|error| format!("BENCHMARKS.md: {error}"))
}

/// Under `cargo run` only this program was built: builds the programs that it measures.
fn build() -> Result<(), String> {
    let Some(cargo) = std::env::var_os("CARGO") else {
        return Ok(());
    };
    let mut command = Command::new(cargo);
    command.args(["build", "--locked", "--workspace", "--bins", "--quiet"]);
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        _ => Err("the programs to measure could not be built".into()),
    }
}

fn measure(wanted: &Wanted, report: &mut Report) {
    // A smoke run has a hundredth of the connections and listeners.
    let scale = if wanted.quick { 100 } else { 1 };
    if wanted.measures("latency") || wanted.measures("throughput") {
        ways::route();
    }
    if wanted.measures("latency") {
        report.attempt("latency", |report| latency::run(report, wanted.samples));
    }
    if wanted.measures("throughput") {
        let plan = throughput::Plan {
            rounds: wanted.rounds,
            turn: Duration::from_millis(if wanted.quick { 50 } else { 500 }),
            requests: if wanted.quick { 20 } else { 2000 },
            other: wanted.other.clone(),
        };
        report.attempt("throughput", |report| throughput::run(report, &plan));
    }
    if wanted.measures("cost") {
        let plan = cost::Plan {
            time: wanted.time,
            connections: vec![0, 10_000 / scale, 100_000 / scale],
        };
        report.attempt("cost", |report| cost::run(report, &plan));
    }
    if wanted.measures("scale") {
        let plan = scale::Plan {
            listeners: match wanted.quick {
                true => vec![10, 100],
                false => vec![10, 100, 1000, 10_000],
            },
            changes: 100 / scale.min(10),
            kills: if wanted.quick { 1 } else { 3 },
            time: wanted.time.min(Duration::from_secs(5)),
            connections: vec![1000 / scale, 10_000 / scale],
        };
        report.attempt("scale", |report| scale::run(report, &plan));
    }
    if wanted.measures("dumps") {
        report.attempt("dumps", |report| {
            dumps::run(report, 10_000 / scale, 1000 / scale)
        });
    }
    if wanted.measures("vm") {
        let plan = vm::Plan {
            samples: wanted.samples.min(200),
            rounds: wanted.rounds,
            turn: Duration::from_millis(if wanted.quick { 100 } else { 2000 }),
        };
        report.attempt("vm", |report| vm::run(report, &plan));
    }
}
