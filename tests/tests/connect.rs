//! Guests of kind `unix`, end to end: a real `rum up` in one network namespace, a real agent in
//! another, and between them a small `CONNECT` device with the defects of real ones.
//!
//! What the device does not do is the point: no half-close crosses it. So every end that a
//! client or a server sees came in a frame of rum's.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

use rum_shared::{CHANNEL_PORT, RPC_PORT};
use rum_tests::client::{connect, exchange, host, server_ends_first, until_refused};
use rum_tests::device::{Defects, Flow};
use rum_tests::machine::Machine;
use rum_tests::netns::in_netns;
use rum_tests::rum::{Rum, Setup};
use rum_tests::wait::until;
use rustix::process::Signal;

/// A guest, whose port 80 is a static forward.
fn boot() -> Machine {
    boot_behind(Defects::default())
}

fn boot_behind(defects: Defects) -> Machine {
    let rest = "[auto_ports]\nrange = \"5000-6000\"\n[[ports]]\nhost = 8080\nguest = 80\n";
    Machine::boot(defects, rest)
}

/// A machine with an agent, and a `rum` that is connected to it.
fn connected() -> (Machine, Rum, Rum) {
    let machine = boot();
    let agent = machine.start_agent(&[]);
    let rum = machine.start_rum();
    rum.stderr.wait("connected (events");
    (machine, agent, rum)
}

#[test]
fn ports_follow_the_guest_through_the_device() {
    in_netns(|| {
        let (mut machine, _agent, rum) = connected();
        for round in 1..=3 {
            machine.guest.tell("listen 127.0.0.1:5000 echo");
            let line = "Auto-forwarding 127.0.0.1:5000 → guest:5000";
            rum.stdout.wait_nth(line, round);
            assert_eq!(exchange(5000, "through").expect("echo"), "through");
            machine.guest.tell("close 127.0.0.1:5000");
            rum.stdout.wait_nth("Stopped forwarding 5000", round);
            until_refused(5000);
        }
    });
}

#[test]
fn half_close_needs_nothing_from_the_device() {
    in_netns(|| {
        let (mut machine, _agent, rum) = connected();
        // The client ends first and still gets the whole answer.
        machine.guest.tell("listen 127.0.0.1:5000 late");
        rum.stdout.wait("Auto-forwarding 127.0.0.1:5000");
        let text = "0123456789abcdef".repeat(1 << 16);
        for _ in 0..5 {
            let answer = exchange(5000, &text).expect("the late answer");
            assert!(answer == text, "{} bytes of {}", answer.len(), text.len());
        }
        // The server ends first and still hears the client.
        machine.guest.tell("listen 127.0.0.1:5001 greet-then-read");
        rum.stdout.wait("Auto-forwarding 127.0.0.1:5001");
        server_ends_first(&mut machine.guest, 5001, &text);
    });
}

#[test]
fn a_reset_crosses_the_device() {
    in_netns(|| {
        let (mut machine, _agent, rum) = connected();
        machine.guest.tell("listen 127.0.0.1:5000 reset");
        rum.stdout.wait("Auto-forwarding 127.0.0.1:5000");
        let mut stream = connect(5000);
        stream.write_all(b"!").expect("connected");
        let error = stream.read(&mut [0; 8]).expect_err("not a clean end");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        // Nothing listens on the static forward's port: a reset too.
        let error = exchange(8080, "?").expect_err("nothing listens");
        assert!(
            [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe].contains(&error.kind()),
            "{error}"
        );
    });
}

#[test]
fn an_agent_that_is_killed_resets_its_connections_and_the_next_one_takes_over() {
    in_netns(|| {
        let (mut machine, mut agent, rum) = connected();
        machine.guest.tell("listen 127.0.0.1:5000 echo");
        rum.stdout.wait("Auto-forwarding 127.0.0.1:5000");
        for round in 1..=2 {
            let mut stream = connect(5000);
            stream.write_all(b"a").expect("connected");
            stream.read_exact(&mut [0]).expect("echo");
            // Dropping kills.
            drop(agent);
            let error = stream.read(&mut [0; 8]).expect_err("not a clean end");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            rum.stderr.wait_nth("Agent lost", round);
            // The forward stays: a client is accepted.
            connect(5000);
            agent = machine.start_agent(&[]);
            rum.stderr.wait_nth("connected (events", round + 1);
            assert_eq!(exchange(5000, "back").expect("echo"), "back");
            let port = 5000 + round;
            machine.guest.tell(&format!("listen 127.0.0.1:{port} echo"));
            rum.stdout
                .wait(&format!("Auto-forwarding 127.0.0.1:{port} "));
        }
        let lines = rum.stdout.all();
        assert!(!lines.iter().any(|l| l.contains("Stopped")), "{lines:?}");
    });
}

