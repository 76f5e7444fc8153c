//! Makes steps happen. `settle` waits for what the model says.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Rlimit, Signal};

use self::waiting::{Fate, Waiting};
use super::Kind;
use super::model::{Expected, Model};
use super::probe::{self, Counts};
use super::report::{GOAL, Report};
use super::step::{Hint, Place, Step};
use super::trace::Voice;
use crate::client::host;
use crate::device::{Defects, Flow};
use crate::guest::Guest;
use crate::machine::Machine;
use crate::rum::{Rum, Setup, agent_below};

mod faults;
mod settle;
mod waiting;

/// Connections that are held at once.
const HELD: usize = 10;
/// Listeners at one address.
const TWINS: usize = 3;
/// Faults, the worse behind: the last one names a quiet moment in the report.
const FAULTS: [&str; 9] = [
    "none",
    "config",
    "exhaust",
    "storm",
    "stop",
    "stall",
    "kill-agent",
    "cut",
    "reboot or kill-host",
];
/// Sockets that the host side may keep ready for the next connections.
const POOL: usize = rum_shared::bytes::handover::OFFER;
/// Channels that it may keep ready.
const CHANNELS: usize = 4;
/// Sessions that may be there beside the first: the poll's, and one that takes its place.
const SESSIONS: usize = 2;
/// Listeners outside of the range, so many that the agent looks at the port of a change alone: from one
/// time at home to the next but one.
const CROWD: (u16, u16) = (20_000, 100);
/// A long run says how it goes whenever it was at home so often.
const NEWS: usize = 25;
/// A quiet moment that takes longer leaves a trace.
const LATE: Duration = GOAL;
/// A boot takes longer than the host side believes in a guest that it does not hear.
const BOOT: Duration = Duration::from_secs(2);

/// A connection that must live, or that must have been reset.
struct Held {
    stream: TcpStream,
    /// What was sent and must come back.
    sent: Vec<u8>,
    /// Something happened that it cannot have lived through.
    dead: bool,
}

/// The world.
pub struct World {
    kind: Kind,
    deadline: Duration,
    began: Instant,
    setup: Setup,
    /// For kind `connect`.
    machine: Option<Machine>,
    agent: Option<Rum>,
    hint: Hint,
    /// For kind `namespace`.
    guest: Option<Guest>,
    rum: Option<Rum>,
    model: Model,
    held: Vec<Held>,
    wishes: Vec<u16>,
    waiting: Vec<Waiting>,
    /// Where the guest's program accepts nobody.
    deaf: BTreeSet<SocketAddr>,
    /// Ports of which something has changed since the last quiet moment.
    changed: BTreeSet<u16>,
    taken: BTreeMap<u16, TcpListener>,
    agent_stopped: Option<u32>,
    host_stopped: bool,
    /// The limit of descriptors that is to be restored.
    limit: Option<Rlimit>,
    worst: usize,
    /// What happened since the last quiet moment, and who may have said something about it.
    since: Vec<Step>,
    voices: Vec<Voice>,
    quiet_since: Instant,
    base: BTreeMap<String, Counts>,
    random: fastrand::Rng,
    report: Report,
}

impl World {
    /// A guest, an agent and a host side, in the caller's network namespace.
    ///
    /// # Panics
    /// When they cannot be started.
    pub fn start(kind: Kind, deadline: Duration) -> Self {
        let model = Model::default();
        let (setup, machine) = match kind {
            Kind::Namespace => (Setup::new(), None),
            Kind::Connect => {
                let machine = Machine::boot(Defects::default(), &model.toml());
                (machine.setup.clone(), Some(machine))
            }
        };
        let mut world = Self {
            kind,
            deadline,
            began: Instant::now(),
            setup,
            machine,
            agent: None,
            hint: Hint::Tracepoint,
            guest: None,
            rum: None,
            model,
            held: vec![],
            wishes: vec![],
            waiting: vec![],
            deaf: BTreeSet::new(),
            changed: BTreeSet::new(),
            taken: BTreeMap::new(),
            agent_stopped: None,
            host_stopped: false,
            limit: None,
            worst: 0,
            since: vec![],
            voices: vec![],
            quiet_since: Instant::now(),
            base: BTreeMap::new(),
            random: fastrand::Rng::with_seed(0),
            report: Report::default(),
        };
        world.save_config();
        world.start_agent();
        world.start_host();
        world.gather();
        world
    }

    /// Whether there is a crowd now.
    fn crowded(&self) -> bool {
        self.report.homes.is_multiple_of(2)
    }

    /// The crowd comes, if it is its time.
    fn gather(&mut self) {
        if self.crowded() {
            self.tell(&format!("many {} {}", CROWD.0, CROWD.1));
        }
    }

