//! Processor time and wake-ups of rum while the guest is idle, and while it does what rum has no
//! part in. One guest for each source of hints, one activity after the other.

use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use rum_tests::guest::Guest;
use rum_tests::rum::{Rum, Setup};
use rum_tests::wait::until;

use crate::hold::raise_limit;
use crate::report::{Report, Unit, thousands};
use crate::usage::{Processes, Used, resident};

/// Sources of hints: name, arguments of `rum up`, as an ordinary user.
const SOURCES: [(&str, &[&str], bool); 2] = [("tracepoint", &[], false), ("seccomp", &[], true)];
/// The ports that are forwarded.
const RANGE: &str = "26000-26999";
/// The port that is forwarded all the time.
const OPEN: u16 = 26_999;
/// What the guest does: name, command of [`crate::busy`].
const LOADS: [(&str, &str); 6] = [
    ("100 binds a second", "binds 100"),
    ("1,000 binds a second", "binds 1000"),
    ("10,000 binds a second", "binds 10000"),
    ("5,000 connections out a second", "connects 5000"),
    (
        "1,000 listens a second outside the range",
        "listens 1000 27000 900",
    ),
    (
        "1,000 listens a second inside the range",
        "listens 1000 26000 900",
    ),
];

/// How much is measured.
pub struct Plan {
    /// How long each activity is measured.
    pub time: Duration,
    /// Established connections in the idle guest.
    pub connections: Vec<usize>,
}

/// Measures and adds the rows.
pub fn run(report: &mut Report, plan: &Plan) {
    raise_limit();
    for (name, args, user) in SOURCES {
        report.attempt(name, |report| source(report, plan, name, args, user));
    }
    report.attempt("poll", |report| {
        let args = &["--agent-arg=--hint=poll"];
        let (mut rum, mut guest) = start(args, false);
        let processes = Processes::of(rum.child.id());
        idle(report, plan, "no tracepoint", processes, &mut guest, &[0]);
        drop(guest);
        rum.wait();
    });
}

fn source(report: &mut Report, plan: &Plan, name: &str, args: &[&str], user: bool) {
    let (mut rum, mut guest) = start(args, user);
    let processes = Processes::of(rum.child.id());
    idle(report, plan, name, processes, &mut guest, &plan.connections);
    for (load, command) in LOADS {
        eprintln!("  {name}, {load}");
        guest.tell(command);
        settle(plan);
        let mut done = guest.tell("count");
        let used = processes.during(|| {
            std::thread::sleep(plan.time);
            done = guest.tell("count") - done;
        });
        guest.tell("stop");
        let rate = done as f64 / used.time.as_secs_f64();
        add(report, &format!("{name}: {load}"), rate, &used, processes);
    }
    drop(guest);
    rum.wait();
}

fn idle(
    report: &mut Report,
    plan: &Plan,
    name: &str,
    processes: Processes,
    guest: &mut Guest,
    connections: &[usize],
) {
    for count in connections {
        eprintln!("  {name}, idle, {count} connections");
        guest.tell(&format!("hold {count}"));
        settle(plan);
        let used = processes.during(|| std::thread::sleep(plan.time));
        let way = match count {
            0 => format!("{name}: idle"),
            _ => format!("{name}: idle, {} connections", thousands(*count)),
        };
        add(report, &way, 0.0, &used, processes);
    }
    guest.tell("hold 0");
}

/// Starts a `rum up` with a busy guest, and waits until it forwards [`OPEN`].
fn start(args: &[&str], user: bool) -> (Rum, Guest) {
    let setup = if user {
        Setup::ordinary_user()
    } else {
        Setup::new()
    };
    guest(&setup, &[&["--range", RANGE], args].concat(), OPEN)
}

/// Starts `rum up ARGS` with a [`crate::busy`] guest, which takes what comes to `port`; returns
/// when that is forwarded.
///
/// # Panics
/// When it is not.
pub fn guest(setup: &Setup, args: &[&str], port: u16) -> (Rum, Guest) {
    let mut command: Command = setup.rum(["up", "-q"].iter().chain(args));
    let me = std::env::current_exe().expect("own path");
    command.arg("--").arg(me).arg("busy");
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut rum = setup.spawn(&mut command);
    let mut guest = Guest::of(&mut rum.child);
    guest.tell(&format!("take 127.0.0.1:{port}"));
    until("a forward", || TcpStream::connect(("127.0.0.1", port)).ok());
    (rum, guest)
}

/// Start-up (handshakes, names), or the last activity, is over once some polls have gone by.
fn settle(plan: &Plan) {
    std::thread::sleep(plan.time.min(Duration::from_secs(3)));
}

fn add(report: &mut Report, way: &str, rate: f64, used: &Used, processes: Processes) {
    let mut add = |what: &str, unit, value| report.add("cost", what, way, unit, vec![value]);
    add("measured", Unit::Seconds, used.time.as_secs_f64());
    add("events", Unit::PerSecond, rate);
    for (i, name) in Processes::NAMES.iter().enumerate() {
        add(name, Unit::Percent, used.percent(i));
    }
    for (i, name) in Processes::NAMES.iter().enumerate() {
        add(
            &format!("{name} wake-ups"),
            Unit::PerMinute,
            used.wakes_a_minute(i),
        );
    }
    for (pid, name) in [(processes.host, "host"), (processes.agent, "agent")] {
        add(
            &format!("{name} memory"),
            Unit::Megabytes,
            resident(pid) / 1e6,
        );
    }
}
