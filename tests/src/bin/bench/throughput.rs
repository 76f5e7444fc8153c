//! Bytes, connections and requests through the forward of rum, of its peers, and without one.
//!
//! All ways are up at the same time and take turns: each round measures every way once, the
//! order is rotated from round to round. The processors are shared by the client, the forward
//! and the server, as they are for a developer.

use std::path::PathBuf;
use std::time::Duration;

use crate::bare::Mode;
use crate::load::{self, Direction};
use crate::report::{Report, Unit};
use crate::ways::{Kind, Way};

/// Parallel connections of the throughput.
const STREAMS: [usize; 3] = [1, 8, 64];
/// Bytes of a request and of its answer.
const SIZES: [(u32, &str); 2] = [(64, "64 B"), (16 << 10, "16 KiB")];
/// Clients that connect at the same time, to keep both processors busy.
const CLIENTS: usize = 4;
/// The first way's port; the others follow.
const FIRST_PORT: u16 = 5000;

/// Failed turns of one way after which it is left alone.
pub const PATIENCE: usize = 2;

/// How much is measured.
pub struct Plan {
    /// Times that each way has its turn.
    pub rounds: usize,
    /// How long one turn takes.
    pub turn: Duration,
    /// Requests in one turn.
    pub requests: usize,
    /// Another build of rum to compare with.
    pub other: Option<PathBuf>,
    /// What the name of each table must have.
    pub only: String,
}

/// Measures and adds the rows.
pub fn run(report: &mut Report, plan: &Plan) {
    let mut kinds = vec![Kind::Direct, Kind::Rum];
    kinds.extend(plan.other.clone().map(Kind::OtherRum));
    kinds.extend([Kind::Pasta, Kind::Haproxy, Kind::Socat]);
    kinds.extend(Mode::ALL.map(Kind::Bare));
    kinds.retain(|kind| kind.usable(report));
    let mut ways = Vec::new();
    for (kind, port) in kinds.into_iter().zip(FIRST_PORT..) {
        report.attempt(kind.name(), |_| ways.push(Way::start(kind.clone(), port)));
    }

    for direction in Direction::ALL {
        for streams in STREAMS {
            let what = match streams {
                1 => format!("{}, 1 stream", direction.name()),
                n => format!("{}, {n} streams", direction.name()),
            };
            turns(report, &ways, plan, &what, Unit::Gbit, |way| {
                load::throughput(way.target(), direction, streams, plan.turn)
                    .map(|bits| vec![bits / 1e9])
            });
        }
    }
    let what = format!("connections, {CLIENTS} clients");
    turns(report, &ways, plan, &what, Unit::PerSecond, |way| {
        load::connections(way.target(), CLIENTS, plan.turn).map(|rate| vec![rate])
    });
    for (size, name) in SIZES {
        let what = format!("request and answer, {name}");
        turns(report, &ways, plan, &what, Unit::Microseconds, |way| {
            let ns = load::round_trips(way.target(), size, plan.requests)?;
            Ok(ns.into_iter().map(|ns| ns as f64 / 1e3).collect())
        });
    }
}

/// Lets each way have its turn in each round. A turn that fails is said and has no sample; a way
/// that fails [`PATIENCE`] times has no more turns.
fn turns(
    report: &mut Report,
    ways: &[Way],
    plan: &Plan,
    what: &str,
    unit: Unit,
    measure: impl Fn(&Way) -> std::io::Result<Vec<f64>>,
) {
    if !what.contains(&plan.only) {
        return;
    }
    eprintln!("  {what}");
    let mut samples = vec![Vec::new(); ways.len()];
    let mut failed = vec![0; ways.len()];
    for round in 0..plan.rounds {
        for turn in 0..ways.len() {
            let i = (round + turn) % ways.len();
            if failed[i] == PATIENCE {
                continue;
            }
            match measure(&ways[i]) {
                Ok(values) => samples[i].extend(values),
                Err(error) => {
                    failed[i] += 1;
                    let said = load::said(&error);
                    report.note(&format!("{what}, {}: {said}", ways[i].kind.name()));
                }
            }
        }
    }
    for (way, samples) in ways.iter().zip(samples) {
        report.add("throughput", what, way.kind.name(), unit, samples);
    }
}
