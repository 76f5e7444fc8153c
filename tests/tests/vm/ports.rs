//! What listens in the guest is what is forwarded.

use rum_tests::client::{exchange, until_refused};

use crate::on_machine;

#[test]
fn ports_follow_the_guest() {
    on_machine(|mut machine| {
        for round in 1..=3 {
            machine.guest.tell("listen 127.0.0.1:5000 echo");
            machine.until_forwarded(5000, round);
            assert_eq!(exchange(5000, "hello").expect("echo"), "hello");
            machine.guest.tell("close 127.0.0.1:5000");
            machine
                .rum
                .stdout
                .wait_nth("Stopped forwarding 5000", round);
            until_refused(5000);
        }
        // Reachable by IPv6 only in the guest, by IPv4 on the host.
        for (port, addr) in [(5001, "[::1]"), (5002, "[::]")] {
            machine.guest.tell(&format!("v6only {addr}:{port} echo"));
            machine.until_forwarded(port, 1);
            assert_eq!(exchange(port, addr).expect("echo"), addr);
        }
    });
}

#[test]
fn a_thousand_listeners_at_once() {
    on_machine(|mut machine| {
        machine.guest.tell("many 5000 1000");
        machine.listen(6000, "echo");
        for port in (5000..6000).rev() {
            machine.until_forwarded(port, 1);
        }
        // Nobody accepts on those of the thousand: these are the same ports with a server.
        for port in [5000, 5499, 5999] {
            machine.guest.tell(&format!("close-many {port} 1"));
            machine
                .rum
                .stdout
                .wait(&format!("Stopped forwarding {port}"));
            machine.guest.tell(&format!("listen 127.0.0.1:{port} echo"));
            machine.until_forwarded(port, 2);
            assert_eq!(exchange(port, "one of many").expect("echo"), "one of many");
            machine.guest.tell(&format!("close 127.0.0.1:{port}"));
        }
        machine.guest.tell("close-many 5000 1000");
        for port in (5000..6000).rev() {
            let again = usize::from([5000, 5499, 5999].contains(&port));
            let line = format!("Stopped forwarding {port}");
            machine.rum.stdout.wait_nth(&line, 1 + again);
            until_refused(port);
        }
        assert_eq!(exchange(6000, "still").expect("echo"), "still");
    });
}

/// Listeners are hashed by address and port: on one address, ports that differ by a multiple of
/// the table's size share a bucket (ipv4_portaddr_hash, include/net/ip.h). The table grows with
/// the memory, so here it is small. A dump that is taken while others in the bucket come and go
/// can miss a listener that stays.
#[test]
fn listeners_stay_forwarded_while_their_hash_neighbours_churn() {
    on_machine(|mut machine| {
        for port in [5000, 5512] {
            machine.guest.tell(&format!("twin 127.0.0.1:{port} echo"));
            machine.until_forwarded(port, 1);
        }
        // Twins, neighbours in the range, and neighbours that the host never hears of. More of
        // them than one datagram of a dump holds.
        for neighbour in [5512, 5256, 6024, 7048, 9096, 13_192] {
            machine
                .guest
                .tell(&format!("churn 127.0.0.1:{neighbour} 400 10"));
        }
        // Comes after all of that.
        machine.listen(5001, "echo");
        for port in [5000, 5512] {
            assert_eq!(exchange(port, "stable").expect("echo"), "stable");
        }
        for port in [5000, 5512] {
            machine.assert_undisturbed(port);
        }
    });
}