#[test]
fn a_stream_that_is_lost_alone_comes_back() {
    in_netns(|| {
        let (mut machine, _agent, rum) = connected();
        let sessions = || {
            let mut all = machine.device.connects();
            all.retain(|c| c.port == RPC_PORT);
            all
        };
        // The first is the stream, the next the poll's, which lives on and must not keep the
        // agent from knocking.
        until("the poll to connect", || {
            (sessions().len() >= 2).then_some(())
        });
        let stream = sessions().remove(0);
        stream.cut();
        rum.stderr.wait("Agent lost");
        rum.stderr.wait_nth("connected (events", 2);
        machine.guest.tell("listen 127.0.0.1:5000 echo");
        rum.stdout.wait("Auto-forwarding 127.0.0.1:5000");
        assert_eq!(exchange(5000, "back").expect("echo"), "back");
    });
}

/// Whoever cleans a directory of temporary files takes its socket away from a `rum up` that lives.
#[test]
fn an_agent_is_found_again_though_the_knock_socket_was_removed() {
    in_netns(|| {
        let (mut machine, _agent, rum) = connected();
        std::fs::remove_file(machine.device.socket("vm_2224")).expect("rum listens there");
        machine.device.cut();
        rum.stderr.wait_nth("connected (events", 2);
        machine.guest.tell("listen 127.0.0.1:5000 echo");
        rum.stdout.wait("Auto-forwarding 127.0.0.1:5000");
        assert_eq!(exchange(5000, "found").expect("echo"), "found");
    });
}

#[test]
fn channels_are_ready_before_the_clients() {
    in_netns(|| {
        let (mut machine, _agent, _rum) = connected();
        let channels = |n: usize| {
            until(&format!("{n} channels"), || {
                let all = machine.device.connects();
                let channels = all.iter().filter(|c| c.port == CHANNEL_PORT);
                (channels.count() == n).then_some(())
            });
        };
        channels(4);
        machine.guest.tell("listen 127.0.0.1:5000 echo");
        for round in 1..=3 {
            until("the port", || TcpStream::connect(host(5000)).ok());
            assert_eq!(exchange(5000, "at once").expect("echo"), "at once");
            // One for the client that only looked, one for the other.
            channels(4 + 2 * round);
        }
    });
}

#[test]
fn commands_are_refused_with_a_hint() {
    in_netns(|| {
        let machine = boot();
        let _agent = machine.start_agent(&[]);
        let mut rum = machine.setup.start(["up", "--", "true"]);
        assert!(!rum.wait().success());
        rum.stderr
            .wait("cannot run a command in a guest of kind `unix`");
        rum.stderr.wait("hint: ");
    });
}

#[test]
fn a_device_or_an_agent_that_is_not_there_is_said() {
    in_netns(|| {
        let setup = Setup::new();
        let socket = setup.path().join("vm.vsock");
        let config = format!(
            "[guest]\nkind = \"unix\"\nsocket = \"{}\"\n[auto_ports]\nrange = \"5000\"\n",
            socket.display()
        );
        fs::write(setup.path().join("rum.toml"), config).expect("a file");
        let mut rum = setup.start(["up"]);
        let missing = format!(
            "Waiting for the agent: there is no socket {}",
            socket.display()
        );
        rum.stderr.wait(&missing);
        rum.stderr
            .wait("still waiting: if there is none in the guest, `rum agent install`");
        rum.signal(Signal::TERM);
        rum.wait();
    });
}

