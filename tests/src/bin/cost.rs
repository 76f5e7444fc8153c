//! One piece of work of the pure parts, done once for `tests/cost.rs` to count its instructions:
//! `cost NAME N`, where N is the number of ports.
//!
//! | name | work |
//! |---|---|
//! | parse | an answer of NETLINK_SOCK_DIAG with N listeners |
//! | fold | a dump of N listeners into the agent's truth, of which it lacks one |
//! | refold | a dump of that one alone, among N |
//! | diff | two sets of N listeners, one of which differs |
//! | plan | bind N forwards: plan, report each result, plan again |
//! | replan | the same for one port more, among N |
//! | taken | find out that N forwards have no port, with `on_conflict = "next"` in a range of N |
//! | publish | the rows of one port among N, and put them in the journal |
//! | table | `rum ports` with N ports, 120 columns wide |
//! | frame | the live view with N ports, all of a screen of 120x40 |
//! | redraw | the same after one visible port changed |
//!
//! Only what [`measured`] calls counts. Everything is done once before, with other data where it
//! would be remembered, so nothing lazy is in it; what the work makes is dropped after it.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Instant;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use rum_agent::kernel::Socket;
use rum_agent::kernel::answer::Answer;
use rum_agent::port_set::socket_table::{Scope, SocketTable};
use rum_host::forward::Stats;
use rum_host::plan::{
    Action, AutoPolicy, CONFLICT_RETRY, Destination, GuestPort, HostAddr, Key, OnConflict, Planner,
    Policy,
};
use rum_host::status::agent::Knowledge;
use rum_host::status::journal::Journal;
use rum_host::status::model::{
    AgentState, AgentStatus, ConfigStatus, Event, Op, PortStatus, ProcessName, Update, What,
};
use rum_host::status::rows;
use rum_host::status::rows::{Facts, Forward, Standing};
use rum_host::view::Mirror;
use rum_host::view::live::offscreen::Offscreen;
use rum_host::view::table::{self, Look};
use rum_shared::listener::{BoundAddr, Listener, ListenerSet, Process};
use rum_shared::range::{PortRange, PortRanges};

/// A real answer; the message of its second listener is what all others are made of.
const DUMP: &[u8] = include_bytes!("../../../fixtures/netlink/dump-v4.bin");
/// The length of a message in it, and the number of the request that it answers.
const MESSAGE: usize = 124;
const REQUEST: u32 = 7;
/// As many listeners as the kernel puts into one datagram.
const IN_DATAGRAM: usize = 260;
/// The lowest port.
const FIRST: u16 = 2000;
/// When everything here happens.
const NOW: &str = "2026-11-23T09:14:02.871Z";

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [name, n] = args.as_slice() else {
        panic!("usage: cost NAME N");
    };
    let n: u16 = n.parse().expect("a number of ports");
    match name.as_str() {
        "parse" => parse(n),
        "fold" => fold(n),
        "refold" => refold(n),
        "diff" => diff(n),
        "plan" => plan(n),
        "replan" => replan(n),
        "taken" => taken(n),
        "publish" => publish(n),
        "table" => table(n),
        "frame" => frame(n),
        "redraw" => redraw(n),
        _ => panic!("there is no work `{name}`"),
    }
}

/// What is counted. Neither generic nor inlined, so that it has one symbol.
#[inline(never)]
fn measured(work: &mut dyn FnMut()) {
    black_box(work)();
}

/// Measures `work`; what it makes.
fn measure<T>(mut work: impl FnMut() -> T) -> T {
    let mut made = None;
    measured(&mut || made = Some(work()));
    made.expect("the work was done")
}

/// Measures `work` the second time that it is done.
fn measure_again<T>(mut work: impl FnMut() -> T) -> T {
    black_box(work());
    measure(work)
}

fn ports(n: u16) -> impl Iterator<Item = u16> {
    (0..n).map(|i| FIRST + i)
}

/// The port that differs: in the middle.
fn middle(n: u16) -> u16 {
    FIRST + n / 2
}

fn listener(port: u16) -> Listener {
    Listener {
        addresses: vec![BoundAddr::new(Ipv4Addr::LOCALHOST.into(), false)],
        uid: 1000,
        inode: 20_000 + u64::from(port),
        process: Some(Process {
            pid: 1873,
            name: "node".to_owned(),
            program: "node".to_owned(),
            script: "vite".to_owned(),
            command: "node /srv/web/node_modules/.bin/vite --host".to_owned(),
        }),
        seen_ns: 1_000_310_000,
        hinted_ns: Some(1_000_000_000),
        ..Listener::bare(port)
    }
}

/// The same, held by another process.
fn successor(port: u16) -> Listener {
    let process = Some(Process {
        pid: 2011,
        name: "postgres".to_owned(),
        ..Process::default()
    });
    Listener {
        process,
        ..listener(port)
    }
}

