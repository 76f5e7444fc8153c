//! What the figures were meant to be, and whether they are. A goal whose rows are missing is
//! left out.

use crate::bulk::LOADS;
use crate::render::{best_peer, number};
use crate::report::{Report, Row, Unit};

/// One goal.
pub struct Goal {
    /// What it is.
    pub name: String,
    /// The figure.
    pub measured: String,
    /// Whether it is reached.
    pub met: bool,
}

/// The sources of hints that answer at once.
const EVENTS: [&str; 2] = ["rum, tracepoint", "rum, ordinary user"];
/// What has no part in rum, a thousand times a second.
const UNRELATED: [&str; 2] = [
    "1,000 binds a second",
    "1,000 listens a second outside the range",
];
/// One more change may cost so much more among the most listeners than among the fewest: noise.
const FLAT: f64 = 1.5;

/// All that the report can tell about.
pub fn goals(report: &Report) -> Vec<Goal> {
    let mut goals = Goals {
        report,
        all: vec![],
    };
    goals.latency();
    goals.throughput();
    goals.bulk();
    goals.cost();
    goals.scale();
    goals.vm();
    goals.all
}

struct Goals<'a> {
    report: &'a Report,
    all: Vec<Goal>,
}

impl<'a> Goals<'a> {
    fn row(&self, section: &str, what: &str, way: &str) -> Option<&'a Row> {
        let same = |r: &&Row| r.section == section && r.what == what && r.way == way;
        self.report.rows.iter().find(same)
    }

    fn add(&mut self, name: String, measured: String, met: bool) {
        self.all.push(Goal {
            name,
            measured,
            met,
        });
    }

    /// Adds one for a value that may be at most `limit`, if there is one.
    fn at_most(&mut self, name: String, value: Option<f64>, limit: f64, unit: &str) {
        if let Some(value) = value {
            self.add(name, format!("{} {unit}", number(value)), value <= limit);
        }
    }

    fn latency(&mut self) {
        for way in EVENTS {
            let accepted = self.row("latency", "open to accepted", way);
            let floor = self.row("latency", "open to accepted", "floor");
            let ratio = accepted.zip(floor).map(|(a, b)| a.p50 / b.p50);
            let name = format!("{way}: open to accepted within 3 × the floor, p50");
            self.at_most(name, ratio, 3.0, "×");
            let open = self.row("latency", "open to first byte", way);
            let name = format!("{way}: open to first byte within 1 ms, p50");
            self.at_most(name, open.map(|row| row.p50), 1.0, "ms");
            let name = format!("{way}: open to first byte within 5 ms, p99");
            self.at_most(name, open.map(|row| row.p99), 5.0, "ms");
            let pasta = self.row("latency", "open to first byte", "pasta");
            if let Some((open, pasta)) = open.zip(pasta) {
                let ratio = pasta.p50 / open.p50;
                let name = format!("{way}: open to first byte 500 × faster than pasta, p50");
                self.add(name, format!("{ratio:.0} ×"), ratio >= 500.0);
            }
        }
    }

    /// No slower than the best peer, as far as the middle halves can tell.
    fn throughput(&mut self) {
        let ours = |r: &&Row| r.section == "throughput" && r.way == "rum";
        let (mut behind, mut compared) = (Vec::new(), 0);
        for rum in self.report.rows.iter().filter(ours) {
            let same = |r: &&Row| r.section == rum.section && r.what == rum.what;
            let rows: Vec<&Row> = self.report.rows.iter().filter(same).collect();
            let Some((unit, peer)) =
                Unit::of(&rum.unit).and_then(|unit| Some((unit, best_peer(&rows, unit)?)))
            else {
                continue;
            };
            compared += 1;
            let slower = if unit.more_is_better() {
                rum.p75 < peer.p25
            } else {
                rum.p25 > peer.p75
            };
            if slower {
                behind.push(format!("{} ({} ×)", rum.what, number(rum.p50 / peer.p50)));
            }
        }
        if compared > 0 {
            let name = "rum: no slower than the best peer, beyond the middle halves".into();
            let measured = if behind.is_empty() {
                format!("{compared} of {compared}")
            } else {
                format!(
                    "{} of {compared}; slower: {}",
                    compared - behind.len(),
                    behind.join(", ")
                )
            };
            self.add(name, measured, behind.is_empty());
        }
    }

    fn bulk(&mut self) {
        let idle = self.row("bulk", "open to first byte, idle", "rum");
        for (_, load) in LOADS.into_iter().filter(|(downloads, _)| *downloads > 0) {
            let echo = |way| self.row("bulk", &format!("echo, {load}"), way);
            let ratio = echo("rum").zip(echo("direct"));
            let ratio = ratio.map(|(rum, direct)| rum.p99 / direct.p99);
            let name = format!("rum: echo beside {load} within 3 × direct's, p99");
            self.at_most(name, ratio, 3.0, "×");
            let open = self.row("bulk", &format!("open to first byte, {load}"), "rum");
            let ratio = open.zip(idle).map(|(open, idle)| open.p50 / idle.p50);
            let name =
                format!("rum: open to first byte beside {load} within 2 × the idle one, p50");
            self.at_most(name, ratio, 2.0, "×");
        }
    }

    fn cost(&mut self) {
        for source in ["tracepoint", "seccomp"] {
            for process in ["host", "agent"] {
                let way = format!("{source}: idle");
                let row = self.row("cost", process, &way);
                let name = format!("{way}: {process} within 0.1 % of a core");
                self.at_most(name, row.map(|row| row.p50), 0.1, "%");
            }
            for load in UNRELATED {
                let way = format!("{source}: {load}");
                let of = |process| Some(self.row("cost", process, &way)?.p50);
                let sum = ["host", "agent", "init"].into_iter().map(of).sum();
                let name = format!("{way}: all processes within 0.5 % of a core");
                self.at_most(name, sum, 0.5, "%");
            }
        }
    }

    fn scale(&mut self) {
        for what in ["one more", "one more, host time", "one more, agent time"] {
            let rows = self.report.rows.iter();
            let mut rows = rows.filter(|r| r.section == "scale" && r.what == what);
            if let (Some(first), Some(last)) = (rows.next(), rows.next_back()) {
                let name = format!("{what}: {} as cheap as {}", last.way, first.way);
                self.at_most(name, Some(last.p50 / first.p50), FLAT, "×");
            }
        }
    }

    fn vm(&mut self) {
        let rows = self.report.rows.iter();
        let relayed = rows.filter(|r| r.section == "vm" && r.way == "rum");
        let relayed: Vec<&Row> = relayed.filter(|r| r.unit == Unit::Gbit.name()).collect();
        for rum in relayed {
            if let Some(raw) = self.row("vm", &rum.what, "raw channel") {
                let share = rum.p50 / raw.p50 * 100.0;
                let name = format!("virtual machine, {}: 95 % of the raw channel", rum.what);
                let bare = self.row("vm", &rum.what, "bare relay");
                let bare = bare.map_or(String::new(), |bare| {
                    format!(" (a bare relay {:.0} %)", bare.p50 / raw.p50 * 100.0)
                });
                self.add(name, format!("{share:.0} %{bare}"), share >= 95.0);
            }
        }
    }
}
