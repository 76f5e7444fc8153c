//! The holder of a guest's seccomp notifications: threads of init that let each `listen()` go on
//! and notify the agent of it. Step 1 of the data flow where there is no tracepoint.
//!
//! Every program enters through [`crate::guest::process::enter`]. It installs a filter
//! ([`crate::hint::seccomp`]) in the child that becomes the program, and passes the filter's
//! descriptor to the holder over a socket. The socket's abstract name belongs to the guest's
//! network namespace. Init holds the descriptor, neither rum nor `rum exec`, because:
//! - a program must not outlive the holder, or its `listen()` fails with ENOSYS. Nothing outlives
//!   init: neither what `rum exec` left behind nor what runs on while rum is stopped (SIGSTOP);
//! - no process inside can kill or stop PID 1, and no terminal signal reaches it.
//!
//! ```text
//! enter                        holder                     agent
//!   connect ──────────────────►  a thread of its own
//!   ◄─────────────────── READY
//!   fork, filter, listener ───►  held
//!   ◄──────────────────── HELD
//!   exec … listen() … asks ───►  which port? answer, hint ─pipe─►  dump, look again
//!                                wanted?  ◄──────────memfd───────  range
//! ```
//!
//! # Invariants
//! - A filter whose descriptor is not held here never runs a program: without `HELD` the child
//!   exits, and enter starts the program again without a filter.
//! - A `listen()` waits for one turn of a thread that does nothing else: it polls, reads, inspects
//!   the socket (`crate::hint::socket`), answers, and writes 16 bytes without blocking. One
//!   filter cannot delay another.
//! - The holder reads the agent's range after its answer. So a `listen()` that races with a wider
//!   range is never lost: either the holder reports it, or the dump that follows the change finds
//!   it.
//! - A client that connects and passes no filter counts as an unmonitored program: the agent then
//!   polls fast. So a program of the guest gains nothing by connecting here: it can make the agent
//!   poll, or use up the [`MAX_FILTERS`] places, which makes the agent poll too.
//! - The name is taken before any program runs inside, so no program can pose as the holder. Where
//!   there is nothing to hold, the socket does not listen.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rum_agent::kernel::listen_events::{PIPE, Told, Wanted};
use rum_shared::range::PortRange;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use rustix::pipe::PipeFlags;

use crate::hint::seccomp;
use crate::hint::seccomp::Listener;
use crate::hint::socket::Looker;

/// Name of the holder's socket, in the abstract namespace (unix(7)) of the guest's network.
const NAME: &[u8] = b"rum/holder";
/// Filters held at once, each with a thread: one per `rum exec` of which something still runs. The
/// poll covers programs beyond that.
pub const MAX_FILTERS: usize = 128;
/// How long the other side may take for its next step. Two running processes need microseconds;
/// only a program started by a stopped process waits this long.
const PATIENCE: Duration = Duration::from_secs(5);
/// Pause after an accept that failed for want of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(100);
/// Stack of a holder thread, in bytes: the loop is shallow.
const STACK: usize = 128 * 1024;

/// To enter: send the descriptor.
const READY: u8 = b'R';
/// To enter: the descriptor is held, the program may start.
const HELD: u8 = b'H';

/// Why a child that installed a filter must not go on: its descriptor is not held. No exec fails
/// with this error.
pub const UNHELD: Errno = Errno::OWNERDEAD;

/// The socket for registering filters, before it listens.
#[derive(Debug)]
pub struct Door(OwnedFd);

impl Door {
    /// Binds the name.
    pub fn new() -> io::Result<Self> {
        let socket = socket()?;
        rustix::net::bind(&socket, &SocketAddrUnix::new_abstract_name(NAME)?)?;
        Ok(Self(socket))
    }
}

