//! Through rum as without it: the same clients talk to the same servers directly and through rum, and
//! both must have seen the same. What a connection is expected to do stands nowhere in here: the
//! kernel says it, over loopback.
//!
//! The servers are threads of the test with sockets of the guest's network namespace. A new finding is one entry in
//! a list of [`behaviours`].

mod behaviours;
mod place;

use std::time::Instant;

use rum_tests::device::Defects;
use rum_tests::machine::Machine;
use rum_tests::netns::{self, in_netns};
use rum_tests::rum::{Lines, Setup, agent_below};
use rum_tests::wait::until;

use behaviours::Over;
use place::Place;

/// The first port in the guest; each behaviour has one of its own.
const INSIDE: u16 = 5000;
/// The first port of this namespace, beyond what rum forwards.
const DIRECT: u16 = 7000;

/// Compares everything for the guest that has process `pid`, and whose rum says in `said` what it does.
fn compare(pid: u32, said: &Lines, over: Over) {
    let namespace = netns::of(pid);
    let places = (INSIDE..).map(|port| Place::inside(&namespace, port));
    let inside: Vec<_> = behaviours::all(over)
        .zip(places)
        .map(|(behaviour, place)| (behaviour, place.listen(), place))
        .collect();
    let mut differ = vec![];
    for ((behaviour, listener, place), n) in inside.into_iter().zip(0..) {
        said.wait(&format!("→ guest:{}", INSIDE + n));
        let here = Place::here(DIRECT + n);
        let start = Instant::now();
        let direct = behaviour.play(&here, here.listen());
        let took = start.elapsed();
        let through = behaviour.play(&place, listener);
        if direct != through {
            differ.push(format!(
                "{}\n  direct  {direct} ({took:?})\n  through {through} ({:?})",
                behaviour.name,
                start.elapsed() - took
            ));
        }
    }
    assert!(differ.is_empty(), "{}", differ.join("\n"));
}

fn namespace_guest(setup: &Setup) {
    in_netns(|| {
        let (rum, _guest) = setup.start_guest(&["--range", "5000-6000"]);
        let agent = until("an agent below rum", || agent_below(rum.child.id()));
        compare(agent, &rum.stderr, Over::Kernel);
    });
}

#[test]
fn in_a_namespace_guest_of_root() {
    namespace_guest(&Setup::new());
}

#[test]
fn in_a_namespace_guest_of_an_ordinary_user() {
    namespace_guest(&Setup::ordinary_user());
}

#[test]
fn behind_a_device() {
    in_netns(|| {
        let machine = Machine::boot(Defects::default(), "[auto_ports]\nrange = \"5000-6000\"\n");
        let _agent = machine.start_agent(&[]);
        let rum = machine.start_rum();
        compare(machine.program.child.id(), &rum.stdout, Over::Device);
    });
}