    /// Makes `step` happen.
    ///
    /// # Errors
    /// What is not as it must be.
    pub fn step(&mut self, step: &Step) -> Result<(), String> {
        self.since.push(*step);
        let happened = match *step {
            Step::Open(port, place) => self.open(port, place, false),
            Step::Fork(port, place) => self.open(port, place, true),
            Step::Close(port, place) => self.close(port, place),
            Step::Hold(port) => {
                self.wishes.push(port);
                true
            }
            Step::Release => self.release()?,
            Step::Deaf(port, count) => self.deafen(port, count)?,
            Step::Rush(port, count) => rush(port, count),
            Step::Take(port) => self.take(port),
            Step::Free(port) => {
                self.model.taken.remove(&port);
                self.changed.insert(port);
                self.taken.remove(&port).is_some()
            }
            Step::Config(number) => {
                let forwarded = self.model.all(Expected::Forwarded);
                let before = std::mem::replace(&mut self.model.config, number);
                self.save_config();
                for port in &forwarded ^ &self.model.all(Expected::Forwarded) {
                    self.change(port, Fate::Either);
                }
                self.fault("config");
                before != number
            }
            Step::KillAgent(hint) => self.kill_agent(hint),
            Step::StopAgent => self.stop_agent(),
            Step::StopHost => self.stop_host(),
            Step::KillHost(hint) => self.kill_host(hint),
            Step::Cut => self.cut(),
            Step::Stall => self.flow(Flow::Stalled),
            Step::Slow => self.flow(Flow::Slow),
            Step::Reboot => self.reboot(),
            Step::Storm(port, times) => {
                self.tell(&format!("churn 127.0.0.1:{port} 64 {times}"));
                self.change(port, Fate::Either);
                self.fault("storm");
                true
            }
            Step::Exhaust(left) => self.exhaust(left),
            Step::Wait(ms) => {
                thread::sleep(Duration::from_millis(ms.into()));
                true
            }
            Step::Quiet => {
                self.quiet()?;
                true
            }
            Step::Home => {
                self.home(false)?;
                true
            }
        };
        if happened {
            let text = step.to_string();
            let mut words = text.split(':');
            let word = words.next().unwrap_or_default().to_owned();
            let hint = words.next().filter(|_| matches!(step, Step::KillHost(_)));
            let word = hint.map_or(word.clone(), |hint| format!("{word}:{hint}"));
            *self.report.steps.entry(word).or_default() += 1;
        }
        Ok(())
    }

    /// Goes home and ends all.
    ///
    /// # Errors
    /// What is left over.
    pub fn finish(mut self) -> Result<Report, String> {
        self.home(true)?;
        let pid = self.host_pid();
        let processes = probe::below(pid);
        self.signal_host(Signal::TERM);
        let rum = self.rum.take();
        let status = rum.map(|mut rum| rum.wait().code());
        if status != Some(Some(128 + Signal::TERM.as_raw())) {
            return Err(format!("rum ended with {status:?}"));
        }
        self.until("a process is left", |_| {
            let alive = |pid: &&u32| PathBuf::from(format!("/proc/{pid}")).exists();
            processes.iter().find(alive).map(u32::to_string)
        })?;
        self.report.took = self.began.elapsed();
        Ok(std::mem::take(&mut self.report))
    }

    fn fault(&mut self, name: &str) {
        let rank = FAULTS.iter().position(|fault| *fault == name);
        self.worst = self.worst.max(rank.unwrap_or_default());
    }

    fn tell(&mut self, command: &str) {
        let guest = match (&mut self.machine, &mut self.guest) {
            (Some(machine), _) => &mut machine.guest,
            (None, Some(guest)) => guest,
            (None, None) => unreachable!("every kind has a guest program"),
        };
        guest.tell(command);
    }

    fn save_config(&self) {
        let text = match &self.machine {
            Some(machine) => Machine::config(&machine.device, &self.model.toml()),
            None => self.model.toml(),
        };
        let new = self.setup.path().join("rum.toml.new");
        std::fs::write(&new, text).expect("a file");
        std::fs::rename(new, self.setup.path().join("rum.toml")).expect("a file");
    }

    fn start_agent(&mut self) {
        if let Some(machine) = &self.machine {
            let hint = match self.hint {
                // Nobody asks about this guest's programs.
                Hint::Seccomp => Hint::Poll,
                hint => hint,
            };
            let agent = machine.start_agent(&["-v", "--hint", hint.word()]);
            self.voices.push(Voice {
                name: "agent",
                lines: agent.stderr.clone(),
            });
            self.agent = Some(agent);
        }
    }

