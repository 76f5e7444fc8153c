//! The process that probes a port of the host, and how the benchmark drives it.
//!
//! It is a process of its own, so that a measurement is not delayed by the benchmark's work.
//! Every wait in it is bounded by [`BOUND`]: what does not happen is a missing sample.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use rum_tests::monotonic_ns;

/// After this a port is not going to open or close any more. What looks once a second needs 2 s.
pub const BOUND: Duration = Duration::from_secs(20);
/// How soon the prober tries again, so that it measures the forward and not its own sleep.
pub const RETRY: Duration = Duration::from_micros(50);

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

    /// Sends a command (see [`run`]), to be tried again every `retry`.
    pub fn send(&mut self, command: &str, port: u16, retry: Duration) {
        writeln!(self.stdin, "{command} {port} {}", retry.as_micros()).expect("the prober reads");
        self.stdin.flush().expect("the prober reads");
    }

    /// When the connection that ended the search was made, and when it was over, in ns; None if
    /// it was not within [`BOUND`].
    pub fn answer(&mut self) -> Option<[u64; 2]> {
        let mut line = String::new();
        self.stdout
            .read_line(&mut line)
            .expect("the prober answers");
        let numbers: Vec<u64> = line
            .split_whitespace()
            .map_while(|n| n.parse().ok())
            .collect();
        numbers.try_into().ok()
    }

    /// How long it takes to wake it, in ns.
    pub fn ping(&mut self) -> u64 {
        let asked = monotonic_ns();
        self.send("ping", 0, RETRY);
        let [woken, _] = self.answer().expect("a ping waits for nothing");
        woken.saturating_sub(asked)
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the process does. `open PORT RETRY`: until a connection yields a byte, `gone PORT RETRY`:
/// until one is refused, trying every so many microseconds; `ping PORT RETRY`: nothing. Answers
/// with its clock when that connection was made, and when it was over, or with `-`.
pub fn run() -> io::Result<()> {
    // Sleep for RETRY and not for the 50 us more that the kernel may add (prctl(2)).
    let slack = std::num::NonZeroU64::new(1);
    rustix::thread::set_current_timer_slack(slack)?;
    for line in io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        let [command, port, retry] = words[..] else {
            panic!("`{line}` is no command");
        };
        let addr = SocketAddr::from(([127, 0, 0, 1], port.parse().expect("a port")));
        let retry = Duration::from_micros(retry.parse().expect("microseconds"));
        match search(command, addr, retry) {
            Some(made) => println!("{made} {}", monotonic_ns()),
            None => println!("-"),
        }
        io::stdout().flush()?;
    }
    Ok(())
}

fn search(command: &str, addr: SocketAddr, retry: Duration) -> Option<u64> {
    let end = monotonic_ns() + BOUND.as_nanos() as u64;
    if command == "ping" {
        return Some(monotonic_ns());
    }
    loop {
        let connected = TcpStream::connect_timeout(&addr, BOUND);
        let now = monotonic_ns();
        let over = match (connected, command) {
            (Ok(mut stream), "open") => {
                let bounded = stream.set_read_timeout(Some(BOUND));
                bounded.is_ok() && matches!(stream.read(&mut [0]), Ok(1))
            }
            // "gone" means that a connect is refused, not that one is reset.
            (Err(error), "gone") => error.kind() == ErrorKind::ConnectionRefused,
            _ => false,
        };
        match now < end {
            true if over => return Some(now),
            true => std::thread::sleep(retry),
            false => return None,
        }
    }
}