#[test]
fn the_device_is_left_alone_until_the_agent_knocks() {
    in_netns(|| {
        let mut machine = boot();
        machine.guest.tell("listen 127.0.0.1:80 echo");
        machine.guest.tell("listen 127.0.0.1:5000 echo");
        let rum = machine.start_rum();
        rum.stdout.wait("Forwarding 127.0.0.1:8080");
        let knocks = machine.device.socket("vm_2224");
        until("rum to listen for knocks", || knocks.exists().then_some(()));
        // Not even a client that waits is a reason to connect.
        let mut early = connect(8080);
        early.write_all(b"a").expect("accepted");
        let early_connects: Vec<u32> = machine.device.connects().iter().map(|c| c.port).collect();
        assert_eq!(early_connects, [0u32; 0]);
        let _agent = machine.start_agent(&[]);
        rum.stdout.wait("Auto-forwarding 127.0.0.1:5000");
        assert_eq!(exchange(5000, "awake").expect("echo"), "awake");
        early.read_exact(&mut [0]).expect("it waited for the agent");
        // The agent listens before it knocks: nobody asked for it earlier than that.
        let connects = machine.device.connects();
        let early = connects.iter().filter(|c| !c.heard).count();
        assert_eq!(early, 0, "of {}", connects.len());
    });
}

#[test]
fn without_rum_up_the_agent_tells_of_its_ports() {
    in_netns(|| {
        let mut machine = boot();
        machine.guest.tell("listen 127.0.0.1:5000 echo");
        machine.guest.tell("listen 127.0.0.1:4000 echo");
        let _agent = machine.start_agent(&[]);
        let ports = |args: &[&str]| {
            until("the agent's answer", || {
                let output = machine.setup.rum(["ports"].iter().chain(args)).output();
                let output = output.expect("rum starts");
                let texts = [output.stdout, output.stderr].map(String::from_utf8);
                let [stdout, stderr] = texts.map(|text| text.expect("UTF-8"));
                output.status.success().then_some((stdout, stderr))
            })
        };
        let (stdout, stderr) = ports(&[]);
        assert!(stdout.starts_with("5000\tpending\t-\t"), "{stdout}");
        assert_eq!(stdout.lines().count(), 1, "{stdout}");
        assert!(stderr.contains("nothing is forwarded"), "{stderr}");
        assert!(stderr.contains("hint: start it with `rum up`"), "{stderr}");
        let (stdout, _) = ports(&["--all", "--json"]);
        assert!(stdout.contains("\"code\":\"not-running\""), "{stdout}");
        assert!(stdout.contains("\"state\":\"out-of-range\""), "{stdout}");
    });
}