fn parse(n: u16) {
    let mut datagrams = vec![Vec::new()];
    for port in ports(n) {
        let mut message = DUMP[4 + MESSAGE..][..MESSAGE].to_vec();
        // Behind the header of 16 bytes a struct inet_diag_msg: source port, cookie and inode.
        message[20..22].copy_from_slice(&port.to_be_bytes());
        message[60..64].copy_from_slice(&u32::from(port).to_ne_bytes());
        message[84..88].copy_from_slice(&u32::from(port).to_ne_bytes());
        if datagrams
            .last()
            .is_some_and(|d| d.len() == IN_DATAGRAM * MESSAGE)
        {
            datagrams.push(Vec::new());
        }
        datagrams.last_mut().expect("one").extend(message);
    }
    // The end mark has a datagram of its own, the last one.
    let listeners = usize::try_from(u32::from_ne_bytes(DUMP[..4].try_into().expect("4 bytes")));
    datagrams.push(DUMP[4 + listeners.expect("a length") + 4..].to_vec());
    let answer = measure_again(|| {
        let mut answer = Answer::new(REQUEST);
        for datagram in &datagrams {
            answer.feed(datagram).expect("an answer");
        }
        answer
    });
    assert!(answer.is_done() && answer.sockets().len() == usize::from(n));
}

fn socket(port: u16) -> Socket {
    Socket {
        port,
        ip: Ipv4Addr::LOCALHOST.into(),
        dual_stack: false,
        device: 0,
        uid: 1000,
        inode: u64::from(port),
        cookie: Some(u64::from(port)),
    }
}

fn fold(n: u16) {
    let mut dump: Vec<Socket> = ports(n).map(socket).collect();
    // The kernel's order is another one.
    dump.reverse();
    folded(n, &Scope::All, dump);
}

fn refold(n: u16) {
    let port = middle(n);
    folded(n, &Scope::Ports([port].into()), vec![socket(port)]);
}

/// Folds `dump` into a truth of `n` listeners without the one in the middle.
fn folded(n: u16, scope: &Scope, mut dump: Vec<Socket>) {
    let mut truth = SocketTable::default();
    let others = ports(n).filter(|port| *port != middle(n));
    truth.fold(&Scope::All, others.map(socket).collect(), [], 1);
    let change = measure(|| {
        assert!(truth.missing(scope, &mut dump).is_empty());
        truth.fold(scope, std::mem::take(&mut dump), [], 2)
    });
    assert_eq!(change.expect("a change").opened.len(), 1);
}

fn diff(n: u16) {
    let before = ListenerSet::new(1, ports(n).map(listener));
    let mut after = before.clone();
    after.apply(&rum_shared::listener::Change {
        generation: 2,
        changed: vec![successor(middle(n))],
        ..Default::default()
    });
    let change = measure_again(|| before.diff(&after));
    assert_eq!(change.changed.len(), 1);
}

fn policy() -> Policy {
    let all = PortRange::new(FIRST, u16::MAX).expect("a range");
    Policy {
        auto: Some(AutoPolicy::new(PortRanges::new([all]))),
        ..Policy::default()
    }
}

/// A planner that knows of nothing yet, and what listens on N ports.
fn guest(n: u16) -> (Planner, BTreeMap<GuestPort, Listener>) {
    let listeners = ports(n).map(|port| (GuestPort(port), listener(port)));
    let mut planner = Planner::new(policy());
    let nothing = |_| None;
    assert!(planner.plan(nothing, Instant::now()).actions.is_empty());
    (planner, listeners.collect())
}

/// As the supervisor does it, on a host where every port is free. How many were bound.
fn settle(planner: &mut Planner, listeners: &BTreeMap<GuestPort, Listener>, now: Instant) -> usize {
    let mut bound = 0;
    loop {
        let plan = planner.plan(|port| listeners.get(&port).map(|l| (l, now)), now);
        if plan.actions.is_empty() && !plan.more {
            return bound;
        }
        for action in plan.actions {
            let Action::Bind { key, want, at } = action else {
                panic!("nothing is to be unbound");
            };
            planner.bound(key, want, at);
            bound += 1;
        }
    }
}

fn plan(n: u16) {
    let ((mut planner, listeners), now) = (guest(n), Instant::now());
    let bound = measure(|| {
        listeners.keys().for_each(|port| planner.touch(*port));
        settle(&mut planner, &listeners, now)
    });
    // On both loopback addresses.
    assert_eq!(bound, 2 * usize::from(n));
}

fn replan(n: u16) {
    let ((mut planner, mut listeners), now) = (guest(n), Instant::now());
    let new = GuestPort(middle(n));
    let later = listeners.remove(&new).expect("it listens");
    listeners.keys().for_each(|port| planner.touch(*port));
    settle(&mut planner, &listeners, now);
    listeners.insert(new, later);
    let bound = measure(|| {
        planner.touch(new);
        settle(&mut planner, &listeners, now)
    });
    assert_eq!(bound, 2);
}

