//! The host's side of the load: see [`crate::server`]. The same threads drive every way.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rum_tests::monotonic_ns;

use crate::server::{Wish, drain, send};

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the host.
    ToGuest,
    /// To the host.
    ToHost,
    /// Each stream both ways at once.
    Both,
}

impl Direction {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::ToGuest, Self::ToHost, Self::Both];

    /// How tables call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::ToGuest => "to the guest",
            Self::ToHost => "to the host",
            Self::Both => "both at once",
        }
    }
}

/// After this a forward has lost what it was given.
const BOUND: Duration = Duration::from_secs(10);

/// What went wrong, in a note. A read that meets its timeout fails with EAGAIN (socket(7)).
pub fn said(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            format!("no answer for {} s, no sample", BOUND.as_secs())
        }
        _ => format!("{error}, no sample"),
    }
}

/// Where the server is reached.
#[derive(Debug, Clone, Copy)]
pub enum Target<'a> {
    /// Through a forward, or directly.
    Tcp(SocketAddr),
    /// Straight through the vsock of a virtual machine: a Unix socket that speaks `CONNECT`,
    /// and the port.
    Connect(&'a Path, u32),
}

fn connect(target: Target<'_>, wish: Wish) -> io::Result<File> {
    let stream: OwnedFd = match target {
        Target::Tcp(addr) => {
            let stream = TcpStream::connect_timeout(&addr, BOUND)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(BOUND))?;
            stream.set_write_timeout(Some(BOUND))?;
            stream.into()
        }
        Target::Connect(socket, port) => {
            let mut stream = UnixStream::connect(socket)?;
            stream.set_read_timeout(Some(BOUND))?;
            stream.set_write_timeout(Some(BOUND))?;
            writeln!(stream, "CONNECT {port}")?;
            // `OK NUMBER`; what follows the line is the connection's.
            let mut byte = [0];
            while byte != *b"\n" {
                stream.read_exact(&mut byte)?;
            }
            stream.into()
        }
    };
    let mut stream = File::from(stream);
    stream.write_all(&wish.header())?;
    Ok(stream)
}

/// Moves bytes for about `time` over so many streams; returns bits a second, counted by the
/// receivers until the last byte was there. Both directions count where there are both.
pub fn throughput(
    target: Target<'_>,
    direction: Direction,
    streams: usize,
    time: Duration,
) -> io::Result<f64> {
    let ms = time.as_millis() as u32;
    let wish = match direction {
        Direction::ToGuest => Wish::Sink,
        Direction::ToHost => Wish::Source(ms),
        Direction::Both => Wish::Both(ms),
    };
    let connected: io::Result<Vec<_>> = (0..streams).map(|_| connect(target, wish)).collect();
    let (connected, start) = (connected?, Instant::now());
    let bytes: io::Result<u64> = std::thread::scope(|scope| {
        let work = |stream| scope.spawn(move || one(stream, direction, time));
        let running: Vec<_> = connected.iter().map(work).collect();
        running
            .into_iter()
            .map(|r| r.join().expect("no thread panics"))
            .sum()
    });
    Ok(bytes? as f64 * 8.0 / start.elapsed().as_secs_f64())
}

/// Bytes that one stream has moved, whole.
fn one(stream: &File, direction: Direction, time: Duration) -> io::Result<u64> {
    match direction {
        Direction::ToHost => drain(stream),
        Direction::ToGuest => {
            let sent = send(stream, time)?;
            counted(stream, sent)
        }
        Direction::Both => std::thread::scope(|scope| {
            let sending = scope.spawn(move || send(stream, time));
            let received = drain(stream)?;
            let sent = sending.join().expect("no thread panics")?;
            Ok(received + counted(stream, sent)?)
        }),
    }
}

/// What the server has counted, which must be what was sent.
fn counted(mut stream: &File, sent: u64) -> io::Result<u64> {
    let mut count = [0; 8];
    stream.read_exact(&mut count)?;
    match u64::from_be_bytes(count) {
        count if count == sent => Ok(count),
        count => Err(io::Error::other(format!("{count} of {sent} bytes arrived"))),
    }
}

