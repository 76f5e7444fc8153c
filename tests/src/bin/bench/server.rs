//! The guest's side of the load: a server that sinks, sends or answers, as each connection asks,
//! over TCP or, in a virtual machine, straight over vsock or through a bare relay.
//!
//! A connection begins with five bytes: what is wanted, and a number (big-endian). Where bytes
//! are counted they are counted by whoever receives them, so that nothing that is still in a
//! buffer of the forward counts. They come in frames whose first byte says which is the last, so
//! that nothing hangs on half-close, which not every peer forwards without loss.
//!
//! Lines on its stdin open and close one more port beside it, for latencies under that load.

use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rum_tests::monotonic_ns;
use vsock::{VMADDR_CID_ANY, VsockListener};

/// Bytes of a frame, which is one write: more than any forward moves at once.
const FRAME: usize = 256 << 10;
/// The first byte of a frame that another follows, and all its other bytes.
const MORE: u8 = 7;
/// The first byte of the last frame.
const LAST: u8 = 1;

/// What a connection wants of the server.
#[derive(Debug, Clone, Copy)]
pub enum Wish {
    /// Takes frames, then answers how many bytes there were (8 bytes).
    Sink,
    /// Sends frames for so many milliseconds.
    Source(u32),
    /// Both at once; the count of what the client sent follows the last byte.
    Both(u32),
    /// Answers each message of so many bytes with as many, until the client's end.
    Echo(u32),
}

impl Wish {
    /// The first bytes of a connection.
    pub fn header(self) -> [u8; 5] {
        let (kind, number) = match self {
            Self::Sink => (b's', 0),
            Self::Source(ms) => (b'g', ms),
            Self::Both(ms) => (b'b', ms),
            Self::Echo(size) => (b'e', size),
        };
        let [a, b, c, d] = number.to_be_bytes();
        [kind, a, b, c, d]
    }

    fn read(mut from: impl Read) -> io::Result<Self> {
        let mut header = [0; 5];
        from.read_exact(&mut header)?;
        let [kind, number @ ..] = header;
        let number = u32::from_be_bytes(number);
        match kind {
            b's' => Ok(Self::Sink),
            b'g' => Ok(Self::Source(number)),
            b'b' => Ok(Self::Both(number)),
            b'e' => Ok(Self::Echo(number)),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// Serves `port` of the loopback, and `vsock` of the vsock if there is one, and does what stdin says until that
/// ends: the process ends with whoever started it. What comes to the vsock port after that is relayed to
/// `port` without a frame, a check or another thought.
pub fn run(port: u16, vsock: Option<u32>) -> io::Result<()> {
    let tcp = SocketAddr::from(([127, 0, 0, 1], port));
    let listener = TcpListener::bind(tcp)?;
    accept(
        move || {
            let stream = listener.accept()?.0;
            stream.set_nodelay(true)?;
            Ok(stream.into())
        },
        serve,
    );
    if let Some(port) = vsock {
        let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, port)?;
        accept(move || Ok(listener.accept()?.0.into()), serve);
        let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, port + 1)?;
        accept(
            move || Ok(listener.accept()?.0.into()),
            move |stream| relay(stream, tcp),
        );
    }
    obey()
}

/// `open PORT`: a listener that gives each client one byte; `close`: ends it. Answers as the guest
/// program does, with the clock right after.
fn obey() -> io::Result<()> {
    let mut open = None;
    for line in io::stdin().lock().lines() {
        match line?.split_once(' ') {
            Some(("open", port)) => {
                open = Some(Open::new(port.parse().map_err(io::Error::other)?)?);
            }
            _ => drop(open.take()),
        }
        println!("ok {}", monotonic_ns());
        io::stdout().flush()?;
    }
    Ok(())
}

/// A listener, and the thread that accepts.
struct Open {
    listener: Arc<TcpListener>,
    thread: Option<JoinHandle<()>>,
}

impl Open {
    fn new(port: u16) -> io::Result<Self> {
        let listener = Arc::new(TcpListener::bind(("127.0.0.1", port))?);
        let accepting = listener.clone();
        let accept = move || {
            while let Ok((mut client, _)) = accepting.accept() {
                // One that is gone has what it wanted.
                let _ = client.write_all(b"h");
            }
        };
        let thread = Some(std::thread::spawn(accept));
        Ok(Self { listener, thread })
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // Nobody is accepted any more, and accept(2) returns.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        self.thread.take().map(JoinHandle::join);
    }
}

/// Serves each connection in a thread of its own, as a file, so that it does not matter what kind
/// of socket it is.
fn accept(
    mut next: impl FnMut() -> io::Result<OwnedFd> + Send + 'static,
    serve: impl Fn(&File) -> io::Result<()> + Copy + Send + 'static,
) {
    std::thread::spawn(move || {
        while let Ok(stream) = next() {
            // A client that is gone is not the server's fault.
            std::thread::spawn(move || drop(serve(&File::from(stream))));
        }
    });
}

/// Copies both ways until one end is over.
fn relay(stream: &File, to: SocketAddr) -> io::Result<()> {
    let other = TcpStream::connect(to)?;
    other.set_nodelay(true)?;
    let other = File::from(OwnedFd::from(other));
    let copy = |mut from: &File, mut to: &File| -> io::Result<()> {
        let mut buffer = vec![0; FRAME];
        loop {
            match from.read(&mut buffer)? {
                0 => break,
                n => to.write_all(&buffer[..n])?,
            }
        }
        rustix::net::shutdown(to, rustix::net::Shutdown::Both)?;
        Ok(rustix::net::shutdown(from, rustix::net::Shutdown::Both)?)
    };
    std::thread::scope(|scope| {
        scope.spawn(|| copy(stream, &other));
        copy(&other, stream)
    })
}

fn serve(mut stream: &File) -> io::Result<()> {
    match Wish::read(stream)? {
        Wish::Sink => {
            let count = drain(stream)?;
            stream.write_all(&count.to_be_bytes())
        }
        Wish::Source(ms) => send(stream, Duration::from_millis(ms.into())).map(drop),
        Wish::Both(ms) => std::thread::scope(|scope| {
            let sent = scope.spawn(move || send(stream, Duration::from_millis(ms.into())));
            let count = drain(stream)?;
            sent.join().map_err(|_| io::ErrorKind::Other)??;
            stream.write_all(&count.to_be_bytes())
        }),
        Wish::Echo(size) => {
            let mut message = vec![0; size as usize];
            while stream.read_exact(&mut message).is_ok() {
                stream.write_all(&message)?;
            }
            Ok(())
        }
    }
}

/// Sends frames for `time`, at least one; returns how many bytes.
pub fn send(mut stream: &File, time: Duration) -> io::Result<u64> {
    let (mut frame, start, mut count) = (vec![MORE; FRAME], Instant::now(), 0);
    loop {
        let last = start.elapsed() >= time;
        frame[0] = if last { LAST } else { MORE };
        stream.write_all(&frame)?;
        count += FRAME as u64;
        if last {
            return Ok(count);
        }
    }
}

/// Reads to the end of the last frame; returns how many bytes there were.
pub fn drain(mut stream: &File) -> io::Result<u64> {
    let (mut buffer, mut count, mut last) = (vec![0; FRAME], 0, false);
    loop {
        let place = count % FRAME;
        let n = stream.read(&mut buffer[place..])?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        last |= place == 0 && buffer[0] == LAST;
        count += n;
        if last && count % FRAME == 0 {
            return Ok(count as u64);
        }
    }
}
