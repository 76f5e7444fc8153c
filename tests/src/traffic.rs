//! Bytes that tell whether all of them arrived, each at its place: client and guest know what the
//! other one sends, and compare while it comes.
//!
//! Each side's stream is a block of random bytes, made from the job's seed, over and over. Its length
//! is a prime, so that a piece that is lost, doubled or moved does not fit. Sizes of reads and writes
//! are random, and now and then a side stalls.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use rustix::net::sockopt;

/// Length of the block, in bytes: a prime.
const BLOCK: usize = 262_139;
/// Largest piece that is written or read at once.
const PIECE: usize = 128 << 10;
/// One piece in so many is followed by a stall.
const STALLS: u32 = 128;
/// Longest stall, in microseconds.
const STALL: u64 = 3000;

/// Who speaks when, and how it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Both at once; the guest ends last, with a line that says what it heard.
    AtOnce,
    /// The guest begins when the client has ended; ends likewise.
    ClientFirst,
    /// The guest ends before the client begins; says what it heard on its standard output.
    GuestFirst,
    /// At once, and when all has arrived the guest resets.
    GuestResets,
    /// The same by the client; the guest says on its standard output what it saw.
    ClientResets,
}

impl Order {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::AtOnce,
        Self::ClientFirst,
        Self::GuestFirst,
        Self::GuestResets,
        Self::ClientResets,
    ];
}

/// What goes over one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Job {
    /// Where all bytes, sizes and stalls come from.
    pub seed: u64,
    /// Bytes from the client.
    pub to_guest: u64,
    /// Bytes from the guest.
    pub to_client: u64,
    /// In which order.
    pub order: Order,
}

impl Job {
    /// What the guest says on its standard output, if it does.
    pub fn says(&self) -> Option<String> {
        match self.order {
            Order::AtOnce | Order::ClientFirst | Order::GuestResets => None,
            Order::GuestFirst => Some(format!("{} heard {}", self.seed, self.to_guest)),
            Order::ClientResets => Some(format!("{} reset", self.seed)),
        }
    }

    fn line(&self) -> String {
        let order = Order::ALL.iter().position(|order| *order == self.order);
        let order = order.unwrap_or_default();
        format!(
            "{} {} {} {order}\n",
            self.seed, self.to_guest, self.to_client
        )
    }

    fn parse(line: &str) -> Option<Self> {
        let mut numbers = line.split_whitespace().map(|word| word.parse::<u64>().ok());
        let mut next = || numbers.next()?;
        Some(Self {
            seed: next()?,
            to_guest: next()?,
            to_client: next()?,
            order: *Order::ALL.get(usize::try_from(next()?).ok()?)?,
        })
    }
}

/// One side's stream.
struct Side {
    random: fastrand::Rng,
    block: Vec<u8>,
    at: usize,
}

impl Side {
    fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut block = vec![0; BLOCK];
        random.fill(&mut block);
        Self {
            random,
            block,
            at: 0,
        }
    }

    /// The next bytes, at most `most`.
    fn next(&mut self, most: u64) -> &[u8] {
        // Small ones as often as large ones.
        let most = most.min(PIECE as u64 >> self.random.u32(0..17)).max(1);
        let most = usize::try_from(self.random.u64(1..=most)).unwrap_or(1);
        if self.random.u32(0..STALLS) == 0 {
            thread::sleep(Duration::from_micros(self.random.u64(0..STALL)));
        }
        let end = BLOCK.min(self.at + most);
        let part = &self.block[self.at..end];
        self.at = end % BLOCK;
        part
    }

    fn send(&mut self, mut to: &TcpStream, count: u64) -> io::Result<()> {
        let mut left = count;
        while left > 0 {
            let part = self.next(left);
            to.write_all(part)?;
            left -= part.len() as u64;
        }
        Ok(())
    }

    /// Takes `count` bytes, or fewer if the other side ends. Returns how many came.
    fn take(&mut self, mut from: &TcpStream, count: u64) -> io::Result<u64> {
        let mut buffer = vec![0; PIECE];
        let mut seen = 0;
        while seen < count {
            let expected = self.next(count - seen);
            let part = &mut buffer[..expected.len()];
            let n = from.read(part)?;
            if part[..n] != expected[..n] {
                let wrong = format!("other bytes between {seen} and {}", seen + n as u64);
                return Err(io::Error::new(ErrorKind::InvalidData, wrong));
            }
            if n == 0 {
                break;
            }
            // What did not come yet comes next.
            let rest = expected.len() - n;
            self.at = (self.at + BLOCK - rest) % BLOCK;
            seen += n as u64;
        }
        Ok(seen)
    }
}

