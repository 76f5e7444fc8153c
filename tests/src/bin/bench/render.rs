//! A [`Report`] as text, for the terminal and for BENCHMARKS.md, with the plots beside it.
//!
//! There are two kinds of sections. In most, rows with the same `what` are compared: each is a
//! table, with a line for each way, and a plot. In a *wide* one, ways are cases and each `what` is
//! one figure of them: all of it is one table, whose cells are medians.

use std::fmt::Write as _;
use std::path::Path;
use std::{fs, io};

use crate::goals::goals;
use crate::plot::{Bar, bars};
use crate::report::{Report, Row, Unit};

/// The ways that others are compared with as the limit.
const LIMITS: [&str; 7] = [
    "direct",
    "floor",
    "raw channel",
    "three raw round trips",
    "bare copy",
    "bare splice",
    "bare io_uring",
];
/// What is rum, and so no peer of it.
const OURS: &str = "rum";
/// Where the plots are, beside BENCHMARKS.md's own folder.
const PLOTS: &str = "tests/benchmarks";

/// A section of the document.
struct Section {
    /// As in the rows.
    name: &'static str,
    heading: &'static str,
    /// What the reader should know.
    about: &'static str,
    /// A wide one, of whose figures these are plotted.
    wide: Option<&'static [&'static str]>,
}

/// In the order of the document.
const SECTIONS: [Section; 8] = [
    Section {
        name: "latency",
        heading: "Open and close",
        about: "From `listen()` returning in the guest until the host accepts a connection and \
                until its first byte, and from `close()` to a refused connect, at random moments, \
                on one clock. A prober in a process of its own tries every 50 µs (every 1 ms where \
                the way looks once a second). `floor` does only what nobody can do without: the \
                same tracepoint wakes a process in the guest, which sends one message over a Unix \
                socket to a process that binds and listens on the host. It relays nothing: its \
                first byte is its own.",
        wide: None,
    },
    Section {
        name: "throughput",
        heading: "Throughput, connections, requests",
        about: "All ways are up at the same time and take turns, in another order each round. \
                Each sample of a throughput is one turn, counted by the receivers. `direct` is a \
                program in the namespace of its client. rum, pasta and haproxy (tcp mode, in the \
                guest's namespace with an inherited listener) are one hop; socat cannot inherit a \
                listener and takes two. The bare ones are one hop in one thread that does nothing but \
                move bytes: by read(2) and write(2) through 256 KiB, by splice(2) through a pipe of \
                1 MiB, by io_uring(7) through 256 KiB. They are what a relay can do at most here.",
        wide: None,
    },
    Section {
        name: "bulk",
        heading: "Beside bulk",
        about: "Echoes of 3 bytes, and opens of another port, while so many downloads go through the same \
                forward. All ways are up at the same time and take turns, in another order each round. \
                Client, forward and server share the processors: `direct` is how long an echo waits for \
                one without a forward. haproxy's port is always there, so its opens are those of the \
                server behind it; pasta looks once a second. One-byte writes go through frames where \
                there is no common kernel (here: behind a `CONNECT` device); else the agent has handed the \
                socket over and takes no part.",
        wide: None,
    },
    Section {
        name: "cost",
        heading: "Cost",
        about: "Processor time of all threads of a process (schedstat) and its wake-ups \
                (voluntary context switches) while the guest does what the line says, with one \
                port forwarded and the 1 s poll running. Connections are between processes in the \
                guest; binds are bind(2) without listen. Events are those that happened. `init` is \
                the guest's PID 1, which answers the seccomp notifications of an ordinary user's \
                guest.",
        wide: Some(&["host", "agent"]),
    },
    Section {
        name: "scale",
        heading: "Scale",
        about: "So many listeners in one guest. `all forwarded`: from the command to open them \
                all until the host listens on each. `one more`: the median of opening one more, to \
                accepted; times of host and agent are processor time for an open and a close, less \
                what they use when idle. `agent killed`: from SIGKILL of the agent to the \
                first byte through a port that opens right after.",
        wide: Some(&[
            "one more",
            "one more, host time",
            "one more, agent time",
            "host memory",
            "agent killed",
        ]),
    },
    Section {
        name: "connections",
        heading: "Memory of connections",
        about: "Resident memory that idle connections through one forward add, for each.",
        wide: Some(&[]),
    },
    Section {
        name: "dumps",
        heading: "One dump of the listeners",
        about: "With established connections or listeners in the same namespace. The kernel is asked \
                for listeners alone; it describes each.",
        wide: None,
    },
    Section {
        name: "vm",
        heading: "In a virtual machine",
        about: "QEMU without KVM, through virtio-vsock by vhost-device-vsock, on the host's clock. \
                `raw channel` is the same program, reached over a vsock connection of its own \
                without rum; `bare relay` copies from such a connection to TCP in the guest, as \
                any forward to a TCP listener must. The guest is told to listen over such a connection, too: one trip of \
                it is taken off.",
        wide: None,
    },
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
    // Of another run there may be others.
    for old in fs::read_dir(root.join(PLOTS))?.flatten() {
        fs::remove_file(old.path())?;
    }
    for (name, svg) in plots {
        fs::write(root.join(name), svg)?;
    }
    fs::write(root.join("BENCHMARKS.md"), text)
}

