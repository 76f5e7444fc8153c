//! What others notice of bulk that goes through the same forward: an echo, and a port that opens, beside no
//! download, one, and four.
//!
//! All ways are up at the same time and take turns. A turn is a number of downloads that run from
//! its beginning to its end, and, one after the other, echoes on a connection of their own and opens
//! of another port. The processors are shared by all of them, also without a forward: `direct` is how
//! long an echo waits for a processor here.
//!
//! Beside it: what one-byte writes cost, in processor time of rum's processes, where they go through
//! frames ([`Machine`]) and where the socket was handed over.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rum_tests::client::connect;
use rum_tests::device::Defects;
use rum_tests::guest::Guest;
use rum_tests::machine::Machine;
use rum_tests::rum::Setup;
use rum_tests::wait::until;

use crate::latency::Random;
use crate::load::{self, Downloads};
use crate::prober::{Prober, RETRY};
use crate::report::{Report, Unit};
use crate::throughput::PATIENCE;
use crate::usage::processor_time;
use crate::ways::{Kind, Way};

/// Downloads at once, and what tables call it.
pub const LOADS: [(usize, &str); 3] = [(0, "idle"), (1, "1 download"), (4, "4 downloads")];
/// Bytes of an echo.
const ECHO: u32 = 3;
/// Between two echoes: as a person who types, but faster.
const PAUSE: Duration = Duration::from_millis(1);
/// Between two opens, at most: see [`Random::pause`].
const SPREAD: Duration = Duration::from_millis(10);
/// As often as pasta is asked, which looks once a second: see the latencies.
const SLOW_RETRY: Duration = Duration::from_millis(1);
/// The first way's ports; each has two.
const FIRST_PORT: u16 = 5000;
/// The port of one-byte writes.
const BYTES_PORT: u16 = 5900;

/// How much is measured.
pub struct Plan {
    /// Times that each way has its turn.
    pub rounds: usize,
    /// How long echoes are measured in a turn, and how long opens.
    pub turn: Duration,
    /// One-byte writes in a turn.
    pub bytes: usize,
    /// Another build of rum to compare with.
    pub other: Option<PathBuf>,
}

/// Measures and adds the rows.
pub fn run(report: &mut Report, plan: &Plan) {
    let mut kinds = vec![Kind::Direct, Kind::Rum];
    kinds.extend(plan.other.clone().map(Kind::OtherRum));
    kinds.extend([Kind::Pasta, Kind::Haproxy]);
    kinds.retain(|kind| kind.usable(report));
    let mut ways = Vec::new();
    for (kind, port) in kinds.into_iter().zip((FIRST_PORT..).step_by(2)) {
        report.attempt(kind.name(), |_| {
            ways.push(Way::start_opening(kind.clone(), port));
        });
    }
    let mut bench = Bench {
        prober: Prober::start(),
        random: Random::new(),
        turn: plan.turn,
    };
    for (downloads, load) in LOADS {
        eprintln!("  {load}");
        let mut all: Vec<Samples> = ways.iter().map(|_| Samples::default()).collect();
        for round in 0..plan.rounds {
            for turn in 0..ways.len() {
                let i = (round + turn) % ways.len();
                if all[i].failed == PATIENCE {
                    continue;
                }
                if let Err(error) = bench.turn(&mut ways[i], downloads, &mut all[i]) {
                    all[i].failed += 1;
                    let (name, said) = (ways[i].kind.name(), load::said(&error));
                    report.note(&format!("bulk, {load}, {name}: {said}"));
                }
            }
        }
        for (way, samples) in ways.iter().zip(all) {
            samples.end(report, load, way.kind.name());
        }
    }
    drop(ways);
    report.attempt("one-byte writes", |report| bytes(report, plan));
}

/// What one way has under one load.
#[derive(Default)]
struct Samples {
    echo: Vec<f64>,
    open: Vec<f64>,
    rate: Vec<f64>,
    failed: usize,
}

impl Samples {
    fn end(self, report: &mut Report, load: &str, way: &str) {
        let Self {
            echo, open, rate, ..
        } = self;
        let mut add = |what: String, unit, samples| report.add("bulk", &what, way, unit, samples);
        add(format!("echo, {load}"), Unit::Milliseconds, echo);
        add(
            format!("open to first byte, {load}"),
            Unit::Milliseconds,
            open,
        );
        add(format!("throughput of {load}"), Unit::Gbit, rate);
    }
}

