//! A guest program that is busy with what rum has no part in, or holds connections.
//!
//! It takes a command a line on stdin and answers each with `ok NUMBER` or `error TEXT`, as the
//! tests' guest program does. One activity goes on at a time, at a rate that is kept on average:
//! what the machine delays is made up for.
//!
//!     binds RATE               bind(2) without listen(), then close
//!     connects RATE            connections to another thread here, ended by a reset
//!     listens RATE FIRST COUNT listen() and close, over so many ports from FIRST
//!     count                    how many there were so far
//!     stop
//!     hold COUNT               established connections between processes of their own
//!     take ADDR                accepts and holds whatever comes
//!     taken                    how many those are

use std::io::{self, BufRead, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketType, bind, socket, sockopt};

use crate::hold::{Held, raise_limit};

/// Where `connects` connects to: outside of every range that is forwarded here.
const SINK: SocketAddr = SocketAddr::V4(std::net::SocketAddrV4::new(
    std::net::Ipv4Addr::LOCALHOST,
    4100,
));
/// Longest and shortest sleep between two looks at the clock.
const NAP: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(1)];

#[derive(Default)]
struct Busy {
    running: Option<JoinHandle<io::Result<()>>>,
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    taken: Arc<AtomicU64>,
    held: Option<Held>,
}

/// Obeys until stdin ends.
pub fn run() -> io::Result<()> {
    raise_limit();
    let mut busy = Busy::default();
    for line in io::stdin().lock().lines() {
        let answer = match busy.obey(&line?) {
            Ok(number) => format!("ok {number}\n"),
            Err(error) => format!("error {error}\n"),
        };
        io::stdout().write_all(answer.as_bytes())?;
        io::stdout().flush()?;
    }
    Ok(())
}

impl Busy {
    fn obey(&mut self, line: &str) -> Result<u64, Box<dyn std::error::Error>> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["binds", rate] => {
                let any = SocketAddr::from(([127, 0, 0, 1], 0));
                self.start(rate.parse()?, move |_| {
                    let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
                    Ok(bind(&socket, &any)?)
                });
            }
            ["connects", rate] => {
                let listener = TcpListener::bind(SINK)?;
                self.start(rate.parse()?, move |_| {
                    let stream = TcpStream::connect(SINK)?;
                    sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
                    listener.accept().map(drop)
                });
            }
            ["listens", rate, first, count] => {
                let (first, count): (u16, u64) = (first.parse()?, count.parse()?);
                self.start(rate.parse()?, move |n| {
                    let port = first + (n % count) as u16;
                    TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))).map(drop)
                });
            }
            ["count"] => {}
            ["stop"] => {
                self.stop.store(true, Ordering::Relaxed);
                if let Some(running) = self.running.take() {
                    running.join().map_err(|_| "the activity panicked")??;
                }
            }
            ["hold", count] => {
                self.held = None;
                self.held = Some(Held::start(count.parse()?)?);
            }
            ["take", addr] => {
                let listener = TcpListener::bind(addr)?;
                let taken = self.taken.clone();
                std::thread::spawn(move || {
                    let mut held = Vec::new();
                    while let Ok((stream, _)) = listener.accept() {
                        held.push(stream);
                        taken.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            ["taken"] => return Ok(self.taken.load(Ordering::Relaxed)),
            _ => return Err(format!("what is `{line}`?").into()),
        }
        Ok(self.count.load(Ordering::Relaxed))
    }

    /// Does `event`, which gets its number, so many times a second until it is stopped.
    fn start(&mut self, rate: f64, event: impl Fn(u64) -> io::Result<()> + Send + 'static) {
        self.stop = Arc::default();
        self.count = Arc::default();
        let (stop, count, start) = (self.stop.clone(), self.count.clone(), Instant::now());
        self.running = Some(std::thread::spawn(move || {
            for n in 0.. {
                let due = Duration::from_secs_f64(n as f64 / rate);
                while start.elapsed() < due && !stop.load(Ordering::Relaxed) {
                    let left = due.saturating_sub(start.elapsed());
                    std::thread::sleep(left.clamp(NAP[1], NAP[0]));
                }
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                event(n)?;
                count.store(n + 1, Ordering::Relaxed);
            }
            Ok(())
        }));
    }
}
