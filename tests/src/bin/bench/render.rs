//! Tables of a [`Report`], for the terminal and for BENCHMARKS.md, with the plots beside it.

use std::fmt::Write as _;
use std::path::Path;
use std::{fs, io};

use crate::plot::{Bar, bars};
use crate::report::{Report, Row, Unit};

/// The ways that others are compared with as the limit.
const LIMITS: [&str; 2] = ["direct", "floor"];
/// What is rum, and so no peer of it.
const OURS: &str = "rum";
/// Where the plots are, beside BENCHMARKS.md's own folder.
const PLOTS: &str = "tests/benchmarks";

/// Sections in the order of the document: name, heading, what the reader should know.
const SECTIONS: [(&str, &str, &str); 3] = [
    (
        "latency",
        "Open and close",
        "From `listen()` returning in the guest until the host accepts a connection and until its \
         first byte, and from `close()` to a refused connect, at random moments, on one clock. A \
         prober in a process of its own tries every 50 µs (every 1 ms where the way looks once a \
         second). `floor` does only what nobody can do without: the same tracepoint wakes a \
         process in the guest, which sends one message over a Unix socket to a process that binds \
         and listens on the host. It relays nothing: its first byte is its own.",
    ),
    (
        "throughput",
        "Throughput, connections, requests",
        "All ways are up at the same time and take turns, in another order each round. Each sample \
         of a throughput is one turn, counted by the receivers. `direct` is a program in the \
         namespace of its client. rum, pasta and haproxy (tcp mode, in the guest's namespace with \
         an inherited listener) are one hop; socat cannot inherit a listener and takes two.",
    ),
    (
        "vm",
        "In a virtual machine",
        "QEMU without KVM, through virtio-vsock by vhost-device-vsock, on the host's clock.",
    ),
];

/// The whole document, without plots: what is printed after a run.
pub fn markdown(report: &Report) -> String {
    document(report, |_| None)
}

/// Writes BENCHMARKS.md into `root` and its plots beside the tests.
///
/// # Errors
/// As writing files.
pub fn write(report: &Report, root: &Path) -> io::Result<()> {
    fs::create_dir_all(root.join(PLOTS))?;
    let mut plots = Vec::new();
    let text = document(report, |(section, number, what, rows)| {
        let name = format!("{PLOTS}/{section}-{number}.svg");
        plots.push((name.clone(), plot(what, rows)));
        Some(name)
    });
    for (name, svg) in plots {
        fs::write(root.join(name), svg)?;
    }
    fs::write(root.join("BENCHMARKS.md"), text)
}

/// A table: section, its number there, what it is, its rows.
type Table<'a> = (&'a str, usize, &'a str, &'a [&'a Row]);

fn document(report: &Report, mut plot: impl FnMut(Table<'_>) -> Option<String>) -> String {
    let mut text = String::from(
        "# Benchmarks\n\nWritten by `cargo run --release --locked -p rum-tests --bin bench`; do not \
         edit.\n\n",
    );
    let _ = writeln!(text, "{}. {}.\n", report.date, report.machine);
    for (name, version) in &report.versions {
        let _ = writeln!(text, "- {name}: {version}");
    }
    for (section, heading, about) in SECTIONS {
        let rows: Vec<&Row> = report
            .rows
            .iter()
            .filter(|r| r.section == section)
            .collect();
        if rows.is_empty() {
            continue;
        }
        let _ = writeln!(text, "\n## {heading}\n\n{about}");
        for (number, what) in in_order(&rows).into_iter().enumerate() {
            let group: Vec<&Row> = rows.iter().copied().filter(|r| r.what == what).collect();
            table(&mut text, what, &group);
            if let Some(file) = plot((section, number + 1, what, &group)) {
                let _ = writeln!(text, "\n![{what}]({file})");
            }
        }
    }
    if !report.notes.is_empty() {
        let _ = writeln!(text, "\n## Notes\n");
    }
    for note in &report.notes {
        let _ = writeln!(text, "- {note}");
    }
    text
}

/// The different `what`, in their first order.
fn in_order<'a>(rows: &[&'a Row]) -> Vec<&'a str> {
    let mut seen = Vec::new();
    for row in rows {
        if !seen.contains(&row.what.as_str()) {
            seen.push(&row.what);
        }
    }
    seen
}

fn table(text: &mut String, what: &str, rows: &[&Row]) {
    let Some(unit) = rows.first().and_then(|row| Unit::of(&row.unit)) else {
        return;
    };
    let limit = rows.iter().find(|r| LIMITS.contains(&r.way.as_str()));
    let peer = best_peer(rows, unit);
    let _ = write!(
        text,
        "\n### {what} ({})\n\n| | n | p50 | p25 to p75 | min to max | p99 |",
        unit.name()
    );
    let _ = write!(
        text,
        "{}",
        limit.map_or(String::new(), |l| format!(" to {} |", l.way))
    );
    let _ = writeln!(
        text,
        "{}",
        peer.map_or(String::new(), |p| format!(" to {} |", p.way))
    );
    let columns = 6 + usize::from(limit.is_some()) + usize::from(peer.is_some());
    let _ = writeln!(text, "|{}", "---|".repeat(columns));
    for row in rows {
        let _ = write!(
            text,
            "| {} | {} | {} | {} to {} | {} to {} | {} |",
            row.way,
            row.n,
            number(row.p50),
            number(row.p25),
            number(row.p75),
            number(row.min),
            number(row.max),
            number(row.p99)
        );
        for other in [limit.copied(), peer].into_iter().flatten() {
            let _ = write!(text, " {} × |", number(row.p50 / other.p50));
        }
        text.push('\n');
    }
}

/// The best of those that are neither rum nor the limit.
fn best_peer<'a>(rows: &[&'a Row], unit: Unit) -> Option<&'a Row> {
    let peers = rows
        .iter()
        .copied()
        .filter(|row| !row.way.contains(OURS) && !LIMITS.contains(&row.way.as_str()))
        .filter(|row| row.p50.is_finite());
    let better = |a: &&Row, b: &&Row| a.p50.total_cmp(&b.p50);
    match unit.more_is_better() {
        true => peers.max_by(better),
        false => peers.min_by(better),
    }
}

/// Three digits that count.
pub fn number(value: f64) -> String {
    let size = value.abs();
    match size {
        _ if size >= 100.0 => format!("{value:.0}"),
        _ if size >= 10.0 => format!("{value:.1}"),
        _ if size >= 1.0 => format!("{value:.2}"),
        _ if size >= 0.1 || size == 0.0 => format!("{value:.3}"),
        _ if size >= 0.01 => format!("{value:.4}"),
        _ => format!("{value:.5}"),
    }
}

fn plot(what: &str, rows: &[&Row]) -> String {
    let bar = |row: &&Row| Bar {
        name: row.way.clone(),
        value: row.p50,
        low: row.p25,
        high: row.p75,
        text: number(row.p50),
    };
    let unit = rows.first().map_or("", |row| &row.unit);
    let all: Vec<Bar> = rows.iter().map(bar).collect();
    bars(&format!("{what} ({unit})"), &all)
}