/// One request and answer of `size` bytes on a connection of its own.
pub fn request(target: Target<'_>, size: u32) -> io::Result<()> {
    let mut stream = connect(target, Wish::Echo(size))?;
    let mut message = vec![7; size as usize];
    stream.write_all(&message)?;
    stream.read_exact(&mut message)
}

/// Connections a second, each with one byte and its answer, made by `clients` threads.
pub fn connections(target: Target<'_>, clients: usize, time: Duration) -> io::Result<f64> {
    let start = Instant::now();
    let count: io::Result<u64> = std::thread::scope(|scope| {
        let client = move || {
            let mut count = 0;
            while start.elapsed() < time {
                request(target, 1)?;
                count += 1;
            }
            Ok(count)
        };
        let running: Vec<_> = (0..clients).map(|_| scope.spawn(client)).collect();
        running
            .into_iter()
            .map(|r| r.join().expect("no thread panics"))
            .sum()
    });
    Ok(count? as f64 / start.elapsed().as_secs_f64())
}

/// How long each of `count` requests of `size` bytes takes to be answered, in ns, one after the
/// other on one connection.
pub fn round_trips(target: Target<'_>, size: u32, count: usize) -> io::Result<Vec<u64>> {
    let mut stream = connect(target, Wish::Echo(size))?;
    let mut message = vec![7; size as usize];
    (0..count)
        .map(|_| {
            let start = monotonic_ns();
            stream.write_all(&message)?;
            stream.read_exact(&mut message)?;
            Ok(monotonic_ns() - start)
        })
        .collect()
}

/// Streams to the host that go on until they are dropped.
pub struct Downloads {
    streams: Vec<Arc<File>>,
    threads: Vec<JoinHandle<()>>,
    /// Bytes that have come.
    bytes: Arc<AtomicU64>,
}

impl Downloads {
    /// Starts so many; all of them move when this returns.
    pub fn start(target: Target<'_>, count: usize) -> io::Result<Self> {
        let mut this = Self {
            streams: vec![],
            threads: vec![],
            bytes: Arc::default(),
        };
        for _ in 0..count {
            let stream = Arc::new(connect(target, Wish::Source(u32::MAX))?);
            // The first frame is there.
            (&*stream).read_exact(&mut vec![0; 1 << 20])?;
            this.streams.push(stream.clone());
            let bytes = this.bytes.clone();
            this.threads.push(std::thread::spawn(move || {
                let mut buffer = vec![0; 256 << 10];
                // It ends when this side is shut down.
                while let Ok(n @ 1..) = (&*stream).read(&mut buffer) {
                    bytes.fetch_add(n as u64, Relaxed);
                }
            }));
        }
        Ok(this)
    }

    /// Bits that have come so far.
    pub fn bits(&self) -> f64 {
        self.bytes.load(Relaxed) as f64 * 8.0
    }
}

impl Drop for Downloads {
    fn drop(&mut self) {
        for stream in &self.streams {
            // Fails only when it has ended already.
            let _ = rustix::net::shutdown(&**stream, rustix::net::Shutdown::Both);
        }
        for thread in self.threads.drain(..) {
            thread.join().expect("no thread panics");
        }
    }
}

/// Round trips of `size` bytes for `time`, at least one, with a pause between, in ns.
pub fn round_trips_for(
    target: Target<'_>,
    size: u32,
    time: Duration,
    pause: Duration,
) -> io::Result<Vec<u64>> {
    let mut stream = connect(target, Wish::Echo(size))?;
    let (mut message, mut all, begin) = (vec![7; size as usize], vec![], Instant::now());
    while all.is_empty() || begin.elapsed() < time {
        std::thread::sleep(pause);
        let start = monotonic_ns();
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
        all.push(monotonic_ns() - start);
    }
    Ok(all)
}
