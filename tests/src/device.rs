//! A small `CONNECT` device: a Unix socket on the host, behind it the agent's two, and between them
//! the defects of real devices, each of which can be switched on.
//!
//! | real devices | here |
//! |---|---|
//! | lose half-close: one side's end is the end of everything, or never arrives | [`Defects::half_close_lost`] |
//! | lose what is sent before their `OK` | [`Defects::early_bytes_lost`] |
//! | write any number behind `OK`, in any pieces, when they like | [`Defects::number`], [`Defects::split_answer`], [`Device::answer`] |
//! | close without a word where nobody listens | always |
//! | do the same when the guest's backlog is full | [`Defects::backlog`] |
//! | say nothing of a guest that reboots | [`Device::reboot`] |
//!
//! Beyond that it can be cut, stalled and slowed while it runs. Two threads a connection, which end
//! with it; the one that accepts ends with the process.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
use std::thread;
use std::time::Duration;

use rum_shared::{CHANNEL_PORT, RPC_PORT};
use rustix::event::{PollFd, PollFlags, poll};

use crate::monotonic_ns;

/// Bytes that are carried at once.
const CHUNK: usize = 16 << 10;
/// Bytes that a slow device carries at once, and the pause behind them.
const SLOW: (usize, Duration) = (512, Duration::from_millis(1));

/// What is wrong with a device.
#[derive(Debug, Clone, Copy)]
pub struct Defects {
    /// The host's end of sending is taken for the end of all; the guest's is lost.
    pub half_close_lost: bool,
    /// What the host sends before the answer is lost.
    pub early_bytes_lost: bool,
    /// What is behind `OK`; another number each time if `None`.
    pub number: Option<&'static str>,
    /// The answer comes byte by byte.
    pub split_answer: bool,
    /// So many connections may wait for their first byte from the guest; others are closed.
    pub backlog: Option<usize>,
}

impl Default for Defects {
    /// What vhost-device-vsock does.
    fn default() -> Self {
        Self {
            half_close_lost: true,
            early_bytes_lost: true,
            number: None,
            split_answer: false,
            backlog: None,
        }
    }
}

/// How bytes go through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// As they come.
    Free,
    /// A trickle.
    Slow,
    /// Not at all, nor is any `CONNECT` answered.
    Stalled,
}

/// The device. Clones are the same one.
#[derive(Clone)]
pub struct Device {
    dir: PathBuf,
    defects: Defects,
    shared: Arc<(Mutex<State>, Condvar)>,
}

struct State {
    flow: Flow,
    answering: bool,
    connects: Vec<Connect>,
}

/// A `CONNECT` that the device got.
#[derive(Clone)]
pub struct Connect {
    /// The port that was asked for.
    pub port: u32,
    carried: Weak<Carried>,
    /// Whether somebody listened behind.
    pub heard: bool,
}

/// A connection through the device.
struct Carried {
    host: UnixStream,
    guest: UnixStream,
    /// The guest has said something.
    served: AtomicBool,
    /// The guest has rebooted, of which the host is not told.
    orphaned: AtomicBool,
}

impl Connect {
    /// Closes it on both sides.
    pub fn cut(&self) {
        if let Some(carried) = self.carried.upgrade() {
            carried.cut();
        }
    }
}

impl Device {
    /// A device on `dir/vm`, before an agent on `dir/rpc` and `dir/channel`.
    ///
    /// # Panics
    /// When there is one already.
    pub fn start(dir: &Path, defects: Defects) -> Self {
        let state = State {
            flow: Flow::Free,
            answering: true,
            connects: vec![],
        };
        let device = Self {
            dir: dir.to_owned(),
            defects,
            shared: Arc::new((Mutex::new(state), Condvar::new())),
        };
        let listener = UnixListener::bind(device.socket("vm")).expect("a new directory");
        let accepting = device.clone();
        thread::spawn(move || {
            for host in listener.incoming().map_while(Result::ok) {
                let device = accepting.clone();
                thread::spawn(move || device.serve(host));
            }
        });
        device
    }

    /// The path of a socket: `vm`, `rpc`, `channel`, `vm_2224`.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Every `CONNECT` so far.
    pub fn connects(&self) -> Vec<Connect> {
        self.state().connects.clone()
    }

    /// From now on bytes go through like this.
    pub fn flow(&self, flow: Flow) {
        self.state().flow = flow;
        self.shared.1.notify_all();
    }

    /// Whether a `CONNECT` is answered; those that come meanwhile wait.
    pub fn answer(&self, answering: bool) {
        self.state().answering = answering;
        self.shared.1.notify_all();
    }

    /// Closes every connection on both sides.
    pub fn cut(&self) {
        self.each(Carried::cut);
    }

    /// The guest reboots: its ends are gone, and the host hears nothing of it.
    pub fn reboot(&self) {
        self.each(|carried| {
            carried.orphaned.store(true, Relaxed);
            // Fails only if it is closed already.
            let _ = carried.guest.shutdown(Shutdown::Both);
        });
    }