    fn start_host(&mut self) {
        let rum = match &self.machine {
            Some(_) => self.setup.start(["up", "-vv"]),
            None => {
                let (rum, guest) = self.start_guest();
                self.guest = Some(guest);
                rum
            }
        };
        self.voices.push(Voice {
            name: "host",
            lines: rum.stderr.clone(),
        });
        self.rum = Some(rum);
    }

    /// A guest of rum's own that is woken by the hint of now: an ordinary user's, whose programs
    /// are asked about, or root's.
    fn start_guest(&mut self) -> (Rum, Guest) {
        let ordinary = self.hint == Hint::Seccomp;
        if ordinary != self.setup.uid.is_some() {
            self.setup = if ordinary {
                Setup::ordinary_user()
            } else {
                Setup::new()
            };
            self.save_config();
        }
        let hint = self.hint.word();
        let forced = format!("--agent-arg=--hint={hint}");
        let args = match self.hint {
            // What is had without a word.
            Hint::Seccomp | Hint::Tracepoint => vec!["-vv"],
            Hint::Poll | Hint::None => vec!["-vv", &forced],
        };
        let (rum, guest) = self.setup.start_guest(&args);
        rum.stderr.wait(&format!("connected (events: {hint}"));
        (rum, guest)
    }

    fn host_pid(&self) -> u32 {
        let rum = self
            .rum
            .as_ref()
            .expect("started, and begun anew after each end");
        rum.child.id()
    }

    fn agent_pid(&self) -> Option<u32> {
        match &self.agent {
            Some(agent) => Some(agent.child.id()),
            None => agent_below(self.host_pid()),
        }
    }

    fn signal_host(&self, signal: Signal) {
        let rum = self
            .rum
            .as_ref()
            .expect("started, and begun anew after each end");
        rum.signal(signal);
    }

    fn open(&mut self, port: u16, place: Place, fork: bool) -> bool {
        let addr = place.with(port);
        let held = self.model.listeners.entry(addr).or_default();
        if held.len() == TWINS {
            return false;
        }
        held.push(fork);
        self.change(port, Fate::Answered);
        let how = if fork { "fork" } else { "twin" };
        self.tell(&format!("{how} {addr} ident"));
        true
    }

    /// Closes the newest listener there, else one at the next address that has one.
    fn close(&mut self, port: u16, place: Place) -> bool {
        let exact = place.with(port);
        let held = |(addr, held): (&SocketAddr, &Vec<bool>)| (!held.is_empty()).then_some(*addr);
        let mut behind = self.model.listeners.range(exact..).filter_map(held);
        let mut all = self.model.listeners.iter().filter_map(held);
        let Some(addr) = behind.next().or(all.next()) else {
            return false;
        };
        let forked = self.model.listeners.entry(addr).or_default().pop();
        self.tell(&format!("close {addr}"));
        self.change(addr.port(), Fate::Either);
        if forked == Some(true) {
            // The child may have begun to serve them, which ends with it in any way.
            self.waiting.retain(|waiting| waiting.port != addr.port());
        }
        true
    }

    fn take(&mut self, port: u16) -> bool {
        if self.model.expected(port) != Expected::Closed {
            return false;
        }
        // rum may not have been told yet that the port is closed; then it stays as it is.
        let Ok(listener) = TcpListener::bind(host(port)) else {
            return false;
        };
        self.taken.insert(port, listener);
        self.model.taken.insert(port);
        true
    }

    fn release(&mut self) -> Result<bool, String> {
        if self.held.is_empty() || self.held[0].dead {
            return Ok(false);
        }
        let mut held = self.held.remove(0);
        let mut rest = vec![];
        let ended = held.stream.shutdown(Shutdown::Write);
        // It cannot end while the transport stands still.
        if let Some(machine) = &self.machine {
            machine.device.flow(Flow::Free);
        }
        self.resume();
        let read = ended.and_then(|()| held.stream.read_to_end(&mut rest));
        match read {
            Ok(_) if rest == held.sent => Ok(true),
            Ok(n) => Err(format!(
                "{n} bytes instead of {} before the end",
                held.sent.len()
            )),
            Err(error) => Err(format!("a connection did not end cleanly: {error}")),
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // What is stopped could not end.
        self.resume();
        if let Some(machine) = &self.machine {
            machine.device.flow(Flow::Free);
            machine.device.cut();
        }
    }
}

/// Connections that come, say something and go.
fn rush(port: u16, count: u16) -> bool {
    let mut all = vec![];
    for _ in 0..count {
        let Ok(mut stream) = TcpStream::connect(host(port)) else {
            break;
        };
        // Nobody cares.
        let _ = stream.write_all(b"x");
        all.push(stream);
    }
    !all.is_empty()
}
