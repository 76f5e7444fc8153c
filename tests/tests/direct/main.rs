//! Through rum as without it: the same clients talk to the same servers directly and through rum, and
//! both must have seen the same. What a connection is expected to do stands nowhere in here: the
//! kernel says it, over loopback.
//!
//! The servers are threads of the test with sockets of the guest's network namespace. A new finding is one entry in
//! [`behaviours::ALL`].

mod behaviours;

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::thread;
use std::time::Instant;

use rum_tests::client::{dial, host};
use rum_tests::device::Defects;
use rum_tests::machine::Machine;
use rum_tests::netns::in_netns;
use rum_tests::rum::{Lines, Setup, agent_below};
use rum_tests::wait::{patience, until};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use behaviours::{ALL, Behaviour, Over};

/// What both ends saw.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    client: String,
    server: String,
}

/// A listener here; accepting does not wait.
fn listener(port: u16) -> TcpListener {
    let listener = TcpListener::bind(host(port)).expect("a free port");
    listener.set_nonblocking(true).expect("a socket");
    listener
}

/// A listener in the network namespace of process `pid`.
fn listener_of(pid: u32, port: u16) -> TcpListener {
    let namespace = File::open(format!("/proc/{pid}/ns/net")).expect("the guest runs");
    // A thread that has entered a namespace does not come back.
    let listen = || {
        let kind = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(namespace.as_fd(), kind).expect("this test runs as root");
        listener(port)
    };
    thread::scope(|scope| scope.spawn(listen).join()).expect("it listens")
}

/// One connection to `address`, behind which `listener` accepts it.
fn talk(behaviour: &Behaviour, listener: &TcpListener, address: SocketAddr) -> Seen {
    thread::scope(|scope| {
        let server = scope.spawn(|| {
            let stream = until("a client", || Some(listener.accept().ok()?.0));
            let _ = stream.set_read_timeout(Some(patience()));
            (behaviour.server)(stream)
        });
        let client = (behaviour.client)(dial(address).expect("it accepts"));
        let server = server.join().expect("the server does not panic");
        Seen { client, server }
    })
}

/// Compares everything for the guest that has process `pid`, and whose rum says in `said` what it does.
fn compare(pid: u32, said: &Lines, over: Over) {
    let all = || (5000..).zip(ALL.iter().filter(|b| b.over.contains(&over)));
    let inside: Vec<TcpListener> = all().map(|(port, _)| listener_of(pid, port)).collect();
    let mut differ = vec![];
    for ((port, behaviour), inside) in all().zip(&inside) {
        said.wait(&format!("→ guest:{port}"));
        let outside = listener(0);
        let address = outside.local_addr().expect("it is bound");
        let start = Instant::now();
        let direct = talk(behaviour, &outside, address);
        let took = start.elapsed();
        let through = talk(behaviour, inside, host(port));
        if direct != through {
            differ.push(format!(
                "{}\n  direct  {direct:?} ({took:?})\n  through {through:?} ({:?})",
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
