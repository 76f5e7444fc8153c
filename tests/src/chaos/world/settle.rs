//! Waits for what the model says, and for everything that must be back where it was.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, prlimit};

use super::{CHANNELS, CROWD, FAULTS, HELD, Held, LATE, NEWS, POOL, SESSIONS, World};
use crate::chaos::Kind;
use crate::chaos::model::{Expected, FIRST};
use crate::chaos::probe;
use crate::chaos::report::{Memory, Settled, WORST};
use crate::chaos::step::{Hint, Place};
use crate::chaos::trace::{Delays, Trace};
use crate::chaos::words;
use crate::client::host;
use crate::device::Flow;

/// Pause between two looks, which cost the host side something.
const LOOK: Duration = Duration::from_millis(4);

impl World {
    /// Lifts all faults and waits for what the model says.
    pub(super) fn quiet(&mut self) -> Result<(), String> {
        if let Some(machine) = &self.machine {
            machine.device.flow(Flow::Free);
        }
        self.resume();
        if let Some(limit) = self.limit.take() {
            let pid = Pid::from_raw(self.host_pid() as i32);
            prlimit(pid, Resource::Nofile, limit).map_err(|error| error.to_string())?;
        }
        self.hear();
        let (from, trace) = (self.quiet_since, Trace::begin());
        let calm = self.worst == 0;
        self.settle()?;
        let checked = self.check(calm);
        checked.map_err(|what| format!("{what}\n{}", trace.tell(from, &self.voices)))
    }

    /// What must be so when the model has come true, after faults or a `calm` time.
    fn check(&mut self, calm: bool) -> Result<(), String> {
        self.until("`rum ports` says otherwise", |world| {
            probe::told_otherwise(&world.setup, &world.model)
        })?;
        self.check_waiting(calm)?;
        self.check_held()?;
        self.hold()
    }

    /// Waits until the world is as the model says, and notes how long that took.
    fn settle(&mut self) -> Result<(), String> {
        let mut trace = Trace::begin();
        let pids: Vec<u32> = [Some(self.host_pid()), self.agent_pid()]
            .into_iter()
            .flatten()
            .collect();
        let before = Delays::now(&pids);
        let waited = || Delays::now(&pids).since(&before);
        let mut from = FIRST;
        let came = loop {
            let Some(wrong) = probe::mismatch(&self.model, &mut from) else {
                break Ok(());
            };
            trace.wrong(&wrong);
            let took = trace.began().elapsed();
            if took > self.deadline.min(WORST) && took > self.deadline.min(WORST) + waited() {
                break Err(format!("the model did not come true: {wrong}"));
            }
            thread::sleep(LOOK);
        };
        let took = trace.began().elapsed();
        let mut fault = FAULTS[std::mem::take(&mut self.worst)].to_owned();
        if self.hint == Hint::None {
            fault.push_str(", blind");
        }
        let steps = words(&std::mem::take(&mut self.since));
        let trace = (took > LATE).then(|| trace.tell(self.quiet_since, &self.voices));
        came.map_err(|what| format!("{what}\n{}", trace.clone().unwrap_or_default()))?;
        self.report.settled.push(Settled {
            took,
            delayed: waited(),
            fault,
            steps,
            trace,
        });
        // Those that have ended have said what they had to say.
        let mut alive = BTreeMap::new();
        alive.extend(self.voices.drain(..).map(|voice| (voice.name, voice)));
        self.voices.extend(alive.into_values());
        self.quiet_since = Instant::now();
        self.changed.clear();
        Ok(())
    }

    fn check_held(&mut self) -> Result<(), String> {
        for mut held in std::mem::take(&mut self.held) {
            if held.dead {
                expect_reset(&mut held.stream)?;
                self.report.reset += 1;
                continue;
            }
            let mut back = vec![0; held.sent.len()];
            match held.stream.read_exact(&mut back) {
                Ok(()) if back == held.sent => {}
                Ok(()) => return Err("a held connection brought other bytes back".to_owned()),
                Err(error) => return Err(format!("a held connection did not live: {error}")),
            }
            self.report.lived += 1;
            self.held.push(held);
        }
        Ok(())
    }

