//! What arrives: all bytes, each at its place, when they were sent.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use rustix::net::sockopt;

use super::{BULK, Behaviour, EVERYWHERE, hears, rest, said, saw, send, take, talk, word};

pub const ALL: &[Behaviour] = &[
    talk("the client speaks first", asks, answers, EVERYWHERE),
    talk("the server speaks first", answers, asks, EVERYWHERE),
    talk("bulk both ways", bulk, bulk, EVERYWHERE),
    talk(
        "bulk, its end, and then an answer",
        uploads,
        receipts,
        EVERYWHERE,
    ),
    talk(
        "an end, and then bulk the other way",
        receipts,
        uploads,
        EVERYWHERE,
    ),
    talk("writes of one byte", dribbles, hears, EVERYWHERE),
    talk("one byte there and back", bounces, echoes, EVERYWHERE),
    talk("a write is one read", tells, counts, EVERYWHERE),
    talk("reads of few bytes", sips, pours, EVERYWHERE),
    talk(
        "a client with a tiny receive buffer",
        crams,
        trickles,
        EVERYWHERE,
    ),
    talk(
        "a server with a tiny receive buffer",
        trickles,
        crams,
        EVERYWHERE,
    ),
    talk("idle, then data", idles, hears, EVERYWHERE),
];

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

pub(super) fn bulk(stream: TcpStream) -> String {
    thread::scope(|scope| {
        let sending = scope.spawn(|| send(&stream, BULK));
        let heard = take(&stream, 1 << 16);
        let sent = sending.join().expect("sending does not panic");
        format!("{heard:?}, sent {sent:?}")
    })
}

/// Sends more than the way holds, ends, and hears what the other one makes of it.
fn uploads(stream: TcpStream) -> String {
    saw(|| {
        send(&stream, BULK)?;
        rest(&stream)
    })
}

fn receipts(mut stream: TcpStream) -> String {
    saw(|| {
        let taken = format!("{:?}", take(&stream, 1 << 16)?);
        said(stream.write_all(taken.as_bytes()))?;
        Ok(taken)
    })
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

/// How often a byte goes there and back.
const BOUNCES: u16 = 1000;

fn bounces(mut stream: TcpStream) -> String {
    saw(|| {
        said(stream.set_nodelay(true))?;
        let mut right = 0;
        for n in 0..BOUNCES {
            let (sent, mut heard) = ([n as u8], [0]);
            said(stream.write_all(&sent))?;
            said(stream.read_exact(&mut heard))?;
            right += u16::from(heard == sent);
        }
        Ok(format!("{right} right"))
    })
}

fn echoes(mut stream: TcpStream) -> String {
    saw(|| {
        said(stream.set_nodelay(true))?;
        let (mut count, mut byte) = (0, [0]);
        while said(stream.read(&mut byte))? == 1 {
            said(stream.write_all(&byte))?;
            count += 1;
        }
        Ok(format!("{count} echoed"))
    })
}

/// Sizes of writes, each of which fits into one segment and into a buffer of everything on the way.
const SIZES: [usize; 6] = [1, 2, 500, 1460, 4096, 12_000];

/// Waits after each write until the other one has read it.
fn tells(mut stream: TcpStream) -> String {
    saw(|| {
        for size in SIZES {
            said(stream.write_all(&vec![b'x'; size]))?;
            said(stream.read_exact(&mut [0]))?;
        }
        Ok("told".to_owned())
    })
}

/// How much each read got, while the other one waits for it.
fn counts(mut stream: TcpStream) -> String {
    saw(|| {
        let (mut counts, mut buffer) = (vec![], vec![0; 1 << 16]);
        loop {
            match said(stream.read(&mut buffer))? {
                0 => return Ok(format!("{counts:?}")),
                n => counts.push(n),
            }
            said(stream.write_all(&[0]))?;
        }
    })
}

fn sips(stream: TcpStream) -> String {
    format!("{:?}", take(&stream, 777))
}

fn pours(stream: TcpStream) -> String {
    format!("{:?}", send(&stream, BULK / 8))
}

fn crams(stream: TcpStream) -> String {
    // The kernel makes the least of it that there is (socket(7)).
    let small = sockopt::set_socket_recv_buffer_size(&stream, 1);
    format!("{small:?}, {:?}", take(&stream, 1 << 16))
}

fn trickles(stream: TcpStream) -> String {
    format!("{:?}", send(&stream, BULK / 512))
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
