//! A program for the guest that does what it is told, one line at a time on stdin, and answers
//! each with one line on stdout: `ok NANOSECONDS` (its CLOCK_MONOTONIC, read right after the
//! system call in question) or `error TEXT`. Tests and benchmarks drive real listeners with it.
//! With `vsock PORT` as arguments it calls the host there instead, and ends with the connection.
//! With `serve FD MODE` it is the child of `fork`, and ends with its stdin.
//!
//!     nothing            only the answer
//!     listen ADDR MODE   a listener; MODE: hello (one byte, then close), echo, sink (reads
//!                        to the end, answers the byte count and a hash), reset (reads a byte, then
//!                        resets), source (reads a line with a byte count, sends as many and their
//!                        hash, 8 bytes), ident (two bytes of its port, then echo), traffic (see
//!                        `rum_tests::traffic`), late (answers only
//!                        after the client's half-close), greet-then-read, silent
//!     v6only ADDR MODE   the same with IPV6_V6ONLY
//!     mptcp ADDR MODE    the same as an MPTCP listener
//!     uring ADDR MODE    the same, by io_uring instead of listen(2)
//!     i386 ADDR MODE     the same, by listen(2) of the 32-bit ABI
//!     twin ADDR MODE     the same with SO_REUSEPORT, as one more listener on ADDR
//!     fork ADDR MODE     the same, held by a child process alone, as servers that fork do
//!     once ADDR          a listener; greets the first connection with one byte, then answers
//!     bind ADDR          bound, not listening
//!     shutdown ADDR      shutdown(2) on the listener, which stays open
//!     close ADDR         closes one listener (the newest twin first)
//!     deaf ADDR          nobody is accepted there, and the accept queue of its listener is full
//!     hear ADDR          goes on accepting
//!     many FIRST COUNT   listeners on COUNT ports from FIRST, on 127.0.0.1
//!     close-many FIRST COUNT
//!     churn ADDR COUNT TIMES
//!                        opens COUNT listeners with SO_REUSEPORT and closes them, TIMES times
//!     refused CID PORT   connects to a vsock; an error unless that is closed without a byte
//!     sh COMMAND         runs it in a shell; an error unless it succeeds
//!     exit CODE

use std::collections::HashMap;
use std::collections::btree_map::{BTreeMap, Entry};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use rum_tests::{Fnv, monotonic_ns, traffic};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with, sockopt};
use vsock::{VMADDR_CID_HOST, VsockStream};

/// Where answers go, and what a connection has to say by itself.
type Out = Arc<Mutex<dyn Write + Send>>;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// Where nobody is accepted for now, and the connection with which the accept queue there is full.
type Deaf = BTreeMap<SocketAddr, OwnedFd>;
static DEAF: (Mutex<Deaf>, Condvar) = (Mutex::new(BTreeMap::new()), Condvar::new());

fn deaf() -> MutexGuard<'static, Deaf> {
    DEAF.0.lock().expect("no holder panics")
}

/// What keeps a port open.
enum Held {
    Own(OwnedFd),
    /// A child that has the listener.
    Forked(Child),
}

impl Held {
    fn own(&self) -> Result<&OwnedFd, &'static str> {
        match self {
            Self::Own(fd) => Ok(fd),
            Self::Forked(_) => Err("another process has it"),
        }
    }
}

fn main() -> std::io::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["vsock", port] => {
            let port = port.parse().map_err(std::io::Error::other)?;
            let host = VsockStream::connect_with_cid_port(VMADDR_CID_HOST, port)?;
            let out = Arc::new(Mutex::new(host.try_clone()?));
            run(BufReader::new(host), &(out as Out))
        }
        ["serve", fd, mode] => {
            let fd = fd.parse().map_err(std::io::Error::other)?;
            // SAFETY: the parent left this descriptor open for us, and nobody else here has it.
            let listener = unsafe { TcpListener::from_raw_fd(fd) };
            let (mode, out) = (mode.to_owned(), Arc::new(Mutex::new(std::io::sink())));
            std::thread::spawn(move || serve(&listener, &mode, &(out as Out)));
            std::io::stdin().read_to_end(&mut vec![]).map(drop)
        }
        _ => {
            let out = Arc::new(Mutex::new(std::io::stdout()));
            run(std::io::stdin().lock(), &(out as Out))
        }
    }
}

