//! Many listeners in one guest, and many connections through one forward.
//!
//! What the host listens on is asked of the kernel (SOCK_DIAG), so that nothing that rum says is
//! believed and no connection is made to find out.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use rum_agent::kernel::Socket;
use rum_agent::kernel::sock_diag::SockDiag;
use rum_tests::guest::Guest;
use rum_tests::monotonic_ns;
use rum_tests::rum::{Rum, Setup, agent_below};
use rum_tests::wait::until;
use rustix::process::{Pid, Signal, kill_process};

use crate::cost;
use crate::hold::raise_limit;
use crate::latency::Random;
use crate::prober::{BOUND, Prober, RETRY};
use crate::report::{Report, Unit, thousands};
use crate::usage::{Processes, resident};

/// Below the ports that the kernel gives to clients.
const RANGE: &str = "10000-22999";
/// The first of many.
const FIRST: u16 = 10_000;
/// The first of those that open one by one, and how many they are.
const SINGLE: (u16, usize) = (21_000, 1000);
/// Those that come and go without a client, over and over: nothing of a connection is left on them.
const SILENT: (u16, usize) = (22_000, 900);
/// The port for connections.
const ONE: u16 = 22_999;

/// Descriptors that are no connections: more than the host ever has.
const OTHERS: usize = 400;

/// Connections that are made at once.
const LOT: usize = 50;

/// How much is measured.
pub struct Plan {
    /// Numbers of listeners.
    pub listeners: Vec<usize>,
    /// Changes that are timed.
    pub changes: usize,
    /// How often the agent is killed.
    pub kills: usize,
    /// How long the idle state is measured, and the processor time of changes.
    pub time: Duration,
    /// Numbers of connections.
    pub connections: Vec<usize>,
}

/// Measures and adds the rows.
pub fn run(report: &mut Report, plan: &Plan) {
    let limit = raise_limit();
    for count in &plan.listeners {
        let way = format!("{} listeners", thousands(*count));
        eprintln!("  {way}");
        report.attempt(&way, |report| {
            let setup = Setup::new();
            let (rum, guest) = setup.start_guest(&["--range", RANGE, "-q"]);
            let mut crowd = Crowd {
                processes: Processes::of(rum.child.id()),
                rum,
                guest,
                sockets: SockDiag::open().expect("sock_diag"),
                prober: Prober::start(),
                random: Random::new(),
                done: 0,
            };
            crowd.measure(report, plan, &way, *count);
        });
    }
    for wanted in &plan.connections {
        // Of each the host has two, beside its own.
        let count = &(limit.saturating_sub(OTHERS) / 2).min(*wanted);
        if count < wanted {
            report.note(&format!(
                "a process may have {} descriptors here, so {} connections were measured and not {}",
                thousands(limit), thousands(*count), thousands(*wanted)
            ));
        }
        let way = format!("{} connections", thousands(*count));
        eprintln!("  {way}");
        report.attempt(&way, |report| connections(report, plan, &way, *count));
    }
}

/// A guest with many listeners.
struct Crowd {
    processes: Processes,
    rum: Rum,
    guest: Guest,
    sockets: SockDiag,
    prober: Prober,
    random: Random,
    /// Single ports that were opened so far.
    done: usize,
}

impl Crowd {
    fn measure(&mut self, report: &mut Report, plan: &Plan, way: &str, count: usize) {
        let mut add = |what: &str, unit, samples| report.add("scale", what, way, unit, samples);
        self.open_one();
        let start = Instant::now();
        self.guest.send(&format!("many {FIRST} {count}"));
        let wanted = count + 1;
        until("all of them to be forwarded", || {
            let found = self.sockets.dump().ok()?;
            let ports: BTreeSet<u16> = found.iter().map(|socket| socket.port).collect();
            (ports.range(FIRST..=ONE).count() >= wanted).then_some(())
        });
        let all = start.elapsed();
        self.guest.answer();
        add(
            "all forwarded",
            Unit::Milliseconds,
            vec![all.as_secs_f64() * 1e3],
        );

        std::thread::sleep(plan.time);
        let idle = self.processes.during(|| std::thread::sleep(plan.time));
        let [host, agent] = [self.processes.host, self.processes.agent].map(resident);
        add("host memory", Unit::Megabytes, vec![host / 1e6]);
        add("agent memory", Unit::Megabytes, vec![agent / 1e6]);
        add("host idle", Unit::Percent, vec![idle.percent(0)]);
        add("agent idle", Unit::Percent, vec![idle.percent(1)]);

        let timed: Vec<f64> = (0..plan.changes).filter_map(|_| self.open_one()).collect();
        add("one more", Unit::Milliseconds, timed);

        let mut changes = 0;
        let used = self.processes.during(|| changes = self.change(plan.time));
        let share = used.time.as_secs_f64() / idle.time.as_secs_f64();
        for i in 0..2 {
            let more = used.each[i].ns as f64 - idle.each[i].ns as f64 * share;
            let each = (more / changes as f64 / 1e3).max(0.0);
            let what = format!("one more, {} time", Processes::NAMES[i]);
            add(&what, Unit::Microseconds, vec![each]);
        }

        let killed: Vec<f64> = (0..plan.kills).filter_map(|_| self.kill()).collect();
        add("agent killed", Unit::Milliseconds, killed);
        self.guest.send("exit 0");
        self.rum.wait();
    }

