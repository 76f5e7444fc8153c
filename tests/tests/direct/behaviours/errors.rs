//! What the calls of a program return when the other one has ended, reset or gone: which error, from which
//! call, and what poll(2) says.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};

use rum_tests::wait::until;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::ioctl_fionread;

use super::ends::fill;
use super::{Behaviour, ends, hears, reset, rest, said, saw, word};

pub const ALL: &[Behaviour] = &[
    ends("how much can be read", counts_unread),
    ends("what poll says of a half-close", sees_half_close),
    ends("writes after a close", writes_after_close),
    ends("writes after a reset", writes_after_reset),
    ends("reads after a reset", reads_after_reset),
    ends("a reset after both have ended", both_ended),
    ends("a reset after the own end", reset_after_own_end),
    ends("a reset after the other one's end", reset_after_its_end),
    ends("a reset while writes wait", reset_while_stuck),
];

/// All that poll(2) says once it says `event`. Of a reset the error is there a moment before the rest.
fn polled(stream: &TcpStream, event: PollFlags) -> String {
    let all = PollFlags::IN | PollFlags::OUT | PollFlags::RDHUP;
    let now = || {
        // HUP and ERR come unasked.
        let mut fds = [PollFd::new(stream, all)];
        poll(&mut fds, Some(&Timespec::default())).ok()?;
        let seen = fds[0].revents();
        seen.contains(event).then_some(seen)
    };
    format!("{:?}", until("what poll is to say", now))
}

fn written(mut stream: &TcpStream) -> String {
    format!("write {:?}", said(stream.write(b"more")))
}

fn read(mut stream: &TcpStream) -> String {
    format!("read {:?}", said(stream.read(&mut [0; 64])))
}

/// FIONREAD, ioctl_tcp(2) SIOCINQ.
fn counts_unread(near: TcpStream, mut far: TcpStream) -> String {
    saw(|| {
        let mut seen = vec![];
        for more in ["four", "and nine"] {
            said(far.write_all(more.as_bytes()))?;
            let least = seen.last().copied().unwrap_or(0) + 1;
            let waiting = || ioctl_fionread(&near).ok().filter(|n| *n >= least);
            seen.push(until("bytes to read", waiting));
        }
        Ok(format!("{seen:?}"))
    })
}

fn sees_half_close(mut near: TcpStream, far: TcpStream) -> String {
    saw(|| {
        said(far.shutdown(Shutdown::Write))?;
        let events = polled(&near, PollFlags::RDHUP);
        said(near.write_all(b"word"))?;
        Ok(format!("{events}, {:?}", word(&far)?))
    })
}

/// The first write after a close goes to nobody; that is said to the next one.
fn writes_after_close(near: TcpStream, far: TcpStream) -> String {
    drop(far);
    let ended = polled(&near, PollFlags::RDHUP);
    let first = written(&near);
    let gone = polled(&near, PollFlags::HUP);
    format!(
        "{ended}, {first}, {gone}, {}, {}",
        written(&near),
        read(&near)
    )
}

fn writes_after_reset(near: TcpStream, far: TcpStream) -> String {
    reset(far);
    let gone = polled(&near, PollFlags::HUP);
    let calls = [written(&near), written(&near), read(&near)];
    format!("{gone}, {calls:?}")
}

fn reads_after_reset(near: TcpStream, far: TcpStream) -> String {
    reset(far);
    polled(&near, PollFlags::HUP);
    let calls = [read(&near), read(&near), written(&near)];
    format!("{calls:?}")
}

fn both_ended(near: TcpStream, far: TcpStream) -> String {
    saw(|| {
        said(near.shutdown(Shutdown::Write))?;
        rest(&far)?;
        drop(far);
        let over = polled(&near, PollFlags::HUP);
        let left = said(near.take_error())?;
        Ok(format!(
            "{over}, {left:?}, {}, {}",
            read(&near),
            written(&near)
        ))
    })
}

fn reset_after_own_end(near: TcpStream, far: TcpStream) -> String {
    saw(|| {
        said(near.shutdown(Shutdown::Write))?;
        rest(&far)?;
        reset(far);
        let gone = polled(&near, PollFlags::HUP);
        Ok(format!("{gone}, {}, {}", read(&near), written(&near)))
    })
}

fn reset_after_its_end(near: TcpStream, far: TcpStream) -> String {
    saw(|| {
        said(far.shutdown(Shutdown::Write))?;
        let heard = rest(&near)?;
        reset(far);
        let gone = polled(&near, PollFlags::HUP);
        let error = said(near.take_error())?.map(|error| error.kind());
        Ok(format!("{heard}, {gone}, {error:?}, {}", written(&near)))
    })
}

fn reset_while_stuck(mut near: TcpStream, far: TcpStream) -> String {
    let stuck = fill(&near);
    reset(far);
    let error = loop {
        match near
            .write_all(&[b'x'; 1 << 16])
            .map_err(|error| error.kind())
        {
            Ok(()) | Err(ErrorKind::WouldBlock) => {}
            Err(error) => break error,
        }
    };
    let next = written(&near);
    format!("{stuck:?}, {error:?}, {next}, {}", hears(near))
}