/// What a plot shows: section, its number there, what it is, its rows.
type Shown<'a> = (&'a str, usize, &'a str, &'a [&'a Row]);

fn document(report: &Report, mut plot: impl FnMut(Shown<'_>) -> Option<String>) -> String {
    let mut text = String::from(
        "# Benchmarks\n\nWritten by `cargo run --release --locked -p rum-tests --bin bench`; do not \
         edit.\n\n",
    );
    let _ = writeln!(text, "{}. {}.\n", report.date, report.machine);
    for (name, version) in &report.versions {
        let _ = writeln!(text, "- {name}: {version}");
    }
    let goals = goals(report);
    if !goals.is_empty() {
        text.push_str("\n## Goals\n\n| goal | measured | |\n|---|---|---|\n");
    }
    for goal in goals {
        let met = if goal.met { "met" } else { "missed" };
        let _ = writeln!(text, "| {} | {} | {met} |", goal.name, goal.measured);
    }
    for section in &SECTIONS {
        let rows: Vec<&Row> = report
            .rows
            .iter()
            .filter(|r| r.section == section.name)
            .collect();
        if rows.is_empty() {
            continue;
        }
        let _ = writeln!(text, "\n## {}\n\n{}", section.heading, section.about);
        if section.wide.is_some() {
            wide(&mut text, &rows);
        }
        for (number, what) in in_order(&rows, |row| &row.what).into_iter().enumerate() {
            let group: Vec<&Row> = rows.iter().copied().filter(|r| r.what == what).collect();
            match section.wide {
                None => table(&mut text, what, &group),
                Some(plotted) if !plotted.contains(&what) => continue,
                Some(_) => {}
            }
            if let Some(file) = plot((section.name, number + 1, what, &group)) {
                let _ = writeln!(text, "\n![{what}]({file})");
            }
        }
    }
    if !report.notes.is_empty() {
        let _ = writeln!(text, "\n## Notes\n");
    }
    for note in in_order(&report.notes, |note| note) {
        let times = report.notes.iter().filter(|n| *n == note).count();
        let times = if times > 1 {
            format!(" ({times} times)")
        } else {
            String::new()
        };
        let _ = writeln!(text, "- {note}{times}");
    }
    text
}

/// The different keys, in their first order.
fn in_order<'a, T>(all: &'a [T], key: impl Fn(&'a T) -> &'a String) -> Vec<&'a str> {
    let mut seen = Vec::new();
    for one in all {
        let key = key(one).as_str();
        if !seen.contains(&key) {
            seen.push(key);
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
    let others: Vec<&Row> = [limit.copied(), peer].into_iter().flatten().collect();
    for other in &others {
        let _ = write!(text, " to {} |", other.way);
    }
    let _ = writeln!(text, "\n|{}", "---|".repeat(6 + others.len()));
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
        for other in &others {
            let _ = write!(text, " {} × |", number(row.p50 / other.p50));
        }
        text.push('\n');
    }
}

/// A line for each way, a column for each `what`.
fn wide(text: &mut String, rows: &[&Row]) {
    let columns = in_order(rows, |row| &row.what);
    text.push_str("\n| |");
    for column in &columns {
        let unit = rows.iter().find(|row| row.what == *column);
        let _ = write!(text, " {column} ({}) |", unit.map_or("", |row| &row.unit));
    }
    let _ = writeln!(text, "\n|{}", "---|".repeat(1 + columns.len()));
    for way in in_order(rows, |row| &row.way) {
        let _ = write!(text, "| {way} |");
        for column in &columns {
            let cell = rows.iter().find(|r| r.way == way && r.what == *column);
            let _ = write!(text, " {} |", cell.map_or("".into(), |row| number(row.p50)));
        }
        text.push('\n');
    }
}

/// The best of those that are neither rum nor the limit.
pub fn best_peer<'a>(rows: &[&'a Row], unit: Unit) -> Option<&'a Row> {
    let peers = rows
        .iter()
        .copied()
        .filter(|row| !row.way.contains(OURS) && !LIMITS.contains(&row.way.as_str()))
        .filter(|row| row.p50.is_finite());
    let better = |a: &&Row, b: &&Row| a.p50.total_cmp(&b.p50);
    if unit.more_is_better() {
        peers.max_by(better)
    } else {
        peers.min_by(better)
    }
}

/// Three digits that count.
pub fn number(value: f64) -> String {
    let size = value.abs();
    match size {
        0.0 => "0".into(),
        _ if size >= 100.0 => format!("{value:.0}"),
        _ if size >= 10.0 => format!("{value:.1}"),
        _ if size >= 1.0 => format!("{value:.2}"),
        _ if size >= 0.1 => format!("{value:.3}"),
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
