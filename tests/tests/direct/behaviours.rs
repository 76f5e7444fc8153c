//! What clients and servers do, and what they say they saw.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use rum_tests::Fnv;
use rum_tests::wait::patience;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt;

/// What is between host and guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// One kernel: sockets are handed over.
    Kernel,
    /// A `CONNECT` device: frames.
    Device,
}

/// A client and its server. Each says what it saw.
pub struct Behaviour {
    pub name: &'static str,
    pub client: fn(TcpStream) -> String,
    pub server: fn(TcpStream) -> String,
    /// Where it is promised.
    pub over: &'static [Over],
}

const EVERYWHERE: &[Over] = &[Over::Kernel, Over::Device];
/// A device that is stuck with data for a guest does not look whether its host has gone.
const KERNEL: &[Over] = &[Over::Kernel];

const fn of(
    name: &'static str,
    client: fn(TcpStream) -> String,
    server: fn(TcpStream) -> String,
    over: &'static [Over],
) -> Behaviour {
    Behaviour {
        name,
        client,
        server,
        over,
    }
}

/// All of them.
pub const ALL: &[Behaviour] = &[
    of("the client speaks first", asks, answers, EVERYWHERE),
    of("the server speaks first", answers, asks, EVERYWHERE),
    of("the client ends first", ends_first, ends_last, EVERYWHERE),
    of("the server ends first", ends_last, ends_first, EVERYWHERE),
    of("both end at once", ends_first, ends_first, EVERYWHERE),
    of("bulk both ways", bulk, bulk, EVERYWHERE),
    of("writes of one byte", dribbles, hears, EVERYWHERE),
    of("reads of few bytes", sips, pours, EVERYWHERE),
    of("idle, then data", idles, hears, EVERYWHERE),
    of("nothing at all", closes, hears, EVERYWHERE),
    of("the client does not read any more", deaf, hears, EVERYWHERE),
    of("the server does not read any more", hears, deaf, EVERYWHERE),
    of("the client resets", resets, greets, EVERYWHERE),
    of("the server resets", greets, resets, EVERYWHERE),
    of(
        "the client resets after words",
        last_words,
        greets,
        EVERYWHERE,
    ),
    of(
        "the server resets after words",
        greets,
        last_words,
        EVERYWHERE,
    ),
    of(
        "the client closes with words unread",
        ignores,
        speaks,
        EVERYWHERE,
    ),
    of(
        "the server closes with words unread",
        speaks,
        ignores,
        EVERYWHERE,
    ),
    of(
        "the client resets what nobody reads",
        pushes,
        sleeps,
        KERNEL,
    ),
    of(
        "the server resets what nobody reads",
        sleeps,
        pushes,
        KERNEL,
    ),
];

/// How much bulk is: more than all sockets on the way hold.
const BULK: usize = 8 << 20;
/// Nothing has moved for so long: nothing will.
const QUIET: Duration = Duration::from_millis(300);

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

fn asks(mut stream: TcpStream) -> String {
    saw(|| {
        said(stream.write_all(b"ping"))?;
        let heard = word(&stream)?;
        Ok(format!("{heard}, then {:?}", rest(&stream)?))
    })
}

fn answers(mut stream: TcpStream) -> String {
    saw(|| {
        let heard = word(&stream)?;
        said(stream.write_all(b"pong"))?;
        Ok(heard)
    })
}

fn ends_first(mut stream: TcpStream) -> String {
    saw(|| {
        said(stream.write_all(b"over"))?;
        said(stream.shutdown(Shutdown::Write))?;
        rest(&stream)
    })
}

fn ends_last(mut stream: TcpStream) -> String {
    saw(|| {
        let heard = rest(&stream)?;
        said(stream.write_all(b"and out"))?;
        Ok(heard)
    })
}

fn bulk(stream: TcpStream) -> String {
    thread::scope(|scope| {
        let sending = scope.spawn(|| send(&stream, BULK));
        let heard = take(&stream, 1 << 16);
        let sent = sending.join().expect("sending does not panic");
        format!("{heard:?}, sent {sent:?}")
    })
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

fn dribbles(mut stream: TcpStream) -> String {
    saw(|| {
        said(stream.set_nodelay(true))?;
        for byte in b'a'..=b'z' {
            said(stream.write_all(&[byte]))?;
        }
        Ok("dribbled".to_owned())
    })
}

fn hears(stream: TcpStream) -> String {
    let mut heard = vec![];
    let end = (&stream).read_to_end(&mut heard).map(|_| "a clean end");
    format!(
        "{:?}, then {:?}",
        String::from_utf8_lossy(&heard),
        said(end)
    )
}

fn sips(stream: TcpStream) -> String {
    format!("{:?}", take(&stream, 777))
}

fn pours(stream: TcpStream) -> String {
    format!("{:?}", send(&stream, BULK / 8))
}

fn idles(mut stream: TcpStream) -> String {
    saw(|| {
        said(stream.write_all(b"now"))?;
        // No condition: silence is what is tried.
        thread::sleep(Duration::from_millis(100));
        said(stream.write_all(b"later"))?;
        Ok("idled".to_owned())
    })
}

fn closes(stream: TcpStream) -> String {
    drop(stream);
    "closed".to_owned()
}

fn deaf(mut stream: TcpStream) -> String {
    saw(|| {
        said(stream.shutdown(Shutdown::Read))?;
        said(stream.write_all(b"deaf"))?;
        said(stream.shutdown(Shutdown::Write))?;
        Ok("spoke".to_owned())
    })
}

fn reset(stream: TcpStream) -> String {
    let linger = sockopt::set_socket_linger(&stream, Some(Duration::ZERO));
    format!("reset {linger:?}")
}

/// Speaks first, so that the other one knows that both are connected.
fn greets(mut stream: TcpStream) -> String {
    match said(stream.write_all(b"well")) {
        Ok(()) => hears(stream),
        Err(error) => error,
    }
}

fn resets(stream: TcpStream) -> String {
    let heard = word(&stream);
    format!("{heard:?}, {}", reset(stream))
}

fn last_words(mut stream: TcpStream) -> String {
    let heard = word(&stream);
    let spoke = said(stream.write_all(b"last words"));
    format!("{heard:?}, {spoke:?}, {}", reset(stream))
}

/// Closes while there is something to be read.
fn ignores(stream: TcpStream) -> String {
    format!("{:?}", said(stream.peek(&mut [0])))
}

fn speaks(mut stream: TcpStream) -> String {
    saw(|| {
        said(stream.write_all(b"does anybody hear this"))?;
        rest(&stream)
    })
}

/// Writes until nothing moves any more, and resets.
fn pushes(mut stream: TcpStream) -> String {
    let _ = stream.set_write_timeout(Some(QUIET));
    loop {
        match stream.write_all(&[b'x'; 1 << 16]) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return reset(stream),
            Err(error) => return format!("{:?}", error.kind()),
        }
    }
}

/// Reads nothing before the connection is broken.
fn sleeps(stream: TcpStream) -> String {
    let deadline = Timespec {
        tv_sec: i64::try_from(patience().as_secs()).unwrap_or(i64::MAX),
        tv_nsec: 0,
    };
    // No event is asked for: only an error or the end of both directions comes (poll(2)).
    let mut fds = [PollFd::new(&stream, PollFlags::empty())];
    let noticed = poll(&mut fds, Some(&deadline));
    let read = take(&stream, 1 << 16).map(|_| "a clean end");
    format!("noticed {noticed:?}, then {read:?}")
}
