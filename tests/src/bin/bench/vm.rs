//! A guest in a virtual machine: open latency, and throughput beside the raw channel.
//!
//! The two kernels have two clocks, so the guest is told to listen over a bare vsock connection,
//! and the time from sending that to the first byte through the forward is taken on the host.
//! It holds one trip of that connection, whose round trip is measured in the same moments and
//! taken off. For a scale: an event, an answer and a byte need three trips at the least.
//!
//! The load server listens on TCP, for rum, and on a vsock port, which the host reaches with
//! nothing but the vsock device in between. A bare relay from vsock to TCP in the guest tells
//! what the second hop there costs by itself. They take turns.

use std::io;
use std::time::Duration;

use rum_tests::guest::Guest;
use rum_tests::monotonic_ns;
use rum_tests::rum::Setup;
use rum_tests::vm::Vm;
use rum_tests::wait::until;

use crate::latency::Random;
use crate::load::{self, Direction, Target};
use crate::prober::{Prober, RETRY};
use crate::report::{Report, Unit};

/// The load server's port, and that on the vsock.
const SERVER: (u16, u32) = (5999, 7000);

/// How much is measured.
pub struct Plan {
    /// Opens.
    pub samples: usize,
    /// Times that each way has its turn.
    pub rounds: usize,
    /// How long one turn takes.
    pub turn: Duration,
}

/// Measures and adds the rows.
pub fn run(report: &mut Report, plan: &Plan) {
    let vm = Vm::start("", &["bench"]);
    let setup = Setup::new();
    let config = format!(
        "[guest]\nkind = \"unix\"\nsocket = \"{}\"\n[auto_ports]\nrange = \"5000-5999\"\n",
        vm.socket().display()
    );
    std::fs::write(setup.path().join("rum.toml"), config).expect("a file");
    let rum = setup.start(["up"]);
    let mut guest = vm.guest();
    rum.stderr.wait("connected (events: tracepoint)");
    opens(report, plan, &mut guest);

    let (tcp, vsock) = SERVER;
    // It ends with its stdin.
    guest.tell(&format!(
        "sh (sleep 1000000 | bench server {tcp} {vsock}) </dev/null >/dev/null 2>&1 &"
    ));
    let socket = vm.socket();
    let ways = [
        ("raw channel", Target::Connect(&socket, vsock)),
        ("bare relay", Target::Connect(&socket, vsock + 1)),
        ("rum", Target::Tcp(([127, 0, 0, 1], tcp).into())),
    ];
    for (_, target) in ways {
        until("the load server", || load::request(target, 1).ok());
    }
    for direction in Direction::ALL {
        let what = format!("{}, 1 stream", direction.name());
        eprintln!("  {what}");
        let mut samples = [vec![], vec![], vec![]];
        for round in 0..plan.rounds {
            for turn in 0..ways.len() {
                let i = (round + turn) % ways.len();
                let (name, target) = ways[i];
                match patient(|| load::throughput(target, direction, 1, plan.turn)) {
                    Ok(bits) => samples[i].push(bits / 1e9),
                    Err(error) => {
                        let said = load::said(&error);
                        report.note(&format!("virtual machine, {what}, {name}: {said}"));
                    }
                }
            }
        }
        for ((name, _), samples) in ways.into_iter().zip(samples) {
            report.add("vm", &what, name, Unit::Gbit, samples);
        }
    }
}

/// Does it again if it fails: the device closes a new connection now and then, when one before it
/// has just gone.
fn patient<T>(mut turn: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    turn().or_else(|_| {
        std::thread::sleep(Duration::from_millis(500));
        turn()
    })
}

fn opens(report: &mut Report, plan: &Plan, guest: &mut Guest) {
    let (mut prober, mut random) = (Prober::start(), Random::new());
    let (mut three, mut open) = (vec![], vec![]);
    let mut missed = 0;
    for i in 0..plan.samples {
        let port = 5000 + (i % 900) as u16;
        random.pause(Random::SHORT);
        let sent = monotonic_ns();
        guest.tell("nothing");
        let trip = monotonic_ns() - sent;
        guest.tell("nothing");
        guest.tell("nothing");
        three.push((monotonic_ns() - sent) as f64 / 1e6);
        random.pause(Random::SHORT);
        prober.send("open", port, RETRY);
        let sent = monotonic_ns();
        guest.tell(&format!("listen 127.0.0.1:{port} hello"));
        match prober.answer() {
            Some([_, byte]) => open.push(byte.saturating_sub(sent + trip) as f64 / 1e6),
            None => missed += 1,
        }
        guest.tell(&format!("close 127.0.0.1:{port}"));
        prober.send("gone", port, RETRY);
        prober.answer();
    }
    let what = "open to first byte";
    report.add(
        "vm",
        what,
        "three raw round trips",
        Unit::Milliseconds,
        three,
    );
    report.add("vm", what, "rum", Unit::Milliseconds, open);
    if missed > 0 {
        report.note(&format!(
            "virtual machine: {missed} of {} opens not seen",
            plan.samples
        ));
    }
}
