//! A program for the guest that does what it is told, one line at a time on stdin, and answers
//! each with one line on stdout: `ok NANOSECONDS` (its CLOCK_MONOTONIC, read right after the
//! system call in question) or `error TEXT`. Tests and benchmarks drive real listeners with it.
//!
//!     listen ADDR MODE   a listener; MODE: hello (one byte, then close), echo, sink (reads
//!                        to the end, answers the byte count and a hash), late (answers only
//!                        after the client's half-close), greet-then-read, silent
//!     v6only ADDR MODE   the same with IPV6_V6ONLY
//!     mptcp ADDR MODE    the same as an MPTCP listener
//!     twin ADDR MODE     the same with SO_REUSEPORT, as one more listener on ADDR
//!     once ADDR          a listener; greets the first connection with one byte, then answers
//!     bind ADDR          bound, not listening
//!     shutdown ADDR      shutdown(2) on the listener, which stays open
//!     close ADDR         closes one listener (the newest twin first)
//!     many FIRST COUNT   listeners on COUNT ports from FIRST, on 127.0.0.1
//!     close-many FIRST COUNT
//!     exit CODE

use std::collections::HashMap;
use std::io::{BufRead, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rum_tests::{Fnv, monotonic_ns};
use rustix::net::{AddressFamily, SocketType, ipproto, sockopt};

fn main() {
    let mut listeners: HashMap<SocketAddr, Vec<OwnedFd>> = HashMap::new();
    let stdin = std::io::stdin().lock();
    for line in stdin.lines() {
        let Ok(line) = line else { break };
        let answer = match obey(&line, &mut listeners) {
            Ok(ns) => format!("ok {ns}"),
            Err(error) => format!("error {error}"),
        };
        let mut out = std::io::stdout().lock();
        if writeln!(out, "{answer}")
            .and_then(|()| out.flush())
            .is_err()
        {
            break;
        }
    }
}

fn obey(
    line: &str,
    listeners: &mut HashMap<SocketAddr, Vec<OwnedFd>>,
) -> Result<u64, Box<dyn std::error::Error>> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[..] {
        ["exit", code] => std::process::exit(code.parse()?),
        ["many", first, count] => {
            let (first, count): (u16, u16) = (first.parse()?, count.parse()?);
            for port in first..first + count {
                let addr = SocketAddr::from(([127, 0, 0, 1], port));
                let fd = open("listen", addr)?;
                listeners.entry(addr).or_default().push(fd);
            }
            Ok(monotonic_ns())
        }
        ["close-many", first, count] => {
            let (first, count): (u16, u16) = (first.parse()?, count.parse()?);
            for port in first..first + count {
                listeners.remove(&SocketAddr::from(([127, 0, 0, 1], port)));
            }
            Ok(monotonic_ns())
        }
        ["bind", addr] => {
            let addr = addr.parse()?;
            let fd = open("bind", addr)?;
            listeners.entry(addr).or_default().push(fd);
            Ok(monotonic_ns())
        }
        ["shutdown", addr] => {
            let addr: SocketAddr = addr.parse()?;
            let fd = listeners.get(&addr).and_then(|l| l.last());
            rustix::net::shutdown(fd.ok_or("no such listener")?, rustix::net::Shutdown::Both)?;
            Ok(monotonic_ns())
        }
        ["close", addr] => {
            let addr: SocketAddr = addr.parse()?;
            let held = listeners.get_mut(&addr).ok_or("no such listener")?;
            let fd = held.pop().ok_or("no such listener")?;
            // The accepting thread holds a duplicate: end it first.
            rustix::net::shutdown(&fd, rustix::net::Shutdown::Both)?;
            drop(fd);
            Ok(monotonic_ns())
        }
        // What a server does, and nothing beside it: the benchmark measures to this byte.
        ["once", addr] => {
            let addr: SocketAddr = addr.parse()?;
            let fd = open("listen", addr)?;
            let ns = monotonic_ns();
            let (mut first, _) = TcpListener::from(fd.try_clone()?).accept()?;
            first.write_all(b"h")?;
            listeners.entry(addr).or_default().push(fd);
            Ok(ns)
        }
        [kind @ ("listen" | "v6only" | "mptcp" | "twin"), addr, mode] => {
            let addr: SocketAddr = addr.parse()?;
            let fd = open(kind, addr)?;
            let ns = monotonic_ns();
            let listener = TcpListener::from(fd.try_clone()?);
            let mode = mode.to_owned();
            if mode != "silent" {
                std::thread::spawn(move || serve(&listener, &mode));
            }
            listeners.entry(addr).or_default().push(fd);
            Ok(ns)
        }
        _ => Err(format!("what is `{line}`?").into()),
    }
}

fn open(kind: &str, addr: SocketAddr) -> Result<OwnedFd, Box<dyn std::error::Error>> {
    let family = match addr {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let protocol = match kind {
        "mptcp" => ipproto::MPTCP,
        _ => ipproto::TCP,
    };
    let fd = rustix::net::socket(family, SocketType::STREAM, Some(protocol))?;
    sockopt::set_socket_reuseaddr(&fd, true)?;
    if kind == "twin" {
        sockopt::set_socket_reuseport(&fd, true)?;
    }
    if family == AddressFamily::INET6 {
        sockopt::set_ipv6_v6only(&fd, kind == "v6only")?;
    }
    rustix::net::bind(&fd, &addr)?;
    if kind != "bind" {
        rustix::net::listen(&fd, 1024)?;
    }
    Ok(fd)
}

fn serve(listener: &TcpListener, mode: &str) {
    while let Ok((stream, _)) = listener.accept() {
        if mode == "hello" {
            let _ = (&stream).write_all(b"h");
            continue;
        }
        let mode = mode.to_owned();
        std::thread::spawn(move || talk(stream, &mode));
    }
}

fn talk(mut stream: TcpStream, mode: &str) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    match mode {
        "echo" => loop {
            let n = stream.read(&mut buffer)?;
            if n == 0 {
                return stream.shutdown(Shutdown::Write);
            }
            stream.write_all(&buffer[..n])?;
        },
        "sink" => {
            let (mut count, mut hash) = (0u64, Fnv::default());
            loop {
                let n = stream.read(&mut buffer)?;
                if n == 0 {
                    return writeln!(stream, "{count} {:016x}", hash.value());
                }
                count += n as u64;
                hash.update(&buffer[..n]);
            }
        }
        // Half-close by the client: everything is answered after its end was seen.
        "late" => {
            let mut all = Vec::new();
            stream.read_to_end(&mut all)?;
            std::thread::sleep(Duration::from_millis(50));
            stream.write_all(&all)
        }
        // Half-close by the server: its end comes first, then it reads what the client says.
        "greet-then-read" => {
            stream.write_all(b"greetings")?;
            stream.shutdown(Shutdown::Write)?;
            let mut all = Vec::new();
            stream.read_to_end(&mut all)?;
            let heard = String::from_utf8_lossy(&all);
            writeln!(std::io::stdout(), "heard {heard}")
        }
        "reset" => {
            stream.read_exact(&mut buffer[..1])?;
            sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
            Ok(())
        }
        _ => Ok(()),
    }
}
