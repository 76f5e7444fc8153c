//! Clients of the host ports.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use crate::wait::patience;

/// A port of the host's loopback.
pub fn host(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// Connects to a forwarded port.
///
/// # Panics
/// When it does not accept.
pub fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(host(port)).expect("a forwarded port accepts");
    stream.set_read_timeout(Some(patience())).expect("a socket");
    stream
}

/// Sends `text`, ends the sending side, returns everything that comes back.
///
/// # Errors
/// What the connection says.
///
/// # Panics
/// When the port does not accept.
pub fn exchange(port: u16, text: &str) -> std::io::Result<String> {
    let mut stream = connect(port);
    stream.write_all(text.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