fn taken(n: u16) {
    let range = PortRange::new(FIRST, FIRST + n - 1).expect("a range");
    let auto = AutoPolicy {
        on_conflict: OnConflict::Next,
        bind: IpAddr::from(Ipv4Addr::LOCALHOST).into(),
        ..AutoPolicy::new(PortRanges::new([range]))
    };
    let mut planner = Planner::new(Policy {
        auto: Some(auto),
        ..Policy::default()
    });
    let (listeners, now) = (guest(n).1, Instant::now());
    let mut tried = 0;
    measure(|| {
        listeners.keys().for_each(|port| planner.touch(*port));
        loop {
            let plan = planner.plan(|port| listeners.get(&port).map(|l| (l, now)), now);
            if plan.actions.is_empty() && !plan.more {
                break;
            }
            for action in plan.actions {
                let Action::Bind { key, want, at } = action else {
                    panic!("nothing is to be unbound");
                };
                planner.blocked(key, want, at, now, CONFLICT_RETRY);
                tried += 1;
            }
        }
    });
    assert_eq!(tried, n);
}

/// The rows of the forwarded port that `listener` listens on.
fn rows(listener: &Listener, policy: &Policy, stats: &Stats, now: Instant) -> Vec<PortStatus> {
    let port = GuestPort(listener.port);
    let at = HostAddr(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), listener.port));
    let took = None;
    rows::rows(&Facts {
        port,
        listener: Some(listener),
        verdict: Some(policy.judge(listener, now, now)),
        label: None,
        ranges: None,
        forwards: vec![Forward {
            key: Key::Auto(port),
            guest: Destination::own(listener.port),
            standing: Standing::Bound {
                at,
                stats,
                took,
                beside: vec![],
                lacks: None,
            },
            label: None,
        }],
        draining: Vec::new(),
        knowledge: &Knowledge::Current,
    })
}

fn publish(n: u16) {
    let (policy, stats, now) = (policy(), Stats::default(), Instant::now());
    let journal = Journal::default();
    let put = |listener: &Listener| {
        journal.put_port(listener.port, rows(listener, &policy, &stats, now));
    };
    ports(n).map(listener).for_each(|listener| put(&listener));
    put(&successor(FIRST));
    let next = successor(middle(n));
    measure(|| put(&next));
}

/// What a reader gets at first of N forwarded ports.
fn snapshot(n: u16) -> Update {
    let (policy, stats, now) = (policy(), Stats::default(), Instant::now());
    let rows = ports(n).flat_map(|port| rows(&listener(port), &policy, &stats, now));
    let ports = rows.map(|row| PortStatus {
        since: NOW.to_owned(),
        ..row
    });
    Update::Snapshot {
        seq: u64::from(n),
        gap: false,
        ports: ports.collect(),
        agent: AgentStatus {
            state: AgentState::Connected,
            since: NOW.to_owned(),
            reason: None,
            retry_ms: None,
            grace_ms: 15_000,
            attempts: 0,
            version: Some("0.1.0".to_owned()),
            hostname: Some("dev".to_owned()),
            source: Some("tracepoint".to_owned()),
            repaired: 0,
        },
        outside: Vec::new(),
        config: ConfigStatus {
            file: None,
            loaded: NOW.to_owned(),
            range: Some("2000-65535".to_owned()),
            error: None,
        },
    }
}

fn now() -> Timestamp {
    NOW.parse().expect("a moment")
}

fn table(n: u16) {
    let mut known = Mirror::default();
    known.apply(&snapshot(n));
    let look = Look {
        width: 120,
        all: false,
        color: true,
        now: now(),
        zone: TimeZone::UTC,
    };
    let text = measure_again(|| table::table(&known, &look));
    assert_eq!(text.lines().count(), usize::from(n) + 1);
}

/// The live view of `snapshot`, drawn once.
fn view(snapshot: &Update) -> Offscreen {
    let mut view = Offscreen::new(120, 40);
    view.update(snapshot, now());
    view.paint(now()).expect("a frame");
    view
}

fn frame(n: u16) {
    let mut view = view(&snapshot(n));
    view.forget();
    let now = now();
    measure(|| view.paint(now).expect("a frame"));
}

/// The update comes with the redraw: both are what one change costs a view.
fn redraw(n: u16) {
    let snapshot = snapshot(n);
    let Update::Snapshot { ports, .. } = &snapshot else {
        unreachable!("it was made above");
    };
    let changed = |row: usize| {
        let mut port = ports[row].clone();
        port.process = Some(ProcessName {
            pid: 2011,
            name: "postgres".to_owned(),
        });
        let op = Op::Changed;
        Update::Events(vec![Event {
            seq: u64::from(n) + 1 + row as u64,
            at: NOW.to_owned(),
            what: What::Port { op, port },
        }])
    };
    let (mut view, now) = (view(&snapshot), now());
    let mut redraw = |update: &Update| {
        view.update(update, now);
        view.paint(now).expect("a frame");
    };
    redraw(&changed(0));
    let next = changed(1);
    measure(|| redraw(&next));
}
