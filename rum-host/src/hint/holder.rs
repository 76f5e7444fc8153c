//! The holder of a guest's notifications: threads of init that let each `listen()` go on and tell
//! the agent of it. Step 1 of the data flow where there is no tracepoint.
//!
//! Every program enters through [`crate::guest::process::enter`], which installs a filter ([`crate::hint::seccomp`]) in
//! the child that becomes the program and passes the descriptor here, over a socket whose abstract
//! name belongs to the guest's network namespace. Why init holds it, and neither rum nor `rum
//! exec`:
//! - a program must not outlive the holder, or its `listen()` fails with ENOSYS. Nothing outlives
//!   init, neither what `rum exec` left behind nor what goes on after rum was stopped (SIGSTOP);
//! - nothing inside can kill or stop PID 1, and no key of the terminal reaches it.
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
//! - A filter whose descriptor is not held here never gets to run a program: without `HELD` the
//!   child ends and enter starts the program anew, without a filter.
//! - A `listen()` waits for one turn of a thread that does nothing else: it polls, reads, looks at the
//!   socket ([`crate::hint::socket`]), answers, and writes 16 bytes without waiting. One filter cannot
//!   delay another.
//! - The range that the agent wants to hear of is read after the answer: of what was let go on when
//!   the agent widened it, either the holder tells or the looks show that follow a wider range.
//! - Whoever connects and passes no filter is a program that nobody tells of: the agent then polls
//!   fast. So a program of the guest gains nothing by calling here: it can make the agent poll, or
//!   use up the [`MAX_FILTERS`] places, which makes it poll too.
//! - The name is taken before any program runs inside, so none can pose as the holder; where there
//!   is nothing to hold nobody listens behind it.

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
/// Filters that are held at once, each with a thread: one for each `rum exec` of which something
/// still runs. What is started beyond is left to the poll.
pub const MAX_FILTERS: usize = 128;
/// How long the other side may take for its next step. Between two running processes it takes
/// microseconds; a program that waits this long was started by a stopped process.
const PATIENCE: Duration = Duration::from_secs(5);
/// After an accept that failed for want of something, descriptors or memory.
const PAUSE: Duration = Duration::from_millis(100);
/// Stack of a holder's thread, in bytes: the loop is shallow.
const STACK: usize = 128 * 1024;

/// To enter: pass the listener.
const READY: u8 = b'R';
/// To enter: it is held, the program may start.
const HELD: u8 = b'H';

/// Why a child that installed a filter must not go on: nobody holds its listener. No exec fails
/// with it.
pub const UNHELD: Errno = Errno::OWNERDEAD;

/// The socket that programs pass their filters to, before anybody listens to it.
#[derive(Debug)]
pub struct Door(OwnedFd);

impl Door {
    /// Takes the name.
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
    /// To the agent; both ends, so that it outlives each agent.
    pipe: (OwnedFd, OwnedFd),
    /// From the agent.
    wanted: Wanted,
    held: AtomicUsize,
    untold: AtomicBool,
}

impl Holder {
    /// Begins to hold: from now on [`find`] succeeds inside.
    pub fn start(door: &Door) -> io::Result<Arc<Self>> {
        let pipe = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // A kernel that refuses keeps its default, which is more.
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
        // Ends with init, which is what every thread here is for.
        named().spawn(move || this.accept(&socket))?;
        Ok(holder)
    }

    /// For an agent that starts now: the end of the pipe, and where to say what it wants. Until it
    /// does, that is everything. No other agent may be running.
    pub fn for_agent(&self) -> [BorrowedFd<'_>; 2] {
        let _ = self.wanted.set(PortRange::ALL);
        [self.pipe.0.as_fd(), self.wanted.as_fd()]
    }

    /// Tells an agent that starts now what it missed.
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

    /// Writes a record, unless the pipe is full: see [`rum_agent::kernel::listen_events`].
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

    /// Holds the filter that `peer` passes, for as long as anything runs under it.
    fn serve(&self, peer: OwnedFd) {
        let Ok(listener) = receive_listener(&peer) else {
            return self.0.program_is_untold();
        };
        listener.share_processor();
        // Who does not hear it ends, and the listener hangs up.
        let _ = rustix::net::send(&peer, &[HELD], SendFlags::NOSIGNAL);
        drop(peer);
        let mut looker = Looker::default();
        loop {
            let mut fds = [PollFd::new(&listener, PollFlags::IN)];
            match poll(&mut fds, None) {
                Err(Errno::INTR) => continue,
                // Out of memory for a moment: reading waits as well.
                Err(_) => {}
                Ok(_) if fds[0].revents().contains(PollFlags::IN) => {}
                // Hung up: nothing runs under the filter any more.
                Ok(_) => return,
            }
            match listener.receive() {
                Ok(Some(call)) => {
                    // The time before the answer: afterwards the program may listen already.
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

/// Enter's side: the way to the holder of the guest in whose network namespace we are, once it
/// has a place. None: there is no holder, or none with a place, and the program goes without.
pub fn find() -> Option<OwnedFd> {
    let connect = || -> io::Result<OwnedFd> {
        let socket = socket()?;
        // Also for the connect, which waits while the backlog is full.
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

/// In the child that becomes the program: installs the filter and has it held. Where none can be
/// installed it goes without, which the holder takes note of. Needs CAP_SYS_ADMIN, which the exec
/// takes from an ordinary user's program.
///
/// # Errors
/// [`UNHELD`]: the filter is installed and nobody answers for it. This process must not go on.
pub fn enlist(holder: &OwnedFd) -> io::Result<()> {
    let Ok(listener) = seccomp::install() else {
        return Ok(());
    };
    let held = || -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds = [listener.as_fd()];
        // The space is for exactly this.
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
        let data = [IoSlice::new(&[HELD])];
        rustix::net::sendmsg(holder, &data, &mut ancillary, SendFlags::NOSIGNAL)?;
        hear(holder, HELD)
    };
    held().map_err(|_| UNHELD.into())
}