    /// Opens the connections that are wished for, and sends something over each that is held.
    fn hold(&mut self) -> Result<(), String> {
        for wish in std::mem::take(&mut self.wishes) {
            let ports = self.model.all(Expected::Forwarded).into_iter();
            // What a child process serves ends with it.
            let ports: Vec<u16> = ports.filter(|port| !self.model.forked(*port)).collect();
            let next = ports.iter().find(|port| **port >= wish).or(ports.first());
            let (Some(&port), true) = (next, self.held.len() < HELD) else {
                continue;
            };
            let mut stream = TcpStream::connect(host(port)).map_err(|error| error.to_string())?;
            let seen = probe::identify(&mut stream, self.deadline);
            if seen.as_ref().ok() != Some(&port) {
                return Err(format!("a connection to {port} leads to {seen:?}"));
            }
            self.held.push(Held {
                stream,
                sent: vec![],
                dead: false,
            });
        }
        for held in &mut self.held {
            held.sent = vec![0; self.random.usize(1..40_000)];
            self.random.fill(&mut held.sent);
            let sent = held.stream.write_all(&held.sent);
            sent.map_err(|error| format!("a held connection did not live: {error}"))?;
        }
        Ok(())
    }

    /// Closes everything; then nothing may be left over.
    pub(super) fn home(&mut self, last: bool) -> Result<(), String> {
        self.quiet()?;
        while !self.held.is_empty() {
            self.release()?;
        }
        let all: Vec<_> = self.model.listeners.iter().collect();
        let closes = all
            .iter()
            .flat_map(|(addr, held)| vec![format!("close {addr}"); held.len()]);
        for close in closes.collect::<Vec<_>>() {
            self.tell(&close);
        }
        if self.crowded() {
            self.tell(&format!("close-many {} {}", CROWD.0, CROWD.1));
        }
        self.model.listeners.clear();
        self.taken.clear();
        self.model.taken.clear();
        self.model.config = 0;
        self.save_config();
        // One connection for all that is made with the first.
        self.open(5000, Place::Loopback, false);
        self.quiet()?;
        self.close(5000, Place::Loopback);
        self.quiet()?;
        self.until("something is left over at home", |world| {
            world.left_over(last)
        })?;
        self.report.homes += 1;
        let at = self.began.elapsed();
        let memory = |pid: u32| {
            let resident = probe::resident(pid)?;
            Some(Memory { at, pid, resident })
        };
        self.report.host.extend(memory(self.host_pid()));
        self.report.agent.extend(self.agent_pid().and_then(memory));
        self.report.took = at;
        if !last {
            self.gather();
        }
        if self.report.homes.is_multiple_of(NEWS) {
            eprintln!("{} so far: {}", self.kind.word(), self.report);
        }
        Ok(())
    }

    /// What is there that was not when all began. Threads that wait for work go after a while,
    /// for which only the last time waits.
    fn left_over(&mut self, last: bool) -> Option<String> {
        let agent = self.agent_pid()?;
        for net in [
            "/proc/thread-self/net".to_owned(),
            format!("/proc/{agent}/net"),
        ] {
            if let Some(socket) = probe::sockets(&net).first() {
                return Some(format!("a socket of {net}: {socket}"));
            }
        }
        let names = ["host", "agent"].map(|name| format!("{name}, {}", self.hint.word()));
        for (name, pid) in names.into_iter().zip([self.host_pid(), agent]) {
            let now = probe::counts(pid);
            let base = *self.base.entry(name.clone()).or_insert(now);
            let spare = match self.kind {
                Kind::Namespace if name.starts_with("host") => POOL,
                Kind::Namespace => 0,
                Kind::Connect => CHANNELS,
            };
            let spare = spare + SESSIONS;
            if now.others > base.others
                || now.sockets > base.sockets + spare
                || now.processes > base.processes
                || (last && now.threads > base.threads)
            {
                return Some(format!("{name} has {now:?} instead of {base:?}"));
            }
        }
        None
    }

    /// Waits until `wrong` finds nothing.
    pub(super) fn until(
        &mut self,
        what: &str,
        mut wrong: impl FnMut(&mut Self) -> Option<String>,
    ) -> Result<(), String> {
        let start = Instant::now();
        while let Some(wrong) = wrong(self) {
            if start.elapsed() > self.deadline {
                return Err(format!("{what}: {wrong}"));
            }
            thread::sleep(LOOK * 4);
        }
        Ok(())
    }
}

/// A connection that was cut off must say so: a clean end would be a lie.
pub(super) fn expect_reset(stream: &mut TcpStream) -> Result<(), String> {
    let mut buffer = [0; 16 << 10];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Err("a connection that was cut ended cleanly".to_owned()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(format!("a connection that was cut is not reset: {error}")),
        }
    }
}