fn run(commands: impl BufRead, out: &Out) -> std::io::Result<()> {
    let mut listeners: HashMap<SocketAddr, Vec<Held>> = HashMap::new();
    for line in commands.lines() {
        let answer = match obey(&line?, &mut listeners, out) {
            Ok(ns) => format!("ok {ns}"),
            Err(error) => format!("error {error}"),
        };
        say(out, &answer)?;
    }
    Ok(())
}

fn say(out: &Out, line: &str) -> std::io::Result<()> {
    let mut out = out.lock().expect("no writer panics");
    // In one piece: each write to a vsock is a packet.
    out.write_all(format!("{line}\n").as_bytes())?;
    out.flush()
}

fn obey(
    line: &str,
    listeners: &mut HashMap<SocketAddr, Vec<Held>>,
    out: &Out,
) -> Result<u64, Box<dyn std::error::Error>> {
    if let Some(command) = line.strip_prefix("sh ") {
        let done = Command::new("sh").args(["-c", command]).output()?;
        let said = [done.stdout, done.stderr].concat();
        return if done.status.success() {
            Ok(monotonic_ns())
        } else {
            Err(format!("{}: {}", done.status, said.escape_ascii()).into())
        };
    }
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[..] {
        ["nothing"] => Ok(monotonic_ns()),
        ["exit", code] => std::process::exit(code.parse()?),
        ["many", first, count] => {
            let (first, count): (u16, u16) = (first.parse()?, count.parse()?);
            for port in first..first + count {
                let addr = SocketAddr::from(([127, 0, 0, 1], port));
                let fd = open("listen", addr)?;
                listeners.entry(addr).or_default().push(Held::Own(fd));
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
        ["churn", addr, count, times] => {
            let (addr, count): (_, u32) = (addr.parse()?, count.parse()?);
            for _ in 0..times.parse::<u32>()? {
                let twins: Result<Vec<_>, _> = (0..count).map(|_| open("twin", addr)).collect();
                drop(twins?);
            }
            Ok(monotonic_ns())
        }
        ["refused", cid, port] => {
            let mut peer = VsockStream::connect_with_cid_port(cid.parse()?, port.parse()?)?;
            peer.set_read_timeout(Some(Duration::from_secs(60)))?;
            match peer.read(&mut [0]) {
                Ok(0) => Ok(monotonic_ns()),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(monotonic_ns()),
                other => Err(format!("it is served: {other:?}").into()),
            }
        }
        // For which there is no TCP port.
        ["misuse", what] => {
            let fd = match what {
                "unix" => rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None)?,
                _ => rustix::pipe::pipe()?.1,
            };
            match rustix::net::listen(&fd, 1) {
                Err(_) => Ok(monotonic_ns()),
                Ok(()) => Err("it listens".into()),
            }
        }
        ["bind", addr] => {
            let addr = addr.parse()?;
            let fd = open("bind", addr)?;
            listeners.entry(addr).or_default().push(Held::Own(fd));
            Ok(monotonic_ns())
        }
        ["shutdown", addr] => {
            let addr: SocketAddr = addr.parse()?;
            let fd = listeners.get(&addr).and_then(|l| l.last());
            let fd = fd.ok_or("no such listener")?.own()?;
            rustix::net::shutdown(fd, rustix::net::Shutdown::Both)?;
            Ok(monotonic_ns())
        }
        ["close", addr] => {
            let addr: SocketAddr = addr.parse()?;
            let held = listeners.get_mut(&addr).ok_or("no such listener")?;
            match held.pop().ok_or("no such listener")? {
                // The accepting thread holds a duplicate: end it first.
                Held::Own(fd) => {
                    let _deaf = deaf();
                    rustix::net::shutdown(&fd, rustix::net::Shutdown::Both)?;
                    DEAF.1.notify_all();
                }
                Held::Forked(mut child) => {
                    child.kill()?;
                    child.wait()?;
                }
            }
            Ok(monotonic_ns())
        }
        ["deaf", addr] => {
            let addr: SocketAddr = addr.parse()?;
            let fd = listeners.get(&addr).and_then(|l| l.last());
            let fd = fd.ok_or("no such listener")?.own()?;
            if let Entry::Vacant(free) = deaf().entry(addr) {
                free.insert(fill(fd, addr)?);
            }
            Ok(monotonic_ns())
        }
        ["hear", addr] => {
            let addr: SocketAddr = addr.parse()?;
            for held in listeners.get(&addr).into_iter().flatten() {
                if let Held::Own(fd) = held {
                    rustix::net::listen(fd, BACKLOG)?;
                }
            }
            deaf().remove(&addr);
            DEAF.1.notify_all();
            Ok(monotonic_ns())
        }
        // What a server does, and nothing beside it: the benchmark measures to this byte.
        ["once", addr] => {
            let addr: SocketAddr = addr.parse()?;
            let fd = open("listen", addr)?;
            let ns = monotonic_ns();
            let (mut first, _) = TcpListener::from(fd.try_clone()?).accept()?;
            first.write_all(b"h")?;
            listeners.entry(addr).or_default().push(Held::Own(fd));
            Ok(ns)
        }
        ["fork", addr, mode] => {
            let addr: SocketAddr = addr.parse()?;
            let fd = open("twin", addr)?;
            let ns = monotonic_ns();
            // Without close-on-exec, unlike the original.
            let inherited = rustix::io::dup(&fd)?;
            let mut child = Command::new("/proc/self/exe");
            child.args(["serve", &inherited.as_raw_fd().to_string(), mode]);
            let child = child.stdin(Stdio::piped()).spawn()?;
            listeners.entry(addr).or_default().push(Held::Forked(child));
            Ok(ns)
        }
        [
            kind @ ("listen" | "v6only" | "mptcp" | "unbound" | "thread" | "uring" | "i386"
            | "twin"),
            addr,
            mode,
        ] => {
            let addr: SocketAddr = addr.parse()?;
            let fd = open(kind, addr)?;
            let ns = monotonic_ns();
            let listener = TcpListener::from(fd.try_clone()?);
            let (mode, out) = (mode.to_owned(), out.clone());
            if mode != "silent" {
                std::thread::spawn(move || serve(&listener, &mode, &out));
            }
            listeners.entry(addr).or_default().push(Held::Own(fd));
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
    // A child must not keep a port open unless it is told to.
    let flags = SocketFlags::CLOEXEC;
    let fd = socket_with(family, SocketType::STREAM, flags, Some(protocol))?;
    sockopt::set_socket_reuseaddr(&fd, true)?;
    if kind == "twin" {
        sockopt::set_socket_reuseport(&fd, true)?;
    }
    if family == AddressFamily::INET6 {
        sockopt::set_ipv6_v6only(&fd, kind == "v6only")?;
    }
    if kind != "unbound" {
        rustix::net::bind(&fd, &addr)?;
    }
    match kind {
        "bind" => {}
        "thread" => std::thread::scope(|scope| {
            let listen = scope.spawn(|| rustix::net::listen(&fd, BACKLOG));
            listen.join().expect("it cannot panic")
        })?,
        "uring" => listen_by_io_uring(&fd)?,
        "i386" => listen_of_i386(&fd)?,
        _ => rustix::net::listen(&fd, BACKLOG)?,
    }
    Ok(fd)
}

fn listen_by_io_uring(fd: &OwnedFd) -> std::io::Result<()> {
    let mut ring = io_uring::IoUring::new(1)?;
    let listen = io_uring::opcode::Listen::new(io_uring::types::Fd(fd.as_raw_fd()), BACKLOG);
    // SAFETY: the request has no buffer, and is over when `submit_and_wait` returns.
    unsafe { ring.submission().push(&listen.build()) }.map_err(std::io::Error::other)?;
    ring.submit_and_wait(1)?;
    let done = ring.completion().next();
    outcome(done.map_or(-libc::EAGAIN, |done| done.result()))
}

#[cfg(target_arch = "x86_64")]
fn listen_of_i386(fd: &OwnedFd) -> std::io::Result<()> {
    /// listen(2) in arch/x86/entry/syscalls/syscall_32.tbl.
    const LISTEN: i32 = 363;
    let result: i32;
    // SAFETY: a system call without pointers; the kernel keeps all registers but eax and, from a
    // 64-bit program, r8 to r11. The compiler keeps rbx for itself, so it is put back.
    unsafe {
        std::arch::asm!(
            "xchg {fd:r}, rbx",
            "int 0x80",
            "xchg {fd:r}, rbx",
            fd = inout(reg) fd.as_raw_fd() as u64 => _,
            inout("eax") LISTEN => result,
            in("ecx") BACKLOG,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    outcome(result)
}

#[cfg(not(target_arch = "x86_64"))]
fn listen_of_i386(_: &OwnedFd) -> std::io::Result<()> {
    Err(ErrorKind::Unsupported.into())
}

/// What the kernel itself returned.
fn outcome(result: i32) -> std::io::Result<()> {
    match result {
        0 => Ok(()),
        error => Err(std::io::Error::from_raw_os_error(-error)),
    }
}

/// Fills the accept queue of a listener. With a backlog of 0 there is room for one
/// (sk_acceptq_is_full, include/net/sock.h); whoever comes later gets no answer from the kernel.
fn fill(listener: &OwnedFd, addr: SocketAddr) -> std::io::Result<OwnedFd> {
    rustix::net::listen(listener, 0)?;
    let (family, loopback) = match addr {
        SocketAddr::V4(_) => (AddressFamily::INET, Ipv4Addr::LOCALHOST.into()),
        SocketAddr::V6(_) => (AddressFamily::INET6, Ipv6Addr::LOCALHOST.into()),
    };
    let ip = match addr.ip() {
        ip if ip.is_unspecified() => loopback,
        ip => ip,
    };
    // Somebody else may be there already: then this one waits, too.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let filler = socket_with(family, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&filler, &SocketAddr::new(ip, addr.port())) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    poll(&mut [PollFd::new(listener, PollFlags::IN)], None)?;
    Ok(filler)
}

/// The next connection, as soon as there is one and nothing keeps it from being accepted.
fn accept(listener: &TcpListener) -> std::io::Result<TcpStream> {
    let addr = listener.local_addr()?;
    poll(&mut [PollFd::new(listener, PollFlags::IN)], None)?;
    let keeps = |deaf: &mut Deaf| {
        // What was shut down is at its end.
        deaf.contains_key(&addr) && sockopt::socket_acceptconn(listener).unwrap_or(false)
    };
    // Kept, so that nobody is accepted any more when `deaf` is answered.
    let _deaf = DEAF.1.wait_while(deaf(), keeps).expect("no holder panics");
    Ok(listener.accept()?.0)
}

fn serve(listener: &TcpListener, mode: &str, out: &Out) {
    while let Ok(stream) = accept(listener) {
        if mode == "hello" {
            let _ = (&stream).write_all(b"h");
            continue;
        }
        let (mode, out) = (mode.to_owned(), out.clone());
        std::thread::spawn(move || talk(stream, &mode, &out));
    }
}

fn talk(mut stream: TcpStream, mode: &str, out: &Out) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    match mode {
        "echo" => loop {
            let n = stream.read(&mut buffer)?;
            if n == 0 {
                return stream.shutdown(Shutdown::Write);
            }
            stream.write_all(&buffer[..n])?;
        },
        "ident" => {
            let port = stream.local_addr()?.port();
            stream.write_all(&port.to_be_bytes())?;
            talk(stream, "echo", out)
        }
        "traffic" => {
            if let Some(said) = traffic::serve(stream)? {
                say(out, &said)?;
            }
            Ok(())
        }
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
        "source" => {
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line)?;
            let mut left: usize = line.trim().parse().map_err(std::io::Error::other)?;
            let mut hash = Fnv::default();
            while left > 0 {
                for (i, byte) in buffer.iter_mut().enumerate() {
                    *byte = (i ^ left.wrapping_mul(2_654_435_761)) as u8;
                }
                let part = &buffer[..left.min(buffer.len())];
                hash.update(part);
                stream.write_all(part)?;
                left -= part.len();
            }
            stream.write_all(&hash.value().to_be_bytes())
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
            say(out, &format!("heard {heard}"))
        }
        "reset" => {
            stream.read_exact(&mut buffer[..1])?;
            sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
            Ok(())
        }
        _ => Ok(()),
    }
}
