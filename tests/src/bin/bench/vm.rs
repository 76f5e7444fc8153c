//! Open latency of a guest in a virtual machine, on the host's clock.
//!
//! The two kernels have two clocks, so the guest is told to listen over a bare vsock connection,
//! and the time from sending that to the first byte through the forward is taken on the host.
//! It holds one trip of that connection, whose round trip is measured in the same moments and
//! taken off. For a scale: an event, an answer and a byte need three trips at the least.

use rum_tests::monotonic_ns;
use rum_tests::rum::Setup;
use rum_tests::vm::Vm;

use crate::latency::Random;
use crate::prober::{Prober, RETRY};
use crate::stats::Samples;

/// Measures `samples` opens and prints the table.
pub fn run(samples: usize) {
    println!("\n### Latency, virtual machine without KVM, {samples} opens at random moments\n");
    println!("{}", Samples::HEAD);
    let vm = Vm::start("", &[]);
    let setup = Setup::new();
    let config = format!(
        "[guest]\nkind = \"unix\"\nsocket = \"{}\"\n[auto_ports]\nrange = \"5000-5999\"\n",
        vm.socket().display()
    );
    std::fs::write(setup.path().join("rum.toml"), config).expect("a file");
    let rum = setup.start(["up"]);
    let mut guest = vm.guest();
    rum.stderr.wait("connected (events: tracepoint)");
    let (mut prober, mut random) = (Prober::start(), Random::new());
    let (mut one, mut three) = (vec![], vec![]);
    let (mut open, mut without) = (vec![], vec![]);
    for i in 0..samples {
        let port = 5000 + (i % 1000) as u16;
        random.pause(Random::SHORT);
        let sent = monotonic_ns();
        guest.tell("nothing");
        let trip = monotonic_ns() - sent;
        guest.tell("nothing");
        guest.tell("nothing");
        one.push(trip);
        three.push(monotonic_ns() - sent);
        random.pause(Random::SHORT);
        prober.send("open", port, RETRY);
        let sent = monotonic_ns();
        guest.tell(&format!("listen 127.0.0.1:{port} hello"));
        let [_, byte] = prober.answer().expect("the port opens");
        open.push(byte.saturating_sub(sent));
        without.push(byte.saturating_sub(sent + trip));
        guest.tell(&format!("close 127.0.0.1:{port}"));
        rum.stdout
            .wait_nth(&format!("Stopped forwarding {port}"), 1 + i / 1000);
    }
    for (name, samples) in [
        ("one raw round trip", one),
        ("three raw round trips", three),
        ("command sent to first byte", open),
        (
            "of this, without one round trip: open to first byte",
            without,
        ),
    ] {
        println!("{}", Samples::new(samples).row(name));
    }
}
