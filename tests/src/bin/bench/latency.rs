//! Open and close latency of a namespace guest, for each source of hints.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use rum_tests::monotonic_ns;
use rum_tests::rum::Setup;

use crate::stats::Samples;

/// The prober tries again after this, so that it measures rum and not its own sleep.
const RETRY: Duration = Duration::from_micros(50);

/// Runs every variant and prints the tables.
pub fn run(samples: usize) {
    println!("\n### Latency, namespace guest, {samples} opens at random moments\n");
    println!("{}", Samples::HEAD);
    variant("tracepoint", Setup::new(), &[], samples);
    let poll = ["--agent-arg=--hint=poll"];
    variant("poll (no tracepoint)", Setup::new(), &poll, samples);
    variant("ordinary user", Setup::ordinary_user(), &[], samples);
    variant(
        "ordinary user, poll",
        Setup::ordinary_user(),
        &poll,
        samples,
    );
    let few = samples.min(50);
    variant("1 s poll only", Setup::new(), &["--no-stream"], few);
}

fn variant(name: &str, setup: Setup, args: &[&str], samples: usize) {
    let mut all = vec!["--range", "5000-5999", "-q"];
    all.extend(args);
    let (mut rum, mut guest) = setup.start_guest(&all);
    let mut prober = Prober::start();
    let (mut bound, mut open, mut close) = (Vec::new(), Vec::new(), Vec::new());
    let (mut ping, mut random) = (Vec::new(), Random::new());
    for i in 0..samples {
        let port = 5000 + (i % 1000) as u16;
        random.pause();
        let asked = monotonic_ns();
        prober.send("ping 0");
        ping.push(prober.answer()[1].saturating_sub(asked));
        random.pause();
        prober.send(&format!("open {port}"));
        let listened = guest.tell(&format!("once 127.0.0.1:{port}"));
        let [accepted, byte] = prober.answer();
        bound.push(accepted.saturating_sub(listened));
        open.push(byte.saturating_sub(listened));
        guest.send(&format!("close 127.0.0.1:{port}"));
        prober.send(&format!("gone {port}"));
        let closed = guest.answer();
        let [_, refused] = prober.answer();
        close.push(refused.saturating_sub(closed));
    }
    println!(
        "{}",
        Samples::new(ping).row(&format!("for comparison: waking one idle process, {name}"))
    );
    println!(
        "{}",
        Samples::new(bound).row(&format!("open to accepted, {name}"))
    );
    println!(
        "{}",
        Samples::new(open).row(&format!("open to first byte, {name}"))
    );
    println!(
        "{}",
        Samples::new(close).row(&format!("close to refused, {name}"))
    );
    drop(prober);
    guest.send("exit 0");
    rum.wait();
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