struct Bench {
    prober: Prober,
    random: Random,
    turn: Duration,
}

impl Bench {
    fn turn(&mut self, way: &mut Way, downloads: usize, into: &mut Samples) -> io::Result<()> {
        let running = Downloads::start(way.target(), downloads)?;
        let (start, before) = (Instant::now(), running.bits());
        let echoes = load::round_trips_for(way.target(), ECHO, self.turn, PAUSE)?;
        if downloads > 0 {
            let bits = running.bits() - before;
            into.rate.push(bits / start.elapsed().as_secs_f64() / 1e9);
        }
        into.echo
            .extend(echoes.into_iter().map(|ns| ns as f64 / 1e6));
        self.opens(way, &mut into.open)
    }

    /// Opens a port for as long as a turn, at least once.
    fn opens(&mut self, way: &mut Way, into: &mut Vec<f64>) -> io::Result<()> {
        let retry = match way.kind {
            Kind::Pasta => SLOW_RETRY,
            _ => RETRY,
        };
        let start = Instant::now();
        loop {
            self.random.pause(SPREAD);
            self.prober.send("open", way.second_port(), retry);
            let listened = way.open();
            let probed = self.prober.answer();
            way.close();
            // haproxy's ports are always there.
            if way.kind != Kind::Haproxy {
                self.prober.send("gone", way.second_port(), retry);
                self.prober.answer().ok_or(io::ErrorKind::TimedOut)?;
            }
            let [_, byte] = probed.ok_or(io::ErrorKind::TimedOut)?;
            into.push(byte.saturating_sub(listened) as f64 / 1e6);
            if start.elapsed() >= self.turn {
                return Ok(());
            }
        }
    }
}

/// One byte a write, through frames and without: processor time of host and agent for each MB.
fn bytes(report: &mut Report, plan: &Plan) {
    eprintln!("  one-byte writes");
    let listen = |guest: &mut Guest| {
        guest.tell(&format!("listen 127.0.0.1:{BYTES_PORT} sink"));
        until("a forward", || connected(BYTES_PORT));
    };
    let range = format!("{BYTES_PORT}");
    let mut row = |way: &str, host: u32, agent: u32| {
        let mut samples = [vec![], vec![]];
        for _ in 0..plan.rounds {
            let before = [host, agent].map(processor_time);
            dribble(plan.bytes).expect("all of them arrive");
            let after = [host, agent].map(processor_time);
            for (i, samples) in samples.iter_mut().enumerate() {
                let used = after[i].saturating_sub(before[i]);
                samples.push(used as f64 / plan.bytes as f64);
            }
        }
        for (process, samples) in ["host", "agent"].into_iter().zip(samples) {
            let what = format!("one-byte writes, {process}'s processor time for each MB");
            report.add("bulk", &what, way, Unit::Milliseconds, samples);
        }
    };
    {
        let (rum, mut guest) = Setup::new().start_guest(&["-q", "--range", &range]);
        listen(&mut guest);
        let agent = crate::usage::Processes::of(rum.child.id()).agent;
        row("rum, handed over", rum.child.id(), agent);
    }
    let config = format!("[auto_ports]\nrange = \"{BYTES_PORT}\"\n");
    let mut machine = Machine::boot(Defects::default(), &config);
    let agent = machine.start_agent(&[]);
    let rum = machine.start_rum();
    listen(&mut machine.guest);
    row("rum, frames", rum.child.id(), agent.child.id());
}

fn connected(port: u16) -> Option<()> {
    std::net::TcpStream::connect(("127.0.0.1", port))
        .ok()
        .map(drop)
}

/// Writes so many bytes, each for itself, and waits until all have arrived.
fn dribble(count: usize) -> io::Result<()> {
    let mut stream = connect(BYTES_PORT);
    stream.set_nodelay(true)?;
    for _ in 0..count {
        stream.write_all(b"x")?;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut counted = String::new();
    stream.read_to_string(&mut counted)?;
    if counted.starts_with(&format!("{count} ")) {
        Ok(())
    } else {
        Err(io::Error::other(format!("`{counted}` of {count}")))
    }
}
