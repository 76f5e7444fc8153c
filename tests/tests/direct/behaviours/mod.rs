//! What clients and servers do, and what they say they saw. [`bytes`] has what arrives, [`ends`] how a
//! connection ends, [`errors`] what the calls of a program return, [`queue`] what a listener takes part in.

mod bytes;
mod ends;
mod errors;
mod queue;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use rum_tests::Fnv;
use rum_tests::wait::{patience, until};
use rustix::net::sockopt;

use crate::place::Place;

/// What is between host and guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// One kernel: sockets are handed over.
    Kernel,
    /// A `CONNECT` device: frames.
    Device,
}

/// Something that a client and a server do together.
pub struct Behaviour {
    pub name: &'static str,
    pub play: Play,
    /// Where it is promised.
    pub over: &'static [Over],
}

/// Who does it.
#[derive(Clone, Copy)]
pub enum Play {
    /// A client and its server, at the same time.
    Talk {
        client: fn(TcpStream) -> String,
        server: fn(TcpStream) -> String,
    },
    /// One hand holds both ends, so that it knows when the far one has done its part. The near one says
    /// what it saw: the client's end, and on another connection the server's.
    Ends(fn(near: TcpStream, far: TcpStream) -> String),
    /// One hand holds the listener, too.
    Scene(fn(&Place<'_>, TcpListener) -> String),
}

const EVERYWHERE: &[Over] = &[Over::Kernel, Over::Device];
/// A device that is stuck with data for a guest does not look whether its host has gone.
const KERNEL: &[Over] = &[Over::Kernel];

const fn talk(
    name: &'static str,
    client: fn(TcpStream) -> String,
    server: fn(TcpStream) -> String,
    over: &'static [Over],
) -> Behaviour {
    let play = Play::Talk { client, server };
    Behaviour { name, play, over }
}

const fn ends(name: &'static str, play: fn(TcpStream, TcpStream) -> String) -> Behaviour {
    let (play, over) = (Play::Ends(play), EVERYWHERE);
    Behaviour { name, play, over }
}

const fn scene(name: &'static str, play: fn(&Place<'_>, TcpListener) -> String) -> Behaviour {
    let (play, over) = (Play::Scene(play), EVERYWHERE);
    Behaviour { name, play, over }
}

/// All that is promised over `over`.
pub fn all(over: Over) -> impl Iterator<Item = &'static Behaviour> {
    let all = [bytes::ALL, ends::ALL, errors::ALL, queue::ALL];
    all.into_iter()
        .flatten()
        .filter(move |b| b.over.contains(&over))
}

impl Behaviour {
    /// Does it with `listener`, which listens at `place`. What was seen.
    pub fn play(&self, place: &Place<'_>, listener: TcpListener) -> String {
        match self.play {
            Play::Talk { client, server } => thread::scope(|scope| {
                let serving = scope.spawn(|| server(accept(&listener)));
                let client = client(place.dial());
                let server = serving.join().expect("the server does not panic");
                format!("client {client}; server {server}")
            }),
            Play::Ends(play) => {
                let (client, server) = pair(place, &listener);
                let near = play(client, server);
                let (client, server) = pair(place, &listener);
                format!("client {near}; server {}", play(server, client))
            }
            Play::Scene(play) => play(place, listener),
        }
    }
}

/// The next client.
fn accept(listener: &TcpListener) -> TcpStream {
    let stream = until("a client", || Some(listener.accept().ok()?.0));
    let _ = stream.set_read_timeout(Some(patience()));
    stream
}

/// Both ends of a connection, the client's first.
fn pair(place: &Place<'_>, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let client = place.dial();
    (client, accept(listener))
}

/// More than all sockets on the way hold.
const BULK: usize = 8 << 20;

fn said<T>(result: std::io::Result<T>) -> Result<T, String> {
    result.map_err(|error| format!("{:?}", error.kind()))
}

/// What `talk` heard, or the error that ended it.
fn saw(talk: impl FnOnce() -> Result<String, String>) -> String {
    talk().unwrap_or_else(|error| format!("error {error}"))
}

fn rest(mut stream: &TcpStream) -> Result<String, String> {
    let mut text = String::new();
    said(stream.read_to_string(&mut text))?;
    Ok(text)
}

fn word(mut stream: &TcpStream) -> Result<String, String> {
    let mut word = [0; 4];
    said(stream.read_exact(&mut word))?;
    Ok(String::from_utf8_lossy(&word).into_owned())
}

/// Everything up to the end, and how that was.
fn hears(stream: TcpStream) -> String {
    let mut heard = vec![];
    let end = (&stream).read_to_end(&mut heard).map(|_| "a clean end");
    format!(
        "{:?}, then {:?}",
        String::from_utf8_lossy(&heard),
        said(end)
    )
}

/// Sends `count` bytes of a pattern, and ends.
fn send(mut stream: &TcpStream, count: usize) -> Result<(), String> {
    let pattern: Vec<u8> = (0..65_521u32).map(|n| (n * n / 7) as u8).collect();
    let mut left = count;
    while left > 0 {
        let part = &pattern[..left.min(pattern.len())];
        said(stream.write_all(part))?;
        left -= part.len();
    }
    said(stream.shutdown(Shutdown::Write))
}

/// Reads to the end, at most `most` at once. How many bytes, and their hash.
fn take(mut stream: &TcpStream, most: usize) -> Result<(usize, u64), String> {
    let (mut hash, mut count, mut buffer) = (Fnv::default(), 0, vec![0; most]);
    loop {
        match said(stream.read(&mut buffer))? {
            0 => return Ok((count, hash.value())),
            n => {
                hash.update(&buffer[..n]);
                count += n;
            }
        }
    }
}

/// Closes it with a reset.
fn reset(stream: TcpStream) -> String {
    let linger = sockopt::set_socket_linger(&stream, Some(Duration::ZERO));
    format!("reset {linger:?}")
}
