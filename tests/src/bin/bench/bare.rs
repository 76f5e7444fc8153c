//! A relay with nothing but the copying: no configuration, no counters, no deadline, no care for who
//! was reset. One thread, as in rum and its peers. It tells what a relay can move at the most on this
//! machine, and which way of moving bytes is worth its while.
//!
//! - `copy`: read(2) and write(2) with a buffer of 256 KiB, woken by an edge-triggered epoll(7);
//! - `splice`: splice(2) through a pipe of 1 MiB for each direction, woken likewise;
//! - `io_uring`: receives and sends of 256 KiB by io_uring(7), one of them under way in each
//!   direction, with deferred task work, which costs least for one thread.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::str::FromStr;

use io_uring::{IoUring, opcode, squeue, types};
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Bytes of a buffer: those of rum's own relay.
const BUFFER: usize = 256 << 10;
/// Bytes of a pipe: what an ordinary user may have (`fs.pipe-max-size`).
const PIPE: usize = 1 << 20;
/// Events that are taken at once.
const EVENTS: usize = 64;

/// How bytes are moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Through a buffer.
    Copy,
    /// Through a pipe.
    Splice,
    /// Through a buffer, by requests to the kernel.
    Uring,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Copy, Self::Splice, Self::Uring];

    /// How tables call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Copy => "bare copy",
            Self::Splice => "bare splice",
            Self::Uring => "bare io_uring",
        }
    }
}

impl FromStr for Mode {
    type Err = io::Error;

    fn from_str(text: &str) -> io::Result<Self> {
        let found = Self::ALL.into_iter().find(|mode| mode.name() == text);
        found.ok_or_else(|| io::Error::other(format!("what is `{text}`?")))
    }
}

/// Joins the network namespace of process `pid`, and relays what comes to the inherited listener
/// `fd` to `port` of the loopback there. Never returns but with an error.
pub fn run(mode: Mode, pid: u32, fd: i32, port: u16) -> io::Result<()> {
    let net = std::fs::File::open(format!("/proc/{pid}/ns/net"))?;
    move_into_link_name_space(net.as_fd(), Some(LinkNameSpaceType::Network))?;
    // SAFETY: whoever started this process left it the descriptor, and nobody else here has it.
    let listener = TcpListener::from(unsafe { OwnedFd::from_raw_fd(fd) });
    let to = SocketAddr::from(([127, 0, 0, 1], port));
    match mode {
        Mode::Uring => by_requests(&listener, to),
        _ => by_readiness(&listener, to, mode),
    }
}

/// The next client, and what it is led to.
fn accept(listener: &TcpListener, to: SocketAddr) -> io::Result<[TcpStream; 2]> {
    let pair = [listener.accept()?.0, TcpStream::connect(to)?];
    for socket in &pair {
        socket.set_nodelay(true)?;
    }
    Ok(pair)
}

/// Where bytes are between being read and being written.
enum Held {
    Buffer(Vec<u8>, Range<usize>),
    Pipe(OwnedFd, OwnedFd, usize),
}

impl Held {
    fn new(mode: Mode) -> io::Result<Self> {
        if mode == Mode::Copy {
            return Ok(Self::Buffer(vec![0; BUFFER], 0..0));
        }
        let (out, into) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // Smaller ones are what is left to a user with many of them.
        let _ = fcntl_setpipe_size(&into, PIPE);
        Ok(Self::Pipe(out, into, 0))
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Buffer(_, range) => range.is_empty(),
            Self::Pipe(_, _, held) => *held == 0,
        }
    }

    fn fill(&mut self, from: &TcpStream) -> rustix::io::Result<usize> {
        match self {
            Self::Buffer(bytes, range) => {
                let n = rustix::io::read(from, &mut bytes[..])?;
                *range = 0..n;
                Ok(n)
            }
            Self::Pipe(_, into, held) => {
                *held = splice(from, None, into, None, PIPE, SPLICE)?;
                Ok(*held)
            }
        }
    }

    fn empty(&mut self, to: &TcpStream) -> rustix::io::Result<()> {
        while !self.is_empty() {
            match self {
                Self::Buffer(bytes, range) => {
                    range.start += rustix::io::write(to, &bytes[range.clone()])?;
                }
                Self::Pipe(out, _, held) => *held -= splice(out, None, to, None, *held, SPLICE)?,
            }
        }
        Ok(())
    }
}

const SPLICE: SpliceFlags = SpliceFlags::MOVE.union(SpliceFlags::NONBLOCK);

/// Two sockets, and what is under way from each to the other.
struct Pair {
    sockets: [TcpStream; 2],
    held: [Held; 2],
    ended: [bool; 2],
}

impl Pair {
    /// Moves what can be moved. False when it is over.
    fn turn(&mut self) -> bool {
        for i in 0..2 {
            let done = self.direction(i);
            if !matches!(done, Ok(()) | Err(Errno::AGAIN)) {
                return false;
            }
        }
        self.ended != [true; 2]
    }

    fn direction(&mut self, i: usize) -> rustix::io::Result<()> {
        let (from, to) = (&self.sockets[i], &self.sockets[1 - i]);
        loop {
            self.held[i].empty(to)?;
            if self.ended[i] {
                return Ok(());
            }
            if self.held[i].fill(from)? == 0 {
                self.ended[i] = true;
                return rustix::net::shutdown(to, rustix::net::Shutdown::Write);
            }
        }
    }
}

