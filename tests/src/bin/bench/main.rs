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
//! - bulk: echoes and opens beside downloads through the same forward; what one-byte writes cost.
//! - cost: processor time (`schedstat` of all threads), wake-ups and memory of rum's processes
//!   while nothing happens, and while the guest does what rum has no part in.
//! - scale: many listeners and connections: time, memory, cost of one more change.
//! - dumps: cost of one dump of the listeners with 10,000 connections or listeners.
//! - vm: a guest in a virtual machine, beside the raw vsock channel; needs `tests/vm-assets`.

#![allow(clippy::print_stdout)] // The table is the output.

mod bare;
mod bulk;
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

use std::io;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::str::FromStr;
use std::time::{Duration, Instant};

use options::{HELP, Wanted};
use report::Report;

/// A section: adds its rows to the report.
type Section = fn(&mut Report, &Wanted);

/// All sections, in the order in which they are measured. A further one is a line here, and how
/// it is shown in [`render`].
const SECTIONS: [(&str, Section); 7] = [
    ("latency", |report, wanted| {
        latency::run(report, wanted.samples)
    }),
    ("throughput", |report, wanted| {
        let plan = throughput::Plan {
            rounds: wanted.rounds,
            turn: Duration::from_millis(if wanted.quick { 50 } else { 500 }),
            requests: if wanted.quick { 20 } else { 2000 },
            other: wanted.other.clone(),
            only: wanted.only.clone(),
        };
        throughput::run(report, &plan);
    }),
    ("bulk", |report, wanted| {
        let plan = bulk::Plan {
            rounds: wanted.rounds,
            turn: Duration::from_millis(if wanted.quick { 50 } else { 1000 }),
            bytes: wanted.many(1_000_000),
            other: wanted.other.clone(),
        };
        bulk::run(report, &plan);
    }),
    ("cost", |report, wanted| {
        let plan = cost::Plan {
            time: wanted.time,
            connections: vec![0, wanted.many(10_000), wanted.many(100_000)],
        };
        cost::run(report, &plan);
    }),
    ("scale", |report, wanted| {
        let listeners = [10, 100, 1000, 10_000];
        let plan = scale::Plan {
            listeners: listeners[..if wanted.quick { 2 } else { 4 }].to_vec(),
            changes: if wanted.quick { 10 } else { 100 },
            kills: if wanted.quick { 1 } else { 3 },
            time: wanted.time.min(Duration::from_secs(5)),
            connections: vec![wanted.many(1000), wanted.many(10_000)],
        };
        scale::run(report, &plan);
    }),
    ("dumps", |report, wanted| {
        dumps::run(report, wanted.many(10_000), wanted.many(1000));
    }),
    ("vm", |report, wanted| {
        let plan = vm::Plan {
            samples: wanted.samples.min(200),
            rounds: wanted.rounds,
            turn: Duration::from_millis(if wanted.quick { 100 } else { 2000 }),
        };
        vm::run(report, &plan);
    }),
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    if let Some(done) = help(&args) {
        return over(done.map_err(|error| error.to_string()));
    }
    match Wanted::parse(&args) {
        Ok(Some(wanted)) => over(run(&wanted)),
        Ok(None) => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        Err(problem) => {
            eprintln!("error: {problem}\nhint: `bench --help` says what there is");
            ExitCode::from(2)
        }
    }
}

fn over(done: Result<(), String>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("error: {problem}");
            ExitCode::FAILURE
        }
    }
}

/// The processes that a measurement is made of, which this program starts of itself. None if
/// the arguments are a user's.
fn help(args: &[&str]) -> Option<io::Result<()>> {
    fn number<T: FromStr>(text: &str) -> io::Result<T> {
        text.parse()
            .map_err(|_| io::Error::other(format!("`{text}` is no number")))
    }
    Some(match *args {
        ["prober"] => prober::run(),
        ["busy"] => busy::run(),
        ["holder", addr, count] => number(count).and_then(|count| hold::holder(addr, count)),
        ["connector", addr, count] => number(count).and_then(|count| hold::connector(addr, count)),
        ["server", port] => number(port).and_then(|port| server::run(port, None)),
        ["server", port, vsock] => {
            number(port).and_then(|port| server::run(port, Some(number(vsock)?)))
        }
        ["floor-host"] => floor::host_side(),
        ["floor-guest", first, last, program] => number(first)
            .and_then(|first| floor::guest_side(first, number(last)?, number(program)?)),
        ["bare", mode, pid, fd, port] => mode
            .parse()
            .and_then(|mode| bare::run(mode, number(pid)?, number(fd)?, number(port)?)),
        ["netns", program, ref args @ ..] => Err(ways::netns(program, args)),
        _ => return None,
    })
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
    ways::route();
    for (name, section) in SECTIONS {
        if !wanted.measures(name) {
            continue;
        }
        eprintln!("{name}");
        let start = Instant::now();
        report.attempt(name, |report| section(report, wanted));
        eprintln!("{name}: {:.0} s", start.elapsed().as_secs_f64());
        // What is there is not lost with what comes.
        let _ = report.write(&wanted.json);
    }
}
