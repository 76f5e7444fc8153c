//! Agents and guests die, sleep and come back; rum says so, and forwards what is there.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

use rum_tests::client::{connect, exchange, until_refused};

use crate::on_machine;

/// One byte there and back.
fn echo(stream: &mut TcpStream) {
    stream.write_all(b"!").expect("connected");
    stream.read_exact(&mut [0]).expect("echo");
}

#[test]
fn a_killed_agent_is_replaced_by_the_next() {
    on_machine(|mut machine| {
        machine.listen(5000, "echo");
        for round in 1..=2 {
            let mut stream = connect(5000);
            echo(&mut stream);
            machine.guest.tell("sh kill -9 $(pidof rum-agent)");
            let error = stream.read(&mut [0]).expect_err("not a clean end");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            machine.rum.stderr.wait_nth("Agent lost", round);
            machine.rum.stderr.wait_nth("connected (events", round + 1);
            assert_eq!(exchange(5000, "back").expect("echo"), "back");
            machine.listen(5000 + round as u16, "echo");
        }
        machine.assert_undisturbed(5000);
    });
}

/// The device tells nobody that the guest rebooted: silence does, or the knock of the new agent,
/// whichever is first (a guest boots in about as long as silence may last). It also stops for good
/// when a single byte comes from the host while the driver is away, so that rum must not say one.
#[test]
fn a_rebooted_guest_is_noticed_and_its_new_ports_are_forwarded() {
    on_machine(|mut machine| {
        machine.listen(5000, "echo");
        machine.listen(5001, "echo");
        let mut stream = connect(5000);
        echo(&mut stream);
        for boot in 1..=2 {
            machine.guest.send("sh reboot -f");
            machine.guest = machine.vm.guest();
            machine.rum.stderr.wait_nth("Agent lost", boot);
            machine.rum.stderr.wait_nth("connected (events", boot + 1);
            machine.rum.stderr.wait_nth("The guest has rebooted", boot);
            let error = stream.read(&mut [0]).expect_err("not a clean end");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            // What the guest no longer has goes, what it has is there.
            machine.guest.tell("listen 127.0.0.1:5001 echo");
            let (old, new) = if boot == 1 {
                (5000, 5002)
            } else {
                (5002, 5003)
            };
            machine.listen(new, "echo");
            machine
                .rum
                .stdout
                .wait(&format!("Stopped forwarding {old}"));
            until_refused(old);
            for port in [5001, new] {
                assert_eq!(exchange(port, "new").expect("echo"), "new");
            }
            stream = connect(new);
            echo(&mut stream);
        }
    });
}

/// Freezes the guest until it is missed, and thaws it: nothing was lost but time. With QMP's `stop`
/// and `cont`, the same is tested with a genuine vhost-vsock (the suite `vhost`): this device has its
/// queues taken away then, and does not always outlive that.
#[test]
fn a_guest_whose_process_stops_is_found_again() {
    on_machine(|mut machine| {
        machine.listen(5000, "echo");
        let mut stream = connect(5000);
        for sleep in 1..=2 {
            echo(&mut stream);
            machine.vm.freeze();
            machine
                .rum
                .stderr
                .wait_nth("Agent lost: no heartbeat", sleep);
            machine.vm.thaw();
            machine.rum.stderr.wait_nth("connected (events", sleep + 1);
        }
        echo(&mut stream);
        assert_eq!(exchange(5000, "back").expect("echo"), "back");
    });
}

#[test]
fn a_frozen_guest_is_noticed_and_its_forwards_are_closed() {
    on_machine(|mut machine| {
        machine.listen(5000, "echo");
        let mut stream = connect(5000);
        echo(&mut stream);
        machine.vm.freeze();
        machine.rum.stderr.wait("Agent lost: no heartbeat");
        // The forward stays for the grace time, and goes after it.
        machine.rum.stderr.wait("Agent still lost");
        machine.rum.stdout.wait("Stopped forwarding 5000");
        until_refused(5000);
        machine.vm.thaw();
        machine
            .rum
            .stdout
            .wait_nth("Auto-forwarding 127.0.0.1:5000", 2);
        assert_eq!(exchange(5000, "back").expect("echo"), "back");
    });
}

#[test]
fn a_vm_that_is_gone_is_reported_and_its_forwards_are_closed() {
    on_machine(|mut machine| {
        machine.listen(5000, "echo");
        let mut stream = connect(5000);
        echo(&mut stream);
        machine.vm.kill();
        let error = stream.read(&mut [0]).expect_err("not a clean end");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        machine.rum.stderr.wait("Agent lost");
        machine.rum.stderr.wait("Agent still lost");
        machine.rum.stdout.wait("Stopped forwarding 5000");
        until_refused(5000);
    });
}