/// `send` in a thread of its own, beside `take`.
fn both<T>(
    send: impl FnOnce() -> io::Result<()> + Send,
    take: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    thread::scope(|scope| {
        let sending = scope.spawn(send);
        let taken = take()?;
        sending.join().map_err(|_| io::Error::other("a panic"))??;
        Ok(taken)
    })
}

/// Guest side: does what the client's first line says. Returns what to say on standard output.
///
/// # Errors
/// The connection's; `InvalidData` for other bytes than expected.
pub fn serve(mut stream: TcpStream) -> io::Result<Option<String>> {
    let mut line = vec![];
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        line.push(byte[0]);
    }
    let line = String::from_utf8_lossy(&line).into_owned();
    let job = Job::parse(&line).ok_or_else(|| io::Error::other("no job"))?;
    let (mut hears, mut says) = (Side::new(job.seed), Side::new(!job.seed));
    let mut send = || says.send(&stream, job.to_client);
    // Beyond the job, too: there is nothing but the end.
    let mut take_all = || {
        let seen = hears.take(&stream, job.to_guest)?;
        let more = (&stream).read(&mut [0])?;
        Ok::<_, io::Error>(seen + more as u64)
    };
    match job.order {
        Order::AtOnce | Order::ClientFirst => {
            let seen = if job.order == Order::AtOnce {
                both(send, take_all)?
            } else {
                let seen = take_all()?;
                send()?;
                seen
            };
            writeln!(stream, "heard {seen}")?;
            Ok(None)
        }
        Order::GuestFirst => {
            send()?;
            stream.shutdown(Shutdown::Write)?;
            let seen = match take_all() {
                Ok(seen) => seen.to_string(),
                Err(error) => error.to_string(),
            };
            Ok(Some(format!("{} heard {seen}", job.seed)))
        }
        Order::GuestResets | Order::ClientResets => {
            both(send, || hears.take(&stream, job.to_guest))?;
            // The client has everything.
            stream.read_exact(&mut [0])?;
            if job.order == Order::GuestResets {
                sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
                return Ok(None);
            }
            stream.write_all(&[0])?;
            let end = match stream.read(&mut [0]) {
                Ok(0) => "a clean end".to_owned(),
                Ok(_) => "a byte more".to_owned(),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => "reset".to_owned(),
                Err(error) => error.to_string(),
            };
            Ok(Some(format!("{} {end}", job.seed)))
        }
    }
}

/// Client side: does `job` over a new connection. What the guest says on its standard output is
/// the caller's to read ([`Job::says`]).
///
/// # Errors
/// What went wrong, in words.
pub fn run(mut stream: TcpStream, job: &Job) -> Result<(), String> {
    let done = (|| -> io::Result<String> {
        stream.write_all(job.line().as_bytes())?;
        let (mut says, mut hears) = (Side::new(job.seed), Side::new(!job.seed));
        let mut send_all = || {
            says.send(&stream, job.to_guest)?;
            stream.shutdown(Shutdown::Write)
        };
        let mut take = |count| hears.take(&stream, count);
        match job.order {
            Order::AtOnce | Order::ClientFirst => {
                let seen = if job.order == Order::AtOnce {
                    both(send_all, || take(job.to_client))?
                } else {
                    send_all()?;
                    take(job.to_client)?
                };
                let mut last = String::new();
                (&stream).read_to_string(&mut last)?;
                Ok(format!("{seen}, {}", last.trim_end()))
            }
            Order::GuestFirst => {
                let seen = take(job.to_client)?;
                let more = (&stream).read(&mut [0])?;
                send_all()?;
                Ok(format!("{}", seen + more as u64))
            }
            Order::GuestResets | Order::ClientResets => {
                let send = || says.send(&stream, job.to_guest);
                let seen = both(send, || take(job.to_client))?;
                (&stream).write_all(&[0])?;
                if job.order == Order::ClientResets {
                    (&stream).read_exact(&mut [0])?;
                    sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
                    return Ok(format!("{seen}"));
                }
                match (&stream).read(&mut [0]) {
                    Ok(_) => Ok(format!("{seen}, a clean end instead of a reset")),
                    Err(e) if e.kind() == ErrorKind::ConnectionReset => Ok(format!("{seen}")),
                    Err(error) => Err(error),
                }
            }
        }
    })();
    let expected = match job.order {
        Order::AtOnce | Order::ClientFirst => {
            format!("{}, heard {}", job.to_client, job.to_guest)
        }
        Order::GuestFirst | Order::GuestResets | Order::ClientResets => job.to_client.to_string(),
    };
    match done {
        Ok(seen) if seen == expected => Ok(()),
        Ok(seen) => Err(format!("{job:?}: {seen} instead of {expected}")),
        Err(error) => Err(format!("{job:?}: {error}")),
    }
}
