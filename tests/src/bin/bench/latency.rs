//! Open and close latency of a namespace guest: rum for each source of hints, the floor, pasta.
//!
//! The fast ones take turns, a block of samples each. Those that look once a second are slow, so
//! they get fewer samples, one after the other at the end, and pauses that are as long as their
//! period, so that a listener comes at any moment of it.

use std::process::Stdio;
use std::time::Duration;

use rum_tests::guest::Guest;
use rum_tests::monotonic_ns;
use rum_tests::rum::{Rum, Setup, binary};

use crate::floor;
use crate::prober::{BOUND, Prober, RETRY};
use crate::report::{Report, Unit};
use crate::ways::{Killed, Kind, pasta};

/// Samples of one way in a row, before it is the next one's turn.
const BLOCK: usize = 25;
/// Most samples of what looks once a second.
const FEW: usize = 30;
/// A way that misses so many is left alone.
const PATIENCE: usize = 3;
/// As often as the prober asks the slow ones: a thousandth of their period. pasta accepts each
/// client as long as its port is there, and goes under with 20,000 of them a second.
const SLOW_RETRY: Duration = Duration::from_millis(1);
/// Ports of each way's own.
const PORTS: u16 = 1000;

/// The ways in order of their turns: name, arguments of `rum up`, as an ordinary user.
/// A further source of hints is a line here.
const RUMS: [(&str, &[&str], bool); 4] = [
    ("rum, tracepoint", &[], false),
    ("rum, no tracepoint", &["--agent-arg=--hint=poll"], false),
    ("rum, ordinary user", &[], true),
    (
        "rum, ordinary user, poll",
        &["--agent-arg=--hint=poll"],
        true,
    ),
];

/// Measures every way and adds the rows.
pub fn run(report: &mut Report, samples: usize) {
    let mut firsts = (5000..).step_by(PORTS.into());
    let mut first = || firsts.next().expect("there are enough ports");
    let mut subjects = vec![Subject::floor(first())];
    for (name, args, user) in RUMS {
        subjects.push(Subject::rum(name, first(), args, user));
    }
    let mut prober = Prober::start();
    for block in 0..samples.div_ceil(BLOCK) {
        let count = BLOCK.min(samples - block * BLOCK);
        for subject in &mut subjects {
            subject.measure(&mut prober, count);
        }
    }
    for subject in subjects {
        subject.end(report);
    }
    let (poll, peer) = (first(), first());
    let few = (samples / 10).clamp(1, FEW);
    report.attempt("rum, 1 s poll only", |report| {
        let mut subject = Subject::rum("rum, 1 s poll only", poll, &["--no-stream"], false);
        subject.slow = true;
        subject.measure(&mut prober, few);
        subject.end(report);
    });
    if Kind::Pasta.usable(report) {
        report.attempt("pasta", |report| {
            let mut subject = Subject::pasta(peer);
            subject.measure(&mut prober, few);
            subject.end(report);
        });
    }
}

/// What forwards.
enum Runs {
    Rum(Box<Rum>),
    Others(Vec<Killed>),
}

/// Something that forwards what a guest program listens on.
struct Subject {
    name: &'static str,
    guest: Guest,
    runs: Runs,
    /// The first port of its own.
    first: u16,
    /// Looks once a second.
    slow: bool,
    /// What the guest program is told, with `ADDR` for its address.
    listen: &'static str,
    random: Random,
    done: usize,
    /// What did not happen within the prober's bound.
    missed: Vec<&'static str>,
    /// Nanoseconds: waking the prober; open to accepted, to first byte; close to refused.
    ping: Vec<u64>,
    accepted: Vec<u64>,
    open: Vec<u64>,
    close: Vec<u64>,
}

impl Subject {
    fn new(name: &'static str, guest: Guest, runs: Runs, first: u16) -> Self {
        Self {
            name,
            guest,
            runs,
            first,
            slow: false,
            listen: "listen ADDR hello",
            random: Random::new(),
            done: 0,
            missed: Vec::new(),
            ping: Vec::new(),
            accepted: Vec::new(),
            open: Vec::new(),
            close: Vec::new(),
        }
    }

