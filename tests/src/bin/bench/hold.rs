//! Established connections between pairs of processes, to see what they cost others.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Resource, getrlimit, setrlimit};

use crate::ways::Killed;

/// Connections of one pair of processes: below the usual hard limit of descriptors, and below
/// the number of ports that one address has for its clients.
const OF_A_PAIR: usize = 10_000;
/// Where they listen: outside of every range that is forwarded here.
const PORT: u16 = 4000;

/// Many connections, in as many pairs of processes as they need. Gone when dropped, without
/// TIME_WAIT.
pub struct Held {
    _pairs: Vec<Killed>,
}

impl Held {
    /// Makes so many in the caller's network namespace; they are there when this returns.
    ///
    /// # Errors
    /// When a process ends before its connections are there.
    pub fn start(connections: usize) -> io::Result<Self> {
        let me = std::env::current_exe()?;
        let mut pairs = Vec::new();
        for first in (0..connections).step_by(OF_A_PAIR) {
            let count = OF_A_PAIR.min(connections - first);
            let addr = format!("127.0.1.{}:{PORT}", 1 + first / OF_A_PAIR);
            let mut command = Command::new(&me);
            command.args(["holder", &addr, &count.to_string()]);
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
            pairs.push(Killed(command.spawn()?));
        }
        for pair in &mut pairs {
            let ready = pair.0.stdout.as_mut().expect("stdout is piped");
            ready.read_exact(&mut [0])?;
        }
        Ok(Self { _pairs: pairs })
    }
}

/// The process that accepts, and holds what it accepted until its stdin ends or it is killed.
pub fn holder(addr: &str, count: usize) -> io::Result<()> {
    raise_limit();
    let listener = TcpListener::bind(addr)?;
    let mut connector = Command::new(std::env::current_exe()?);
    connector.args(["connector", addr, &count.to_string()]);
    let _connector = Killed(connector.stdin(Stdio::piped()).spawn()?);
    let _held = (0..count)
        .map(|_| reset_on_close(listener.accept()?.0))
        .collect::<io::Result<Vec<_>>>()?;
    io::stdout().write_all(b".")?;
    io::stdout().flush()?;
    io::copy(&mut io::stdin(), &mut io::sink()).map(drop)
}

/// The process that connects; it ends with the other.
pub fn connector(addr: &str, count: usize) -> io::Result<()> {
    raise_limit();
    let _held = (0..count)
        .map(|_| reset_on_close(TcpStream::connect(addr)?))
        .collect::<io::Result<Vec<_>>>()?;
    io::copy(&mut io::stdin(), &mut io::sink()).map(drop)
}

fn reset_on_close(stream: TcpStream) -> io::Result<TcpStream> {
    rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
    Ok(stream)
}

/// Takes as many descriptors as the machine allows, where root may often have more than the hard
/// limit; returns how many.
pub fn raise_limit() -> usize {
    /// More than anything here needs; the kernel's own bound (fs.nr_open) is a million.
    const ENOUGH: u64 = 300_000;
    let mut files = getrlimit(Resource::Nofile);
    let hard = files.maximum;
    files.maximum = hard.map(|hard| hard.max(ENOUGH));
    files.current = files.maximum;
    if setrlimit(Resource::Nofile, files).is_err() {
        files.maximum = hard;
        files.current = hard;
        setrlimit(Resource::Nofile, files).expect("below the hard limit");
    }
    files.current.map_or(usize::MAX, |limit| limit as usize)
}
