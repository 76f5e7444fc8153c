//! How a connection ends, and what was said before is heard.

use std::io::{ErrorKind, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use rum_tests::wait::patience;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Behaviour, EVERYWHERE, KERNEL, ends, hears, reset, rest, said, saw, take, talk, word};

pub const ALL: &[Behaviour] = &[
    talk("the client ends first", ends_first, ends_last, EVERYWHERE),
    talk("the server ends first", ends_last, ends_first, EVERYWHERE),
    talk("both end at once", ends_first, ends_first, EVERYWHERE),
    talk("nothing at all", closes, hears, EVERYWHERE),
    talk("the client does not read any more", deaf, hears, EVERYWHERE),
    talk("the server does not read any more", hears, deaf, EVERYWHERE),
    talk("the client resets", resets, greets, EVERYWHERE),
    talk("the server resets", greets, resets, EVERYWHERE),
    talk(
        "the client resets after words",
        last_words,
        greets,
        EVERYWHERE,
    ),
    talk(
        "the server resets after words",
        greets,
        last_words,
        EVERYWHERE,
    ),
    talk(
        "the client closes with words unread",
        ignores,
        speaks,
        EVERYWHERE,
    ),
    talk(
        "the server closes with words unread",
        speaks,
        ignores,
        EVERYWHERE,
    ),
    ends("an answer, and a close with words unread", answers_unread),
    talk(
        "the client resets what nobody reads",
        pushes,
        sleeps,
        KERNEL,
    ),
    talk(
        "the server resets what nobody reads",
        sleeps,
        pushes,
        KERNEL,
    ),
];

/// Nothing has moved for so long: nothing will.
const QUIET: Duration = Duration::from_millis(300);

fn ends_first(mut stream: TcpStream) -> String {
    saw(|| {
        said(stream.write_all(b"over"))?;
        said(stream.shutdown(Shutdown::Write))?;
        rest(&stream)
    })
}

pub(super) fn ends_last(mut stream: TcpStream) -> String {
    saw(|| {
        let heard = rest(&stream)?;
        said(stream.write_all(b"and out"))?;
        Ok(heard)
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

/// An HTTP server that refuses a request before it has read it.
fn answers_unread(mut near: TcpStream, mut far: TcpStream) -> String {
    saw(|| {
        said(near.write_all(b"a long request"))?;
        said(far.peek(&mut [0]))?;
        said(far.write_all(b"too long"))?;
        drop(far);
        Ok(hears(near))
    })
}

/// Writes until nothing moves any more, and resets.
fn pushes(stream: TcpStream) -> String {
    match fill(&stream) {
        ErrorKind::WouldBlock => reset(stream),
        other => format!("{other:?}"),
    }
}

/// Writes until nothing moves any more, or an error.
pub(super) fn fill(mut stream: &TcpStream) -> ErrorKind {
    let _ = stream.set_write_timeout(Some(QUIET));
    loop {
        if let Err(error) = stream.write_all(&[b'x'; 1 << 16]) {
            return error.kind();
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