fn socket() -> io::Result<OwnedFd> {
    let kind = SocketType::SEQPACKET;
    Ok(rustix::net::socket_with(
        AddressFamily::UNIX,
        kind,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// The holder's state, shared by its threads and init.
#[derive(Debug)]
pub struct Holder {
    /// Pipe to the agent; both ends, so that it outlives each agent.
    pipe: (OwnedFd, OwnedFd),
    /// The range that the agent wants reports for.
    wanted: Wanted,
    held: AtomicUsize,
    untold: AtomicBool,
}

impl Holder {
    /// Starts the holder: from now on [`find`] succeeds inside.
    pub fn start(door: &Door) -> io::Result<Arc<Self>> {
        let pipe = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // If the kernel refuses, the pipe keeps its default size, which is larger.
        let _ = rustix::pipe::fcntl_setpipe_size(&pipe.1, PIPE);
        let holder = Arc::new(Self {
            pipe,
            wanted: Wanted::new()?,
            held: AtomicUsize::new(0),
            untold: AtomicBool::new(false),
        });
        let socket = door.0.try_clone()?;
        rustix::net::listen(&socket, MAX_FILTERS as i32)?;
        let this = holder.clone();
        // The thread ends with init, as every thread here.
        named().spawn(move || this.accept(&socket))?;
        Ok(holder)
    }

    /// For an agent that starts now: the reading end of the pipe, and the memory where it publishes
    /// the range it wants. Until it does, that is every port. No other agent may be running.
    pub fn for_agent(&self) -> [BorrowedFd<'_>; 2] {
        let _ = self.wanted.set(PortRange::ALL);
        [self.pipe.0.as_fd(), self.wanted.as_fd()]
    }

    /// Reports again, to an agent that starts now, that programs run without a held filter.
    pub fn repeat(&self) {
        if self.untold.load(Ordering::Relaxed) {
            self.tell(0, 0, monotonic_ns());
        }
    }

    fn accept(self: &Arc<Self>, socket: &OwnedFd) {
        loop {
            let Ok(peer) = rustix::net::accept_with(socket, SocketFlags::CLOEXEC) else {
                thread::sleep(PAUSE);
                continue;
            };
            let place = Place::take(self);
            let is_full = place.is_none();
            let serve = move || {
                if let Some(place) = place {
                    place.serve(peer);
                }
            };
            if is_full || named().spawn(serve).is_err() {
                self.program_is_untold();
            }
        }
    }

    fn program_is_untold(&self) {
        self.untold.store(true, Ordering::Relaxed);
        self.tell(0, 0, monotonic_ns());
    }

    /// Writes a record, or drops it if the pipe is full: see [`rum_agent::kernel::listen_events`].
    fn tell(&self, pid: u32, port: u16, at_ns: u64) {
        let told = Told {
            at_ns,
            pid,
            port,
            untold: self.untold.load(Ordering::Relaxed),
        };
        let _ = rustix::io::write(&self.pipe.1, &told.to_bytes());
    }
}

fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::try_from(now).map_or(0, |now| now.as_nanos() as u64)
}

fn named() -> thread::Builder {
    thread::Builder::new()
        .name("rum-holder".to_owned())
        .stack_size(STACK)
}

/// One of the [`MAX_FILTERS`] places.
struct Place(Arc<Holder>);

impl Place {
    fn take(holder: &Arc<Holder>) -> Option<Self> {
        // Only the accepting thread adds.
        (holder.held.load(Ordering::Acquire) < MAX_FILTERS).then(|| {
            holder.held.fetch_add(1, Ordering::AcqRel);
            Self(holder.clone())
        })
    }

    /// Holds the filter that `peer` passes, as long as anything runs under it.
    fn serve(&self, peer: OwnedFd) {
        let Ok(listener) = receive_listener(&peer) else {
            return self.0.program_is_untold();
        };
        listener.share_processor();
        // A program that does not get `HELD` exits, which closes the descriptor.
        let _ = rustix::net::send(&peer, &[HELD], SendFlags::NOSIGNAL);
        drop(peer);
        let mut looker = Looker::default();
        loop {
            let mut fds = [PollFd::new(&listener, PollFlags::IN)];
            match poll(&mut fds, None) {
                Err(Errno::INTR) => continue,
                // Out of memory for a moment: `receive` waits as well.
                Err(_) => {}
                Ok(_) if fds[0].revents().contains(PollFlags::IN) => {}
                // Hung up: nothing runs under the filter any more.
                Ok(_) => return,
            }
            match listener.receive() {
                Ok(Some(call)) => {
                    // Taken before the answer: after it the program may listen at once.
                    let at_ns = monotonic_ns();
                    let port = looker.port(&call);
                    listener.answer(call);
                    looker.let_go();
                    if let Some(port) = port
                        && (port == 0 || self.0.wanted.get().contains(port))
                    {
                        self.0.tell(call.pid, port, at_ns);
                    }
                }
                Ok(None) => {}
                Err(_) => return,
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::AcqRel);
    }
}

fn receive_listener(peer: &OwnedFd) -> io::Result<Listener> {
    sockopt::set_socket_timeout(peer, Timeout::Recv, Some(PATIENCE))?;
    rustix::net::send(peer, &[READY], SendFlags::NOSIGNAL)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut data = [IoSliceMut::new(&mut byte)];
    rustix::net::recvmsg(peer, &mut data, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let fd = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Listener::checked(fd.ok_or(Errno::BADF)?)
}

/// Enter's side: connects to the holder of the guest whose network namespace this process is in,
/// and waits for a place. None: there is no holder, or no place, and the program runs without a
/// filter.
pub fn find() -> Option<OwnedFd> {
    let connect = || -> io::Result<OwnedFd> {
        let socket = socket()?;
        // The send timeout also bounds connect, which waits while the backlog is full.
        for side in [Timeout::Recv, Timeout::Send] {
            sockopt::set_socket_timeout(&socket, side, Some(PATIENCE))?;
        }
        rustix::net::connect(&socket, &SocketAddrUnix::new_abstract_name(NAME)?)?;
        hear(&socket, READY)?;
        Ok(socket)
    };
    connect().ok()
}

fn hear(socket: &OwnedFd, word: u8) -> io::Result<()> {
    let mut byte = [0];
    let received = rustix::net::recv(socket, &mut byte, RecvFlags::empty())?;
    match received.1 {
        1 if byte[0] == word => Ok(()),
        _ => Err(UNHELD.into()),
    }
}

/// In the child that becomes the program: installs the filter and registers it with the holder. If
/// no filter can be installed the program runs without one, which the holder notes. Needs
/// CAP_SYS_ADMIN, which the exec takes from an ordinary user's program.
///
/// # Errors
/// [`UNHELD`]: the filter is installed but not held. This process must exit.
pub fn enlist(holder: &OwnedFd) -> io::Result<()> {
    let Ok(listener) = seccomp::install() else {
        return Ok(());
    };
    let held = || -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds = [listener.as_fd()];
        // The buffer has exactly this size.
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
        let data = [IoSlice::new(&[HELD])];
        rustix::net::sendmsg(holder, &data, &mut ancillary, SendFlags::NOSIGNAL)?;
        hear(holder, HELD)
    };
    held().map_err(|_| UNHELD.into())
}