    fn rum(name: &'static str, first: u16, args: &[&str], user: bool) -> Self {
        let setup = if user {
            Setup::ordinary_user()
        } else {
            Setup::new()
        };
        let range = format!("{first}-{}", first + PORTS - 1);
        let mut all = vec!["--range", &range, "-q"];
        all.extend(args);
        let (rum, guest) = setup.start_guest(&all);
        Self::new(name, guest, Runs::Rum(Box::new(rum)), first)
    }

    fn floor(first: u16) -> Self {
        let (guest, runs) = floor::start(first, first + PORTS - 1);
        let mut this = Self::new("floor", guest, Runs::Others(runs), first);
        // No client gets as far as the guest.
        this.listen = "listen ADDR silent";
        this
    }

    fn pasta(first: u16) -> Self {
        let mut command = pasta("auto", &binary("guest"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("pasta starts");
        let guest = Guest::of(&mut child);
        let runs = Runs::Others(vec![Killed(child)]);
        let mut this = Self::new("pasta", guest, runs, first);
        this.slow = true;
        this
    }

    fn measure(&mut self, prober: &mut Prober, count: usize) {
        let (spread, retry) = if self.slow {
            (Duration::from_secs(1), SLOW_RETRY)
        } else {
            (Random::SHORT, RETRY)
        };
        for _ in 0..count {
            if self.missed.len() >= PATIENCE {
                return;
            }
            let port = self.first + (self.done % usize::from(PORTS)) as u16;
            let addr = format!("127.0.0.1:{port}");
            self.done += 1;
            self.random.pause(Random::SHORT);
            self.ping.push(prober.ping());
            self.random.pause(spread);
            prober.send("open", port, retry);
            self.guest.send(&self.listen.replace("ADDR", &addr));
            let probed = prober.answer();
            let listened = self.guest.answer();
            match probed {
                Some([accepted, byte]) => {
                    self.accepted.push(accepted.saturating_sub(listened));
                    self.open.push(byte.saturating_sub(listened));
                }
                None => self.missed.push("open"),
            }
            self.random.pause(spread);
            self.guest.send(&format!("close {addr}"));
            prober.send("gone", port, retry);
            let closed = self.guest.answer();
            match prober.answer() {
                Some([_, refused]) => self.close.push(refused.saturating_sub(closed)),
                None => self.missed.push("close"),
            }
        }
    }

    fn end(mut self, report: &mut Report) {
        for (what, samples) in [
            ("open to accepted", &self.accepted),
            ("open to first byte", &self.open),
            ("close to refused", &self.close),
            ("for comparison: waking one idle process", &self.ping),
        ] {
            let samples = samples.iter().map(|ns| *ns as f64 / 1e6).collect();
            report.add("latency", what, self.name, Unit::Milliseconds, samples);
        }
        for what in ["open", "close"] {
            let count = self.missed.iter().filter(|m| **m == what).count();
            if count > 0 {
                let (name, done, bound) = (self.name, self.done, BOUND.as_secs());
                report.note(&format!(
                    "{what}, {name}: {count} of {done} not seen for {bound} s, no sample"
                ));
            }
        }
        self.guest.send("exit 0");
        match &mut self.runs {
            Runs::Rum(rum) => drop(rum.wait()),
            Runs::Others(killed) => killed.clear(),
        }
    }
}

/// Random moments, relative to every timer in the system (xorshift).
pub struct Random(u64);

impl Random {
    /// Enough for what is waked by events.
    pub const SHORT: Duration = Duration::from_millis(25);

    /// Another sequence each time.
    pub fn new() -> Self {
        Self(monotonic_ns() | 1)
    }

    /// Sleeps 5 ms and up to `spread` more.
    pub fn pause(&mut self, spread: Duration) {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let more = self.0 % (spread.as_micros() as u64).max(1);
        std::thread::sleep(Duration::from_micros(5_000 + more));
    }
}
