//! At the limit of open descriptors: who waits, what is said of it, and that all goes on.

use std::collections::BTreeSet;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::process::{Output, Stdio};

use rum_host::status::model::State;
use rum_tests::client::connect;
use rum_tests::netns::in_netns;
use rum_tests::ports::until_port;
use rum_tests::rum::{Rum, Setup};
use rum_tests::wait::until;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

/// More clients than there is room for, whatever rum keeps ready for them.
const CLIENTS: usize = 64;

/// Limits `rum` so that it can open `more` descriptors: each new one takes the lowest free number. What
/// has a higher number than that leaves no room when it is closed.
fn leave(rum: &Rum, more: usize) {
    let pid = rum.child.id();
    let open = fs::read_dir(format!("/proc/{pid}/fd")).expect("rum runs");
    let open: BTreeSet<u64> = open
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    let mut free = (0..).filter(|fd| !open.contains(fd));
    limit(rum, free.nth(more));
}

/// Limits the descriptors of `rum`; `None`: no more than ours are.
fn limit(rum: &Rum, current: Option<u64>) {
    let pid = Pid::from_child(&rum.child);
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: current.or(maximum),
        maximum,
    };
    prlimit(Some(pid), Resource::Nofile, limit).expect("a child of ours");
}

fn run(setup: &Setup, args: &[&str]) -> Output {
    let mut command = setup.rum(args);
    command.stdin(Stdio::null()).output().expect("rum starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Whether the echo has come. A reset or an end is no answer.
fn echoed(client: &mut TcpStream, number: usize) -> bool {
    let mut answer = [0; 8];
    match client.peek(&mut answer) {
        Ok(n) if n < answer.len() && n > 0 => false,
        Ok(n) => {
            assert_eq!(answer[..n], number.to_be_bytes(), "client {number}");
            client.read_exact(&mut answer).expect("it is there");
            true
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => false,
        Err(error) => panic!("client {number}: {error}"),
    }
}

/// Clients that have something to be echoed.
fn crowd(port: u16, clients: usize) -> Vec<(usize, TcpStream)> {
    let clients = (0..clients).map(|number| {
        let mut client = connect(port);
        let sent = client.write_all(&number.to_be_bytes());
        sent.expect("a new connection takes a few bytes");
        client.set_nonblocking(true).expect("a socket");
        (number, client)
    });
    clients.collect()
}

fn until_exhausted(setup: &Setup, port: u16) {
    let said = until_port(
        setup,
        &format!("guest:{port}"),
        |port| matches!(&port.reason, Some(reason) if reason.code == "exhausted"),
    );
    assert_eq!(said.state, State::Forwarded);
}

fn waits_and_is_served(setup: &Setup, rum: &Rum, port: u16) {
    for left in 6..12 {
        leave(rum, left);
        let mut waiting = crowd(port, CLIENTS);
        until_exhausted(setup, port);
        // Each that ends makes room for another.
        until("the last of them to be served", || {
            waiting.retain_mut(|(number, client)| !echoed(client, *number));
            waiting.is_empty().then_some(())
        });
        until_port(setup, &format!("guest:{port}"), |port| {
            port.reason.is_none()
        });
        // For the descriptors to be counted anew.
        limit(rum, None);
    }
}

#[test]
fn clients_wait_for_a_descriptor_and_none_is_reset() {
    in_netns(|| {
        let setup = Setup::new();
        let (rum, mut guest) = setup.start_guest(&["--range", "5000-5001"]);
        // The first is reached by a socket that is ready, the second only through the agent.
        for (address, port) in [("127.0.0.1", 5000), ("[::1]", 5001)] {
            guest.tell(&format!("listen {address}:{port} echo"));
            rum.stderr
                .wait(&format!("Auto-forwarding 127.0.0.1:{port}"));
            waits_and_is_served(&setup, &rum, port);
        }
    });
}

#[test]
fn somebody_can_ask_even_then() {
    in_netns(|| {
        let setup = Setup::new();
        let (mut rum, mut guest) = setup.start_guest(&["-vv", "--range", "5000"]);
        guest.tell("listen 127.0.0.1:5000 echo");
        rum.stderr.wait("Auto-forwarding 127.0.0.1:5000");
        // From the poll's session on nothing wants another descriptor.
        rum.stderr.wait_nth("hello protocol", 2);
        leave(&rum, 0);
        for _ in 0..3 {
            let ports = run(&setup, &["ports"]);
            assert!(ports.status.success(), "{}", text(&ports.stderr));
            assert!(text(&ports.stdout).starts_with("5000\tforwarded\t"));
        }
        // What is ready for clients to come makes room for those that are here.
        let mut few = crowd(5000, 4);
        let all = few.iter_mut();
        all.for_each(|(number, client)| {
            until("an answer", || echoed(client, *number).then_some(()));
        });
        // Whoever has no place gets an answer, too, if not the one that was wanted.
        let mut watching = vec![];
        let refused = until("the last place to be taken", || {
            let watch = setup.start(["ports", "--watch", "--json"]);
            let has_ended = || !watch.stderr.all().is_empty();
            let begun = || watch.stdout.all().iter().any(|line| line.contains("hello"));
            until("an answer", || (begun() || has_ended()).then_some(()));
            let refused = has_ended().then(|| watch.stderr.wait("hint: "));
            watching.push(watch);
            refused
        });
        assert!(refused.contains("out of file descriptors"), "{refused}");
        drop(watching);
        until("a place to be free", || {
            run(&setup, &["down"]).status.success().then_some(())
        });
        assert!(rum.wait().success());
    });
}
