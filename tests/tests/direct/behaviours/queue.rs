//! Clients that are not accepted yet, and listeners that close.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::thread;

use rum_tests::wait::until;

use super::bytes::bulk;
use super::ends::ends_last;
use super::{Behaviour, accept, hears, pair, reset, rest, said, saw, scene, word};
use crate::place::Place;

pub const ALL: &[Behaviour] = &[
    scene("a full accept queue", full_queue),
    scene("200 at once", many),
    scene("a listener that serves one client", one_shot),
    scene("a listener that closes on those who wait", leaves_waiting),
    scene("a second listener beside an old connection", relistens),
    scene("an end before it is accepted", ends_before),
    scene("a close before it is accepted", closes_before),
    scene("words and a close before it is accepted", speaks_before),
    scene("a reset before it is accepted", resets_before),
];

/// How many connections wait to be accepted: what TCP_INFO says of a listener (tcp_get_info,
/// net/ipv4/tcp.c).
fn waiting(listener: &TcpListener) -> u32 {
    // SAFETY: a struct of numbers, of which all zeroes is a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut size = size_of_val(&info) as libc::socklen_t;
    let (fd, into) = (listener.as_raw_fd(), (&raw mut info).cast());
    // SAFETY: TCP_INFO fills at most the `size` bytes of `info`.
    let asked =
        unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, into, &raw mut size) };
    assert_eq!(asked, 0, "it is a TCP socket");
    info.tcpi_unacked
}

fn until_waiting(listener: &TcpListener, count: u32) {
    until("clients that wait", || {
        (waiting(listener) >= count).then_some(())
    });
}

/// A program at a breakpoint: when it goes on, nobody has given up.
fn full_queue(place: &Place<'_>, listener: TcpListener) -> String {
    const CLIENTS: u8 = 10;
    // One more than that waits (listen(2) and `sk_acceptq_is_full`).
    let backlog = 1;
    rustix::net::listen(&listener, backlog).expect("it listens");
    let client = |n: u8| {
        let (mut client, mut heard) = (place.dial(), [0]);
        said(client.write_all(&[n]))?;
        said(client.read_exact(&mut heard))?;
        Ok::<_, String>(heard[0] == n)
    };
    let heard = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|n| scope.spawn(move || client(n)))
            .collect();
        until_waiting(&listener, backlog as u32 + 1);
        for _ in &clients {
            let (mut server, mut number) = (accept(&listener), [0]);
            let _ = server.read_exact(&mut number);
            let _ = server.write_all(&number);
        }
        let heard = clients
            .into_iter()
            .map(|client| client.join().expect("no panic"));
        heard.collect::<Vec<_>>()
    });
    format!("{heard:?}")
}

/// Each with bytes of its own.
fn many(place: &Place<'_>, listener: TcpListener) -> String {
    const CLIENTS: usize = 200;
    let client = |n: usize| {
        let mut client = place.dial();
        let (own, mut heard) = (vec![n as u8; 20_000 + n], vec![]);
        said(client.write_all(&own))?;
        said(client.shutdown(Shutdown::Write))?;
        said(client.read_to_end(&mut heard))?;
        Ok::<_, String>(heard == own)
    };
    let serve = |mut server: TcpStream| {
        let mut heard = vec![];
        let _ = server.read_to_end(&mut heard);
        let _ = server.write_all(&heard);
    };
    let heard = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|n| scope.spawn(move || client(n)))
            .collect();
        for _ in &clients {
            let server = accept(&listener);
            scope.spawn(move || serve(server));
        }
        let heard = clients
            .into_iter()
            .map(|client| client.join().expect("no panic"));
        heard.collect::<Vec<_>>()
    });
    let wrong: Vec<_> = heard.iter().filter(|heard| **heard != Ok(true)).collect();
    format!("{} served, but {wrong:?}", heard.len() - wrong.len())
}

/// As gdbserver --once, nc -l, a JVM with a debugger: nobody else is let in, and this one stays.
fn one_shot(place: &Place<'_>, listener: TcpListener) -> String {
    let (client, server) = pair(place, &listener);
    drop(listener);
    let others = place.until_closed();
    let server = thread::scope(|scope| {
        let serving = scope.spawn(|| bulk(server));
        let client = bulk(client);
        format!("{client}, {}", serving.join().expect("it does not panic"))
    });
    format!("others {others}, {server}")
}

fn leaves_waiting(place: &Place<'_>, listener: TcpListener) -> String {
    saw(|| {
        let mut client = place.dial();
        said(client.write_all(b"hello"))?;
        until_waiting(&listener, 1);
        drop(listener);
        Ok(hears(client))
    })
}

/// A server that is started anew while a download of the old one goes on.
fn relistens(place: &Place<'_>, listener: TcpListener) -> String {
    saw(|| {
        let (old_client, mut old_server) = pair(place, &listener);
        drop(listener);
        let between = place.until_closed();
        let listener = place.listen();
        let mut client = place.dial_again();
        said(client.write_all(b"next"))?;
        // Those who came when the first one closed may still get here, without a word.
        let mut server = loop {
            let server = accept(&listener);
            if word(&server).as_deref() == Ok("next") {
                break server;
            }
        };
        said(server.write_all(b"anew"))?;
        let new = word(&client)?;
        drop(listener);
        said(old_server.write_all(b"old!"))?;
        let old = word(&old_client)?;
        drop((server, old_server));
        Ok(format!(
            "{between}, {new}, {old}, {:?}, {:?}",
            rest(&client),
            rest(&old_client)
        ))
    })
}

fn ends_before(place: &Place<'_>, listener: TcpListener) -> String {
    saw(|| {
        let mut client = place.dial();
        said(client.write_all(b"over"))?;
        said(client.shutdown(Shutdown::Write))?;
        until_waiting(&listener, 1);
        let server = ends_last(accept(&listener));
        Ok(format!("{server}, {:?}", rest(&client)))
    })
}

fn closes_before(place: &Place<'_>, listener: TcpListener) -> String {
    drop(place.dial());
    hears(accept(&listener))
}

fn speaks_before(place: &Place<'_>, listener: TcpListener) -> String {
    saw(|| {
        said(place.dial().write_all(b"words"))?;
        Ok(hears(accept(&listener)))
    })
}

fn resets_before(place: &Place<'_>, listener: TcpListener) -> String {
    let client = place.dial();
    until_waiting(&listener, 1);
    reset(client);
    hears(accept(&listener))
}