    fn next(&mut self) -> u16 {
        let port = SINGLE.0 + (self.done % SINGLE.1) as u16;
        self.done += 1;
        port
    }

    /// How long another port takes to be accepted on the host, in ms. It stays open for the
    /// first time it is called, and is closed otherwise.
    fn open_one(&mut self) -> Option<f64> {
        let port = self.next();
        self.random.pause(Random::SHORT);
        self.prober.send("open", port, RETRY);
        self.guest.send(&format!("listen 127.0.0.1:{port} hello"));
        let probed = self.prober.answer();
        let listened = self.guest.answer();
        if self.done > 1 {
            self.guest.tell(&format!("close 127.0.0.1:{port}"));
            self.until_listening(port, false);
        }
        probed.map(|[accepted, _]| accepted.saturating_sub(listened) as f64 / 1e6)
    }

    /// Opens and closes ports for so long, one after the other, without a client; how many. For as long
    /// as it is idle before, so that what is taken off for the polls is what they took.
    fn change(&mut self, time: Duration) -> usize {
        let start = Instant::now();
        let mut count = 0;
        while start.elapsed() < time {
            let port = SILENT.0 + (count % SILENT.1) as u16;
            count += 1;
            self.guest.tell(&format!("listen 127.0.0.1:{port} silent"));
            self.until_listening(port, true);
            self.guest.tell(&format!("close 127.0.0.1:{port}"));
            self.until_listening(port, false);
        }
        count
    }

    fn until_listening(&mut self, port: u16, wanted: bool) {
        let socket = Socket {
            port,
            ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
            dual_stack: false,
            device: 0,
            uid: 0,
            inode: 0,
            cookie: None,
        };
        until("the host to follow", || {
            let there = self.sockets.exists(&socket).ok()?;
            (there == wanted).then_some(())
        });
    }

    /// Kills the agent; how long a port that opens right after takes to have a byte, in ms.
    fn kill(&mut self) -> Option<f64> {
        let port = self.next();
        let old = self.processes.agent;
        let pid = Pid::from_raw(old as i32).expect("not 0");
        let killed = monotonic_ns();
        kill_process(pid, Signal::KILL).expect("the agent runs");
        self.prober.send("open", port, RETRY);
        self.guest.tell(&format!("listen 127.0.0.1:{port} hello"));
        let probed = self.prober.answer();
        self.processes.agent = until("a new agent", || {
            agent_below(self.processes.host).filter(|agent| *agent != old)
        });
        probed.map(|[_, byte]| byte.saturating_sub(killed) as f64 / 1e6)
    }
}

fn connections(report: &mut Report, plan: &Plan, way: &str, count: usize) {
    let setup = Setup::new();
    let (mut rum, mut guest) = cost::guest(&setup, &["--range", RANGE], ONE);
    let processes = Processes::of(rum.child.id());
    let memory = || [processes.host, processes.agent].map(resident);
    std::thread::sleep(plan.time);
    let (before, taken) = (memory(), guest.tell("taken"));
    let addr = ([127, 0, 0, 1], ONE).into();
    let mut held = Vec::with_capacity(count);
    while held.len() < count {
        held.push(TcpStream::connect_timeout(&addr, BOUND).expect("the forward accepts"));
        // Never more than the guest program's backlog has room for: a connection that a SYN
        // cookie made and a full backlog refused is there for one end only.
        if held.len() % LOT == 0 || held.len() == count {
            until("the guest to have them", || {
                (guest.tell("taken") >= taken + held.len() as u64).then_some(())
            });
        }
    }
    std::thread::sleep(plan.time);
    for ((name, after), before) in Processes::NAMES.iter().zip(memory()).zip(before) {
        // Less than nothing is noise.
        let each = ((after - before) / 1e3 / count as f64).max(0.0);
        let mut add =
            |what: &str, unit, value| report.add("connections", what, way, unit, vec![value]);
        add(&format!("{name} memory"), Unit::Megabytes, after / 1e6);
        add(&format!("{name}, each"), Unit::Kilobytes, each);
    }
    drop(held);
    drop(guest);
    rum.wait();
}
