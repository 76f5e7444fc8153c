//! Open and close latency of a namespace guest, for each source of  hints.
//!
//! The fast ones take turns, a block of samples each. Those that look once a second are slow, so
//! they get fewer samples, one after the other at the end.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use rum_tests::guest::Guest;
use rum_tests::monotonic_ns;
use rum_tests::rum::{Rum, Setup};

use crate::report::{Report, Unit};

/// The prober tries again after this, so that it measures rum and not its own sleep.
const RETRY: Duration = Duration::from_micros(50);
/// Samples of one way in a row, before it is the next one's turn.
const BLOCK: usize = 25;
/// Most samples of what looks once a second.
const FEW: usize = 30;

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
    let mut subjects: Vec<Subject> = RUMS
        .iter()
        .map(|(name, args, user)| Subject::rum(name, args, *user))
        .collect();
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
    let slow = vec![Subject::rum("rum, 1 s poll only", &["--no-stream"], false)];
    for mut subject in slow {
        subject.measure(&mut prober, samples.min(FEW));
        subject.end(report);
    }
}

/// Something that forwards what a guest program listens on.
struct Subject {
    name: &'static str,
    guest: Guest,
    rum: Rum,
    /// The first port of its own.
    first: u16,
    random: Random,
    done: usize,
    /// Nanoseconds: waking the prober; open to accepted, to first byte; close to refused.
    ping: Vec<u64>,
    accepted: Vec<u64>,
    open: Vec<u64>,
    close: Vec<u64>,
}

impl Subject {
    fn new(name: &'static str, guest: Guest, rum: Rum, first: u16) -> Self {
        Self {
            name,
            guest,
            rum,
            first,
            random: Random::new(),
            done: 0,
            ping: Vec::new(),
            accepted: Vec::new(),
            open: Vec::new(),
            close: Vec::new(),
        }
    }

    fn rum(name: &'static str, args: &[&str], user: bool) -> Self {
        let setup = match user {
            true => Setup::ordinary_user(),
            false => Setup::new(),
        };
        let first = 5000
            + 1000
                * RUMS
                    .iter()
                    .position(|(n, ..)| *n == name)
                    .unwrap_or(RUMS.len()) as u16;
        let range = format!("{first}-{}", first + 999);
        let mut all = vec!["--range", &range, "-q"];
        all.extend(args);
        let (rum, guest) = setup.start_guest(&all);
        Self::new(name, guest, rum, first)
    }

    fn measure(&mut self, prober: &mut Prober, count: usize) {
        for _ in 0..count {
            let port = self.first + (self.done % 1000) as u16;
            self.done += 1;
            self.random.pause();
            let asked = monotonic_ns();
            prober.send("ping 0");
            self.ping.push(prober.answer()[1].saturating_sub(asked));
            self.random.pause();
            prober.send(&format!("open {port}"));
            let listened = self.guest.tell(&format!("once 127.0.0.1:{port}"));
            let [accepted, byte] = prober.answer();
            self.accepted.push(accepted.saturating_sub(listened));
            self.open.push(byte.saturating_sub(listened));
            self.guest.send(&format!("close 127.0.0.1:{port}"));
            prober.send(&format!("gone {port}"));
            let closed = self.guest.answer();
            let [_, refused] = prober.answer();
            self.close.push(refused.saturating_sub(closed));
        }
    }

    fn end(mut self, report: &mut Report) {
        for (what, samples) in [
            ("open to first byte", &self.open),
            ("of this, open to accepted", &self.accepted),
            ("close to refused", &self.close),
            ("for comparison: waking one idle process", &self.ping),
        ] {
            let samples = samples.iter().map(|ns| *ns as f64 / 1e6).collect();
            report.add("latency", what, self.name, Unit::Milliseconds, samples);
        }
        self.guest.send("exit 0");
        self.rum.wait();
    }
}

/// Random moments, relative to every timer in the system (xorshift).
pub struct Random(u64);

impl Random {
    /// Another sequence each time.
    pub fn new() -> Self {
        Self(monotonic_ns() | 1)
    }

    /// Sleeps 5 to 30 ms.
    pub fn pause(&mut self) {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        std::thread::sleep(Duration::from_micros(5_000 + self.0 % 25_000));
    }
}

/// The process that probes, and its pipes. Killed when dropped.
pub struct Prober {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Prober {
    /// Starts it.
    pub fn start() -> Self {
        let exe = std::env::current_exe().expect("own path");
        let mut child = Command::new(exe)
            .arg("prober")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the prober starts");
        let stdin = child.stdin.take().expect("stdin is piped");
        let stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        Self {
            child,
            stdin,
            stdout,
        }
    }

    /// Sends a command: see [`prober`].
    pub fn send(&mut self, command: &str) {
        writeln!(self.stdin, "{command}").expect("the prober reads");
        self.stdin.flush().expect("the prober reads");
    }

    /// When the connection that ended the search was made, and when it was over, in ns.
    pub fn answer(&mut self) -> [u64; 2] {
        let mut line = String::new();
        self.stdout
            .read_line(&mut line)
            .expect("the prober answers");
        let mut numbers = line.split_whitespace().map(str::parse);
        let mut next = || numbers.next().expect("two numbers").expect("nanoseconds");
        [next(), next()]
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The process that probes: `open PORT` until a connection yields a byte, `gone PORT` until
/// one is refused. Answers with its clock when that connection was made, and when it was over.
pub fn prober() {
    // Sleep for RETRY and not for the 50 us more that the kernel may add (prctl(2)).
    let slack = std::num::NonZeroU64::new(1);
    rustix::thread::set_current_timer_slack(slack).expect("always allowed");
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let (command, port) = line.split_once(' ').expect("COMMAND PORT");
        let port: u16 = port.parse().expect("a port");
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        let made = loop {
            if command == "ping" {
                break monotonic_ns();
            }
            let connected = TcpStream::connect(addr);
            let now = monotonic_ns();
            let over = match (connected, command) {
                (Ok(mut stream), "open") => matches!(stream.read(&mut [0]), Ok(1)),
                // "gone" means that a connect is refused, not that one is reset.
                (Err(error), "gone") => error.kind() == std::io::ErrorKind::ConnectionRefused,
                _ => false,
            };
            if over {
                break now;
            }
            std::thread::sleep(RETRY);
        };
        println!("{made} {}", monotonic_ns());
        std::io::stdout().flush().expect("the benchmark reads");
    }
}
