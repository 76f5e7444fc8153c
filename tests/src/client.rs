//! Clients of the host ports.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use crate::guest::Guest;
use crate::wait::{patience, until};

/// A port of the host's loopback.
pub fn host(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// Connects to `address`. Reads wait as long as [`patience`] says.
///
/// # Errors
/// As connect(2).
pub fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(patience()))?;
    Ok(stream)
}

/// Connects to a forwarded port.
///
/// # Panics
/// When it does not accept.
pub fn connect(port: u16) -> TcpStream {
    dial(host(port)).expect("a forwarded port accepts")
}

/// Sends `text`, ends the sending side, returns everything that comes back.
///
/// # Errors
/// What the connection says.
///
/// # Panics
/// When the port does not accept.
pub fn exchange(port: u16, text: &str) -> io::Result<String> {
    talk(connect(port), text)
}

/// As [`exchange`] over a connection that is there already.
///
/// # Errors
/// What the connection says.
pub fn talk(mut stream: TcpStream, text: &str) -> io::Result<String> {
    stream.write_all(text.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Checks a forward of a guest program that listens as `greet-then-read`: the server ends first and
/// still hears the client.
///
/// # Panics
/// When it does not.
pub fn server_ends_first(guest: &mut Guest, port: u16, text: &str) {
    let mut stream = connect(port);
    let mut greeting = String::new();
    stream.read_to_string(&mut greeting).expect("its end");
    assert_eq!(greeting, "greetings");
    stream
        .write_all(text.as_bytes())
        .expect("the way in is open");
    stream.shutdown(Shutdown::Write).expect("a socket");
    let heard = guest.line();
    assert!(heard == format!("heard {text}"), "{} bytes", heard.len());
}

/// Waits until nobody accepts on the host's `port` any more.
///
/// # Panics
/// When somebody still does after [`patience`].
pub fn until_refused(port: u16) {
    until("the host port to be closed", || {
        let error = TcpStream::connect(host(port)).err()?;
        (error.kind() == ErrorKind::ConnectionRefused).then_some(())
    });
}
