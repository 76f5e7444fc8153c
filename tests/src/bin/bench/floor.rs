//! The floor: the least that any program must do to forward a new port of a namespace guest.
//!
//! Two processes of one purpose each. The guest's opens the same tracepoint as the agent, and for
//! each listener that comes or goes sends one message over a Unix socket. The host's reads it and
//! binds and listens, or closes. No dump, no check, no RPC, no policy, one port at a time; and no
//! relay: the host's process greets a client itself. So *open to accepted* is what rum is
//! compared with in full; rum's first byte has come from the program in the guest, the floor's
//! has not.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use rum_agent::kernel::tracepoint::{Hint, Tracepoint};
use rum_tests::guest::Guest;
use rum_tests::netns::in_netns;
use rum_tests::rum::binary;
use rustix::event::{PollFd, PollFlags, poll};

use crate::ways::Killed;

/// Bytes of a message: whether it listens, its port (big-endian). Port 0: the guest is ready.
const MESSAGE: usize = 3;

/// Starts a guest program in a namespace of its own, and both processes, for ports from `first`
/// to `last`. Returns when they are ready.
///
/// # Panics
/// When they do not start.
pub fn start(first: u16, last: u16) -> (Guest, Vec<Killed>) {
    let me = std::env::current_exe().expect("own path");
    let (host_end, guest_end) = UnixStream::pair().expect("a pair of sockets");
    let mut host = Command::new(&me)
        .arg("floor-host")
        .stdin(OwnedFd::from(host_end))
        .stdout(Stdio::piped())
        .spawn()
        .expect("the floor's host side starts");
    let (mut program, agent) = in_netns(|| {
        let mut program = Command::new(binary("guest"));
        program.stdin(Stdio::piped()).stdout(Stdio::piped());
        let program: Child = program.spawn().expect("the guest program starts");
        let mut agent = Command::new(&me);
        agent.arg("floor-guest").stdin(OwnedFd::from(guest_end));
        agent.args([first.into(), last.into(), program.id()].map(|n: u32| n.to_string()));
        (
            program,
            agent.spawn().expect("the floor's guest side starts"),
        )
    });
    let ready = host.stdout.as_mut().expect("stdout is piped");
    ready.read_exact(&mut [0]).expect("the floor is ready");
    let guest = Guest::of(&mut program);
    (guest, [host, agent, program].map(Killed).into())
}

/// The process in the guest; its stdin is the socket. The tracepoint tells of the host's own
/// listeners as well, so it heeds only what process `program` does.
pub fn guest_side(first: u16, last: u16, program: u32) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut tracepoint = Tracepoint::open(None).map_err(io::Error::other)?;
        tracepoint.set_range(first, last)?;
        let mut socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        let mut tell = |listens: bool, port: u16| {
            let [high, low] = port.to_be_bytes();
            socket.write_all(&[listens.into(), high, low])
        };
        tell(false, 0)?;
        loop {
            match tracepoint.next().await {
                Hint::Listen { port, pid, .. } if pid == program => tell(true, port)?,
                // Port 0: a listen() without bind(), somewhere on this machine.
                Hint::Listen { .. } | Hint::Unlisten { port: 0 } | Hint::Lost => {}
                Hint::Unlisten { port } => tell(false, port)?,
            }
        }
    })
}

/// The process on the host; its stdin is the socket.
pub fn host_side() -> io::Result<()> {
    let mut socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut listener: Option<TcpListener> = None;
    loop {
        let mut fds = vec![PollFd::new(&socket, PollFlags::IN)];
        fds.extend(listener.as_ref().map(|l| PollFd::new(l, PollFlags::IN)));
        poll(&mut fds, None)?;
        let told = !fds[0].revents().is_empty();
        if let Some(listener) = &listener
            && fds.get(1).is_some_and(|fd| !fd.revents().is_empty())
        {
            // A client that is gone again is not the floor's fault.
            let _ = listener.accept()?.0.write_all(b"h");
        }
        if told {
            let mut message = [0; MESSAGE];
            socket.read_exact(&mut message)?;
            let [listens, high, low] = message;
            match u16::from_be_bytes([high, low]) {
                0 => {
                    io::stdout().write_all(b".")?;
                    io::stdout().flush()?;
                }
                _ if listens == 0 => listener = None,
                port => {
                    let addr = SocketAddr::from(([127, 0, 0, 1], port));
                    listener = Some(TcpListener::bind(addr)?);
                }
            }
        }
    }
}