/// What rum is for, through a device with `defects`.
fn main_job(defects: Defects) {
    let mut machine = boot_behind(defects);
    let _agent = machine.start_agent(&[]);
    let rum = machine.start_rum();
    rum.stderr.wait("connected (events");
    for (port, mode) in [(5000, "echo"), (5001, "late"), (5002, "reset")] {
        machine
            .guest
            .tell(&format!("listen 127.0.0.1:{port} {mode}"));
        rum.stdout
            .wait(&format!("Auto-forwarding 127.0.0.1:{port} "));
    }
    let text = "0123456789abcdef".repeat(1 << 14);
    // More than are dialled ahead of the clients.
    for _ in 0..8 {
        assert!(exchange(5000, &text).expect("echo") == text);
        assert!(exchange(5001, &text).expect("after the half-close") == text);
        // Without a half-close, which the reset may be quicker than.
        let mut reset = connect(5002);
        reset.write_all(b"!").expect("connected");
        let error = reset.read(&mut [0]).expect_err("not a clean end");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    machine.guest.tell("close 127.0.0.1:5000");
    rum.stdout.wait("Stopped forwarding 5000");
}

#[test]
fn a_device_without_the_defects_is_as_good() {
    let defects = Defects {
        half_close_lost: false,
        early_bytes_lost: false,
        ..Defects::default()
    };
    in_netns(|| main_job(defects));
}

#[test]
fn the_number_behind_ok_means_nothing() {
    in_netns(|| {
        for number in ["0", "4294967295", "18446744073709551616", "-1", ""] {
            main_job(Defects {
                number: Some(number),
                ..Defects::default()
            });
        }
    });
}

#[test]
fn an_answer_may_come_in_pieces() {
    let defects = Defects {
        split_answer: true,
        ..Defects::default()
    };
    in_netns(|| main_job(defects));
}

#[test]
fn nothing_is_said_before_a_late_answer() {
    in_netns(|| {
        let (mut machine, _agent, rum) = connected();
        machine.guest.tell("listen 127.0.0.1:5000 echo");
        rum.stdout.wait("Auto-forwarding 127.0.0.1:5000");
        let known = machine.device.connects().len();
        machine.device.answer(false);
        // The first few find channels that were dialled before.
        let mut clients: Vec<TcpStream> = (0..12).map(|_| connect(5000)).collect();
        for client in &mut clients {
            client.write_all(b"early").expect("accepted");
        }
        machine.device.answer(true);
        for client in &mut clients {
            let mut back = [0; 5];
            client.read_exact(&mut back).expect("all of it");
            assert_eq!(&back, b"early");
        }
        assert!(machine.device.connects().len() > known);
    });
}

#[test]
fn a_full_backlog_of_the_device_costs_no_client() {
    in_netns(|| {
        let mut machine = boot_behind(Defects {
            backlog: Some(8),
            ..Defects::default()
        });
        let agent = machine.start_agent(&[]);
        let rum = machine.start_rum();
        rum.stderr.wait("connected (events");
        machine.guest.tell("listen 127.0.0.1:5000 echo");
        rum.stdout.wait("Auto-forwarding 127.0.0.1:5000");
        let mut before = connect(5000);
        before.write_all(b"a").expect("connected");
        before.read_exact(&mut [0]).expect("echo");
        agent.signal(Signal::STOP);
        let mut clients: Vec<TcpStream> = (0..64).map(|_| connect(5000)).collect();
        for client in &mut clients {
            client.write_all(b"b").expect("none is reset");
        }
        agent.signal(Signal::CONT);
        // A channel that the device has refused is dialled again.
        for client in &mut clients {
            let read = client.read(&mut [0; 2]);
            assert_eq!(read.expect("served, as if the device had had room"), 1);
        }
        before.write_all(b"c").expect("it lives");
        before.read_exact(&mut [0]).expect("echo");
        drop(clients);
        until("a new client to be served", || exchange(5000, "d").ok());
    });
}

#[test]
fn what_led_to_a_guest_that_rebooted_without_a_word_is_reset() {
    in_netns(|| {
        let (mut machine, agent, rum) = connected();
        machine.guest.tell("listen 127.0.0.1:5000 echo");
        rum.stdout.wait("Auto-forwarding 127.0.0.1:5000");
        let mut clients: Vec<TcpStream> = (0..6).map(|_| connect(5000)).collect();
        for client in &mut clients {
            client.write_all(b"a").expect("connected");
            client.read_exact(&mut [0]).expect("echo");
        }
        machine.device.reboot();
        drop(agent);
        machine.reboot();
        rum.stderr.wait("no heartbeat");
        let _agent = machine.start_agent(&[]);
        for client in &mut clients {
            let error = client.read(&mut [0]).expect_err("not a clean end");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        }
        rum.stderr.wait_nth("connected (events", 2);
        rum.stdout.wait("Stopped forwarding 5000");
        machine.guest.tell("listen 127.0.0.1:5000 echo");
        rum.stdout.wait_nth("Auto-forwarding 127.0.0.1:5000", 2);
        assert_eq!(exchange(5000, "back").expect("echo"), "back");
    });
}

#[test]
fn a_stall_that_the_agent_outlives_ends_no_connection() {
    in_netns(|| {
        let (mut machine, _agent, rum) = connected();
        machine.guest.tell("listen 127.0.0.1:5000 echo");
        rum.stdout.wait("Auto-forwarding 127.0.0.1:5000");
        let mut client = connect(5000);
        client.write_all(b"a").expect("connected");
        client.read_exact(&mut [0]).expect("echo");
        machine.device.flow(Flow::Stalled);
        client.write_all(b"b").expect("buffered");
        rum.stderr.wait("no heartbeat");
        machine.device.flow(Flow::Free);
        client.read_exact(&mut [0]).expect("it was only late");
        rum.stderr.wait_nth("connected (events", 2);
        client.write_all(b"c").expect("it lives");
        client.read_exact(&mut [0]).expect("echo");
    });
}