    fn each(&self, act: impl Fn(&Carried)) {
        let connects = self.connects();
        for carried in connects.iter().filter_map(|c| c.carried.upgrade()) {
            act(&carried);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.0.lock().expect("no holder panics")
    }

    /// Waits while `waits`, returns the flow.
    fn wait_while(&self, waits: impl Fn(&State) -> bool) -> Flow {
        let wait = self.shared.1.wait_while(self.state(), |state| waits(state));
        wait.expect("no holder panics").flow
    }

    fn serve(&self, mut host: UnixStream) {
        let Some(port) = read_connect(&mut host) else {
            return;
        };
        self.wait_while(|state| state.flow == Flow::Stalled || !state.answering);
        let name = match port {
            RPC_PORT => "rpc",
            CHANNEL_PORT => "channel",
            _ => "nothing",
        };
        let guest = if self.has_room() {
            UnixStream::connect(self.socket(name)).ok()
        } else {
            None
        };
        let carried = guest.map(|guest| {
            Arc::new(Carried {
                host,
                guest,
                served: AtomicBool::new(false),
                orphaned: AtomicBool::new(false),
            })
        });
        self.state().connects.push(Connect {
            port,
            carried: carried.as_ref().map(Arc::downgrade).unwrap_or_default(),
            heard: carried.is_some(),
        });
        // Nobody listens behind: closed at once, without a word.
        let Some(carried) = carried else { return };
        if self.say_ok(&carried.host).is_err() {
            return carried.cut();
        }
        let (device, to_host) = (self.clone(), carried.clone());
        thread::spawn(move || device.carry_to_host(&to_host));
        self.carry_to_guest(&carried);
    }

    fn has_room(&self) -> bool {
        let Some(most) = self.defects.backlog else {
            return true;
        };
        let waits = |connect: &&Connect| {
            let carried = connect.carried.upgrade();
            carried.is_some_and(|carried| !carried.served.load(Relaxed))
        };
        let waiting = self.connects().iter().filter(waits).count();
        waiting < most
    }

    fn say_ok(&self, mut host: &UnixStream) -> std::io::Result<()> {
        if self.defects.early_bytes_lost {
            host.set_nonblocking(true)?;
            while let Ok(1..) = host.read(&mut [0; CHUNK]) {}
            host.set_nonblocking(false)?;
        }
        let number = match self.defects.number {
            Some(number) => number.to_owned(),
            None => (monotonic_ns() as u32).to_string(),
        };
        let answer = format!("OK {number}\n");
        if !self.defects.split_answer {
            return host.write_all(answer.as_bytes());
        }
        for byte in answer.as_bytes() {
            host.write_all(&[*byte])?;
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn carry_to_host(&self, carried: &Carried) {
        let (host, guest) = (&carried.host, &carried.guest);
        let ended = self.carry(guest, host, || carried.served.store(true, Relaxed));
        match ended {
            // The other direction goes on to take what the host says.
            _ if carried.orphaned.load(Relaxed) => return,
            Ok(()) if self.defects.half_close_lost => {
                // Only when the guest has closed, the host learns of it: no event is asked for, so
                // nothing but the hang-up of both directions ends this (poll(2)).
                let _ = poll(&mut [PollFd::new(guest, PollFlags::empty())], None);
                if carried.orphaned.load(Relaxed) {
                    return;
                }
            }
            Ok(()) => {
                // Fails only if it is closed already.
                let _ = host.shutdown(Shutdown::Write);
                return;
            }
            Err(_) => {}
        }
        carried.cut();
    }

    fn carry_to_guest(&self, carried: &Carried) {
        let ended = self.carry(&carried.host, &carried.guest, || {});
        if ended.is_err() && carried.orphaned.load(Relaxed) {
            let mut host = &carried.host;
            while let Ok(1..) = host.read(&mut [0; CHUNK]) {}
        } else if ended.is_ok() && !self.defects.half_close_lost {
            // Fails only if it is closed already.
            let _ = carried.guest.shutdown(Shutdown::Write);
            return;
        }
        carried.cut();
    }

    /// Carries bytes until `from` ends. An error is one of writing.
    fn carry(
        &self,
        mut from: &UnixStream,
        mut to: &UnixStream,
        carried: impl Fn(),
    ) -> std::io::Result<()> {
        let mut buffer = [0; CHUNK];
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            let mut rest = &buffer[..n];
            while !rest.is_empty() {
                let most = match self.wait_while(|state| state.flow == Flow::Stalled) {
                    Flow::Slow => {
                        thread::sleep(SLOW.1);
                        SLOW.0
                    }
                    Flow::Free | Flow::Stalled => CHUNK,
                };
                let (part, later) = rest.split_at(most.min(rest.len()));
                to.write_all(part)?;
                rest = later;
            }
            carried();
        }
        Ok(())
    }
}

impl Carried {
    fn cut(&self) {
        // Fails only if the other side has closed already.
        let _ = self.host.shutdown(Shutdown::Both);
        let _ = self.guest.shutdown(Shutdown::Both);
    }
}

/// The port of `CONNECT port`. Read byte by byte, since what follows belongs to the stream.
fn read_connect(host: &mut UnixStream) -> Option<u32> {
    let mut line = vec![];
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        host.read_exact(&mut byte).ok()?;
        line.push(byte[0]);
    }
    let line = String::from_utf8(line).ok()?;
    line.strip_prefix("CONNECT ")?.trim_end().parse().ok()
}