fn by_readiness(listener: &TcpListener, to: SocketAddr, mode: Mode) -> io::Result<()> {
    const LISTENER: u64 = u64::MAX;
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    listener.set_nonblocking(true)?;
    epoll::add(
        &epoll,
        listener,
        EventData::new_u64(LISTENER),
        EventFlags::IN,
    )?;
    let edge = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
    let mut pairs: Vec<Option<Pair>> = Vec::new();
    let mut events: Vec<Event> = Vec::with_capacity(EVENTS);
    loop {
        events.clear();
        epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), None)?;
        for event in &events {
            let i = event.data.u64();
            if i != LISTENER {
                // An earlier event of the same turn may have been its end.
                let pair = &mut pairs[i as usize];
                if pair.as_mut().is_some_and(|pair| !pair.turn()) {
                    *pair = None;
                }
                continue;
            }
            while let Ok(sockets) = accept(listener, to) {
                let free = pairs.iter().position(Option::is_none);
                let i = free.unwrap_or(pairs.len());
                for socket in &sockets {
                    socket.set_nonblocking(true)?;
                    epoll::add(&epoll, socket, EventData::new_u64(i as u64), edge)?;
                }
                let pair = Some(Pair {
                    sockets,
                    held: [Held::new(mode)?, Held::new(mode)?],
                    ended: [false; 2],
                });
                match free {
                    Some(i) => pairs[i] = pair,
                    None => pairs.push(pair),
                }
            }
        }
    }
}

/// One direction of a pair, by requests: what is received is sent, then the next is received.
struct Flow {
    buffer: Box<[u8]>,
    /// What is being sent of it; nothing while something is being received.
    left: Range<usize>,
    ended: bool,
}

/// Two sockets, and a flow from each to the other.
struct Flows {
    sockets: [TcpStream; 2],
    flows: [Flow; 2],
    /// Requests of theirs that the kernel has: their buffers must stay.
    running: usize,
}

impl Flows {
    /// What flow `i` does next.
    fn request(&mut self, i: usize, name: u64) -> squeue::Entry {
        self.running += 1;
        let fd = |i: usize| types::Fd(self.sockets[i].as_raw_fd());
        let Flow { buffer, left, .. } = &mut self.flows[i];
        if Range::is_empty(left) {
            return opcode::Recv::new(fd(i), buffer.as_mut_ptr(), BUFFER as u32)
                .build()
                .user_data(name);
        }
        let part = &buffer[left.clone()];
        opcode::Send::new(fd(1 - i), part.as_ptr(), part.len() as u32)
            .build()
            .user_data(name)
    }

    /// Flow `i` has done what it was asked for. Whether it goes on.
    fn done(&mut self, i: usize, result: i32) -> bool {
        self.running -= 1;
        let Flow { left, ended, .. } = &mut self.flows[i];
        match (result, Range::is_empty(left)) {
            (n @ 1.., true) => *left = 0..n as usize,
            (n @ 1.., false) => left.start += n as usize,
            (0, true) => {
                *ended = true;
                let _ = self.sockets[1 - i].shutdown(Shutdown::Write);
            }
            _ => {
                for (flow, socket) in self.flows.iter_mut().zip(&self.sockets) {
                    flow.ended = true;
                    let _ = socket.shutdown(Shutdown::Both);
                }
            }
        }
        !self.flows[i].ended
    }
}

fn by_requests(listener: &TcpListener, to: SocketAddr) -> io::Result<()> {
    const LISTENER: u64 = u64::MAX;
    let mut ring: IoUring = IoUring::builder()
        .setup_single_issuer()
        .setup_coop_taskrun()
        .setup_defer_taskrun()
        .build(1024)?;
    let mut all: Vec<Option<Flows>> = Vec::new();
    let ready = opcode::PollAdd::new(types::Fd(listener.as_raw_fd()), libc::POLLIN as u32);
    let ready = ready.build().user_data(LISTENER);
    let mut requests = vec![ready.clone()];
    listener.set_nonblocking(true)?;
    loop {
        for request in requests.drain(..) {
            // SAFETY: buffers and sockets of a request belong to a `Flows`, which is dropped only
            // when none of its requests is running; the listener outlives this function.
            while unsafe { ring.submission().push(&request) }.is_err() {
                ring.submit()?;
            }
        }
        ring.submit_and_wait(1)?;
        for done in ring.completion() {
            let name = done.user_data();
            if name != LISTENER {
                let (i, slot) = ((name % 2) as usize, &mut all[(name / 2) as usize]);
                let Some(flows) = slot else { continue };
                if flows.done(i, done.result()) {
                    requests.push(flows.request(i, name));
                } else if flows.running == 0 {
                    *slot = None;
                }
                continue;
            }
            while let Ok(sockets) = accept(listener, to) {
                let free = all.iter().position(Option::is_none);
                let slot = free.unwrap_or(all.len());
                let flow = || Flow {
                    buffer: vec![0; BUFFER].into(),
                    left: 0..0,
                    ended: false,
                };
                let mut flows = Flows {
                    sockets,
                    flows: [flow(), flow()],
                    running: 0,
                };
                requests.extend([0, 1].map(|i| flows.request(i, slot as u64 * 2 + i as u64)));
                match free {
                    Some(slot) => all[slot] = Some(flows),
                    None => all.push(Some(flows)),
                }
            }
            requests.push(ready.clone());
        }
    }
}
